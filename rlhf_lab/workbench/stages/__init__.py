"""The parameters of each notebook: the settings of its room and those that every run has.

A notebook's parameters cell holds exactly the fields of its model here; a test compares them.
"""

from rlhf_lab.workbench.stages.algorithms import AlgorithmsStage, Method
from rlhf_lab.workbench.stages.base import RunConfig, StageConfig, TrainingStage, begin, follow, settle_precision
from rlhf_lab.workbench.stages.compare import CompareStage
from rlhf_lab.workbench.stages.ensembles import Combination, EnsemblesStage
from rlhf_lab.workbench.stages.feedback_loops import FeedbackLoopsStage, LoopArm
from rlhf_lab.workbench.stages.human_feedback import Arm, HumanFeedbackStage
from rlhf_lab.workbench.stages.judge_bias import JudgeBiasStage
from rlhf_lab.workbench.stages.kl_coefficient import KLCoefficientStage
from rlhf_lab.workbench.stages.length_bias import LengthBiasStage, Remedy
from rlhf_lab.workbench.stages.live import LiveStage
from rlhf_lab.workbench.stages.overoptimisation import OverOptimisationStage
from rlhf_lab.workbench.stages.pipeline import PPOStage, PretrainStage, RewardModelStage, SFTStage
from rlhf_lab.workbench.stages.ppo_details import PPODetailsStage
from rlhf_lab.workbench.stages.reward_models import RankedLoss, RewardModelsStage
from rlhf_lab.workbench.stages.synthetic_feedback import AlmostLabels, JudgeLabels, SyntheticFeedbackStage

STAGES: dict[str, type[RunConfig]] = {
    "00_pretrain": PretrainStage,
    "01_sft": SFTStage,
    "02_reward_model": RewardModelStage,
    "03_ppo": PPOStage,
    "04_judge_bias": JudgeBiasStage,
    "05_algorithms": AlgorithmsStage,
    "06_synthetic_feedback": SyntheticFeedbackStage,
    "07_compare_runs": CompareStage,
    "08_human_feedback": HumanFeedbackStage,
    "09_live": LiveStage,
    "10_overoptimisation": OverOptimisationStage,
    "11_kl_coefficient": KLCoefficientStage,
    "12_reward_models": RewardModelsStage,
    "13_ensembles": EnsemblesStage,
    "14_length_bias": LengthBiasStage,
    "15_ppo_details": PPODetailsStage,
    "16_feedback_loops": FeedbackLoopsStage,
}
"""Notebook stem -> the model of its parameters."""

__all__ = [
    "STAGES",
    "AlgorithmsStage",
    "AlmostLabels",
    "Arm",
    "Combination",
    "CompareStage",
    "EnsemblesStage",
    "FeedbackLoopsStage",
    "HumanFeedbackStage",
    "JudgeBiasStage",
    "JudgeLabels",
    "KLCoefficientStage",
    "LengthBiasStage",
    "LiveStage",
    "LoopArm",
    "Method",
    "OverOptimisationStage",
    "PPODetailsStage",
    "PPOStage",
    "PretrainStage",
    "RankedLoss",
    "RewardModelStage",
    "RewardModelsStage",
    "Remedy",
    "RunConfig",
    "SFTStage",
    "StageConfig",
    "SyntheticFeedbackStage",
    "TrainingStage",
    "begin",
    "follow",
    "settle_precision",
]
