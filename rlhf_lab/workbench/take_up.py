"""`rlhf-lab run --resume`: go on with an experiment that was stopped, killed, or failed."""

from pathlib import Path

from rlhf_lab.errors import LabError
from rlhf_lab.workbench.experiment_record import ExperimentRecord, StageRecord, read_back, shown
from rlhf_lab.workbench.records import now, read_status, runs_root
from rlhf_lab.workbench.validate import Plan, PlannedStage
from rlhf_lab.workbench.writing import user_path


def take_up(plan: Plan, command: str) -> ExperimentRecord:
    """The newest run of a plan that did not come to its end, each stage marked done, resumed or queued.

    A stage that left no checkpoint, or cannot be resumed, begins anew beside what it left.
    Errors: `LabError` where there is none, it is still alive, or it is done.
    """
    folder = runs_root() / plan.experiment
    first = plan.stages[0]
    ids = sorted(path.name for path in (folder / first.name).glob("*") if (path / "status.json").exists())
    given = first.parameters.get("run_dir")
    if not ids and not given:
        raise LabError(f"{plan.file}: nothing to resume, {shown(folder)} holds no run of it; leave --resume out")
    stages = []
    for stage in plan.stages:
        where = stage.parameters.get("run_dir")
        run_dir = user_path(where) if where else folder / stage.name / ids[-1]
        entry = StageRecord(stage.name, stage.notebook, run_dir)
        if (run_dir / "status.json").exists() and all(e.state == "done" for e in stages):
            entry = _taken_up(plan, stage, entry)
        stages.append(entry)
    if all(entry.state == "done" for entry in stages):
        raise LabError(f"{plan.file}: nothing to resume, its newest run is done; leave --resume out to run it again")
    return ExperimentRecord(plan.experiment, plan.description, plan.file, folder, command, now(), stages)


def _taken_up(plan: Plan, stage: PlannedStage, entry: StageRecord) -> StageRecord:
    status = read_status(entry.run_dir)
    if status.state == "running":
        raise LabError(f"{plan.file}: {shown(entry.run_dir)} is still alive (process {status.pid}); wait, or stop it")
    entry.state = status.state
    read_back(entry)
    if status.state == "done":
        return entry
    entry.reason = ""
    started = (entry.run_dir / "config.yaml").exists() and "resume" in stage.config.model_fields
    if status.state == "queued":
        (entry.run_dir / "status.json").unlink()
        entry.state = "queued"
    elif started:
        entry.state = "resumed"
    else:
        entry.run_dir = _beside(entry.run_dir)
        entry.state = "queued"
    return entry


def _beside(path: Path) -> Path:
    """A directory that is not there yet, named after `path`."""
    return next(p for n in range(2, 1000) if not (p := path.with_name(f"{path.name}-again{n}")).exists())
