"""From a notebook's parameters cell to a strict config.

papermill injects its values in a cell of its own behind the one tagged `parameters`, never checks their
names, and turns `lr: 1e-5` of a YAML file into a text. So the next cell of every notebook says
`cfg = read_parameters(PPOStage, globals())`: it looks up in IPython's history which names the parameters
cells assigned, and has the config check all of them.
"""

import ast
from collections.abc import Mapping
from typing import Any, NamedTuple, TypeVar

from rlhf_lab.config import Config
from rlhf_lab.errors import LabError

SOURCE = "the parameters cell"
INJECTED = "# Parameters"  # how papermill begins the cell it adds
PATHS = {"PAPERMILL_INPUT_PATH", "PAPERMILL_OUTPUT_PATH"}  # its --inject-paths adds these

C = TypeVar("C", bound=Config)


class _Cell(NamedTuple):
    names: dict[str, bool]  # what it assigns -> is the value a literal
    injected: bool


def read_parameters(config_class: type[C], namespace: Mapping[str, Any]) -> C:
    """Build the config from what the notebook's parameters cells assigned.

    namespace: the notebook's `globals()`. Values are the current ones; the history only tells which names are
    parameters. A cell of nothing but assignments is a parameters cell if papermill injected it, or if it sets
    fields of the config. The one that sets most is the notebook's own; run again, its last version counts.
    All names of these two are checked. Cells run later may set further fields; their other names are their
    own business. Without IPython's history, the fields found in the namespace count.
    Errors: `LabError` in one line for an unknown name or a wrong value, or when no parameters cell was run.
    """
    fields = set(config_class.model_fields)
    history = namespace.get("In")
    if not isinstance(history, list):
        return config_class.parse({name: namespace[name] for name in fields if name in namespace}, source=SOURCE)
    names = _parameter_names(history, fields)
    return config_class.parse({name: namespace[name] for name in names if name in namespace}, source=SOURCE)


def _parameter_names(history: list[str], fields: set[str]) -> list[str]:
    cells = [cell for cell in map(_read_cell, history) if cell and (cell.injected or fields & cell.names.keys())]
    own = [len(fields & cell.names.keys()) if not cell.injected else 0 for cell in cells]
    most = max(own, default=0)
    if most:  # most of these names: the same cell, edited; fewer: a cell that changes a value or two
        last = max(index for index, count in enumerate(own) if 2 * count > most)
        declared, later = [cells[last]], cells[last + 1 :]
    else:
        declared, later = [], cells
    injected = [cell for cell in later if cell.injected][-1:]
    if not declared and not injected:
        raise LabError("no parameters were set: run the cell tagged 'parameters' first, then this one")
    _refuse_stale(declared, injected)
    names = [name for cell in declared + injected for name in cell.names if name not in PATHS]
    names += [name for cell in later for name in cell.names if name in fields]
    return list(dict.fromkeys(names))


def _refuse_stale(declared: list[_Cell], injected: list[_Cell]) -> None:
    """papermill's values come after the notebook's own cell: what that cell computed is out of date."""
    for cell in declared if injected else []:
        for name, literal in cell.names.items():
            if not literal and name not in injected[0].names:
                raise LabError(f"{SOURCE}: '{name}' is computed, but the injected parameters come later; use a literal")


def _read_cell(source: str) -> _Cell | None:
    """What a cell assigns, if it does nothing else than assign to plain names."""
    try:
        statements = ast.parse(source).body
    except (SyntaxError, ValueError):
        return None
    names: dict[str, bool] = {}
    for statement in statements:
        if isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Constant):
            continue  # a text that explains
        if not isinstance(statement, ast.Assign | ast.AnnAssign):
            return None
        targets = statement.targets if isinstance(statement, ast.Assign) else [statement.target]
        if not all(isinstance(target, ast.Name) for target in targets):
            return None
        if statement.value is not None:
            names |= {target.id: _is_literal(statement.value) for target in targets}
    injected = source.lstrip().startswith(INJECTED)
    return _Cell(names, injected) if names or injected else None


def _is_literal(value: ast.expr) -> bool:
    try:
        ast.literal_eval(value)
    except (ValueError, TypeError, SyntaxError, MemoryError, RecursionError):
        return ast.unparse(value) in (
            "float('nan')",
            "float('inf')",
            "float('-inf')",
        )  # as papermill writes them
    return True
