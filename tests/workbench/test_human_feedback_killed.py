"""08_human_feedback: killed while labels are given, and resumed, it ends as one that was left alone."""

import json
import os
import signal
import sqlite3
import subprocess
import sys
import time

import pytest

from rlhf_lab.sandbox.world import World

SCRIPT = """
import json, sys, time
from rlhf_lab.sandbox.labelers import Labeler
from rlhf_lab.workbench import stages
from rlhf_lab.workbench.studies import human_feedback, human_feedback_loop, human_feedback_results

settings, pause = json.loads(sys.argv[1]), float(sys.argv[2])
prefers = Labeler.prefers
Labeler.prefers = lambda *asked: time.sleep(pause) or prefers(*asked)
cfg = stages.HumanFeedbackStage.parse(settings)
run = stages.begin("human_feedback", cfg)
ground = human_feedback.common_ground(cfg, run)
for loop in human_feedback_loop.loops(ground, run).arms.values():
    while not loop.over:
        loop.label()
        loop.learn()
run.finish(human_feedback_results.results(loop.finished.units))
"""


def start(folder, pause=0.0, **changes) -> subprocess.Popen:
    settings = {
        **{"policy": World.load().base_model, "run_dir": str(folder), "threads": 1, "arms": ["online_disagreement"]},
        **{"rounds": 2, "labels": 24, "pool": 40, "members": 2, "eval_prompts": 4, "max_new_tokens": 8},
        **{"reward_model": {"epochs": 1}, "ppo": {"updates": 1, "batch_size": 8}, **changes},
    }
    environment = {**os.environ, "WANDB_MODE": "disabled", "RLHF_LAB_HEADLESS": "1"}
    command = [sys.executable, "-c", SCRIPT, json.dumps(settings), str(pause)]
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def answers(folder, number: int) -> list[tuple]:
    """The answers of a round as they stand in its file: sequence number, item, and what was said."""
    file = folder / "labels" / "online_disagreement" / f"round-{number}.sqlite"
    if not file.exists():
        return []
    with sqlite3.connect(file) as opened:
        try:
            rows = opened.execute("SELECT seq, event FROM events ORDER BY seq").fetchall()
        except sqlite3.OperationalError:  # it is being made
            return []
    events = [(seq, json.loads(text)) for seq, text in rows]
    return [(seq, event["item"], event["body"]["answer"]) for seq, event in events if event["action"] == "choose"]


def kill_in(folder, process: subprocess.Popen, number: int, after: int) -> list[tuple]:
    """Kill -9 once a round has so many labels -> those that it has then."""
    deadline = time.monotonic() + 240
    while len(answers(folder, number)) < after:
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.02)
    os.kill(process.pid, signal.SIGKILL)
    process.communicate()
    found = answers(folder, number)
    assert after <= len(found) < 24, "the round was over before it could be killed"
    return found


def results(folder) -> dict[str, float]:
    found = json.loads((folder / "results.json").read_text())
    return {name: value for name, value in found.items() if not name.startswith("seconds")}


@pytest.mark.slow
def test_killed_while_labelling_in_each_round_it_loses_and_repeats_nothing(tmp_path):
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    told = start(whole).communicate(timeout=300)
    assert (whole / "results.json").exists(), told

    first = kill_in(killed, start(killed, pause=0.2), 1, after=5)
    second = kill_in(killed, start(killed, pause=0.2, resume=True), 2, after=7)
    process = start(killed, resume=True)
    told = process.communicate(timeout=300)
    assert process.returncode == 0, told
    assert "online_disagreement/1: finished before" in told[0]

    for number, before in ((1, first), (2, second)):
        after = answers(killed, number)
        assert after[: len(before)] == before, "a label was lost"
        assert len(after) == len({item for _, item, _ in after}) == 24, "a pair was asked about twice"
        assert sorted(row[1:] for row in after) == sorted(row[1:] for row in answers(whole, number))
    assert results(killed) == results(whole)
