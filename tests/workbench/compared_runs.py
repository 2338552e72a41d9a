"""Runs with planted numbers, written as the notebooks write them, for the tests of comparing."""

from pathlib import Path
from typing import Any

from rlhf_lab.config import Config
from rlhf_lab.workbench.runs import Run
from rlhf_lab.workbench.tracking import TrackingConfig


class Settings(Config):
    """What a stage may be set to."""

    lr: float = 0.5
    kl_coef: float = 0.1
    policy: str = ""
    reward: str = ""
    labeler: dict[str, Any] = {}
    sizes: list[int] = []
    seed: int = 0
    run_dir: str = ""


def make_run(name: str, *, seed: int = 0, results=None, metrics=(), samples=(), tags=(), **settings) -> Path:
    """A finished run at `runs/<name>`, `experiment/stage/id`; without results one that failed.

    metrics: (step, {name: value}) pairs. samples: rows.
    """
    experiment, stage, _ = name.split("/")
    run_dir = f"runs/{name}"
    config = Settings(seed=seed, run_dir=run_dir, **settings)
    tracking = TrackingConfig(mode="disabled", tags=list(tags))
    run = Run.start(stage, config, run_dir=run_dir, experiment=experiment, seed=seed, tracking=tracking)
    for step, values in metrics:
        run.log(values, step=step)
    if samples:
        run.log_samples(list(samples), step=metrics[-1][0] if metrics else 1)
    if results is None:
        run.fail("loss is NaN")
    else:
        run.finish(results)
    return Path(run_dir)


def sweep() -> None:
    """Three values of kl_coef below `runs/kl/ppo`, each seed behind an SFT model of its own.

    gold: kl 0.1 is 1, 2, 3 with seeds 1, 2, 3; kl 0.2 is 2.5, 4.5, 10 with seeds 2, 3, 4; kl 0 is 7 with seed 1.
    """
    gold = {0.1: {1: 1.0, 2: 2.0, 3: 3.0}, 0.2: {2: 2.5, 3: 4.5, 4: 10.0}, 0.0: {1: 7.0}}
    sft = {seed: make_run(f"kl/sft/s{seed}", seed=seed, results={"eos_rate": 0.5}) for seed in (1, 2, 3, 4)}
    for kl, values in gold.items():
        for seed, value in values.items():
            metrics = [(step, {"objective/kl": value * step}) for step in (10, 20)]
            prompts = ["how ?", "why ?", "who ?"][:: 1 if seed % 2 else -1]
            rows = [{"prompt": p, "SFT": "old", "PPO": f"{p} {kl} {seed}", "PPO, gold": value} for p in prompts]
            results = {"gold": value, "gold_low": value - 1, "gold_high": value + 1, "eos_rate": 1.0}
            run = {"policy": str(sft[seed]), "kl_coef": kl, "tags": ["week 47"] if kl == 0.2 else []}
            make_run(f"kl/ppo/kl{kl}-s{seed}", seed=seed, results=results, metrics=metrics, samples=rows, **run)
