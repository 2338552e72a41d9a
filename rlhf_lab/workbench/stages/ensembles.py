"""The parameters of 13_ensembles."""

from typing import Literal, Self, get_args

from pydantic import Field, model_validator

from rlhf_lab.training.ppo import PPOConfig
from rlhf_lab.training.reward_model import RewardModelConfig
from rlhf_lab.workbench.stages.base import refuse_other_losses, refuse_shared
from rlhf_lab.workbench.stages.study import StudyStage

Combination = Literal["single", "mean", "worst", "uncertainty"]


class EnsemblesStage(StudyStage):
    """13_ensembles: several reward models as one against a single one, from clean labels and from noisy ones."""

    comparisons: int = Field(120, ge=1)  # that every reward model learns from
    members: int = Field(5, ge=2, le=16)  # reward models of an ensemble
    flips: list[float] = Field([0.0, 0.25], min_length=1)  # share of the labels that are turned round
    combinations: list[Combination] = Field(  # how the members become one score; single: one of them alone
        list(get_args(Combination)), min_length=1
    )
    uncertainty_coef: float = Field(0.5, ge=0)  # of the members' variance, for `uncertainty`
    pool_prompts: int = Field(64, ge=1)  # held-out prompts of the pool
    pool_size: int = Field(256, ge=2)  # replies to each of them
    eval_prompts: int = Field(128, ge=2)  # held-out prompts on which PPO is measured
    reward_model: RewardModelConfig = RewardModelConfig(epochs=4)  # of each member; seed, precision: the study's
    # No penalty: one coefficient would be another penalty for each combination, whose scores have another spread.
    ppo: PPOConfig = PPOConfig(  # of every unit; seed, precision and max_new_tokens are the study's
        updates=30, batch_size=64, lr=2e-4, decay="off", kl_coef=0.0
    )
    measurements: int = Field(15, ge=1)  # times that PPO is measured while it trains

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if len({*self.flips}) < len(self.flips) or len({*self.combinations}) < len(self.combinations):
            raise ValueError("'flips' and 'combinations' name each value once")
        if bad := [flip for flip in self.flips if not 0 <= flip <= 1]:
            raise ValueError(f"flips: {bad[0]} is not from 0 to 1")
        refuse_other_losses(self)
        if self.pool_prompts > self.eval_prompts:
            raise ValueError(f"'pool_prompts' is {self.pool_prompts}, but there are {self.eval_prompts} 'eval_prompts'")
        if self.ppo.updates % self.measurements:
            raise ValueError(f"ppo.updates is {self.ppo.updates}, no multiple of 'measurements' ({self.measurements})")
        if self.labeler.flip:
            raise ValueError("labeler.flip is what 'flips' vary: leave it out")
        refuse_shared(self, ("reward_model", "ppo"), "units")
        return self
