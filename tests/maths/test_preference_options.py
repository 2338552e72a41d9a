"""Margin, label smoothing and pick-the-best: against numbers worked by hand, limits and the other losses."""

import itertools
import math

import pytest
import torch

from rlhf_lab.maths import best_of_k_loss, plackett_luce_loss, preference_loss, ranking_loss


def doubles(values):
    return torch.tensor(values, dtype=torch.float64)


def nats(gap: float) -> float:
    """-log sigmoid(gap)."""
    return math.log1p(math.exp(-gap))


# ---- label_smoothing


def test_smoothing_is_the_mean_over_flipped_labels():
    # gap 0.9, one label in ten flipped: 0.9 log(1 + e^-0.9) + 0.1 log(1 + e^0.9) = 0.9 * 0.341154 + 0.1 * 1.241154
    chosen, rejected = doubles([1.3]), doubles([0.4])
    found = preference_loss(chosen, rejected, label_smoothing=0.1)
    assert found.loss.item() == pytest.approx(0.4311538747320878)
    assert (found.accuracy.item(), found.gap.item()) == (1.0, pytest.approx(0.9))  # metrics are of the labels as given
    flipped = preference_loss(rejected, chosen, margin=0.5).loss
    straight = preference_loss(chosen, rejected, margin=0.5).loss
    both = preference_loss(chosen, rejected, margin=0.5, label_smoothing=0.3).loss
    assert both.item() == pytest.approx((0.7 * straight + 0.3 * flipped).item())


@pytest.mark.parametrize("eps", [0.1, 0.25, 0.4])
def test_the_smoothed_optimum_is_the_log_odds_of_the_noise(eps):
    # the slope is -(1 - eps) sigmoid(-gap) + eps sigmoid(gap), which is 0 where sigmoid(gap) = 1 - eps
    gap = doubles([math.log((1 - eps) / eps)]).requires_grad_()
    preference_loss(gap, doubles([0.0]), label_smoothing=eps).loss.backward()
    assert gap.grad.item() == pytest.approx(0.0, abs=1e-15)
    off = (gap.detach() - 0.1).requires_grad_()
    preference_loss(off, doubles([0.0]), label_smoothing=eps).loss.backward()
    assert off.grad.item() < -1e-3


@pytest.mark.parametrize("eps", [-0.1, 0.5, 0.7, math.nan])
def test_more_than_half_of_the_labels_cannot_be_wrong(eps):
    with pytest.raises(ValueError, match=r"^ranking_loss: label_smoothing must be in \[0, 1/2\)"):
        ranking_loss(doubles([[1.0, 0.0]]), label_smoothing=eps)
    with pytest.raises(ValueError, match=r"^preference_loss: label_smoothing must be in \[0, 1/2\)"):
        preference_loss(doubles([1.0]), doubles([0.0]), label_smoothing=eps)


# ---- margin and smoothing of whole rankings


def test_rankings_with_margins_and_smoothing_pair_by_pair():
    # margins are one per prompt: 0.5 for all three pairs of the first, 0 for the one of the second
    scores, mask = doubles([[2.0, 1.0, -1.0], [0.0, 1.0, 7.0]]), torch.tensor([[True] * 3, [True, True, False]])
    eps, margins = 0.2, [0.5, 0.0]
    first = [a - b for a, b in itertools.combinations([2.0, 1.0, -1.0], 2)]
    cost = [
        sum((1 - eps) * nats(gap - m) + eps * nats(-gap - m) for gap in gaps) / len(gaps)
        for gaps, m in zip([first, [-1.0]], margins, strict=True)
    ]
    found = ranking_loss(scores, mask=mask, margin=doubles(margins), label_smoothing=eps)
    assert found.item() == pytest.approx(sum(cost) / 2)
    both = ranking_loss(scores, mask=mask, margin=0.5)
    assert both.item() == pytest.approx((sum(nats(gap - 0.5) for gap in first) / 3 + nats(-1.5)) / 2)


def test_rankings_of_two_are_pairs_with_margin_and_smoothing_too():
    chosen, rejected, margin = doubles([0.3, -1.0]), doubles([0.1, 0.5]), doubles([1.0, 0.25])
    pair = preference_loss(chosen, rejected, margin=margin, label_smoothing=0.1).loss
    ranked = ranking_loss(torch.stack([chosen, rejected], 1), margin=margin, label_smoothing=0.1)
    assert ranked.item() == pytest.approx(pair.item())


def test_a_margin_per_reply_is_refused():
    with pytest.raises(ValueError, match=r"^ranking_loss: wants shape \(B\), .* margin \(3,\)$"):
        ranking_loss(torch.zeros(2, 3), margin=torch.zeros(3))


# ---- best_of_k_loss


def test_best_of_k_by_hand():
    # Ziegler et al. 2019, eq. 1: strengths 3, 2, 1, 4; the second was picked: P = 2/10
    scores = doubles([[3.0, 2.0, 1.0, 4.0]]).log()
    assert best_of_k_loss(scores, torch.tensor([1])).item() == pytest.approx(math.log(5))
    scores.requires_grad_()
    best_of_k_loss(scores, torch.tensor([1])).backward()
    assert scores.grad[0].tolist() == pytest.approx([0.3, 0.2 - 1, 0.1, 0.4])  # softmax less one-hot


def test_best_of_k_is_the_pair_loss_at_two_and_the_first_choice_of_plackett_luce():
    scores = torch.randn(5, 4, generator=torch.Generator().manual_seed(0)).double()
    pair = preference_loss(scores[:, 1], scores[:, 0]).loss
    assert best_of_k_loss(scores[:, :2], torch.ones(5, dtype=torch.long)).item() == pytest.approx(pair.item())
    first = plackett_luce_loss(scores) - plackett_luce_loss(scores[:, 1:])
    assert best_of_k_loss(scores, torch.zeros(5, dtype=torch.long)).item() == pytest.approx(first.item())
    every = [math.exp(-best_of_k_loss(scores[:1], torch.tensor([pick])).item()) for pick in range(4)]
    assert sum(every) == pytest.approx(1)


@pytest.mark.parametrize("junk", [math.nan, math.inf, -math.inf])
def test_missing_replies_change_nothing_and_lone_ones_do_not_count(junk):
    scores = doubles([[1.0, 0.0], [2.0, 2.0]])
    full = best_of_k_loss(scores, torch.tensor([0, 1])).item()
    wide = torch.cat([doubles([[junk], [junk]]), scores], 1)
    wide = torch.cat([wide, doubles([[5.0, junk, junk], [junk] * 3])]).requires_grad_()  # one reply; none at all
    mask = torch.tensor([[False, True, True], [False, True, True], [True, False, False], [False] * 3])
    with torch.autograd.set_detect_anomaly(True):
        found = best_of_k_loss(wide, torch.tensor([1, 2, 0, 0]), mask=mask)
        found.backward()
    assert found.item() == pytest.approx(full)
    assert wide.grad.isfinite().all()
    assert not wide.grad[~mask].any()


def test_a_best_reply_that_is_not_there_is_refused():
    mask = torch.tensor([[True, True, False]])
    for best in (2, 3, -1):
        with pytest.raises(ValueError, match=r"^best_of_k_loss: best must name a column that the mask counts$"):
            best_of_k_loss(torch.zeros(1, 3), torch.tensor([best]), mask=mask)
    with pytest.raises(ValueError, match=r"^best_of_k_loss: wants shape \(B\)"):
        best_of_k_loss(torch.zeros(2, 3), torch.tensor([0]))
