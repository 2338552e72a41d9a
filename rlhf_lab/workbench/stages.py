"""The parameters of each notebook: the settings of its room and those that every run has.

A notebook's parameters cell holds exactly the fields of its model here; a test compares them.
"""

from collections.abc import Callable

import pandas as pd
import torch
from pydantic import Field, PositiveInt

from rlhf_lab.config import Config
from rlhf_lab.data.loading import OnBad
from rlhf_lab.judges.replay import ReplayConfig
from rlhf_lab.judges.simulated import SimulatedJudgeConfig
from rlhf_lab.models import resolve_precision
from rlhf_lab.sandbox.labelers import LabelerConfig
from rlhf_lab.training.ppo import PPOConfig
from rlhf_lab.training.pretraining import PretrainConfig
from rlhf_lab.training.reward_model import RewardModelConfig
from rlhf_lab.training.sft import SFTConfig
from rlhf_lab.workbench.learned_judge import LearnedJudgeConfig
from rlhf_lab.workbench.runs import Run
from rlhf_lab.workbench.tracking import TrackingConfig


class StageConfig(Config):
    """What every run has."""

    experiment: str = "scratch"  # runs/<experiment>/<stage>/<run id>
    run_dir: str = ""  # "" = a new one under ./runs, or under RLHF_LAB_RUNS
    sandbox: str = "default"  # the embedded world; "" = real models and data only
    eval_prompts: int = Field(256, ge=1)  # held-out prompts on which gold is measured
    seed: int = Field(0, ge=0, lt=2**32)  # what numpy takes
    threads: int = Field(0, ge=0, le=1024)  # 0 = as many as torch takes
    tracking: TrackingConfig = TrackingConfig()  # wandb: project, entity, group, job_type, tags, notes, mode


class PretrainStage(StageConfig, PretrainConfig):
    """00_pretrain: a base model from scratch."""

    documents: int = Field(40000, ge=1)  # pretraining documents of up to five worked examples


class SFTStage(StageConfig, SFTConfig):
    """01_sft: from base model to SFT model."""

    model: str = "sandbox"  # the base: a path, a hub id, or the sandbox's own
    demonstrations: str = "sandbox"  # a file or hub id with columns prompt and completion
    columns: dict[str, str] = {}  # our column name -> theirs
    on_bad: OnBad = "raise"  # rows that cannot be used, or held-out ones that were learned from: raise | drop
    n_demonstrations: int = Field(1000, ge=1)
    prompts: str = "sandbox"  # held-out prompts to answer before and after
    max_new_tokens: int = Field(40, ge=1)


class RewardModelStage(StageConfig, RewardModelConfig):
    """02_reward_model: from ranked replies to a reward model."""

    policy: str = "auto"  # the SFT model: it answers the prompts and starts the reward model; "auto" = newest run
    preferences: str = "sandbox"  # a file or hub id with prompt, chosen, rejected, or prompt, completions, ranks
    columns: dict[str, str] = {}
    on_bad: OnBad = "raise"
    heldout: str = "sandbox"  # comparisons to test on, in the same format
    demonstrations: str = "sandbox"  # replies whose mean score becomes 0
    n_prompts: int = Field(2000, ge=1)  # prompts with ranked replies
    n_heldout: int = Field(500, ge=1)
    k: int = Field(4, ge=2, le=9)  # replies ranked for each prompt
    max_new_tokens: int = Field(40, ge=1)
    labeler: LabelerConfig = LabelerConfig()


class PPOStage(StageConfig, PPOConfig):
    """03_ppo: from SFT model and reward model to the aligned policy."""

    policy: str = "auto"  # the SFT model; it is also the frozen reference
    reward: str = "auto"  # a reward-model run or path, `file.py:function`, or `gold`
    critic: str = "reward"  # started from: reward | policy | shared (on the policy's trunk), or a path
    pretraining: str = "sandbox"  # texts for ptx_coef: a file or hub id with a column text
    prompts: str = "sandbox"
    columns: dict[str, str] = {}
    on_bad: OnBad = "raise"
    eval_every: int = Field(10, ge=1)  # updates between measurements on the held-out prompts


class JudgeBiasStage(StageConfig):
    """04_judge_bias: how far a judge can be trusted."""

    policy_a: str = "auto"  # the PPO policy
    policy_b: str = "auto"  # the SFT model
    reward: str = "auto"  # the reward model, as a judge
    prompts: str = "sandbox"
    columns: dict[str, str] = {}
    on_bad: OnBad = "raise"
    repeats: int = Field(1, ge=1)  # how often each judge is asked the same
    judge: SimulatedJudgeConfig = SimulatedJudgeConfig(position=1.0, length=0.1, temperature=0.5)
    learned: LearnedJudgeConfig | None = LearnedJudgeConfig()  # judges that are trained here
    recorded: ReplayConfig | None = None  # stored verdicts to analyse as well
    max_new_tokens: int = Field(40, ge=1)


class OverOptimisationStage(StageConfig):
    """10_overoptimisation: proxy and gold of the best of n, by size of data."""

    policy: str = "01_sft/reference.yaml"  # the SFT model
    comparisons: dict[PositiveInt, PositiveInt] = {60: 4, 250: 4, 1000: 2}  # comparisons -> epochs over them
    n_heldout: int = Field(500, ge=1)  # comparisons to measure accuracy on
    pool_size: int = Field(256, ge=2)  # replies to each held-out prompt
    eval_prompts: int = Field(128, ge=2)  # half of them choose the peak, the other half measure the fall from it
    max_new_tokens: int = Field(40, ge=1)
    labeler: LabelerConfig = LabelerConfig()
    reward_model: RewardModelConfig = RewardModelConfig()

    @property
    def n_train(self) -> int:
        """Prompts to compare replies on: some to spare, for a prompt answered twice alike is left out."""
        return max(self.comparisons) * 5 // 4


STAGES: dict[str, type[StageConfig]] = {
    "00_pretrain": PretrainStage,
    "01_sft": SFTStage,
    "02_reward_model": RewardModelStage,
    "03_ppo": PPOStage,
    "04_judge_bias": JudgeBiasStage,
    "10_overoptimisation": OverOptimisationStage,
}
"""Notebook stem -> the model of its parameters."""


def begin(stage: str, cfg: StageConfig) -> Run:
    """Start a stage: threads, seeds, quiet libraries, and the run's directory."""
    import transformers

    if cfg.threads:  # two jobs with all threads each are ten times slower than one
        torch.set_num_threads(cfg.threads)
    transformers.set_seed(cfg.seed)
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    pd.set_option("display.max_colwidth", 200, "display.max_rows", 200, "display.precision", 2)
    return Run.start(stage, cfg, run_dir=cfg.run_dir, experiment=cfg.experiment, seed=cfg.seed, tracking=cfg.tracking)


def settle_precision(cfg: StageConfig, model) -> StageConfig:
    """The settings with `auto` decided for this machine and model, and said, so that a repetition can name it."""
    chosen = resolve_precision(cfg.precision, model)
    print(f"precision: {chosen}" + (" (auto)" if cfg.precision == "auto" else ""))
    return cfg.model_copy(update={"precision": chosen})


def follow(run: Run, live, doing: str) -> Callable[[dict], None]:
    """A callback that sends a trainer's figures to the run and redraws the curves."""

    def on_log(figures: dict) -> None:
        step, steps = figures.pop("global_step"), figures.pop("max_steps")
        run.log(figures, step=step)
        loss = figures.get("train/loss")
        run.progress(step, steps, doing + (f", loss {loss:.2f}" if loss is not None else ""))
        live.update()

    return on_log
