"""The parameters of 08_human_feedback."""

from typing import Literal, Self, get_args

from pydantic import Field, model_validator

from rlhf_lab.data.loading import OnBad
from rlhf_lab.sandbox.labelers import LabelerConfig
from rlhf_lab.training.ppo import PPOConfig
from rlhf_lab.training.reward_model import RewardModelConfig
from rlhf_lab.workbench.stages.base import StageConfig, refuse_other_losses, refuse_shared

Arm = Literal["online_disagreement", "online_uniform", "offline"]
FEWEST = 10  # labels that decide a pair, below which no reward model is trained


class HumanFeedbackStage(StageConfig):
    """08_human_feedback: label, train the reward model, PPO, choose new pairs, and label again."""

    policy: str = "auto"  # the SFT model: every round starts here, and the KL is to it
    prompts: str = "sandbox"  # a file or hub id with a column prompt; `eval_prompts`, at most a fifth, are held out
    columns: dict[str, str] = {}
    on_bad: OnBad = "raise"
    arms: list[Arm] = Field(list(get_args(Arm)), min_length=1)  # whose replies, and which pairs; the first one is yours
    rounds: int = Field(3, ge=1)  # of labelling and learning
    labels: int = Field(64, ge=FEWEST)  # pairs to label in a round
    pool: int = Field(192, ge=1)  # prompts in a round, each with two replies: the pairs to choose from
    members: int = Field(3, ge=1, le=16)  # reward models of the ensemble, in every arm
    annotator: str = Field("me", pattern=r"^\w[\w.-]*$")  # who labels the first arm when the notebook is watched
    repeat_share: float = Field(0.0, ge=0, le=1)  # of the pairs are shown a second time, for agreement with oneself
    labeler: LabelerConfig = LabelerConfig()  # the simulated one
    eval_prompts: int = Field(256, ge=1)  # held-out prompts on which every round is measured
    max_new_tokens: int = Field(40, ge=1)
    precision: Literal["auto", "fp32", "bf16"] = "fp32"
    reward_model: RewardModelConfig = RewardModelConfig(epochs=2)  # of each member; seed, precision: the stage's
    ppo: PPOConfig = PPOConfig(updates=15, batch_size=64, kl_coef=0.15)  # of every round; likewise, and max_new_tokens
    results: str = ""  # a .jsonl file: what it has of these settings is read, what is missing is run and appended
    resume: bool = False  # go on with the run in run_dir, with every label that it has

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if len(set(self.arms)) < len(self.arms):
            raise ValueError("'arms' names one twice")
        if self.labels > self.pool:
            raise ValueError(f"'labels' is {self.labels}, but the 'pool' that they are chosen from is {self.pool}")
        if "online_disagreement" in self.arms and self.members < 2:
            raise ValueError("arm 'online_disagreement' wants 'members' of 2 or more: one alone does not disagree")
        refuse_other_losses(self)
        refuse_shared(self, ("reward_model", "ppo"), "arms")
        return self
