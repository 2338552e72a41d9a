"""Whether a job is skipped, taken up again or run, and why: read off the run directories, there is no other memory.

Skipped is what was done from the same code cells, parameters, input artefacts, package source and versions, and whose
files are as it left them. Taken up is what was begun from these and stopped, killed or failed. A failure is never
taken for a result.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Literal, NamedTuple

from rlhf_lab.errors import LabError
from rlhf_lab.workbench.experiments.fingerprint import (
    RECORD,
    MadeFrom,
    damage,
    differences,
    made_from,
    read_made_from,
)
from rlhf_lab.workbench.experiments.jobs import Job
from rlhf_lab.workbench.experiments.record import shown
from rlhf_lab.workbench.experiments.taken import changed_sources
from rlhf_lab.workbench.records import Status, read_status
from rlhf_lab.workbench.writing import user_path

Action = Literal["skip", "resume", "run", "wait", "alive"]


class Decision(NamedTuple):
    """What to do with a job. `run_dir`: of the run that is skipped, taken up or alive; None for a new one."""

    action: Action
    reason: str
    run_dir: Path | None
    made: MadeFrom


class _Found(NamedTuple):
    run_dir: Path
    status: Status
    made: MadeFrom
    differs: list[str]


def decide(job: Job, folder: Path, run_dirs: Mapping[str, Path | None], *, fresh: bool = False) -> Decision:
    """What to do with a job whose inputs lie in `run_dirs`; None there: that stage is still to run.

    folder: of the experiment. fresh: nothing is skipped, but what was stopped is still taken up.
    Errors: `LabError` where the job names a run_dir that holds something else.
    """
    made = made_from(job, run_dirs)
    given = job.stage.parameters.get("run_dir")
    places = [user_path(given)] if given else sorted((folder / job.stage.name).glob("*"))
    found = [run for place in places if (run := _found(place, made))]
    found.sort(key=lambda run: run.status.started or "~", reverse=True)
    decision = _decided(job, made, [run for run in found if not run.differs], None in made.inputs.values(), fresh)
    if decision is None:
        decision = Decision("run", _reason(made, found, fresh), None, made)
    if given and decision.action == "run" and decision.run_dir is None and (places[0] / "status.json").exists():
        why = f"that differs ({decision.reason})" if found else "already"
        raise LabError(
            f"stage {job.title}: run_dir {places[0]} holds a run {why}; give a new one, nothing is overwritten"
        )
    return decision


def _decided(job: Job, made: MadeFrom, same: list[_Found], waits: bool, fresh: bool) -> Decision | None:
    """By the newest run that was made from the same; None where there is none to build on."""
    for run in same:
        state = run.status.state
        if state == "running":
            return Decision("alive", f"process {run.status.pid} is at it", run.run_dir, made)
        if state == "done":
            if fresh or damage(run.run_dir, run.made) or changed_sources(run.run_dir):
                continue
            return Decision("wait" if waits else "skip", "unchanged", run.run_dir, made)
        if state == "queued":
            if _holds_more(run.run_dir):  # it began, and a full disk kept it from saying so
                continue
            return Decision("run", "never began", run.run_dir, made)
        if "resume" in job.stage.config.model_fields and (run.run_dir / "config.yaml").exists():
            return Decision("resume", f"{state}: {run.status.reason}", run.run_dir, made)
    return None


def _reason(made: MadeFrom, found: list[_Found], fresh: bool) -> str:
    """Why it runs, by the nearest run of the same point."""
    near = [run for run in found if run.made.point == made.point]
    if not near:
        return "new"
    near.sort(key=lambda run: (len(run.differs), run.status.state != "done"))  # stable: the newest first
    run = near[0]
    if run.differs:
        return "changed: " + ", ".join(run.differs)
    if run.status.state == "queued":
        return "was cut short before"
    if run.status.state != "done":
        return f"{run.status.state} before: {run.status.reason}"
    if fresh:
        return "asked for"
    return f"{shown(run.run_dir)}: {damage(run.run_dir, run.made) or changed_sources(run.run_dir)}"


def _holds_more(run_dir: Path) -> bool:
    """Whether there is more than a run's record of itself."""
    return any(path.name not in RECORD and not path.name.startswith(".") for path in run_dir.iterdir())


def _found(run_dir: Path, new: MadeFrom) -> _Found | None:
    """A run that the runner started; one whose status cannot be read is no run to build on."""
    try:
        made, status = read_made_from(run_dir), read_status(run_dir)
    except LabError:
        return None
    return _Found(run_dir, status, made, differences(made, new)) if made else None
