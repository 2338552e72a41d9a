"""From data to reward model to policy: what a run took and what it made, as wandb's artifacts.

Nothing is copied. An artifact refers to the files where they lie and holds their checksums. What a run made is logged;
what it took is named again in the same way and used. From the same name and contents wandb's server knows the version
that the earlier run had logged, and draws the line between the two.
"""

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from rlhf_lab.workbench.records import read_json, read_jsonl, read_status
from rlhf_lab.workbench.run_directory import MAY_CHANGE

DATA = {".jsonl", ".json", ".csv", ".parquet"}
OWN_RECORD = {"metrics.jsonl", "samples.jsonl", "taken.jsonl", "status.json", "progress.json", "results.json"}
OWN_RECORD |= {"made_from.json", "alarms.json"}


class Artefact(NamedTuple):
    """Files that one run makes and others take."""

    name: str
    type: str  # model | dataset | code
    path: Path
    alias: str  # of the version: the run that made it
    metadata: dict[str, Any]


def made_by(run_dir: Path) -> list[Artefact]:
    """What a finished run leaves for others: its checkpoint, and files of data."""
    files = [path for path in sorted(run_dir.iterdir()) if path.suffix in DATA and path.name not in OWN_RECORD]
    found = map(artefact, [run_dir / "checkpoint", *files])
    return [each for each in found if each]


def taken_by(run_dir: Path, settings: Mapping[str, Any]) -> list[Artefact]:
    """What a run learned from: the runs it took for `auto` or an experiment file, what its settings name, its data."""
    from rlhf_lab.workbench.experiments.taken import FILE  # which needs modules that are above this one

    paths = [Path(row["run"]) for row in read_jsonl(run_dir / FILE)]
    for name, value in settings.items():
        if name not in MAY_CHANGE | {"run"}:
            paths += _paths(value)
    found = map(artefact, [*paths, run_dir / "data"])
    return list({(each.name, each.path): each for each in found if each}.values())


def artefact(path: Path) -> Artefact | None:
    """A path as wandb shall know it: by the run in whose directory it lies, else by its own name.

    None where there is nothing, or a folder that is neither a run nor a model. A run stands for its checkpoint.
    """
    path = path.resolve()
    run_dir = next((folder for folder in (path, *path.parents) if (folder / "status.json").is_file()), None)
    if run_dir is not None:
        part = [*path.relative_to(run_dir).parts, "checkpoint"][0]
        path, status = run_dir / part, read_status(run_dir)
        name = f"{status.experiment}-{status.stage}" + ("" if part == "checkpoint" else f"-{Path(part).stem}")
        metadata = {"run": run_dir.name, "experiment": status.experiment, "stage": status.stage}
    else:
        name, metadata = path.stem if path.is_file() else path.name, {}
    kind = _type(path, ours=run_dir is not None)
    if kind is None:
        return None
    alias = _clean(run_dir.name) if run_dir else ""
    return Artefact(_clean(name), kind, path, alias, metadata | {"path": str(path)})


def send(run: Any, taken: list[Artefact], made: list[Artefact]) -> None:
    """Tell a wandb run. It reads the files once for their checksums."""
    for each in taken:
        # `run.use_artifact` refuses offline; for an artifact that no server has yet this is all it does online,
        # apart from waiting until the server has it
        run._log_artifact(_by_reference(each), aliases=[], is_user_created=True, use_after_commit=True)
    for each in made:
        run.log_artifact(_by_reference(each), aliases=["latest", each.alias])


def tags(run_dir: Path, git: Mapping[str, Any] | None) -> list[str]:
    """The tags of a run that was given none: its commit, and its point of a sweep, such as "kl_coef=0.1"."""
    commit = [f"git-{git['commit'][:7]}" + ("-dirty" if git["dirty"] else "")] if git else []
    point = read_json(run_dir / "made_from.json").get("point") or {}
    return [tag[:64] for tag in [*commit, *(f"{key}={value}" for key, value in point.items())]]  # 64: wandb's limit


def _paths(value: Any) -> list[Path]:
    """The paths that exist among all texts in a setting; "rewards.py:polite" names rewards.py."""
    if isinstance(value, Mapping):
        return [path for pair in value.items() for item in pair for path in _paths(item)]
    if isinstance(value, list | tuple):
        return [path for item in value for path in _paths(item)]
    if not isinstance(value, str) or not value.strip(" ./") or "\0" in value:
        return []
    names = (value, value.partition(":")[0] if ".py:" in value else "")
    return [Path(name) for name in map(os.path.expanduser, names) if name and os.path.exists(name)]


def _type(path: Path, *, ours: bool) -> str | None:
    if path.is_file():
        return "code" if path.suffix == ".py" else "dataset"
    if not path.is_dir() or not any(path.iterdir()):
        return None
    if ours:
        return "dataset" if path.name == "data" else "model"
    return "model" if (path / "config.json").is_file() else None


def _by_reference(each: Artefact) -> Any:
    import wandb

    artifact = wandb.Artifact(each.name, type=each.type, metadata=each.metadata)
    artifact.add_reference(each.path.as_uri(), checksum=True)
    return artifact


def _clean(name: str) -> str:
    return re.sub(r"[^\w.-]+", "-", name)[:120]
