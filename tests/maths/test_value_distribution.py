"""Numbers as distributions over bins: against integrals of the normal density, identities and hand-worked numbers."""

import math
import statistics

import pytest
import torch

from rlhf_lab.maths import (
    distribution_loss,
    expected_value,
    hl_gauss_loss,
    hl_gauss_targets,
    two_hot_targets,
)

CENTRES = torch.tensor([-2.0, -1.0, 0.0, 1.0, 2.0], dtype=torch.float64)
UNEVEN = torch.tensor([1.0, 2.0, 4.0], dtype=torch.float64)


def doubles(values):
    return torch.tensor(values, dtype=torch.float64)


# ---- two_hot_targets


def test_two_hot_by_hand():
    # 2.5 lies a quarter of the way from 2 to 4; 1 and 4 are centres themselves
    found = two_hot_targets(doubles([[2.5, 1.0], [4.0, 2.0]]), UNEVEN)
    assert found.tolist() == [[[0, 0.75, 0.25], [1, 0, 0]], [[0, 0, 1], [0, 1, 0]]]


def test_the_mean_of_a_two_hot_target_is_the_value():
    values = torch.linspace(1, 4, 31).double()
    target = two_hot_targets(values, UNEVEN)
    assert torch.allclose((target * UNEVEN).sum(-1), values)
    assert torch.allclose(target.sum(-1), torch.ones(31).double())
    assert bool((target >= 0).all())


@pytest.mark.parametrize("value", [0.99, 4.01, math.nan])
def test_a_value_outside_the_bins_is_refused(value):
    with pytest.raises(ValueError, match=r"^two_hot_targets: a value lies outside 1 to 4$"):
        two_hot_targets(doubles([2.0, value]), UNEVEN)


# ---- hl_gauss_targets


@pytest.mark.parametrize("sigma", [0.3, 0.75, 3.0])
@pytest.mark.parametrize("value", [-1.7, 0.0, 0.4, 2.0])
def test_the_target_is_the_normal_mass_in_each_bin(value, sigma):
    """By the standard library's normal distribution, cut off at -2.5 and 2.5."""
    normal = statistics.NormalDist(value, sigma)
    edges = [-2.5, -1.5, -0.5, 0.5, 1.5, 2.5]
    mass = [normal.cdf(b) - normal.cdf(a) for a, b in zip(edges, edges[1:], strict=False)]
    found = hl_gauss_targets(doubles([value]), CENTRES, sigma=sigma)[0]
    assert found.tolist() == pytest.approx([m / sum(mass) for m in mass], abs=1e-12)


def test_values_beyond_the_centres_count_as_the_outermost():
    found = hl_gauss_targets(doubles([5.0, 2.0, -1e30, -2.0]), CENTRES, sigma=0.75)
    assert torch.equal(found[0], found[1])
    assert torch.equal(found[2], found[3])
    assert torch.allclose(found[0], found[2].flip(0))


def test_uneven_edges_lie_half_way_between_centres():
    # edges 0.5, 1.5, 3, 5; with hardly any spread the mass is where the value is
    found = hl_gauss_targets(doubles([1.4, 1.6, 2.9, 3.1]), UNEVEN, sigma=1e-3)
    assert found.argmax(-1).tolist() == [0, 1, 1, 2]
    assert torch.allclose(found.amax(-1), torch.ones(4).double())


def test_a_spread_of_three_quarters_of_a_bin_keeps_the_mean():
    # a tenth of a bin width puts nearly all on one centre; 0.75 is off by less than a thousandth
    values = torch.linspace(-1, 1, 21).double()
    wide = torch.linspace(-10, 10, 21).double()
    mean = (hl_gauss_targets(values, wide, sigma=0.75) * wide).sum(-1)
    assert (mean - values).abs().max() < 1e-3
    mean = (hl_gauss_targets(values, wide, sigma=0.1) * wide).sum(-1)
    assert (mean - values).abs().max() > 0.2


def test_what_is_no_spread_and_no_bins():
    for sigma in (0.0, -1.0, math.nan):
        with pytest.raises(ValueError, match=r"^hl_gauss_targets: sigma must be above 0"):
            hl_gauss_targets(doubles([0.0]), CENTRES, sigma=sigma)
    for centres in (doubles([1.0]), doubles([1.0, 1.0]), doubles([2.0, 1.0])):
        with pytest.raises(ValueError, match=r"^two_hot_targets: centres must be at least two numbers in ascending"):
            two_hot_targets(doubles([1.0]), centres)


# ---- losses


def test_expected_value_by_hand():
    # probabilities 1/4, 1/4, 1/2: 1/4 + 2/4 + 4/2
    assert expected_value(doubles([1.0, 1.0, 2.0]).log(), UNEVEN).item() == pytest.approx(2.75)
    with pytest.raises(ValueError, match=r"^expected_value: wants one logit for each of 3 centres, got \(2,\)"):
        expected_value(doubles([1.0, 1.0]), UNEVEN)


def test_cross_entropy_by_hand():
    # -(0.25 log 1/4 + 0.75 log 1/2); its least value is the entropy of the target, at log target
    logits, target = doubles([[1.0, 1.0, 2.0]]).log(), doubles([[0.25, 0.0, 0.75]])
    assert distribution_loss(logits, target).item() == pytest.approx(0.25 * math.log(4) + 0.75 * math.log(2))
    target = doubles([[0.2, 0.3, 0.5]])
    best = distribution_loss(target.log(), target).item()
    assert best == pytest.approx(-sum(p * math.log(p) for p in (0.2, 0.3, 0.5)))
    with pytest.raises(ValueError, match=r"^distribution_loss: wants one shape"):
        distribution_loss(logits, target[:, :2])


def test_hl_gauss_loss_token_by_token():
    logits = torch.randn(2, 3, 5, generator=torch.Generator().manual_seed(0)).double()
    returns, mask = (
        doubles([[0.4, -1.7, 9.0], [2.0, 0.0, 0.0]]),
        torch.tensor([[True, True, False], [True, False, False]]),
    )
    expected = []
    for row, column in ((0, 0), (0, 1), (1, 0)):
        normal = statistics.NormalDist(returns[row, column].item(), 0.75)
        mass = [normal.cdf(c + 0.5) - normal.cdf(c - 0.5) for c in (-2.0, -1.0, 0.0, 1.0, 2.0)]
        weights = [math.exp(x) for x in logits[row, column].tolist()]
        logs = [math.log(w / sum(weights)) for w in weights]
        expected.append(-sum(m / sum(mass) * log for m, log in zip(mass, logs, strict=True)))
    found = hl_gauss_loss(logits, returns, mask, centres=CENTRES, sigma=0.75)
    assert found.loss.item() == pytest.approx(sum(expected) / 3)
    assert found.clip_fraction.item() == 0


def test_hl_gauss_explained_variance_is_that_of_the_means():
    # logits that put all on one centre: values 1 and -1 for returns 2 and -2, so 1 - mean(1, 1) / 4
    logits = torch.full((1, 2, 5), -100.0, dtype=torch.float64)
    logits[0, 0, 3] = logits[0, 1, 1] = 100.0
    ones = torch.ones(1, 2, dtype=torch.bool)
    found = hl_gauss_loss(logits, doubles([[2.0, -2.0]]), ones, centres=CENTRES, sigma=0.75)
    assert found.explained_variance.item() == pytest.approx(0.75)


@pytest.mark.parametrize("junk", [math.nan, math.inf])
def test_masked_positions_reach_neither_loss_nor_gradient(junk):
    clean = torch.randn(1, 3, 5, generator=torch.Generator().manual_seed(1)).double()
    mask, returns = torch.tensor([[True, False, True]]), doubles([[0.5, junk, -0.5]])
    logits = clean.masked_fill(~mask[..., None], junk).requires_grad_()
    with torch.autograd.set_detect_anomaly(True):
        found = hl_gauss_loss(logits, returns, mask, centres=CENTRES, sigma=0.75)
        found.loss.backward()
    alone = hl_gauss_loss(clean[:, ::2], returns[:, ::2], mask[:, ::2], centres=CENTRES, sigma=0.75)
    assert found.loss.item() == pytest.approx(alone.loss.item())
    assert logits.grad.isfinite().all()
    assert not logits.grad[0, 1].any()
