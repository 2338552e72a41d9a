"""The parameters of 10_overoptimisation."""

from pydantic import Field, PositiveInt

from rlhf_lab.sandbox.labelers import LabelerConfig
from rlhf_lab.training.reward_model import RewardModelConfig
from rlhf_lab.workbench.stages.base import StageConfig


class OverOptimisationStage(StageConfig):
    """10_overoptimisation: proxy and gold of the best of n, by size of data."""

    policy: str = "01_sft/reference.yaml"  # the SFT model
    comparisons: dict[PositiveInt, PositiveInt] = {60: 4, 250: 4, 1000: 2}  # comparisons -> epochs over them
    n_heldout: int = Field(500, ge=1)  # comparisons to measure accuracy on
    pool_size: int = Field(256, ge=2)  # replies to each held-out prompt
    eval_prompts: int = Field(128, ge=2)  # half of them choose the peak, the other half measure the fall from it
    max_new_tokens: int = Field(40, ge=1)
    labeler: LabelerConfig = LabelerConfig()
    reward_model: RewardModelConfig = RewardModelConfig()

    @property
    def n_train(self) -> int:
        """Prompts to compare replies on: some to spare, for a prompt answered twice alike is left out."""
        return max(self.comparisons) * 5 // 4
