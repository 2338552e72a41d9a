"""The HL-Gauss value loss of PPO: a critic of bins beside one of a single output."""

import statistics

import pytest
import torch
from tiny import (
    EOS,
    PROMPTS,
    chain,
    make_config,
    make_policy,
    make_scorer,
    make_tokenizer,
    same,
    sample,
    start,
    weights_of,
)

from rlhf_lab.errors import LabError
from rlhf_lab.models import load_scorer, response_value_outputs, response_values, shared_scorer
from rlhf_lab.training.credit import estimate_advantages
from rlhf_lab.training.ppo import ppo_updates
from rlhf_lab.training.ppo_config import PPOConfig
from rlhf_lab.training.ppo_step import ppo_step

BINS = {"value_loss": "hl_gauss", "value_bins": 11, "value_range": 2.5}  # centres 0.5 apart


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("policy")
    make_policy().save_pretrained(path)
    make_tokenizer().save_pretrained(path)
    return path


def make_critic(folder, config: PPOConfig, head: str = "new"):
    torch.manual_seed(5)
    return load_scorer(folder, head=head, bins=config.critic_bins)


def test_the_bins_of_a_config():
    assert PPOConfig(**BINS).critic_bins == pytest.approx([-2.5 + 0.5 * number for number in range(11)])
    assert PPOConfig().critic_bins is None
    assert PPOConfig(**BINS, advantage="rloo", samples_per_prompt=2).critic_bins is None
    for wrong in ({"value_bins": 1}, {"value_range": 0.0}, {"value_loss": "huber"}):
        with pytest.raises(LabError, match=f"'{next(iter(wrong))}'"):
            PPOConfig.parse(wrong)


def test_a_critic_of_zeros_says_the_middle_everywhere(folder):
    config = make_config(**BINS)
    batch = sample(make_policy(), make_critic(folder, config, "zero"), config)
    assert batch.values.abs().max() < 1e-6


def test_values_are_the_means_of_the_bins_at_every_state(folder):
    config = make_config(**BINS)
    critic = make_critic(folder, config)
    batch = sample(make_policy(), critic, config)
    read = (batch.prompt_ids, batch.prompt_mask, batch.response_ids, batch.response_mask)
    probabilities = response_value_outputs(critic, *read).softmax(-1)
    expected = sum(probabilities[..., i] * centre for i, centre in enumerate(config.critic_bins))
    expected = expected.masked_fill(~batch.response_mask, 0)
    assert torch.allclose(response_values(critic, *read), expected, atol=1e-6)
    assert torch.allclose(batch.values, expected, atol=1e-6)


@pytest.mark.parametrize("micro_batch_size", [0, 3])
def test_the_loss_of_a_step_token_by_token(folder, micro_batch_size):
    """With all learning rates 0, one minibatch and one epoch the step reports the loss of the whole rollout."""
    config = make_config(**BINS, lr=0, critic_lr=0, epochs=1, minibatches=1, micro_batch_size=micro_batch_size)
    policy, critic = make_policy(), make_critic(folder, config)
    critic.shift, critic.gain = 0.25, 2.0  # then the centres are 2 (c - 0.25), and a bin is 1 wide
    batch = sample(policy, critic, config)
    advantages, returns = estimate_advantages(batch, config)
    optimizer = torch.optim.Adam([*policy.parameters(), *critic.parameters()], lr=0)
    stats = ppo_step(policy, critic, optimizer, batch, advantages, returns, config)
    read = (batch.prompt_ids, batch.prompt_mask, batch.response_ids, batch.response_mask)
    logs = response_value_outputs(critic, *read).detach().double().log_softmax(-1)
    centres = [2 * (centre - 0.25) for centre in config.critic_bins]
    cost = []
    for row, token in batch.response_mask.nonzero().tolist():
        value = min(max(returns[row, token].item(), centres[0]), centres[-1])
        normal = statistics.NormalDist(value, 0.75)
        mass = [normal.cdf(c + 0.5) - normal.cdf(c - 0.5) for c in centres]
        cost.append(-sum(m / sum(mass) * log for m, log in zip(mass, logs[row, token].tolist(), strict=True)))
    assert stats.value_loss == pytest.approx(statistics.fmean(cost), rel=1e-4)
    assert stats.value_clip_fraction == 0
    assert stats.value_grad_norm > 0


def test_the_critic_learns_the_values_of_twelve_states(folder):
    """Every reply is the EOS alone, so that the value of a prompt is its reward, known exactly."""
    words = [f"w{number}" for number in range(2, 14)]
    worth = {word: (int(word[1:]) % 5) - 2.0 for word in words}

    def reward(prompts, **_):
        return [worth[prompt] for prompt in prompts]

    config = make_config(**BINS, updates=40, batch_size=12, lr=0, critic_lr=1e-2, decay="off", max_new_tokens=2)
    critic, policy = make_critic(folder, config, "zero"), chain(dict.fromkeys(range(14), EOS))
    updates = list(ppo_updates(start(config, reward=reward, critic=critic, policy=policy, prompts=words)))
    assert updates[0].stats.explained_variance < 0.2
    assert updates[-1].stats.explained_variance > 0.95
    last = updates[-1].rollout
    assert last.response_mask.sum(1).tolist() == [1] * 12
    assert (last.values[:, 0] - last.scores).abs().max() < 0.4


def test_a_critic_of_bins_on_the_policys_trunk(folder):
    policy, config = make_policy(), make_config(**BINS)
    critic = shared_scorer(folder, policy, bins=config.critic_bins)
    before = weights_of(critic.head)
    next(ppo_updates(start(config, policy=policy, critic=critic)))
    assert not same(weights_of(critic.head), before)
    assert critic.model.base_model is policy.base_model


def test_a_critic_of_one_output_is_refused():
    with pytest.raises(LabError, match=r"has one output and no bins; load the model with head='zero' and bins"):
        next(ppo_updates(start(make_config(**BINS), critic=make_scorer(), prompts=PROMPTS)))
