"""08_human_feedback as a person goes through it: run all stops at the labels; label, learn, and these two again."""

import json
from pathlib import Path

import pytest

from rlhf_lab.sandbox.world import World

pytestmark = pytest.mark.slow

NOTEBOOK = Path(__file__).resolve().parents[2] / "notebooks" / "08_human_feedback.ipynb"
SETTINGS = {
    **{"policy": World.load().base_model, "run_dir": "by-hand", "arms": ["offline"], "rounds": 2, "labels": 10},
    **{"pool": 16, "members": 1, "eval_prompts": 4, "max_new_tokens": 16, "threads": 1},
    **{"ppo": {"updates": 1, "batch_size": 8}},
}


def run_cell(lab, source: str) -> dict:
    """Run the cell of that source, and what has become of it."""
    place = next(cell["place"] for cell in lab.cells() if cell["source"].startswith(source))
    lab.page.evaluate(f"window.jupyterapp.shell.currentWidget.content.activeCellIndex = {place}")
    lab.command("notebook:run-cell")
    return next(cell for cell in lab.cells() if cell["place"] == place)


def label_all(lab, number: int) -> None:
    """Answer ten pairs by key."""
    root = lab.page.locator(".rl-root").first
    root.get_by_text("0 of 10").wait_for()
    root.locator(".rl-reply").first.click()
    for item in range(2, 11):
        lab.page.keyboard.press("ab"[(item + number) % 2])
        root.locator(".rl-note", has_text=f"Item {item} of 10").wait_for()
    lab.page.keyboard.press("a")
    root.get_by_text("All done. Everything is stored.").wait_for()


def test_a_person_labels_two_rounds_with_the_same_two_cells(lab):
    cells = [cell for cell in json.loads(NOTEBOOK.read_text())["cells"] if cell["cell_type"] == "code"]
    sources = ["".join(cell["source"]) for cell in cells]
    parameters = next(i for i, cell in enumerate(cells) if "parameters" in cell["metadata"].get("tags", []))
    sources.insert(parameters + 1, "\n".join(f"{name} = {value!r}" for name, value in SETTINGS.items()))
    lab.write("08.ipynb", *sources)
    lab.open("08.ipynb")
    lab.page.set_default_timeout(120_000)
    lab.command("notebook:run-all-cells")
    by_source = {cell["source"].split("\n")[0]: cell for cell in lab.cells()}
    stopped = by_source["yours.learn()"]["outputs"][-1]
    assert stopped["kind"] == "error" and "0 of 10 pairs have a label; label the other 10" in stopped["said"]
    assert by_source["for loop in arms.values():"]["count"] is None, "it went on without the labels"

    label_all(lab, 1)
    learned = run_cell(lab, "yours.learn()")
    assert "error" not in [output["kind"] for output in learned["outputs"]]
    assert "offline-me" in learned["outputs"][-1]["text"]
    run_cell(lab, "yours.label()")
    label_all(lab, 2)
    learned = run_cell(lab, "yours.learn()")
    assert "error" not in [output["kind"] for output in learned["outputs"]]
    again = run_cell(lab, "yours.label()")
    assert "all 2 rounds are over" in again["outputs"][0]["said"]
    assert sorted(path.name for path in (lab.folder / "by-hand" / "labels" / "offline-me").glob("*.sqlite")) == [
        "round-1.sqlite",
        "round-2.sqlite",
    ]
    assert lab.troubles == []
