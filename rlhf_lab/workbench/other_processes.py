"""Where the other processes of a run write, so that it has one writer: into a folder of their own, deleted at its end.

A notebook's code runs in every process alike. What it saves and reads back is there in each; what it saves for later
is written by the main process alone.
"""

import os
import shutil
import tempfile
from pathlib import Path

from rlhf_lab.workbench.records import Status
from rlhf_lab.workbench.writing import user_path

PREFIX = "rlhf-lab-process-"


def stand_in(run_dir: str | Path, status: Status, seed: int, *, resume: bool) -> Path:
    """A folder in place of a run's directory. resume: `run_dir` is gone on with, and its checkpoints are read."""
    path = Path(tempfile.mkdtemp(prefix=PREFIX))
    if resume:
        resumed = user_path(run_dir)
        for name in ("metrics.jsonl", "samples.jsonl"):
            if (resumed / name).is_file():
                shutil.copyfile(resumed / name, path / name)
        (path / "training").mkdir()
        for found in (resumed / "training").glob("*"):
            os.symlink(found.absolute(), path / "training" / found.name)
    return path


def put_away(path: Path) -> None:
    """Delete such a folder; what its links point at stays."""
    if path.name.startswith(PREFIX):
        shutil.rmtree(path, ignore_errors=True)
