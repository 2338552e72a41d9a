"""What the parameters of the studies share, 10 and on."""

from typing import Literal

from pydantic import Field

from rlhf_lab.sandbox.labelers import LabelerConfig
from rlhf_lab.training.reward_model import RewardModelConfig
from rlhf_lab.workbench.stages.base import StageConfig


class StudyStage(StageConfig):
    """A study: units that each take a while, such as one setting, kept in `results` as they are finished."""

    policy: str = "01_sft/reference.yaml"  # the SFT model
    labeler: LabelerConfig = LabelerConfig()  # the simulated one; its seed is added to the run's
    reward_model: RewardModelConfig = RewardModelConfig()  # of all of them; seed and precision are the study's
    max_new_tokens: int = Field(40, ge=1)
    precision: Literal["auto", "fp32", "bf16"] = "fp32"
    results: str = ""  # a .jsonl file: what it has of these settings is read, what is missing is run and appended
