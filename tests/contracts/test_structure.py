"""Who may import whom, read off the source, and what importing the package costs."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parents[2] / "rlhf_lab"
FREE = {"errors", "config"}
ALLOWED = {
    "maths": set(),
    "data": {"maths"},
    "models": {"maths", "data"},
    "rewards": {"maths", "data", "models"},
    "training": {"maths", "data", "models", "rewards"},
    "judges": {"maths", "data", "models", "rewards"},
    "sandbox": {"maths"},
    "workbench": {"maths", "data", "models", "rewards", "training", "judges", "sandbox"},
}


def imported_rooms(path: Path) -> set[str]:
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names |= {f"{node.module}.{alias.name}" for alias in node.names} | {node.module or ""}
    return {name.split(".")[1] for name in names if name.startswith("rlhf_lab.")}


@pytest.mark.parametrize("room", ALLOWED)
def test_a_room_imports_only_the_rooms_below_it(room):
    for path in sorted((PACKAGE / room).glob("*.py")):
        extra = imported_rooms(path) - ALLOWED[room] - FREE - {room}
        assert not extra, f"{path.name} imports {extra}"


def test_every_folder_of_the_package_is_a_room():
    assert {path.parent.name for path in PACKAGE.glob("*/__init__.py")} == set(ALLOWED)


def test_maths_imports_torch_and_the_standard_library_alone():
    for path in (PACKAGE / "maths").glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            modules = [a.name for a in node.names] if isinstance(node, ast.Import) else []
            modules += [node.module] if isinstance(node, ast.ImportFrom) and node.module else []
            for module in modules:
                top = module.split(".")[0]
                assert top in {"torch", "rlhf_lab"} | set(sys.stdlib_module_names), f"{path.name}: {module}"


@pytest.mark.parametrize("module", ["rlhf_lab", "rlhf_lab.maths", "rlhf_lab.sandbox"])
def test_importing_it_loads_neither_transformers_nor_trl(module):
    code = f"import sys, {module}; print([m for m in ('transformers', 'trl', 'datasets', 'wandb') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_the_names_of_the_package_exist():
    import rlhf_lab

    for name in rlhf_lab.__all__:
        assert getattr(rlhf_lab, name) is not None
