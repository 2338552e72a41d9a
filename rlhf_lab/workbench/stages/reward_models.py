"""The parameters of 12_reward_models."""

from typing import Literal, Self

from pydantic import Field, PositiveInt, model_validator

from rlhf_lab.training.reward_model import RewardModelConfig
from rlhf_lab.workbench.stages.base import refuse_shared
from rlhf_lab.workbench.stages.study import StudyStage

RankedLoss = Literal["pairwise", "plackett_luce", "best_of_k"]


class RewardModelsStage(StudyStage):
    """12_reward_models: what makes a reward model better, one thing changed at a time."""

    comparisons: dict[PositiveInt, PositiveInt] = Field(  # to learn from -> epochs over them
        {30: 4, 60: 4, 120: 4, 240: 2, 480: 2, 960: 2}, min_length=1
    )
    fixed: int = Field(480, ge=1)  # comparisons where something else is varied; one of the above
    epochs: list[PositiveInt] = [1, 4]  # over these, instead of their own
    trunks: dict[str, str] = {  # what else a reward model starts from than the SFT model: what 00_pretrain makes
        **{size: f"00_pretrain/{size}.yaml" for size in ("small", "medium", "large")},
        "base": "sandbox",  # the base model that the SFT model was
    }
    flips: list[float] = [0.1, 0.2, 0.3, 0.4, 0.5]  # share of the labels that are turned round
    k: int = Field(4, ge=3, le=9)  # replies ranked for a prompt where it is more than two
    losses: list[RankedLoss] = ["pairwise", "plackett_luce", "best_of_k"]  # for those rankings
    n_heldout: int = Field(500, ge=1)  # comparisons to measure accuracy and calibration on
    n: int = Field(64, ge=2)  # of the best of n
    pool_size: int = Field(128, ge=2)  # replies to each held-out prompt
    eval_prompts: int = Field(64, ge=1)  # held-out prompts of the pool

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if self.fixed not in self.comparisons:
            raise ValueError(f"'fixed' is {self.fixed}, which is not one of 'comparisons' {list(self.comparisons)}")
        if self.losses and (2 * self.fixed % self.k or self.fixed % self.pairs_of_k):
            raise ValueError(
                f"rankings of {self.k} cannot equal {self.fixed} comparisons: 'fixed' must divide by "
                f"{self.pairs_of_k}, and twice it by {self.k}"
            )
        if self.n > self.pool_size or self.n & (self.n - 1):
            raise ValueError(f"'n' is {self.n}: it must be a power of 2 and at most 'pool_size', {self.pool_size}")
        if bad := [flip for flip in self.flips if not 0 < flip <= 1]:
            raise ValueError(f"flips: {bad[0]} is not above 0 and at most 1")
        if self.reward_model.loss != "pairwise":
            raise ValueError("reward_model.loss is what 'losses' vary: leave it at 'pairwise'")
        if self.reward_model.epochs != RewardModelConfig().epochs:
            raise ValueError("reward_model.epochs is what 'comparisons' say for each size: leave it out")
        refuse_shared(self, ("reward_model",), "units")
        return self

    @property
    def pairs_of_k(self) -> int:
        """The comparisons that a ranking of k replies implies."""
        return self.k * (self.k - 1) // 2
