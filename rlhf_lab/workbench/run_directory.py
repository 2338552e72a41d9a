"""The directory of a run: whose it is, and what one must know to run the same again."""

import os
import platform
import subprocess
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

import yaml

from rlhf_lab.errors import LabError
from rlhf_lab.workbench.records import Status, read_status, runs_root
from rlhf_lab.workbench.writing import cannot_write, make_folder, write_json


def claim(path: Path, status: Status) -> Path:
    """Take a directory that is new, empty or queued. Only one of several processes gets it."""
    if (path / "status.json").exists():
        old = read_status(path)
        if old.state == "running":
            who = "this process" if old.pid == os.getpid() else f"process {old.pid} on {old.host}"
            raise LabError(f"run_dir {path} belongs to a run that is still alive ({who}); give another directory")
        if old.state != "queued":
            raise LabError(f"run_dir {path} holds a run that is {old.state}; give a new one, nothing is overwritten")
    elif path.exists() and not path.is_dir():
        raise LabError(f"run_dir {path} is a file; give a directory")
    elif taken := _foreign(path):
        raise LabError(f"run_dir {path} is not empty (it has {taken[0]}); give a new directory, nothing is overwritten")
    make_folder(path)
    try:  # a file that can be created only once, whatever status.json said a moment ago
        (path / ".taken").open("x").close()
    except FileExistsError:
        raise LabError(f"run_dir {path} was taken by another run just now; give another") from None
    except OSError as error:
        raise cannot_write(path, error) from None
    try:
        write_json(path / "status.json", status.model_dump())
    except LabError:
        (path / ".taken").unlink(missing_ok=True)  # nobody has it, so a next try may
        raise
    return path


MAY_CHANGE = {"run_dir", "resume", "threads", "tracking", "experiment", "save_every"}  # between the parts of a run
_ALL_BUT_RESULTS = ":(top,exclude)experiments/reference"


def refuse_other_settings(path: Path, resolved: dict[str, Any]) -> None:
    """A run is resumed with its own settings. Errors: `LabError` naming the first that differs."""
    try:
        old = yaml.safe_load((path / "config.yaml").read_text(encoding="utf-8"))["config"]
    except (OSError, ValueError, yaml.YAMLError, TypeError, KeyError):
        raise LabError(f"run_dir {path}: has no readable config.yaml, so it cannot be resumed") from None
    for name in sorted(old.keys() | resolved.keys()):
        if name not in MAY_CHANGE and old.get(name) != resolved.get(name):
            was, now = old.get(name), resolved.get(name)
            raise LabError(f"run_dir {path}: its {name} was {was}, not {now}; set it back, or start a new run")


def reclaim(path: Path, status: Status) -> Path:
    """Take the directory of a run that has ended early, to go on with it. Only one of several processes gets it."""
    old = read_status(path)
    if old.state in ("running", "queued", "done"):
        why = {"running": "is still alive", "queued": "has not begun", "done": "is done"}[old.state]
        raise LabError(f"run_dir {path}: its run {why}; there is nothing to resume")
    if old.stage != status.stage:
        raise LabError(f"run_dir {path} holds a {old.stage} run, not {status.stage}; give that stage's directory")
    lock = path / f".resumed-{old.started.replace(':', '')}"  # one for each part of the run
    try:
        lock.open("x").close()
    except FileExistsError:
        raise LabError(f"run_dir {path} is being resumed by another process; wait for it, or give another") from None
    except OSError as error:
        raise cannot_write(path, error) from None
    write_json(path / "status.json", status.model_dump())
    return path


def _foreign(path: Path) -> list[str]:
    """What is in a directory, apart from what papermill and its caller put there before the run."""
    if not path.is_dir():
        return []
    return [item.name for item in path.iterdir() if item.suffix not in (".ipynb", ".log") and item.name[0] != "."]


def new_directory(status: Status, seed: int) -> Path:
    parent = make_folder(runs_root() / status.experiment / status.stage)
    stamp = f"{datetime.now(UTC):%Y%m%d-%H%M%S}-s{seed}"
    for attempt in range(1, 1000):
        path = parent / (stamp if attempt == 1 else f"{stamp}-{attempt}")
        try:
            path.mkdir()
        except FileExistsError:
            continue
        except OSError as error:
            raise cannot_write(path, error) from None
        return claim(path, status)
    raise LabError(f"{parent} has a thousand runs of this second; give a run_dir")


def provenance(status: Status, seed: int) -> dict[str, Any]:
    """What one must know to run the same again."""
    versions = {"python": platform.python_version()}
    for name in ("rlhf-lab", "torch", "transformers", "trl"):
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            versions[name] = None
    return {
        "stage": status.stage,
        "experiment": status.experiment,
        "seed": seed,
        "started": status.started,
        "host": status.host,
        "directory": str(Path.cwd()),
        "git": git_state(),
        "versions": versions,
    }


def git_state(package: Path = Path(__file__).parents[1]) -> dict[str, Any] | None:
    """Commit and dirty flag of the tree the package is tracked in, else of the tree one is in, else None.

    Results that a run appends to `experiments/reference` do not make it dirty: the next line has the same code.
    """
    tracked = _git_line(package, "ls-files", "--error-unmatch", "__init__.py") is not None
    tree = package if tracked else Path.cwd()
    commit = _git_line(tree, "rev-parse", "HEAD")
    if commit is None:
        return None
    return {"commit": commit, "dirty": bool(_git_line(tree, "status", "--porcelain", "--", _ALL_BUT_RESULTS))}


def hardware() -> str:
    """What computes: the processor, its cores, and the device where that is another."""
    what = [platform.machine(), f"{os.cpu_count()} cores", processor(), os.environ.get("RLHF_LAB_DEVICE", "")]
    return ", ".join(part for part in what if part)


def processor() -> str:
    """The processor's name, as Linux tells it, else what Python knows."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor()


def _git_line(tree: Path, *words: str) -> str | None:
    try:
        done = subprocess.run(["git", *words], cwd=tree, capture_output=True, text=True, timeout=20, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()
