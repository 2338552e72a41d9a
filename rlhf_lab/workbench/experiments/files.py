"""Experiment files as they stand on disk: the YAML, its shape, and the notebooks it names.

A file `experiments/<notebook stem>/<run>.yaml` holds the parameters of that one notebook, as `papermill -f`
takes them. A chain file lists stages; in a stage's parameters, the "{sft}" of "{sft}/checkpoint" is the run
directory of the stage named sft. Its `sweep` is a grid: `stage.key` or `key` to a list of values.
"""

import difflib
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

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

    name: str = Field(pattern=NAME)  # how others take from it: "{name}"
    notebook: str  # its stem, or a path
    parameters: dict[str, Any] = {}  # the notebook's own


class ChainFile(Config):
    """A chain file: stages, each behind those it takes from, and what to vary."""

    experiment: str = Field(pattern=NAME)  # runs/<experiment>/<stage>/<run id>
    description: str = ""  # for the report
    sweep: dict[str, list[Any]] | None = None  # `key` or `stage.key` -> values
    stages: list[StageEntry] = Field(min_length=1)  # in the order in which they take from each other


def read_yaml(file: Path) -> dict[str, Any]:
    """The mapping in a YAML file. Errors: `LabError` with file and line."""
    try:
        text = file.read_text(encoding="utf-8")
    except FileNotFoundError:
        near = difflib.get_close_matches(file.name, [p.name for p in file.parent.glob("*.y*ml")], n=1)
        raise LabError(f"{file}: no such file" + (f" (did you mean '{near[0]}'?)" if near else "")) from None
    except (OSError, ValueError) as error:  # also what is no UTF-8, or no path
        why = getattr(error, "strerror", None) or " ".join(str(error).split())
        raise LabError(f"{file}: cannot be read ({why}); name an experiment file, a text in YAML") from None
    try:
        content = yaml.load(text, Loader=StrictLoader)
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


class StrictLoader(yaml.SafeLoader):
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
        homes = [*file.resolve().parents, Path.cwd(), Path(__file__).resolve().parents[3]]
        candidates = [home / "notebooks" / f"{name}.ipynb" for home in homes]
    return next((path for path in candidates if path.is_file()), None)


def stage_config(stem: str, notebook: Path) -> type[Config]:
    """The strict model of a notebook's parameters; for one that is none of the lab's, read off its cell."""
    if not re.match(r"\d\d_", stem):  # the lab's are numbered; for others there is no need to load torch
        return config_from_cell(notebook)
    try:
        from rlhf_lab.workbench.stages import STAGES
    except ModuleNotFoundError as error:
        if error.name != "rlhf_lab.workbench.stages":
            raise
        STAGES = {}
    return STAGES[stem] if stem in STAGES else config_from_cell(notebook)


def map_text(value: Any, change: Any) -> Any:
    """The value with every text in it changed, keys of mappings too."""
    if isinstance(value, str):
        return change(value)
    if isinstance(value, Mapping):
        return {map_text(key, change): map_text(item, change) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [map_text(item, change) for item in value]
    return value
