"""The one kind of configuration: frozen, typed, and strict about names."""

import difflib
from collections.abc import Mapping
from typing import Any, Self, get_args

from pydantic import BaseModel, ConfigDict, ValidationError, field_validator
from pydantic_core import PydanticCustomError

from rlhf_lab.errors import LabError

SHOWN = 100  # characters of a wrong value or message


class Config(BaseModel):
    """Base of every configuration. Unknown keys are refused, numbers written as text become numbers."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, protected_namespaces=())

    @field_validator("*", mode="before")
    @classmethod
    def _switches(cls, value: Any, info: Any) -> Any:
        """YAML reads `yes` and `on` as true, which would pass for the number 1, and a choice `off` as false."""
        wanted = cls.model_fields[info.field_name].annotation
        if isinstance(value, bool) and {wanted, *get_args(wanted)} & {int, float}:
            raise PydanticCustomError("not_a_number", "a number is expected, not true or false")
        return "off" if value is False and "off" in get_args(wanted) else value

    @classmethod
    def parse(cls, values: Mapping[str, Any], source: str = "parameters") -> Self:
        """Build the config from a mapping, such as a YAML file or a notebook's parameters.

        Errors: `LabError` in one line that names `source`, every wrong key and what is wrong with it.
        """
        if not isinstance(values, Mapping):
            raise LabError(f"{source}: expected names with their values, found {_told(values)}")
        if odd := [key for key in values if not isinstance(key, str)]:
            raise LabError(f"{source}: {_told(odd[0])} is no parameter's name; write it as text")
        try:
            return cls.model_validate(dict(values))
        except ValidationError as error:
            problems = "; ".join(cls._problem(item) for item in error.errors())
            raise LabError(f"{source}: {problems}") from None

    @classmethod
    def _problem(cls, item: Mapping[str, Any]) -> str:
        key = ".".join(str(part) for part in item["loc"])
        if item["type"] == "extra_forbidden":
            close = difflib.get_close_matches(key, cls.model_fields, n=1)
            return f"unknown parameter '{key[:SHOWN]}'" + (f" (did you mean '{close[0]}'?)" if close else "")
        if item["type"] == "missing":
            return f"parameter '{key}' is missing"
        where = f"parameter '{key}' " if key else ""
        return f"{where}is {_told(item['input'])}: {item['msg'][: 2 * SHOWN]}"


def _told(value: Any) -> str:
    """The value as Python writes it, cut short; its type where it cannot be written."""
    try:
        text = repr(value)
    except Exception:  # an integer of too many digits, a list inside itself a thousand times, anybody's class
        return f"a value of type {type(value).__name__}"
    return text if len(text) <= SHOWN else text[: SHOWN - 3] + "..."
