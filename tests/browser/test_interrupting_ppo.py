"""The PPO loop in JupyterLab: interrupted by its stop button, run again, and brought to its end."""

import json
from pathlib import Path

import nbformat
import pytest
from papermill.iorw import load_notebook_node
from papermill.parameterize import parameterize_notebook

from rlhf_lab.sandbox.world import World
from rlhf_lab.workbench.records import read_jsonl, read_status

pytestmark = pytest.mark.slow

NOTEBOOK = Path(__file__).resolve().parents[2] / "notebooks" / "03_ppo.ipynb"
UPDATES, BATCH, MEASURED = 12, 8, 16
REWARD = f"""
import time
from pathlib import Path


def slow(completions):
    marker = Path(__file__).with_name("measuring")
    if len(completions) == {MEASURED}:  # held-out prompts: a measurement, which is to be interrupted
        marker.touch()
        time.sleep(0.5)
        marker.unlink()
    return [float(len(text.split())) for text in completions]
"""
PARAMETERS = {
    "critic": "policy",
    "updates": UPDATES,
    "batch_size": BATCH,
    "eval_every": 1,
    "eval_prompts": MEASURED,
    "save_every": 0,
    "threads": 1,
}


def loop_and_behind(lab) -> tuple[dict, list[dict]]:
    """The cell with the loop, and the code cells after it, as they stand on the page."""
    cells = lab.cells()
    (place,) = [i for i, cell in enumerate(cells) if "in ppo.ppo_updates(state)" in cell["source"]]
    return cells[place], cells[place + 1 :]


def go_to(lab, place: int) -> None:
    """Make a cell the active one."""
    lab.page.evaluate("place => { window.jupyterapp.shell.currentWidget.content.activeCellIndex = place; }", place)


def wait_in_loop(lab, condition) -> None:
    """Wait for what the loop does, as long as it runs."""
    while not condition():
        assert not lab.page.evaluate("window.ended"), "the loop was over before it could be interrupted"
        lab.page.wait_for_timeout(20)


def interrupt(lab, run_dir: Path) -> tuple[dict, list[dict]]:
    """JupyterLab's stop button, and what then stands on the page: the loop, and the cells behind it."""
    assert read_status(run_dir).state == "running"
    lab.command("notebook:interrupt-kernel")
    assert lab.wait("window.ended", 30)
    loop, behind = loop_and_behind(lab)
    *_, last = loop["outputs"]
    assert (last["kind"], last["name"]) == ("error", "KeyboardInterrupt")
    assert last["shown"] and "KeyboardInterrupt" in last["text"]
    assert [output["shown"] for output in loop["outputs"] if output["figure"]] in ([True], []), "not yet, or once"
    status = read_status(run_dir)
    assert (status.state, status.reason) == ("stopped", "interrupted")
    assert {cell["count"] for cell in behind} == {None}, "the cells behind the loop wait"
    return loop, behind


def test_interrupted_and_run_again_it_goes_on_behind_the_last_whole_update(lab):
    run_dir, metrics = lab.folder / "interrupted", lab.folder / "interrupted" / "metrics.jsonl"
    (lab.folder / "slow.py").write_text(REWARD)
    parameters = {**PARAMETERS, "policy": str(World.load().base_model), "run_dir": str(run_dir)}
    parameters["reward"] = f"{lab.folder / 'slow.py'}:slow"
    notebook = parameterize_notebook(load_notebook_node(str(NOTEBOOK)), parameters)
    nbformat.write(notebook, lab.folder / "interrupted.ipynb")
    lab.open("interrupted.ipynb")
    lab.start()
    wait_in_loop(lab, lambda: len(read_jsonl(metrics)) >= 3)
    wait_in_loop(lab, (lab.folder / "measuring").exists)  # in the body of the loop, behind an update
    loop, _ = interrupt(lab, run_dir)

    go_to(lab, loop["place"])
    done = len(read_jsonl(metrics))
    lab.start("notebook:run-cell")
    wait_in_loop(lab, lambda: len(read_jsonl(metrics)) >= done + 2)  # and somewhere else
    interrupt(lab, run_dir)
    assert len(read_jsonl(metrics)) < UPDATES

    lab.start("notebook:run-cell")
    assert lab.wait("window.ended", 90)
    loop, behind = loop_and_behind(lab)
    assert [output["figure"] and output["shown"] for output in loop["outputs"]] == [True], "one picture, nothing else"
    go_to(lab, behind[0]["place"])
    lab.start("notebook:run-all-below")
    assert lab.wait("window.ended", 60)
    assert all(cell["count"] for cell in loop_and_behind(lab)[1])
    assert lab.troubles == []
    assert read_status(run_dir).state == "done"
    rows = read_jsonl(metrics)
    assert [row["episode"] for row in rows] == [BATCH * number for number in range(1, UPDATES + 1)]
    assert all("heldout/score" in row for row in rows)
    assert json.loads((run_dir / "results.json").read_text())["score"] == rows[-1]["heldout/score"]
