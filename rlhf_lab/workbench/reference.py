"""Recorded results: one line for each finished seed, and their mean with the seed as the unit.

A line is appended when a run has ended well and never changed. What a README says is read off these files.
"""

import json
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pandas as pd

from rlhf_lab.errors import LabError
from rlhf_lab.workbench.experiments.record import ExperimentRecord, StageRecord
from rlhf_lab.workbench.intervals import mean_interval
from rlhf_lab.workbench.records import read_jsonl
from rlhf_lab.workbench.run_directory import hardware
from rlhf_lab.workbench.writing import append_line, make_folder

_STUDIES = "rlhf_lab.workbench.studies"


def record_results(experiment: ExperimentRecord, file: str | Path) -> None:
    """Append a finished experiment's results to a file of recorded results, of a sweep over seeds a line for each.

    Errors: `LabError` if it did not finish, or if its sweep is over more than seeds.
    """
    if experiment.state != "done":
        raise LabError(f"{experiment.experiment} is {experiment.state}; only a finished run is recorded in {file}")
    lines = [_line(experiment, seed, stages) for seed, stages in _seeds(experiment)]
    make_folder(Path(file).parent)
    for line in lines:
        append_line(Path(file), line)


def _seeds(experiment: ExperimentRecord) -> list[tuple[Any, list[StageRecord]]]:
    if not experiment.points:
        return [(experiment.seed, experiment.stages)]
    for values, _ in experiment.points:
        if other := [key for key in values if key.rsplit(".", 1)[-1] != "seed"]:
            raise LabError(f"{experiment.file}: sweeps over {other[0]}; only a sweep over seeds alone is recorded")
    return [(next(iter(values.values())), stages) for values, stages in experiment.points]


def _line(experiment: ExperimentRecord, seed: Any, stages: list[StageRecord]) -> dict[str, Any]:
    seconds = sum(stage.seconds or 0.0 for stage in stages)
    return {
        "seed": seed,
        "experiment": experiment.experiment,
        "command": experiment.command,
        "commit": experiment.commit,
        "hardware": hardware(),
        "seconds": round(seconds or experiment.seconds, 1),
        "results": {stage.stage or stage.name: stage.results for stage in stages},
    }


def summarise(file: str | Path) -> pd.DataFrame:
    """Mean and 95% interval of every recorded number, the seed as the unit: index stage and result.

    Columns mean, low, high, seeds. The last line of a seed counts. Errors: `LabError` if nothing is recorded.
    """
    path = Path(file)
    rows = {row["seed"]: row for row in read_jsonl(path, ("seed", "results"))}
    if not rows:
        raise LabError(f"{file}: no recorded results; make some with `rlhf-lab run FILE -p seed=N --record {file}`")
    numbers: dict[tuple[str, str], list[Any]] = {}
    for row in rows.values():
        for stage, results in row["results"].items():
            for name, value in results.items():
                if isinstance(value, int | float):
                    numbers.setdefault((stage, name), []).append(value)
    table = {key: [*mean_interval(values), len(values)] for key, values in numbers.items()}
    return pd.DataFrame.from_dict(table, orient="index", columns=["mean", "low", "high", "seeds"]).set_axis(
        pd.MultiIndex.from_tuples(table, names=["stage", "result"])
    )


def as_text(file: str | Path) -> str:
    """The summary as a table for the terminal."""
    rows = read_jsonl(Path(file), ("seed",))
    seeds = sorted({row["seed"] for row in rows})
    if rows and "curve" in rows[-1]:  # a line for each method and seed, as 05_algorithms writes them
        from rlhf_lab.workbench.studies.algorithm_results import over_seeds, recorded

        table = over_seeds(recorded(Path(file).resolve()))
    elif study := _study(rows):  # a line for each unit and seed, as 10 and on write them
        table = import_module(f"{_STUDIES}.{study}_results").tables(Path(file).resolve())
    elif rows and "/" in rows[-1].get("unit", ""):  # for each round of each arm, as 08 writes them
        from rlhf_lab.workbench.studies.human_feedback_results import tables

        table = tables(Path(file).resolve())
    elif rows and "unit" in rows[-1]:  # a line for each unit and seed, as 06_synthetic_feedback writes them
        from rlhf_lab.workbench.studies.synthetic_feedback_results import tables

        table = tables(Path(file).resolve())
    else:
        table = summarise(file).round(3)
    with pd.option_context("display.max_rows", None, "display.max_columns", None, "display.width", 160):
        return f"{table}\nseeds {json.dumps(seeds)}, 95% intervals by Student's t over seeds"


def draw(file: str | Path, out: str | Path) -> None:
    """Write the figure of a study (10 and on) over its recorded seeds.

    Errors: `LabError` for results of another kind, or where none are recorded.
    """
    study = _study(read_jsonl(Path(file), ("seed",)))
    if not study:
        raise LabError(f"{file}: holds no results of a study, so there is no figure; see experiments/studies")
    drawn_apart = find_spec(f"{_STUDIES}.{study}_figures")
    figures = import_module(f"{_STUDIES}.{study}_{'figures' if drawn_apart else 'results'}")
    recorded = import_module(f"{_STUDIES}.{study}_results").recorded(Path(file).resolve())
    figures.figure(recorded.units).savefig(out, dpi=110)


def _study(rows: list[dict[str, Any]]) -> str:
    """The study that wrote these lines, or ""."""
    name = str(rows[-1].get("study", "")) if rows else ""
    return name if name.isidentifier() else ""
