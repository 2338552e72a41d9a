"""A run as it is compared: ours from its directory, a foreign one from the files of wandb."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from rlhf_lab.errors import LabError
from rlhf_lab.workbench.comparing.settings import flat, read_config, settings_of, settings_of_run
from rlhf_lab.workbench.records import read_json, read_metrics, read_samples, read_status, runs_root
from rlhf_lab.workbench.report.figures import plain_numbers

if TYPE_CHECKING:
    from rlhf_lab.workbench.comparing.wandb_files import WandbRun

NOT_STEPS = {"time", "not_finite"}
SEEDS = ("seed", "random_seed")


@dataclass(frozen=True, eq=False)
class ComparedRun:
    """One run. `x` is the column of `metrics` that holds its own step; `seeds` are those of its inputs."""

    name: str
    path: Path
    experiment: str
    stage: str
    group: str
    tags: tuple[str, ...]
    seed: Any
    state: str
    seconds: float | None
    started: str
    settings: dict[str, Any]
    results: dict[str, float]
    x: str = ""
    commit: str = ""
    seeds: dict[str, Any] = field(default_factory=dict)
    metrics: pd.DataFrame = field(default_factory=pd.DataFrame)
    samples: pd.DataFrame = field(default_factory=pd.DataFrame)


def read_run(run_dir: Path) -> ComparedRun:
    """One of our runs. Errors: `LabError` where its status, config, metrics, samples or results cannot be read."""
    status = read_status(run_dir)
    if status.state == "queued":
        raise LabError(f"{run_dir} has not begun")
    content = read_config(run_dir)
    settings = settings_of_run(run_dir)
    metrics = read_metrics(run_dir)
    tracking = _mapping(content.get("tracking"))
    git = _mapping(content.get("git"))
    return ComparedRun(
        name=_name(run_dir),
        path=run_dir,
        experiment=status.experiment,
        stage=status.stage,
        group=str(tracking.get("group") or status.experiment),
        tags=tuple(map(str, tracking.get("tags") or ())),
        seed=content.get("seed"),
        state=status.state,
        seconds=status.seconds,
        started=status.started,
        settings=settings.values,
        results=plain_numbers(_results(run_dir / "results.json")),
        x=next((name for name in metrics if name not in NOT_STEPS), ""),  # `Run.log` writes the step first
        commit=f"{git.get('commit') or ''}"[:10] + "-dirty" * bool(git.get("dirty")),
        seeds=settings.seeds,
        metrics=metrics,
        samples=read_samples(run_dir),
    )


def from_wandb(run: "WandbRun") -> ComparedRun:
    """A run that wandb kept, ours or anybody's. Its results are what its summary has beyond the logged metrics."""
    path = run.paths[0]
    config = {key: value for key, value in run.config.items() if key not in ("run", "_wandb")}
    facts = _mapping(run.config.get("run"))
    ours = next((folder for folder in path.parents if (folder / "status.json").is_file()), path)
    settings = settings_of(config, ours, Path(str(facts.get("directory") or ".")))
    seed = next((key for key in flat(config, "") if key.rsplit(".", 1)[-1] in SEEDS), "")
    numbers = plain_numbers({key: value for key, value in run.summary.items() if not key.startswith("_")})
    results = {key: value for key, value in numbers.items() if key not in run.metrics}
    return ComparedRun(
        name=f"wandb/{run.name or run.id}",
        path=path,
        experiment=str(facts.get("experiment") or run.group or run.project),
        stage=str(facts.get("stage") or run.job_type),
        group=run.group,
        tags=run.tags,
        seed=flat(config, "").get(seed),
        state=run.state,
        seconds=_number(run.summary.get("_runtime")),
        started=str(facts.get("started") or ""),
        settings={key: value for key, value in settings.values.items() if f".{key}" != seed},
        results=results or numbers,
        x=run.x,
        seeds=settings.seeds,
        metrics=run.metrics,
        samples=run.samples.get("samples", next(iter(run.samples.values()), pd.DataFrame())),
    )


def _results(file: Path) -> dict[str, Any]:
    """Errors: `LabError` where the file is broken, for that is no run without results."""
    found = read_json(file)
    if not found and file.is_file() and file.read_bytes().split() != [b"{}"]:
        raise LabError(f"{file} is broken: it is not a JSON object; mend or delete it")
    return found


def _name(run_dir: Path) -> str:
    """As `rlhf-lab status` shows it, or the path where it lies elsewhere."""
    root = runs_root().absolute()
    return str(run_dir.relative_to(root)) if run_dir.is_relative_to(root) else str(run_dir)


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}


def _number(value: Any) -> float | None:
    return float(value) if isinstance(value, int | float) else None
