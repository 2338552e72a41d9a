"""Which code a line of results came from: a digest of the modules that its study runs, however they are written."""

import ast
import functools
import hashlib
from collections.abc import Iterator
from pathlib import Path

import rlhf_lab
from rlhf_lab.workbench.experiments.fingerprint import ABOVE, COMPUTES

_ROOT = Path(rlhf_lab.__file__).parent
_KEEPS = {"code_of.py", "finished_lines.py", "units.py"}  # of the studies: what keeps lines
_SHOWS = ("_results.py", "_figures.py")  # and what makes tables and figures of them
_MAKES = ("training/sft.py", "training/pretraining.py", "training/byte_pairs.py")  # what made the models it starts from
_TEXTS = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)


@functools.cache
def code_of(study: str) -> str:
    """A short hash of the module of that name in `studies`, of what trains base and SFT models, and of all they import.

    Comments, docstrings and layout do not count, nor what in `workbench` only keeps, shows and runs. study: "" or one
    that has no module of its own = all of them.
    """
    root = _ROOT / "workbench" / "studies"
    first = [root / f"{study}.py"] if (root / f"{study}.py").is_file() else sorted(root.glob("*.py"))
    found: dict[Path, str] = {}
    waiting = [path for path in (*first, *(_ROOT / name for name in _MAKES)) if path.is_file() and _counts(path)]
    while waiting:
        path = waiting.pop()
        if path not in found:
            tree = ast.parse(path.read_bytes())
            found[path] = _meaning(tree)
            waiting += [other for other in _imported(tree) if _counts(other)]
    folders = {path.parent for path in found}
    data = {path: path.read_text(encoding="utf-8") for folder in folders for path in folder.glob("*.yaml")}
    told = [f"{path.relative_to(_ROOT)}\0{text}" for path, text in sorted((found | data).items())]
    return hashlib.sha256("\0".join(told).encode()).hexdigest()[:10]


def _counts(path: Path) -> bool:
    """Whether results depend on a module; the package's own `__init__` only names what others hold."""
    room, *below = path.relative_to(_ROOT).parts
    if room == "workbench":
        return below[0] in COMPUTES and path.name not in _KEEPS and not path.name.endswith(_SHOWS)
    return room not in ABOVE and bool(below or room in ("config.py", "errors.py"))


def _meaning(tree: ast.Module) -> str:
    """The code without comments, docstrings and layout."""
    for node in ast.walk(tree):
        if isinstance(node, _TEXTS) and ast.get_docstring(node, clean=False) is not None:
            node.body = node.body[1:] or [ast.Pass()]
    return ast.unparse(tree)


def _imported(tree: ast.Module) -> Iterator[Path]:
    """The files of the package that a module imports, wherever in it."""
    for node in ast.walk(tree):
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        if isinstance(node, ast.ImportFrom) and node.module:
            names = [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
        for name in names:
            top, *parts = name.split(".")
            place = _ROOT.joinpath(*parts)
            if top == "rlhf_lab":
                yield from (path for path in (place.with_suffix(".py"), place / "__init__.py") if path.is_file())
