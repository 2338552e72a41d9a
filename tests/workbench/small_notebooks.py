"""Small notebooks and projects for the tests of the runner."""

from pathlib import Path

import nbformat
import yaml

PARAMETERS = '''\
lr: float = 0.5
steps: int = 2
policy: str = ""
seed: int = 0
experiment: str = "scratch"
run_dir: str = ""'''
START = """\
import json, os, time
from rlhf_lab.config import Config
from rlhf_lab.errors import LabError, RunFailed
from rlhf_lab.workbench.runs import Run

class Settings(Config):
    lr: float
    policy: str

run = Run.start("stage", Settings(lr=lr, policy=policy), run_dir=run_dir, experiment=experiment, seed=seed)"""
PICTURE = """\
import matplotlib.pyplot as plt
plt.figure(figsize=(1, 1)); plt.plot([1, 2]); plt.show()"""


def write_notebook(path: Path, *cells: str | tuple[str, str], parameters: str | None = PARAMETERS) -> Path:
    """A notebook of code cells; "# " starts a markdown cell, a pair is (source, tag)."""
    nb = nbformat.v4.new_notebook()
    if parameters is not None:
        cells = ((parameters, "parameters"), *cells)
    for cell in cells:
        source, *tags = (cell,) if isinstance(cell, str) else cell
        new = nbformat.v4.new_markdown_cell if source.startswith("# ") else nbformat.v4.new_code_cell
        nb.cells.append(new(source, metadata={"tags": tags}))
    path.parent.mkdir(parents=True, exist_ok=True)
    nbformat.write(nb, path)
    return path


def write_chain(path: Path, *stages: dict, experiment: str = "demo", description: str = "") -> Path:
    """A chain file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    content = {"experiment": experiment, "description": description, "stages": list(stages)}
    path.write_text(yaml.safe_dump(content, sort_keys=False))
    return path
