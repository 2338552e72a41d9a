"""The parameters of the pipeline's own notebooks: pretraining, SFT, reward model, PPO."""

from typing import Literal, Self

from pydantic import Field, PositiveInt, model_validator

from rlhf_lab.data.loading import OnBad
from rlhf_lab.models import LoraConfig
from rlhf_lab.models.adapters import Lora
from rlhf_lab.sandbox.labelers import LabelerConfig
from rlhf_lab.training.byte_pairs import BYTES
from rlhf_lab.training.ppo import PPOConfig
from rlhf_lab.training.pretraining import PretrainConfig
from rlhf_lab.training.reward_model import RewardModelConfig
from rlhf_lab.training.sft import SFTConfig
from rlhf_lab.workbench.stages.base import TrainingStage


class PretrainStage(TrainingStage, PretrainConfig):
    """00_pretrain: a base model from scratch."""

    save_every: int = Field(200, ge=0)  # steps between checkpoints to resume from; 0 = only when stopped
    text: str = "sandbox"  # .txt or .md files, or a column of any data set; the last tenth is measured on
    columns: dict[str, str] = {}
    on_bad: OnBad = "raise"
    vocab_size: int = Field(4096, ge=BYTES)  # tokens of the tokenizer that is trained on a text of one's own
    documents: int = Field(40000, ge=1)  # at most so many; in the sandbox of up to five worked examples each


class SFTStage(TrainingStage, SFTConfig):
    """01_sft: from base model to SFT model."""

    model: str = "sandbox"  # the base: a path, a hub id, or the sandbox's own
    demonstrations: str = "sandbox"  # a file or hub id with columns prompt and completion, or chosen and rejected
    columns: dict[str, str] = {}  # our column name -> theirs
    on_bad: OnBad = "raise"  # rows that cannot be used, or held-out ones that were learned from: raise | drop
    n_demonstrations: int = Field(1000, ge=1)  # at most so many are read, those that prompts `split` holds back too
    prompts: str = "sandbox"  # held-out prompts to answer before and after; "split" = some of the demonstrations'
    max_new_tokens: int = Field(40, ge=1)
    lora: Lora = None  # {} = the whole model; {rank: 8} = an adapter


class RewardModelStage(TrainingStage, RewardModelConfig):
    """02_reward_model: from ranked or rated replies to a reward model."""

    policy: str = "auto"  # the SFT model: it answers the prompts and starts the reward model; "auto" = newest run
    model: str = ""  # what starts it instead: a path or hub id, an encoder too; policy may then be ""
    preferences: str = "sandbox"  # a file or hub id with prompt, chosen, rejected, or prompt, completions, ranks
    columns: dict[str, str] = {}
    on_bad: OnBad = "raise"
    ratings: str = "sandbox"  # for losses regression and bins: a file or hub id with prompt, completion, rating
    heldout: str = "sandbox"  # comparisons to test on, in the format of preferences; "split" = n_heldout of these
    demonstrations: str = "sandbox"  # replies whose mean score becomes 0; "" = none, for another normalise
    normalise: Literal["off", "demonstrations", "reference"] = "demonstrations"  # what sets the scores' zero, and unit
    reference_replies: int = Field(512, ge=2)  # of the SFT model, for normalise `reference`
    members: int = Field(1, ge=1, le=16)  # reward models of an ensemble; heads and order of the data differ
    learning_curve: list[PositiveInt] = []  # sizes of data to train further reward models on
    n_prompts: int = Field(2000, ge=1)  # prompts with ranked replies
    n_heldout: int = Field(500, ge=1)  # held-out prompts with ranked replies, in the sandbox two replies each
    k: int = Field(4, ge=2, le=9)  # replies ranked for each prompt
    max_new_tokens: int = Field(40, ge=1)
    reversed_too: bool = True  # also train on the reversed ranking, to be shown what that does
    labeler: LabelerConfig = LabelerConfig()  # who ranks and rates in the sandbox; held-out ranks lack its biases
    lora: Lora = None  # an adapter and a head instead of the whole model

    @model_validator(mode="after")
    def _fits(self) -> Self:
        _refuse_dropout(self.lora)
        if not self.demonstrations and self.normalise == "demonstrations":
            raise ValueError("normalise 'demonstrations' needs demonstrations; give some, or normalise: off")
        if not self.policy and (not self.model or self.needs_policy):
            raise ValueError("policy is \"\": give 'model' and preferences of your own, and no normalise 'reference'")
        if self.heldout == "split" and (self.rated or self.preferences == "sandbox"):
            raise ValueError("heldout 'split' divides comparisons of your own; give 'preferences'")
        return self

    @property
    def needs_policy(self) -> bool:
        """Whether the policy must answer prompts, besides perhaps starting the reward model."""
        return "sandbox" in (self.preferences, self.heldout) or self.normalise == "reference"


class PPOStage(TrainingStage, PPOConfig):
    """03_ppo: from SFT model and reward model to the aligned policy."""

    policy: str = "auto"  # the SFT model; it is also the frozen reference
    reward: str | dict[str, float] = "auto"  # a run or path, `file.py:function`, `gold`, or several: name -> weight
    reward_mode: Literal["mean", "worst", "uncertainty"] = "mean"  # how the members of an ensemble become one score
    uncertainty_coef: float = Field(0.5, ge=0)  # of the members' variance, for `uncertainty`
    critic: str = "reward"  # started from: reward | policy | shared (on the policy's trunk), or a path
    pretraining: str = "sandbox"  # texts for ptx_coef: a file or hub id with a column text
    prompts: str = "sandbox"  # a file or hub id with a column prompt; `eval_prompts`, at most a fifth, are held out
    columns: dict[str, str] = {}
    on_bad: OnBad = "raise"
    max_length: int = Field(0, ge=0)  # tokens of prompt and reply; a longer prompt is bad; 0 = the model's context
    eval_every: int = Field(10, ge=1)  # updates between measurements on the held-out prompts
    save_every: int = Field(10, ge=0)  # updates between checkpoints to resume from
    lora: Lora = None  # policy and critic as adapters on one base, with the reference and perhaps the reward model

    @model_validator(mode="after")
    def _adapters_fit(self) -> Self:
        _refuse_dropout(self.lora)
        if self.lora is not None and self.critic == "shared":
            raise ValueError("critic 'shared' with lora: all roles are on one base already; use 'reward' or 'policy'")
        return self


def _refuse_dropout(lora: LoraConfig | None) -> None:
    if lora is not None and lora.dropout:
        raise ValueError(f"lora.dropout {lora.dropout} would make scores and ratios random: it must be 0 here")
