"""A docstring says on its page what it says in the code: no shape, star or underscore is lost on the way."""

import ast
import re
import sys

import docutils.core
import pytest
from doc_pages import ROOT

LARGE = [pytest.param(room, marks=pytest.mark.slow) for room in ("judges", "workbench")]
ROOMS = ["maths", "data", "models", "rewards", "training", "sandbox", *LARGE]
DEFINITIONS = (ast.Module, ast.ClassDef, ast.FunctionDef)


@pytest.fixture(scope="module")
def to_rest():
    sys.path.insert(0, str(ROOT / "docs"))
    try:
        from _ext.docstrings import to_rest
    finally:
        sys.path.remove(str(ROOT / "docs"))
    return to_rest


def rendered(lines: list[str]) -> str:
    """The text that docutils makes of it. A mark that is not understood is an error."""
    settings = {"report_level": 2, "halt_level": 2, "input_encoding": "unicode"}
    return docutils.core.publish_doctree("\n".join(lines), settings_overrides=settings).astext()


def bare(text: str) -> str:
    """Without blanks, backticks, and the colon behind the name of a column."""
    return re.sub(r"[\s`:]", "", text)


@pytest.mark.parametrize("room", ROOMS)
def test_every_docstring_keeps_its_text(room, to_rest):
    texts = {
        ast.get_docstring(node)
        for path in (ROOT / "rlhf_lab" / room).rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, DEFINITIONS) and not getattr(node, "name", "").startswith("_")
    } - {None}
    assert len(texts) > 10
    for text in texts:
        assert bare(rendered(to_rest(text))) == bare(text)


def test_labels_columns_code_and_formulas_stand_apart(to_rest):
    text = (
        "A sentence that goes\non: with a colon.\nShapes: x (B, T)*.\nlr, eps: two\nnumbers\n\n"
        "    a_t = b_t\n\n  drop   left out\n  a_long_name with words"
    )
    assert [line for line in to_rest(text) if line] == [
        "A sentence that goes on: with a colon.",
        r"**Shapes**: x (B, T)\*.",
        "**lr, eps**: two numbers",
        "::",
        r"    a_t = b_t",
        "- ``drop``: left out",
        "- ``a_long_name``: with words",
    ]
