"""What a stage is made from, and what it made: enough to know that doing it again would change nothing.

A stage is made from the code cells of its notebook, its parameters, its input artefacts, the package's source (not of
what only shows and runs), and the versions of torch, transformers and trl. `made_from.json` in the run's directory
keeps that, and once the run is done the files that it left.
"""

import functools
import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

from pydantic import BaseModel

import rlhf_lab
from rlhf_lab.errors import LabError
from rlhf_lab.workbench.experiments.files import map_text
from rlhf_lab.workbench.experiments.jobs import Job, references
from rlhf_lab.workbench.records import read_json
from rlhf_lab.workbench.run_directory import MAY_CHANGE
from rlhf_lab.workbench.writing import write_json

FILE = "made_from.json"
ABOVE = {"workbench", "cli.py", "__main__.py"}  # of the package: what shows and runs, not what computes
COMPUTES = (  # in `workbench` nevertheless: results would be stale if these did not count
    *("studies", "artefacts.py", "evaluation.py", "intervals.py", "roles.py", "learned_judge.py", "asked_judges.py"),
    *("reward_runs.py", "reward_diagnostics.py", "own_data.py", "pretraining_runs.py"),
)
VERSIONS = ("torch", "transformers", "trl")
# A run's record of itself; the rest is what it made.
RECORD = {"status.json", "progress.json", "notebook.ipynb", "report.html", "kernel.log", "taken.jsonl", FILE}
HISTORY = {"config.yaml", "metrics.jsonl", "samples.jsonl"}  # checked like the rest, but hold times: nobody's input
FOLDERS = {"wandb", "training"}


class MadeFrom(BaseModel):
    """Digests, and the parameters as they are."""

    code: str
    parameters: dict[str, Any]
    inputs: dict[str, str | None]  # "{sft}" or the path of a file -> digest; None: it is not known yet
    package: str
    versions: dict[str, str | None]
    point: dict[str, Any] = {}
    files: dict[str, tuple[str, int, int]] | None = None  # once done: digest, size, time of change in ns


def made_from(job: Job, run_dirs: Mapping[str, Path | None]) -> MadeFrom:
    """What a job would be made from now. run_dirs: of the stages it takes from, None where that is still to run."""
    parameters = _resolved(job)
    inputs: dict[str, str | None] = {}
    for text, name in references(job.stage).items():
        run_dir = run_dirs[name]
        rest = text.partition("}")[2].strip("/")
        inputs[text] = None if run_dir is None else digest(run_dir / rest) if rest else _made_by(run_dir)
    inputs |= {str(path): digest(path) for path in _local_files(parameters)}
    return MadeFrom(
        code=code_cells(job.stage.notebook),
        parameters=parameters,
        inputs=inputs,
        package=package_source(),
        versions=versions(),
        point=json.loads(json.dumps(dict(job.values), default=str)),
    )


def read_made_from(run_dir: Path) -> MadeFrom | None:
    """What a run was made from; None for one that the runner did not start."""
    try:
        return MadeFrom(**read_json(run_dir / FILE))
    except (ValueError, TypeError):
        return None


def write_made_from(run_dir: Path, made: MadeFrom) -> None:
    """Keep it in the run's directory. Errors: `LabError` when it cannot be written."""
    write_json(run_dir / FILE, made.model_dump(mode="json"))


def seal(run_dir: Path) -> None:
    """Note the files that a finished run left."""
    made = read_made_from(run_dir)
    if made is not None:
        files = {str(path.relative_to(run_dir)): _mark(path) for path in _files(run_dir, but=RECORD)}
        write_made_from(run_dir, made.model_copy(update={"files": files}))


def damage(run_dir: Path, made: MadeFrom) -> str:
    """What was deleted or edited since the run was done, in words; "" when all is as it was left."""
    for name, (old, size, time) in (made.files or {}).items():
        path = run_dir / name
        if not path.is_file():
            return f"{name} was deleted"
        stat = path.stat()
        if stat.st_size != size or (stat.st_mtime_ns != time and digest(path) != old):
            return f"{name} was edited"
    return ""


def differences(old: MadeFrom, new: MadeFrom) -> list[str]:
    """What differs between two, in words. An input that is not known yet counts as the same."""
    found = ["code cells"] if old.code != new.code else []
    for name in sorted(old.parameters.keys() | new.parameters.keys()):
        was, now = old.parameters.get(name), new.parameters.get(name)
        if was != now:
            found.append(f"parameter {name}: {_told(was)} -> {_told(now)}")
    for name in sorted(old.inputs.keys() | new.inputs.keys()):
        unknown = name in old.inputs and new.inputs.get(name, "") is None
        if not unknown and old.inputs.get(name, "none") != new.inputs.get(name, "none"):
            found.append(f"input {name}")
    if old.package != new.package:
        found.append("source of the package")
    for name in VERSIONS:
        if old.versions.get(name) != new.versions.get(name):
            found.append(f"{name} {old.versions.get(name)} -> {new.versions.get(name)}")
    return found


def code_cells(notebook: Path) -> str:
    """A digest of the code alone: outputs, texts and what JupyterLab adds do not count."""
    try:
        cells = json.loads(notebook.read_text(encoding="utf-8"))["cells"]
        code = ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]
    except (OSError, ValueError, KeyError, TypeError):
        raise LabError(f"{notebook} is not a valid notebook") from None
    return _sha("\0".join(code).encode())


def package_source() -> str:
    """A digest of the package below `workbench`, the embedded base model included, and of what computes in it."""
    root = Path(rlhf_lab.__file__).parent
    rooms = sorted(path for path in root.iterdir() if path.name not in ABOVE)
    rooms += [root / "workbench" / name for name in COMPUTES]
    files = [file for room in rooms for file in ([room] if room.is_file() else _files(room))]
    return _combined(root, files)


def digest(path: Path) -> str:
    """Of a file, or of all in a folder, names included; "missing" where there is neither."""
    if path.is_file():
        return _mark(path)[0]
    return _combined(path, _files(path)) if path.is_dir() else "missing"


def _made_by(run_dir: Path) -> str:
    return _combined(run_dir, _files(run_dir, but=RECORD | HISTORY))


def _resolved(job: Job) -> dict[str, Any]:
    """Every parameter, defaults included, but those that say where and how it runs."""
    values = job.stage.config.parse(job.stage.parameters, job.title).model_dump(mode="json")
    return {name: value for name, value in values.items() if name not in MAY_CHANGE}


def _local_files(parameters: Mapping[str, Any]) -> list[Path]:
    """The files and folders that parameters name; "rewards.py:polite" names rewards.py, "data[test]" data."""
    found: dict[str, Path] = {}

    def note(text: str) -> str:
        part = text.rpartition("[")[0] if text.endswith("]") else ""  # of "folder[split]"
        for name in (text, text.partition(":")[0] if ".py:" in text else part):
            path = os.path.expanduser(name)
            if path.strip(" ./") and len(path) < 1000 and "\0" not in path and os.path.exists(path):
                found[name] = Path(path)
        return text

    map_text(dict(parameters), note)
    return list(found.values())


def _files(folder: Path, *, but: set[str] = frozenset()) -> Iterator[Path]:
    """The files below a folder in a fixed order, without caches, hidden ones, and at its top what is in `but`."""
    for path in sorted(folder.iterdir()):
        if path.name.startswith(".") or path.name == "__pycache__" or path.name in but:
            continue
        if path.is_file():
            yield path
        elif path.is_dir() and not (but and path.name in FOLDERS):
            yield from _files(path)


def _combined(root: Path, files: Iterator[Path] | list[Path]) -> str:
    return _sha("\n".join(f"{path.relative_to(root)} {_mark(path)[0]}" for path in files).encode())


def _mark(path: Path) -> tuple[str, int, int]:
    stat = path.stat()
    return _sha_of_file(str(path.absolute()), stat.st_size, stat.st_mtime_ns), stat.st_size, stat.st_mtime_ns


@functools.lru_cache(maxsize=20_000)  # gigabytes of weights are read once, not once for each point of a sweep
def _sha_of_file(path: str, size: int, time: int) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()[:32]


def _sha(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()[:32]


@functools.cache
def versions() -> dict[str, str | None]:
    """The versions that count, as they are installed; None for what is not."""
    found: dict[str, str | None] = {}
    for name in VERSIONS:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = None
    return found


def _told(value: Any) -> str:
    text = json.dumps(value, default=str)
    return text if len(text) <= 40 else text[:39] + "~"
