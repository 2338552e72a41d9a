"""Check an experiment file, `-p` overrides and sweep included, before anything starts."""

import copy
import difflib
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from rlhf_lab.config import Config
from rlhf_lab.errors import LabError
from rlhf_lab.workbench.experiments.files import (
    NAME,
    REFERENCE,
    ChainFile,
    StageEntry,
    StrictLoader,
    find_notebook,
    map_text,
    read_yaml,
    stage_config,
)
from rlhf_lab.workbench.experiments.sweep import Dimension, dimensions, grid, label

__all__ = ["ChainFile", "Plan", "PlannedStage", "Point", "StageEntry", "read_yaml", "validate"]


class PlannedStage(NamedTuple):
    """A stage that has been checked. `parameters` are JSON-clean, the references still in them."""

    name: str
    stem: str
    notebook: Path
    parameters: dict[str, Any]
    config: type[Config]

    def resolved(self, run_dirs: Mapping[str, Path]) -> dict[str, Any]:
        """The parameters with every "{stage}/..." replaced by that stage's run directory."""
        return map_text(self.parameters, lambda text: REFERENCE.sub(lambda m: str(run_dirs[m[1]]), text))


class Point(NamedTuple):
    """One point of a sweep's grid: the swept keys with their values, and the stages with these put in."""

    values: dict[str, Any]
    stages: tuple[PlannedStage, ...]


class Plan(NamedTuple):
    """An experiment that has been checked and can start. Without a sweep it is one point of no values."""

    file: Path
    experiment: str
    description: str
    points: tuple[Point, ...]

    @property
    def stages(self) -> tuple[PlannedStage, ...]:
        """The stages of the first point; names, notebooks and configs are those of every point."""
        return self.points[0].stages


def validate(file: str | Path, overrides: Sequence[str] = ()) -> Plan:
    """Check an experiment file, with `key=value` overrides on top, and return what would run. Starts nothing.

    An override comes after the sweep: a swept key all of which it sets is taken out of the grid.
    Errors: `LabError` in one line naming the file, the stage and the key.
    """
    file = Path(file)
    chain = _read(file)
    names = [entry.name for entry in chain.stages]
    for name in names:
        if names.count(name) > 1 or name == "report":
            problem = "is used twice" if name != "report" else "is taken by the report's folder"
            raise LabError(f"{file}: the stage name '{name}' {problem}; choose another")
    drafts = [_draft(file, entry) for entry in chain.stages]
    base = _override(file, drafts, overrides)  # before the sweep as well: what is wrong in them is told without it
    swept = _dimensions(file, chain, drafts, overrides)
    points = []
    for values in grid(swept, str(file)):
        at = base if not values else _override(file, _placed(file, drafts, values), overrides)
        points.append(Point(values, tuple(_check(draft, names, index, values) for index, draft in enumerate(at))))
    _refuse_twins(file, points)
    return Plan(file, _experiment(file, chain.experiment, points[0].stages), chain.description, tuple(points))


class _Draft(NamedTuple):
    where: str
    name: str
    stem: str
    notebook: Path
    values: dict[str, Any]
    config: type[Config]


def _read(file: Path) -> ChainFile:
    content = read_yaml(file)
    if "stages" in content or find_notebook(file.parent.name, file) is None:
        if not content:
            raise LabError(f"{file}: is empty; give 'experiment:' and 'stages:', as in experiments/quickstart.yaml")
        return _chain(file, content)
    stem = file.parent.name
    if "sweep" in content:
        raise LabError(f"{file}: a sweep stands in a file with 'stages:'; this one holds a notebook's parameters alone")
    entry = StageEntry(name=re.sub(r"^\d+_", "", stem), notebook=stem, parameters=content)
    return ChainFile.model_construct(experiment=file.stem, description="", sweep=None, stages=[entry])


def _chain(file: Path, content: dict[str, Any]) -> ChainFile:
    entries = content.get("stages")
    if isinstance(entries, list):  # one by one, so that a wrong key is named with its stage
        for index, entry in enumerate(entries, 1):
            if not isinstance(entry, dict):
                raise LabError(f"{file}, stage {index}: expected name, notebook and parameters")
            StageEntry.parse(entry, f"{file}, stage {entry.get('name', index)}")
    if "sweep" in content and content["sweep"] is None:
        content["sweep"] = {}  # nothing stands below it, which is no way to leave it out
    return ChainFile.parse(content, str(file))


def _experiment(file: Path, name: str, stages: tuple[PlannedStage, ...]) -> str:
    """The name of the experiment: what the stages' parameters say, where they agree, else the file's."""
    given = {stage.parameters["experiment"] for stage in stages if stage.parameters.get("experiment")}
    name = given.pop() if len(given) == 1 else name
    if not re.fullmatch(NAME, name):
        raise LabError(f"{file}: '{name}' cannot name an experiment; use letters, digits, '_', '.' and '-'")
    return name


def _draft(file: Path, entry: StageEntry) -> _Draft:
    where = f"{file}, stage {entry.name}"
    notebook = find_notebook(entry.notebook, file)
    if notebook is None:
        raise LabError(f"{where}: no notebook '{entry.notebook}' in a folder notebooks beside or above the file")
    config = stage_config(notebook.stem, notebook)
    return _Draft(where, entry.name, notebook.stem, notebook, dict(entry.parameters), config)


def _dimensions(file: Path, chain: ChainFile, drafts: list[_Draft], overrides: Sequence[str]) -> list[Dimension]:
    if chain.sweep is None:
        return []
    has_seeds = any("seeds" in draft.config.model_fields for draft in drafts)
    where = f"{file}, sweep"
    found = dimensions(chain.sweep, where, seeds="seeds" if has_seeds else "seed")
    swept = {dimension.key: _places(file, drafts, dimension.key, where) for dimension in found}
    for index, key in enumerate(swept):
        later = {other: swept[other] for other in list(swept)[index + 1 :]}
        if _hidden(swept[key], later.values()):
            by = next(other for other, places in later.items() if _hidden(swept[key][:1], [places]))
            raise LabError(f"{where}: '{key}' has no effect, '{by}' below it sets the same; swap them or leave one out")
    given = [_places(file, drafts, text.partition("=")[0].strip(), f"-p {text}") for text in overrides]
    return [dimension for dimension in found if not _hidden(swept[dimension.key], given)]


def _hidden(places: list[tuple[str, ...]], later: Iterable[list[tuple[str, ...]]]) -> bool:
    """Whether all of what was set is set again, or a mapping that it lies in."""
    again = {place for other in later for place in other}
    return all(any(place[:depth] in again for depth in range(2, len(place) + 1)) for place in places)


def _refuse_twins(file: Path, points: Sequence[Point]) -> None:
    """1 and 1.0, or values that an override hides: it would be run once and counted twice."""
    seen: dict[str, Point] = {}
    for point in points:
        other = seen.setdefault(json.dumps([stage.parameters for stage in point.stages], sort_keys=True), point)
        if other is not point:
            twins = f"'{label(other.values)}' and '{label(point.values)}'"
            raise LabError(f"{file}, sweep: {twins} are the same run; leave one out")


def _placed(file: Path, drafts: list[_Draft], values: Mapping[str, Any]) -> list[_Draft]:
    for key, value in values.items():
        drafts = _assign(file, drafts, key, value, f"{file}, sweep")
    return drafts


def _override(file: Path, drafts: list[_Draft], overrides: Sequence[str]) -> list[_Draft]:
    for override in overrides:
        key, equals, text = override.partition("=")
        if not equals or not key.strip():
            raise LabError(f"-p {override}: expected key=value or stage.key=value")
        try:
            value = text if REFERENCE.match(text) else yaml.load(text, Loader=StrictLoader)
        except (yaml.YAMLError, ValueError, RecursionError):
            value = text
        drafts = _assign(file, drafts, key.strip(), value, f"-p {override}")
    return drafts


def _assign(file: Path, drafts: list[_Draft], key: str, value: Any, said: str) -> list[_Draft]:
    """The drafts with a value put in at every place that a key means."""
    places = {stage: path for stage, *path in _places(file, drafts, key, said)}
    changed = []
    for draft in drafts:
        if draft.name in places:
            draft = draft._replace(values=copy.deepcopy(draft.values))
            _set(draft.values, places[draft.name], copy.deepcopy(value), said)
        changed.append(draft)
    return changed


def _places(file: Path, drafts: list[_Draft], key: str, said: str) -> list[tuple[str, ...]]:
    """What a key means: `stage.key` one stage's, `key` that of every stage that has it; further dots go into mappings.

    Each is the stage, the parameter and the keys below it.
    """
    path = key.split(".")
    stages = [draft.name for draft in drafts]
    if path[0] in stages and len(path) > 1:
        return [tuple(path)]
    if found := [draft.name for draft in drafts if path[0] in draft.config.model_fields]:
        return [(stage, *path) for stage in found]
    if path[0] in stages:
        raise LabError(f"{said}: '{key}' is a stage of {file}; name a parameter of it, as {key}.KEY")
    known = sorted({f for d in drafts for f in d.config.model_fields} | set(stages if len(path) > 1 else ()))
    close = difflib.get_close_matches(path[0], known, n=1)
    hint = f" (did you mean '{close[0]}'?)" if close else ""
    if len(path) > 1:
        hint = hint or f" (its stages: {', '.join(stages)})"
        raise LabError(f"{said}: no stage of {file} is called '{path[0]}' or has a parameter '{path[0]}'{hint}")
    raise LabError(f"{said}: no stage of {file} has a parameter '{path[0]}'{hint}")


def _set(values: dict[str, Any], path: list[str], value: Any, said: str) -> None:
    for part in path[:-1]:
        values = values.setdefault(part, {})
        if not isinstance(values, dict):
            raise LabError(f"{said}: '{part}' has no keys below it")
    values[path[-1]] = value


def _check(draft: _Draft, names: list[str], index: int, point: Mapping[str, Any]) -> PlannedStage:
    where = draft.where + (f" ({label(point)})" if point else "")

    def known(text: str) -> str:
        match = REFERENCE.match(text)
        if match and match[1] not in names[:index]:
            earlier = ", ".join(names[:index]) or "none"
            todo = "; it stands further down: move it up, or break the cycle" if match[1] in names[index + 1 :] else ""
            raise LabError(f"{where}: '{text}' refers to no earlier stage (earlier stages: {earlier}){todo}")
        return text

    map_text(draft.values, known)
    config = draft.config.parse(draft.values, where)
    clean = config.model_dump(mode="json", include=set(draft.values))
    return PlannedStage(draft.name, draft.stem, draft.notebook, clean, draft.config)
