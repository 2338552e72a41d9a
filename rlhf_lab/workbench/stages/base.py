"""What every stage's parameters have, and how a stage begins."""

from collections.abc import Callable, Sequence
from pathlib import Path

import pandas as pd
import torch
from pydantic import Field

from rlhf_lab.config import Config
from rlhf_lab.models import resolve_precision
from rlhf_lab.training.checkpoints import recorded
from rlhf_lab.training.processes import launched
from rlhf_lab.workbench.runs import Run
from rlhf_lab.workbench.tracking import TrackingConfig


class RunConfig(Config):
    """What every run has, also one that only looks at others."""

    experiment: str = "scratch"  # runs/<experiment>/<stage>/<run id>
    run_dir: str = ""  # "" = a new one under ./runs, or under RLHF_LAB_RUNS
    seed: int = Field(0, ge=0, lt=2**32)  # of everything random; the bounds are numpy's
    threads: int = Field(0, ge=0, le=1024)  # 0 = as many as torch takes
    tracking: TrackingConfig = TrackingConfig()  # wandb: project, entity, group, job_type, tags, notes, mode


class StageConfig(RunConfig):
    """What every run has that makes or measures a model."""

    sandbox: str = "default"  # the embedded world; "" = real models and data only
    eval_prompts: int = Field(256, ge=1)  # held-out prompts on which gold is measured


class TrainingStage(StageConfig):
    """What every run that trains has besides."""

    resume: bool = False  # go on with the run in run_dir, from its last checkpoint
    save_every: int = Field(50, ge=0)  # steps between checkpoints to resume from; 0 = only when stopped


def refuse_shared(cfg: Config, parts: Sequence[str], who: str) -> None:
    """Errors: `ValueError` for a part of the settings with a seed, precision or length of its own: `who` share them."""
    for name in parts:
        part = getattr(cfg, name)
        for field in part.model_fields_set & {"seed", "precision", "max_new_tokens"}:
            if getattr(part, field) != type(part).model_fields[field].default:
                raise ValueError(f"{name}.{field} follows from the settings that all {who} share: leave it out")


def refuse_other_losses(cfg: Config) -> None:
    """Errors: `ValueError` where the reward model has a loss that is not for comparisons."""
    if cfg.reward_model.loss != "pairwise":
        raise ValueError(f"reward_model.loss is '{cfg.reward_model.loss}', but comparisons are for 'pairwise'")


def begin(stage: str, cfg: RunConfig) -> Run:
    """Start a stage: threads, seeds, quiet libraries, and the run's directory."""
    import transformers

    if cfg.threads:  # two jobs with all threads each are ten times slower than one
        torch.set_num_threads(cfg.threads)
    transformers.set_seed(cfg.seed)
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    accelerator = launched()  # before torch is asked for a device
    pd.set_option("display.max_colwidth", 200, "display.max_rows", 200, "display.precision", 2)
    return Run.start(
        stage,
        cfg,
        run_dir=cfg.run_dir,
        experiment=cfg.experiment,
        seed=cfg.seed,
        tracking=cfg.tracking,
        resume=getattr(cfg, "resume", False),
        accelerator=accelerator,
    )


def settle_precision(cfg: StageConfig, model) -> StageConfig:
    """The settings with `auto` decided for this machine and model, and said, so that a repetition can name it."""
    before = recorded(Path(cfg.run_dir) / "training", "precision") if getattr(cfg, "resume", False) else None
    chosen = before or resolve_precision(cfg.precision, model)
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
