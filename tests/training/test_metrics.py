"""Every metric of an update and of a reward-model step, against numbers worked by hand."""

import math

import pytest
import torch
from tiny import make_config

from rlhf_lab.training.metrics import ppo_metrics, reward_model_metrics
from rlhf_lab.training.ppo import PPOStats, PPOUpdate
from rlhf_lab.training.reward_model import RewardModelStats
from rlhf_lab.training.rollouts import Rollout

# Two replies: one of two tokens that ended, one of three that did not. Behind the mask stands 50.
MASK = torch.tensor([[True, True, False], [True, True, True]])
BATCH = Rollout(
    prompt_ids=torch.zeros(2, 1, dtype=torch.long),
    prompt_mask=torch.ones(2, 1, dtype=torch.bool),
    response_ids=torch.zeros(2, 3, dtype=torch.long),
    response_mask=MASK,
    finished=torch.tensor([True, False]),
    group=torch.arange(2),
    old_logp=torch.tensor([[-1.0, -2.0, 50.0], [-0.5, -1.5, -3.0]]),
    ref_logp=torch.tensor([[-1.5, -1.0, 20.0], [-1.0, -2.5, -4.5]]),
    values=torch.zeros(2, 3),
    scores=torch.tensor([4.0, 2.0]),
)
STATS = PPOStats(
    policy_loss=1.0,
    value_loss=2.0,
    kl_loss=12.0,
    ptx_loss=13.0,
    approx_kl=3.0,
    clip_fraction=4.0,
    ratio=5.0,
    entropy=6.0,
    value_clip_fraction=7.0,
    explained_variance=8.0,
    policy_grad_norm=9.0,
    value_grad_norm=10.0,
    optimizer_steps=11,
)


def test_metrics_of_an_update_by_hand():
    update = PPOUpdate(BATCH, STATS, 2, 256, 3e-4, 0.5, 1.0, {"rollout": 1.25, "score": 0.5, "train": 0.75})
    config = make_config(max_new_tokens=3, missing_eos_penalty=1.0, kl_coef=0.5)
    # k1 = logp - ref_logp: .5 - 1 = -.5 for the first reply, .5 + 1 + 1.5 = 3 for the second; mean 1.25
    # entropy: 3 for the first, 5 for the second; scores after the penalty: 4 and 1
    expected = {
        "episode": 256,
        "objective/kl": 1.25,
        "objective/kl_k2": 1.1875,  # (.25 + 1) / 2 and (.25 + 1 + 2.25) / 2
        # e^-k1 - 1 + k1 at k1 = .5, -1 for the first, .5, 1, 1.5 for the second
        "objective/kl_k3": (
            (math.exp(-0.5) - 0.5) + (math.e - 2) + (math.exp(-0.5) - 0.5) + math.exp(-1) + (math.exp(-1.5) + 0.5)
        )
        / 2,
        "objective/non_score_reward": -0.625,
        "objective/entropy": 4.0,
        "objective/scores": 2.5,
        "objective/scores_raw": 3.0,
        "objective/rlhf_reward": 1.875,
        "objective/kl_coef": 0.5,
        "policy/approxkl_avg": 3.0,
        "policy/clipfrac_avg": 4.0,
        "policy/entropy_avg": 6.0,
        "policy/grad_norm": 9.0,
        "loss/policy_avg": 1.0,
        "loss/value_avg": 2.0,
        "loss/kl_avg": 12.0,
        "loss/ptx_avg": 13.0,
        "val/clipfrac_avg": 7.0,
        "val/ratio": 5.0,
        "val/explained_var": 8.0,
        "val/grad_norm": 10.0,
        "val/num_eos_tokens": 1,
        "completions/mean_length": 2.5,
        "completions/clipped_ratio": 0.5,
        "completions/eos_rate": 0.5,
        "time/rollout": 1.25,
        "time/score": 0.5,
        "time/train": 0.75,
        "lr": 3e-4,
    }
    assert ppo_metrics(update, config) == pytest.approx(expected)


def test_metrics_of_a_reward_model_step():
    stats = RewardModelStats(loss=0.5, accuracy=0.75, gap=1.5, grad_norm=2.5, lr=1e-3)
    assert reward_model_metrics(stats) == {
        "train/loss": 0.5,
        "train/accuracy": 0.75,
        "train/gap": 1.5,
        "policy/grad_norm": 2.5,
        "lr": 1e-3,
    }


def test_with_the_kl_in_the_loss_nothing_is_taken_from_the_reward():
    update = PPOUpdate(BATCH, STATS, 2, 256, 3e-4, 0.5, 1.0, {"rollout": 1.25, "score": 0.5, "train": 0.75})
    config = make_config(max_new_tokens=3, kl_coef=0.5, kl_in="loss", kl_kind="k3", missing_eos_penalty=0.0)
    figures = ppo_metrics(update, config)
    assert figures["objective/non_score_reward"] == 0
    assert figures["objective/rlhf_reward"] == figures["objective/scores"] == 3.0


def test_the_scale_of_the_scores_is_in_scores_and_not_in_scores_raw():
    update = PPOUpdate(BATCH, STATS, 2, 256, 3e-4, 0.5, 2.0, {"rollout": 1.25, "score": 0.5, "train": 0.75})
    figures = ppo_metrics(update, make_config(max_new_tokens=3, missing_eos_penalty=1.0))
    assert figures["objective/scores"] == (4 / 2 + 2 / 2 - 1) / 2
    assert figures["objective/scores_raw"] == 3.0
