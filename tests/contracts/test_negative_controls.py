"""What is known to be wrong goes wrong: a check that could not tell right from wrong would pass here, too.

That reversed comparisons teach the opposite is in tests/training/test_reward_model.py.
"""

import math

import pytest
import torch
from architectures import build_config
from tiny import Bigram, make_config, start
from transformers import AutoModelForCausalLM

from rlhf_lab.maths import shaped_rewards
from rlhf_lab.training import credit, ppo
from rlhf_lab.training.credit import estimate_advantages
from rlhf_lab.training.ppo import ppo_updates
from rlhf_lab.training.ppo_step import ppo_step
from rlhf_lab.training.rollouts import Rollout

ARMS = torch.tensor([1.0, 0.0, -1.0])


def learned_arms(kl_coef: float) -> torch.Tensor:
    """The three-armed bandit from a uniform reference, every arm in the batch by its probability: no sampling."""
    config = make_config(
        **{"epochs": 1, "minibatches": 1, "max_grad_norm": 1e6, "kl_coef": kl_coef, "gamma": 1.0, "lam": 1.0},
        **{"whiten": "off", "max_new_tokens": 1, "missing_eos_penalty": 0.0},
    )
    policy = Bigram(torch.zeros(3, 3))
    optimizer = torch.optim.SGD(policy.parameters(), lr=0.5)
    one = torch.ones(3, 1, dtype=torch.bool)
    for _ in range(200):
        logp = policy.table.detach()[0].log_softmax(0)[:, None]
        arms = Rollout(
            **{"prompt_ids": torch.zeros(3, 1, dtype=torch.long), "prompt_mask": one, "response_mask": one},
            **{"response_ids": torch.arange(3)[:, None], "finished": one[:, 0], "group": torch.arange(3)},
            **{"old_logp": logp, "ref_logp": torch.full((3, 1), -math.log(3)), "values": torch.zeros(3, 1)},
            scores=ARMS,
        )
        advantages, returns = estimate_advantages(arms, config)
        ppo_step(policy, None, optimizer, arms, advantages * 3 * logp.exp(), returns, config)
    return policy.table.detach()[0].softmax(0)


def kl_to_uniform(p: torch.Tensor) -> float:
    return (p * (p.clamp_min(1e-30) * 3).log()).sum().item()


def test_the_kl_with_its_sign_reversed_misses_the_optimum(monkeypatch):
    optimum = ARMS.softmax(0)
    assert (learned_arms(1.0) - optimum).abs().sum() / 2 < 0.02

    def reversed_(score, logp, ref_logp, mask, *, kl_coef, kind):
        return shaped_rewards(score, logp, ref_logp, mask, kl_coef=-kl_coef, kind=kind)

    monkeypatch.setattr(credit, "shaped_rewards", reversed_)
    wrong = learned_arms(1.0)
    assert (wrong - optimum).abs().sum() / 2 > 0.3  # paid for drifting, it leaves the other arms behind
    assert wrong[0] > 0.99


def test_without_a_penalty_it_moves_furthest():
    distances = [kl_to_uniform(learned_arms(kl_coef)) for kl_coef in (0.0, 0.5, 1.0, 2.0)]
    assert distances == sorted(distances, reverse=True) and distances[0] > 1.5 * distances[1]
    for kl_coef, found in zip((0.5, 1.0, 2.0), distances[1:], strict=True):
        assert found == pytest.approx(kl_to_uniform((ARMS / kl_coef).softmax(0)), abs=0.02)


def test_with_dropout_the_first_ratio_is_not_1(monkeypatch):
    # In micro-batches, or the pass that reads the rollout is the first step's, and the ratio is 1 whatever is on.
    config = make_config(updates=1, epochs=1, minibatches=1, micro_batch_size=4, advantage="reinforce++")

    def first_update():
        torch.manual_seed(0)
        raw = AutoModelForCausalLM.from_config(build_config("gpt2", dropout=0.1)).train()
        return next(ppo_updates(start(config, policy=raw))).stats

    assert abs(first_update().ratio - 1) < 1e-5
    monkeypatch.setattr(ppo, "disable_dropout", lambda model: None)
    monkeypatch.setattr(torch.nn.Module, "eval", lambda self: self)  # and nobody switches it off for the moment
    assert abs(first_update().ratio - 1) > 1e-3
