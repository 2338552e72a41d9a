"""The losses: against numbers worked by hand, identities between them, and junk where nothing should look."""

import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.functional import pad

from rlhf_lab.maths import plackett_luce_loss, policy_loss, preference_loss, ranking_loss, value_loss

JUNK = [math.nan, math.inf, -math.inf]
MASKS = st.integers(1, 4).flatmap(
    lambda width: st.lists(st.lists(st.booleans(), min_size=width, max_size=width), min_size=1, max_size=3)
)
REDUCTIONS = ["token", "sequence", 5]


def doubles(values):
    return torch.tensor(values, dtype=torch.float64)


def bools(values):
    return torch.tensor(values, dtype=torch.bool)


def noise(shape, *seeds):
    return [torch.randn(shape, generator=torch.Generator().manual_seed(seed)).double() for seed in seeds]


# ---- preference_loss


@pytest.mark.parametrize(
    ("chosen", "loss", "slope"),
    [
        (0.0, 0.6931471805599453, -0.5),
        (1.0, 0.31326168751822286, -0.2689414213699951),
        (-1.0, 1.3132616875182228, -0.7310585786300049),
    ],
)
def test_pair_loss_rewards_the_winner_scoring_higher(chosen, loss, slope):
    # InstructGPT 2203.02155 eq. 1 with s_l = 0: -log sigmoid(s_w), slope -sigmoid(-s_w), always below 0
    s_w, s_l = doubles([chosen]).requires_grad_(), doubles([0.0]).requires_grad_()
    result = preference_loss(s_w, s_l)
    result.loss.backward()
    assert result.loss.item() == pytest.approx(loss)
    assert s_w.grad.item() == pytest.approx(slope)
    assert s_l.grad.item() == pytest.approx(-slope)


def test_margin_of_llama_2():
    # Llama 2 2307.09288: scores 1.3 and 0.4; without margin log(1 + e^-0.9), with margin 1 log(1 + e^0.1)
    chosen, rejected = doubles([1.3]), doubles([0.4])
    assert preference_loss(chosen, rejected).loss.item() == pytest.approx(0.3411538747320878)
    assert preference_loss(chosen, rejected, margin=1.0).loss.item() == pytest.approx(0.7443966600735709)
    both = preference_loss(chosen.repeat(2), rejected.repeat(2), margin=doubles([0.0, 1.0])).loss
    assert both.item() == pytest.approx((0.3411538747320878 + 0.7443966600735709) / 2)


def test_a_shift_of_all_scores_changes_nothing():
    # InstructGPT appendix C.2, shift 7; and by any amount
    chosen, rejected = noise(6, 0, 1)
    for shift in (7.0, -300.0):
        shifted = preference_loss(chosen + shift, rejected + shift)
        for was, now in zip(preference_loss(chosen, rejected), shifted, strict=True):
            assert now.item() == pytest.approx(was.item())
        assert ranking_loss(chosen[None] + shift).item() == pytest.approx(ranking_loss(chosen[None]).item())
        moved = plackett_luce_loss(chosen[None] + shift).item()
        assert moved == pytest.approx(plackett_luce_loss(chosen[None]).item())


def test_accuracy_counts_a_tie_half_and_ignores_the_margin():
    # right, tie, wrong, right: (1 + 1/2 + 0 + 1) / 4; gaps 1, 0, -2, 3: mean 1/2
    result = preference_loss(doubles([1, 2, 0, 3]), doubles([0, 2, 2, 0]), margin=5.0)
    assert result.accuracy.item() == 0.625
    assert result.gap.item() == 0.5


def test_one_step_of_descent_widens_the_gap():
    """On a linear scorer, starting from a gap of the wrong sign."""
    features = doubles([[1.0, 2.0], [2.0, 1.0]])  # winner, loser
    weights = doubles([0.3, -0.2]).requires_grad_()
    scores = features @ weights
    preference_loss(scores[:1], scores[1:]).loss.backward()
    after = features @ (weights - 0.1 * weights.grad)
    assert (scores[0] - scores[1]).item() < 0
    assert (after[0] - after[1]).item() > (scores[0] - scores[1]).item()


def test_pair_loss_does_not_overflow():
    # -log sigmoid(-1000) is 1000 to all digits; -log sigmoid(1000) is 0
    assert preference_loss(torch.tensor([0.0]), torch.tensor([1000.0])).loss.item() == 1000.0
    assert preference_loss(torch.tensor([1000.0]), torch.tensor([0.0])).loss.item() == 0.0


def test_preference_loss_refuses_what_does_not_fit():
    with pytest.raises(ValueError, match=r"^preference_loss: wants shape \(B\), got chosen \(2,\), rejected"):
        preference_loss(torch.zeros(2), torch.zeros(3))
    with pytest.raises(ValueError, match=r"^preference_loss: wants shape \(B\), .* margin \(3,\)$"):
        preference_loss(torch.zeros(2), torch.zeros(2), margin=torch.zeros(3))
    with pytest.raises(ValueError, match="^preference_loss: wants at least one pair, got none$"):
        preference_loss(torch.zeros(0), torch.zeros(0))


# ---- ranking_loss and plackett_luce_loss


def pair_cost(better, worse):
    return math.log1p(math.exp(worse - better))


def test_instructgpt_equation_1():
    # scores 2, 1, .5, -1: mean over the C(4,2) = 6 pairs, here written out
    scores = [2.0, 1.0, 0.5, -1.0]
    by_hand = sum(pair_cost(a, b) for a, b in itertools.combinations(scores, 2)) / 6
    assert by_hand == pytest.approx(0.22761343171342482)
    assert ranking_loss(doubles([scores])).item() == pytest.approx(by_hand)


def test_a_reversed_ranking_costs_more():
    assert ranking_loss(doubles([[-1.0, 0.5, 1.0, 2.0]])).item() == pytest.approx(1.8109467650467581)
    in_order, reversed_ = doubles([[2.0, 1.0, 0.5, -1.0]]), doubles([[-1.0, 0.5, 1.0, 2.0]])
    assert plackett_luce_loss(reversed_) > plackett_luce_loss(in_order)


def test_rankings_of_two_are_pairs():
    chosen, rejected = noise(5, 0, 1)
    scores = torch.stack([chosen, rejected], dim=1)
    pair = preference_loss(chosen, rejected).loss.item()
    assert ranking_loss(scores).item() == pytest.approx(pair)
    assert plackett_luce_loss(scores).item() == pytest.approx(pair)


def test_a_prompt_counts_once_however_many_pairs_it_has():
    # three replies (2, 1, 0), two replies (1, 1), one reply (no pair, so it is not in the mean)
    scores = doubles([[2.0, 1.0, 0.0], [1.0, 1.0, 0.0], [4.0, 0.0, 0.0]])
    mask = bools([[1, 1, 1], [1, 1, 0], [1, 0, 0]])
    three = (2 * pair_cost(1, 0) + pair_cost(2, 0)) / 3
    assert ranking_loss(scores, mask=mask).item() == pytest.approx((three + math.log(2)) / 2)
    # Plackett-Luce: (first of three) + (first of two), then log 2
    ranking = math.log(1 + math.exp(-1) + math.exp(-2)) + pair_cost(1, 0)
    assert plackett_luce_loss(scores, mask=mask).item() == pytest.approx((ranking + math.log(2)) / 2)


def test_equal_ranks_are_dropped():
    # ranks 0 1 1 2: five pairs, the one in the middle is gone; a prompt of ties only is not counted
    scores = doubles([[2.0, 1.0, 0.5, -1.0], [5.0, 3.0, 1.0, 0.0]])
    ranks = torch.tensor([[0, 1, 1, 2], [0, 0, 0, 0]])
    pairs = [(2, 1), (2, 0.5), (2, -1), (1, -1), (0.5, -1)]
    assert ranking_loss(scores, ranks=ranks).item() == pytest.approx(sum(pair_cost(*p) for p in pairs) / 5)


def test_ranks_free_the_columns_from_any_order():
    scores, order = noise((1, 5), 3)[0], torch.tensor([3, 0, 4, 2, 1])
    ranks = torch.arange(5)[None]
    shuffled = ranking_loss(scores[:, order], ranks=ranks[:, order])
    assert shuffled.item() == pytest.approx(ranking_loss(scores).item())


def test_plackett_luce_by_hand():
    # strengths 3, 2, 1: P = 3/6 * 2/3 = 1/3
    assert plackett_luce_loss(doubles([[3.0, 2.0, 1.0]]).log()).item() == pytest.approx(math.log(3))


def test_plackett_luce_probabilities_of_all_orders_sum_to_one():
    scores = noise(4, 5)[0]
    orders = [scores[list(order)] for order in itertools.permutations(range(4))]
    assert sum(math.exp(-plackett_luce_loss(order[None]).item()) for order in orders) == pytest.approx(1)


@pytest.mark.parametrize("loss", [ranking_loss, plackett_luce_loss])
def test_missing_replies_change_nothing(loss):
    scores = noise((3, 4), 6)[0]
    full = loss(scores).item()
    for left, right in [(1, 0), (0, 2), (2, 1)]:
        wide = pad(scores, (left, right), value=math.nan)
        mask = pad(torch.ones(3, 4, dtype=torch.bool), (left, right), value=False)
        assert loss(wide, mask=mask).item() == pytest.approx(full)
    holed = torch.cat([scores[:, :2], torch.full((3, 1), math.inf), scores[:, 2:]], dim=1)
    assert loss(holed, mask=bools([[1, 1, 0, 1, 1]] * 3)).item() == pytest.approx(full)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(MASKS, st.sampled_from(JUNK), st.integers(0, 99))
def test_rankings_stay_finite_under_any_mask(mask, junk, seed):
    mask = bools(mask)
    clean = noise(mask.shape, seed)[0]
    for loss in (ranking_loss, plackett_luce_loss):
        scores = clean.masked_fill(~mask, junk).requires_grad_()
        with torch.autograd.set_detect_anomaly(True):  # no NaN on the way back either
            result = loss(scores, mask=mask)
            result.backward()
        assert result.item() == loss(clean, mask=mask).item()
        assert result.isfinite()
        assert (result > 0) == bool((mask.sum(1) > 1).any())
        assert scores.grad.isfinite().all()
        assert not scores.grad[~mask].any()


@pytest.mark.parametrize("loss", [ranking_loss, plackett_luce_loss])
def test_rankings_refuse_what_does_not_fit(loss):
    with pytest.raises(ValueError, match=rf"^{loss.__name__}: wants shape \(B, K\), got scores \(3,\)$"):
        loss(torch.zeros(3))
    with pytest.raises(ValueError, match=rf"^{loss.__name__}: .* got scores \(1, 3\), mask \(1, 2\)$"):
        loss(torch.zeros(1, 3), mask=bools([[1, 1]]))


# ---- policy_loss: the objective


def one_token(ratio, advantage, **settings):
    """Loss, slope of the loss in logp, and clip fraction for a single token with this ratio."""
    logp = doubles([[math.log(ratio)]]).requires_grad_()
    result = policy_loss(logp, doubles([[0.0]]), doubles([[advantage]]), bools([[1]]), **settings)
    result.loss.backward()
    return result.loss.item(), logp.grad.item(), result.clip_fraction.item()


@pytest.mark.parametrize(
    ("ratio", "advantage", "loss", "slope", "clipped"),
    [
        # PPO 1707.06347 eq. 7 and figure 1, clip 0.2; the slope of -A ratio in logp is -A ratio
        (0.5, 1.0, -0.5, -0.5, 0),  # too unlikely and good: pull back up
        (1.1, 1.0, -1.1, -1.1, 0),
        (1.5, 1.0, -1.2, 0.0, 1),  # far enough already
        (0.5, -1.0, 0.8, 0.0, 1),  # far enough already
        (0.9, -1.0, 0.9, 0.9, 0),
        (1.5, -1.0, 1.5, 1.5, 0),  # too likely and bad: push back down
    ],
)
def test_ppo_equation_7_in_its_six_cases(ratio, advantage, loss, slope, clipped):
    assert one_token(ratio, advantage, clip=0.2) == pytest.approx((loss, slope, clipped))


@pytest.mark.parametrize(
    ("ratio", "advantage", "loss", "slope", "clipped"),
    [
        (1.25, 1.0, -1.25, -1.25, 0),  # above 1.2, within 1.28
        (1.5, 1.0, -1.28, 0.0, 1),
        (0.75, -1.0, 0.8, 0.0, 1),  # the lower bound stays at 0.8
        (0.85, -1.0, 0.85, 0.85, 0),
    ],
)
def test_clip_high_moves_only_the_upper_bound(ratio, advantage, loss, slope, clipped):
    # DAPO 2503.14476: clip 0.2 below, 0.28 above
    assert one_token(ratio, advantage, clip=0.2, clip_high=0.28) == pytest.approx((loss, slope, clipped))


def test_clip_high_of_zero_is_not_none():
    assert one_token(1.1, 1.0, clip=0.2, clip_high=0.0) == pytest.approx((-1.0, 0.0, 1))


@pytest.mark.parametrize(
    ("ratio", "advantage", "loss", "slope"),
    [
        (4.0, -1.0, 3.0, 0.0),  # without it 4, with slope 4
        (4.0, -2.0, 6.0, 0.0),
        (2.0, -1.0, 2.0, 2.0),
        (0.5, -1.0, 0.8, 0.0),
        (4.0, 1.0, -1.2, 0.0),  # good actions are left alone
        (0.5, 1.0, -0.5, -0.5),
    ],
)
def test_dual_clip_bounds_the_loss_of_bad_actions(ratio, advantage, loss, slope):
    # Ye et al. 1912.09729 with c = 3: at A < 0 the loss is at most -c A
    assert one_token(ratio, advantage, clip=0.2, dual_clip=3.0)[:2] == pytest.approx((loss, slope))


def test_a_ratio_on_the_bound_is_not_clipped():
    # 0.75 and 1.25 are exact in floating point: both branches are equal, and equal is not "strictly larger"
    logp = torch.tensor([[0.75, 1.25]], dtype=torch.float64).log()
    assert logp.exp().tolist() == [[0.75, 1.25]]
    result = policy_loss(logp, torch.zeros(1, 2).double(), doubles([[-1.0, 1.0]]), bools([[1, 1]]), clip=0.25)
    assert result.clip_fraction.item() == 0.0


def test_no_token_is_clipped_before_the_first_step():
    logp, advantages = noise((3, 4), 0, 1)
    result = policy_loss(logp, logp.clone(), advantages, torch.ones(3, 4, dtype=torch.bool), clip=0.2)
    assert [x.item() for x in result[1:]] == [0.0, 0.0, 1.0]  # clip fraction, approximate KL, ratio
    assert result.loss.item() == pytest.approx(-advantages.mean().item())


def test_only_the_new_logprobs_get_a_gradient():
    logp, old_logp, advantages = (x.requires_grad_() for x in noise((2, 3), 0, 1, 2))
    result = policy_loss(logp, old_logp, advantages, torch.ones(2, 3, dtype=torch.bool), clip=0.2)
    result.loss.backward()
    assert logp.grad.any()
    assert old_logp.grad is None
    assert advantages.grad is None
    assert not any(metric.requires_grad for metric in result[1:])


# ---- policy_loss: numbers from public tests


def test_policy_loss_of_nemo():
    # NVIDIA-NeMo/RL 7ea279ab, tests/unit/algorithms/test_loss_functions.py L456-529: ratios .5, 1, 1.5, per
    # token -.5, 1, -2.4; only the last is clipped. Stated -0.6333
    logp = doubles([[-1.69315, -1.0, -0.59453]])
    result = policy_loss(logp, -torch.ones(1, 3).double(), doubles([[1.0, -1, 2]]), bools([[1, 1, 1]]), clip=0.2)
    assert result.loss.item() == pytest.approx(-0.63333286342732)
    assert result.clip_fraction.item() == pytest.approx(1 / 3)
    assert result.ratio.item() == pytest.approx(1.0, abs=1e-5)


@pytest.mark.parametrize(
    ("change", "loss"),
    [
        (1.0, -1.2),  # ratio e, cut to 1.2
        (-1.0, -0.36787944117144233),  # ratio 1/e, not cut. The source states +0.8, at a tolerance of 1e6
        (0.1, -1.1051709180756475),  # ratio e^0.1, not cut. The source states the other sign, likewise
    ],
)
def test_policy_loss_of_torchtune_corrected(change, loss):
    # pytorch/torchtune bd2a0fc7, tests/torchtune/rlhf/loss/test_ppo_loss.py L26-92: inputs there, two of its
    # three stated numbers wrong
    old_logp = doubles([[0.5, 0.8, 1.2]])
    result = policy_loss(old_logp + change, old_logp, torch.ones(1, 3).double(), bools([[1, 1, 1]]), clip=0.2)
    assert result.loss.item() == pytest.approx(loss)


def test_policy_loss_of_openrlhf():
    # OpenRLHF 3c3be623, tests/test_loss_aggregation.py L97-124 (inputs; numbers recomputed): the token mean
    # of the whole batch is the average of two ranks' shares, each 2 * sum / 7 tokens
    logp = doubles([[-0.2, -0.4, -0.1], [-0.7, -0.3, -0.2], [-0.6, -0.1, -0.5]])
    old_logp = doubles([[-0.23, -0.36, -0.11], [-0.72, -0.35, -0.17], [-0.64, -0.1, -0.48]])
    advantages = doubles([[1.0, -0.5, 0.0], [0.3, -1.2, 0.5], [1.5, 0.0, -0.7]])
    mask = bools([[1, 1, 0], [1, 1, 1], [1, 0, 1]])
    whole = policy_loss(logp, old_logp, advantages, mask, clip=0.2).loss.item()
    assert whole == pytest.approx(-0.13641353678318016)
    for rows, share in [(slice(0, 2), -0.02280504785954491), (slice(2, 3), -0.25002202570681537)]:
        part = policy_loss(logp[rows], old_logp[rows], advantages[rows], mask[rows], clip=0.2).loss.item()
        assert part * mask[rows].sum().item() * 2 / 7 == pytest.approx(share)


def test_approx_kl_is_half_the_mean_square():
    # OpenRLHF 3c3be623, tests/test_loss_aggregation.py L127-148: changes of +.1 and -.3, (.01 + .09) / 2 / 2.
    # That project logs the mean of old - new, 0.1, under the same name
    result = policy_loss(
        doubles([[-0.2, -0.4, 9.0]]),
        doubles([[-0.3, -0.1, 0.0]]),
        torch.ones(1, 3).double(),
        bools([[1, 1, 0]]),
        clip=9,
    )
    assert result.approx_kl.item() == pytest.approx(0.025)
    assert result.ratio.item() == pytest.approx((math.exp(0.1) + math.exp(-0.3)) / 2)


# ---- policy_loss: reductions


def reduced(losses, mask, reduction):
    """policy_loss at ratio 1 with these per-token losses."""
    zero = torch.zeros_like(losses)
    return policy_loss(zero, zero, -losses, mask, clip=0.2, reduction=reduction).loss.item()


def test_reductions_by_hand():
    # replies of 2, 1 and 3 tokens with losses (1, 2), (3), (4, 5, 6)
    losses = doubles([[1.0, 2.0, 70.0], [3.0, 70.0, 70.0], [4.0, 5.0, 6.0]])
    mask = bools([[1, 1, 0], [1, 0, 0], [1, 1, 1]])
    assert reduced(losses, mask, "token") == pytest.approx(21 / 6)
    assert reduced(losses, mask, "sequence") == pytest.approx((1.5 + 3 + 5) / 3)
    assert reduced(losses, mask, 10) == pytest.approx((0.3 + 0.3 + 1.5) / 3)  # sums over 10
    assert reduced(losses, mask, 2.5) == pytest.approx((1.2 + 1.2 + 6) / 3)


def test_token_mean_of_openrlhf():
    # OpenRLHF 3c3be623, tests/test_loss_aggregation.py L47-58: 22 / 6
    losses = doubles([[1.0, 2.0, 0.0], [3.0, 4.0, 5.0], [7.0, 0.0, 0.0]])
    mask = bools([[1, 1, 0], [1, 1, 1], [1, 0, 0]])
    assert reduced(losses, mask, "token") == pytest.approx(3.6666666666666665)


def test_sequence_mean_of_openrlhf():
    # OpenRLHF 3c3be623, tests/test_loss_aggregation.py L61-83: replies 2, 3, 8; tokens 18 / 5
    losses, mask = (
        doubles([[1.0, 3.0, 9.0], [2.0, 4.0, 0.0], [8.0, 0.0, 0.0]]),
        bools([[1, 1, 0], [1, 1, 0], [1, 0, 0]]),
    )
    assert reduced(losses, mask, "sequence") == pytest.approx(4.333333333333333)
    assert reduced(losses, mask, "token") == pytest.approx(3.6)


def test_a_reply_without_tokens_is_not_counted():
    # OpenRLHF 3c3be623, tests/test_loss_aggregation.py L86-94: the mean over one reply, 2, not over two
    losses, mask = doubles([[1.0, 3], [5, 7]]), bools([[1, 1], [0, 0]])
    assert reduced(losses, mask, "sequence") == 2.0
    assert reduced(losses, mask, 4) == 1.0


def test_reductions_agree_on_replies_of_equal_length():
    losses, mask = noise((3, 4), 0)[0], torch.ones(3, 4, dtype=torch.bool)
    expected = pytest.approx(losses.mean().item())
    assert [reduced(losses, mask, reduction) for reduction in ("token", "sequence", 4)] == [expected] * 3


@pytest.mark.parametrize("reduction", ["mean", None, True, 0, -3])
def test_an_unknown_reduction_is_refused(reduction):
    with pytest.raises(ValueError, match='^policy_loss: reduction must be "token", "sequence" or a number'):
        reduced(torch.zeros(1, 2), bools([[1, 1]]), reduction)


def test_policy_loss_refuses_what_does_not_fit():
    x, mask = torch.zeros(2, 3), torch.ones(2, 3, dtype=torch.bool)
    with pytest.raises(ValueError, match=r"^policy_loss: wants shape \(B, T\), got logp .* mask \(2, 2\)$"):
        policy_loss(x, x, x, mask[:, :2], clip=0.2)
    with pytest.raises(ValueError, match="^policy_loss: mask must be bool"):
        policy_loss(x, x, x, mask.long(), clip=0.2)
    with pytest.raises(ValueError, match="^policy_loss: dual_clip must be above 1, got 1.0$"):
        policy_loss(x, x, x, mask, clip=0.2, dual_clip=1.0)


# ---- value_loss


def one_value(value, old_value, return_, clip):
    values = doubles([[value]]).requires_grad_()
    result = value_loss(values, doubles([[old_value]]), doubles([[return_]]), bools([[1]]), clip=clip)
    result.loss.backward()
    return result.loss.item(), values.grad.item(), result.clip_fraction.item()


@pytest.mark.parametrize(
    ("value", "old_value", "return_", "clip", "loss", "slope", "clipped"),
    [
        (1.0, 0.5, 2.0, 0.2, 0.845, 0.0, 1),  # V cut to .7: (2 - .7)^2 / 2, the larger of 1.69 and 1
        (1.0, 0.5, 2.0, None, 0.5, -1.0, 0),  # no clipping: (2 - 1)^2 / 2
        (0.6, 0.5, 2.0, 0.2, 0.98, -1.4, 0),  # within .2 of the old value: 1.4^2 / 2
        (1.0, 0.5, 0.0, 0.2, 0.5, 1.0, 0),  # moved the wrong way: 1^2 beats .7^2, the slope stays
    ],
)
def test_value_loss_by_hand(value, old_value, return_, clip, loss, slope, clipped):
    assert one_value(value, old_value, return_, clip) == pytest.approx((loss, slope, clipped))


def test_value_loss_is_half_the_masked_mean_square():
    # errors 1, -2 and 3 of which the last is masked: (1 + 4) / 2 / 2
    values, returns = doubles([[1.0, -2.0, 3.0]]), torch.zeros(1, 3).double()
    assert value_loss(values, values, returns, bools([[1, 1, 0]]), clip=0.2).loss.item() == 1.25


def test_explained_variance_by_hand():
    # returns 1, 2, 3 (population variance 2/3), values 1, 2, 2: mean square 1/3, so 1 - 1/2
    returns, mask = doubles([[1.0, 2.0, 3.0, 50.0]]), bools([[1, 1, 1, 0]])

    def explained(values):
        values = doubles([values])
        return value_loss(values, values, returns, mask, clip=0.2).explained_variance.item()

    assert explained([1.0, 2.0, 2.0, -50.0]) == pytest.approx(0.5)
    assert explained([1.0, 2.0, 3.0, -50.0]) == 1.0
    assert explained([2.0, 2.0, 2.0, -50.0]) == pytest.approx(0.0)  # always the mean
    assert explained([3.0, 2.0, 1.0, -50.0]) == pytest.approx(-3.0)  # mean square 8/3


def test_returns_that_do_not_vary_explain_nothing():
    # in float32 the mean of three 0.1 is not 0.1: a variance of rounding errors must not be divided by
    returns = torch.full((1, 3), 0.1)
    result = value_loss(torch.zeros(1, 3), torch.zeros(1, 3), returns, bools([[1, 1, 1]]), clip=None)
    assert result.explained_variance.item() == 0.0


def test_only_the_new_values_get_a_gradient():
    values, old_values, returns = (x.requires_grad_() for x in noise((2, 3), 0, 1, 2))
    result = value_loss(values, old_values, returns, torch.ones(2, 3, dtype=torch.bool), clip=0.2)
    result.loss.backward()
    assert values.grad.any()
    assert old_values.grad is None
    assert returns.grad is None
    assert not any(metric.requires_grad for metric in result[1:])


def test_value_loss_refuses_what_does_not_fit():
    x = torch.zeros(2, 3)
    with pytest.raises(ValueError, match=r"^value_loss: wants shape \(B, T\), got values .* mask \(3, 2\)$"):
        value_loss(x, x, x, torch.ones(3, 2, dtype=torch.bool), clip=0.2)


# ---- masks and padding, both


def both_losses():
    """(name, function of three tensors and a mask), every option that changes the path through the code."""
    for reduction in REDUCTIONS:
        for dual_clip in (None, 3.0):

            def policy(a, b, c, mask, reduction=reduction, dual_clip=dual_clip):
                return policy_loss(a, b, c, mask, clip=0.2, dual_clip=dual_clip, reduction=reduction)

            yield policy
    for clip in (None, 0.2):
        yield lambda a, b, c, mask, clip=clip: value_loss(a, b, c, mask, clip=clip)


@settings(max_examples=30, deadline=None, derandomize=True)
@given(MASKS, st.sampled_from(JUNK), st.integers(0, 99))
def test_losses_and_gradients_stay_finite_under_any_mask(mask, junk, seed):
    """The empty mask included; junk where nothing counts changes no number."""
    mask = bools(mask)
    clean = noise(mask.shape, seed, seed + 100, seed + 200)
    for function in both_losses():
        dirty = [x.masked_fill(~mask, junk).requires_grad_() for x in clean]
        with torch.autograd.set_detect_anomaly(True):  # no NaN on the way back either
            result = function(*dirty, mask)
            result.loss.backward()
        assert [x.item() for x in result] == [x.item() for x in function(*clean, mask)]
        assert all(math.isfinite(x.item()) for x in result)
        assert dirty[0].grad.isfinite().all()
        assert not dirty[0].grad[~mask].any()


def test_extra_pad_columns_change_nothing():
    mask = bools([[1, 1, 1, 0], [1, 1, 1, 1], [1, 0, 0, 0]])
    narrow = noise(mask.shape, 0, 1, 2)
    for function in both_losses():
        expected = [x.item() for x in function(*narrow, mask)]
        for left, right in [(3, 0), (0, 2), (1, 4)]:
            wide = [pad(x, (left, right), value=math.nan) for x in narrow]
            result = function(*wide, pad(mask, (left, right), value=False))
            assert [x.item() for x in result] == pytest.approx(expected, rel=1e-12)


def test_metrics_look_at_real_tokens_only():
    """Each equals the metric of the selected tokens laid out as one row."""
    mask = bools([[1, 1, 0], [0, 1, 1]])
    tensors = noise(mask.shape, 0, 1, 2)
    row = [x[mask][None] for x in tensors]
    every = torch.ones(1, 4, dtype=torch.bool)
    policy = policy_loss(*tensors, mask, clip=0.2)
    value = value_loss(*tensors, mask, clip=0.2)
    assert [x.item() for x in policy] == pytest.approx([x.item() for x in policy_loss(*row, every, clip=0.2)])
    assert [x.item() for x in value] == pytest.approx([x.item() for x in value_loss(*row, every, clip=0.2)])
