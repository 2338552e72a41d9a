"""The parameters of 11_kl_coefficient."""

from typing import Self

from pydantic import Field, NonNegativeFloat, PositiveFloat, model_validator

from rlhf_lab.training.ppo import PPOConfig
from rlhf_lab.training.reward_model import RewardModelConfig
from rlhf_lab.workbench.stages.base import refuse_other_losses, refuse_shared
from rlhf_lab.workbench.stages.study import StudyStage


class KLCoefficientStage(StudyStage):
    """11_kl_coefficient: PPO against one reward model at many coefficients of the KL, and what else may hold it."""

    comparisons: int = Field(250, ge=1)  # few, so that over-optimisation shows
    coefficients: list[NonNegativeFloat] = Field([0.0, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0], min_length=2)  # ascending
    targets: list[PositiveFloat] = [1.0, 3.0]  # nats per reply, for adaptive control, which begins at ppo.kl_coef
    k3: list[PositiveFloat] = [0.5, 2.0]  # coefficients with k3 in the reward instead of k1
    measurements: int = Field(6, ge=1)  # times that PPO is measured while it trains; without a penalty at every update
    n_heldout: int = Field(500, ge=1)  # comparisons to measure the reward model's accuracy on
    reward_model: RewardModelConfig = RewardModelConfig(epochs=4)  # of the one; seed and precision are the study's
    # A constant learning rate: a run that is stopped early is then the same as a shorter one.
    ppo: PPOConfig = PPOConfig(  # of every unit, but for what it varies; seed, precision, max_new_tokens: the study's
        updates=30, batch_size=64, lr=2e-4, decay="off", kl_coef=0.2, kl_horizon=128
    )

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if self.coefficients[0] or sorted({*self.coefficients}) != self.coefficients:
            raise ValueError(
                "'coefficients' begin with 0 and ascend: the run without a penalty is what others are laid on"
            )
        if self.ppo.updates % self.measurements:
            raise ValueError(f"ppo.updates is {self.ppo.updates}, no multiple of 'measurements' ({self.measurements})")
        refuse_other_losses(self)
        refuse_shared(self, ("reward_model", "ppo"), "units")
        return self
