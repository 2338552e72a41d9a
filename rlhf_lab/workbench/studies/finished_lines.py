"""What a study has finished, a line each, in a .jsonl file: what is there is read and not run again."""

import hashlib
import json
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from rlhf_lab.workbench.artefacts import experiment_file
from rlhf_lab.workbench.experiments.files import read_yaml
from rlhf_lab.workbench.records import read_jsonl
from rlhf_lab.workbench.run_directory import git_state, hardware
from rlhf_lab.workbench.runs import Run
from rlhf_lab.workbench.studies.code_of import code_of
from rlhf_lab.workbench.writing import append_line, make_folder, user_path

NEEDED = ("unit", "seed", "common", "own", "figures")
"""What every line of a study's units has."""


class FinishedLines:
    """A file that only grows; a line's key names the unit, the seed, the settings and the models.

    Lines of another key are left where they are, and so are lines of other code: a digest says which code made a line.
    One without a digest is older than these, and counts as of any code. study: whose code is meant, see `code_of`.
    file: "" = one of the run's own, so that a cell that was interrupted goes on where it stopped. What is found is to
    be logged again, whole, so the run forgets what it has logged.
    """

    def __init__(self, file: str, run: Run, study: str = ""):
        self.file = user_path(file) if file else run.file("finished.jsonl")
        self.code = self.taken = code_of(study)
        self._told_apart = False
        run.rewind(-1)

    def settle(self, keys: Sequence[Mapping[str, Any]]) -> None:
        """Take the lines of other code, if the file's last line is of one that has finished all of these.

        Nothing is mixed then. Where later lines are of newer code, a table is of these, and here they are wanted too.
        """
        lines = self._read()
        newest = lines[-1].get("code", self.code) if lines else self.code
        whole = (code for code in (self.code, newest) if all(self._last(lines, key, code) for key in keys))
        self.taken = next(whole, self.code) if keys else self.code
        if self.taken != self.code:
            commit = self._last(lines, keys[-1], self.taken).get("commit", "unknown")
            print(f"{self.file}: all is finished, by other code (commit {commit:.7}); for this code name another file")

    def find(self, name: str, key: Mapping[str, Any]) -> dict[str, Any] | None:
        """The last line of this key, which is told, or None. Errors: `LabError` naming a broken line.

        That lines of other code are left apart is told once, for the first.
        """
        line = self.last(key)
        if line is not None:
            print(f"{name}: finished before")
        elif not self._told_apart and (other := self._last(self._read(), key, None)):
            self._told_apart = True
            commit = other.get("commit", "unknown")
            print(
                f"{name}: finished before by other code (commit {commit:.7}); its lines are left apart in {self.file}"
            )
        return line

    def last(self, key: Mapping[str, Any]) -> dict[str, Any] | None:
        """The last line of this key, or None. Errors: `LabError` naming a broken line."""
        return self._last(self._read(), key, self.taken)

    def _read(self) -> list[dict[str, Any]]:
        return read_jsonl(self.file)

    @staticmethod
    def _last(lines: list[dict[str, Any]], key: Mapping[str, Any], code: str | None) -> dict[str, Any] | None:
        """The last line of this key and code. code: None = of any."""
        for line in reversed(lines):
            same_code = code is None or line.get("code", code) == code
            if same_code and all(line.get(part) == value for part, value in key.items()):
                return line
        return None

    def add(self, key: Mapping[str, Any], contents: Mapping[str, Any]) -> None:
        """Append a line: the key, the commit, command and hardware that made it, and its contents."""
        git = git_state() or {}
        made = {
            "commit": git.get("commit", "") + "-dirty" * bool(git.get("dirty")),
            "command": os.environ.get("RLHF_LAB_COMMAND", "in a notebook"),
            "hardware": hardware(),
        }
        make_folder(self.file.parent)
        append_line(self.file, {**key, "code": self.code, **made, **contents})


def fingerprint(name: str) -> str:
    """A short hash of a model directory's weights or of a file's text; of the name itself where it is neither."""
    path = Path(name.rpartition(":")[0] or name)
    files = sorted(path.glob("*.safetensors")) if path.is_dir() else [path] if path.is_file() else []
    return _short(b"".join(file.read_bytes() for file in files) or name.encode())


def origin(value: str, path: Callable[[], str]) -> str:
    """What a model that a parameter names is known by: the settings of the experiment file that makes it, else weights.

    Another machine's weights of the same settings differ in their last digits, and are the same model's. Of the code
    that makes them `code_of` knows. path: gives its directory.
    """
    file = experiment_file(value) if value.endswith(".yaml") else None
    return short_hash(read_yaml(file)) if file else fingerprint(path())


def short_hash(values: Mapping[str, Any]) -> str:
    """A short hash of settings, whatever their order."""
    return _short(json.dumps(values, sort_keys=True).encode())


def _short(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:10]
