"""Every notebook, headless, by the real runner, at the smallest size that runs all of its code."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def smoke(tmp_path_factory) -> Path:
    """The whole chain from a directory of its own -> its folder of runs."""
    return chain("smoke", tmp_path_factory.mktemp("anywhere"))


def chain(name: str, folder: Path) -> Path:
    """Run an experiment file in a folder -> its runs."""
    command = [sys.executable, "-m", "rlhf_lab", "run", str(ROOT / f"experiments/{name}.yaml"), "-p", "threads=1"]
    environment = {**os.environ, "RLHF_LAB_RUNS": str(folder / "runs"), "WANDB_MODE": "disabled"}
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stderr[-2000:]
    (folder / "output.txt").write_text(done.stdout)
    return folder / "runs" / name


@pytest.mark.slow
def test_every_study_is_done_and_reported(tmp_path):
    studies = [
        "overoptimisation",
        "kl_coefficient",
        "length_bias",
        "ppo_details",
        "feedback_loops",
        "reward_models",
        "ensembles",
    ]
    all_done(chain("smoke_studies", tmp_path), ["pretrain", "sft", *studies])


def all_done(folder: Path, stages: list[str]) -> dict:
    """The results of a chain in which each of these stages has left what a run leaves."""
    results = json.loads((folder / "results.json").read_text())
    assert list(results["results"]) == stages
    for stage, numbers in results["results"].items():
        run = Path(results["runs"][stage])
        assert json.loads((run / "status.json").read_text())["state"] == "done"
        assert json.loads((run / "results.json").read_text()) == numbers
        assert all(isinstance(value, int | float) for value in numbers.values())
        for name in ("config.yaml", "notebook.ipynb", "report.html"):
            assert (run / name).stat().st_size > 0
    return results


def test_every_stage_is_done_and_reported(smoke):
    results = all_done(
        smoke,
        [
            "pretrain",
            "sft",
            "reward_model",
            "ppo",
            "judge_bias",
            "algorithms",
            "synthetic_feedback",
            "human_feedback",
            "compare",
            "live",
        ],
    )
    for stage in ("pretrain", "sft", "reward_model", "ppo"):
        assert list((Path(results["runs"][stage]) / "checkpoint").glob("*.safetensors"))


def test_the_terminal_shows_progress_the_table_and_the_report(smoke):
    output = (smoke.parents[1] / "output.txt").read_text()
    assert re.search(r"\[4/\d+\] ppo", output) and "Results of smoke" in output and "report/index.html" in output
    page = (smoke / "report" / "index.html").read_text()
    assert "<img" in page and "win rate" in page


def test_plain_transformers_loads_what_a_run_leaves(smoke):
    import transformers

    runs = json.loads((smoke / "results.json").read_text())["runs"]
    policy = transformers.AutoModelForCausalLM.from_pretrained(Path(runs["ppo"]) / "checkpoint")
    reward = transformers.AutoModelForSequenceClassification.from_pretrained(Path(runs["reward_model"]) / "checkpoint")
    assert policy.config.vocab_size == reward.config.vocab_size and reward.config.num_labels == 1


def test_bare_papermill_is_a_full_run(smoke, tmp_path):
    """From another directory, with -f and -p and `lr: 1e-5`, which YAML reads as text."""
    runs = json.loads((smoke / "results.json").read_text())["runs"]
    file = tmp_path / "tiny.yaml"
    file.write_text(
        f"policy: {runs['sft']}\nreward: {runs['reward_model']}\nupdates: 1\nbatch_size: 4\neval_prompts: 4\nlr: 1e-5\n"
    )
    out = tmp_path / "out.ipynb"
    command = [sys.executable, "-m", "papermill", str(ROOT / "notebooks/03_ppo.ipynb"), str(out), "-f", str(file)]
    command += ["-p", "minibatches", "1", "-p", "run_dir", "here"]
    environment = {**os.environ, "WANDB_MODE": "disabled"}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr[-2000:]
    assert json.loads((tmp_path / "here" / "status.json").read_text())["state"] == "done"
    import yaml

    config = yaml.safe_load((tmp_path / "here" / "config.yaml").read_text())["config"]
    assert config["lr"] == 1e-5 and config["minibatches"] == 1


def test_bare_papermill_stops_at_a_misspelt_parameter(tmp_path):
    out = tmp_path / "out.ipynb"
    command = [sys.executable, "-m", "papermill", str(ROOT / "notebooks/03_ppo.ipynb"), str(out), "-p", "upates", "3"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=600)
    assert done.returncode != 0
    assert "unknown parameter 'upates' (did you mean 'updates'?)" in out.read_text()
    assert not (tmp_path / "runs").exists()
