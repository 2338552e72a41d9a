"""PPO's options and its relatives: each against numbers worked by hand or an optimum in closed form."""

import math

import pytest
import torch
from tiny import (
    Bigram,
    learn_bandit,
    make_config,
    make_policy,
    make_scorer,
    sample,
    start,
    weights_of,
)

from rlhf_lab.errors import LabError
from rlhf_lab.maths import masked_whiten
from rlhf_lab.training.credit import RunningMoments, estimate_advantages, final_scores
from rlhf_lab.training.methods import METHODS
from rlhf_lab.training.ppo import ppo_updates
from rlhf_lab.training.ppo_config import PPOConfig
from rlhf_lab.training.ppo_step import ppo_step
from rlhf_lab.training.rollouts import Rollout

# Two prompts with two replies each, of two and one, one and two tokens. ref_logp = logp - KL of each token.
MASK = torch.tensor([[1, 1], [1, 0], [1, 0], [1, 1]]).bool()
KL = torch.tensor([[0.5, 0.5], [1.0, 9.0], [0.0, 9.0], [0.0, 2.0]])
LOGP = torch.tensor([[-1.0, -1.0], [-2.0, 0.0], [-1.0, 0.0], [-1.0, -2.0]])
GROUPS = Rollout(
    prompt_ids=torch.zeros(4, 1, dtype=torch.long),
    prompt_mask=torch.ones(4, 1, dtype=torch.bool),
    response_ids=torch.zeros(4, 2, dtype=torch.long),
    response_mask=MASK,
    finished=torch.tensor([True, True, False, True]),
    group=torch.tensor([0, 0, 1, 1]),
    old_logp=LOGP,
    ref_logp=LOGP - KL,
    values=torch.zeros(4, 2),
    scores=torch.tensor([3.0, 1.0, 2.0, 0.0]),
)
BY_GROUP = {"samples_per_prompt": 2, "whiten": "off", "missing_eos_penalty": 0.5, "kl_coef": 0.1}


def advantages(**changes) -> torch.Tensor:
    return estimate_advantages(GROUPS, PPOConfig(**(BY_GROUP | changes)))[0]


def test_rloo_compares_scores_less_the_kl_of_the_whole_reply():
    # 3 - .1, 1 - .1 | 1.5 - 0, 0 - .2: differences 2 and 1.7 from the one other reply
    expected = torch.tensor([[2.0, 2.0], [-2.0, 0.0], [1.7, 0.0], [-1.7, -1.7]])
    assert torch.allclose(advantages(advantage="rloo"), expected)


def test_grpo_compares_scores_alone_and_divides_by_the_deviation():
    half = math.sqrt(0.5)  # two numbers d apart: mean in the middle, unbiased deviation d / sqrt 2
    expected = torch.tensor([[half, half], [-half, 0], [half, 0], [-half, -half]])
    assert torch.allclose(advantages(advantage="grpo", kl_in="loss", kl_kind="k3"), expected)
    plain = torch.tensor([[1.0, 1.0], [-1.0, 0], [0.75, 0], [-0.75, -0.75]])  # scores 3, 1 | 1.5, 0
    assert torch.allclose(advantages(advantage="dr_grpo", kl_in="loss", kl_kind="k3"), plain)


def test_reinforce_plus_plus_takes_the_returns_of_the_shaped_rewards():
    # rewards -.05, 2.95 | .9 | 1.5 | 0, -.2: returns at gamma .5
    expected = torch.tensor([[-0.05 + 0.5 * 2.95, 2.95], [0.9, 0.0], [1.5, 0.0], [-0.1, -0.2]])
    found = advantages(advantage="reinforce++", gamma=0.5)
    assert torch.allclose(found, expected)
    whitened = advantages(advantage="reinforce++", gamma=0.5, whiten="rollout")
    assert torch.allclose(whitened, masked_whiten(expected, MASK))


def test_whitened_rewards_keep_their_mean():
    # gamma = lam = 1 and no critic: the first token's advantage is the sum of the reply's whitened rewards.
    rewards = torch.tensor([-0.05, 2.95, 0.9, 1.5, 0.0, -0.2])
    white = (rewards - rewards.mean()) / rewards.std() + rewards.mean()
    found = advantages(advantage="gae", whiten_rewards=True, lam=1.0)
    assert found[0].tolist() == pytest.approx([white[:2].sum().item(), white[1].item()], rel=1e-4)
    assert found[3].tolist() == pytest.approx([white[4:].sum().item(), white[5].item()], rel=1e-4)


def test_a_missing_eos_is_a_penalty_or_replaces_the_score():
    assert final_scores(GROUPS, PPOConfig(missing_eos_penalty=0.5)).tolist() == [3, 1, 1.5, 0]
    assert final_scores(GROUPS, PPOConfig(missing_eos="replace")).tolist() == [3, 1, -1, 0]


def test_scores_are_scaled_then_clipped_and_the_eos_rule_comes_last():
    config = PPOConfig(score_clip=0.8, missing_eos_penalty=0.5)
    assert final_scores(GROUPS, config, scale=2.0).tolist() == pytest.approx([0.8, 0.5, 0.3, 0.0])


def test_running_moments_are_those_of_everything_seen():
    moments, everything = RunningMoments(), torch.randn(60, generator=torch.Generator().manual_seed(0)).double() * 3 + 5
    assert moments.std == 1.0
    for part in everything.split([1, 9, 50]):
        moments.add(part)
    assert moments.mean == pytest.approx(everything.mean().item())
    assert moments.std == pytest.approx(everything.std().item())


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"advantage": "rloo"}, "samples_per_prompt >= 2"),
        ({"advantage": "grpo", "samples_per_prompt": 1}, "samples_per_prompt >= 2"),
        ({"dual_clip": 1.0}, "dual_clip.*greater than 1"),
        ({"kl_in": "loss"}, "'k1' as a loss"),
        ({"kl_in": "loss", "kl_kind": "k3", "kl_control": "ziegler"}, "must be 'fixed'"),
        ({"critic_warmup": 60}, "leaves none of 60"),
        ({"advantage": "ppo"}, "'advantage'"),
    ],
)
def test_settings_that_make_no_sense_are_refused_by_name(settings, message):
    with pytest.raises(LabError, match=message) as caught:
        PPOConfig.parse(settings, "test.yaml")
    assert "\n" not in str(caught.value) and str(caught.value).startswith("test.yaml")


def test_a_critic_where_the_method_has_none_is_refused():
    with pytest.raises(LabError, match="learns without a critic"):
        start(make_config(**METHODS["rloo"], samples_per_prompt=2), critic=make_scorer())


def test_ptx_without_texts_is_refused():
    with pytest.raises(LabError, match="no pretraining texts"):
        start(make_config(ptx_coef=1.0))


# ---- The step


def gradients(policy, config, batch, adv, returns, **options) -> list[torch.Tensor]:
    optimizer = torch.optim.SGD(policy.parameters(), lr=0.0)
    ppo_step(policy, None, optimizer, batch, adv, returns, config, **options)
    return [p.grad.clone() for p in policy.parameters()]


def test_ptx_adds_the_gradient_of_the_language_model_loss_to_every_step():
    config = make_config(epochs=1, minibatches=1, max_grad_norm=1e9)
    policy = make_policy()
    batch = sample(policy, make_scorer(), config)
    adv, returns = estimate_advantages(batch, config)
    texts = torch.tensor([[3, 4, 5, 0], [6, 7, 1, 1]]), torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0]]).bool()
    alone = gradients(policy, config, batch, adv, returns)
    mixed = gradients(policy, config.model_copy(update={"ptx_coef": 27.8}), batch, adv, returns, texts=lambda: texts)
    policy.zero_grad()
    # Four predicted tokens, one text at a time and without padding.
    losses = [
        torch.nn.functional.cross_entropy(
            policy(torch.tensor([ids])).logits[0, :-1], torch.tensor(ids[1:]), reduction="sum"
        )
        for ids in ([3, 4, 5, 0], [6, 7])
    ]
    (27.8 * sum(losses) / 4).backward()
    for ours, before, p in zip(mixed, alone, policy.parameters(), strict=True):
        assert torch.allclose(ours, before + p.grad, atol=1e-5, rtol=1e-4)


def test_a_kl_in_the_loss_and_an_entropy_bonus_have_their_own_gradients():
    """Bigram, one state, uniform policy: at ratio 1 the gradients are written down by hand."""
    one = torch.ones(3, 1, dtype=torch.bool)
    theta = torch.tensor([0.3, -0.2, 0.1])
    logp = theta.log_softmax(0)
    arms = GROUPS._replace(
        prompt_ids=torch.zeros(3, 1, dtype=torch.long),
        prompt_mask=one,
        response_ids=torch.arange(3)[:, None],
        response_mask=one,
        finished=torch.ones(3, dtype=torch.bool),
        group=torch.zeros(3, dtype=torch.long),
        old_logp=logp[:, None],
        ref_logp=torch.full((3, 1), -math.log(3)),
        values=torch.zeros(3, 1),
        scores=torch.zeros(3),
    )
    table = torch.zeros(3, 3)
    table[0] = theta
    config = make_config(
        epochs=1, minibatches=1, max_grad_norm=1e9, kl_in="loss", kl_kind="k2", kl_coef=0.7, entropy_coef=0.4
    )
    (found,) = gradients(Bigram(table), config, arms, torch.zeros(3, 1), torch.zeros(3, 1))
    p = logp.exp()
    score = torch.eye(3) - p  # row a: gradient of log p_a
    kl = (0.7 * (logp + math.log(3))[:, None] * score).mean(0)  # of .7 * mean (logp - ref)^2 / 2 over the three replies
    entropy = -(p * logp).sum()
    entropy_gradient = -p * (logp + entropy)  # of H by theta
    assert torch.allclose(found[0], kl - 0.4 * entropy_gradient, atol=1e-6)


@pytest.mark.parametrize("reduction", ["token", "sequence", "max_tokens"])
def test_micro_batches_change_nothing_under_any_reduction(reduction):
    settings = {"epochs": 1, "minibatches": 1, "max_grad_norm": 1e9, "reduction": reduction}
    settings |= {"kl_in": "loss", "kl_kind": "k3", "entropy_coef": 0.1}
    whole, split = make_config(**settings), make_config(**settings, micro_batch_size=3)
    policy = make_policy()
    batch = sample(policy, make_scorer(), whole)
    adv, returns = estimate_advantages(batch, whole)
    ours = [gradients(policy, config, batch, adv, returns) for config in (whole, split)]
    for a, b in zip(*ours, strict=True):
        assert (a - b).abs().max() <= 1e-5 * max(a.abs().max(), 1e-3)


# ---- The loop


def test_critic_warm_up_leaves_the_policy_alone():
    state = start(make_config(updates=2, critic_warmup=1))
    updates, policy, critic = ppo_updates(state), weights_of(state.policy), weights_of(state.critic)
    next(updates)
    assert all(torch.equal(a, b) for a, b in zip(policy, weights_of(state.policy), strict=True))
    assert not all(torch.equal(a, b) for a, b in zip(critic, weights_of(state.critic), strict=True))
    next(updates)
    assert not all(torch.equal(a, b) for a, b in zip(policy, weights_of(state.policy), strict=True))


def test_learning_rates_warm_up_and_decay():
    def rates(**settings):
        state = start(make_config(updates=4, lr=1.0, advantage="reinforce++", epochs=1, minibatches=1, **settings))
        return [update.lr for update in ppo_updates(state)]

    assert rates() == pytest.approx([1, 0.75, 0.5, 0.25])
    assert rates(decay="off") == [1, 1, 1, 1]
    assert rates(warmup=1) == pytest.approx([0.5, 1, 2 / 3, 1 / 3])
    assert rates(decay="cosine") == pytest.approx([0.1 + 0.45 * (1 + math.cos(math.pi * i / 4)) for i in range(4)])


@pytest.mark.parametrize(
    ("control", "factor"),
    # The first rollout's KL is 0 exactly, far below the target: error -1, clipped to -.2
    [("ziegler", 1 - 0.2 * 8 / 100), ("ziegler_paper", 1 - 0.2 * 0.1), ("ppo_paper", 0.5), ("fixed", 1)],
)
def test_the_kl_controller_moves_the_coefficient_of_the_next_update(control, factor):
    config = make_config(updates=2, kl_control=control, kl_horizon=100, kl_coef=0.4, advantage="reinforce++")
    first, second = ppo_updates(start(config))
    assert first.kl_coef == 0.4
    assert second.kl_coef == pytest.approx(0.4 * factor)


def test_running_scaling_divides_by_the_deviation_of_all_scores_so_far():
    config = make_config(updates=2, score_scaling="running", advantage="reinforce++")
    first, second = ppo_updates(start(config))
    assert first.score_scale == pytest.approx(first.rollout.scores.double().std().item())
    both = torch.cat([first.rollout.scores, second.rollout.scores]).double()
    assert second.score_scale == pytest.approx(both.std().item())


def test_the_average_of_the_weights_is_kept_and_can_be_looked_at():
    state = start(make_config(updates=2, ema=0.75, advantage="reinforce++"))
    history = [weights_of(state.policy)]
    for _ in ppo_updates(state):
        history.append(weights_of(state.policy))
    expected = [0.75 * (0.75 * a + 0.25 * b) + 0.25 * c for a, b, c in zip(*history, strict=True)]
    with state.averaged_weights() as policy:
        seen = weights_of(policy)
    assert all(torch.allclose(a, b, atol=1e-6) for a, b in zip(seen, expected, strict=True))
    assert all(torch.equal(a, b) for a, b in zip(weights_of(state.policy), history[-1], strict=True))


# ---- Learning: the three-armed bandit of DESIGN 4, its optimum e^r normalised

OPTIMUM = torch.tensor([0.6652, 0.2447, 0.0900])


def learned(method: str, seed: int = 0, **changes) -> torch.Tensor:
    """The policy after sampled learning, from uniform."""
    settings = {"updates": 100, "batch_size": 16, "samples_per_prompt": 4, "epochs": 1, "minibatches": 1, "lr": 0.05}
    settings |= {"max_new_tokens": 1, "kl_coef": 1.0, "missing_eos_penalty": 0.0, "seed": seed}
    return learn_bandit(make_config(**(settings | METHODS[method] | changes)))


def distance(p: torch.Tensor, q: torch.Tensor) -> float:
    return (p - q).abs().sum().item() / 2


@pytest.mark.parametrize(
    ("method", "changes"),
    [("ppo", {"gamma": 1.0, "lam": 1.0, "whiten": "off"}), ("rloo", {}), ("reinforce++", {"whiten": "off"})],
)
@pytest.mark.parametrize("seed", [0, 1])
def test_sampled_learning_reaches_the_optimum(method, changes, seed):
    assert distance(learned(method, seed, **changes), OPTIMUM) < 0.06


# A mean over the group that a reply is itself in shortens the difference by (G - 1) / G. With the KL in the loss that
# is a reward of 3/4, or a coefficient of 4/3: RLOO leaves the reply out, GRPO does not.
SHORTENED = torch.tensor([0.75, 0.0, -0.75])


@pytest.mark.parametrize("seed", [0, 1])
def test_dr_grpo_with_k2_reaches_the_optimum_of_the_shortened_reward(seed):
    assert distance(learned("dr_grpo", seed, kl_kind="k2"), SHORTENED.softmax(0)) < 0.05
    assert distance(SHORTENED.softmax(0), OPTIMUM) > 0.07


@pytest.mark.parametrize("seed", [0, 1])
def test_dr_grpo_with_its_own_k3_ends_at_the_optimum_of_the_other_kl(seed):
    # It maximises E[r] - KL(ref || pi): p_a = (1/3) / (c - r_a), with c such that they sum to 1.
    low, high = 0.75 + 1e-9, 10.0
    for _ in range(100):
        middle = (low + high) / 2
        low, high = (middle, high) if (1 / 3 / (middle - SHORTENED)).sum() > 1 else (low, middle)
    assert distance(learned("dr_grpo", seed), 1 / 3 / (low - SHORTENED)) < 0.04


def test_without_a_penalty_grpo_finds_the_best_arm():
    assert learned("grpo", kl_coef=0.0)[0] > 0.95


def test_k3_in_the_reward_collapses_where_k1_holds():
    """The counter-example: as a reward, k3 loses its own gradient."""
    found = learned("rloo", kl_kind="k3", updates=200)
    assert found[0] > 0.9 > 0.7 > OPTIMUM[0]


def test_a_critic_on_the_policys_trunk_trains_the_trunk_and_warm_up_trains_its_head_alone(tmp_path):
    from rlhf_lab.models import shared_scorer

    policy = make_policy()
    policy.save_pretrained(tmp_path)
    critic = shared_scorer(tmp_path, policy)
    assert critic.model.base_model is policy.base_model
    state = start(make_config(updates=2, critic_warmup=1), policy=policy, critic=critic)
    sizes = [sum(p.numel() for p in group["params"]) for group in state.optimizer.param_groups]
    assert sizes == [sum(p.numel() for p in policy.parameters()), critic.head.in_features]
    updates, before, head = ppo_updates(state), weights_of(policy), critic.head.weight.detach().clone()
    next(updates)
    assert all(torch.equal(a, b) for a, b in zip(before, weights_of(policy), strict=True))
    assert not torch.equal(head, critic.head.weight)
    next(updates)
    assert not all(torch.equal(a, b) for a, b in zip(before, weights_of(policy), strict=True))
