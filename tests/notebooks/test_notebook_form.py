"""The committed notebooks: parameters that equal their config, common headings, no logic of their own."""

import ast
import json
import re
from pathlib import Path

import pytest
import yaml

from rlhf_lab.workbench.stages import STAGES

ROOT = Path(__file__).resolve().parents[2]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
ORDER = ["the question", "the run", "the data", "before", "training", "after", "exercises"]


def cells(path: Path, kind: str = "code") -> list[dict]:
    found = json.loads(path.read_text())["cells"]
    return [{**cell, "source": "".join(cell["source"])} for cell in found if cell["cell_type"] == kind]


def tags(cell: dict) -> list[str]:
    return cell["metadata"].get("tags", [])


def test_every_stage_has_its_notebook_and_the_other_way_round():
    assert [path.stem for path in NOTEBOOKS] == sorted(STAGES)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_the_parameters_cell_equals_the_config_model(path):
    marked = [cell for cell in cells(path) if "parameters" in tags(cell)]
    assert len(marked) == 1
    statements = ast.parse(marked[0]["source"]).body
    assert all(isinstance(s, ast.AnnAssign) for s in statements), "annotated literals only"
    values = {s.target.id: ast.literal_eval(s.value) for s in statements}
    model = STAGES[path.stem]
    assert set(values) == set(model.model_fields)
    annotated = {s.target.id: ast.unparse(s.annotation) for s in statements}
    config = model.parse(values)
    for name, annotation in annotated.items():
        value = getattr(config, name)
        expected = {"str": str, "int": int, "float": float, "bool": bool, "list": list, "dict": object}[annotation]
        assert value is None or isinstance(value, expected), name


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_parameters_have_the_defaults_of_the_config_model(path):
    """A default stands in two places, the model and the cell; where they differ the cell must say a size."""
    marked = next(cell for cell in cells(path) if "parameters" in tags(cell))
    values = {s.target.id: ast.literal_eval(s.value) for s in ast.parse(marked["source"]).body}
    model = STAGES[path.stem]
    smaller = {"00_pretrain": {"documents", "steps"}}.get(path.stem, set())  # a taste; the full size is an experiment
    assert model.parse({k: v for k, v in values.items() if k not in smaller}) == model()


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_outputs_are_stripped(path):
    for cell in cells(path):
        assert not cell["outputs"] and cell["execution_count"] is None


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_no_logic_outside_the_cells_tagged_yours(path):
    for cell in cells(path):
        assert not re.search(r"^\s*[!%]", cell["source"], re.M), "shell or magic"
        if "yours" in tags(cell):
            continue
        for node in ast.walk(ast.parse(cell["source"])):
            assert not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef | ast.Try)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_headings_stand_in_the_common_order(path):
    text = "\n".join(cell["source"] for cell in cells(path, "markdown"))
    headings = [h.lower() for h in re.findall(r"^## (.+)$", text, re.M)]
    wanted = [heading for heading in ORDER if heading != "training" or heading in headings]  # not all of them train
    found = [next((i for i, h in enumerate(headings) if h.startswith(heading)), None) for heading in wanted]
    assert None not in found, f"of {wanted} it has only some: {headings}"
    assert found == sorted(found)
    assert (headings[0], headings[-1]) == (ORDER[0], ORDER[-1])
    assert len(re.findall(r"^# ", text, re.M)) == 1
    assert "**What healthy looks like.**" in text
    assert "$" in text, "an equation"
    assert len(cells(path)) + len(cells(path, "markdown")) <= 45


def test_every_experiment_file_fits_its_notebook():
    from rlhf_lab.workbench.experiments.validate import validate

    files = [p for p in (ROOT / "experiments").rglob("*.yaml") if "reference" not in p.parts and "log" not in p.parts]
    assert len(files) >= 6
    for file in files:
        assert validate(file).stages, file
        assert isinstance(yaml.safe_load(file.read_text()), dict)
