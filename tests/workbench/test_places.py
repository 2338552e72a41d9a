"""The one interface between the runner and what executes its notebooks; what a node refuses; runs on other hosts."""

import io
import json
import os
import re
import socket
import sys
import threading
import time
from datetime import UTC, datetime
from importlib import util
from pathlib import Path

import pytest
import yaml
from needed import require
from small_notebooks import write_notebook

from rlhf_lab import cli
from rlhf_lab.errors import LabError, RunFailed
from rlhf_lab.workbench.experiments.keeping import status_table, stop_run
from rlhf_lab.workbench.experiments.pipeline import run_experiment
from rlhf_lab.workbench.experiments.places import Here, Order, cores, opened
from rlhf_lab.workbench.notebooks import Execution, Position
from rlhf_lab.workbench.records import BUSY, STOP, read_status


class Elsewhere:
    """A place that executes nothing: a notebook of lr 9 fails, one of lr 8 runs until it is stopped."""

    def __init__(self):
        self.given, self.stopped = [], []

    def threads(self, workers):
        return 10 * workers

    def execution(self, order, threads):
        self.given.append((order, threads))
        return Imagined(order, self.stopped)


class Imagined:
    position = Position(0, 0, 0.0, "waiting for a node")

    def __init__(self, order, stopped):
        self.order, self.stopped, self.lr = order, stopped, order.parameters["lr"]

    def start(self):
        if self.lr == 8:
            (self.order.output.parent / STOP).touch()  # as somebody on another host does

    def wait(self, seconds):
        return self.lr != 8 or self.order in self.stopped

    def stop(self):
        self.stopped.append(self.order)

    def kill(self):
        raise AssertionError

    def raise_for_error(self):
        if self.lr >= 8:
            raise (RunFailed if self.lr == 8 else LabError)(f"{self.order.notebook.name}: its own line")


@pytest.fixture
def project(tmp_path, monkeypatch):
    monkeypatch.delenv("RLHF_LAB_RUNS", raising=False)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.chdir(tmp_path)
    write_notebook(tmp_path / "notebooks" / "plain.ipynb", "1", parameters="lr: float = 0.5\nthreads: int = 0")
    content = {"experiment": "demo", "stages": [{"name": "a", "notebook": "plain"}], "sweep": {"lr": [1, 9, 8, 2]}}
    (tmp_path / "sweep.yaml").write_text(yaml.safe_dump(content))
    return tmp_path


def test_any_place_executes_what_the_runner_decides(project, monkeypatch):
    """Shares, errors, a stop from another host, skipping: all of it is the runner's, whatever executes."""
    place = Elsewhere()
    monkeypatch.setattr("rlhf_lab.workbench.experiments.places.Here", lambda: place)
    stream = io.StringIO()
    with pytest.raises(LabError, match="stage a lr=9: plain.ipynb: its own line; 1 more failed") as caught:
        run_experiment("sweep.yaml", stream=stream, workers=2)
    assert caught.value.exit_code == 2 and "waiting for a node" in stream.getvalue()
    assert [threads for _, threads in place.given] == [20] * 4
    order = next(order for order, _ in place.given if order.parameters["lr"] == 1)
    assert order.parameters["threads"] == 20
    assert order.environment == {"OMP_NUM_THREADS": "20", "RLHF_LAB_COMMAND": "rlhf-lab run sweep.yaml"}
    assert order.notebook == project / "notebooks/plain.ipynb" and order.output.name == "notebook.ipynb"
    assert [order.parameters["lr"] for order in place.stopped] == [8]  # and it did not end the others
    states = {json.loads(f.read_text())["parameters"]["lr"]: read_status(f.parent).state for f in made(project)}
    assert states == {1: "done", 9: "failed", 8: "failed", 2: "done"} and not list(project.glob(f"runs/**/{STOP}"))

    place.given.clear()
    with pytest.raises(LabError):
        run_experiment("sweep.yaml", quiet=True, stream=io.StringIO())
    assert {order.parameters["lr"] for order, _ in place.given} == {8, 9}


def made(project):
    return list(project.glob("runs/demo/a/*/made_from.json"))


def test_this_machine_is_where_stages_run_unless_told_otherwise(project):
    with opened("local", print) as place:
        assert isinstance(place, Here)
    order = Order(Path("a.ipynb"), Path("b.ipynb"), {"x": 1}, {})
    assert type(place.execution(order, None)) is Execution
    assert (place.threads(1), place.threads(2), place.threads(1000)) == (None, max(1, cores() // 2), 1)


@pytest.mark.parametrize(
    ("on", "address", "line"),
    [
        ("mars", "", "--on mars: stages run on 'local', this machine, or on 'ray'"),
        ("ray", "127.0.0.1:1", "RAY_ADDRESS=127.0.0.1:1: no Ray there"),
        ("ray", "127.0.0.1:many", "RAY_ADDRESS=127.0.0.1:many: no Ray there"),
        ("ray", "ray://127.0.0.1:1", "Ray's client is not enough; take part by `ray start"),
        ("ray", "nonsense", "--on ray, RAY_ADDRESS=nonsense: Invalid address format"),
        ("ray without ray", "", "--on ray needs Ray, which is not installed: pip install -e '.[ray]'"),
    ],
)
def test_a_place_that_is_none_is_one_line_before_anything_runs(project, on, address, line, monkeypatch, capsys):
    if "without" in on:
        monkeypatch.setitem(sys.modules, "ray", None)
        monkeypatch.delitem(sys.modules, "rlhf_lab.workbench.experiments.on_ray", raising=False)
    elif on == "ray":
        require("ray", util.find_spec("ray") is not None, "Ray is not installed: pip install -e '.[dev]'")
    monkeypatch.setenv("RAY_ADDRESS", address)
    assert cli.main(["run", "sweep.yaml", "--on", on.split()[0]]) == 2
    err = capsys.readouterr().err
    assert line in err and err.count("\n") == 1 and made(project) == []


def test_the_cores_of_uneven_nodes_are_shared_so_that_all_fit(monkeypatch):
    require("ray", util.find_spec("ray") is not None, "Ray is not installed: pip install -e '.[dev]'")
    from rlhf_lab.workbench.experiments import on_ray

    nodes = [{"Alive": True, "Resources": {"CPU": 8.0}}, {"Alive": True, "Resources": {"CPU": 2.0}}]
    nodes += [{"Alive": False, "Resources": {"CPU": 64.0}}, {"Alive": True, "Resources": {}}]
    monkeypatch.setattr(on_ray.ray, "nodes", lambda: nodes)
    shares = {workers: on_ray.Cluster().threads(workers) for workers in (1, 2, 3, 5, 100)}
    assert shares == {1: 8, 2: 4, 3: 2, 5: 2, 100: 1}


@pytest.mark.parametrize("what", ["folder", "run", "notebook", "package", "version", "nothing"])
def test_a_node_that_does_not_see_the_same_says_so_before_it_runs_anything(project, what, monkeypatch):
    from rlhf_lab.workbench.experiments import on_node

    monkeypatch.setattr("rlhf_lab.workbench.experiments.places.Here", Elsewhere)
    run_experiment("sweep.yaml", ["lr=1"], quiet=True, stream=io.StringIO())
    (run_dir,) = (file.parent for file in made(project))
    notebook, folder, words = project / "notebooks/plain.ipynb", project, ""
    if what == "folder":
        folder, words = project / "nowhere", "does not see the working directory .*/nowhere; it must lie on a file"
    elif what == "run":
        (run_dir / "made_from.json").unlink()
        words = "does not see the run's directory"
    elif what == "notebook":
        write_notebook(notebook, "2")
        words = "does not see the same notebook"
    elif what == "package":
        monkeypatch.setattr(on_node, "package_source", lambda: "another")
        words = "has another source of rlhf_lab .*rlhf_lab"
    elif what == "version":
        monkeypatch.setattr(on_node, "versions", lambda: {"torch": "0.1", "transformers": "0", "trl": "0"})
        words = "has torch 0.1, not [0-9.]+"
    order = Order(notebook, run_dir / "notebook.ipynb", {}, {})
    if what == "nothing":
        on_node.refuse_another(order, folder)
    else:
        error = on_node.There().run(order, folder, {})
        assert isinstance(error, LabError) and re.match(f"node {socket.gethostname()} {words}", str(error))
        assert not order.output.exists()


def far_away(folder, *, started, heartbeat):
    """A run that another host says is running, at seconds before now."""
    run_dir = folder / "runs" / "demo" / "a" / "r1"
    run_dir.mkdir(parents=True, exist_ok=True)
    times = {"started": started, "heartbeat": heartbeat}
    times = {name: datetime.fromtimestamp(time.time() - ago, UTC).isoformat() for name, ago in times.items()}
    status = {"state": "running", "host": "far-away", "pid": 1, **times}
    (run_dir / "status.json").write_text(json.dumps(status))
    return run_dir


@pytest.mark.parametrize(
    ("started", "heartbeat", "touched", "state"),
    [
        (1000, 900, None, "running"),  # nobody looks after it: half an hour without a heartbeat
        (4000, 2000, None, "died"),
        (4000, 2000, 5, "running"),  # its runner is there, so the notebook is busy
        (1000, 900, 90, "died"),  # its runner is gone, so the kernel is
        (1000, 900, 1500, "running"),  # the runner was that of an earlier part
    ],
)
def test_a_run_on_another_host_lives_as_long_as_its_runner(tmp_path, started, heartbeat, touched, state):
    run_dir = far_away(tmp_path, started=started, heartbeat=heartbeat)
    if touched is not None:
        (run_dir / BUSY).touch()
        os.utime(run_dir / BUSY, (time.time() - touched,) * 2)
    assert read_status(run_dir).state == state


def test_a_run_on_another_host_is_stopped_by_asking_its_runner(project):
    run_dir = far_away(project, started=50, heartbeat=1)
    with pytest.raises(LabError, match="runs on far-away, and no `rlhf-lab run` looks after it; stop it there"):
        stop_run("r1")
    (run_dir / BUSY).touch()
    with pytest.raises(LabError, match="far-away and did not end in 0 s; stop the command that runs it"):
        stop_run("r1", patience_s=0.1)
    assert not (run_dir / STOP).exists()
    assert " far-away" in status_table()

    def stops():
        while not (run_dir / STOP).exists():
            time.sleep(0.01)
        status = json.loads((run_dir / "status.json").read_text())
        (run_dir / "status.json").write_text(json.dumps(status | {"state": "stopped"}))

    thread = threading.Thread(target=stops)
    thread.start()
    assert stop_run("r1").state == "stopped"
    thread.join()
