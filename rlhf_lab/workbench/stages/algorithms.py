"""The parameters of 05_algorithms."""

from operator import attrgetter
from typing import Literal, Self, get_args

from pydantic import Field, ValidationError, model_validator

from rlhf_lab.data.loading import OnBad
from rlhf_lab.training.methods import METHODS
from rlhf_lab.training.ppo import PPOConfig
from rlhf_lab.training.ppo_config import GROUPED
from rlhf_lab.training.preference_tuning import DPOConfig, KTOConfig
from rlhf_lab.training.rejection_sampling import RAFTConfig
from rlhf_lab.workbench.stages.base import StageConfig
from rlhf_lab.workbench.stages.pipeline import PPOStage

Method = Literal["ppo", "rloo", "grpo", "dr_grpo", "reinforce++", "dpo", "kto", "best_of_n", "raft"]


class AlgorithmsStage(StageConfig):
    """05_algorithms: the methods side by side, from one SFT model and one reward model, at one budget of replies."""

    policy: str = "auto"  # the SFT model: every method starts here, and the KL is to it
    reward: str = "auto"  # what every method is paid by: a reward-model run or path, `file.py:function`, or `gold`
    prompts: str = "sandbox"  # a file or hub id with a column prompt; `eval_prompts`, at most a fifth, are held out
    columns: dict[str, str] = {}
    on_bad: OnBad = "raise"
    methods: list[Method] = list(get_args(Method))  # in the order in which they are run
    replies: int = Field(3072, ge=2)  # the budget: what each method may sample and have scored
    batch_size: int = Field(128, ge=2)  # replies in an update of PPO and its relatives
    samples_per_prompt: int = Field(4, ge=2)  # of rloo, grpo and dr_grpo
    measurements: int = Field(3, ge=1)  # times that PPO and its relatives are measured while they train
    max_new_tokens: int = Field(40, ge=1)
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    online: PPOConfig = PPOConfig()  # of PPO and its relatives
    dpo: DPOConfig = DPOConfig()  # of DPO; seed and precision are the stage's
    kto: KTOConfig = KTOConfig()  # of KTO; likewise
    raft: RAFTConfig = RAFTConfig()  # of RAFT; its prompts are as many as `replies` pays for in each round
    results: str = ""  # a .jsonl file: what it has of these settings is read, what is missing is run and appended
    resume: bool = False  # go on with the run in run_dir, behind the last method that it finished

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if self.reward == "yours":
            raise ValueError("reward 'yours' is for 03_ppo alone: write the function into a file, `file.py:function`")
        if self.replies % self.batch_size or self.batch_size % self.samples_per_prompt:
            raise ValueError("'replies' must be a multiple of 'batch_size', and that one of 'samples_per_prompt'")
        if self.replies % (self.raft.rounds * self.raft.k):
            raise ValueError("'replies' must be a multiple of raft.rounds * raft.k")
        if "best_of_n" in self.methods and self.replies < self.eval_prompts:
            raise ValueError("best_of_n spends 'replies' on the 'eval_prompts': it must not be the smaller number")
        both = {"seed", "precision"}
        common = both | {"max_new_tokens", "batch_size", "samples_per_prompt", "updates", "prompts"}
        budgeted = {"online": common | {*METHODS["ppo"]}, "dpo": both, "kto": both, "raft": common, "raft.sft": both}
        for name, taken in budgeted.items():
            part = attrgetter(name)(self)
            given = part.model_fields_set & taken  # a resolved file holds the defaults too
            if wrong := sorted(n for n in given if getattr(part, n) != type(part).model_fields[n].default):
                raise ValueError(f"{name}.{wrong[0]} follows from the methods, or from what they share: leave it out")
        for method in ["ppo", *self.methods]:  # all are measured by the settings of PPO
            if method in METHODS:
                self._refuse_misfit(method)
        return self

    def online_settings(self, method: str, reward: str = "auto") -> PPOStage:
        """The settings of PPO or a relative at this budget: its own on top of `online`."""
        per_prompt = self.samples_per_prompt if METHODS[method]["advantage"] in GROUPED else 1
        budget = {
            "updates": self.replies // self.batch_size,
            "batch_size": self.batch_size // per_prompt,
            "samples_per_prompt": per_prompt,
            "max_new_tokens": self.max_new_tokens,
            "precision": self.precision,
            "seed": self.seed,
            "reward": reward,
            "sandbox": self.sandbox,
        }
        return PPOStage(**(self.online.model_dump() | METHODS[method] | budget))

    def _refuse_misfit(self, method: str) -> None:
        try:
            self.online_settings(method)
        except ValidationError as error:
            why = error.errors()[0]["msg"].removeprefix("Value error, ")
            raise ValueError(f"online does not fit {method}: {why}") from None
