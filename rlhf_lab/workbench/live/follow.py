"""Follow a run by its files, wherever it was started: what was appended is read, the rest is not read again.

Nothing here writes, and nothing a run leaves makes it fail: what cannot be read is told in `Seen.problem`.
"""

import json
import time
from collections import deque
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from rlhf_lab.errors import LabError
from rlhf_lab.workbench.experiments.record import shown
from rlhf_lab.workbench.records import Status, read_json, read_status

TAIL = 64  # bytes before the place read last, which must still be there
QUEUED_S = 120.0  # a run is queued a moment before its kernel is started
SAMPLES = 200  # newest sample replies that are kept
ENDED = ("done", "failed", "stopped", "died")


class JsonlTail:
    """The rows of a .jsonl file that grows."""

    def __init__(self, path: Path, *, keep: int | None = None):
        """keep: only so many of the newest rows."""
        self.path = path
        self.rows: deque[dict[str, Any]] = deque(maxlen=keep)
        self.broken: list[int] = []  # numbers of lines that are no JSON object
        self._forget()

    def read(self) -> bool:
        """Take up what is new; True if the rows have changed.

        A torn last line waits until it is whole. A file that is not the one read last (a resumed run has rewound it) is
        read anew, and one that is not there has no rows.
        """
        try:
            with self.path.open("rb") as file:
                anew = self._is_another(file)
                if anew:
                    self._forget()
                file.seek(self._offset)
                data = file.read()
        except FileNotFoundError:
            had = bool(self.rows)
            self._forget()
            return had
        except OSError:  # a network disk that does not answer now may do so later
            return False
        whole = data[: data.rfind(b"\n") + 1]
        self._take(whole.split(b"\n")[:-1])
        self._offset += len(whole)
        self._tail = (self._tail + whole)[-TAIL:]
        return anew or bool(whole)

    def _forget(self) -> None:
        self.rows.clear()
        self.broken.clear()
        self._offset, self._lines, self._tail = 0, 0, b""

    def _is_another(self, file: Any) -> bool:
        """A rewound file is shorter, or differs before the place read last: its rows carry the time of day."""
        file.seek(self._offset - len(self._tail))
        return file.read(len(self._tail)) != self._tail

    def _take(self, lines: Iterable[bytes]) -> None:
        for line in lines:
            self._lines += 1
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except (ValueError, RecursionError):
                row = None
            if isinstance(row, dict):
                self.rows.append(row)
            else:
                self.broken.append(self._lines)


class Seen(NamedTuple):
    """What is known of a run now."""

    path: Path
    status: Status | None  # None where there is none to read, see `problem`
    progress: dict[str, Any]
    settings: dict[str, Any]  # of config.yaml
    rows: list[dict[str, Any]]  # of metrics.jsonl
    samples: list[dict[str, Any]]  # the newest of samples.jsonl
    problem: str = ""  # one line: what could not be read
    version: int = 0  # grows when rows or samples have changed

    @property
    def state(self) -> str:
        """As in status.json; "gone" where that cannot be read."""
        return self.status.state if self.status else "gone"

    @property
    def ended(self) -> bool:
        """Nothing more will come."""
        return self.state in (*ENDED, "gone")


class Follower:
    """Reads one run again and again."""

    def __init__(self, path: Path):
        self.path = path
        self._metrics = JsonlTail(path / "metrics.jsonl")
        self._samples = JsonlTail(path / "samples.jsonl", keep=SAMPLES)
        self._version = 0
        self._settings: dict[str, Any] = {}

    def look(self) -> Seen:
        """What is new since the last look, with what was known. A directory that is gone keeps what was seen of it."""
        problem = ""
        try:
            status = _status(self.path)  # before the rows: a run that has ended has written them all
        except (LabError, OSError) as error:
            status, problem = None, str(error)
        if not self.path.is_dir():
            problem = f"{shown(self.path)} is gone: it was deleted or moved; what was seen of it stands here"
        else:
            self._version += self._metrics.read() | self._samples.read()
            self._settings = self._settings or _settings(self.path)
        for tail in (self._metrics, self._samples):
            if tail.broken and not problem:
                line = tail.broken[0]
                problem = f"{shown(tail.path)}, line {line} is broken: it is not a JSON object, and is left out"
        progress = read_json(self.path / "progress.json")
        rows, samples = list(self._metrics.rows), list(self._samples.rows)
        return Seen(self.path, status, progress, self._settings, rows, samples, problem, self._version)


def _status(path: Path) -> Status:
    """Its status; one that was queued and is not started in time has lost the command that would have done it."""
    status = read_status(path)
    if status.state == "queued" and time.time() - (path / "status.json").stat().st_mtime > QUEUED_S:
        return status.model_copy(update={"state": "died", "reason": "it was queued, and never began"})
    return status


def _settings(path: Path) -> dict[str, Any]:
    """The run's settings; empty until config.yaml is there, which is a moment after status.json."""
    try:
        settings = yaml.safe_load((path / "config.yaml").read_text(encoding="utf-8"))["config"]
    except (OSError, ValueError, yaml.YAMLError, TypeError, KeyError):
        return {}
    return settings if isinstance(settings, dict) else {}
