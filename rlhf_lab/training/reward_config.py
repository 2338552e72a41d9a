"""The settings of reward-model training."""

from typing import Literal, Self

from pydantic import Field, field_validator, model_validator

from rlhf_lab.config import Config

Loss = Literal["pairwise", "plackett_luce", "best_of_k", "regression", "bins"]


class RewardModelConfig(Config):
    """The settings of reward-model training.

    Losses on rankings, in nats: pairwise (InstructGPT eq. 1), plackett_luce, best_of_k (Ziegler et al. 2019, eq. 1).
    On ratings: regression, the squared error; bins, the cross-entropy over bins whose mean is the score.
    """

    loss: Loss = "pairwise"  # see above
    margin: float | Literal["column"] = 0.0  # by which the winner should lead; column: the data's, one per prompt
    label_smoothing: float = Field(0.0, ge=0, lt=0.5)  # share of comparisons held to be labelled the wrong way round
    bins: list[float] = [1.0, 2.0, 3.0, 4.0, 5.0]  # centres, ascending; ratings lie between the first and the last

    epochs: int = Field(1, ge=1)  # passes over the data
    batch_size: int = Field(16, ge=1)  # prompts in an optimizer step, each with all its ranked replies
    lr: float = Field(1e-3, ge=0)  # AdamW peak, decayed by a cosine to a tenth
    warmup_ratio: float = Field(0.05, ge=0, le=1)
    weight_decay: float = Field(0.0, ge=0)
    adam_eps: float = Field(1e-5, gt=0)  # AdamW's epsilon, in its denominator
    max_grad_norm: float = Field(1.0, gt=0)
    max_length: int = Field(256, ge=2)  # tokens of prompt and reply; the prompt is cut from the left
    reverse: bool = False  # train on reversed rankings: the sign error that one source's text describes
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    seed: int = 0

    @field_validator("margin")
    @classmethod
    def _leads(cls, value: float | str) -> float | str:
        if value != "column" and value < 0:
            raise ValueError("must be 0 or more, or 'column'")
        return value

    @field_validator("bins")
    @classmethod
    def _ascend(cls, value: list[float]) -> list[float]:
        if len(value) < 2 or any(a >= b for a, b in zip(value, value[1:], strict=False)):
            raise ValueError("must be at least two numbers in ascending order")
        return value

    @model_validator(mode="after")
    def _makes_sense(self) -> Self:
        for name in ("margin", "label_smoothing"):
            if self.loss != "pairwise" and getattr(self, name):
                raise ValueError(f"{name} belongs to loss 'pairwise': '{self.loss}' has none")
        return self

    @property
    def rated(self) -> bool:
        """Whether it learns from ratings rather than rankings."""
        return self.loss in ("regression", "bins")

    @property
    def head_bins(self) -> list[float] | None:
        """The bins that the head must have, for `load_scorer`; None for a head of one output."""
        return self.bins if self.loss == "bins" else None
