"""The command `rlhf-lab`: exit codes, one line per error, and Ctrl-C in a process of its own."""

import os
import signal
import subprocess
import sys
import time

import pytest
from small_notebooks import START, write_chain, write_notebook

from rlhf_lab import cli
from rlhf_lab.workbench.records import read_status


@pytest.fixture(autouse=True)
def project(tmp_path, monkeypatch):
    """A project in the current directory with one experiment of two stages."""
    monkeypatch.delenv("RLHF_LAB_RUNS", raising=False)
    monkeypatch.setenv("WANDB_MODE", "disabled")
    monkeypatch.chdir(tmp_path)
    write_notebook(tmp_path / "notebooks" / "one.ipynb", START, "print('steps', steps)", "run.finish({'lr': lr})")
    stages = [{"name": "first", "notebook": "one"}, {"name": "second", "notebook": "one"}]
    write_chain(tmp_path / "experiments" / "demo.yaml", *stages)
    return tmp_path


def command(*words):
    """The command in a process of its own, as a shell would start it."""
    return [sys.executable, "-m", "rlhf_lab", *words]


def test_validate_says_what_would_run(capsys):
    assert cli.main(["validate", "experiments/demo.yaml", "-p", "lr=5e-6"]) == 0
    assert "experiment demo, stages first, second" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["validate", "experiments/none.yaml"], "experiments/none.yaml: no such file"),
        (["run", "experiments/demo.yaml", "-p", "lr=fast"], "stage first: parameter 'lr' is 'fast'"),
        (["run", "experiments/demo.yaml", "-p", "second.stepz=1"], "stage second: unknown parameter 'stepz'"),
    ],
)
def test_what_the_user_can_mend_is_one_line_and_exit_code_2(project, capsys, words, expected):
    assert cli.main(words) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.count("\n") == 1
    assert err.startswith("rlhf-lab: ")
    assert expected in err
    assert not (project / "runs").exists()


@pytest.mark.parametrize(
    ("source", "code", "expected"),
    [
        (
            "raise LabError('pairs.jsonl, row 3: no column chosen')",
            2,
            "cell [4]: pairs.jsonl, row 3: no column chosen",
        ),
        ("raise RunFailed('the loss is NaN at update 7')", 1, "cell [4]: the loss is NaN at update 7"),
    ],
)
def test_a_failed_cell_decides_the_exit_code(project, capsys, source, code, expected):
    write_notebook(project / "notebooks" / "one.ipynb", START, source)
    assert cli.main(["run", "experiments/demo.yaml", "--quiet"]) == code
    err = capsys.readouterr().err
    assert err.count("\n") == 1
    assert f"demo, stage first: one.ipynb, {expected}" in err
    (run_dir,) = (project / "runs" / "demo" / "first").iterdir()
    status = read_status(run_dir)
    assert (status.state, status.reason) == ("failed", expected.split("]: ")[1])


def run_until_progress(project, number):
    """Start a real run, send it a signal once it reports progress, and return the ended process."""
    cell = "run.progress(1, 9, 'training')\nprint('before', flush=True)\ntime.sleep(60)"
    write_notebook(project / "notebooks" / "one.ipynb", START, cell, "print('after')")
    process = subprocess.Popen(
        command("run", "experiments/demo.yaml", "-p", "lr=5e-6"),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    deadline = time.monotonic() + 120
    while not list(project.glob("runs/demo/first/*/progress.json")):
        assert process.poll() is None, process.stderr.read()
        assert time.monotonic() < deadline
        time.sleep(0.05)
    process.send_signal(number)
    out, err = process.communicate(timeout=60)
    return process.returncode, out, err


@pytest.mark.skipif(os.name == "nt", reason="POSIX signals")
@pytest.mark.parametrize("number", [signal.SIGINT, pytest.param(signal.SIGTERM, marks=pytest.mark.slow)])
def test_a_stopped_run_says_so_and_keeps_its_notebook(project, number):
    code, out, err = run_until_progress(project, number)
    assert code == 130
    assert err == "rlhf-lab: stopped\n"
    assert "[1/2] first    stopped in" in out
    (run_dir,) = (project / "runs" / "demo" / "first").iterdir()
    assert read_status(run_dir).state == "stopped"
    notebook = (run_dir / "notebook.ipynb").read_text()
    assert "before" in notebook
    assert "5e-06" in notebook  # the injected parameters, as validated
    assert not (project / "runs" / "demo" / "second").exists()
    assert (project / "runs" / "demo" / "report" / "index.html").is_file()


def test_without_a_command_it_explains_itself(capsys):
    with pytest.raises(SystemExit) as caught:
        cli.main([])
    assert caught.value.code == 2
    with pytest.raises(SystemExit) as caught:
        cli.main(["--help"])
    assert caught.value.code == 0
    out = capsys.readouterr().out
    assert all(word in out for word in ("run", "validate", "doctor"))


def test_doctor_tells_one_line_each_and_never_a_key(capsys, monkeypatch):
    key = "0123456789abcdef0123456789abcdef01234567"
    monkeypatch.setenv("WANDB_API_KEY", key)
    monkeypatch.setenv("WANDB_MODE", "offline")
    assert cli.main(["doctor"]) == 0
    out = capsys.readouterr().out
    lines = out.splitlines()
    assert all(line.startswith(("ok  ", "warn")) for line in lines)
    assert [line.split()[1] for line in lines] == [
        *("python", "packages", "torch", "threads", "bf16", "gpu", "kernel"),
        *("nbstripout", "wandb", "runs", "disk"),
    ]
    assert key not in out
    assert "offline" in next(line for line in lines if line.split()[1] == "wandb")


def test_doctor_says_what_to_do(monkeypatch, project):
    from rlhf_lab.workbench import doctor

    usage = type("Usage", (), {"free": 1e9})
    monkeypatch.setattr(doctor.shutil, "disk_usage", lambda path: usage)
    monkeypatch.setattr(doctor, "PACKAGES", ("torch", "no-such-package"))
    lines = doctor.told([doctor._disk(), doctor._packages()])
    assert lines[0].startswith("warn  disk      1 GB free for runs  -> make room")
    assert "missing: no-such-package  -> pip install" in lines[1]

    def broken():
        raise ImportError("torch\nis broken")

    assert doctor.told([doctor._safely(broken)])[0].startswith("warn  broken  ImportError: torch is broken  ->")
