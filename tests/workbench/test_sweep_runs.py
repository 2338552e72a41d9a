"""Sweeps in real processes: side by side, skipped, gone wrong, stopped, killed and taken up by the same command."""

import io
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time

import psutil
import pytest
import yaml
from small_notebooks import PARAMETERS, START, write_notebook

from rlhf_lab import cli
from rlhf_lab.config import Config
from rlhf_lab.errors import LabError
from rlhf_lab.workbench.experiments import keeping, runner
from rlhf_lab.workbench.experiments.locks import held
from rlhf_lab.workbench.experiments.pipeline import plan_in_words, run_experiment
from rlhf_lab.workbench.experiments.places import cores
from rlhf_lab.workbench.experiments.record import ExperimentRecord, StageRecord
from rlhf_lab.workbench.progress_line import Board, ProgressLine
from rlhf_lab.workbench.records import BUSY, read_status
from rlhf_lab.workbench.reference import record_results
from rlhf_lab.workbench.runs import Run

# Notes each execution in log.txt, with the step it began at.
LOG = """\
import os, time
from pathlib import Path
marks = Path(run_dir) / "marks.txt"
begin = len(marks.read_text()) if marks.exists() else 0
with open("log.txt", "a") as log:
    log.write(f"{Path(run_dir).parts[-2]} {lr} {seed} from {begin}\\n")"""
MAKE = """\
(Path(run_dir) / "checkpoint").mkdir()
(Path(run_dir) / "checkpoint" / "w.txt").write_text(f"{lr} {seed} " + (Path(policy).read_text() if policy else ""))"""
RESUMABLE = START.replace("seed=seed)", "seed=seed, resume=resume)")
STEPS = """\
for i in range(begin, steps):
    time.sleep(0.1)
    marks.open("a").write("x")
    run.progress(i + 1, steps, "training")"""


@pytest.fixture(autouse=True)
def project(tmp_path, monkeypatch):
    monkeypatch.delenv("RLHF_LAB_RUNS", raising=False)
    monkeypatch.setenv("WANDB_MODE", "disabled")
    monkeypatch.chdir(tmp_path)
    write_notebook(tmp_path / "notebooks" / "plain.ipynb", LOG, MAKE)  # keeps no record of its own
    parameters = PARAMETERS + "\nresume: bool = False\nthreads: int = 0"
    results = 'run.finish({"gold": lr, "threads": threads, "omp": os.environ.get("OMP_NUM_THREADS")})'
    write_notebook(tmp_path / "notebooks" / "train.ipynb", LOG, RESUMABLE, STEPS, results, parameters=parameters)
    return tmp_path


def write_sweep(project, grid, *, last="plain", **parameters):
    stages = [
        {"name": "sft", "notebook": "plain"},
        {"name": "ppo", "notebook": last, "parameters": {"policy": "{sft}/checkpoint/w.txt", **parameters}},
    ]
    file = project / "sweep.yaml"
    file.write_text(yaml.safe_dump({"experiment": "demo", "stages": stages, "sweep": grid}, sort_keys=False))
    return file


def log(project):
    """What was executed since last asked, without order."""
    file = project / "log.txt"
    lines = file.read_text().splitlines() if file.exists() else []
    file.unlink(missing_ok=True)
    return sorted(lines)


def run(file, **options):
    return run_experiment(file, quiet=True, stream=io.StringIO(), **options)


def runs_of(project, stage):
    return sorted((project / "runs" / "demo" / stage).iterdir())


def wait_for(condition, process=None):
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        assert process is None or process.poll() is None, process.communicate()
        time.sleep(0.02)


def test_a_sweep_is_run_once_and_only_what_changed_runs_again(project):
    file = write_sweep(project, {"ppo.lr": [1, 2], "seeds": [7]})
    record = run(file, workers=2)
    assert log(project) == ["ppo 1.0 7 from 0", "ppo 2.0 7 from 0", "sft 0.5 7 from 0"]
    made = {(run_dir / "checkpoint" / "w.txt").read_text() for run_dir in runs_of(project, "ppo")}
    assert made == {"1.0 7 0.5 7 ", "2.0 7 0.5 7 "}  # each its own, and what the one stage before them made
    results = json.loads((project / "runs/demo/results.json").read_text())
    assert [point["point"] for point in results["points"]] == [{"ppo.lr": lr, "seed": 7} for lr in (1, 2)]
    assert (project / "runs/demo/report/index.html").is_file() and record.state == "done"

    assert all(stage.skipped for stage in run(file).stages) and log(project) == []
    shutil.rmtree(runs_of(project, "ppo")[0])
    assert run(file).state == "done" and len(log(project)) == 1


def test_what_comes_out_the_same_stops_the_wave(project):
    shutil.copy(project / "notebooks" / "plain.ipynb", project / "notebooks" / "other.ipynb")
    file = write_sweep(project, {"ppo.lr": [1]}, last="other")
    run(file)
    log(project)
    write_notebook(project / "notebooks" / "plain.ipynb", LOG, MAKE + "  # a comment")
    assert "ppo  run  unless sft comes out as before" in plan_in_words(file)
    record = run(file)
    assert log(project) == ["sft 0.5 0 from 0"] and [stage.skipped for stage in record.stages] == [False, True]


def test_a_failure_stops_its_own_branch_only_and_is_never_taken_for_a_result(project, capsys):
    write_notebook(project / "notebooks" / "moody.ipynb", LOG, "assert lr != 1 or os.path.exists('mended')", MAKE)
    stages = [
        {"name": "sft", "notebook": "moody"},
        {"name": "ppo", "notebook": "plain", "parameters": {"policy": "{sft}/checkpoint/w.txt"}},
        {"name": "alone", "notebook": "plain"},
    ]
    content = {"experiment": "demo", "stages": stages, "sweep": {"sft.lr": [1, 2]}}
    (project / "sweep.yaml").write_text(yaml.safe_dump(content))
    assert cli.main(["run", "sweep.yaml", "-j", "2"]) == 1
    out, err = capsys.readouterr()
    assert (
        err.startswith("rlhf-lab: demo, stage sft lr=1: moody.ipynb, cell [4]: AssertionError") and err.count("\n") == 1
    )
    assert log(project) == ["alone 0.5 0 from 0", "ppo 0.5 0 from 0", "sft 1.0 0 from 0", "sft 2.0 0 from 0"]
    results = json.loads((project / "runs/demo/results.json").read_text())
    assert results["state"] == "failed" and "sft lr=1   failed in" in out
    (project / "mended").touch()
    assert cli.main(["run", "sweep.yaml", "--quiet"]) == 0
    assert log(project) == ["ppo 0.5 0 from 0", "sft 1.0 0 from 0"]  # what was done is not done again


def start(*words):
    """`rlhf-lab run` in a process of its own, which is not told how many threads to take."""
    environment = {name: value for name, value in os.environ.items() if name != "OMP_NUM_THREADS"}
    command = [sys.executable, "-m", "rlhf_lab", "run", "sweep.yaml", *words]
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def steps_done(project):
    return [len(file.read_text()) for file in project.glob("runs/demo/ppo/*/marks.txt")]


@pytest.mark.skipif(os.name == "nt", reason="POSIX signals")
@pytest.mark.parametrize("number", [signal.SIGKILL, pytest.param(signal.SIGINT, marks=pytest.mark.slow)])
def test_a_sweep_that_was_killed_is_taken_up_by_the_same_command_and_nothing_is_done_twice(project, number):
    write_sweep(project, {"ppo.lr": [1, 2]}, last="train", steps=15)
    process = start("-j", "2")
    wait_for(lambda: sum(steps > 3 for steps in steps_done(project)) == 2, process)
    process.send_signal(number)
    _, err = process.communicate(timeout=60)
    assert err == ("rlhf-lab: stopped\n" if number == signal.SIGINT else "")

    process = start("-j", "2")  # at once: the kernels of the killed command may not have ended yet
    out, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    assert "[1/3] sft        unchanged, skipped" in out
    lines = log(project)
    begun, again = (
        [line for line in lines if line.startswith("ppo") and line.endswith(" from 0") == new] for new in (True, False)
    )
    assert len(begun) == 2 and len(again) == 2 and lines.count("sft 0.5 0 from 0") == 1
    assert steps_done(project) == [15, 15]  # each step once, in two directories
    share = max(1, cores() // 2)
    for run_dir in runs_of(project, "ppo"):
        status = read_status(run_dir)
        assert status.state == "done" and 10 < status.peak_memory_mb < 2000
        results = json.loads((run_dir / "results.json").read_text())
        assert (results["threads"], results["omp"]) == (share, str(share))


@pytest.mark.skipif(os.name == "nt", reason="POSIX signals")
def test_a_run_is_stopped_by_name_refused_to_rm_while_it_lives_and_run_by_one_command_only(project, capsys):
    write_sweep(project, {"ppo.lr": [1]}, last="train", steps=600)
    process = start()
    wait_for(lambda: any(steps > 3 for steps in steps_done(project)), process)
    (run_dir,) = runs_of(project, "ppo")
    assert cli.main(["rm", str(run_dir), "--yes"]) == 2 and "is alive (process" in capsys.readouterr().err
    (taken,) = runs_of(project, "sft")
    assert cli.main(["rm", str(taken), "--yes"]) == 2 and taken.exists()
    assert "is being started, or taken from by a run that is alive; wait, or stop that" in capsys.readouterr().err
    assert cli.main(["run", "sweep.yaml", "--quiet"]) == 2
    assert "demo, stage ppo: another process is running it" in capsys.readouterr().err
    assert cli.main(["status"]) == 0
    assert " running " in next(line for line in capsys.readouterr().out.splitlines() if "demo/ppo/" in line)

    assert cli.main(["stop", f"demo/ppo/{run_dir.name}"]) == 0
    assert capsys.readouterr().out.strip() == f"runs/demo/ppo/{run_dir.name}: stopped"
    _, err = process.communicate(timeout=60)
    assert process.returncode == 1 and "stage ppo: train.ipynb, cell [5]: the kernel was interrupted" in err
    assert "ppo  resume  stopped: interrupted" in plan_in_words("sweep.yaml")
    with held(run_dir / BUSY), pytest.raises(LabError, match="is being started"):
        keeping.remove_runs([run_dir])
    assert run_dir.exists()
    keeping.remove_runs([taken])
    assert not taken.exists()


@pytest.mark.skipif(os.name == "nt", reason="the command sleep")
def test_a_kernel_that_outlives_its_runner_is_waited_for_and_not_run_beside(project, monkeypatch):
    file = write_sweep(project, {"ppo.lr": [1]})
    run(file)
    log(project)
    (run_dir,) = runs_of(project, "ppo")

    def alive(seconds):
        process = subprocess.Popen(["sleep", str(seconds)])
        facts = {"pid": process.pid, "process_start": psutil.Process(process.pid).create_time()}
        status = {"state": "running", "host": socket.gethostname(), **facts}
        (run_dir / "status.json").write_text(json.dumps(status))
        return process

    process = alive(60)
    with monkeypatch.context() as patch:
        patch.setattr(runner, "ORPHAN_S", 0.1)
        with pytest.raises(LabError, match="is still alive .process .*rlhf-lab stop"):
            run(file)
    assert log(project) == []
    process.kill()
    process.wait()
    process = alive(1)
    assert run(file).state == "done" and process.poll() == 0
    assert log(project) == ["ppo 1.0 0 from 0"]


def test_a_directory_that_was_edited_under_a_running_sweep_is_noticed_by_what_takes_from_it(project):
    """The second stage edits what the third takes."""
    edit = "Path(policy).write_text('edited')"
    write_notebook(project / "notebooks" / "edits.ipynb", LOG, edit)
    delete = "import shutil; shutil.rmtree(Path(policy).parents[1])"
    write_notebook(project / "notebooks" / "deletes.ipynb", LOG, delete)
    for name, expected in {"edits": "checkpoint/w.txt was edited", "deletes": "was deleted"}.items():
        stages = [
            {"name": "sft", "notebook": "plain"},
            {"name": "middle", "notebook": name, "parameters": {"policy": "{sft}/checkpoint/w.txt"}},
            {"name": "last", "notebook": "plain", "parameters": {"policy": "{sft}/checkpoint/w.txt"}},
        ]
        stages[2]["parameters"]["name"] = "{middle}"
        write_notebook(project / "notebooks" / "plain.ipynb", LOG, MAKE, parameters=PARAMETERS + '\nname: str = ""')
        (project / "chain.yaml").write_text(yaml.safe_dump({"experiment": name, "stages": stages}))
        with pytest.raises(LabError, match=f"stage last: its input {{sft}}, .*: {expected}.*; the same command"):
            run(project / "chain.yaml")
        assert not (project / "runs" / name / "last").exists()


def test_a_full_disk_is_one_line_and_what_was_done_stays_done(project, monkeypatch):
    file = write_sweep(project, {"ppo.lr": [1, 2]})

    def full(path, made):
        if "ppo" in str(path):
            raise OSError(28, "No space left on device", str(path / "made_from.json"))
        write(path, made)

    write = runner.write_made_from
    with monkeypatch.context() as patch:
        patch.setattr(runner, "write_made_from", full)
        with pytest.raises(LabError, match="stage ppo lr=1: .* free some space.*; 1 more failed"):
            run(file)
    assert log(project) == ["sft 0.5 0 from 0"]
    assert run(file).state == "done"
    assert log(project) == ["ppo 1.0 0 from 0", "ppo 2.0 0 from 0"]
    assert len(runs_of(project, "ppo")) == 2  # the directories that were begun are used


def test_the_run_of_a_wandb_agent_is_that_of_the_last_stage(project, monkeypatch):
    for name in ("ids", "last"):
        cell = f"open('{name}.txt', 'w').write(str(os.environ.get('WANDB_RUN_ID')))"
        write_notebook(project / "notebooks" / f"{name}.ipynb", "import os", cell)
    stages = [{"name": "a", "notebook": "ids"}, {"name": "b", "notebook": "last", "parameters": {"policy": "{a}"}}]
    (project / "two.yaml").write_text(yaml.safe_dump({"experiment": "two", "stages": stages}))
    monkeypatch.setenv("WANDB_SWEEP_ID", "s1")
    monkeypatch.setenv("WANDB_RUN_ID", "r1")
    run(project / "two.yaml")
    assert ((project / "ids.txt").read_text(), (project / "last.txt").read_text()) == ("None", "r1")


def test_results_of_a_sweep_over_seeds_are_recorded_a_line_each(project):
    def record(key):
        stages = [
            StageRecord(f"{n:02d}", project, project, "done", 2.0, results={"gold": n}, stage="ppo") for n in (7, 8)
        ]
        points = [({key: n}, [stage]) for n, stage in zip((7, 8), stages, strict=True)]
        return ExperimentRecord("demo", "", project / "x.yaml", project, "command", "", stages, points=points)

    record_results(record("seed"), "all.jsonl")
    rows = [json.loads(line) for line in (project / "all.jsonl").read_text().splitlines()]
    assert [(row["seed"], row["seconds"], row["results"]) for row in rows] == [
        (7, 2.0, {"ppo": {"gold": 7}}),
        (8, 2.0, {"ppo": {"gold": 8}}),
    ]
    with pytest.raises(LabError, match="sweeps over ppo.lr; only a sweep over seeds alone is recorded"):
        record_results(record("ppo.lr"), "all.jsonl")


def test_a_run_tells_its_time_and_the_memory_it_held_at_most(project):
    class Settings(Config):
        lr: float = 1.0

    run = Run.start("stage", Settings(), run_dir="here")
    run.stop("enough")
    status = json.loads((project / "here/status.json").read_text())
    assert status["seconds"] >= 0 and status["peak_memory_mb"] > 10
    (project / "here/status.json").write_text(json.dumps(status | {"seconds": 100.0}))
    Run.start("stage", Settings(), run_dir="here", resume=True).finish()
    assert 100 <= read_status("here").seconds < 200  # both parts together
    code = (
        "from rlhf_lab.workbench.memory import peak_memory as peak; before = peak()['peak_memory_mb']\n"
        "held = b'x' * 80_000_000; del held; print(peak()['peak_memory_mb'] - before)"
    )
    held = b"y" * 200_000_000  # of this process, which must not count
    grown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert 70 < float(grown) < 100 and len(held)


def test_stages_side_by_side_share_one_line_of_a_terminal(tmp_path):
    class Terminal(io.StringIO):
        def isatty(self):
            return True

    stream = Terminal()
    board = Board(stream)
    lines = [ProgressLine(stream, n, 2, name, 3, tmp_path, board=board) for n, name in ((1, "a"), (2, "b"))]
    board.show("a", "training 1/2   0:13 left")
    board.show("b", "starting")
    lines[0].end("done in 0:33")
    *_, both, ended, rest = stream.getvalue().split("\r")
    assert both == "a: training 1/2 0:13 left | b: starting\x1b[K"
    assert (ended, rest) == ("[1/2] a     done in 0:33\x1b[K\n", "b: starting\x1b[K")
