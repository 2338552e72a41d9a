"""The strict parameters of a notebook that is none of the lab's: read off its cell tagged `parameters`.

So a copied and changed notebook runs like the originals, and a misspelt parameter stops it just the same.
"""

import ast
from pathlib import Path
from typing import Any

from pydantic import create_model

from rlhf_lab.config import Config
from rlhf_lab.errors import LabError

_PLAIN = {"int": int, "float": float, "bool": bool, "str": str}


def config_from_cell(notebook: Path) -> type[Config]:
    """A model of the literals in the parameters cell, typed by annotation or by value. Starts no kernel."""
    import nbformat

    try:
        cells = nbformat.read(notebook, as_version=4).cells
    except Exception as error:
        raise LabError(f"{notebook} is not a valid notebook ({type(error).__name__})") from None
    source = "\n".join(cell.source for cell in cells if "parameters" in cell.metadata.get("tags", []))
    try:
        statements = ast.parse(source).body
    except SyntaxError as error:
        raise LabError(f"{notebook}, parameters cell, line {error.lineno}: {error.msg}") from None
    fields: dict[str, Any] = {"run_dir": (str | None, None)}
    for statement in statements:
        if isinstance(statement, ast.AnnAssign):
            target, annotation = statement.target, ast.unparse(statement.annotation)
        elif isinstance(statement, ast.Assign):
            target, annotation = statement.targets[0], None
        else:
            continue
        if isinstance(target, ast.Name) and statement.value is not None:
            fields[target.id] = _field(statement.value, annotation)
    return create_model(f"parameters of {notebook.stem}", __base__=Config, **fields)


def _field(value: ast.expr, annotation: str | None) -> tuple[Any, Any]:
    try:
        default = ast.literal_eval(value)
    except ValueError:  # not a literal: any value may take its place
        return Any, None
    if annotation is None:
        return _PLAIN.get(type(default).__name__, Any), default
    names = [name.strip() for name in annotation.split("|")]
    kinds = [_PLAIN.get(name) for name in names if name != "None"]
    if len(kinds) != 1 or kinds[0] is None:
        return Any, default
    return (kinds[0] | None if "None" in names else kinds[0]), default
