"""Shaped rewards, returns and advantages, with and without a critic."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.functional import pad

from rlhf_lab.maths import (
    discounted_returns,
    gae,
    grpo_advantages,
    masked_whiten,
    rloo_advantages,
    shaped_rewards,
)

JUNK = [math.nan, math.inf, -math.inf]
MASKS = st.integers(1, 5).flatmap(
    lambda width: st.lists(st.lists(st.booleans(), min_size=width, max_size=width), min_size=1, max_size=3)
)
UNIT = st.sampled_from([0.0, 0.5, 0.95, 1.0])


def doubles(values):
    return torch.tensor(values, dtype=torch.float64)


def bools(values):
    return torch.tensor(values, dtype=torch.bool)


def noise(shape, *seeds):
    return [torch.randn(shape, generator=torch.Generator().manual_seed(seed)).double() for seed in seeds]


def all_of(x):
    return torch.ones(x.shape, dtype=torch.bool)


# ---- shaped_rewards


def test_shaped_rewards_of_torchtune():
    # pytorch/torchtune bd2a0fc7, tests/torchtune/rlhf/test_rewards.py L12-80: per-token KL -.1, -.2, -.3,
    # coefficient .5, scores 1, 2, 3 on the last token
    logp = doubles([[0.1, 0.2, 0.3], [0.4, 0.5, 0.6], [0.6, 0.7, 0.8]])
    ref_logp = doubles([[0.2, 0.3, 0.4], [0.6, 0.7, 0.8], [0.9, 1.0, 1.1]])
    rewards = shaped_rewards(doubles([1.0, 2.0, 3.0]), logp, ref_logp, all_of(logp), kl_coef=0.5)
    expected = doubles([[0.05, 0.05, 1.05], [0.1, 0.1, 2.1], [0.15, 0.15, 3.15]])
    assert torch.allclose(rewards, expected)


def test_the_chain_from_score_to_whitened_advantage():
    # InstructGPT 2203.02155 section 3.5, GAE 1506.02438. logp - ref_logp = .2, -.5, 0; times -.1; score 2 on
    # the last token. Backwards with gamma 1, lam .95: 2 - 1 = 1; .05 + 1 - .8 + .95 = 1.2;
    # -.02 + .8 - .5 + .95 * 1.2 = 1.42
    logp, ref_logp = doubles([[-1.0, -2.0, -0.5]]), doubles([[-1.2, -1.5, -0.5]])
    mask, values = all_of(logp), doubles([[0.5, 0.8, 1.0]])
    rewards = shaped_rewards(doubles([2.0]), logp, ref_logp, mask, kl_coef=0.1)
    advantages, returns = gae(rewards, values, mask, gamma=1.0, lam=0.95)
    assert rewards[0].tolist() == pytest.approx([-0.02, 0.05, 2.0])
    assert advantages[0].tolist() == pytest.approx([1.42, 1.2, 1.0])
    assert returns[0].tolist() == pytest.approx([1.92, 2.0, 2.0])
    unbiased, biased = (masked_whiten(advantages, mask, unbiased=u)[0].tolist() for u in (True, False))
    assert unbiased == pytest.approx([1.0154891905127397, -0.03173403720352388, -0.983755153309218])
    assert biased == pytest.approx([1.2437151075819526, -0.03886609711193695, -1.2048490104700182])


def test_the_score_lands_on_the_last_real_token():
    # a full reply, a short one, a left-padded one, one with a hole
    mask = bools([[1, 1, 1, 1], [1, 1, 0, 0], [0, 0, 1, 1], [1, 0, 1, 0]])
    zero = torch.zeros(4, 4)
    rewards = shaped_rewards(torch.tensor([1.0, 2.0, 3.0, 4.0]), zero, zero, mask, kl_coef=0.1)
    assert rewards.tolist() == [[0, 0, 0, 1], [0, 2, 0, 0], [0, 0, 0, 3], [0, 0, 4, 0]]


def test_instructgpt_equation_2():
    """Summed over a reply, the rewards are score - beta * log(pi(y|x) / pi_ref(y|x))."""
    mask = bools([[1, 1, 1, 0], [1, 1, 1, 1], [1, 0, 0, 0]])
    logp, ref_logp = noise(mask.shape, 0, 1)
    score = doubles([1.0, -2.0, 0.5])
    rewards = shaped_rewards(score, logp, ref_logp, mask, kl_coef=0.02)
    for row in range(3):
        log_ratio = (logp[row][mask[row]].sum() - ref_logp[row][mask[row]].sum()).item()
        assert rewards[row].sum().item() == pytest.approx(score[row].item() - 0.02 * log_ratio)


def test_drifting_from_the_reference_costs():
    # the policy likes its token more than the reference does: the reward must be negative
    reward = shaped_rewards(torch.zeros(1), torch.tensor([[-0.5]]), torch.tensor([[-2.5]]), bools([[1]]), kl_coef=0.1)
    assert reward.item() == pytest.approx(-0.2)


def test_shaped_rewards_refuse_what_does_not_fit():
    x = torch.zeros(3, 2)
    with pytest.raises(ValueError, match=r"^shaped_rewards: row 1 has no real token to carry its score$"):
        shaped_rewards(torch.zeros(3), x, x, bools([[1, 1], [0, 0], [0, 0]]), kl_coef=0.1)
    with pytest.raises(ValueError, match=r"^shaped_rewards: wants score \(B,\) with B = 3, got \(3, 1\)$"):
        shaped_rewards(torch.zeros(3, 1), x, x, all_of(x), kl_coef=0.1)
    with pytest.raises(ValueError, match=r"^shaped_rewards: wants shape \(B, T\), .* ref_logp \(2, 3\)"):
        shaped_rewards(torch.zeros(3), x, x.T, all_of(x), kl_coef=0.1)


# ---- gae


def test_gae_of_torchtune():
    # pytorch/torchtune bd2a0fc7, tests/torchtune/rlhf/test_rewards.py L161-180: the reward equals the value
    # of the last state, so credit travels through the values only: .9 = gamma, .9 * (.9 * .95) = .7695, ...
    rewards = values = doubles([[0.0, 0, 0, 1]])
    advantages, returns = gae(rewards, values, all_of(rewards), gamma=0.9, lam=0.95)
    assert returns[0].tolist() == pytest.approx([0.6579225, 0.7695, 0.9, 1.0])
    assert advantages[0].tolist() == pytest.approx([0.6579225, 0.7695, 0.9, 0.0])


def test_gae_of_nemo_lambda_0():
    # NVIDIA-NeMo/RL 7ea279ab, tests/unit/algorithms/test_ppo.py L115-143
    rewards = doubles([[0.0, 0, 5]])
    advantages, returns = gae(rewards, doubles([[1.0, 2, 3]]), all_of(rewards), gamma=1.0, lam=0.0)
    assert advantages.tolist() == [[1.0, 1.0, 2.0]]
    assert returns.tolist() == [[2.0, 3.0, 5.0]]


def test_gae_of_nemo_lambda_1():
    # NVIDIA-NeMo/RL 7ea279ab, tests/unit/algorithms/test_ppo.py L85-112 (inputs; the return is 1 throughout)
    rewards = doubles([[0.0, 0, 0, 1]])
    advantages, returns = gae(rewards, torch.full((1, 4), 0.5), all_of(rewards), gamma=1.0, lam=1.0)
    assert advantages.tolist() == [[0.5] * 4]
    assert returns.tolist() == [[1.0] * 4]


def gae_of_one_reply(rewards, values, gamma, lam):
    """PPO 1707.06347 eq. 11 and 12 as the sums they are, over the real tokens of one reply as lists."""
    n = len(rewards)
    after = [*values[1:], 0.0]
    deltas = [rewards[t] + gamma * after[t] - values[t] for t in range(n)]
    return [sum((gamma * lam) ** (i - t) * deltas[i] for i in range(t, n)) for t in range(n)]


@settings(max_examples=80, deadline=None, derandomize=True)
@given(MASKS, UNIT, UNIT, st.sampled_from(JUNK), st.integers(0, 99))
def test_ppo_equations_11_and_12_under_any_mask(mask, gamma, lam, junk, seed):
    """Whatever is masked, and wherever: the same as cutting the masked tokens out."""
    mask = bools(mask)
    rewards, values = (x.masked_fill(~mask, junk) for x in noise(mask.shape, seed, seed + 100))
    advantages, returns = gae(rewards, values, mask, gamma=gamma, lam=lam)
    assert not advantages[~mask].any()
    assert not returns[~mask].any()
    for row, real in enumerate(mask):
        expected = gae_of_one_reply(rewards[row][real].tolist(), values[row][real].tolist(), gamma, lam)
        assert advantages[row][real].tolist() == pytest.approx(expected, abs=1e-12)
        above = (returns - values)[row][real]
        assert above.tolist() == pytest.approx(expected, abs=1e-12)


def test_masked_positions_cost_no_gamma():
    # gamma .5, lam 1, values 0: the reward 8 is one real token away from the first, whatever lies between
    zero = torch.zeros(1, 4).double()
    for mask in (bools([[1, 0, 0, 1]]), bools([[1, 0, 1, 0]]), bools([[0, 0, 1, 1]])):
        rewards = zero.clone()
        rewards[0, mask[0].nonzero()[-1]] = 8.0
        advantages, _ = gae(rewards, zero, mask, gamma=0.5, lam=1.0)
        assert advantages[mask].tolist() == [4.0, 8.0]


def test_gae_at_lambda_1_is_the_discounted_return_minus_the_value():
    mask = bools([[1, 1, 1, 0], [1, 1, 1, 1], [0, 1, 0, 1]])
    rewards, values = noise(mask.shape, 0, 1)
    advantages, returns = gae(rewards, values, mask, gamma=0.9, lam=1.0)
    expected = discounted_returns(rewards, mask, gamma=0.9)
    assert torch.allclose(returns, expected)
    assert torch.allclose(advantages[mask], (expected - values)[mask])


def test_gae_at_lambda_0_is_the_td_error():
    rewards, values = noise((2, 4), 0, 1)
    advantages, _ = gae(rewards, values, all_of(rewards), gamma=0.9, lam=0.0)
    assert torch.allclose(advantages, rewards + 0.9 * pad(values[:, 1:], (0, 1)) - values)


def test_perfect_values_leave_no_advantage():
    rewards = noise((2, 5), 0)[0]
    values = discounted_returns(rewards, all_of(rewards), gamma=0.9)
    advantages, returns = gae(rewards, values, all_of(rewards), gamma=0.9, lam=0.95)
    assert torch.allclose(advantages, torch.zeros_like(advantages), atol=1e-12)
    assert torch.allclose(returns, values)


# ---- discounted_returns


def test_discounted_returns_by_hand():
    # gamma .5: 4; 2 + 2 = 4; 1 + 2 = 3, and a masked position between changes nothing
    assert discounted_returns(doubles([[1.0, 2.0, 4.0]]), bools([[1, 1, 1]]), gamma=0.5).tolist() == [[3, 4, 4]]
    holed = discounted_returns(doubles([[1.0, math.nan, 2.0, 4.0]]), bools([[1, 0, 1, 1]]), gamma=0.5)
    assert holed.tolist() == [[3, 0, 4, 4]]


def test_undiscounted_returns_are_sums_of_what_is_left():
    mask = bools([[1, 1, 0, 1], [0, 1, 1, 0]])
    rewards = noise(mask.shape, 3)[0] * mask
    left = rewards.flip(1).cumsum(1).flip(1)
    assert torch.allclose(discounted_returns(rewards, mask, gamma=1.0), left * mask)


# ---- padding and junk, all three


def masked_functions(a, b, mask):
    yield shaped_rewards(torch.arange(1.0, len(a) + 1), a, b, mask, kl_coef=0.3)
    yield from gae(a, b, mask, gamma=0.9, lam=0.8)
    yield discounted_returns(a, mask, gamma=0.9)


def test_extra_pad_columns_change_nothing():
    mask = bools([[1, 1, 1, 0], [1, 1, 1, 1], [1, 0, 0, 0]])
    a, b = noise(mask.shape, 0, 1)
    for left, right in [(3, 0), (0, 2), (1, 4)]:
        wide = [pad(x, (left, right), value=math.nan) for x in (a, b)]
        wide_mask = pad(mask, (left, right), value=False)
        for got, expected in zip(masked_functions(*wide, wide_mask), masked_functions(a, b, mask), strict=True):
            assert torch.equal(got, pad(expected, (left, right)))


@settings(max_examples=60, deadline=None, derandomize=True)
@given(MASKS, st.sampled_from(JUNK), st.integers(0, 99))
def test_junk_under_the_mask_reaches_nothing(mask, junk, seed):
    mask = bools(mask)
    mask[:, 0] |= ~mask.any(dim=1)  # shaped_rewards refuses an empty row
    clean = noise(mask.shape, seed, seed + 100)
    dirty = [x.masked_fill(~mask, junk).requires_grad_() for x in clean]
    for got, expected in zip(masked_functions(*dirty, mask), masked_functions(*clean, mask), strict=True):
        assert torch.equal(got, expected)
        for gradient in torch.autograd.grad(got.square().sum(), dirty, retain_graph=True, allow_unused=True):
            assert gradient is None or gradient.isfinite().all()


def test_gae_and_returns_refuse_what_does_not_fit():
    x = torch.zeros(2, 3)
    with pytest.raises(ValueError, match=r"^gae: wants shape \(B, T\), .* values \(2, 2\), mask \(2, 3\)$"):
        gae(x, x[:, :2], all_of(x), gamma=1.0, lam=1.0)
    with pytest.raises(ValueError, match="^discounted_returns: mask must be bool"):
        discounted_returns(x, x, gamma=1.0)


# ---- rloo_advantages and grpo_advantages


def test_rloo_of_four():
    # RLOO 2402.14740 section 2.3: 2 - (1 + .5 + .5)/3, 1 - 3/3, .5 - 3.5/3, .5 - 3.5/3
    advantages = rloo_advantages(doubles([[2.0, 1.0, 0.5, 0.5]]))
    assert advantages[0].tolist() == pytest.approx([4 / 3, 0, -2 / 3, -2 / 3])


def test_leave_one_out_baseline_of_nemo():
    # NVIDIA-NeMo/RL 7ea279ab, tests/unit/algorithms/test_utils.py L556-580
    scores = doubles([[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]])
    baseline = scores - rloo_advantages(scores)
    assert baseline.tolist() == [[2.5, 2.0, 1.5], [5.5, 5.0, 4.5]]


@pytest.mark.parametrize("k", [2, 3, 8])
def test_rloo_is_k_over_k_minus_1_times_the_distance_to_the_mean(k):
    scores = noise((5, k), k)[0]
    centred = scores - scores.mean(dim=1, keepdim=True)
    assert torch.allclose(rloo_advantages(scores), k / (k - 1) * centred)
    assert torch.allclose(rloo_advantages(scores), k / (k - 1) * grpo_advantages(scores, scale=False))


def test_the_rloo_baseline_does_not_see_its_own_score():
    scores = noise((1, 4), 0)[0]
    raised = scores + doubles([[0.0, 10.0, 0.0, 0.0]])
    assert (rloo_advantages(raised) - rloo_advantages(scores))[0, 1].item() == pytest.approx(10)


def test_rloo_needs_two_samples():
    with pytest.raises(ValueError, match="^rloo_advantages: wants at least two samples per prompt, got 1$"):
        rloo_advantages(torch.zeros(3, 1))


def test_grpo_of_nemo():
    # NVIDIA-NeMo/RL 7ea279ab, tests/unit/algorithms/test_grpo.py L4143-4179: scores 1, 3 have unbiased
    # deviation sqrt 2 (biased: 1); equal scores give 0
    advantages = grpo_advantages(doubles([[2.0, 2.0], [1.0, 3.0]]))
    assert advantages.flatten().tolist() == pytest.approx([0, 0, -0.7071067811865475, 0.7071067811865475])


def test_dr_grpo_does_not_scale():
    # Dr. GRPO 2503.20783: distance to the mean, here 1
    advantages = grpo_advantages(doubles([[2.0, 1.0, 0.5, 0.5]]), scale=False)
    assert advantages[0].tolist() == pytest.approx([1.0, 0.0, -0.5, -0.5])


def test_grpo_has_mean_0_and_unbiased_variance_1_whatever_the_units():
    scores = noise((4, 6), 1)[0]
    advantages = grpo_advantages(scores)
    assert torch.allclose(advantages.mean(dim=1), torch.zeros(4).double(), atol=1e-12)
    assert torch.allclose(advantages.var(dim=1), torch.ones(4).double())
    assert torch.allclose(grpo_advantages(1000 * scores + 7), advantages)


@pytest.mark.parametrize("size", [1, 3, 6, 7])
@pytest.mark.parametrize("scale", [True, False])
def test_a_group_of_equal_scores_says_nothing(size, scale):
    # in float32 the mean of several 0.1 need not be 0.1, and its distance over itself would be of order 1
    assert not grpo_advantages(torch.full((2, size), 0.1), scale=scale).any()


@pytest.mark.parametrize("function", [rloo_advantages, grpo_advantages])
def test_groups_refuse_what_does_not_fit(function):
    with pytest.raises(ValueError, match=rf"^{function.__name__}: wants shape \(B, G\), got scores \(4,\)$"):
        function(torch.zeros(4))
