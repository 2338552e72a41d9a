"""The parameters of 16_feedback_loops."""

from typing import Literal, Self, get_args

from pydantic import Field, PositiveInt, model_validator

from rlhf_lab.config import Config
from rlhf_lab.training.ppo import PPOConfig
from rlhf_lab.training.reward_model import RewardModelConfig
from rlhf_lab.workbench.stages.base import refuse_other_losses, refuse_shared
from rlhf_lab.workbench.stages.study import StudyStage

LoopArm = Literal["offline", "online", "active"]
_ARMS = list(get_args(LoopArm))


class Source(Config):
    """Who labels: how they err besides what the common `labeler` does, what they cost, and where they are asked."""

    flip: float = Field(0.0, ge=0, le=1)  # share of labels that are turned round
    length_bias: float = 0.0  # logits per word more
    position_bias: float = 0.0  # logits for the reply shown first
    price: float = Field(1.0, gt=0)  # of a label, in labels of a person
    times: PositiveInt = 1  # this many times the common number of labels
    arms: list[LoopArm] = Field(  # pairs of the SFT model, of the last policy, or of these where members disagree most
        _ARMS, min_length=1
    )


class FeedbackLoopsStage(StudyStage):
    """16_feedback_loops: online against offline labels, uniform against active choice, noise against bias."""

    sources: dict[str, Source] = Field(  # name -> who labels
        {
            "human": Source(),
            "noisy_human": Source(flip=0.18),
            "judge": Source(length_bias=0.3, price=0.1),
            "judge_tenfold": Source(length_bias=0.3, price=0.1, times=10, arms=["offline"]),
            "human_tenfold": Source(times=10, arms=["offline"]),
        },
        min_length=1,
    )
    rounds: int = Field(2, ge=2)  # of labelling and learning; the arms differ from the second on
    labels: int = Field(64, ge=10)  # pairs to label in a round
    pool: int = Field(192, ge=1)  # prompts in a round, each with two replies: the pairs to choose from
    members: int = Field(2, ge=1, le=16)  # reward models of the ensemble, in every arm
    reward_model: RewardModelConfig = RewardModelConfig(epochs=2)  # of each member; seed, precision: the study's
    ppo: PPOConfig = PPOConfig(updates=15, batch_size=64, kl_coef=0.05)  # of every round; likewise, and max_new_tokens

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if self.labels > self.pool:
            raise ValueError(f"'labels' is {self.labels}, but the 'pool' that they are chosen from is {self.pool}")
        if self.members < 2 and any("active" in source.arms for source in self.sources.values()):
            raise ValueError("arm 'active' wants 'members' of 2 or more: one alone does not disagree")
        refuse_other_losses(self)
        refuse_shared(self, ("reward_model", "ppo"), "units")
        return self

    @property
    def units(self) -> dict[str, dict]:
        """Name -> what it has of its own."""
        return {
            f"{name}_{arm}": {"source": source.model_dump(exclude={"arms"}), "arm": arm}
            for name, source in self.sources.items()
            for arm in source.arms
        }
