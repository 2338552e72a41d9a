"""From what a user names to the runs that are meant: paths, ends of paths, experiments, stages, groups, tags."""

import difflib
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

from rlhf_lab.errors import LabError
from rlhf_lab.workbench.comparing.reading import ComparedRun, from_wandb, read_run
from rlhf_lab.workbench.comparing.settings import read_config
from rlhf_lab.workbench.comparing.wandb_files import is_wandb, read_wandb
from rlhf_lab.workbench.experiments.keeping import find_run
from rlhf_lab.workbench.records import read_status, runs_root
from rlhf_lab.workbench.writing import user_path

LOOKS = {"compare", "live"}  # stages that only look at other runs are nobody's subject
MOST = 12  # runs of several experiments, when none is named


class Found(NamedTuple):
    """The runs, in the order in which they were named, and what had to be left out or read in one of several ways."""

    runs: list[ComparedRun]
    notes: list[str]


def find_runs(names: Sequence[str]) -> Found:
    """The runs that are meant by names.

    A name is the path of a run, of a folder with runs in it or of a wandb directory; the end of a run's path;
    `experiment`, which means its last stage, or `experiment/stage`; `group:NAME` or `tag:NAME`, or NAME alone where
    nothing else is called so; or a pattern such as `kl*/ppo`. Paths may start at the folder of runs.
    Errors: `LabError` for a name that means nothing. A run that cannot be read is left out, and that is noted.
    """
    runs: dict[Path | tuple, ComparedRun] = {}
    notes: list[str] = []
    for name in names:
        for path in _meant(name, notes):
            try:
                read = [from_wandb(run) for run in read_wandb(path)] if is_wandb(path) else [read_run(path)]
            except LabError as error:
                notes.append(f"left out: {error}")
                continue
            runs |= {(run.path.resolve(), run.name): run for run in read}
    if not runs:
        raise LabError("; ".join(notes) if notes else "no run was named; `rlhf-lab status` lists them")
    return Found(list(runs.values()), list(dict.fromkeys(notes)))


def newest() -> Found:
    """The runs to look at when none is named: of the stage and experiment that ran last, or of that stage anywhere
    where the experiment has one alone. None where nothing has run yet.
    """
    paths = _ours(runs_root())
    if not paths:
        return Found([], [f"there is no run below {runs_root()} yet: run an experiment first, or name runs"])
    last = max(paths, key=_started)
    beside = [path for path in paths if path.parent == last.parent]
    if len(beside) == 1:
        alike = [path for path in paths if path.parent.name == last.parent.name]
        beside = sorted(alike, key=_started)[-MOST:]
    return find_runs([str(path) for path in beside])


def _meant(name: str, notes: list[str]) -> list[Path]:
    kind, colon, rest = name.partition(":")
    if colon and kind in ("group", "tag"):
        return _labelled(rest, (kind,)) or _nothing(name)
    for path in (user_path(name), runs_root() / name):
        if path.exists():
            return _at(path, notes) or _nothing(name, f"{name}: there is no run in it")
    if set(name) & set("*?["):
        paths = (path for match in sorted(runs_root().glob(name)) for path in _at(match, notes))
        return list(dict.fromkeys(paths)) or _nothing(name)
    if labelled := _labelled(name, ("group", "tag")):
        return labelled
    try:
        return [find_run(name)]
    except LabError as error:
        if "no such run" not in str(error):
            raise
        return _nothing(name)


def _at(path: Path, notes: list[str]) -> list[Path]:
    """The runs at a path that exists."""
    if (path / "status.json").is_file() or is_wandb(path):
        return [path]
    below = _ours(path)
    stages = dict.fromkeys(run.parent.name for run in sorted(below, key=_started))
    if len(stages) > 1 and all(run.parent.parent == path for run in below):  # an experiment
        *others, last = stages
        notes.append(
            f"{path.name}: of its stages the last, {last} (others: {', '.join(others)}; name {path.name}/STAGE)"
        )
        below = [run for run in below if run.parent.name == last]
    return below or [folder for folder in sorted(path.glob("**/wandb")) if is_wandb(folder)]


def _ours(folder: Path) -> list[Path]:
    """The directories of our runs below a folder, without those that only look at others."""
    files = sorted(file for depth in ("*", "*/*", "*/*/*") for file in folder.glob(f"{depth}/status.json"))
    return [file.parent for file in files if file.parent.parent.name not in LOOKS]


def _started(run_dir: Path) -> str:
    try:
        return read_status(run_dir).started
    except LabError:
        return ""


def _labelled(name: str, kinds: Iterable[str]) -> list[Path]:
    return [path for path, labels in _labels() if any(name in labels[kind] for kind in kinds)]


def _labels() -> Iterable[tuple[Path, dict[str, list[str]]]]:
    for path in _ours(runs_root()):
        try:
            tracking = read_config(path).get("tracking") or {}
            group = str(tracking.get("group") or path.parent.parent.name)
            yield path, {"group": [group], "tag": [*map(str, tracking.get("tags") or ())]}
        except (LabError, AttributeError):
            continue


def _nothing(name: str, problem: str = "") -> list[Path]:
    """Say what there is instead."""
    if problem:
        raise LabError(problem)
    experiments = sorted({path.parent.parent.name for path in _ours(runs_root())})
    labels = list(_labels())
    marks = [f"{kind}:{word}" for _, each in labels for kind in each for word in each[kind] if word not in experiments]
    near = difflib.get_close_matches(name, [*experiments, *{mark.partition(":")[2] for mark in marks}], n=1)
    hint = f" (did you mean '{near[0]}'?)" if near else ""
    there = ", ".join([*experiments, *sorted(set(marks))][:20]) or "none"
    raise LabError(
        f"{name}: no run, experiment, group or tag of this name{hint}; below {runs_root()} there is: {there}"
    )
