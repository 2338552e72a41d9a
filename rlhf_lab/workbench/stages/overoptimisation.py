"""The parameters of 10_overoptimisation."""

from typing import Self

from pydantic import Field, PositiveInt, model_validator

from rlhf_lab.training.ppo import PPOConfig
from rlhf_lab.training.reward_model import RewardModelConfig
from rlhf_lab.workbench.stages.base import refuse_other_losses, refuse_shared
from rlhf_lab.workbench.stages.study import StudyStage


class OverOptimisationStage(StudyStage):
    """10_overoptimisation: proxy and gold of best-of-n and PPO, by size of data and by world."""

    comparisons: dict[PositiveInt, PositiveInt] = {30: 4, 125: 4, 500: 2, 1000: 2}  # to learn from -> epochs over them
    best_of_n: dict[str, list[PositiveInt]] = {  # world -> comparisons of each reward model
        "default": [30, 125, 500, 1000],
        "misspecified": [30, 1000],
        "near_linear": [30, 1000],
    }
    ppo_against: dict[str, list[PositiveInt]] = {  # the same, each of them a run of PPO
        "default": [30, 125, 1000],
        "misspecified": [30, 1000],
        "near_linear": [30, 1000],
    }
    n_heldout: int = Field(500, ge=1)  # comparisons to measure accuracy on
    pool_size: int = Field(256, ge=2)  # replies to each held-out prompt, to take the best of
    eval_prompts: int = Field(128, ge=2)  # each half chooses the peak that the other one measures
    ppo: PPOConfig = PPOConfig(  # of every run of PPO; seed, precision and max_new_tokens are the study's
        updates=36, batch_size=64, lr=2e-4, decay="off", kl_coef=0.0
    )
    measure_every: int = Field(3, ge=1)  # updates of PPO between two measurements

    @model_validator(mode="after")
    def _fits(self) -> Self:
        for name in ("best_of_n", "ppo_against"):
            for world, sizes in getattr(self, name).items():
                if unknown := set(sizes) - set(self.comparisons):
                    raise ValueError(f"{name}.{world} has {min(unknown)}, which is no size in 'comparisons'")
        if self.reward_model.epochs != RewardModelConfig().epochs:
            raise ValueError("reward_model.epochs is what 'comparisons' say for each size: leave it out")
        refuse_other_losses(self)
        refuse_shared(self, ("reward_model", "ppo"), "units")
        return self

    @property
    def n_train(self) -> int:
        """Prompts to learn from: some to spare, for a prompt answered twice alike is not compared."""
        return max(max(self.comparisons) * 5 // 4 + 4, self.ppo.batch_size)
