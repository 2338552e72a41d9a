"""Rewards: any callable, a reward model, an ensemble of such, a weighted sum of several."""

from rlhf_lab.rewards.ensemble import EnsembleReward, save_ensemble
from rlhf_lab.rewards.loading import load_reward
from rlhf_lab.rewards.model_reward import ModelReward
from rlhf_lab.rewards.protocol import Reward, call_reward, reward_name
from rlhf_lab.rewards.weighted import WeightedReward

__all__ = [
    "EnsembleReward",
    "ModelReward",
    "Reward",
    "WeightedReward",
    "call_reward",
    "load_reward",
    "reward_name",
    "save_ensemble",
]
