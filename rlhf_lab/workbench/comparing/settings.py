"""What a run was set to: its own settings and those of the runs it takes from, without what only names or places it.

A path to another run is written `{stage}`, and that run's settings follow below it, such as `policy.lr`. So two
runs whose inputs are made alike are set alike, wherever these lie. Seeds are kept apart: they are the unit, not a
setting.
"""

import functools
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from rlhf_lab.errors import LabError
from rlhf_lab.workbench.experiments.files import map_text
from rlhf_lab.workbench.experiments.taken import FILE as TAKEN
from rlhf_lab.workbench.records import read_json, read_jsonl
from rlhf_lab.workbench.run_directory import MAY_CHANGE

ABSENT = "absent"
NOT_SETTINGS = MAY_CHANGE | {"seed"}
DEEPEST = 8  # runs that take from runs that take from runs


class Settings(NamedTuple):
    """values: dotted name -> value. seeds: of the inputs, such as `policy.seed`."""

    values: dict[str, Any]
    seeds: dict[str, Any]


def read_config(run_dir: Path) -> dict[str, Any]:
    """The content of a run's config.yaml. Errors: `LabError` where there is none, or it is none of ours."""
    file = run_dir / "config.yaml"
    try:
        content = _parsed(file, file.stat().st_mtime_ns)
    except OSError as error:
        raise LabError(f"{file} cannot be read ({(error.strerror or str(error)).lower()})") from None
    except (ValueError, yaml.YAMLError):
        raise LabError(f"{file} is broken: it is not valid YAML") from None
    if not isinstance(content, dict) or not isinstance(content.get("config"), dict):
        raise LabError(f"{file} is broken: it has no mapping 'config'")
    return content


@functools.lru_cache(maxsize=5000)  # the runs of a sweep take from the same few
def _parsed(file: Path, changed_ns: int) -> Any:
    return yaml.safe_load(file.read_text(encoding="utf-8"))


def settings_of_run(run_dir: Path, *, depth: int = 0) -> Settings:
    """The settings of one of our runs. Errors as in `read_config`."""
    content = read_config(run_dir)
    found = settings_of(content["config"], run_dir, Path(str(content.get("directory") or ".")), depth=depth)
    for row in read_jsonl(run_dir / TAKEN):  # what it took for `auto`
        _add(found, str(row["stage"]), Path(row["run"]), depth)
    if ABSENT in found.seeds.values():  # an input is gone; the sweep that made it still tells what it was set to
        point = read_json(run_dir / "made_from.json").get("point") or {}
        found.values.update({key: value for key, value in point.items() if key.rsplit(".", 1)[-1] != "seed"})
    return found


def settings_of(config: Mapping[str, Any], run_dir: Path, directory: Path, *, depth: int = 0) -> Settings:
    """The settings in a config, which may name runs by their paths.

    run_dir: whose config it is, to find the runs beside it. directory: what its relative paths start from.
    """
    found = Settings({}, {})
    for key, value in config.items():
        if key in NOT_SETTINGS:
            continue
        inputs = _Inputs(run_dir, directory)
        found.values.update(flat(map_text(value, inputs.rename), key))
        for number, (stage, source) in enumerate(inputs.found, start=1):
            more = f".{number}" if len(inputs.found) > 1 else ""
            _add(found, key if isinstance(value, str) else f"{key}.{stage}{more}", source, depth)
    return found


def flat(value: Any, name: str) -> dict[str, Any]:
    """Mappings inside mappings as dotted names; an empty one has none."""
    if not isinstance(value, Mapping):
        return {name: value}
    parts = (flat(item, f"{name}.{key}") for key, item in value.items())
    return {key: item for part in parts for key, item in part.items()}


def differing(settings: Sequence[Mapping[str, Any]]) -> list[str]:
    """The names whose values are not the same in all of these. What one lacks differs from what another has.

    Of a setting that is reached by several ways, such as `policy.lr` and `reward.policy.lr`, the shortest is named;
    where one takes from a run and another does not, that is said once, not for each of the run's settings.
    """
    marks = {
        key: tuple(_mark(each.get(key, ABSENT)) for each in settings)
        for key in dict.fromkeys(key for each in settings for key in each)
    }
    vary = {key: mark for key, mark in marks.items() if len(set(mark)) > 1}
    kept: list[str] = []
    for key in sorted(vary, key=lambda key: key.count(".")):
        again = (other for other in kept if key.endswith(f".{other}"))
        if not any(_follows(vary[key], vary[other]) for other in again) and not _only_because_of_its_run(key, vary):
            kept.append(key)
    return [key for key in vary if key in kept]


def same(settings: Mapping[str, Any]) -> frozenset:
    """A mark that two mappings of settings share if and only if they are the same."""
    return frozenset((key, _mark(value)) for key, value in settings.items())


def told(value: Any) -> str:
    """The value of a setting as text."""
    if isinstance(value, str):
        return value if value.strip() else '""'
    if value is None:
        return "none"
    if isinstance(value, float):
        return f"{value:g}"
    return json.dumps(value, ensure_ascii=False, default=str)


class _Inputs:
    """Writes paths to runs as `{stage}`, and keeps which these are. A run that is gone is known by its place."""

    def __init__(self, run_dir: Path, directory: Path):
        self.run_dir, self.directory = run_dir.absolute(), directory.absolute()
        self.root = Path(*self.run_dir.parts[:-3])  # runs/<experiment>/<stage>/<run id>
        self.found: list[tuple[str, Path]] = []

    def rename(self, text: str) -> str:
        """The text, or where it is a path to a run `{stage}` with the rest of the path; of a checkpoint without it."""
        if "/" not in text or len(text) > 1000 or not text.isprintable():
            return text
        for path in self._places(text):
            for run in (path, *path.parents):
                if run == self.run_dir:
                    return str(path.relative_to(run))
                if (run / "status.json").is_file():
                    return self._named(path, run)
        gone = self.directory / text
        below = gone.relative_to(self.root).parts if gone.is_relative_to(self.root) else ()
        return self._named(gone, self.root.joinpath(*below[:3])) if len(below) > 2 else text

    def _places(self, text: str) -> list[Path]:
        """Where the path may lie: as it was written, or below our root, should the folder of runs have moved."""
        path = Path(text)
        below = (self.root.joinpath(*path.parts[first:]) for first in range(1, len(path.parts) - 2))
        return [self.directory / path, Path.cwd() / path, *below]

    def _named(self, path: Path, run: Path) -> str:
        self.found.append((run.parent.name, run))
        inside = [part for part in path.relative_to(run).parts if part != "checkpoint"]
        return "/".join([f"{{{run.parent.name}}}", *inside])


def _add(found: Settings, below: str, source: Path, depth: int) -> None:
    """Put the settings of a run that was taken from below a name."""
    try:
        content, theirs = read_config(source), settings_of_run(source, depth=depth + 1) if depth < DEEPEST else None
    except LabError:
        content, theirs = {}, None
    found.seeds[f"{below}.seed"] = content.get("seed", ABSENT)
    if theirs is not None:
        found.values.update({f"{below}.{key}": value for key, value in theirs.values.items()})
        found.seeds.update({f"{below}.{key}": value for key, value in theirs.seeds.items()})


def _follows(marks: tuple[str, ...], others: tuple[str, ...]) -> bool:
    """Whether a setting is the other one wherever it is set at all."""
    return all(mark in (other, _mark(ABSENT)) for mark, other in zip(marks, others, strict=True))


def _only_because_of_its_run(key: str, vary: Mapping[str, tuple[str, ...]]) -> bool:
    """Whether a setting of an input is the same in all runs that have the input."""
    ends = [index for index, letter in enumerate(key) if letter == "."]
    there = [mark != _mark(ABSENT) for mark in vary[key]]
    above = [[mark.startswith('"{') for mark in vary.get(key[:end], ())] for end in ends]
    return there in above and len(set(vary[key])) == 2


def _mark(value: Any) -> str:
    """The same text for equal values: 1 and 1.0 are equal, 1 and true are not."""
    number = isinstance(value, int | float) and not isinstance(value, bool)
    return repr(float(value)) if number else json.dumps(value, sort_keys=True, default=str)
