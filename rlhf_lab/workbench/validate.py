"""Experiment files: read them, apply `-p` overrides, and check every key and value before anything starts.

A file `experiments/<notebook stem>/<run>.yaml` holds the parameters of that one notebook, as `papermill -f`
takes them. A chain file lists stages; in a stage's parameters, the "{sft}" of "{sft}/checkpoint" is the run
directory of the stage named sft.
"""

import copy
import difflib
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import yaml
from pydantic import Field

from rlhf_lab.config import Config
from rlhf_lab.errors import LabError
from rlhf_lab.workbench.own_notebook import config_from_cell

NAME = r"^[A-Za-z0-9][A-Za-z0-9_.-]*$"
# Only at the head of a path, so that other braces stay what they are.
REFERENCE = re.compile(r"^\{([A-Za-z0-9_.-]+)\}(?=/|$)")


class StageEntry(Config):
    """One stage of a chain file."""

    name: str = Field(pattern=NAME)
    notebook: str
    parameters: dict[str, Any] = {}


class ChainFile(Config):
    """A chain file: stages in the order in which they run."""

    experiment: str = Field(pattern=NAME)
    description: str = ""
    stages: list[StageEntry] = Field(min_length=1)


class PlannedStage(NamedTuple):
    """A stage that has been checked. `parameters` are JSON-clean, the references still in them."""

    name: str
    stem: str
    notebook: Path
    parameters: dict[str, Any]
    config: type[Config]

    def resolved(self, run_dirs: Mapping[str, Path]) -> dict[str, Any]:
        """The parameters with every "{stage}/..." replaced by that stage's run directory."""
        return _map_text(self.parameters, lambda text: REFERENCE.sub(lambda m: str(run_dirs[m[1]]), text))


class Plan(NamedTuple):
    """An experiment that has been checked and can start."""

    file: Path
    experiment: str
    description: str
    stages: tuple[PlannedStage, ...]


def validate(file: str | Path, overrides: Sequence[str] = ()) -> Plan:
    """Check an experiment file, with `key=value` overrides on top, and return what would run. Starts nothing.

    Errors: `LabError` in one line naming the file, the stage and the key.
    """
    file = Path(file)
    content = read_yaml(file)
    if "stages" in content or not _is_flat(file):
        chain = _chain(file, content)
    else:
        stem = file.parent.name
        entry = StageEntry(name=re.sub(r"^\d+_", "", stem), notebook=stem, parameters=content)
        chain = ChainFile.model_construct(experiment=file.stem, description="", stages=[entry])
    names = [entry.name for entry in chain.stages]
    for name in names:
        if names.count(name) > 1 or name == "report":
            problem = "is used twice" if name != "report" else "is taken by the report's folder"
            raise LabError(f"{file}: the stage name '{name}' {problem}; choose another")
    drafts = [_draft(file, entry) for entry in chain.stages]
    drafts = _override(file, drafts, overrides)
    stages = tuple(_check(file, draft, names[:index]) for index, draft in enumerate(drafts))
    return Plan(file, _experiment(file, chain.experiment, stages), chain.description, stages)


def read_yaml(file: Path) -> dict[str, Any]:
    """The mapping in a YAML file. Errors: `LabError` with file and line."""
    try:
        text = file.read_text(encoding="utf-8")
    except FileNotFoundError:
        near = difflib.get_close_matches(file.name, [p.name for p in file.parent.glob("*.y*ml")], n=1)
        raise LabError(f"{file}: no such file" + (f" (did you mean '{near[0]}'?)" if near else "")) from None
    except (OSError, ValueError) as error:  # also what is no UTF-8, or no path
        raise LabError(f"{file}: cannot be read ({' '.join(str(error).split())})") from None
    try:
        content = yaml.load(text, Loader=_StrictLoader)
    except yaml.MarkedYAMLError as error:
        line = f", line {error.problem_mark.line + 1}" if error.problem_mark else ""
        raise LabError(f"{file}{line}: not valid YAML: {error.problem}") from None
    except (yaml.YAMLError, ValueError) as error:  # also the 45th of a month, or a number of thousands of digits
        raise LabError(f"{file}: not valid YAML: {' '.join(str(error).split())}") from None
    except RecursionError:
        raise LabError(f"{file}: not valid YAML: nested too deeply") from None
    if content is None:
        return {}
    if not isinstance(content, dict) or not all(isinstance(key, str) for key in content):
        raise LabError(f"{file}: expected 'key: value' lines, found {type(content).__name__}")
    try:
        json.dumps(content, default=str)
    except (ValueError, TypeError, RecursionError):
        raise LabError(f"{file}: a list or mapping holds itself, or keys that are no text; write it out") from None
    return content


class _StrictLoader(yaml.SafeLoader):
    """YAML in which a key may be given only once."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict:
        seen = set()
        for key_node, _ in node.value:
            key = key_node.value if isinstance(key_node, yaml.ScalarNode) else None
            if key is not None and key != "<<" and key in seen:
                problem = f"key '{key}' is given twice"
                raise yaml.constructor.ConstructorError(None, None, problem, key_node.start_mark)
            seen.add(key)
        return super().construct_mapping(node, deep)


def find_notebook(name: str, file: Path) -> Path | None:
    """The notebook of that stem in the `notebooks` folder nearest to the file, or the one at that path."""
    if name.endswith(".ipynb"):
        candidates = [Path(name), file.parent / name]
    else:
        homes = [*file.resolve().parents, Path.cwd(), Path(__file__).resolve().parents[2]]
        candidates = [home / "notebooks" / f"{name}.ipynb" for home in homes]
    return next((path for path in candidates if path.is_file()), None)


def stage_config(stem: str, notebook: Path) -> type[Config]:
    """The strict model of a notebook's parameters; for one that is none of the lab's, read off its cell."""
    try:
        from rlhf_lab.workbench.stages import STAGES
    except ModuleNotFoundError as error:
        if error.name != "rlhf_lab.workbench.stages":
            raise
        STAGES = {}
    return STAGES[stem] if stem in STAGES else config_from_cell(notebook)


class _Draft(NamedTuple):
    where: str
    name: str
    stem: str
    notebook: Path
    values: dict[str, Any]
    config: type[Config]


def _is_flat(file: Path) -> bool:
    return find_notebook(file.parent.name, file) is not None


def _experiment(file: Path, name: str, stages: tuple[PlannedStage, ...]) -> str:
    """The name of the experiment: what the stages' parameters say, where they agree, else the file's."""
    given = {stage.parameters["experiment"] for stage in stages if stage.parameters.get("experiment")}
    name = given.pop() if len(given) == 1 else name
    if not re.fullmatch(NAME, name):
        raise LabError(f"{file}: '{name}' cannot name an experiment; use letters, digits, '_', '.' and '-'")
    return name


def _chain(file: Path, content: dict[str, Any]) -> ChainFile:
    entries = content.get("stages")
    if isinstance(entries, list):  # one by one, so that a wrong key is named with its stage
        for index, entry in enumerate(entries, 1):
            if not isinstance(entry, dict):
                raise LabError(f"{file}, stage {index}: expected name, notebook and parameters")
            StageEntry.parse(entry, f"{file}, stage {entry.get('name', index)}")
    return ChainFile.parse(content, str(file))


def _draft(file: Path, entry: StageEntry) -> _Draft:
    where = f"{file}, stage {entry.name}"
    notebook = find_notebook(entry.notebook, file)
    if notebook is None:
        raise LabError(f"{where}: no notebook '{entry.notebook}' in a folder notebooks beside or above the file")
    config = stage_config(notebook.stem, notebook)
    return _Draft(where, entry.name, notebook.stem, notebook, dict(entry.parameters), config)


def _override(file: Path, drafts: list[_Draft], overrides: Sequence[str]) -> list[_Draft]:
    drafts = [draft._replace(values=copy.deepcopy(draft.values)) for draft in drafts]
    for override in overrides:
        key, equals, text = override.partition("=")
        if not equals or not key.strip():
            raise LabError(f"-p {override}: expected key=value or stage.key=value")
        try:
            value = text if REFERENCE.match(text) else yaml.load(text, Loader=_StrictLoader)
        except (yaml.YAMLError, ValueError, RecursionError):
            value = text
        path = key.strip().split(".")
        named = [draft for draft in drafts if draft.name == path[0] and len(path) > 1]
        if named:
            path = path[1:]
        targets = named or [draft for draft in drafts if path[0] in draft.config.model_fields]
        if not targets:
            known = sorted({field for draft in drafts for field in draft.config.model_fields})
            close = difflib.get_close_matches(path[0], known, n=1)
            hint = f" (did you mean '{close[0]}'?)" if close else ""
            raise LabError(f"-p {override}: no stage of {file} has a parameter '{path[0]}'{hint}")
        for draft in targets:
            _set(draft.values, path, value, override)
    return drafts


def _set(values: dict[str, Any], path: list[str], value: Any, override: str) -> None:
    for part in path[:-1]:
        values = values.setdefault(part, {})
        if not isinstance(values, dict):
            raise LabError(f"-p {override}: '{part}' has no keys below it")
    values[path[-1]] = value


def _check(file: Path, draft: _Draft, earlier: list[str]) -> PlannedStage:
    def known(text: str) -> str:
        match = REFERENCE.match(text)
        if match and match[1] not in earlier:
            names = ", ".join(earlier) or "none"
            raise LabError(f"{draft.where}: '{text}' refers to no earlier stage (earlier stages: {names})")
        return text

    _map_text(draft.values, known)
    config = draft.config.parse(draft.values, draft.where)
    clean = config.model_dump(mode="json", include=set(draft.values))
    return PlannedStage(draft.name, draft.stem, draft.notebook, clean, draft.config)


def _map_text(value: Any, change: Any) -> Any:
    if isinstance(value, str):
        return change(value)
    if isinstance(value, Mapping):
        return {_map_text(key, change): _map_text(item, change) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_map_text(item, change) for item in value]
    return value
