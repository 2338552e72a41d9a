"""The parameters of 14_length_bias."""

from typing import Literal, Self, get_args

from pydantic import Field, model_validator

from rlhf_lab.config import Config
from rlhf_lab.training.ppo import PPOConfig
from rlhf_lab.training.reward_model import RewardModelConfig
from rlhf_lab.workbench.stages.base import refuse_other_losses, refuse_shared
from rlhf_lab.workbench.stages.study import StudyStage

Remedy = Literal["none", "balanced", "fewer", "like_length", "penalty", "omit"]
_ALL = list(get_args(Remedy))
_NOT_IN_OMIT = ("score_scaling", "kl_control", "critic_warmup", "warmup", "decay", "ema", "ptx_coef")


class Taste(Config):
    """What labelers care for."""

    length_bias: float = 0.0  # logits per word more, besides those of the common `labeler`
    world: str = ""  # whose gold and people; "" = those of `sandbox`
    remedies: list[Remedy] = Field(_ALL, min_length=1)  # that are tried with their labels


class LengthBiasStage(StudyStage):
    """14_length_bias: how much of what PPO gains is length, and what helps."""

    labelers: dict[str, Taste] = Field(  # name -> what these labelers care for, and what is done about it
        {
            "fair": Taste(remedies=["none", "penalty"]),
            "likes_length": Taste(length_bias=0.3),
            "misspecified": Taste(world="misspecified", remedies=["none", "balanced", "fewer", "penalty"]),
        },
        min_length=1,
    )
    comparisons: int = Field(500, ge=1)  # labelled ones; balancing leaves some of them out
    candidates: int = Field(1500, ge=1)  # pairs of replies of which `like_length` takes those of least difference
    penalty: float = Field(0.1, ge=0)  # standard deviations of the score for each word
    longest: int = Field(16, ge=2)  # tokens; what is longer is left out of PPO's batches under `omit`
    bin_width: int = Field(4, ge=1)  # words; the split at other widths is kept besides
    reward_model: RewardModelConfig = RewardModelConfig(epochs=2)  # of every unit; seed, precision: the study's
    ppo: PPOConfig = PPOConfig(updates=20, batch_size=64, kl_coef=0.15)  # likewise, and max_new_tokens

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if self.comparisons > self.candidates:
            raise ValueError(f"'comparisons' is {self.comparisons}, but 'candidates' only {self.candidates}")
        omits = any("omit" in taste.remedies for taste in self.labelers.values())
        for name in _NOT_IN_OMIT if omits else ():
            if getattr(self.ppo, name) != PPOConfig.model_fields[name].default:
                raise ValueError(f"ppo.{name} is not for remedy 'omit', whose loop is plain: leave one of them out")
        refuse_other_losses(self)
        refuse_shared(self, ("reward_model", "ppo"), "units")
        return self

    @property
    def units(self) -> dict[str, dict]:
        """Name -> what it has of its own."""
        return {
            f"{name}_{remedy}": {"labeler": taste.model_dump(exclude={"remedies"}), "remedy": remedy}
            for name, taste in self.labelers.items()
            for remedy in taste.remedies
        }
