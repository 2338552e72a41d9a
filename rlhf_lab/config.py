"""The one kind of configuration: frozen, typed, and strict about names."""

import difflib
from collections.abc import Mapping
from typing import Any, Self

from pydantic import BaseModel, ConfigDict, ValidationError

from rlhf_lab.errors import LabError


class Config(BaseModel):
    """Base of every configuration. Unknown keys are refused, numbers written as text become numbers."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, protected_namespaces=())

    @classmethod
    def parse(cls, values: Mapping[str, Any], source: str = "parameters") -> Self:
        """Build the config from a mapping, such as a YAML file or a notebook's parameters.

        Errors: `LabError` in one line that names `source`, every wrong key and what is wrong with it.
        """
        try:
            return cls(**values)
        except ValidationError as error:
            problems = "; ".join(cls._problem(item) for item in error.errors())
            raise LabError(f"{source}: {problems}") from None

    @classmethod
    def _problem(cls, item: Mapping[str, Any]) -> str:
        key = ".".join(str(part) for part in item["loc"])
        if item["type"] == "extra_forbidden":
            close = difflib.get_close_matches(key, cls.model_fields, n=1)
            return f"unknown parameter '{key}'" + (f" (did you mean '{close[0]}'?)" if close else "")
        if item["type"] == "missing":
            return f"parameter '{key}' is missing"
        where = f"parameter '{key}' " if key else ""
        return f"{where}is {item['input']!r}: {item['msg']}"
