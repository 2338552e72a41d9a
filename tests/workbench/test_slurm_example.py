"""The documented example for SLURM, by submitit's own executor for one machine."""

import os
import subprocess
import sys
from importlib import util

import pytest
import yaml
from needed import require
from small_notebooks import write_notebook

from rlhf_lab.workbench.experiments.pipeline import plan_in_words


@pytest.mark.slow
def test_a_job_for_each_seed_then_one_command_that_finds_all_done(tmp_path, repo, monkeypatch):
    require("submitit", util.find_spec("submitit") is not None, "submitit is not installed: pip install -e '.[dev]'")
    monkeypatch.delenv("RLHF_LAB_RUNS", raising=False)
    monkeypatch.chdir(tmp_path)
    cell = "from rlhf_lab.errors import LabError\nif seed == 3:\n    raise LabError('three is no seed')"
    write_notebook(tmp_path / "notebooks" / "plain.ipynb", cell, parameters="seed: int = 0")
    stages = [{"name": "a", "notebook": "plain"}]
    (tmp_path / "x.yaml").write_text(
        yaml.safe_dump({"experiment": "x", "stages": stages, "sweep": {"seeds": [1, 2, 3]}})
    )
    command = [sys.executable, str(repo / "docs/examples/slurm_sweep.py"), "x.yaml", "1", "2", "3"]
    path = {"PATH": os.defpath}  # no SLURM, whatever this machine has
    done = subprocess.run(command, env=os.environ | path, capture_output=True, text=True)
    assert done.returncode == 1 and done.stderr.startswith("seed 3: ") and "seed 1" not in done.stderr
    assert "rlhf-lab: x, stage a: plain.ipynb, cell [3]: three is no seed" in done.stderr
    words = plan_in_words("x.yaml")
    assert words.splitlines()[0] == "x: 3 points of 1 stages, 3 runs; 1 to run, 2 to skip"
