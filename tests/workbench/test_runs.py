"""A run's directory tells the truth, however the run ends. Real processes, real signals, a real kernel."""

import fcntl
import json
import math
import multiprocessing
import os
import platform
import signal
import socket
import subprocess
import sys
import threading
import time
from datetime import UTC, datetime, timedelta

import nbclient
import nbformat
import psutil
import pytest
import yaml

from rlhf_lab.config import Config
from rlhf_lab.errors import LabError
from rlhf_lab.workbench import runs, session
from rlhf_lab.workbench.records import mark_ended, mark_queued, one_line
from rlhf_lab.workbench.run_directory import claim, git_state, hardware
from rlhf_lab.workbench.runs import Run, Status, latest_run, read_metrics, read_samples, read_status
from rlhf_lab.workbench.writing import append_line, write_json


class Stage(Config):
    """Parameters of a stage."""

    lr: float = 1e-5
    steps: int = 3


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("WANDB_MODE", "disabled")
    monkeypatch.setenv("RLHF_LAB_HEADLESS", "1")
    monkeypatch.delenv("RLHF_LAB_RUNS", raising=False)


def start(**options) -> Run:
    return Run.start(options.pop("stage", "ppo"), Stage(), **options)


def lines(path):
    """The rows of a file, refusing the NaN and Infinity that JSON does not have."""

    def refuse(text):
        raise AssertionError(f"{text} is no JSON")

    return [json.loads(line, parse_constant=refuse) for line in path.read_text().splitlines()]


SCRIPT = """
import os, signal, sys, time
from rlhf_lab.config import Config
from rlhf_lab.workbench.runs import Run, read_status
class Stage(Config):
    lr: float = 1e-5
run = Run.start("ppo", Stage(), run_dir="theirs")
run.log({"a": 1.0}, step=1)
print("started", flush=True)
"""


def launch(end: str) -> subprocess.Popen:
    """A process that starts a run in ./theirs and then does `end`. Returns when the run has started."""
    process = subprocess.Popen(
        [sys.executable, "-c", SCRIPT + end], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    )
    for line in process.stdout:
        if line == "started\n":
            return process
    raise AssertionError("the process ended early")


# --- directories


def test_start_writes_config_and_status(tmp_path, capsys):
    run = start(experiment="demo", seed=7)
    assert run.path.parent == tmp_path / "runs" / "demo" / "ppo"
    assert run.path.name.endswith("-s7")
    assert capsys.readouterr().out == f"ppo run: runs/demo/ppo/{run.path.name}\n"
    config = yaml.safe_load((run.path / "config.yaml").read_text())
    assert config["config"] == {"lr": 1e-5, "steps": 3}
    assert isinstance(config["config"]["lr"], float)  # YAML reads "1e-05" as text, so it must not be written so
    assert config["seed"] == 7
    assert set(config["versions"]) == {"python", "rlhf-lab", "torch", "transformers", "trl"}
    status = json.loads((run.path / "status.json").read_text())
    assert (status["state"], status["pid"], status["host"]) == ("running", os.getpid(), socket.gethostname())
    assert status["process_start"] == pytest.approx(psutil.Process().create_time(), abs=1)
    assert read_status(run.path).state == "running"


def test_runs_of_one_second_get_directories_of_their_own(tmp_path, monkeypatch):
    monkeypatch.setenv("RLHF_LAB_RUNS", str(tmp_path / "mine"))
    paths = {start(seed=1).path for _ in range(4)}
    assert len(paths) == 4
    assert all(path.parent == tmp_path / "mine" / "scratch" / "ppo" for path in paths)


def test_names_that_would_leave_the_runs_folder_are_refused():
    for bad in ("", "..", "a/b", "a*"):
        with pytest.raises(LabError, match="cannot name a folder"):
            start(experiment=bad)


def test_a_live_runs_directory_is_refused():
    run = start(run_dir="one")
    with pytest.raises(LabError, match="still alive") as told:
        start(run_dir="one")
    assert "\n" not in str(told.value)
    assert "one" in str(told.value)
    assert read_status(run.path).state == "running"  # the refused one has not touched it
    run.log({"a": 1.0}, step=1)


@pytest.mark.parametrize("end", ["finish", "fail", "stop"])
def test_an_ended_runs_directory_is_refused(end):
    run = start(run_dir="one")
    getattr(run, end)(*([] if end == "finish" else ["why"]))
    before = (run.path / "config.yaml").read_bytes()
    with pytest.raises(LabError, match="nothing is overwritten"):
        start(run_dir="one")
    assert (run.path / "config.yaml").read_bytes() == before


def test_a_directory_with_other_things_is_refused(tmp_path):
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter.tex").write_text("x")
    with pytest.raises(LabError, match="chapter.tex"):
        start(run_dir="thesis")
    (tmp_path / "old").mkdir()
    (tmp_path / "old" / "metrics.jsonl").write_text("{}\n")
    with pytest.raises(LabError, match="metrics.jsonl"):
        start(run_dir="old")


def test_queued_and_empty_directories_are_taken(tmp_path):
    mark_queued(tmp_path / "queued", stage="ppo", experiment="demo")
    (tmp_path / "queued" / "notebook.ipynb").write_text("papermill writes its output first")
    assert read_status(tmp_path / "queued").state == "queued"
    assert start(run_dir="queued").state == "running"
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "out.ipynb").write_text("{}")
    assert start(run_dir="empty").state == "running"
    with pytest.raises(LabError):
        mark_queued(tmp_path / "queued")


def _race(folder, barrier, wins):
    status = Status(state="running", pid=os.getpid(), host="here", heartbeat="2999-01-01T00:00:00+00:00")
    for index in range(40):
        barrier.wait()
        try:
            claim(folder / str(index), status)
            wins.put(index)
        except LabError:
            pass
    barrier.wait()


def test_of_several_processes_one_gets_the_directory(tmp_path):
    for index in range(0, 40, 2):
        mark_queued(tmp_path / str(index))
    fork = multiprocessing.get_context("fork")
    barrier, wins = fork.Barrier(4), fork.Queue()
    workers = [fork.Process(target=_race, args=(tmp_path, barrier, wins)) for _ in range(4)]
    for worker in workers:
        worker.start()
    won = sorted(wins.get(timeout=30) for _ in range(40))
    for worker in workers:
        worker.join()
    assert won == list(range(40))
    assert wins.empty()


def test_hardware_names_processor_cores_and_another_device(monkeypatch):
    told = hardware()
    assert f", {os.cpu_count()} cores" in told and told.startswith(platform.machine())
    monkeypatch.setenv("RLHF_LAB_DEVICE", "cuda")
    assert hardware() == f"{told}, cuda"


def test_git_state_is_of_the_packages_tree_else_of_ours(tmp_path, monkeypatch):
    def git(*words, tree):
        who = ["-c", "user.name=a", "-c", "user.email=a@b", "-c", "init.defaultBranch=main"]
        return subprocess.run(["git", *who, *words], cwd=tree, capture_output=True, text=True, check=True).stdout

    for name in ("lab", "mine"):
        package = tmp_path / name / "package"
        package.mkdir(parents=True)
        (package / "__init__.py").write_text(f"# {name}")
        git("init", tree=package.parent)
        git("add", ".", tree=package.parent)
        git("commit", "-m", "first", tree=package.parent)
    head = {name: git("rev-parse", "HEAD", tree=tmp_path / name).strip() for name in ("lab", "mine")}
    monkeypatch.chdir(tmp_path / "mine")
    assert git_state(tmp_path / "lab" / "package") == {"commit": head["lab"], "dirty": False}
    results = tmp_path / "lab" / "experiments" / "reference" / "study.jsonl"
    results.parent.mkdir(parents=True)
    results.write_text("{}")
    assert not git_state(tmp_path / "lab" / "package")["dirty"]
    (tmp_path / "lab" / "package" / "__init__.py").write_text("# changed")
    assert git_state(tmp_path / "lab" / "package")["dirty"]
    (tmp_path / "lab" / "site").mkdir()  # installed inside somebody's tree, but not part of it
    (tmp_path / "lab" / "site" / "__init__.py").write_text("")
    assert git_state(tmp_path / "lab" / "site")["commit"] == head["mine"]
    monkeypatch.chdir(tmp_path)
    assert git_state(tmp_path) is None


# --- metrics and samples


def test_metrics_come_back_as_logged_nan_and_infinities_too():
    run = start()
    run.log({"loss": 0.5, "kl": 1}, step=0)
    run.log({"loss": math.nan, "gold/mean": -math.inf, "episode": 64}, step=64)
    rows = lines(run.path / "metrics.jsonl")
    assert rows[0]["episode"] == 0
    assert rows[1]["loss"] is None
    assert rows[1]["not_finite"] == {"loss": "nan", "gold/mean": "-inf"}
    table = read_metrics(run.path)
    assert list(table["episode"]) == [0, 64]
    assert table["loss"][0] == 0.5
    assert math.isnan(table["loss"][1])
    assert table["gold/mean"][1] == -math.inf
    assert math.isnan(table["kl"][1])  # not logged at that step
    assert "not_finite" not in table


def test_tensors_are_metrics_and_texts_are_not():
    import torch

    run = start(stage="sft")
    run.log({"loss": torch.tensor(0.25), "n": 3}, step=1)
    assert lines(run.path / "metrics.jsonl")[0]["loss"] == 0.25
    assert "global_step" in read_metrics(run.path)
    with pytest.raises(LabError, match="'loss' is 'low'"):
        run.log({"loss": "low"}, step=2)


def test_samples_come_back_with_any_text():
    run = start()
    odd = "line\u2028separator\nnew line, é, \U0001f600"
    run.log_samples([{"prompt": odd, "score": math.nan, "ids": (1, 2)}, {"prompt": "b", "gold": 1.0}], step=5)
    table = read_samples(run.path)
    assert list(table["prompt"]) == [odd, "b"]
    assert list(table["episode"]) == [5, 5]
    assert table["ids"][0] == [1, 2]


def test_before_anything_is_logged_the_tables_are_empty(tmp_path):
    run = start()
    assert read_metrics(run.path).empty
    assert read_samples(run.path).empty
    with pytest.raises(LabError, match="no such directory"):
        read_metrics(tmp_path / "nowhere")
    with pytest.raises(LabError, match="holds no run"):
        read_status(tmp_path)


def test_a_torn_last_line_is_left_out_and_a_broken_one_named():
    run = start()
    for step in range(3):
        run.log({"text/é": step}, step=step)
    file = run.path / "metrics.jsonl"
    whole = file.read_bytes()
    ends = [index for index, byte in enumerate(whole) if byte == ord("\n")]
    for cut in range(ends[1] + 1, len(whole) - 2):  # wherever the third line is torn, in the middle of the é too
        file.write_bytes(whole[:cut])
        assert len(read_metrics(run.path)) == 2
    file.write_bytes(whole[:-1])  # all there but the end of the line
    assert len(read_metrics(run.path)) == 3
    first, second, third, _ = whole.split(b"\n")
    file.write_bytes(b"\n".join([first, second[:9], third, b""]))
    with pytest.raises(LabError, match="metrics.jsonl, line 2 is broken"):
        read_metrics(run.path)


@pytest.mark.parametrize(
    ("end", "kept"),
    [
        (b'{"n": 2, "te', b""),
        ('{"n": "é'.encode()[:-1], b""),  # torn in the middle of a character
        (b"\0\0\0", b""),  # as a power cut leaves it
        (b'{"n": 2}', b'{"n": 2}\n'),  # whole but for its newline
        (b"words", b"words\n"),  # no line of ours: not ours to delete
        (b"", b""),
    ],
)
@pytest.mark.parametrize("first", [b"", b'{"n": 1}\n'])
def test_a_line_is_appended_behind_whole_lines_only(tmp_path, first, end, kept):
    file = tmp_path / "a.jsonl"
    file.write_bytes(first + end)
    append_line(file, {"n": 3})
    append_line(file, {"n": 4})
    assert file.read_bytes() == first + kept + b'{"n": 3}\n{"n": 4}\n'


def test_a_line_that_another_process_is_writing_is_not_taken_for_a_torn_one(tmp_path):
    file = tmp_path / "a.jsonl"
    append_line(file, {"n": 1})
    with file.open("ab", buffering=0) as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        other.write(b'{"n": ')
        late = threading.Thread(target=append_line, args=(file, {"n": 3}))
        late.start()
        late.join(0.2)
        other.write(b"2}\n")
    late.join()
    assert file.read_bytes() == b'{"n": 1}\n{"n": 2}\n{"n": 3}\n'


# --- endings


def test_finish_writes_results_and_ends_the_run(capsys):
    run = start(run_dir="one")
    run.finish({"gold": 1.5, "parts": {"kind": math.nan}, "note": None})
    assert lines_of(run, "results.json") == {"gold": 1.5, "parts": {"kind": None}, "note": None}
    assert read_status(run.path).state == "done"
    assert capsys.readouterr().out.splitlines()[-1].startswith("ppo run done in 0:0")
    for late in (lambda: run.log({"a": 1}, 1), lambda: run.progress(1, 2), lambda: run.finish({})):
        with pytest.raises(LabError, match="has ended"):
            late()


def lines_of(run, name):
    return json.loads((run.path / name).read_text())


def test_fail_and_stop_keep_the_reason_in_one_line(capsys):
    run = start()
    run.fail("loss is NaN\nat step 7")
    assert (read_status(run.path).state, read_status(run.path).reason) == ("failed", "loss is NaN at step 7")
    run = start()
    run.stop("enough")
    assert (read_status(run.path).state, read_status(run.path).reason) == ("stopped", "enough")
    assert capsys.readouterr().out.splitlines()[-1] == "ppo run stopped: enough"
    assert len(one_line("x" * 1000)) <= 400


def test_a_block_tells_how_it_ended():
    with pytest.raises(ValueError, match="boom"), start() as run:
        raise ValueError("boom")
    assert read_status(run.path).reason == "ValueError: boom"
    assert read_status(run.path).state == "failed"
    with start() as run:
        run.finish({})
    assert read_status(run.path).state == "done"
    with start() as run:
        pass
    assert read_status(run.path).state == "stopped"


def test_a_killed_process_reads_died():
    process = launch("time.sleep(60)")
    assert read_status("theirs").state == "running"
    process.kill()
    while psutil.Process(process.pid).status() != psutil.STATUS_ZOMBIE:
        time.sleep(0.01)
    assert read_status("theirs").state == "died"  # nobody has waited for it yet: it still has its entry
    process.wait()
    status = read_status("theirs")
    assert status.state == "died"
    assert str(process.pid) in status.reason
    with pytest.raises(LabError, match="is died|holds a run"):
        start(run_dir="theirs")
    assert mark_ended(runs.Path("theirs"), "failed", "out of memory").state == "failed"
    assert read_status("theirs").reason == "out of memory"
    assert len(read_metrics("theirs")) == 1


def test_another_process_of_the_same_number_reads_died():
    run = start()
    status = lines_of(run, "status.json")
    write_json(run.path / "status.json", status | {"process_since_boot": status["process_since_boot"] - 60})
    assert read_status(run.path).state == "died"
    status.pop("process_since_boot")  # as written before there was this field
    write_json(run.path / "status.json", status | {"process_start": status["process_start"] - 60})
    assert read_status(run.path).state == "died"


def test_on_another_host_the_heartbeat_decides():
    run = start()
    for minutes, state in ((1, "running"), (90, "died")):
        heard = (datetime.now(UTC) - timedelta(minutes=minutes)).isoformat()
        write_json(run.path / "status.json", lines_of(run, "status.json") | {"host": "far", "heartbeat": heard})
        assert read_status(run.path).state == state


def test_mark_ended_leaves_a_told_end_alone():
    run = start()
    run.finish({})
    assert mark_ended(run.path, "failed", "late").state == "done"


@pytest.mark.parametrize(
    ("end", "state", "reason"),
    [
        ("raise ValueError('two\\nlines')", "failed", "ValueError: two lines"),
        ("sys.exit(0)", "stopped", "the process ended before the run was finished"),
        ("os.kill(os.getpid(), signal.SIGINT); time.sleep(60)", "stopped", "interrupted"),
        ("run.finish({}); raise ValueError('after')", "done", ""),
    ],
)
def test_a_script_that_ends_leaves_a_true_status(end, state, reason):
    launch(end).wait(30)
    status = read_status("theirs")
    assert (status.state, status.reason) == (state, reason)


def test_sigterm_stops_the_run_and_still_ends_the_process():
    process = launch("time.sleep(60)")
    process.terminate()
    assert process.wait(30) == -signal.SIGTERM
    assert (read_status("theirs").state, read_status("theirs").reason) == ("stopped", "terminated by SIGTERM")


def test_a_forked_child_that_ends_does_not_end_its_parents_run():
    end = """
for how in (lambda: os.kill(os.getpid(), signal.SIGTERM), lambda: sys.exit(0)):
    child = os.fork()
    if child == 0:
        how()
    os.waitpid(child, 0)
    print(read_status("theirs").state, flush=True)
os._exit(0)
"""
    out, _ = launch(end).communicate(timeout=30)
    assert out.split() == ["running", "running"]


def test_readers_never_meet_half_a_file(tmp_path):
    file = tmp_path / "whole.json"
    write_json(file, {})
    over = threading.Event()

    def write():
        for length in range(1000, 3000, 10):
            write_json(file, {"text": "x" * length})
        over.set()

    thread = threading.Thread(target=write)
    thread.start()
    reads = 0
    while not over.is_set():
        json.loads(file.read_text())
        reads += 1
    thread.join()
    assert reads > 10
    assert [path.name for path in tmp_path.iterdir()] == ["whole.json"]


# --- progress


@pytest.fixture
def clock(monkeypatch):
    """A clock that is moved by hand."""

    class Clock:
        now = 1000.0

        def monotonic(self):
            return self.now

        def time(self):
            return self.now

    hand = Clock()
    monkeypatch.setattr(runs, "time", hand)
    return hand


def test_eta_is_the_pace_since_the_work_began(clock):
    run = start()
    progress = lambda: lines_of(run, "progress.json")
    run.progress(5, 40, "rollouts")  # five were there already
    assert progress() == {
        "stage": "ppo", "done": 5, "total": 40, "text": "rollouts", "eta_s": None, "time": 1000.0,
    }  # fmt: skip
    clock.now += 20
    run.progress(15, 40, "rollouts")  # 10 in 20 s, so the 25 left take 50 s
    assert progress()["eta_s"] == 50.0
    clock.now += 100
    run.progress(1, 8, "evaluating")  # other work: its own pace
    assert progress()["eta_s"] is None
    clock.now += 3
    run.progress(2, 8, "evaluating")
    assert progress()["eta_s"] == 18.0
    run.pause("stopped", "interrupted")
    clock.now += 1000  # a pause is no work
    run.progress(3, 8, "evaluating")
    assert progress()["eta_s"] is None
    clock.now += 2
    run.progress(4, 8, "evaluating")
    assert progress()["eta_s"] == 8.0
    run.progress(8, 8)
    assert progress()["eta_s"] == 0.0
    clock.now += 1
    run.progress(0, 8, "once more")
    clock.now += 1
    run.progress(1, 8, "once more")
    assert progress()["eta_s"] == 7.0


def test_progress_is_written_five_times_a_second_and_at_the_end(clock):
    run = start()
    written = []
    for done in range(1, 101):
        run.progress(done, 100)
        if not written or lines_of(run, "progress.json")["done"] != written[-1]:
            written.append(lines_of(run, "progress.json")["done"])
        clock.now += 0.01
    assert written[-1] == 100
    assert len(written) <= 7  # one second and the two ends


def test_headless_prints_a_line_every_ten_seconds(clock, capsys, monkeypatch):
    run = start()
    capsys.readouterr()
    for done in range(25):
        run.progress(done, 25, "training")
        clock.now += 1
    assert capsys.readouterr().out.splitlines() == [
        "ppo 0/25 (0%), training",
        "ppo 10/25 (40%), training, about 0:15 left",
        "ppo 20/25 (80%), training, about 0:05 left",
    ]
    monkeypatch.setenv("RLHF_LAB_HEADLESS", "0")
    run = start()
    capsys.readouterr()
    run.progress(1, 2)
    assert capsys.readouterr().out == ""


def test_heartbeats_are_seconds_apart(clock):
    run = start()
    file = run.path / "status.json"
    beats = set()
    for step in range(200):
        run.log({"a": 1}, step=step)
        clock.now += 0.1
        beats.add(file.stat().st_mtime_ns)
    assert 3 <= len(beats) <= 6  # in 20 seconds, with the one at the start


# --- latest run


def test_latest_run_is_the_newest_that_is_done():
    assert latest_run("ppo") is None
    paths = []
    for experiment in ("a", "b", "a"):
        run = start(experiment=experiment)
        run.finish({})
        paths.append(run.path)
        time.sleep(0.002)
    start(experiment="a").fail("no")
    start(experiment="a")
    start(experiment="a", stage="sft").finish({})
    assert latest_run("ppo") == paths[2]
    assert latest_run("ppo", "b") == paths[1]
    assert latest_run("ppo", "c") is None
    (paths[2] / "status.json").write_text("{")
    assert latest_run("ppo") == paths[1]


# --- in a notebook


def test_headless_knows_the_tools_that_execute_notebooks(monkeypatch):
    parents = {
        "/opt/bin/python /opt/bin/papermill a.ipynb b.ipynb": True,
        "/opt/bin/python -m papermill a.ipynb": True,
        "/opt/bin/python /opt/bin/jupyter-nbconvert --execute": True,
        "/home/me/rlhf_lab/.venv/bin/python /home/me/rlhf_lab/.venv/bin/rlhf-lab run x.yaml": True,
        "/home/me/rlhf_lab/.venv/bin/python /home/me/rlhf_lab/.venv/bin/jupyter-lab papermill": False,
        "/opt/bin/python -m ipykernel_launcher -f x.json": True,
    }
    monkeypatch.delenv("RLHF_LAB_HEADLESS")
    assert session.headless()  # no kernel at all
    monkeypatch.setattr(session, "in_kernel", lambda: True)
    for command, expected in parents.items():
        parent = type("Parent", (), {"cmdline": lambda self, command=command: command.split()})
        process = type("Process", (), {"parent": lambda self, parent=parent: parent()})
        monkeypatch.setattr(session.psutil, "Process", process)
        assert session.headless() == expected, command


def outputs(cells, monkeypatch, headless):
    """Execute cells in a real kernel, going on after errors; what each printed."""
    monkeypatch.setenv("RLHF_LAB_HEADLESS", headless)
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(cell) for cell in cells])
    nbclient.NotebookClient(notebook, timeout=60, kernel_name="python3", allow_errors=True).execute()
    return ["".join(out.get("text", "") for out in cell.outputs) for cell in notebook.cells]


def test_a_kernel_tells_of_errors_and_interrupts_and_goes_on(monkeypatch):
    show = "s = read_status(run.path); print(s.state, s.reason, sep='|')"
    printed = outputs(
        [
            SCRIPT,
            "1/0",
            show,
            "run.log({'a': 2.0}, step=2)\n" + show,
            "os.kill(os.getpid(), signal.SIGINT); time.sleep(30)",
            show,
            "run.progress(1, 2)\n" + show,
            "old = run.path\nrun = Run.start('ppo', Stage(), run_dir='newer')\nprint(read_status(old).state)",
            "run.finish({})",
            "raise ValueError('an exercise')",
            show,
        ],
        monkeypatch,
        headless="0",
    )
    assert printed[2] == "failed|ZeroDivisionError: division by zero\n"
    assert printed[3] == "running|\n"
    assert printed[5] == "stopped|interrupted\n"
    assert printed[6] == "running|\n"
    assert printed[7].splitlines()[-1] == "stopped"
    assert printed[10] == "done|\n"
    assert read_status("theirs").reason == "a newer run of this stage was started in the same notebook"
