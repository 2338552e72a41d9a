"""A run: the directory in which one stage writes its config, metrics, samples, progress, results and status.

    with Run.start("ppo", config, experiment="demo", seed=3) as run:
        run.progress(0, 40, "rollouts")
        run.log({"objective/kl": 0.8}, step=64)
        run.finish({"gold": 1.3})

In a notebook no `with` is needed: a cell that fails or is interrupted is noticed (session.py).
"""

import contextlib
import json
import math
import socket
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal, Self

import psutil
import yaml

from rlhf_lab.config import Config
from rlhf_lab.errors import LabError
from rlhf_lab.training.processes import Processes
from rlhf_lab.workbench import session
from rlhf_lab.workbench.memory import peak_memory
from rlhf_lab.workbench.other_processes import put_away, stand_in
from rlhf_lab.workbench.records import (
    State,
    Status,
    latest_run,
    mark_ended,
    mark_queued,
    now,
    one_line,
    read_jsonl,
    read_metrics,
    read_samples,
    read_status,
    runs_root,
    since_boot,
)
from rlhf_lab.workbench.report.figures import duration
from rlhf_lab.workbench.run_directory import claim, new_directory, provenance, reclaim, refuse_other_settings
from rlhf_lab.workbench.session import headless
from rlhf_lab.workbench.tracking import Tracker, TrackingConfig
from rlhf_lab.workbench.writing import append_line, make_folder, plain, user_path, write_json, write_text

__all__ = [
    "Run",
    "Status",
    "headless",
    "latest_run",
    "mark_ended",
    "mark_queued",
    "read_metrics",
    "read_samples",
    "read_status",
    "runs_root",
]

HEARTBEAT_S = 5.0
PROGRESS_S = 0.2
PRINT_S = 10.0


class Run:
    """One run and its directory. Make it with `Run.start`."""

    def __init__(self, path: Path, status: Status, tracker: Tracker, step_name: str, processes: Processes):
        self.path = path
        self.processes = processes
        self.status = status
        self.tracker = tracker
        self.step_name = step_name
        self.history: list[dict[str, Any]] = []  # the lines of metrics.jsonl, for live plots
        self.last_progress: dict[str, Any] = {}
        self.saver: Callable[[], object] | None = None  # saves the training state when the run is about to be stopped
        self._began = time.monotonic()
        self._before = 0.0  # seconds of the parts before this one
        self._closed = False
        self._headless = headless() and processes.main
        self._heard = time.monotonic()
        self._pace: tuple[float, int] | None = None  # time and `done` when the current work began
        self._progress_written = self._progress_printed = -math.inf

    @classmethod
    def start(
        cls,
        stage: str,
        config: Config,
        *,
        run_dir: str | Path = "",
        experiment: str = "scratch",
        seed: int = 0,
        tracking: TrackingConfig | None = None,
        step_name: str = "",
        resume: bool = False,
        accelerator=None,
    ) -> Self:
        """Make a run's directory, write config.yaml and status.json, start tracking, and print where it is.

        run_dir: a new, empty or queued directory; "" is `<runs root>/<experiment>/<stage>/<time>-s<seed>`.
        step_name: the run's own x-axis, "episode" or "global_step"; "" takes "episode" for PPO stages.
        resume: take up the run in `run_dir` that has ended early; it keeps its files and its place in wandb.
        accelerator: of several processes the main one writes the run; the others write where nobody looks.
        Errors: `LabError` when the directory holds another run, alive or ended: nothing is overwritten.
        """
        for kind, name in (("stage", stage), ("experiment", experiment)):
            if not name.isprintable() or name[:1] in ("", ".") or set(name) & set('/\\*?[]:"'):
                raise LabError(f"{kind} {name!r} cannot name a folder: use letters, digits, '-', '_' and '.'")
        if resume and not run_dir:
            raise LabError("resume: which run? give its directory as run_dir")
        tracking = tracking or TrackingConfig()
        step_name = step_name or ("episode" if "ppo" in stage.lower() else "global_step")
        resolved = plain(config.model_dump(mode="json"))
        status = _status_of_this_process(stage, experiment)
        before = 0.0
        if resume:
            before = read_status(user_path(run_dir)).seconds
            refuse_other_settings(user_path(run_dir), resolved)
        processes = Processes.of(accelerator, stage)
        take = _directory if processes.main else stand_in
        path = processes.together(lambda: take(run_dir, status, seed, resume=resume))[processes.rank]
        tracking = tracking if processes.main else TrackingConfig(mode="disabled")
        session.close_older(stage)
        facts = plain(provenance(status, seed) | {"tracking": tracking.model_dump(mode="json")})
        _write_config(path, facts | {"processes": processes.count} | {"config": resolved})
        tracker = Tracker(tracking, path=path, status=status, config=resolved | {"run": facts}, step_name=step_name)
        run = cls(path, status, tracker, step_name, processes)
        run._say(f"{stage} run: {_shown(path)}")
        run._before = before
        if resume:
            tracker.take_up()
            run.history = read_jsonl(path / "metrics.jsonl")
        session.watch(run)
        tracker.start()
        session.come_first_at_exit()
        if tracker.url:
            run._write_status(url=tracker.url)
        return run

    @property
    def stage(self) -> str:
        """The name of the stage, such as "ppo"."""
        return self.status.stage

    @property
    def accelerator(self):
        """accelerate's `Accelerator` where several processes train, for what starts the training; else None."""
        return self.processes.accelerator

    @property
    def state(self) -> State:
        """running, done, failed or stopped."""
        return self.status.state

    def file(self, name: str) -> Path:
        """A path inside the run's directory; folders on the way are made. Errors: `LabError` if the run's is gone."""
        if not self.path.is_dir():
            raise LabError(f"run {_shown(self.path)} is gone: its folder was deleted or moved; start a new run")
        make_folder((self.path / name).parent)
        return self.path / name

    def log(self, metrics: Mapping[str, float], step: int) -> None:
        """Append one line to metrics.jsonl and send it to wandb.

        step: the run's own x, in units of `step_name`. A NaN or an infinity is written as null and named
        under "not_finite".
        """
        self._touch()
        values = {name: _number(name, value) for name, value in metrics.items()} | {self.step_name: step}
        row = {self.step_name: step} | values | {"time": round(time.time(), 3)}
        odd = {name: str(value) for name, value in values.items() if not math.isfinite(value)}
        if odd:
            row["not_finite"] = odd
        append_line(self.path / "metrics.jsonl", row)
        self.history.append(row)
        self.tracker.log(values)

    def rewind(self, step: int) -> None:
        """Drop every metric and sample beyond `step`: what is done again is not to stand there twice."""
        for name in ("metrics.jsonl", "samples.jsonl"):
            rows = read_jsonl(self.path / name)
            kept = [row for row in rows if row.get(self.step_name, 0) <= step]
            if len(kept) < len(rows):
                write_text(self.path / name, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in kept))
        self.history = read_jsonl(self.path / "metrics.jsonl")

    def save(self) -> None:
        """Have the training state saved, where someone has offered to. What hinders it is said, and no more."""
        if self.saver is None or self._closed:
            return
        try:
            self.saver()
        except Exception as error:
            print(f"{self.stage} run: no last checkpoint ({one_line(str(error))})", file=sys.stderr, flush=True)

    def log_samples(self, rows: list[dict[str, Any]], step: int) -> None:
        """Append sample replies, one dict each, to samples.jsonl, and send them to wandb as a table."""
        self._touch()
        rows = [{self.step_name: step} | plain(row) for row in rows]
        for row in rows:
            append_line(self.path / "samples.jsonl", row)
        self.tracker.log_table("samples", rows, step)

    def progress(self, done: int, total: int, text: str = "") -> None:
        """Tell how far the work is: progress.json for others to read, a line now and then when headless.

        done, total: units of work. `eta_s` in the file is the time left at the pace since this work began, in
        seconds; a new `total`, or a `done` that went back, begins new work.
        """
        self._touch()
        clock = time.monotonic()
        last = self.last_progress
        if self._pace is None or last.get("total") != total or done < last.get("done", 0):
            self._pace = (clock, done)
        since, first = self._pace
        eta = (total - done) * (clock - since) / (done - first) if done > first else None
        eta = 0.0 if done >= total else eta
        self.last_progress = {
            "stage": self.stage,
            "done": done,
            "total": total,
            "text": text,
            "eta_s": None if eta is None else round(eta, 1),
            "time": round(time.time(), 3),
        }
        if done >= total or clock - self._progress_written >= PROGRESS_S:
            self._progress_written = clock
            write_json(self.path / "progress.json", self.last_progress)
        if clock - self._progress_printed >= PRINT_S and self._headless:
            self._progress_printed = clock
            print(self.progress_line(), flush=True)

    def progress_line(self) -> str:
        """The last progress in words, such as "ppo 12/40 (30%), rollouts, about 2 min left"."""
        last = self.last_progress
        if not last:
            return self.stage
        share = f" ({last['done'] / last['total']:.0%})" if last["total"] else ""
        text = f", {last['text']}" if last["text"] else ""
        left = f", about {duration(last['eta_s'])} left" if last["eta_s"] else ""
        return f"{self.stage} {last['done']}/{last['total']}{share}{text}{left}"

    def finish(self, results: Mapping[str, Any] | None = None) -> None:
        """Write results.json, say the run is done, and finish tracking.

        results: numbers, texts, None, or dicts of them.
        """
        self._touch()
        results = plain(dict(results or {}))
        write_json(self.path / "results.json", results)
        self.tracker.summary(results)
        self.tracker.lineage()
        self.close("done", "")
        self._say(f"{self.stage} run done in {duration(time.monotonic() - self._began)}: {_shown(self.path)}")

    def fail(self, reason: str) -> None:
        """End the run as failed, for one line of reason. What it has written stays."""
        self.close("failed", reason)
        self._say(f"{self.stage} run failed: {self.status.reason}")

    def stop(self, reason: str) -> None:
        """End the run as stopped, such as by its user, for one line of reason. What it has written stays."""
        self.close("stopped", reason)
        self._say(f"{self.stage} run stopped: {self.status.reason}")

    def pause(self, state: Literal["failed", "stopped"], reason: str) -> None:
        """Note that a cell failed or was interrupted. The next log or progress sets the run running again.

        wandb is told at once, except of an interrupt that somebody watching may take back: then when
        the kernel ends.
        """
        if self.state == "running":
            self._end_badly(state, reason)
        if state == "failed" or self._headless:
            self.tracker.finish(1)

    def close(
        self, state: Literal["done", "failed", "stopped"], reason: str, *, patience_s: float | None = None
    ) -> None:
        """End the run for good. A run that is paused keeps the state and reason it was paused with.

        patience_s: how long wandb may take, in seconds; None lets it finish.
        """
        if self._closed:
            return
        if self.state == "running" and state == "done":
            self._write_status(state=state, reason=one_line(reason), ended=now())  # or it is not done
        self._closed = True
        if self.state == "running":
            self._end_badly(state, reason)
        session.unwatch(self)
        self.tracker.finish(0 if self.state == "done" else 1, patience_s=patience_s)
        if not self.processes.main:
            put_away(self.path)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        if error is not None:
            self.close(*session.describe(error))
        else:
            self.close("stopped", "the block ended before the run was finished")

    def _say(self, line: str) -> None:
        if self.processes.main:
            print(line, flush=True)

    def _touch(self) -> None:
        """Before anything is written: refuse an ended run, wake a paused one, and give a sign of life."""
        if self._closed:
            raise LabError(f"run {_shown(self.path)} has ended ({self.state}); start a new one to go on")
        if self.state != "running":
            self._pace = None  # the pause must not count as work
            self._write_status(state="running", reason="", ended="")
            self.tracker.start()
        elif time.monotonic() - self._heard >= HEARTBEAT_S:
            self._write_status()

    def _end_badly(self, state: Literal["failed", "stopped"], reason: str) -> None:
        """Write how the run ended. Where that cannot be written it is said, lest it hide why the run ended."""
        try:
            self._write_status(state=state, reason=one_line(reason), ended=now())
        except LabError as error:
            self.status = self.status.model_copy(update={"state": state, "reason": one_line(reason)})
            print(f"{self.stage} run {state}: {one_line(reason)}; {error}", file=sys.stderr, flush=True)

    def _write_status(self, **changes: Any) -> None:
        self._heard = time.monotonic()
        seconds = round(self._before + time.monotonic() - self._began, 1)
        status = self.status.model_copy(update={"heartbeat": now(), "seconds": seconds} | peak_memory() | changes)
        write_json(self.path / "status.json", status.model_dump())
        self.status = status


def _directory(run_dir: str | Path, status: Status, seed: int, *, resume: bool) -> Path:
    if resume:
        return reclaim(user_path(run_dir), status)
    return claim(user_path(run_dir), status) if run_dir else new_directory(status, seed)


def _status_of_this_process(stage: str, experiment: str) -> Status:
    process = psutil.Process()
    return Status(
        state="running",
        stage=stage,
        experiment=experiment,
        host=socket.gethostname(),
        pid=process.pid,
        process_start=process.create_time(),
        process_since_boot=since_boot(process),
        started=now(),
        heartbeat=now(),
    )


def _write_config(path: Path, content: dict[str, Any]) -> None:
    """Write config.yaml. Where that fails the run has failed, and its status says so."""
    try:
        write_text(path / "config.yaml", yaml.safe_dump(content, sort_keys=False, allow_unicode=True))
    except LabError as error:
        with contextlib.suppress(LabError):
            mark_ended(path, "failed", str(error))
        raise


def _number(name: str, value: Any) -> float | int:
    if isinstance(value, int):
        return int(value)
    try:
        return float(value)
    except (TypeError, ValueError):
        raise LabError(f"metric '{name}' is {value!r}; a metric is one number") from None


def _shown(path: Path) -> Path:
    try:
        return path.relative_to(Path.cwd())
    except ValueError:
        return path
