"""Run an experiment: plan its jobs, do what is not done yet, then results and report."""

import shlex
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TextIO

from rlhf_lab.errors import LabError
from rlhf_lab.workbench.experiments.conclude import tell
from rlhf_lab.workbench.experiments.decide import Decision, decide
from rlhf_lab.workbench.experiments.jobs import Job, jobs_of
from rlhf_lab.workbench.experiments.places import opened
from rlhf_lab.workbench.experiments.record import ExperimentRecord, StageRecord, shown
from rlhf_lab.workbench.experiments.runner import Runner
from rlhf_lab.workbench.experiments.validate import Plan, validate
from rlhf_lab.workbench.records import now, runs_root
from rlhf_lab.workbench.report.figures import aligned

NOT_RUN = "not run"


def run_experiment(
    file: str | Path,
    overrides: Sequence[str] = (),
    *,
    quiet: bool = False,
    stream: TextIO | None = None,
    command: str = "",
    resume: bool = False,
    workers: int = 1,
    fresh: bool = False,
    on: str = "local",
) -> ExperimentRecord:
    """Check the whole of an experiment file, bring its stages to their end, and leave results.json and a report.

    What is done and unchanged is skipped, what was stopped or killed goes on from its last checkpoint, the rest is run:
    the same command takes up whatever it left.
    overrides: `key=value` for every stage that has the key, `stage.key=value` for one.
    quiet: no progress lines; the results are printed all the same.
    resume: refuse to start anything where nothing was left unfinished.
    workers: stages to run at once. fresh: skip nothing. on: "local", this machine, or "ray", a cluster's nodes.

    Errors: `LabError` before anything starts; `LabError` or `RunFailed` of the first stage that failed, and
    `KeyboardInterrupt`, after results.json and the report were written with what there is.
    """
    stream = stream or sys.stdout
    if workers < 1:
        raise LabError(f"-j {workers}: at least one stage must run at a time")
    plan = validate(file, overrides)
    jobs, points = jobs_of(plan)
    folder = runs_root() / plan.experiment
    decisions = decisions_of(plan, jobs, fresh=fresh)  # a run_dir that is taken is refused before anything starts
    if resume:
        _refuse_nothing_to_resume(plan, folder, decisions)
    command = command or shlex.join(["rlhf-lab", "run", str(file), *_options(overrides)])
    stages = [_stage_record(folder, job) for job in jobs]
    record = ExperimentRecord(plan.experiment, plan.description, plan.file, folder, command, now(), stages)
    entries = dict(zip(jobs, stages, strict=True))
    if len(points) > 1:
        whole = zip(plan.points, points, strict=True)
        record.points = [(point.values, [entries[job] for job in mine.values()]) for point, mine in whole]
    if not quiet:
        print(f"{plan.experiment}: {_told(plan, jobs)}, in {shown(folder)}", file=stream, flush=True)
    lines = None if quiet else stream
    with opened(on, lambda text: print(text, file=lines, flush=True) if lines else None) as place:
        began = time.monotonic()
        runner = Runner(jobs, record, workers=workers, fresh=fresh, stream=lines, place=place)
        try:
            runner.run()
        finally:
            for entry in stages:
                entry.state = NOT_RUN if entry.state == "queued" else entry.state
            record.seconds = time.monotonic() - began
            tell(record, stream)
    _raise_first(plan, runner)
    return record


def plan_in_words(file: str | Path, overrides: Sequence[str] = (), *, fresh: bool = False) -> str:
    """What `run_experiment` would do now and why, a line for each stage. Starts nothing, writes nothing."""
    plan = validate(file, overrides)
    jobs, _ = jobs_of(plan)
    decisions = decisions_of(plan, jobs, fresh=fresh)
    rows = [(job.title, *_in_words(job, decisions)) for job in jobs]
    counts = [(word, sum(row[1] == word for row in rows)) for word in ("run", "resume", "skip")]
    counted = ", ".join(f"{count} to {word}" for word, count in counts if count)
    return "\n".join([f"{plan.experiment}: {_told(plan, jobs)}; {counted or 'nothing to do'}", *aligned(rows)])


def decisions_of(plan: Plan, jobs: Sequence[Job], *, fresh: bool) -> dict[Job, Decision]:
    """What is known of each job before anything runs. Errors: `LabError` for a run_dir that holds something else."""
    decisions: dict[Job, Decision] = {}
    for job in jobs:
        run_dirs = {
            name: decisions[other].run_dir if decisions[other].action == "skip" else None
            for name, other in job.inputs.items()
        }
        try:
            decisions[job] = decide(job, runs_root() / plan.experiment, run_dirs, fresh=fresh)
        except LabError as error:
            raise type(error)(f"{plan.file}, {error}") from None
    return decisions


def _in_words(job: Job, decisions: dict[Job, Decision]) -> tuple[str, str]:
    action, reason, run_dir, _ = decisions[job]
    first = ", ".join(other.title for other in job.inputs.values() if decisions[other].action != "skip")
    if action == "wait":
        return "run", f"unless {first} comes out as before"
    if action == "alive":
        return "alive", f"{shown(run_dir)}: {reason}"
    if action in ("skip", "resume"):
        return action, f"{reason} ({shown(run_dir)})"
    return "run", reason + (f", after {first}" if first else "")


def _told(plan: Plan, jobs: Sequence[Job]) -> str:
    if len(plan.points) == 1:
        return ", ".join(job.stage.name for job in jobs)
    return f"{len(plan.points)} points of {len(plan.stages)} stages, {len(jobs)} runs"


def _stage_record(folder: Path, job: Job) -> StageRecord:
    return StageRecord(
        job.name, job.stage.notebook, folder / job.stage.name, stage=job.stage.name, point=dict(job.values)
    )


def _refuse_nothing_to_resume(plan: Plan, folder: Path, decisions: dict[Job, Decision]) -> None:
    if all((decision.action, decision.reason) == ("run", "new") for decision in decisions.values()):
        raise LabError(f"{plan.file}: nothing to resume, {shown(folder)} holds no run of it; leave --resume out")
    if all(decision.action == "skip" for decision in decisions.values()):
        raise LabError(f"{plan.file}: nothing to resume, its newest run is done; --fresh runs it again")


def _raise_first(plan: Plan, runner: Runner) -> None:
    if not runner.errors:
        return
    job = min(runner.errors, key=lambda job: job.number)
    error, others = runner.errors[job], len(runner.errors) - 1
    more = f"; {others} more failed, see rlhf-lab status" if others else ""
    page = runner.entries[job].run_dir / "report.html"
    see = f" (see {shown(page)})" if page.exists() else ""
    raise type(error)(f"{plan.experiment}, stage {job.title}: {error}{see}{more}")


def _options(overrides: Sequence[str]) -> list[str]:
    return [word for override in overrides for word in ("-p", override)]
