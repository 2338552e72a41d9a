"""The parameters of 05_algorithms."""

from typing import Literal, Self, get_args

from pydantic import Field, model_validator

from rlhf_lab.data.loading import OnBad
from rlhf_lab.training.ppo import PPOConfig
from rlhf_lab.training.preference_tuning import DPOConfig, KTOConfig
from rlhf_lab.training.rejection_sampling import RAFTConfig
from rlhf_lab.workbench.stages.base import StageConfig

Method = Literal["ppo", "rloo", "grpo", "dr_grpo", "reinforce++", "dpo", "kto", "best_of_n", "raft"]


class AlgorithmsStage(StageConfig):
    """05_algorithms: the methods side by side, from one SFT model and one reward model, at one budget of replies."""

    policy: str = "auto"  # the SFT model: every method starts here, and the KL is to it
    reward: str = "auto"  # what every method is paid by: a reward-model run or path, `file.py:function`, or `gold`
    prompts: str = "sandbox"
    columns: dict[str, str] = {}
    on_bad: OnBad = "raise"
    methods: list[Method] = list(get_args(Method))
    replies: int = Field(3072, ge=2)  # the budget: what each method may sample and have scored
    batch_size: int = Field(128, ge=2)  # replies in an update of PPO and its relatives
    samples_per_prompt: int = Field(4, ge=2)  # of rloo, grpo and dr_grpo
    measurements: int = Field(3, ge=1)  # times that PPO and its relatives are measured while they train
    max_new_tokens: int = Field(40, ge=1)
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    online: PPOConfig = PPOConfig()  # of PPO and its relatives
    dpo: DPOConfig = DPOConfig()
    kto: KTOConfig = KTOConfig()
    raft: RAFTConfig = RAFTConfig()
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
        common = {"seed", "precision", "max_new_tokens", "batch_size", "samples_per_prompt", "updates", "prompts"}
        budgeted = {"online": common, "dpo": {"seed", "precision"}, "kto": {"seed", "precision"}, "raft": common}
        for name, taken in budgeted.items():
            part = getattr(self, name)
            given = part.model_fields_set & taken  # a resolved file holds the defaults too
            if wrong := sorted(n for n in given if getattr(part, n) != type(part).model_fields[n].default):
                raise ValueError(f"{name}.{wrong[0]} follows from the settings that all methods share: leave it out")
        return self
