"""PPO beyond its contract: the figures of a step by hand, the loop, interrupts, and what is refused."""

import math
import os
import signal
import threading

import pytest
import torch
from tiny import (
    PROMPTS,
    Bigram,
    TableCritic,
    chain,
    copy_of,
    count_words,
    make_config,
    make_policy,
    make_scorer,
    make_tokenizer,
    same,
    sample,
    start,
    weights_of,
)

from rlhf_lab.errors import LabError, RunFailed
from rlhf_lab.training.ppo import PPOConfig, estimate_advantages, ppo_start, ppo_step, ppo_updates
from rlhf_lab.training.rollouts import Rollout

# ---- One step by hand

# A uniform policy over three tokens, prompts "0", replies "1 2" and "2". What was drawn under the old policy had
# log-probabilities that make the ratios 1.5, 0.5 and 1.1.
LOG3 = math.log(3)
RATIOS = torch.tensor([[1.5, 0.5], [1.1, 1.0]])
BY_HAND = Rollout(
    prompt_ids=torch.zeros(2, 1, dtype=torch.long),
    prompt_mask=torch.ones(2, 1, dtype=torch.bool),
    response_ids=torch.tensor([[1, 2], [2, 0]]),
    response_mask=torch.tensor([[True, True], [True, False]]),
    finished=torch.tensor([True, True]),
    group=torch.arange(2),
    old_logp=-LOG3 - RATIOS.log(),
    ref_logp=torch.full((2, 2), -LOG3),
    values=torch.tensor([[0.5, 0.5], [0.5, 0.0]]),
    scores=torch.zeros(2),
)
ADVANTAGES = torch.tensor([[2.0, -1.0], [3.0, 99.0]])  # 99: behind the mask
RETURNS = torch.tensor([[1.0, 2.0], [3.0, 99.0]])
EXPECTED = {
    # max(-2 * 1.5, -2 * 1.2) = -2.4; max(0.5, 0.8) = 0.8; -3 * 1.1 = -3.3; the first two are clipped
    "policy_loss": (-2.4 + 0.8 - 3.3) / 3,
    "clip_fraction": 2 / 3,
    "ratio": (1.5 + 0.5 + 1.1) / 3,
    "approx_kl": (math.log(1.5) ** 2 + math.log(0.5) ** 2 + math.log(1.1) ** 2) / 6,
    "kl_loss": 0.0,
    "ptx_loss": 0.0,
    "entropy": LOG3,
    # values .5, 1, .5 by the token before; squares .25, 1, 6.25. The second is held at .5 + .2: (2 - .7)^2 = 1.69 > 1
    "value_loss": (0.25 + 1.69 + 6.25) / 3 / 2,
    "value_clip_fraction": 1 / 3,
    "explained_variance": 1 - ((0.25 + 1 + 6.25) / 3) / (2 / 3),
    # only the third token is free to move: 3 * 1.1 / 3 times |(-1/3, -1/3, 2/3)|
    "policy_grad_norm": 1.1 * math.sqrt(2 / 3),
    # the two free values share a weight: .1 * |(.5 - 1) + (.5 - 3)| / 3
    "value_grad_norm": 0.1,
    "optimizer_steps": 1,
}


def by_hand(micro_batch_size: int = 0, **changes) -> tuple[Bigram, TableCritic, dict[str, float]]:
    config = make_config(minibatches=1, epochs=1, micro_batch_size=micro_batch_size, max_grad_norm=100.0, **changes)
    policy, critic = Bigram(torch.zeros(3, 3)), TableCritic([0.5, 1.0, 0.0])
    optimizer = torch.optim.SGD([*policy.parameters(), *critic.parameters()], lr=1.0)
    result = ppo_step(policy, critic, optimizer, BY_HAND, ADVANTAGES, RETURNS, config)
    return policy, critic, result._asdict()


@pytest.mark.parametrize("micro_batch_size", [0, 1])
def test_figures_of_a_step_by_hand(micro_batch_size):
    _, _, figures = by_hand(micro_batch_size)
    assert figures == pytest.approx(EXPECTED, rel=1e-5)


def test_weights_after_a_step_by_hand():
    policy, critic, _ = by_hand()
    assert policy.table[0].tolist() == pytest.approx([-1.1 / 3, -1.1 / 3, 2.2 / 3], rel=1e-5)
    assert policy.table[1:].tolist() == [[0.0] * 3] * 2
    assert critic.table.tolist() == pytest.approx([0.5 + 0.1, 1.0, 0.0], rel=1e-5)


def test_a_step_warns_of_nothing(recwarn):
    by_hand()
    assert [str(warning.message) for warning in recwarn] == []


def test_without_a_critic():
    config = make_config(minibatches=1, epochs=1)
    policy = make_policy()
    batch = sample(policy, None, config)
    assert not batch.values.any()
    optimizer = torch.optim.SGD(policy.parameters(), lr=0.0)
    result = ppo_step(policy, None, optimizer, batch, *estimate_advantages(batch, config), config)
    unlearned = (result.value_loss, result.value_clip_fraction, result.value_grad_norm, result.explained_variance)
    assert unlearned == (0, 0, 0, 0)


# ---- Advantages


def test_advantages_by_hand():
    # score 1, of which the missing EOS takes .5; k1 is .2 and -.4 nats at coefficient .5: rewards -.1 and .2 + .5.
    # gamma .9, lambda .5, values .3 and .1:
    #   delta_1 = .7 - .1 = .6;  delta_0 = -.1 + .9 * .1 - .3 = -.31;  A_0 = -.31 + .45 * .6 = -.04
    config = make_config(kl_coef=0.5, gamma=0.9, lam=0.5, missing_eos_penalty=0.5, whiten="off")
    batch = BY_HAND._replace(
        finished=torch.tensor([False, True]),
        old_logp=torch.tensor([[-1.0, -1.4], [-1.0, 7.0]]),
        ref_logp=torch.tensor([[-1.2, -1.0], [-1.0, 3.0]]),
        values=torch.tensor([[0.3, 0.1], [0.25, 0.0]]),
        scores=torch.tensor([1.0, 2.0]),
    )
    advantages, returns = estimate_advantages(batch, config)
    assert advantages.tolist() == [pytest.approx([-0.04, 0.6], abs=1e-6), pytest.approx([1.75, 0.0], abs=1e-6)]
    assert returns.tolist() == [pytest.approx([0.26, 0.7]), pytest.approx([2.0, 0.0])]
    # Whitened over the rollout: mean .77, unbiased deviation of (-.04, .6, 1.75) = .9071
    whitened, again = estimate_advantages(batch, config.model_copy(update={"whiten": "rollout"}))
    deviation = math.sqrt((0.81**2 + 0.17**2 + 0.98**2) / 2)
    assert whitened[0].tolist() == pytest.approx([-0.81 / deviation, -0.17 / deviation], rel=1e-5)
    assert whitened[1].tolist() == pytest.approx([0.98 / deviation, 0], rel=1e-5)
    assert torch.equal(again, returns)


def test_whitening_by_minibatch_is_over_the_minibatch():
    # At ratio 1 the loss is minus the mean advantage, which is 0 once whitened over the same tokens.
    policy, critic = make_policy(), make_scorer()
    config = make_config(minibatches=4, epochs=1, whiten="minibatch")
    batch = sample(policy, critic, config)
    advantages, returns = estimate_advantages(batch, config)
    kept = advantages.clone()
    optimizer = torch.optim.SGD(policy.parameters(), lr=0.0)
    assert ppo_step(policy, critic, optimizer, batch, advantages, returns, config).policy_loss == pytest.approx(
        0, abs=1e-6
    )
    assert torch.equal(advantages, kept)  # what the caller holds is left alone
    off = config.model_copy(update={"whiten": "off"})
    assert abs(ppo_step(policy, critic, optimizer, batch, advantages, returns, off).policy_loss) > 0.01


# ---- The loop


def test_equal_seeds_give_equal_runs():
    runs = {}
    for name, seed in (("one", 0), ("two", 0), ("other", 1)):
        state = start(make_config(seed=seed))
        scores = [update.rollout.scores for update in ppo_updates(state)]
        runs[name] = [*scores, *weights_of(state.policy, state.critic)]
    assert same(runs["one"], runs["two"])
    assert not same(runs["one"], runs["other"])


def test_every_prompt_comes_once_before_any_comes_again():
    seen = []

    def watch(prompts, completions):
        seen.extend(prompts)
        return [0.0] * len(prompts)

    prompts = [f"w{number}" for number in range(2, 12)]
    list(ppo_updates(start(make_config(updates=5, batch_size=4), reward=watch, prompts=prompts)))
    first, second = seen[:10], seen[10:20]
    assert sorted(first) == sorted(second) == sorted(prompts)
    assert first != second


def test_numbers_of_the_updates():
    config = make_config(updates=3, batch_size=4, samples_per_prompt=2, lr=0.3, critic_lr=0.6, kl_coef=0.25)
    state = start(config)
    rates = []
    state.optimizer.register_step_pre_hook(lambda opt, *_: rates.append([g["lr"] for g in opt.param_groups]))
    updates = list(ppo_updates(state))
    assert [update.number for update in updates] == [1, 2, 3]
    assert [update.episode for update in updates] == [8, 16, 24]
    assert [update.lr for update in updates] == pytest.approx([0.3, 0.2, 0.1])  # linear, towards 0
    assert rates[:: 2 * 4] == [pytest.approx(pair) for pair in ([0.3, 0.6], [0.2, 0.4], [0.1, 0.2])]
    assert {update.kl_coef for update in updates} == {0.25}
    assert all(set(update.seconds) == {"rollout", "score", "train"} for update in updates)
    assert list(ppo_updates(state)) == []  # done is done


def test_the_critic_learns_and_the_reference_does_not():
    state = start(make_config(updates=2))
    policy, reference, critic = (weights_of(m) for m in (state.policy, state.reference, state.critic))
    assert same(policy, reference)
    list(ppo_updates(state))
    assert same(weights_of(state.reference), reference)
    assert not same(weights_of(state.policy), policy)
    assert not same(weights_of(state.critic), critic)
    assert not any(p.requires_grad for p in state.reference.parameters())


def test_a_forward_patched_onto_the_policy_does_not_reach_the_reference():
    """Trainers replace `forward` on the instance by a closure over it; a plain deep copy would share the weights."""
    policy = make_policy()
    original = policy.forward
    policy.forward = lambda *inputs, **options: original(*inputs, **options)
    state = start(make_config(updates=1, lr=1e-2), policy=policy)
    list(ppo_updates(state))
    ids = torch.tensor([[2, 3, 4]])
    with torch.no_grad():
        logits = state.reference(input_ids=ids, attention_mask=torch.ones_like(ids)).logits
        untrained = make_policy()(input_ids=ids, attention_mask=torch.ones_like(ids)).logits
    assert torch.equal(logits, untrained)


def test_the_score_rises():
    # Only w3 is paid for. A uniform policy says it 1/14 of the time.
    state = start(
        make_config(updates=40, batch_size=16, max_new_tokens=1, lr=0.3, kl_coef=0.0, missing_eos_penalty=0.0),
        policy=Bigram(torch.zeros(14, 14)),
        reward=lambda completions: [float(text.split().count("w3")) for text in completions],
    )
    scores = [update.rollout.scores.mean().item() for update in ppo_updates(state)]
    assert scores[0] < 0.3
    assert sum(scores[-5:]) / 5 > 0.6


def test_precision_auto_is_settled_where_it_is_used():
    state = start(make_config(updates=1, precision="auto"))
    assert next(ppo_updates(state)).stats.optimizer_steps == 4


# ---- Interrupts


def noisy(completions):
    """A reward that draws from torch's own generator, as one with dropout or sampling would."""
    return [value + 0.1 * torch.rand(()).item() for value in count_words(completions)]


def begin(reward=noisy):
    """Ten prompts and batches of eight: every update but the first meets a new shuffle."""
    return start(make_config(), reward=reward, prompts=PROMPTS[:10])


def uninterrupted() -> tuple[list, list]:
    """Weights after each of three updates, and the replies of each."""
    state = begin()
    weights, replies = [], []
    for update in ppo_updates(state):
        weights.append(weights_of(state.policy, state.critic))
        replies.append(update.rollout.response_ids)
    return weights, replies


def test_an_interrupt_while_sampling_leaves_the_last_whole_update():
    weights, replies = uninterrupted()
    calls = []

    def reward(completions):
        calls.append(1)
        values = noisy(completions)
        if len(calls) == 2:
            os.kill(os.getpid(), signal.SIGINT)
        return values

    state, numbers = begin(reward), []
    with pytest.raises(KeyboardInterrupt):
        numbers.extend(update.number for update in ppo_updates(state))
    assert numbers == [1]
    assert state.number == 1
    assert same(weights_of(state.policy, state.critic), weights[0])
    later = list(ppo_updates(state))
    assert [update.number for update in later] == [2, 3]
    assert same([update.rollout.response_ids for update in later], replies[1:])
    assert same(weights_of(state.policy, state.critic), weights[2])


def test_an_interrupt_while_training_waits_for_the_end_of_the_update():
    weights, replies = uninterrupted()
    state, steps, numbers = begin(), [], []

    def interrupt(*_):
        steps.append(1)
        if len(steps) == 2 * 4 + 1:  # the first of the four steps of the second update; the critic takes as many
            os.kill(os.getpid(), signal.SIGINT)

    state.optimizer.register_step_post_hook(interrupt)
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        numbers.extend(update.number for update in ppo_updates(state))
    assert signal.getsignal(signal.SIGINT) is before
    assert len(steps) == 2 * 8
    assert state.number == 2
    assert same(weights_of(state.policy, state.critic), weights[1])
    # Going on, the finished update is not lost: it is the first to be seen.
    later = list(ppo_updates(state))
    assert numbers + [update.number for update in later] == [1, 2, 3]
    assert same([update.rollout.response_ids for update in later], replies[1:])
    assert same(weights_of(state.policy, state.critic), weights[2])


def test_an_interrupt_in_the_body_of_the_loop():
    weights, _ = uninterrupted()
    state = begin()
    with pytest.raises(KeyboardInterrupt):
        [os.kill(os.getpid(), signal.SIGINT) for _ in ppo_updates(state)]
    assert same(weights_of(state.policy, state.critic), weights[0])
    assert [update.number for update in ppo_updates(state)] == [2, 3]
    assert same(weights_of(state.policy, state.critic), weights[2])


def test_a_reward_that_fails_undoes_the_sampling_too():
    weights, _ = uninterrupted()
    calls = []

    def reward(completions):
        calls.append(1)
        return [math.nan if len(calls) == 2 else value for value in noisy(completions)]

    state = begin(reward)
    with pytest.raises(LabError, match="finite number"):
        list(ppo_updates(state))
    list(ppo_updates(state))
    assert same(weights_of(state.policy, state.critic), weights[2])


def test_the_loop_runs_outside_the_main_thread():
    numbers = []
    thread = threading.Thread(target=lambda: numbers.extend(u.number for u in ppo_updates(start(make_config()))))
    thread.start()
    thread.join()
    assert numbers == [1, 2, 3]


# ---- What is refused


def test_a_loss_that_is_no_number_fails_and_leaves_the_weights():
    config = make_config(minibatches=1, epochs=1)
    policy = make_policy()
    batch = sample(policy, None, config)
    advantages, returns = estimate_advantages(batch, config)
    optimizer = torch.optim.Adam(policy.parameters(), lr=0.1)
    before = weights_of(policy)
    with pytest.raises(RunFailed, match=r"^PPO: the loss is nan .*lower 'lr'"):
        ppo_step(policy, None, optimizer, batch, advantages * math.nan, returns, config)
    assert same(weights_of(policy), before)


def test_a_gradient_that_is_no_number_fails_and_leaves_the_weights():
    config = make_config(minibatches=1, epochs=1)
    policy = make_policy()
    batch = sample(policy, None, config)
    next(policy.parameters()).register_hook(lambda gradient: gradient * math.inf)
    optimizer = torch.optim.Adam(policy.parameters(), lr=0.1)
    before = weights_of(policy)
    with pytest.raises(RunFailed, match=r"^PPO: policy_grad_norm is (nan|inf); lower 'lr'"):
        ppo_step(policy, None, optimizer, batch, *estimate_advantages(batch, config), config)
    assert same(weights_of(policy), before)


def test_fewer_replies_than_minibatches():
    config = make_config(batch_size=2, samples_per_prompt=2, minibatches=5)
    with pytest.raises(LabError, match=r"^PPO: a rollout of 4 cannot be split into minibatches=5$"):
        start(config)
    batch = sample(make_policy(), None, config)
    with pytest.raises(LabError, match="a rollout of 4 replies cannot be split into minibatches=5"):
        ppo_step(None, None, None, batch, batch.values, batch.values, config)


def test_a_frozen_policy():
    policy = make_policy()
    with pytest.raises(LabError, match="^PPO: the policy is frozen"):
        start(make_config(), policy=policy, reference=policy)


def test_a_column_of_another_length():
    with pytest.raises(LabError, match=r"^PPO: column 'answer' has 3 values for 16 prompts"):
        start(make_config(), columns={"answer": [1, 2, 3]})


def test_columns_reach_the_reward_beside_their_prompts():
    seen = []

    def reward(prompts, completions, answer):
        seen.extend(zip(prompts, answer, strict=True))
        return [0.0] * len(completions)

    state = start(make_config(updates=2), reward=reward, columns={"answer": [f"to {prompt}" for prompt in PROMPTS]})
    list(ppo_updates(state))
    assert len(seen) == 16
    assert all(answer == f"to {prompt}" for prompt, answer in seen)


def test_a_prompt_beyond_the_context_is_one_line():
    with pytest.raises(LabError, match="too long for the model's context of 48"):
        next(ppo_updates(start(make_config(batch_size=1, minibatches=1), prompts=["w2 " * 41])))


@pytest.mark.parametrize(
    ("key", "value"), [("updates", 0), ("temperature", 0), ("gamma", 1.1), ("whiten", "all"), ("micro_batch", 2)]
)
def test_settings_out_of_range(key, value):
    with pytest.raises(LabError, match=key):
        PPOConfig.parse({key: value})


def test_the_policy_goes_on_from_its_own_reference():
    # Given a reference, the KL starts from that: here from a policy that always says w4.
    reference = chain(dict.fromkeys(range(14), 4))
    state = ppo_start(
        make_config(updates=1),
        policy=make_policy(),
        critic=None,
        reward=count_words,
        tokenizer=make_tokenizer(),
        prompts=PROMPTS,
        reference=copy_of(reference),
    )
    batch = next(ppo_updates(state)).rollout
    at_w4 = batch.response_mask & (batch.response_ids == 4)
    assert at_w4.any()
    assert batch.ref_logp[at_w4].abs().max() < 1e-3
    assert batch.ref_logp[batch.response_mask & ~at_w4].max() < -50
