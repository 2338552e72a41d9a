"""Every notebook where people open it: in JupyterLab, by "run all", at the sizes of experiments/smoke*.yaml."""

from pathlib import Path
from typing import Any, NamedTuple

import nbformat
import pytest
from papermill.iorw import load_notebook_node
from papermill.parameterize import parameterize_notebook

from rlhf_lab.workbench.experiments.jobs import references
from rlhf_lab.workbench.experiments.validate import PlannedStage, validate
from rlhf_lab.workbench.records import read_status

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[2]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
BROKEN = {
    "import sys; print('careful', file=sys.stderr);": "printed to stderr",
    "display({'application/vnd.jupyter.widget-view+json': {'model_id': '0'}}, raw=True)": "a widget is not shown",
    "display({'image/png': 'AAAA'}, raw=True)": "a figure is not shown",
    "1 / 0": "ZeroDivisionError",
    "'behind it'": "has not run",
}
END_S = 300


class Outcome(NamedTuple):
    """What stands on the page after a run, and what it left on disk."""

    run_dir: Path
    cells: list[dict[str, Any]]
    troubles: list[str]  # of the page itself

    def faults(self) -> list[str]:
        """What a person would find wrong with the page, a line each."""
        found = [f"the page: {trouble}" for trouble in self.troubles]
        for cell in self.cells:
            faults = [fault for output in cell["outputs"] for fault in faults_of(output)]
            if cell["count"] is None or cell["state"] != "idle":
                faults.append("has not run to its end")
            found += [f"{cell['source'][:70]!r}: {fault}" for fault in faults]
        return found


def faults_of(output: dict[str, Any]) -> list[str]:
    """What is wrong with one output of a cell."""
    if output["kind"] == "error":
        return [f"{output['name']}: {output['said']}"]
    if output["name"] == "stderr":
        return [f"printed to stderr: {output['said']}"]
    if (output["widget"] or output["figure"]) and not output["shown"]:
        return [f"{'a widget' if output['widget'] else 'a figure'} is not shown: {output['text']!r}"]
    return []


@pytest.fixture(scope="module")
def stages() -> dict[str, PlannedStage]:
    """Name -> stage of the smoke chains."""
    files = sorted((ROOT / "experiments").glob("smoke*.yaml"))
    return {stage.name: stage for file in files for stage in validate(file).stages}


@pytest.fixture(scope="module")
def outcomes() -> dict[str, Outcome]:
    """Name of a stage -> its run in this session: a later notebook takes what an earlier one has made."""
    return {}


@pytest.fixture
def run(lab, stages, outcomes):
    """Run a stage in the browser, with those it needs before it, unless that has been done."""

    def run(name: str) -> Outcome:
        if name not in outcomes:
            stage = stages[name]
            needed = {other: run(other).run_dir for other in references(stage).values()}
            outcomes[name] = run_in_lab(lab, stage, stage.resolved(needed))
        return outcomes[name]

    return run


def run_in_lab(lab, stage: PlannedStage, parameters: dict[str, Any]) -> Outcome:
    run_dir = lab.folder / "runs" / stage.name
    parameters = {**parameters, "run_dir": str(run_dir), "threads": 1}
    notebook = parameterize_notebook(load_notebook_node(str(stage.notebook)), parameters)
    nbformat.write(notebook, lab.folder / stage.notebook.name)
    lab.troubles.clear()
    lab.page.set_viewport_size({"width": 1300, "height": 900})
    lab.open(stage.notebook.name)
    lab.start()
    lab.wait("window.ended", END_S)
    return Outcome(run_dir, lab.cells(), list(lab.troubles))


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_it_runs_to_its_end(path, stages, run):
    names = [stage.name for stage in stages.values() if stage.stem == path.stem]
    assert names, f"{path.stem} has no stage in experiments/smoke*.yaml"
    outcome = run(names[0])
    assert outcome.faults() == []
    assert read_status(outcome.run_dir).state == "done"


def test_a_broken_page_is_seen_to_be_broken(lab):
    lab.write("broken.ipynb", *BROKEN)
    lab.open("broken.ipynb")
    lab.start()
    assert lab.wait("window.ended", END_S)
    lab.page.evaluate("console.error('from a widget')")
    found = Outcome(lab.folder, lab.cells(), [text for text in lab.troubles if "from a widget" in text]).faults()
    assert len(found) == 1 + len(BROKEN), found
    for line, said in zip(found, ["from a widget", *BROKEN.values()], strict=True):
        assert said in line
