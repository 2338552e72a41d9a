"""Which run to follow: one that is there, or those of an experiment that is started here.

What is started here is `rlhf-lab run FILE` in a session of its own with its output in a file, so that neither the
kernel's end nor an interrupt of a cell reaches it. A note beside its runs lets a later kernel find it again.
"""

import json
import os
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

import psutil

from rlhf_lab.errors import LabError
from rlhf_lab.workbench.experiments.keeping import find_run
from rlhf_lab.workbench.experiments.record import shown
from rlhf_lab.workbench.records import Status, read_json, read_status, runs_root
from rlhf_lab.workbench.writing import cannot_write, make_folder, write_json

STAGE = "live"  # the live view's own runs, which nobody wants to follow
START_S = 120.0  # from the start of the command to its first run directory
NOTE = "live.json"


class Source(Protocol):
    """What is followed."""

    def path(self) -> Path:
        """The run directory to look at now. Errors: `LabError` where there is none."""
        ...

    def over(self) -> bool:
        """Whether no further run will come after that one."""
        ...


class OneRun:
    """A run that is there."""

    def __init__(self, path: Path):
        self._path = path

    def path(self) -> Path:
        """Its directory."""
        return self._path

    def over(self) -> bool:
        """There is no other."""
        return True


class Started:
    """The runs of one `rlhf-lab run`, one after the other: it is followed from stage to stage."""

    def __init__(self, folder: Path, note: Mapping[str, Any]):
        """folder: of the experiment. note: what `start` wrote."""
        self.folder, self.note = folder, note
        self._path: Path | None = None
        self._child: subprocess.Popen | None = None  # kept, or Python would warn that it still runs

    def path(self) -> Path:
        """The run that goes on now, else the newest. Errors: `LabError` where the command made none."""
        if self._path is None or _status(self._path).state != "running":
            self._path = self._newest() or self._path
        if self._path is None and self.over():
            if complaint := self._complaint():
                raise LabError(f"{self.note['file']} did not start: {complaint}")
            self._path = self._newest(since=0.0)  # all was done before, and skipped
        if self._path is None:
            raise LabError(f"{self.note['file']} has made no run; what it says is in {shown(self.log)}")
        return self._path

    def over(self) -> bool:
        """Whether the command has ended."""
        if self._child is not None:
            return self._child.poll() is not None
        return not _is_alive(self.note)

    def at_it(self) -> bool:
        """Whether it is alive and has a run to do. One that winds up after its last is waited for."""
        until = time.monotonic() + START_S
        while time.monotonic() < until and not self.over():
            if (path := self._newest()) and _status(path).state in ("queued", "running"):
                return True
            time.sleep(0.2)
        return not self.over()

    @property
    def log(self) -> Path:
        """What the command says."""
        return self.folder / self.note["log"]

    def wait(self) -> None:
        """Wait for its first run. Errors: `LabError` where it ends before it has one, or makes none in time."""
        until = time.monotonic() + START_S
        while time.monotonic() < until and not self.over() and self._newest() is None:
            time.sleep(0.2)
        self.path()

    def _newest(self, since: float | None = None) -> Path | None:
        since = self.note["began"] if since is None else since
        found = []
        for file in self.folder.glob("*/*/status.json"):
            try:
                written = file.stat().st_mtime
            except OSError:  # deleted just now
                continue
            if written >= since and file.parent.parent.name != STAGE:
                found.append((_status(file.parent).state == "running", written, file.parent))
        return max(found)[2] if found else None

    def _complaint(self) -> str:
        """The line in which the command said why it ended."""
        try:
            lines = self.log.read_text(encoding="utf-8", errors="replace").splitlines()
        except OSError:
            return ""
        begin = "rlhf-lab: "
        return next((line[len(begin) :] for line in reversed(lines) if line.startswith(begin)), "")


def choose(run: str = "auto", start_file: str = "", parameters: Mapping[str, Any] | None = None) -> Source:
    """What to follow: an experiment file is started; else a run by its path or the end of one; "auto": the newest.

    Errors: `LabError` where there is no such run or file, or the experiment does not start.
    """
    if start_file:
        return start(start_file, parameters or {})
    return OneRun(newest_run() if run == "auto" else find_run(run))


def newest_run() -> Path:
    """The newest run that is running, else the newest. Errors: `LabError` where there is none."""
    found = []
    for file in runs_root().glob("*/*/*/status.json"):
        status = _status(file.parent)
        if status.stage != STAGE and status.started:
            found.append((status.state == "running", status.started, file.parent))
    if not found:
        raise LabError(f"{shown(runs_root())} holds no run to follow; start one, or name an experiment file as `start`")
    return max(found)[2]


def start(file: str, parameters: Mapping[str, Any]) -> Started:
    """Start `rlhf-lab run FILE -p KEY=VALUE ...` and wait for its first run; if it is at it already, follow that.

    Errors: `LabError` for a wrong file or parameter before anything starts, and where it ends before it has a run.
    """
    from rlhf_lab.workbench.artefacts import HOUSE  # here, because the command line starts without them
    from rlhf_lab.workbench.experiments.validate import validate

    found = next((path for path in (Path(file), HOUSE / file, HOUSE / "experiments" / file) if path.is_file()), file)
    words = [f"{key}={json.dumps(value, ensure_ascii=False)}" for key, value in parameters.items()]
    folder = make_folder(runs_root() / validate(found, words).experiment)
    old = read_json(folder / NOTE)
    started = Started(folder, old)
    if started.at_it():
        print(f"{old['file']} is running already (process {old['pid']}): following it")
    else:
        started = _launch(folder, Path(found), words)
    started.wait()
    return started


def _launch(folder: Path, file: Path, words: list[str]) -> Started:
    began = time.time()
    log = folder / f"live-{time.strftime('%Y%m%d-%H%M%S', time.gmtime(began))}.log"
    options = [part for word in words for part in ("-p", word)]
    command = [sys.executable, "-m", "rlhf_lab", "run", str(file.absolute()), *options]
    try:
        with log.open("ab") as output:
            child = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                env=_environment(),
                start_new_session=True,
            )
    except OSError as error:
        raise cannot_write(log, error) from None
    note = {"file": str(file), "pid": child.pid, "began": began, "log": log.name}
    note["process_start"] = psutil.Process(child.pid).create_time()
    write_json(folder / NOTE, note)
    print(f"started {shown(file)} (process {child.pid}); its output goes to {shown(log)}")
    started = Started(folder, note)
    started._child = child
    return started


def _environment() -> dict[str, str]:
    """This process's, without what is about its own kernel."""
    own = ("JPY_", "MPLBACKEND", "RLHF_LAB_HEADLESS")
    return {name: value for name, value in os.environ.items() if not name.startswith(own)}


def _is_alive(note: Mapping[str, Any]) -> bool:
    try:
        process = psutil.Process(note["pid"])
        same = abs(process.create_time() - note["process_start"]) < 2.0
        return same and process.status() != psutil.STATUS_ZOMBIE
    except (psutil.Error, KeyError, TypeError, ValueError):
        return False


def _status(path: Path) -> Status:
    try:
        return read_status(path)
    except LabError as error:
        return Status(state="died", reason=str(error))
