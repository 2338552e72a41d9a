"""What a run leaves on disk and how it is read back: status, metrics, samples.

How files are written is in writing.py. A killed process can tear at most the last line of a .jsonl file, and readers
leave that one out.
"""

import contextlib
import json
import os
import socket
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import psutil
from pydantic import BaseModel, ConfigDict, ValidationError

from rlhf_lab.errors import LabError
from rlhf_lab.workbench.writing import cannot_write, make_folder, user_path, write_json

if TYPE_CHECKING:
    import pandas as pd
import yaml

State = Literal["queued", "running", "done", "failed", "stopped", "died"]
SILENCE_S = 1800.0  # a process on another host counts as dead after so long without a heartbeat
RUNNER_SILENCE_S = 60.0  # or its runner without a sign of life, where it has one
BUSY = ".busy"  # in a run's directory: held and touched by the runner while it is at it
STOP = ".stop"  # put there, it asks the runner to stop the run
CLOCK_SLACK_S = 2.0  # the start time of one process, read twice, may differ by this much


class Status(BaseModel):
    """The content of status.json. Times are ISO 8601 in UTC.

    `process_start` is in seconds since 1970, `process_since_boot` in seconds from the start of the machine to that of
    the process: a clock that is set anew moves the first only.
    """

    model_config = ConfigDict(frozen=True, extra="ignore")

    state: State
    reason: str = ""
    stage: str = ""
    experiment: str = ""
    host: str = ""
    pid: int = 0
    process_start: float = 0.0
    process_since_boot: float | None = None
    started: str = ""
    heartbeat: str = ""
    ended: str = ""
    url: str = ""  # of the run on wandb's server, when online
    seconds: float = 0.0  # that it ran, all parts of a resumed run together, until the last sign of life
    peak_memory_mb: float | None = None  # the most that its process held at once
    peak_gpu_memory_mb: float | None = None  # the most that its tensors took on the GPU


def now() -> str:
    """The time in UTC, to the millisecond."""
    return datetime.now(UTC).isoformat(timespec="milliseconds")


def runs_root() -> Path:
    """Where runs live: the environment variable RLHF_LAB_RUNS, else ./runs of the directory one is in."""
    return user_path(os.environ.get("RLHF_LAB_RUNS") or "runs")


def since_boot(process: psutil.Process) -> float:
    """Seconds from the start of the machine to that of the process."""
    boot = psutil.boot_time()  # a clock that is set anew moves it, and the start of every process along with it
    return process.create_time() - boot


# --- writing


def mark_queued(path: Path, *, stage: str = "", experiment: str = "") -> None:
    """Reserve a directory for a run that will start later. Refuses one that holds a run."""
    make_folder(path)
    status = Status(state="queued", stage=stage, experiment=experiment, host=socket.gethostname())
    try:
        with (path / "status.json").open("x", encoding="utf-8") as file:
            file.write(json.dumps(status.model_dump(), indent=2) + "\n")
    except FileExistsError:
        raise LabError(f"run_dir {path} holds a run already; give an empty or new directory") from None
    except OSError as error:
        with contextlib.suppress(OSError):
            (path / "status.json").unlink(missing_ok=True)  # half of it
        raise cannot_write(path / "status.json", error) from None


def mark_ended(path: Path, state: Literal["failed", "stopped"], reason: str) -> Status:
    """Tell how a run ended whose own process could not.

    A run that told its own end keeps it. Returns what now stands.
    """
    status = read_status(path)
    if status.state in ("queued", "running", "died"):
        status = status.model_copy(update={"state": state, "reason": one_line(reason), "ended": now()})
        write_json(path / "status.json", status.model_dump())
    return status


def one_line(text: str, limit: int = 400) -> str:
    """Text as one line of at most `limit` characters."""
    line = " ".join(text.split())
    return line if len(line) <= limit else line[: limit - 1] + "…"


# --- reading


def read_status(path: str | Path) -> Status:
    """How a run stands. A "running" whose process is gone, or is another process by now, reads "died".

    path: the run's directory. Errors: `LabError` when there is no readable status.json.
    """
    file = Path(path) / "status.json"
    for attempt in range(3):
        try:
            status = Status(**json.loads(file.read_text(encoding="utf-8")))
            break
        except (FileNotFoundError, NotADirectoryError):
            raise LabError(f"{path} holds no run: it has no status.json") from None
        except OSError as error:
            raise LabError(f"{file} cannot be read ({(error.strerror or str(error)).lower()})") from None
        except (ValueError, ValidationError, TypeError, RecursionError):
            if attempt == 2:
                what = "it is not the JSON of a run's status"
                raise LabError(f"{file} is broken: {what}; mend it, or delete the run") from None
            time.sleep(0.05)  # "queued" is written in place, so a reader may come a moment early
    if status.state == "running" and not _is_alive(status, Path(path)):
        seen = f"last heard from at {status.heartbeat}" if status.heartbeat else "never heard from"
        reason = f"process {status.pid} on {status.host} is gone; {seen}"
        return status.model_copy(update={"state": "died", "reason": reason})
    return status


def runner_silence(path: Path, status: Status) -> float | None:
    """Seconds since the runner of a run gave a sign of life; None where no runner has begun this part of it."""
    try:
        touched = (path / BUSY).stat().st_mtime
        began = datetime.fromisoformat(status.started).timestamp()
    except (OSError, ValueError, OverflowError):
        return None
    return time.time() - touched if touched > began else None


def _is_alive(status: Status, path: Path) -> bool:
    if status.host != socket.gethostname():
        if (silence := runner_silence(path, status)) is not None:
            return silence < RUNNER_SILENCE_S
        try:
            last = datetime.fromisoformat(status.heartbeat or status.started).astimezone(UTC)
        except (ValueError, OverflowError):
            return False
        return (datetime.now(UTC) - last).total_seconds() < SILENCE_S
    try:
        process = psutil.Process(status.pid)
        return _is_same(process, status) and process.status() != psutil.STATUS_ZOMBIE
    except (psutil.NoSuchProcess, ValueError, OverflowError):  # also a number that no process has
        return False
    except psutil.AccessDenied:
        return True


def _is_same(process: psutil.Process, status: Status) -> bool:
    """Whether this process wrote the status. A clock set anew in between does not count."""
    if status.process_since_boot is not None:
        return abs(since_boot(process) - status.process_since_boot) <= CLOCK_SLACK_S
    return abs(process.create_time() - status.process_start) <= CLOCK_SLACK_S


def read_json(path: Path) -> dict[str, Any]:
    """The object in a .json file that is written whole; empty when there is none, or it is not one."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return value if isinstance(value, dict) else {}


def read_jsonl(path: Path, needs: Sequence[str] = ()) -> list[dict[str, Any]]:
    """The rows of a .jsonl file; none when it does not exist. A torn last line is left out.

    Errors: `LabError` naming the line when any other line is broken, or has not all that every line `needs`.
    """
    if not path.exists():
        return []
    try:
        lines = path.read_bytes().split(b"\n")
    except OSError as error:
        raise LabError(f"{path} cannot be read ({(error.strerror or str(error)).lower()})") from None
    rows = []
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
            if not isinstance(row, dict):
                raise ValueError
        except (ValueError, RecursionError):  # also the UnicodeDecodeError of a character torn in two
            if number == len(lines):  # nothing ended this line: the writer was killed in the middle of it
                break
            raise LabError(f"{path}, line {number} is broken: it is not a JSON object; mend or delete it") from None
        if missing := [name for name in needs if name not in row]:
            raise LabError(f"{path}, line {number} is broken: it has no '{missing[0]}'; mend or delete it")
        rows.append(row)
    return rows


def _rows(path: str | Path, name: str) -> list[dict[str, Any]]:
    if not Path(path).is_dir():
        raise LabError(f"{path} holds no run: there is no such directory")
    return read_jsonl(Path(path) / name)


def read_metrics(path: str | Path) -> "pd.DataFrame":
    """A run's metrics, one row for each `Run.log`, in order; empty before the first.

    NaN where nothing was logged.

    path: the run's directory. Errors: `LabError` for no such directory, or naming a broken line.
    """
    return metrics_frame(_rows(path, "metrics.jsonl"))


def metrics_frame(rows: list[dict[str, Any]]) -> "pd.DataFrame":
    """Rows of metrics.jsonl as a table, with the NaN and infinities that JSON cannot hold put back."""
    import pandas as pd  # here, because the command line starts without it

    mended = []
    for row in rows:
        odd = {name: float(text) for name, text in row.get("not_finite", {}).items()}
        mended.append({name: value for name, value in row.items() if name != "not_finite"} | odd)
    return pd.DataFrame(mended)


def read_samples(path: str | Path) -> "pd.DataFrame":
    """A run's sample replies, one row each, in order; empty before the first. Errors as in `read_metrics`."""
    import pandas as pd

    return pd.DataFrame(_rows(path, "samples.jsonl"))


def latest_run(stage: str, experiment: str | None = None, *, seed: int | None = None) -> Path | None:
    """The newest run of a stage that is done, under the runs root; None when there is none.

    experiment: look in this experiment only. seed: runs of this seed come first, so that a chain of several seeds
    does not mix them; where there is none of it, the newest of any seed.
    """
    found = []
    for file in runs_root().glob(f"{experiment or '*'}/{stage}/*/status.json"):
        try:
            status = read_status(file.parent)
        except LabError:
            continue
        if status.state == "done":
            found.append((seed is not None and _seed_of(file.parent) == seed, status.started, str(file.parent)))
    return Path(max(found)[2]) if found else None


def _seed_of(path: Path) -> int | None:
    try:
        return yaml.safe_load((path / "config.yaml").read_text(encoding="utf-8")).get("seed")
    except (OSError, ValueError, yaml.YAMLError, AttributeError):
        return None
