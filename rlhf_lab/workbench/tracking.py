"""Tracking with Weights & Biases. Where it is absent or broken a run goes on without it, and says so once.

wandb chooses its mode as it always does: the environment variable WANDB_MODE, then online when there is a key
or a login. Without those the lab goes offline. An empty label leaves the choice to the variables
WANDB_PROJECT, WANDB_ENTITY, WANDB_RUN_GROUP, WANDB_JOB_TYPE, WANDB_TAGS and WANDB_NOTES, and then to the lab.
"""

import contextlib
import io
import json
import netrc
import os
import re
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlparse

from rlhf_lab.config import Config
from rlhf_lab.errors import LabError
from rlhf_lab.workbench import lineage
from rlhf_lab.workbench.records import Status, one_line
from rlhf_lab.workbench.secrets import redact
from rlhf_lab.workbench.session import shell
from rlhf_lab.workbench.writing import write_text

INIT_S = 30.0  # a server that does not answer in this time is done without
FINISH_S = 120.0  # an upload may hold up the end of a run for so long; `wandb sync` sends what is missing
KEY = re.compile(r"\b(?:[0-9a-f]{40}|wandb_v\d\w+)\b", re.IGNORECASE)

_said: set[str] = set()
_open = 0  # trackers with a wandb run, in this process


class TrackingConfig(Config):
    """Where a run is tracked, and under which labels."""

    project: str = "rlhf_lab"  # in wandb; left as it is, WANDB_PROJECT comes first if set
    entity: str = ""  # user or team; "" is your default one
    group: str = ""  # runs that belong together; "" is the experiment
    job_type: str = ""  # "" is the stage
    tags: list[str] = []  # [] is the commit and, in a sweep, the point
    notes: str = ""  # about the run, free text; "" is WANDB_NOTES, if it is set
    mode: Literal["", "online", "offline", "disabled"] = ""  # "": WANDB_MODE, or online with a key or login, or offline


class Tracker:
    """One run in wandb. Whatever wandb does, no method raises."""

    def __init__(self, labels: TrackingConfig, *, path: Path, status: Status, config: dict[str, Any], step_name: str):
        self.url = ""  # of the run on the server, when online
        self._labels, self._path, self._status = labels, path, status
        self._config, self._step_name = config, step_name
        self._run: Any = None
        self._id: str | None = None
        self._broken = False

    def take_up(self) -> None:
        """Go on under the id that an earlier part of this run had, if it had one."""
        with contextlib.suppress(OSError):
            self._id = (self._path / ".wandb-id").read_text(encoding="utf-8").strip() or None

    def start(self) -> None:
        """Start tracking, or take it up again under the same id after `finish`."""
        global _open
        if self._run is None and not self._broken and _mode(self._labels) != "disabled":
            self._guard("start", self._start)
            _open += self._run is not None

    def log(self, metrics: dict[str, float]) -> None:
        """Send one line of metrics. The run's own step is among them."""
        if self._run is not None:
            self._guard("log", lambda: self._run.log(metrics))

    def log_table(self, name: str, rows: list[dict[str, Any]], step: int) -> None:
        """Send rows as a table."""
        if self._run is not None and rows:
            self._guard("log a table", lambda: self._send_table(name, rows, step))

    def summary(self, values: dict[str, Any]) -> None:
        """Set the run's final figures."""
        if self._run is not None:
            self._guard("set the summary", lambda: self._run.summary.update(values))

    def lineage(self) -> None:
        """Tell what the run took and what it has made. Call it when all is made."""

        def send() -> None:
            with _quietly(), _staging(self._path / "wandb"):
                lineage.send(self._run, lineage.taken_by(self._path, self._config), lineage.made_by(self._path))

        if self._run is not None:
            self._guard("log the lineage", send, vital=False)

    def finish(self, exit_code: int = 0, *, patience_s: float | None = None) -> None:
        """End the run, as failed unless `exit_code` is 0. patience_s: wait no longer, in seconds."""
        global _open
        if self._run is None:
            return
        run, self._run = self._run, None
        _open -= 1

        def end() -> None:
            self._guard("finish", lambda: run.finish(exit_code=exit_code))

        if patience_s is None:
            end()
        else:  # the caller may be a signal handler that interrupted a holder of the lock wandb needs
            thread = threading.Thread(target=end, daemon=True)
            thread.start()
            thread.join(patience_s)

    def _guard(self, what: str, action: Callable[[], Any], *, vital: bool = True) -> None:
        try:
            action()
        except Exception as error:
            print(f"wandb could not {what} ({_safe(error)}); the run goes on without it", flush=True)
            if vital:
                self._run, self._broken = None, True

    def _start(self) -> None:
        mode = _mode(self._labels)
        try:
            self._run = self._init(mode)
        except Exception as error:
            if mode == "offline":
                raise
            print(f"wandb could not start online ({_safe(error)}); it goes on offline", flush=True)
            self._run = self._init("offline")
        self._id = self._run.id
        with contextlib.suppress(LabError):  # a run that cannot be resumed in wandb is a run all the same
            write_text(self._path / ".wandb-id", self._id + "\n")
        self._run.define_metric(self._step_name)
        self._run.define_metric("*", step_metric=self._step_name)
        if self._run.offline:
            _say_once("offline", f"wandb: offline, in {self._path / 'wandb'}; `wandb sync` sends it later")
        else:
            self.url = self._run.url or ""
            _say_once(self.url, f"wandb: {self.url}")

    def _init(self, mode: str) -> Any:
        import wandb

        wanted = {
            "silent": True,
            "console": "off",
            "save_code": False,
            "disable_job_creation": True,
            "init_timeout": INIT_S,
            "finish_timeout": FINISH_S,
        }
        settings = {name: value for name, value in wanted.items() if name in wandb.Settings.model_fields}
        labels = self._labels
        own_tags = (
            [] if os.environ.get("WANDB_TAGS") else lineage.tags(self._path, self._config.get("run", {}).get("git"))
        )
        resume = {"id": self._id, "resume": "allow"} if self._id else {}
        with _quietly():
            return wandb.init(
                dir=str(self._path),
                mode=mode,
                name=f"{self._status.stage}/{self._path.name}",
                config=self._config,
                project=_label(labels.project, "WANDB_PROJECT", TrackingConfig().project),
                entity=labels.entity or None,
                group=_label(labels.group or self._status.experiment, "WANDB_RUN_GROUP", self._status.experiment),
                job_type=_label(labels.job_type or self._status.stage, "WANDB_JOB_TYPE", self._status.stage),
                tags=labels.tags or own_tags or None,
                notes=labels.notes or None,
                # the first run is also `wandb.run`; one inside another must not end the outer one
                reinit="create_new" if _open else "default",
                settings=wandb.Settings(**settings),
                **resume,
            )

    def _send_table(self, name: str, rows: list[dict[str, Any]], step: int) -> None:
        import wandb

        columns = list(dict.fromkeys(key for row in rows for key in row))
        cells = [[_cell(row.get(column)) for column in columns] for row in rows]
        with _staging(self._path / "wandb"):
            self._run.log({name: wandb.Table(columns=columns, data=cells), self._step_name: step})


def _mode(labels: TrackingConfig) -> str:
    """online, offline or disabled. A missing or broken wandb is found out later."""
    mode = labels.mode or os.environ.get("WANDB_MODE", "")
    if mode:
        return {"dryrun": "offline", "run": "online"}.get(mode, mode)
    with contextlib.suppress(Exception), _quietly():
        import wandb

        settings = wandb.setup().settings
        if settings.mode != "online":  # by `wandb offline` or `wandb disabled`
            return settings.mode
        if settings.api_key or os.environ.get("WANDB_IDENTITY_TOKEN_FILE") or _has_login(settings):
            return "online"
    return "offline"


def _has_login(settings: Any) -> bool:
    """True when `wandb login` has left a key in a .netrc file. `wandb.login` itself would ask the server."""
    hosts = {urlparse(settings.base_url).netloc}
    if settings.base_url == type(settings).model_fields["base_url"].default:
        hosts.add("api.wandb.ai")  # logins made under wandb's first address serve its later ones
    for place in (os.environ.get("NETRC"), "~/.netrc", "~/_netrc"):
        with contextlib.suppress(OSError, netrc.NetrcParseError):
            if place and hosts & netrc.netrc(os.path.expanduser(place)).hosts.keys():
                return True
    return False


def _label(value: str, variable: str, default: str) -> str | None:
    """The label; None leaves it to wandb's variable, where the user chose none here but did there."""
    return None if value == default and os.environ.get(variable) else value


def _cell(value: Any) -> Any:
    return value if value is None or isinstance(value, str | int | float) else json.dumps(value, ensure_ascii=False)


def _safe(error: Exception) -> str:
    """An error in one line, with whatever looks like a key taken out."""
    text = str(error) or type(error).__name__
    if secret := os.environ.get("WANDB_API_KEY"):
        text = text.replace(secret, "<key>")
    return one_line(redact(KEY.sub("<key>", text)), 200)


def _say_once(topic: str, line: str) -> None:
    if topic not in _said:
        _said.add(topic)
        print(line, flush=True)


@contextlib.contextmanager
def _quietly() -> Iterator[None]:
    """Keep wandb's chatter off the screen, and its hands off the notebook's display.

    In a notebook wandb replaces the function that publishes output by one that also keeps a copy of each in
    memory, which live plots would fill without end. It puts the original back when the run finishes.
    """
    publisher = getattr(shell(), "display_pub", None)
    publish = publisher and publisher.publish
    try:
        with contextlib.redirect_stderr(io.StringIO()):
            yield
    finally:
        if publisher is not None:
            publisher.publish = publish


@contextlib.contextmanager
def _staging(path: Path) -> Iterator[None]:
    """Tables are copied somewhere until they are sent: into the run's own directory, not the user's home."""
    name = "WANDB_DATA_DIR"
    if name in os.environ:
        yield
        return
    os.environ[name] = str(path)
    try:
        yield
    finally:
        del os.environ[name]
