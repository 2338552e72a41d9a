"""The live view where people use it: a real PPO watched in JupyterLab, through reloads, stopped and taken up again."""

import contextlib
import json
import re
from importlib import resources
from pathlib import Path

import psutil
import pytest

from rlhf_lab.sandbox.world import World
from rlhf_lab.workbench.live.alarms import Alarm
from rlhf_lab.workbench.live.follow import Seen
from rlhf_lab.workbench.live.screen import page as page_of
from rlhf_lab.workbench.records import Status

from .test_labelling_widget import CONTRAST, HOSTILE, SPILL

pytestmark = pytest.mark.slow

NOTEBOOKS = Path(__file__).parents[2] / "notebooks"
WATCHED = """
experiment: watched
stages:
  - name: ppo
    notebook: {notebook}
    parameters:
      {{policy: {policy}, critic: policy, reward: gold, updates: 5000, batch_size: 8, minibatches: 1, epochs: 1,
       eval_prompts: 8, save_every: 5, decay: "off", kl_control: ziegler, kl_target: 0.01, threads: 1}}
"""
START = (
    "from rlhf_lab.workbench import live\nsource = live.choose(start_file='watched.yaml')\nview = live.watch(source)"
)
LONG_S = 90_000

ALONE = """
([source, view]) => {
  const model = {get: name => name === 'view' ? view : 0, on: () => {}, off: () => {}, send: m => window.sent.push(m)};
  window.sent = [];
  const address = URL.createObjectURL(new Blob([source], {type: 'text/javascript'}));
  return import(address).then(module => { module.default.render({model, el: document.body}); });
}
"""


class View:
    """The live view on the page."""

    def __init__(self, lab):
        self.lab, self.root = lab, lab.page.locator(".lv-root")

    def wait(self, part: str, text: str) -> None:
        """Until a part of it says so."""
        self.root.locator(f".lv-{part}", has_text=text).first.wait_for(timeout=LONG_S)

    def done(self) -> int:
        """How many updates are done."""
        found = re.search(r"(\d+) of 5000", self.root.locator(".lv-doing").text_content())
        return int(found[1]) if found else 0

    def wait_for_more(self, done: int) -> None:
        """Until more updates than these are done, and the curve has been drawn anew."""
        before = self.root.locator(".lv-curve").first.get_attribute("points")
        self.lab.page.wait_for_function(
            "([done, before]) => {"
            " const now = document.querySelector('.lv-doing')?.textContent.match(/(\\d+) of 5000/);"
            " const curve = document.querySelector('.lv-curve')?.getAttribute('points');"
            " return now && Number(now[1]) > done && curve !== before; }",
            arg=[done, before],
            timeout=LONG_S,
        )

    def stop(self) -> None:
        """Press the button by the keyboard."""
        self.root.get_by_role("button", name="Stop the run").focus()
        self.lab.page.keyboard.press("Enter")


@pytest.fixture
def watched(lab):
    """The laboratory with an experiment of one PPO to start, which is ended in the end."""
    text = WATCHED.format(notebook=NOTEBOOKS / "03_ppo.ipynb", policy=World.load("default").base_model)
    (lab.folder / "watched.yaml").write_text(text)
    lab.write("live.ipynb", START, "view", "print('behind')")
    yield lab
    note = lab.folder / "runs/watched/live.json"
    if note.exists():  # its session is its own: neither the kernel nor JupyterLab ends it
        with contextlib.suppress(psutil.Error):
            process = psutil.Process(json.loads(note.read_text())["pid"])
            process.terminate()
            process.wait(60)


def run_cell(lab, number: int) -> None:
    lab.page.evaluate(
        "n => { window.jupyterapp.shell.currentWidget.content.activeCellIndex = n;"
        " return window.jupyterapp.commands.execute('notebook:run-cell').then(() => null); }",
        number,
    )


def test_a_ppo_is_watched_through_reloads_stopped_and_taken_up_again(watched):
    lab, errors = watched, []
    lab.page.on("pageerror", lambda error: errors.append(str(error)))
    lab.open("live.ipynb")
    lab.command("notebook:run-all-cells")
    view = View(lab)
    view.wait("panel", "KL to the reference")
    view.wait("state", "running")
    view.wait_for_more(view.done())
    view.wait("alarms", "The KL to the reference is")  # its target is one that no policy keeps

    lab.command("docmanager:save")
    lab.page.reload()
    view.wait("panel", "KL to the reference")  # it is there again by itself
    view.wait_for_more(view.done())
    lab.command("notebook:clear-all-cell-outputs")
    lab.command("docmanager:save")
    lab.page.reload()  # as a page whose view was never saved: the cell run again brings it
    lab.page.wait_for_function(
        "window.jupyterapp?.shell.currentWidget?.sessionContext?.session?.kernel?.status === 'idle'"
    )
    run_cell(lab, 1)
    view.wait("panel", "KL to the reference")
    view.wait_for_more(view.done())

    cells = lab.sources()
    view.stop()
    for key in ("d", "d", "x"):
        lab.page.keyboard.press(key)
    view.wait("state", "stopped")
    view.root.get_by_role("button", name="The run is stopped").wait_for()
    assert view.root.get_by_role("button").get_attribute("aria-disabled") == "true"
    assert lab.sources() == cells
    (run,) = (lab.folder / "runs/watched/ppo").iterdir()
    assert json.loads((run / "status.json").read_text())["state"] == "stopped"
    assert list((run / "training").glob("step-*"))
    stopped = view.done()
    assert stopped > 0

    run_cell(lab, 0)  # the same command takes the run up
    run_cell(lab, 1)
    view.wait("state", "running")
    view.wait_for_more(stopped)
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [row["episode"] for row in rows] == [8.0 * (i + 1) for i in range(len(rows))]  # none twice, none left out
    assert len(rows) > stopped
    view.stop()
    view.wait("state", "stopped")
    assert errors == []


def seen() -> Seen:
    rows = [
        {
            "episode": 8 * n,
            "objective/scores": 0.1 * n,
            "gold/mean": 0.1 * n if n % 10 == 0 else None,
            "objective/kl": 0.2 * n,
            "policy/clipfrac_avg": 0.01,
            "completions/eos_rate": 1.0,
        }
        for n in range(1, 41)
    ]
    samples = [{"episode": 320, "prompt": HOSTILE, "SFT": "word " * 40, "PPO": "x" * 150, "PPO, gold": 0.5}] * 3
    settings = {"kl_control": "ziegler", "kl_target": 6.0}
    status = Status(state="died", reason=HOSTILE)
    return Seen(Path("/runs") / ("x" * 60), status, {"done": 40, "total": 60}, settings, rows, samples, HOSTILE)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_it_is_readable_at_any_width_in_light_and_dark(browser, scheme):
    static = resources.files("rlhf_lab.workbench.live") / "static"
    shown = page_of(seen(), [Alarm("objective/kl", HOSTILE, "Try that.", 64.0)])
    tab = browser.new_page(viewport={"width": 1300, "height": 900}, color_scheme=scheme)
    tab.add_style_tag(content=(static / "live.css").read_text())
    tab.evaluate(ALONE, [(static / "live.js").read_text(), shown])
    root = tab.locator(".lv-root")
    for width, columns in ((1300, 4), (700, 2), (320, 1)):
        tab.set_viewport_size({"width": width, "height": 900})
        ratio, where = root.evaluate(CONTRAST)
        assert ratio >= 4.5, where  # WCAG 2, level AA
        spilt = [name for name in root.evaluate(SPILL) if "lv-table" not in str(name)]  # a wide table scrolls by itself
        assert spilt == []
        tops = [box.bounding_box()["y"] for box in root.locator(".lv-panel").all()]
        assert tops.count(tops[0]) == min(columns, len(tops))
    assert root.locator("img, td b, .lv-words b").count() == 0 and tab.title() != "owned"
    assert HOSTILE in root.locator(".lv-words").text_content()
    root.get_by_role("button").click(force=True)
    assert tab.evaluate("window.sent") == []  # the run has ended: nothing to stop
    label = root.locator(".lv-panel", has_text="KL to the reference").locator("svg").get_attribute("aria-label")
    assert label == "KL to the reference: KL from 0.2 to 8, at episode 8 to 320"
    tab.close()
