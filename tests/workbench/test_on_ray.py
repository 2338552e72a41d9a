"""An experiment on a Ray cluster of two nodes, each with a core: what it does at home, it does there."""

import os
import signal
import subprocess
import sys
import time
from importlib import util

import psutil
import pytest
import yaml
from needed import require
from small_notebooks import PARAMETERS, START, write_notebook

from rlhf_lab import cli
from rlhf_lab.workbench.records import read_status

pytestmark = pytest.mark.slow
RAY = {"RAY_USAGE_STATS_ENABLED": "0", "RAY_AUTH_MODE": "disabled", "RAY_agent_register_timeout_ms": "120000"}

# Notes the process of its node, its own and the step it began at; goes on until it is told to end.
LOG = """\
import os, time, psutil
from pathlib import Path
marks = Path(run_dir) / "marks.txt"
begin = len(marks.read_text()) if marks.exists() else 0
with open("log.txt", "a") as log:
    log.write(f"{lr} {psutil.Process(os.getppid()).ppid()} {os.getpid()} {begin}\\n")"""
TRAIN = START.replace("seed=seed)", "seed=seed, resume=resume)")
SAVER = "run.saver = (Path(run_dir) / 'saved').touch"
STEPS = """\
for i in range(begin, 600):
    time.sleep(0.1)
    marks.open("a").write("x")
    run.progress(i + 1, 600, "training")
    if i > 10 and Path("enough").exists():
        break
if lr == 9:
    raise LabError("nine is no rate")"""
END = """\
omp, mark = os.environ["OMP_NUM_THREADS"], os.environ["RLHF_LAB_MARK"]
run.finish({"gold": lr, "threads": threads, "omp": omp, "mark": mark})"""


def twice(begin):
    """Ray gives a node 30 seconds to start, which a machine at work with something else may need."""
    try:
        return begin()
    except Exception:
        return begin()


@pytest.fixture(scope="module")
def cluster():
    require("ray", util.find_spec("ray") is not None, "Ray is not installed: pip install -e '.[dev]'")
    with pytest.MonkeyPatch.context() as patch:
        for name, value in RAY.items():
            patch.setenv(name, value)
        patch.delenv("OMP_NUM_THREADS", raising=False)
        from ray.cluster_utils import Cluster

        cluster = Cluster()
        twice(lambda: cluster.add_node(num_cpus=1, include_dashboard=False, include_log_monitor=False))
        patch.setenv("RAY_ADDRESS", cluster.address)
        yield cluster
        cluster.shutdown()


@pytest.fixture
def node(cluster):
    """A second node, for one test."""
    node = twice(lambda: cluster.add_node(num_cpus=1, include_log_monitor=False))
    yield node
    if node in cluster.worker_nodes:
        cluster.remove_node(node)


@pytest.fixture
def project(tmp_path, monkeypatch):
    monkeypatch.delenv("RLHF_LAB_RUNS", raising=False)
    monkeypatch.setenv("WANDB_MODE", "disabled")
    monkeypatch.setenv("RLHF_LAB_MARK", "of here")  # the nodes were started without it
    monkeypatch.chdir(tmp_path)
    parameters = PARAMETERS + "\nresume: bool = False\nthreads: int = 0"
    write_notebook(tmp_path / "notebooks" / "train.ipynb", LOG, TRAIN, SAVER, STEPS, END, parameters=parameters)
    return tmp_path


def write_sweep(project, *rates):
    content = {"experiment": "demo", "stages": [{"name": "ppo", "notebook": "train"}], "sweep": {"ppo.lr": [*rates]}}
    (project / "sweep.yaml").write_text(yaml.safe_dump(content))


def log(project):
    """rate -> (process of the node, process, first step) of the last time it was begun."""
    file = project / "log.txt"
    lines = [line.split() for line in file.read_text().splitlines()] if file.exists() else []
    return {float(rate): tuple(map(int, numbers)) for rate, *numbers in lines}


def raylet(node):
    return node.all_processes["raylet"][0].process.pid


def start(project):
    """The command in a process of its own, as a terminal starts it, once two notebooks are at work."""
    command = [sys.executable, "-m", "rlhf_lab", "run", "sweep.yaml", "-j", "3", "--on", "ray"]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    process = subprocess.Popen(command, start_new_session=True, **pipes)
    wait_for(lambda: sum(file.stat().st_size > 2 for file in project.glob("runs/*/*/*/marks.txt")) == 2, process)
    return process


def wait_for(condition, process=None):
    deadline = time.monotonic() + 120
    while not condition():
        assert time.monotonic() < deadline
        assert process is None or process.poll() is None, process.communicate()
        time.sleep(0.05)


def states(project):
    return sorted(read_status(file.parent).state for file in project.glob("runs/demo/ppo/*/status.json"))


def test_both_nodes_work_and_what_comes_out_is_what_comes_out_at_home(project, cluster, node, capsys, monkeypatch):
    from rlhf_lab.workbench.experiments import on_ray

    terminated, threads = [], on_ray.Cluster.threads
    seen = lambda self, workers: terminated.append(signal.getsignal(signal.SIGTERM)) or threads(self, workers)
    monkeypatch.setattr(on_ray.Cluster, "threads", seen)
    (project / "enough").touch()
    write_sweep(project, 1, 9, 2)
    assert cli.main(["run", "sweep.yaml", "-j", "2", "--on", "ray"]) == 2
    there = capsys.readouterr()
    assert "nodes: 2" in there.out and there.err.count("\n") == 1
    assert there.err.startswith("rlhf-lab: demo, stage ppo lr=9: train.ipynb, cell [6]: nine is no rate (see runs/")
    assert terminated == [signal.default_int_handler]  # a polite kill still stops the notebooks
    begun = log(project)
    nodes = {raylet(cluster.head_node), raylet(node)}
    assert set(begun) == {1, 2, 9} and {node for node, _, _ in begun.values()} == nodes
    results = yaml.safe_load((project / "runs/demo/results.json").read_text())["points"]
    same = {"threads": 1, "omp": "1", "mark": "of here"}
    assert [point["results"].get("ppo") for point in results] == [{"gold": 1.0} | same, None, {"gold": 2.0} | same]

    assert cli.main(["run", "sweep.yaml"]) == 2  # at home: knows what was done there, and fails in the same words
    here = capsys.readouterr()
    assert here.err == there.err and here.out.count("unchanged, skipped") == 2
    assert {rate for rate, (node, _, _) in log(project).items() if node not in nodes} == {9}


def test_ctrl_c_stops_the_notebooks_on_their_nodes_and_the_same_command_goes_on(project, node):
    write_sweep(project, 1, 2, 3)  # one of them has to wait for a node
    process = start(project)
    begun = log(project)
    kernels = [psutil.Process(pid) for _, pid, _ in begun.values()]
    workers = [kernel.parent() for kernel in kernels]
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does: to all that it started
    _, err = process.communicate(timeout=90)
    assert (process.returncode, err) == (130, "rlhf-lab: stopped\n")
    assert not any(kernel.is_running() for kernel in kernels) and states(project) == ["stopped"] * 3
    assert len(list(project.glob("runs/demo/ppo/*/saved"))) == 2
    wait_for(lambda: not any(worker.is_running() for worker in workers))

    (project / "enough").touch()
    assert cli.main(["run", "sweep.yaml", "-j", "2", "--on", "ray", "--quiet"]) == 0
    assert {rate for rate, (_, _, begin) in log(project).items() if begin > 0} == set(begun)
    assert states(project) == ["done"] * 3 + ["stopped"]  # the last has nothing in it


def test_a_node_that_dies_fails_its_stage_alone_and_the_same_command_goes_on(project, cluster, node):
    write_sweep(project, 1, 2)
    process = start(project)
    mine = raylet(node)
    lost = next(rate for rate, (where, _, _) in log(project).items() if where == mine)
    cluster.remove_node(node, allow_graceful=False)
    (project / "enough").touch()
    _, err = process.communicate(timeout=90)
    assert process.returncode == 1 and err.count("\n") == 1
    assert err.startswith(f"rlhf-lab: demo, stage ppo lr={lost:g}: train.ipynb: its process on node ")
    assert "was lost; the same command takes it up again" in err
    assert states(project) == ["done", "failed"]

    assert cli.main(["run", "sweep.yaml", "-j", "2", "--on", "ray", "--quiet"]) == 0
    where, _, begin = log(project)[lost]
    assert where != mine and begin > 0 and states(project) == ["done", "done"]
