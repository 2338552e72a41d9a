"""Look at runs, stop them, and remove them: read off their directories, whoever started them."""

import contextlib
import os
import shutil
import signal
import socket
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

from rlhf_lab.errors import LabError
from rlhf_lab.workbench.experiments.locks import Held, held
from rlhf_lab.workbench.experiments.record import shown
from rlhf_lab.workbench.progress_line import read_progress
from rlhf_lab.workbench.records import BUSY, STOP, Status, read_status, runner_silence, runs_root
from rlhf_lab.workbench.report.figures import aligned, duration
from rlhf_lab.workbench.writing import cannot_write

STOP_S = 60.0  # seconds a run may take to save a checkpoint and end
LATELY = 30  # runs in the table unless all are asked for


def status_table(experiment: str = "", *, everything: bool = False) -> str:
    """The runs under the runs root, the newest first: state, progress, time, memory, age, host and reason."""
    found = []
    for file in runs_root().glob(f"{experiment or '*'}/*/*/status.json"):
        try:
            found.append((file.parent, read_status(file.parent)))
        except LabError as error:
            found.append((file.parent, Status(state="died", reason=str(error))))
    if not found:
        raise LabError(f"{shown(runs_root())} holds no run{f' of {experiment}' if experiment else ''}")
    found.sort(key=lambda run: (run[1].state == "running", run[1].started), reverse=True)
    rows = [_row(path, status) for path, status in (found if everything else found[:LATELY])]
    lines = aligned([("run", "state", "progress", "time", "memory", "age", "host", ""), *rows])
    if len(rows) < len(found):
        lines.append(f"... and {len(found) - len(rows)} older: --all shows them")
    return "\n".join(lines)


def _row(path: Path, status: Status) -> tuple[str, ...]:
    progress = read_progress(path) if status.state not in ("queued", "done") else ""
    if status.state != "running":
        progress = progress.split("   ")[0]  # the time that was left no longer counts
    memory = f"{status.peak_memory_mb:,.0f} MB" if status.peak_memory_mb else ""
    reason = status.reason if len(status.reason) <= 60 else status.reason[:59] + "~"
    spent = duration(status.seconds) if status.seconds else ""
    run = str(path.relative_to(runs_root()))
    return run, status.state, progress, spent, memory, _age(status), status.host, reason


def _age(status: Status) -> str:
    """Since it ended, or was last heard from."""
    try:
        last = datetime.fromisoformat(status.ended or status.heartbeat or status.started).astimezone(UTC)
    except ValueError:
        return ""
    seconds = (datetime.now(UTC) - last).total_seconds()
    units = ((86400.0, "d"), (3600.0, "h"), (60.0, "min"), (1.0, "s"))
    size, unit = next((item for item in units if seconds >= item[0]), (1.0, "s"))
    return f"{max(0.0, seconds) / size:.0f} {unit}"


def find_run(name: str) -> Path:
    """The directory of a run, given by path, by path below the runs root, or by the end of one.

    Errors: `LabError` where there is none, or several end so.
    """
    for path in (Path(name), runs_root() / name):
        if (path / "status.json").is_file():
            return path.absolute()
    parts = Path(name).parts
    ends = [f.parent for f in runs_root().glob("*/*/*/status.json") if f.parent.parts[-len(parts) :] == parts]
    if len(ends) == 1:
        return ends[0]
    if ends:
        raise LabError(f"{name}: {len(ends)} runs end so, such as {shown(ends[0])}; give the path of one")
    raise LabError(f"{name}: no such run; `rlhf-lab status` lists them")


def stop_run(name: str, *, patience_s: float = STOP_S) -> Status:
    """Interrupt a run as Ctrl-C would, so that it saves a checkpoint, and wait until it has ended.

    On this host its process is told; on another its runner is asked, by a file in its directory.
    Errors: `LabError` where it is not running, cannot be told, or does not end in time.
    """
    path = find_run(name)
    status = read_status(path)
    if status.state != "running":
        begun = "has not begun; stop the command that will start it" if status.state == "queued" else ""
        how = "has" if status.state in ("failed", "died") else "is"
        raise LabError(f"{shown(path)} {begun or f'{how} {status.state}; there is nothing to stop'}")
    if status.host != socket.gethostname():
        return _stop_elsewhere(path, status, 2 * patience_s)
    until = time.monotonic() + patience_s
    asked, number = 0.0, signal.SIGINT
    while (now := read_status(path)).state == "running" and time.monotonic() < until:
        if time.monotonic() - asked > 5.0:  # again: one that arrives between two cells is lost
            number = signal.SIGINT if time.monotonic() < until - patience_s / 2 else signal.SIGTERM
            _send(path, now, number)
            asked = time.monotonic()
        time.sleep(0.05)
    if now.state == "running":
        raise LabError(f"{shown(path)} did not end in {patience_s:.0f} s; `kill -9 {now.pid}` ends it, unsaved")
    return now


def _stop_elsewhere(path: Path, status: Status, patience_s: float) -> Status:
    where = f"{shown(path)} runs on {status.host}"
    if runner_silence(path, status) is None:
        raise LabError(f"{where}, and no `rlhf-lab run` looks after it; stop it there")
    until = time.monotonic() + patience_s  # a shared file system may show a file late
    try:
        (path / STOP).touch()
    except OSError as error:
        raise cannot_write(path / STOP, error) from None
    while (now := read_status(path)).state == "running":
        if time.monotonic() > until:
            (path / STOP).unlink(missing_ok=True)
            raise LabError(f"{where} and did not end in {patience_s:.0f} s; stop the command that runs it")
        time.sleep(0.05)
    return now


def _send(path: Path, status: Status, number: int) -> None:
    try:
        os.kill(status.pid, number)
    except ProcessLookupError:
        return
    except PermissionError:
        raise LabError(f"{shown(path)} is another user's (process {status.pid}); they must stop it") from None


def remove_runs(paths: Sequence[Path]) -> None:
    """Delete runs. Errors: `LabError`, before anything is deleted, where one is alive or a living run takes from it."""
    with contextlib.ExitStack() as stack:
        for path in paths:
            if (status := read_status(path)).state == "running":
                todo = f"stop it first: rlhf-lab stop {shown(path)}"
                raise LabError(f"{shown(path)} is alive (process {status.pid}); {todo}")
            try:
                stack.enter_context(held(path / BUSY))
            except Held:
                why = "is being started, or taken from by a run that is alive"
                raise LabError(f"{shown(path)} {why}; wait, or stop that") from None
        for path in paths:
            try:
                shutil.rmtree(path)
            except OSError as error:
                raise cannot_write(path, error) from None


def size_of(path: Path) -> int:
    """Bytes on disk."""
    return sum(file.stat().st_size for file in path.rglob("*") if file.is_file())
