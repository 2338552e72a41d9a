"""Tracking by the real wandb, offline and disabled, and by broken ones; read back with wandb's own tool."""

import functools
import json
import os
import subprocess
import sys

import nbclient
import nbformat
import pytest
from jupyter_client.manager import AsyncKernelManager

from rlhf_lab.workbench import tracking
from rlhf_lab.workbench.runs import read_metrics, read_status
from rlhf_lab.workbench.tracking import TrackingConfig

KEY = "c0ffee1234" * 4  # the shape of a key; no file and no message may show it

HEAD = """
import os, signal, sys, time
from rlhf_lab.config import Config
from rlhf_lab.workbench.runs import Run
from rlhf_lab.workbench.tracking import TrackingConfig
class Stage(Config):
    lr: float = 1e-5
"""


def script(body: str, folder, **env) -> subprocess.CompletedProcess:
    """Run a script in `folder` with a home of its own and no wandb settings but those given."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("WANDB_", "NETRC"))}
    clean |= {"HOME": str(folder / "home"), "RLHF_LAB_HEADLESS": "1"} | env
    return subprocess.run(
        [sys.executable, "-c", HEAD + body], cwd=folder, env=clean, capture_output=True, text=True, timeout=60
    )


@functools.cache
def inspect(run_dir, *options):
    """What wandb's own reader finds in a run's file: a list of records, or with --summary one object."""
    (file,) = run_dir.glob("wandb/offline-run-*/run-*.wandb")
    command = [sys.executable, "-m", "wandb", "leet", "inspect", "--json", *options, str(file)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    if done.returncode:
        pytest.skip(f"this wandb cannot read its files back: {done.stderr.strip()[:100]}")
    return json.loads(done.stdout) if options else [json.loads(line) for line in done.stdout.splitlines()]


def first_run(run_dir):
    return next(record["run"] for record in inspect(run_dir) if record["type"] == "run")


@pytest.fixture(scope="module")
def offline(tmp_path_factory):
    """A run that is done, with one inside it that fails, and a third that is killed; and what was printed."""
    folder = tmp_path_factory.mktemp("offline")
    body = """
labels = TrackingConfig(
    project="thesis", entity="me", group="sweep 3", tags=["long", "gold"], notes="why not"
)
outer = Run.start("ppo", Stage(), seed=2, run_dir="done", tracking=labels)
inner = Run.start("sft", Stage(), experiment="demo", run_dir="failed")
outer.log({"objective/kl": 0.5, "bad": float("nan")}, step=64)
inner.log({"train/loss": 2.0}, step=1)
inner.fail("too hot")
outer.log({"objective/kl": 0.75}, step=128)
outer.log_samples([{"prompt": "p", "reply": "r", "ids": [1, 2]}, {"prompt": "q", "score": None}], step=128)
outer.finish({"gold": 1.5, "parts": {"kind": 0.25}})
import wandb
print("still active:", wandb.run)
last = Run.start("ppo", Stage(), run_dir="killed")
for step in range(20):
    last.log({"objective/kl": float(step)}, step=step)
time.sleep(1)
os.kill(os.getpid(), signal.SIGKILL)
"""
    return folder, script(body, folder, WANDB_API_KEY=KEY, WANDB_MODE="offline")


def test_offline_runs_have_their_labels_config_and_summary(offline):
    told = inspect(offline[0] / "done", "--summary")
    assert (told["state"], told["exit_code"]) == ("finished", 0)
    assert (told["project"], told["entity"], told["notes"]) == ("thesis", "me", "why not")
    assert told["name"] == "ppo/done"
    assert set(told["tags"]) == {"long", "gold"}
    assert told["config"]["lr"] == 1e-5
    assert told["config"]["run"]["seed"] == 2
    assert told["summary"]["gold"] == 1.5
    assert told["summary"]["parts"] == {"kind": 0.25}
    run = first_run(offline[0] / "done")
    assert (run["run_group"], run["job_type"]) == ("sweep 3", "ppo")


def test_metrics_are_drawn_against_the_runs_own_step(offline):
    records = inspect(offline[0] / "done")
    defined = [record["metric"] for record in records if record["type"] == "metric"]
    assert {"glob_name": "*", "step_metric": "episode"}.items() <= next(m for m in defined if "glob_name" in m).items()
    items = [record["history"]["item"] for record in records if record["type"] == "history"]
    assert [(item["episode"], item["objective/kl"]) for item in items if "objective/kl" in item] == [
        (64, 0.5),
        (128, 0.75),
    ]


def test_samples_become_a_table(offline):
    (table,) = (offline[0] / "done").glob("wandb/offline-run-*/files/media/table/*.json")
    content = json.loads(table.read_text())
    assert content["columns"] == ["episode", "prompt", "reply", "ids", "score"]
    assert content["data"][0] == [128, "p", "r", "[1, 2]", None]
    assert not list((offline[0] / "home").rglob("staging/*"))  # the copies stay in the run's directory


def test_a_failed_run_is_marked_failed(offline):
    told = inspect(offline[0] / "failed", "--summary")
    assert (told["state"], told["exit_code"]) == ("failed", 1)
    run = first_run(offline[0] / "failed")
    assert (run["run_group"], run["job_type"], run["project"]) == (
        "demo",
        "sft",
        "rlhf_lab",
    )  # the lab's choice


def test_a_killed_runs_rows_can_be_read(offline):
    assert read_status(offline[0] / "killed").state == "died"
    assert list(read_metrics(offline[0] / "killed")["objective/kl"]) == list(range(20))
    assert inspect(offline[0] / "killed", "--summary")["state"] != "finished"


def test_offline_is_said_once_and_nothing_else(offline):
    folder, done = offline
    assert done.stderr == ""
    said = [line for line in done.stdout.splitlines() if "wandb" in line]
    assert len(said) == 1
    assert said[0].startswith("wandb: offline")
    assert "still active: None" in done.stdout


def test_the_key_is_nowhere(offline):
    folder, done = offline
    assert KEY not in done.stdout + done.stderr
    files = [path for path in folder.rglob("*") if path.is_file()]
    assert len(files) > 10
    assert not [path for path in files if KEY.encode() in path.read_bytes()]


def test_disabled_does_not_even_import_wandb(tmp_path):
    body = """
run = Run.start("ppo", Stage(), run_dir="one")
run.log({"a": 1.0}, step=1); run.log_samples([{"a": 1}], step=1); run.finish({"b": 2})
print("wandb" in sys.modules)
"""
    done = script(body, tmp_path, WANDB_MODE="disabled")
    assert done.stdout.splitlines()[-1] == "False"
    assert not (tmp_path / "one" / "wandb").exists()
    assert read_status(tmp_path / "one").state == "done"


def test_an_absent_wandb_costs_one_line(tmp_path):
    (tmp_path / "wandb.py").write_text("raise ImportError('no module named wandb')")
    body = """
run = Run.start("ppo", Stage(), run_dir="one")
run.log({"a": 1.0}, step=1); run.log_samples([{"a": 1}], step=1); run.finish({"b": 2})
"""
    done = script(body, tmp_path, WANDB_MODE="offline", PYTHONPATH=str(tmp_path))
    assert done.returncode == 0
    assert [line for line in done.stdout.splitlines() if "wandb" in line] == [
        "wandb could not start (no module named wandb); the run goes on without it"
    ]
    assert read_status(tmp_path / "one").state == "done"


def test_a_server_that_does_not_answer_leads_offline(tmp_path):
    body = """
from rlhf_lab.workbench import tracking
tracking.INIT_S = 1.0
run = Run.start("ppo", Stage(), run_dir="one")
run.log({"a": 1.0}, step=1)
run.finish({"b": 2})
"""
    done = script(body, tmp_path, WANDB_API_KEY=KEY, WANDB_BASE_URL="http://127.0.0.1:9")
    lines = [line for line in done.stdout.splitlines() if "wandb" in line]
    assert done.stderr == ""
    assert len(lines) == 2
    assert lines[0].startswith("wandb could not start online (")
    assert lines[1].startswith("wandb: offline")
    assert KEY not in done.stdout
    assert inspect(tmp_path / "one", "--summary")["summary"]["b"] == 2


class Failing:
    """A wandb run whose every call fails, as when its service has died."""

    def __getattr__(self, name):
        raise ConnectionError(f"no service for {KEY} or {os.environ['WANDB_API_KEY']}")


def test_a_wandb_that_breaks_later_costs_one_line(tmp_path, capsys, monkeypatch):
    from rlhf_lab.workbench.runs import Run

    monkeypatch.setenv("WANDB_MODE", "disabled")
    monkeypatch.setenv("WANDB_API_KEY", "a key of another shape")
    run = Run.start("ppo", TrackingConfig(), run_dir=tmp_path / "one")
    run.tracker._run = Failing()
    capsys.readouterr()
    run.log({"a": 1.0}, step=1)
    run.log({"a": 2.0}, step=2)
    run.finish({})
    said = [line for line in capsys.readouterr().out.splitlines() if line.startswith("wandb")]
    assert said == ["wandb could not log (no service for <key> or <key>); the run goes on without it"]
    assert len(read_metrics(run.path)) == 2


LOGIN = f"machine api.wandb.ai login user password {KEY}\n"


@pytest.mark.parametrize(
    ("env", "files", "chosen", "mode"),
    [
        ({}, {}, "", "offline"),
        ({"WANDB_API_KEY": KEY}, {}, "", "online"),
        ({"WANDB_API_KEY": KEY, "WANDB_MODE": "offline"}, {}, "online", "online"),
        ({}, {"home/.netrc": LOGIN}, "", "online"),
        ({}, {"home/.netrc": LOGIN.replace("api.wandb.ai", "example.org")}, "", "offline"),
        ({"WANDB_API_KEY": KEY}, {"wandb/settings": "[default]\nmode = offline\n"}, "", "offline"),
    ],
)
def test_the_mode_follows_wandbs_precedence(tmp_path, env, files, chosen, mode):
    (tmp_path / "home").mkdir()
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
        (tmp_path / name).chmod(0o600)
    body = f"from rlhf_lab.workbench.tracking import _mode\nprint(_mode(TrackingConfig(mode={chosen!r})))"
    done = script(body, tmp_path, **env)
    assert (done.stdout.split(), done.stderr) == ([mode], "")


def test_labels_left_empty_are_left_to_wandbs_variables(monkeypatch):
    monkeypatch.setenv("WANDB_PROJECT", "theirs")
    assert tracking._label("rlhf_lab", "WANDB_PROJECT", "rlhf_lab") is None
    assert tracking._label("mine", "WANDB_PROJECT", "rlhf_lab") == "mine"
    monkeypatch.delenv("WANDB_PROJECT")
    assert tracking._label("rlhf_lab", "WANDB_PROJECT", "rlhf_lab") == "rlhf_lab"


def test_in_a_notebook_wandb_keeps_no_copies_of_what_is_displayed(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("WANDB_MODE", "offline")
    (tmp_path / "home").mkdir()
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("RLHF_LAB_HEADLESS", "0")
    cells = [
        "shell = get_ipython()\nbefore = shell.display_pub.publish",
        HEAD + "run = Run.start('ppo', Stage(), run_dir='one')",
        "print(shell.display_pub.publish == before, run.tracker._run.settings._jupyter)",
        "run.log_samples([{'a': 1}], step=1)\nrun.finish({})",
        "print(shell.display_pub.publish == before)",
    ]
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(cell) for cell in cells])
    # as JupyterLab names it, from which wandb tells a notebook
    kernel = AsyncKernelManager(kernel_name="python3", connection_file=str(tmp_path / "jupyter-kernel.json"))
    nbclient.NotebookClient(notebook, km=kernel, timeout=60).execute()
    printed = ["".join(output.text for output in cell.outputs) for cell in notebook.cells]
    assert (printed[2], printed[4]) == ("True True\n", "True\n")
    assert [len(text.splitlines()) for text in printed] == [0, 2, 1, 1, 1]  # nothing of wandb's own
