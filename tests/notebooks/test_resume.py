"""A chain killed in the middle of each stage and resumed leaves the same metrics and weights as one left alone."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file

ROOT = Path(__file__).resolve().parents[2]
SFT = {"n_demonstrations": 320, "batch_size": 4, "save_every": 20}
RANKED = {"policy": "{sft}", "n_prompts": 160, "n_heldout": 16, "k": 3, "batch_size": 2, "save_every": 10}
PPO = {"policy": "{sft}", "reward": "{reward_model}", "updates": 30, "batch_size": 16, "eval_every": 5, "save_every": 3}
CHAIN = {
    "experiment": "killed",
    "stages": [
        {"name": "sft", "notebook": "01_sft", "parameters": SFT},
        {"name": "reward_model", "notebook": "02_reward_model", "parameters": RANKED},
        {"name": "ppo", "notebook": "03_ppo", "parameters": PPO},
    ],
}


def command(folder: Path, *more: str) -> subprocess.Popen:
    folder.mkdir(exist_ok=True)
    (folder / "chain.yaml").write_text(yaml.safe_dump(CHAIN))
    common = ["-p", "threads=1", "-p", "eval_prompts=8", "-p", "sft.epochs=1.0"]
    precision = ["-p", "precision=fp32"]
    return subprocess.Popen(
        [sys.executable, "-m", "rlhf_lab", "run", "chain.yaml", *common, *precision, *more],
        cwd=folder,
        env={**os.environ, "RLHF_LAB_RUNS": str(folder / "runs"), "WANDB_MODE": "disabled"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def lines(folder: Path, stage: str) -> list[dict]:
    """The metrics so far, a torn last line left out."""
    files = list((folder / "runs/killed" / stage).glob("*/metrics.jsonl"))
    text = files[0].read_bytes().split(b"\n")[:-1] if files else []
    return [json.loads(line) for line in text]


def timeless(rows: list[dict]) -> list[dict]:
    return [{k: v for k, v in row.items() if not k.startswith("time")} for row in rows]


def kill_in(stage: str, process: subprocess.Popen, folder: Path, *, after: int, with_signal: int) -> None:
    """Kill the kernel of a stage once it has logged so many lines, and the runner with it."""
    deadline = time.monotonic() + 300
    while len(lines(folder, stage)) < after:
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.05)
    run = next((folder / "runs/killed" / stage).glob("*/status.json"))
    status = json.loads(run.read_text())
    assert status["state"] == "running", "the stage was over before it could be killed: give it more to do"
    if with_signal == signal.SIGKILL:
        process.kill()
    os.kill(status["pid"], with_signal)
    process.communicate(timeout=120)


@pytest.mark.slow
def test_killed_in_every_stage_and_resumed_it_ends_as_if_nothing_had_been(tmp_path):
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    process = command(whole)
    output = process.communicate(timeout=900)
    assert process.returncode == 0, output

    kill_in("sft", command(killed), killed, after=14, with_signal=signal.SIGKILL)
    kill_in("reward_model", command(killed, "--resume"), killed, after=25, with_signal=signal.SIGTERM)
    kill_in("ppo", command(killed, "--resume"), killed, after=8, with_signal=signal.SIGKILL)
    process = command(killed, "--resume")
    output = process.communicate(timeout=900)
    assert process.returncode == 0, output

    for stage in ("sft", "reward_model", "ppo"):
        assert timeless(lines(killed, stage)) == timeless(lines(whole, stage)), stage
        ours, theirs = (
            load_file(next((folder / "runs/killed" / stage).glob("*/checkpoint/model.safetensors")))
            for folder in (killed, whole)
        )
        assert all(torch.equal(ours[name], theirs[name]) for name in theirs), stage
        results = [
            json.loads(next((folder / "runs/killed" / stage).glob("*/results.json")).read_text())
            for folder in (killed, whole)
        ]
        assert results[0] == results[1]
    printed = next((killed / "runs/killed/ppo").glob("*/notebook.ipynb")).read_text()
    assert "resumed at episode" in printed

    again = command(killed, "--resume")
    assert "nothing to resume" in again.communicate(timeout=120)[1]
    assert again.returncode == 2
