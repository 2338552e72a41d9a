"""Runs of offline wandb directories, whoever made them: config, metrics, summary, tables.

A run that was resumed offline has several directories with one id, and wandb begins each of them at `_step` 0. They are
put together in order of time on the run's own x.
"""

import json
import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd

from rlhf_lab.errors import LabError
from rlhf_lab.workbench.comparing.wandb_records import WANDB_STEP, Part, Row, read_part, warn

RUN_DIR = re.compile(r"(offline-)?run-\d{8}_\d{6}-.+")
STEPS = ("train/global_step", "global_step", "episode")  # a run's own x where define_metric named none
QUIET_S = 300.0  # a run that has told no end and has written nothing for so long counts as dead


class WandbRun(NamedTuple):
    """One run, of one directory or several."""

    id: str
    name: str
    group: str
    job_type: str
    tags: tuple[str, ...]
    project: str
    config: dict[str, Any]  # nested, as it was given
    metrics: pd.DataFrame  # one row per step, x first; NaN where nothing was logged
    x: str  # the run's own step: what define_metric says, else a usual name, else _step
    summary: dict[str, Any]
    samples: dict[str, pd.DataFrame]  # the tables that were logged: name -> rows, with a column of the step
    state: str  # done | failed | running | died
    paths: tuple[Path, ...]  # its directories, in order of time


def is_wandb(path: Path) -> bool:
    """Whether this is a run's directory by wandb, a folder of such, or a .wandb file."""
    path = Path(path)
    if path.suffix == ".wandb":
        return path.is_file()
    return path.is_dir() and bool(RUN_DIR.fullmatch(path.name) or any(path.glob("*.wandb")) or _run_dirs(path))


def read_wandb(path: Path) -> list[WandbRun]:
    """The runs of a run's directory, a folder of such, or a .wandb file, oldest first.

    What could not be read of them is told in one line each on standard error. Errors: `LabError` where nothing could.
    """
    parts, problems = [], []
    for file in _files(Path(path)):
        try:
            parts.append(read_part(file))
        except LabError as error:
            problems.append(error)
    if not parts:
        raise problems[0]
    for problem in problems:
        warn(f"left out: {problem}")
    runs: dict[str, list[Part]] = {}
    for part in sorted(parts, key=lambda part: part.run.start_time.ToNanoseconds() / 1e9 or part.written):
        runs.setdefault(part.run.run_id, []).append(part)
    return [_whole(parts) for parts in runs.values()]


def _run_dirs(folder: Path) -> list[Path]:
    return sorted(child for child in folder.iterdir() if RUN_DIR.fullmatch(child.name) and child.is_dir())


def _files(path: Path) -> list[Path]:
    if path.is_file():
        return [path]
    if not path.is_dir():
        raise LabError(f"{path} holds no wandb run: there is no such file or directory")
    files = sorted(path.glob("*.wandb"))
    files = files or [file for folder in _run_dirs(path) for file in sorted(folder.glob("*.wandb"))]
    if not files:
        raise LabError(f"{path} holds no wandb run: there is no run-*.wandb in it; give an offline-run-* directory")
    return files


# --- put together


def _whole(parts: list[Part]) -> WandbRun:
    x = _own_step(parts)
    rows: dict[float, Row] = {}
    tables: dict[str, dict[float, list[pd.DataFrame]]] = {}
    config: dict[str, Any] = {}
    summary: dict[str, Any] = {}
    for part in parts:
        config |= part.config
        summary |= part.summary
        new, logged = _by_step(part, x, after=max(rows, default=None))
        rows |= new
        for name, frames in logged.items():
            tables.setdefault(name, {}).update(frames)
    columns = dict.fromkeys([x, *(name for row in rows.values() for name in row)])
    ordered = [rows[at] for at in sorted(rows)]
    last = parts[-1]
    return WandbRun(
        id=last.run.run_id,
        name=last.run.display_name or last.run.run_id,
        group=last.run.run_group,
        job_type=last.run.job_type,
        tags=tuple(last.run.tags),
        project=last.run.project,
        config=config,
        metrics=pd.DataFrame(ordered, columns=list(columns)),
        x=x,
        summary={name: value for name, value in summary.items() if not _is_media(value)},
        samples={
            name: pd.concat([frame for at in sorted(frames) for frame in frames[at]], ignore_index=True)
            for name, frames in tables.items()
        },
        state=_state(last),
        paths=tuple(part.folder for part in parts),
    )


def _own_step(parts: list[Part]) -> str:
    rows = [row for part in parts for row in part.rows if _numbers(row)]
    for name in dict.fromkeys(name for part in parts for name in part.steps):
        if any(_is_number(row.get(name)) for row in rows):
            return name
    for name in STEPS:  # one that few rows have would lump the others together
        if 2 * sum(_is_number(row.get(name)) for row in rows) > len(rows):
            return name
    return WANDB_STEP


def _by_step(
    part: Part, x: str, *, after: float | None
) -> tuple[dict[float, Row], dict[str, dict[float, list[pd.DataFrame]]]]:
    """A directory's metrics and tables by the run's own x. after: the last x of the directories before.

    A row without x belongs to the last x before it. Where x is wandb's own step, which begins at 0 again in a
    resumed run, it goes on behind the directories before.
    """
    begun_anew = x == WANDB_STEP and after is not None and part.rows and part.rows[0][x] == 0
    offset = after + 1 if begun_anew else 0
    rows: dict[float, Row] = {}
    tables: dict[str, dict[float, list[pd.DataFrame]]] = {}
    at, lost, twice = None, 0, 0
    for row in part.rows:
        at = row[x] + offset if _is_number(row.get(x)) else at
        if at is None or at != at:
            lost += 1
            continue
        numbers = {name: value for name, value in _numbers(row).items() if name != x}
        if numbers:
            known = rows.setdefault(at, {x: at})
            twice += not known.keys().isdisjoint(numbers)
            known.update(numbers)
        for name, frame in _tables(part.folder, row, x, at):
            tables.setdefault(name, {}).setdefault(at, []).append(frame)
    if lost:
        warn(f"{part.folder}: {lost} rows have no {x} and were left out")
    if twice:
        warn(f"{part.folder}: {twice} rows have the {x} of another; of a metric in both the last value stands")
    return rows, tables


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float)


def _is_media(value: Any) -> bool:
    return isinstance(value, dict) and "_type" in value


def _numbers(row: Row) -> Row:
    """What was logged as a number, without wandb's own entries and the parts of tables, images and histograms."""
    media = tuple(name.removesuffix("_type") for name in row if name.endswith("._type"))
    return {
        name: value
        for name, value in row.items()
        if _is_number(value) and not name.startswith("_") and not name.startswith(media)
    }


def _tables(folder: Path, row: Row, x: str, at: float) -> Iterator[tuple[str, pd.DataFrame]]:
    for key, kind in row.items():
        name = key.removesuffix("._type")
        if name == key or kind != "table-file":
            continue
        file = folder / "files" / str(row.get(f"{name}.path"))
        try:
            content = json.loads(file.read_text(encoding="utf-8"))
            frame = pd.DataFrame(content["data"], columns=[str(column) for column in content["columns"]])
        except (OSError, ValueError, KeyError, TypeError):
            warn(f"{file}: table '{name}' at {x} {at} was left out: the file is missing or broken")
            continue
        if x not in frame:
            frame.insert(0, x, at)
        yield name, frame


def _state(part: Part) -> str:
    if part.exit_code is not None:
        return "failed" if part.exit_code else "done"
    return "died" if time.time() - part.written > QUIET_S else "running"
