"""Several rewards as one: their weighted sum, with the parts kept to be looked at."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from rlhf_lab.errors import LabError
from rlhf_lab.rewards.protocol import Reward, call_reward


class WeightedReward:
    """sum_k weight_k * reward_k(completion). A part of weight 0 is still computed, so that it can be watched.

    `last` holds each part's unweighted values from the last call: {name: [one per completion]}.
    """

    def __init__(self, rewards: Mapping[str, tuple[Reward, float]]):
        if not rewards:
            raise LabError("weighted reward: no rewards given; give at least one as name: (reward, weight)")
        for name, (reward, weight) in rewards.items():
            if not callable(reward):
                raise LabError(f"weighted reward: '{name}' is {reward!r}, which cannot be called")
            if isinstance(weight, str) or not math.isfinite(weight):
                raise LabError(f"weighted reward: the weight of '{name}' is {weight!r}; give a finite number")
        self.rewards = dict(rewards)
        self.last: dict[str, list[float]] = {}

    def parts(self, *, prompts: Sequence[str], completions: Sequence[str], **columns: Any) -> dict[str, list[float]]:
        """Each reward's values before weighting, by name; also kept in `last`. Errors as in `call_reward`."""
        self.last = {
            name: call_reward(reward, prompts=prompts, completions=completions, **columns)
            for name, (reward, _) in self.rewards.items()
        }
        return self.last

    def __call__(self, *, prompts: Sequence[str], completions: Sequence[str], **columns: Any) -> list[float]:
        """The weighted sum, one per completion."""
        parts = self.parts(prompts=prompts, completions=completions, **columns)
        weights = [weight for _, weight in self.rewards.values()]
        return [
            math.fsum(weight * value for weight, value in zip(weights, row, strict=True))
            for row in zip(*parts.values(), strict=True)
        ]
