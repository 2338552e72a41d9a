"""The reference of every setting, from the models that check it: key, type, bounds, default, words."""

import inspect
import json
import re
import typing
from collections.abc import Iterator
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from _ext.fields import declared_fields
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from rlhf_lab.config import Config
from rlhf_lab.training.ppo_config import OptimizerConfig, RolloutConfig
from rlhf_lab.training.sft import SFTConfig
from rlhf_lab.workbench.experiments.files import ChainFile
from rlhf_lab.workbench.stages import STAGES, SFTStage, StageConfig, TrainingStage

PLAIN = {int: "whole number", float: "number", str: "text", bool: "true or false", Any: "anything", NoneType: "null"}
BOUNDS = {"ge": "≥ {}", "gt": "> {}", "le": "≤ {}", "lt": "< {}", "min_length": "at least {} of them"}

# Keys that mean the same wherever they stand, and where their words are.
SAME = {"columns", "on_bad", "precision", "seed", "max_new_tokens", "warmup_ratio", "weight_decay", "max_grad_norm"}
_DESCRIBED = (RolloutConfig, OptimizerConfig, SFTConfig, SFTStage)
SAID = {f.name: f.words for cls in _DESCRIBED for f in declared_fields(cls) if f.words and f.name in SAME}


def page() -> str:
    """The page's Markdown, from the first heading of the second level on."""
    shown: set[type] = set()
    parts = ["## The experiment file", *_sections(ChainFile, shown, level=3)]
    parts += ["## What every stage has", *_sections(StageConfig, shown, 3), *_sections(TrainingStage, shown, 3)]
    for stem, stage in STAGES.items():
        parts += [f"## {stem}", *_sections(stage, shown, 3, heading=False)]
    return "\n\n".join(parts)


def _sections(cls: type[Config], shown: set[type], level: int, *, heading: bool = True) -> Iterator[str]:
    """The class, then what it inherits and holds: each class once, where it is first needed."""
    if cls in shown:
        return
    shown.add(cls)
    if heading:
        yield f"{'#' * level} {cls.__name__}"
    yield _words(inspect.getdoc(cls) or "")
    bases = _bases(cls)
    if bases:
        yield "Besides its own keys it has those of " + ", ".join(_link(base) for base in bases) + "."
    if own := [field for field in declared_fields(cls) if field.name in cls.model_fields]:
        rows = [_row(f.name, cls.model_fields[f.name], f.words or SAID.get(f.name, "")) for f in own]
        yield "\n".join(["| key | type | default | what it does |", "| --- | --- | --- | --- |", *rows])
    for other in [*bases, *_held(cls, [field.name for field in own])]:
        yield from _sections(other, shown, 3)


def _bases(cls: type[Config]) -> list[type[Config]]:
    return [base for base in cls.__bases__ if issubclass(base, Config) and base is not Config]


def _held(cls: type[Config], names: list[str]) -> list[type[Config]]:
    return [held for name in names for held in _configs_in(cls.model_fields[name].annotation)]


def _configs_in(annotation: Any) -> Iterator[type[Config]]:
    if isinstance(annotation, type) and issubclass(annotation, Config):
        yield annotation
    for part in get_args(annotation):
        yield from _configs_in(part)


def _row(name: str, field: FieldInfo, words: str) -> str:
    kind = ", ".join([_type(field.annotation), *_bounds(field.metadata)])
    cells = [f"`{name}`", kind, _default(field), _words(words).replace("|", "\\|")]
    return f"| {' | '.join(cells)} |"


def _link(cls: type[Config]) -> str:
    stem = next((stem for stem, stage in STAGES.items() if stage is cls), cls.__name__)
    return f"[{stem}](#{stem.lower()})"


def _type(annotation: Any) -> str:
    """The annotation in words that a writer of YAML knows."""
    if isinstance(annotation, typing.ForwardRef | str):
        return "one of the above"
    if annotation in PLAIN:
        return PLAIN[annotation]
    origin, inside = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return ", ".join([_type(inside[0]), *_bounds(inside[1:])])
    if origin is Literal:
        return " or ".join(f"`{json.dumps(value)}`" if value == "" else f"`{value}`" for value in inside)
    if origin in (Union, UnionType):
        return " or ".join(_type(part) for part in inside)
    if origin in (list, tuple):
        return f"list of: {_type(inside[0])}"
    if origin is dict:
        return f"{_type(inside[0])} to {_type(inside[1])}"
    if isinstance(annotation, type) and issubclass(annotation, Config):
        return _link(annotation)
    return f"`{getattr(annotation, '__name__', annotation)}`"


def _bounds(metadata: Any) -> list[str]:
    said = []
    for item in metadata:
        for name in ("gt", "ge", "lt", "le", "min_length", "pattern"):
            value = getattr(item, name, None)
            if value is not None:
                said.append(BOUNDS[name].format(value) if name in BOUNDS else f"`{value}`")
    return said


def _default(field: FieldInfo) -> str:
    value = field.get_default(call_default_factory=True)
    if value is PydanticUndefined:
        return "required"
    if isinstance(value, Config):
        given = value.model_dump(mode="json", include=value.model_fields_set)
        return f"`{json.dumps(given)}`" if given else "its defaults"
    if isinstance(value, list):
        value = [_plain(one) for one in value]
    elif isinstance(value, dict):
        value = {key: _plain(one) for key, one in value.items()}
    if isinstance(value, str) and value:
        return f"`{value}`"
    return f"`{json.dumps(value, ensure_ascii=False)}`"


def _words(text: str) -> str:
    """Text whose marks mean nothing, but for code between backticks; an empty text between quotes becomes code."""
    parts = re.split(r"(`[^`]*`)", text.replace('""', '`""`'))
    return "".join(part if part[:1] == "`" else re.sub(r"([\\*_<>\[\]{}$])", r"\\\1", part) for part in parts)


def _plain(value: Any) -> Any:
    """A default inside a list or mapping, as YAML would have it: what differs from its own defaults."""
    return value.model_dump(mode="json", exclude_defaults=True) if isinstance(value, Config) else value
