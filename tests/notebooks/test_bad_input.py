"""What a user can get wrong, through the real command and notebooks: one line, the exit code, a true status."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]
LAB = [sys.executable, "-m", "rlhf_lab", "run"]


def environment(folder: Path) -> dict[str, str]:
    return {**os.environ, "RLHF_LAB_RUNS": str(folder / "runs"), "WANDB_MODE": "disabled"}


def experiment(folder: Path, stem: str, **parameters) -> Path:
    file = folder / "experiments" / stem / "case.yaml"
    file.parent.mkdir(parents=True)
    # A flat file's notebook is found beside its experiments folder.
    (folder / "notebooks").symlink_to(ROOT / "notebooks")
    file.write_text(yaml.safe_dump({"threads": 1, **parameters}))
    return file


def run(folder: Path, file: Path, *more: str) -> subprocess.CompletedProcess:
    command = [*LAB, str(file), *more]
    return subprocess.run(command, cwd=folder, env=environment(folder), capture_output=True, text=True, timeout=300)


def only_status(folder: Path) -> dict:
    (status,) = (folder / "runs").glob("*/*/*/status.json")
    return json.loads(status.read_text())


def assert_one_line(done: subprocess.CompletedProcess, *words: str) -> None:
    lines = [line for line in done.stderr.splitlines() if line.startswith("rlhf-lab:")]
    assert len(lines) == 1, done.stderr
    assert "Traceback" not in done.stderr
    for word in words:
        assert word in lines[0], lines[0]


def test_a_misspelt_key_stops_before_anything_starts(tmp_path):
    done = run(tmp_path, experiment(tmp_path, "03_ppo", upates=3))
    assert done.returncode == 2
    assert_one_line(done, "case.yaml", "upates", "did you mean 'updates'?")
    assert not (tmp_path / "runs").exists()


def test_a_word_for_a_number_is_refused_and_a_number_as_text_is_not(tmp_path):
    done = run(tmp_path, experiment(tmp_path, "03_ppo", lr="fast"))
    assert done.returncode == 2
    assert_one_line(done, "case.yaml", "lr", "fast")
    from rlhf_lab.workbench.stages import PPOStage

    assert PPOStage.parse({"lr": "5e-6"}).lr == 5e-6


DATA = {
    "a missing column": ('{"question": "a", "completion": "b"}\n', ["demos.jsonl", "prompt"]),
    "a wrong column": ('{"prompt": "a", "completion": 3}\n', ["demos.jsonl", "line 1", "completion"]),
    "an empty data set": ("", ["demos.jsonl"]),
}


@pytest.mark.slow
@pytest.mark.parametrize("case", DATA)
def test_data_that_cannot_be_used(tmp_path, case):
    text, words = DATA[case]
    (tmp_path / "demos.jsonl").write_text(text)
    done = run(tmp_path, experiment(tmp_path, "01_sft", demonstrations=str(tmp_path / "demos.jsonl")))
    assert done.returncode == 2
    assert_one_line(done, "01_sft.ipynb, cell", *words)
    assert only_status(tmp_path)["state"] == "failed"
    assert (tmp_path / "demos.jsonl").read_text() == text


@pytest.mark.slow
def test_a_prompt_that_is_learned_from_and_measured_on(tmp_path):
    row = {"prompt": "note : the soup is hot . guest : how is the soup ? host :", "completion": " it is hot ."}
    (tmp_path / "demos.jsonl").write_text(json.dumps(row) + "\n")
    files = {"demonstrations": str(tmp_path / "demos.jsonl"), "prompts": str(tmp_path / "demos.jsonl")}
    done = run(tmp_path, experiment(tmp_path, "01_sft", **files))
    assert done.returncode == 2
    assert_one_line(done, "01_sft.ipynb, cell", "1 of 1 held-out rows have a prompt of the training data", "on_bad")
    assert only_status(tmp_path)["state"] == "failed"


@pytest.mark.slow
def test_a_path_that_is_no_model(tmp_path):
    done = run(tmp_path, experiment(tmp_path, "01_sft", model=str(tmp_path / "nothing")))
    assert done.returncode == 2
    assert_one_line(done, "01_sft.ipynb, cell", str(tmp_path / "nothing"))
    assert only_status(tmp_path)["state"] == "failed"


@pytest.mark.slow
def test_fewer_prompts_than_a_batch(tmp_path):
    (tmp_path / "prompts.jsonl").write_text(
        '{"prompt": "note : the soup is hot and cheap . guest : how is the soup ? host :"}\n'
        '{"prompt": "note : the tea is hot and cheap . guest : how is the tea ? host :"}\n'  # one is held back
    )
    from rlhf_lab.sandbox.world import World

    file = experiment(
        tmp_path, "03_ppo", policy=World.load().base_model, reward="gold", prompts=str(tmp_path / "prompts.jsonl")
    )
    done = run(tmp_path, file)
    assert done.returncode == 2
    assert_one_line(done, "03_ppo.ipynb, cell", "1 prompts are fewer than batch_size=128")
    assert only_status(tmp_path)["state"] == "failed"


@pytest.mark.slow
def test_a_loss_that_is_not_a_number_is_a_failed_run(tmp_path):
    from rlhf_lab.sandbox.world import World

    file = experiment(tmp_path, "02_reward_model", policy=World.load().base_model, n_prompts=64, n_heldout=8, lr=1e30)
    done = run(tmp_path, file)
    assert done.returncode == 1
    assert_one_line(done, "02_reward_model.ipynb, cell", "loss is", "lower 'lr'")
    status = only_status(tmp_path)
    assert status["state"] == "failed" and "lower 'lr'" in status["reason"]


@pytest.mark.slow
def test_ctrl_c_in_the_middle_of_ppo(tmp_path):
    from rlhf_lab.sandbox.world import World

    file = experiment(
        tmp_path, "03_ppo", policy=World.load().base_model, reward="gold", batch_size=16, updates=5000, eval_prompts=16
    )
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    process = subprocess.Popen([*LAB, str(file)], cwd=tmp_path, env=environment(tmp_path), **pipes)
    deadline = time.monotonic() + 240
    while not any((tmp_path / "runs").glob("*/*/*/metrics.jsonl")):
        assert process.poll() is None and time.monotonic() < deadline, process.stderr.read() if process.poll() else ""
        time.sleep(0.3)
    time.sleep(2)
    process.send_signal(signal.SIGINT)
    output, errors = process.communicate(timeout=120)
    assert process.returncode == 130, errors
    assert "Traceback" not in errors
    assert only_status(tmp_path)["state"] == "stopped"
    (metrics,) = (tmp_path / "runs").glob("*/*/*/metrics.jsonl")
    assert all(json.loads(line)["policy/approxkl_avg"] >= 0 for line in metrics.read_text().splitlines())
