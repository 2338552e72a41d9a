"""The room's public face: complete, documented, and with examples that are true."""

import doctest
import importlib
import inspect

import pytest

from rlhf_lab import maths

FUNCTIONS = [name for name in maths.__all__ if inspect.isfunction(getattr(maths, name))]
MODULES = [
    "best_of_n",
    "advantages",
    "gold_curve",
    "kl",
    "length",
    "logprobs",
    "losses",
    "masking",
    "value_distribution",
]


@pytest.mark.parametrize("name", FUNCTIONS)
def test_every_function_states_shapes_units_errors_and_source(name):
    text = getattr(maths, name).__doc__
    assert [word for word in ("Shapes:", "Units:", "Errors:", "Source:") if word not in text] == []


def test_every_public_name_of_every_module_is_exported():
    defined = {
        name
        for module in (importlib.import_module(f"rlhf_lab.maths.{m}") for m in MODULES)
        for name, thing in vars(module).items()
        if not name.startswith("_") and getattr(thing, "__module__", "") == module.__name__
    }
    assert defined == set(maths.__all__)


@pytest.mark.parametrize("module", MODULES)
def test_examples_are_true(module):
    result = doctest.testmod(importlib.import_module(f"rlhf_lab.maths.{module}"))
    assert result.attempted
    assert not result.failed
