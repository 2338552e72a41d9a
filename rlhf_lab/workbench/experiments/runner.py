"""Run the jobs of an experiment: each decided once its inputs are there, executed, and its end noted."""

import contextlib
import os
import socket
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, TextIO

from rlhf_lab.errors import LabError, RunFailed
from rlhf_lab.workbench.experiments.decide import Decision, decide
from rlhf_lab.workbench.experiments.fingerprint import FILE, damage, read_made_from, seal, write_made_from
from rlhf_lab.workbench.experiments.graph import run_graph
from rlhf_lab.workbench.experiments.jobs import Job
from rlhf_lab.workbench.experiments.locks import held, locked
from rlhf_lab.workbench.experiments.places import Here, Order, Place, Underway
from rlhf_lab.workbench.experiments.record import ExperimentRecord, StageRecord, read_back, shown
from rlhf_lab.workbench.experiments.sweep import folder_name, label
from rlhf_lab.workbench.experiments.watch import watch
from rlhf_lab.workbench.progress_line import Board, ProgressLine
from rlhf_lab.workbench.records import (
    BUSY,
    RUNNER_SILENCE_S,
    mark_ended,
    mark_queued,
    now,
    read_status,
    runs_root,
)
from rlhf_lab.workbench.report.figures import duration
from rlhf_lab.workbench.writing import cannot_write, make_folder, user_path, write_json

ORPHAN_S = 15.0  # a kernel whose runner was killed ends by itself within a few seconds
SWEEP_OF_WANDB = ("WANDB_RUN_ID", "WANDB_SWEEP_ID", "WANDB_SWEEP_PARAM_PATH", "WANDB_RESUME")
STOPPED = ("interrupted", "terminated by SIGTERM")  # what a run says that somebody stopped


class Runner:
    """The jobs of one experiment, `workers` at a time, their notebooks executed at a place."""

    def __init__(
        self,
        jobs: Sequence[Job],
        record: ExperimentRecord,
        *,
        workers: int,
        fresh: bool,
        stream: TextIO | None,
        place: Place | None = None,
    ) -> None:
        """place: None is this machine."""
        self.jobs, self.record, self.fresh, self.stream = jobs, record, fresh, stream
        self.workers, self.place = min(workers, len(jobs)), place or Here()
        self.threads = self.place.threads(self.workers)
        self.entries: dict[Job, StageRecord] = dict(zip(jobs, record.stages, strict=True))
        self.errors: dict[Job, LabError] = {}
        self.board = Board(stream) if stream is not None and self.workers > 1 else None
        self.stamp = record.started.replace("-", "").replace(":", "").replace("T", "-")[:15]
        self._stopping = threading.Event()
        self._working: set[Job] = set()
        self._alive: set[Underway] = set()

    def run(self) -> None:
        """Run what must be run. Errors: `KeyboardInterrupt` after Ctrl-C, once every notebook has ended."""
        try:
            run_graph(self.jobs, self._attempt, workers=self.workers)
        except KeyboardInterrupt:
            self._stop()
            raise

    def _stop(self) -> None:
        """Interrupt every notebook and wait for their ends; at a second Ctrl-C they lose their kernels."""
        self._stopping.set()
        try:
            while self._working:
                time.sleep(0.05)
        except KeyboardInterrupt:
            for execution in list(self._alive):
                execution.kill()
            while self._working:
                time.sleep(0.05)

    def _attempt(self, job: Job) -> bool:
        """Bring a job to its end, or note why not. Called in a thread of its own: nothing may escape it."""
        entry = self.entries[job]
        self._working.add(job)
        try:
            if self._stopping.is_set():
                return False
            with locked(runs_root(), self.record.experiment, job.identity), self._inputs_held(job):
                self._bring(job, entry)
        except LabError as error:
            entry.state, entry.reason = "failed", str(error)
            self.errors[job] = error
        except KeyboardInterrupt:
            entry.state, entry.reason = "stopped", "interrupted"
        except OSError as error:
            entry.state = "failed"
            self.errors[job] = cannot_write(Path(str(error.filename or "a file")), error)
            entry.reason = str(self.errors[job])
        except Exception as error:  # a bug of ours must not look as if the stage had been done
            entry.state, entry.reason = "failed", f"{type(error).__name__}: {error}"
            self.errors[job] = RunFailed(entry.reason)
        finally:
            self._working.discard(job)
        return entry.state == "done"

    @contextlib.contextmanager
    def _inputs_held(self, job: Job) -> Iterator[None]:
        """While a job runs, nobody removes what it takes from."""
        with contextlib.ExitStack() as stack:
            for other in job.inputs.values():
                with contextlib.suppress(LabError):  # deleted already, which will be told, or no place to write in
                    stack.enter_context(held(self.entries[other].run_dir / BUSY, shared=True))
            yield

    def _bring(self, job: Job, entry: StageRecord) -> None:
        decision = self._decide(job)
        if decision.action == "skip":
            entry.run_dir, entry.state, entry.skipped = decision.run_dir, "done", True
            read_back(entry)
            self._line(job, entry).end(f"unchanged, skipped ({shown(entry.run_dir)})")
            if read_made_from(entry.run_dir).files is None:  # its runner was killed before it could
                _sealed(entry)
            return
        entry.run_dir = decision.run_dir or self._new_directory(job)
        with held(make_folder(entry.run_dir) / BUSY):
            resume = decision.action == "resume"
            try:
                write_made_from(entry.run_dir, decision.made)
                if not resume:
                    (entry.run_dir / "status.json").unlink(missing_ok=True)  # of one that never began
                    mark_queued(entry.run_dir, stage=job.stage.name, experiment=self.record.experiment)
            except (LabError, OSError):
                if not resume:
                    _give_back(entry.run_dir)
                raise
            self._execute(job, entry, resume=resume)

    def _decide(self, job: Job) -> Decision:
        run_dirs = {name: self.entries[other].run_dir for name, other in job.inputs.items()}
        for name, run_dir in run_dirs.items():
            _refuse_damaged(name, run_dir)
        until = 0.0
        while True:
            decision = decide(job, self.record.folder, run_dirs, fresh=self.fresh)
            if decision.action != "alive":
                return decision
            until = until or time.monotonic() + _patience(decision.run_dir)
            if time.monotonic() > until or self._stopping.is_set():
                where = shown(decision.run_dir)
                raise LabError(f"{where} is still alive ({decision.reason}); wait, or `rlhf-lab stop {where}`")
            time.sleep(0.2)

    def _new_directory(self, job: Job) -> Path:
        if given := job.stage.parameters.get("run_dir"):
            return user_path(given)
        stem = "-".join([self.stamp, *([folder_name(label(job.values))] if job.values else [])])
        names = (stem if attempt == 1 else f"{stem}-{attempt}" for attempt in range(1, 1000))
        folder = self.record.folder / job.stage.name
        make_folder(folder)
        for name in names:
            try:
                (folder / name).mkdir()  # two jobs whose points read alike may come here at once
            except FileExistsError:
                continue
            return folder / name
        raise LabError(f"{shown(folder)} has a thousand runs of this second; start again")

    def _line(self, job: Job, entry: StageRecord) -> ProgressLine:
        width = max(len(other.title) for other in self.jobs)
        return ProgressLine(self.stream, job.number, len(self.jobs), job.title, width, entry.run_dir, board=self.board)

    def _execute(self, job: Job, entry: StageRecord, *, resume: bool) -> None:
        parameters, environment = self._given(job, entry, resume=resume)
        line = self._line(job, entry)
        before = read_status(entry.run_dir).seconds
        began = time.monotonic()
        output = entry.run_dir / "notebook.ipynb"
        execution = self.place.execution(Order(job.stage.notebook, output, parameters, environment), self.threads)
        self._alive.add(execution)
        entry.state = "running"
        try:
            watch(execution, entry.run_dir, line.update, self._stopping)
            _expect_finished(entry)
            _sealed(entry)
        except LabError as error:
            entry.state, entry.reason = _how_it_ended(entry, error)
            raise
        except KeyboardInterrupt:
            entry.state, entry.reason = "stopped", "interrupted"
            _mark_ended(entry, "stopped")
            raise
        finally:
            self._alive.discard(execution)
            entry.seconds = before + time.monotonic() - began
            read_back(entry)
            line.end(f"{entry.state} in {duration(time.monotonic() - began)}")

    def _given(self, job: Job, entry: StageRecord, *, resume: bool) -> tuple[dict[str, Any], dict[str, str | None]]:
        """The parameters as the notebook gets them, and the variables in its kernel's environment."""
        fields = job.stage.config.model_fields
        run_dirs = {name: Path(shown(self.entries[other].run_dir)) for name, other in job.inputs.items()}
        parameters = job.stage.resolved(run_dirs) | {"run_dir": shown(entry.run_dir)}
        if "experiment" in fields:
            parameters.setdefault("experiment", self.record.experiment)
        if resume:
            parameters["resume"] = True
        environment: dict[str, str | None] = {"RLHF_LAB_COMMAND": self.record.command}  # for lines of results
        if self.threads:
            if "threads" in fields:
                parameters.setdefault("threads", self.threads)
            if "OMP_NUM_THREADS" not in os.environ:
                environment["OMP_NUM_THREADS"] = str(parameters.get("threads") or self.threads)
        if "WANDB_SWEEP_ID" in os.environ and any(job in other.inputs.values() for other in self.jobs):
            environment |= dict.fromkeys(SWEEP_OF_WANDB)  # the agent's run is that of the last stage alone
        return parameters, environment


def _patience(run_dir: Path) -> float:
    """How long a run whose runner is gone may seem alive, in seconds."""
    with contextlib.suppress(LabError):
        if read_status(run_dir).host != socket.gethostname():
            return RUNNER_SILENCE_S + ORPHAN_S
    return ORPHAN_S


def _give_back(run_dir: Path) -> None:
    """Remove a directory that was made for a run which then could not begin."""
    with contextlib.suppress(OSError):
        for name in (FILE, BUSY, "status.json"):
            (run_dir / name).unlink(missing_ok=True)
        run_dir.rmdir()


def _refuse_damaged(name: str, run_dir: Path) -> None:
    """What a stage takes must be what the stage before it left."""
    made = read_made_from(run_dir)
    what = "was deleted" if made is None else damage(run_dir, made)
    if what:
        where = f"its input {{{name}}}, {shown(run_dir)}"
        raise LabError(f"{where}: {what} since it was made; the same command makes it again")


def _sealed(entry: StageRecord) -> None:
    with contextlib.suppress(LabError, OSError):  # it is done all the same; a next command will try again
        seal(entry.run_dir)


def _mark_ended(entry: StageRecord, state: Literal["failed", "stopped"]) -> None:
    with contextlib.suppress(LabError):  # its folder may be gone or full, which must not hide how the stage ended
        mark_ended(entry.run_dir, state, entry.reason)


def _how_it_ended(entry: StageRecord, error: LabError) -> tuple[str, str]:
    """failed, or stopped by somebody else than this runner."""
    entry.reason = str(error)
    _mark_ended(entry, "failed")
    with contextlib.suppress(LabError):
        status = read_status(entry.run_dir)
        if status.state == "stopped" and status.reason in STOPPED:
            return "stopped", status.reason
    return "failed", str(error)


def _expect_finished(entry: StageRecord) -> None:
    """A notebook that ran through has said so in its status; one that keeps no record is done as well."""
    status = read_status(entry.run_dir)
    if status.state == "queued":
        ended = status.model_copy(update={"state": "done", "started": now(), "ended": now()})
        write_json(entry.run_dir / "status.json", ended.model_dump())
    elif status.state != "done":
        reason = status.reason or "it ended before run.finish()"
        raise RunFailed(f"{entry.notebook.name}: the notebook ended, its run is {status.state}: {reason}")
    entry.state = "done"
