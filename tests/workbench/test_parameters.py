"""From the parameters cell to a config: by papermill in a real kernel, and on histories written by hand."""

import contextlib
import os
import subprocess
import sys

import nbformat
import pytest

from rlhf_lab.config import Config
from rlhf_lab.errors import LabError
from rlhf_lab.workbench.parameters import read_parameters


class Stage(Config):
    """Parameters of a stage."""

    lr: float = 1e-5
    batch: int = 8
    name: str = "a"
    columns: dict[str, str] = {}
    warmup: int = 0


OWN = "lr = 1e-5  # learning rate\nbatch: int = 8\nname = 'a'\ncolumns: dict[str, str] = {}\n"


def session(*cells: str) -> dict:
    """The namespace after these cells, with the history IPython keeps."""
    namespace = {"In": [""]}
    for cell in cells:
        namespace["In"].append(cell)
        with contextlib.suppress(Exception):  # a cell that failed is in the history too
            exec(cell, namespace)
    namespace["In"].append("cfg = read_parameters(Stage, globals())")
    return namespace


def read(*cells: str) -> Stage:
    return read_parameters(Stage, session(*cells))


# --- through papermill, in a real kernel


@pytest.fixture(scope="module")
def notebook(tmp_path_factory):
    """A notebook as the lab's are: a parameters cell, the config, work, and the config once more."""
    folder = tmp_path_factory.mktemp("parameters")
    cells = [
        nbformat.v4.new_markdown_cell("# A question"),
        nbformat.v4.new_code_cell(
            "from rlhf_lab.config import Config\nfrom rlhf_lab.workbench.parameters import read_parameters\n"
            "from rlhf_lab.workbench.session import headless\n"
            "class Stage(Config):\n    lr: float = 1e-5\n    batch: int = 8\n    name: str = 'a'\n"
            "    seed: int = 0"
        ),
        nbformat.v4.new_code_cell(
            "lr = 1e-4  # learning rate\nbatch = 8\nname: str = 'a'\nseed = 0",
            metadata={"tags": ["parameters"]},
        ),
        nbformat.v4.new_code_cell("cfg = read_parameters(Stage, globals())\nprint(repr(cfg))"),
        nbformat.v4.new_code_cell("total = 3\nnames = ['x']\nfor seed in range(5):\n    total += seed"),
        nbformat.v4.new_code_cell("batch = 2 * batch"),
        nbformat.v4.new_code_cell("print(repr(read_parameters(Stage, globals())), headless())"),
    ]
    path = folder / "own.ipynb"
    nbformat.write(nbformat.v4.new_notebook(cells=cells, metadata={"kernelspec": {
        "name": "python3", "display_name": "Python 3", "language": "python"}}), path)  # fmt: skip
    return path


def papermill(notebook, *options):
    """Execute by papermill's command line. Returns the exit code and the notebook that came out."""
    out = notebook.with_name("out.ipynb")
    command = [sys.executable, "-m", "papermill", str(notebook), str(out), "--no-progress-bar", *options]
    env = {name: value for name, value in os.environ.items() if name != "RLHF_LAB_HEADLESS"}
    done = subprocess.run(command, cwd=notebook.parent, env=env, capture_output=True, timeout=60)
    return done.returncode, nbformat.read(out, as_version=4)


def test_papermills_parameters_reach_the_config(notebook):
    (notebook.parent / "run.yaml").write_text("lr: 1e-5\nname: from a file\n")
    code, out = papermill(notebook, "-f", "run.yaml", "-p", "batch", "32", "--inject-paths")
    assert code == 0
    assert 'lr = "1e-5"' in "".join(cell.source for cell in out.cells)  # YAML made it a text
    printed = [cell.outputs[0].text for cell in out.cells if cell.get("outputs")]
    assert printed == [
        "Stage(lr=1e-05, batch=32, name='from a file', seed=0)\n",
        "Stage(lr=1e-05, batch=64, name='from a file', seed=4) True\n",  # read again: the values of then
    ]


def test_a_misspelt_parameter_stops_papermill_at_the_config(notebook):
    code, out = papermill(notebook, "-p", "bacth", "32")
    assert code == 1
    ran = [cell for cell in out.cells if cell.cell_type == "code" and cell.execution_count]
    assert ran[-1].source.startswith("cfg = read_parameters")
    (error,) = [output for output in ran[-1].outputs if output.output_type == "error"]
    line = "the parameters cell: unknown parameter 'bacth' (did you mean 'batch'?)"
    assert (error.ename, error.evalue) == ("LabError", line)
    assert error.traceback == [f"LabError: {line}"]


# --- histories


def test_values_are_those_of_now():
    assert read(OWN) == Stage(lr=1e-5)
    assert read(OWN, "lr = 2 * lr").lr == 2e-5
    assert read(OWN, "for batch in (1, 2, 3):\n    pass").batch == 3
    assert read(OWN, "warmup = 5").warmup == 5  # a field that the notebook's own cell does not have


def test_injected_values_come_after_the_notebooks_own():
    cfg = read(OWN, '# Parameters\nlr = "1e-5"\nbatch = 32\n')
    assert (cfg.lr, cfg.batch) == (1e-5, 32)


def test_other_variables_do_not_matter():
    cfg = read("import math", OWN, "total = 3\nlabels = ['x']", "def f():\n    lr = 3", "total = 4; batch = 16")
    assert cfg == Stage(lr=1e-5, batch=16)
    assert read("lr = 0.5\nbatch = 2", "total = 4; batch = 16") == Stage(lr=0.5, batch=16)


@pytest.mark.parametrize("cell", [OWN + "bacth = 3", "# Parameters\nbacth = 3", "# Parameters\nlr = 1.0\nbacth = 3"])
def test_an_unknown_name_in_a_parameters_cell_is_refused(cell):
    with pytest.raises(LabError, match="the parameters cell: unknown parameter 'bacth'.*'batch'"):
        read(OWN, cell)


def test_a_wrong_value_is_refused():
    with pytest.raises(LabError, match="the parameters cell: parameter 'lr' is 'fast'"):
        read(OWN, "# Parameters\nlr = 'fast'")


def test_a_mended_cell_run_again_is_all_that_counts():
    """In a live session the history keeps the misspelt version for ever."""
    ask = "cfg = read_parameters(Stage, globals())"
    assert read(OWN + "bacth = 3", ask, OWN.replace("8", "3"), ask).batch == 3
    assert read(OWN, "# Parameters\nbacth = 3", ask, "# Parameters\nbatch = 3", ask).batch == 3
    assert read(OWN, "# Parameters\nbacth = 3", ask, OWN, ask).batch == 8
    # a line taken out of the cell is out, though the kernel still has its value
    assert read(OWN + "warmup = 9", ask, OWN, ask).warmup == 0


def test_computed_values_are_used_but_not_behind_injected_ones():
    derived = OWN.replace("8", "4 * 2")
    assert read(derived).batch == 8
    assert read(derived, "# Parameters\nbatch = 16").batch == 16
    with pytest.raises(LabError, match="'batch' is computed"):
        read(derived, "# Parameters\nlr = 1.0")


def test_papermills_odd_floats_are_literals():
    with pytest.raises(LabError, match="'lr' is inf"):
        read(OWN, "# Parameters\nlr = float('inf')")


def test_without_a_parameters_cell_nothing_is_guessed():
    with pytest.raises(LabError, match="run the cell tagged 'parameters' first"):
        read("import math", "total = 3", "print('lr')", "lr, batch = 1, 2", "def broken(:")
    assert read("# Parameters\nlr = 1.0").lr == 1.0


def test_outside_ipython_the_fields_found_count():
    assert read_parameters(Stage, {"lr": "5e-6", "batch": 2, "other": object()}) == Stage(lr=5e-6, batch=2)
    with pytest.raises(LabError, match="'batch'"):
        read_parameters(Stage, {"batch": "many"})
