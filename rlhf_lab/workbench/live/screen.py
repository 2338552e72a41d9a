"""What stands in the live view, as plain data for the page, and as lines of text where there is no page."""

import socket
from collections.abc import Sequence
from typing import Any

from rlhf_lab.workbench.experiments.record import shown
from rlhf_lab.workbench.live.alarms import Alarm
from rlhf_lab.workbench.live.follow import Seen
from rlhf_lab.workbench.live.panels import panel_views, step_name
from rlhf_lab.workbench.records import runner_silence, runs_root
from rlhf_lab.workbench.report.figures import duration, number

SAMPLES = 8  # of the newest, on the page
FIGURES = {
    "score": "objective/scores",
    "gold": "gold/mean",
    "KL": "objective/kl",
    "loss": "train/loss",
    "accuracy": "train/accuracy",
}


def page(
    seen: Seen, alarms: Sequence[Alarm], *, over: bool = False, stopping: bool = False, said: str = ""
) -> dict[str, Any]:
    """Everything the page shows. over: nothing more can come. said: how the last try to stop went wrong."""
    step = step_name(seen.rows)
    return {
        "run": name_of(seen),
        "state": seen.state,
        "over": over,
        "doing": doing(seen) + (", another stage may follow" if seen.state == "done" and not over else ""),
        "note": " ".join(filter(None, [_reason(seen), seen.problem, said])),
        "stop": _stop(seen, stopping=stopping),
        "step": step,
        "figures": [[name, value] for name, value in figures(seen).items()],
        "alarms": [_alarm(alarm, step) for alarm in alarms],
        "panels": panel_views(seen.rows, seen.settings),
        "samples": _samples(seen),
    }


def line(seen: Seen) -> str:
    """How it stands, in one line."""
    told = ", ".join(f"{name} {value}" for name, value in figures(seen).items())
    return f"{name_of(seen)}: {seen.state}" + "".join(f", {part}" for part in (doing(seen), told) if part)


def alarm_line(alarm: Alarm) -> str:
    """An alarm with what to try."""
    return f"ALARM {alarm.words} Try: {alarm.advice}"


def name_of(seen: Seen) -> str:
    """The run's path below the runs root, or as one would type it from here."""
    path = seen.path.absolute()
    return str(path.relative_to(runs_root())) if path.is_relative_to(runs_root()) else shown(path)


def figures(seen: Seen) -> dict[str, str]:
    """The newest value of what one looks at first."""
    found = {}
    for name, metric in FIGURES.items():
        value = next((row[metric] for row in reversed(seen.rows) if row.get(metric) is not None), None)
        if value is not None:
            found[name] = number(value)
    return found


def doing(seen: Seen) -> str:
    """How far it is: "update 12 of 60, about 1:20 left"."""
    done, total, left = (seen.progress.get(name) for name in ("done", "total", "eta_s"))
    if not total:
        return "" if seen.ended else "no sign of progress yet"
    told = f"{done} of {total}"
    return told + (f", about {duration(left)} left" if left and seen.state == "running" else "")


def _reason(seen: Seen) -> str:
    reason = seen.status.reason if seen.status else ""
    return f"{reason[:1].upper()}{reason[1:]}." if reason and seen.state != "died" else ""  # that is an alarm


def _stop(seen: Seen, *, stopping: bool) -> dict[str, Any]:
    """The button: what it says, and whether it can be pressed; beside it a note."""
    if seen.ended or seen.status is None:
        return {"label": f"The run is {seen.state}", "able": False, "note": ""}
    if seen.state == "queued":
        return {"label": "Stop the run", "able": False, "note": "It has not begun."}
    if seen.status.host != socket.gethostname() and runner_silence(seen.path, seen.status) is None:
        note = f"It runs on {seen.status.host}. Stop it there: rlhf-lab stop {name_of(seen)}"
        return {"label": "Stop the run", "able": False, "note": note}
    if stopping:
        return {"label": "Stopping", "able": False, "note": "It saves a checkpoint first."}
    return {"label": "Stop the run", "able": True, "note": "It saves a checkpoint, and can be resumed."}


def _alarm(alarm: Alarm, step: str) -> dict[str, str]:
    since = f"Since {step} {alarm.since:,.0f}." if alarm.since is not None else ""
    return {"words": alarm.words, "advice": alarm.advice, "since": since}


def _samples(seen: Seen) -> dict[str, Any]:
    rows = seen.samples[-SAMPLES:]
    columns = list(dict.fromkeys(name for row in rows for name in row))
    return {"columns": columns, "rows": [[_cell(row.get(name)) for name in columns] for row in rows]}


def _cell(value: Any) -> str:
    if value is None:
        return ""
    return value if isinstance(value, str) else number(value) if isinstance(value, int | float) else str(value)
