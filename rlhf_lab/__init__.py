"""A workbench for research on reinforcement learning from human feedback.

Names are loaded when first used, so that `import rlhf_lab` stays light: it loads neither transformers nor trl.
"""

import importlib
import os

# An OpenMP thread that spins while it waits steals the core that another job needs: on two cores with one other job
# running, the same matrix products took 32 s instead of 5. It is read when torch is loaded, so it is set here.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

__version__ = "0.1.0"

_HOME = {
    "LabError": "errors",
    "load_policy": "models",
    "load_scorer": "models",
    "load_tokenizer": "models",
    "generate": "models",
    "response_logprobs": "models",
    "ModelReward": "rewards",
    "WeightedReward": "rewards",
    "call_reward": "rewards",
    "load_reward": "rewards",
    "SFTConfig": "training.sft",
    "sft_trainer": "training.sft",
    "RewardModelConfig": "training.reward_model",
    "reward_model_start": "training.reward_model",
    "reward_model_steps": "training.reward_model",
    "PPOConfig": "training.ppo",
    "estimate_advantages": "training.ppo",
    "ppo_start": "training.ppo",
    "ppo_step": "training.ppo",
    "ppo_updates": "training.ppo",
    "Rollout": "training.rollouts",
    "rollout": "training.rollouts",
    "World": "sandbox.world",
}
__all__ = sorted(_HOME)


def __getattr__(name: str):
    if name not in _HOME:
        raise AttributeError(f"module 'rlhf_lab' has no attribute '{name}'")
    return getattr(importlib.import_module(f"rlhf_lab.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
