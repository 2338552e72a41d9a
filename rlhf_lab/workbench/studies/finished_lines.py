"""What a study has finished, a line each, in a .jsonl file: what is there is read and not run again."""

import hashlib
import json
import os
import platform
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rlhf_lab.workbench.records import read_jsonl
from rlhf_lab.workbench.run_directory import git_state
from rlhf_lab.workbench.runs import Run
from rlhf_lab.workbench.writing import append_line, make_folder, user_path


class FinishedLines:
    """A file that only grows; a line's key names the unit, the seed, the settings and the models.

    Lines of another key are left where they are. file: "" = one of the run's own, so that a cell that was interrupted
    goes on where it stopped. What is found is to be logged again, whole, so the run forgets what it has logged.
    """

    def __init__(self, file: str, run: Run):
        self.file = user_path(file) if file else run.file("finished.jsonl")
        run.rewind(-1)

    def find(self, name: str, key: Mapping[str, Any]) -> dict[str, Any] | None:
        """The last line of this key, which is told, or None. Errors: `LabError` naming a broken line."""
        line = self.last(key)
        if line is not None:
            print(f"{name}: finished before, read from {self.file}")
        return line

    def last(self, key: Mapping[str, Any]) -> dict[str, Any] | None:
        """The last line of this key, or None. Errors: `LabError` naming a broken line."""
        lines = reversed(read_jsonl(self.file))
        return next((line for line in lines if all(line.get(part) == value for part, value in key.items())), None)

    def add(self, key: Mapping[str, Any], contents: Mapping[str, Any]) -> None:
        """Append a line: the key, the commit, command and hardware that made it, and its contents."""
        git = git_state() or {}
        made = {
            "commit": git.get("commit", "") + "-dirty" * bool(git.get("dirty")),
            "command": os.environ.get("RLHF_LAB_COMMAND", "in a notebook"),
            "hardware": f"{platform.machine()}, {os.cpu_count()} cores",
        }
        make_folder(self.file.parent)
        append_line(self.file, {**key, **made, **contents})


def fingerprint(name: str) -> str:
    """A short hash of a model directory's weights or of a file's text; of the name itself where it is neither."""
    path = Path(name.rpartition(":")[0] or name)
    files = sorted(path.glob("*.safetensors")) if path.is_dir() else [path] if path.is_file() else []
    return _short(b"".join(file.read_bytes() for file in files) or name.encode())


def short_hash(values: Mapping[str, Any]) -> str:
    """A short hash of settings, whatever their order."""
    return _short(json.dumps(values, sort_keys=True).encode())


def _short(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:10]
