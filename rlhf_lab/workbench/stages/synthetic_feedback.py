"""The parameters of 06_synthetic_feedback."""

from typing import Literal, Self, get_args

from pydantic import Field, NonNegativeInt, model_validator

from rlhf_lab.judges.feedback import Responder, check_ranking
from rlhf_lab.sandbox.labelers import LabelerConfig
from rlhf_lab.training.ppo import PPOConfig
from rlhf_lab.training.reward_model import RewardModelConfig
from rlhf_lab.training.sft import SFTConfig
from rlhf_lab.workbench.stages.base import StageConfig, refuse_other_losses, refuse_shared

AlmostLabels = Literal["rule", "filtered", "gold"]
JudgeLabels = Literal[
    "fair",
    "position_weaker_first",
    "position_stronger_first",
    "position_random",
    "position_swap",
    "length",
    "length_regression",
    "length_balance",
    "noise",
    "noise_votes",
]
_RESPONDERS = [("large", 3, "good"), ("medium", 3, "good"), ("medium", 1, "good"), ("small", 1, "good")]


class SyntheticFeedbackStage(StageConfig):
    """06_synthetic_feedback: ALMoST's rule, and a judge with its faults, instead of people who compare."""

    sizes: dict[Literal["small", "medium", "large"], str] = {  # what 00_pretrain makes of these, once for all seeds
        size: f"00_pretrain/{size}.yaml" for size in ("small", "medium", "large")
    }
    student: str = "sandbox"  # the base model that learns
    responders: list[Responder] = [  # best to worst by the rule
        *(Responder(size=size, shots=shots, demonstrations=quality) for size, shots, quality in _RESPONDERS),
        Responder(size="small", shots=1, demonstrations="poor"),
    ]
    shots: list[NonNegativeInt] = [0, 1, 3]  # worked examples along whose number the rule is measured
    n_demonstrations: int = Field(400, ge=10)  # of which the best and the worst tenth are the worked examples
    n_prompts: int = Field(100, ge=1)  # prompts whose replies are compared
    openings: list[str] = ["well well", "i think so", "perhaps", "it may change"]  # no reply may begin so
    as_is_pairs: int = Field(300, ge=1)  # comparisons of the reward model that was there before
    as_is_labeler: LabelerConfig = LabelerConfig(temperature=2.0)  # who labelled them
    n_self_play: int = Field(400, ge=1)  # prompts of the demonstrations that the best responder makes
    best_of: int = Field(4, ge=1)  # replies to each, of which the reward model keeps one
    almost: list[AlmostLabels] = list(get_args(AlmostLabels))  # chains of three stages, by who labels
    judges: list[JudgeLabels] = list(get_args(JudgeLabels))  # chains by a judge's labels
    judge_temperature: float = Field(0.5, ge=0)  # noise of every judge, in units of gold; 0: none
    position: float = 4.0  # logits of a biased judge for the reply shown first
    length: float = 0.3  # logits for each word more
    flip: float = Field(0.25, ge=0, le=1)  # share of a noisy judge's verdicts that are turned round
    votes: int = Field(5, ge=1)  # of the remedy against noise
    eval_prompts: int = Field(512, ge=1)  # held-out prompts on which responders, reward models and PPO are measured
    max_new_tokens: int = Field(40, ge=1)
    precision: Literal["auto", "fp32", "bf16"] = "fp32"
    sft: SFTConfig = SFTConfig()  # of the student on self-play; seed and precision are the stage's
    reward_model: RewardModelConfig = RewardModelConfig()  # of all of them; likewise
    ppo: PPOConfig = PPOConfig(updates=25, batch_size=64, kl_coef=0.15)  # of all chains; likewise, and max_new_tokens
    results: str = ""  # a .jsonl file: what it has of these settings is read, what is missing is run and appended
    resume: bool = False  # go on with the run in run_dir, behind the last chain that it finished

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if len(self.sizes) < 3:
            raise ValueError("sizes: give a model for each of small, medium and large")
        if len(self.responders) < 2 or 0 not in self.shots:
            raise ValueError("'responders' must be at least two, and 'shots' hold 0")
        check_ranking(self.responders)
        refuse_other_losses(self)
        refuse_shared(self, ("sft", "reward_model", "ppo"), "chains")
        return self
