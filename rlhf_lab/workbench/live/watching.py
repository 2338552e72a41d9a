"""Watch a run until it ends: in a notebook beside other work, headless and in a terminal line by line."""

import asyncio
import contextlib
import threading
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import pandas as pd

from rlhf_lab.errors import LabError
from rlhf_lab.workbench.experiments.keeping import stop_run
from rlhf_lab.workbench.live import screen
from rlhf_lab.workbench.live.alarms import Alarm, find_alarms
from rlhf_lab.workbench.live.follow import Follower, Seen
from rlhf_lab.workbench.live.panels import metric_names, step_name
from rlhf_lab.workbench.live.start import Source
from rlhf_lab.workbench.records import metrics_frame
from rlhf_lab.workbench.session import headless
from rlhf_lab.workbench.writing import write_json

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from rlhf_lab.workbench.runs import Run

LOOK_S = 1.0  # between two looks at the files
BEAT_S = 5.0  # between two signs of life to a page on which nothing changes
LINE_S = 10.0  # between two lines where there is no page
HIDDEN = ("experiment", "run_dir", "tracking", "resume")  # of the settings: what does not move the curves


class Watch:
    """A source, what was last seen of its run, and what rings. Made by `watch`."""

    def __init__(self, source: Source):
        self.source = source
        self._follower = Follower(source.path())
        self._known: tuple[Any, ...] = ()
        self._stopping: threading.Thread | None = None
        self._said = ""
        self._task: asyncio.Task | None = None
        self._widget: Any = None
        self._at_end: list[Callable[[], object]] = []
        self.look()

    def look(self) -> None:
        """See what is new. `over` then tells whether anything more can come."""
        over = self.source.over()  # before the files: what it did last is in them
        with contextlib.suppress(LabError):  # its folder was deleted: the follower tells
            if (path := self.source.path()) != self._follower.path:
                self._follower = Follower(path)
        self.seen: Seen = self._follower.look()
        known = (self.seen.path, self.seen.version, self.seen.state, int(time.time() / BEAT_S))
        if known != self._known:  # of a long run this takes longer than reading what is new
            self._known = known
            status, settings = self.seen.status, self.seen.settings
            self.alarms: list[Alarm] = find_alarms(self.seen.rows, settings, status=status, now=time.time())
        self.over = over and self.seen.ended

    def page(self) -> dict[str, Any]:
        """What the page shows."""
        stopping = self._stopping is not None and self._stopping.is_alive()
        return screen.page(self.seen, self.alarms, over=self.over, stopping=stopping, said=self._said)

    def stop(self, run: str = "") -> None:
        """Have the run saved and stopped. Returns at once; `page` tells how it goes.

        run: the name on the page where the button was pressed; by now another may be followed, which is left alone.
        """
        if run not in ("", screen.name_of(self.seen)) or (self._stopping and self._stopping.is_alive()):
            return
        self._said = ""
        self._stopping = threading.Thread(target=self._stop, args=(str(self.seen.path),), daemon=True)
        self._stopping.start()

    def _stop(self, path: str) -> None:
        try:
            stop_run(path)
        except LabError as error:
            self._said = f"{error}."

    def follow(self, seconds: float = 0.0, *, say: Callable[[str], object] = print) -> None:
        """Look until it is over, for at most `seconds` unless that is 0, with a line now and then."""
        end = time.monotonic() + (seconds or float("inf"))
        said, told, next_line = "", set(), 0.0
        while True:
            self.look()
            for alarm in self.alarms:
                if alarm.metric not in told:
                    say(screen.alarm_line(alarm))
            told = {alarm.metric for alarm in self.alarms}
            done = self.over or time.monotonic() >= end
            if (done or time.monotonic() >= next_line) and (text := screen.line(self.seen)) != said:
                say(text)
                said, next_line = text, time.monotonic() + LINE_S
            if done:
                break
            time.sleep(LOOK_S)
        for text in filter(None, (self.seen.problem, self.seen.status and self.seen.status.reason)):
            say(text)

    # --- in a notebook

    def _ipython_display_(self) -> None:
        """Show the page, and look on. The cell run again shows it again."""
        if headless():
            return
        from IPython.display import display

        from rlhf_lab.workbench.live.widget import LiveWidget

        self._widget = self._widget or LiveWidget(self)
        self._widget.show()
        display(self._widget)
        if self._task is None or self._task.done():
            self._task = asyncio.get_running_loop().create_task(self._look_on())

    async def _look_on(self) -> None:
        beat = 0.0
        while True:
            self.look()
            if self._widget.show() or time.monotonic() - beat > BEAT_S:
                self._widget.beat += 1
                beat = time.monotonic()
            if self.over:
                break
            await asyncio.sleep(LOOK_S)
        while self._at_end:
            self._at_end.pop()()

    def finish(self, run: "Run") -> None:
        """Finish the watching run with the last figures: now when nobody watches, else once nothing more can come."""
        if headless() or self.over:
            self._finish(run)
        else:
            self._at_end.append(lambda: self._finish(run))

    def _finish(self, run: "Run") -> None:
        write_json(run.file("alarms.json"), [alarm._asdict() for alarm in self.alarms])
        run.finish(self.results())

    # --- what was seen

    def results(self) -> dict[str, float]:
        """The last figures, and how many alarms rang at the end."""
        rows = metrics_frame(self.seen.rows)
        last = {name: rows[metric].dropna() for name, metric in screen.FIGURES.items() if metric in rows}
        found = {name.lower(): float(values.iloc[-1]) for name, values in last.items() if len(values)}
        return {"points": len(rows), "alarms": len(self.alarms)} | found

    def figure(self) -> "Figure | str":
        """The curves up to now."""
        names = metric_names(self.seen.rows)
        if not names:
            return "nothing was logged yet"
        from rlhf_lab.workbench.curves import curves  # here, because the command line starts without it

        return curves(metrics_frame(self.seen.rows), names, x=step_name(self.seen.rows))

    def alarm_table(self) -> pd.DataFrame | str:
        """What rings now, and what to try."""
        if not self.alarms:
            return "no alarm"
        rows = [{"alarm": alarm.words, "try": alarm.advice, "since": alarm.since} for alarm in self.alarms]
        return pd.DataFrame(rows)

    def samples(self, n: int = screen.SAMPLES) -> pd.DataFrame | str:
        """The newest sample replies."""
        return pd.DataFrame(self.seen.samples[-n:]) if self.seen.samples else "no samples were written yet"


def watch(source: Source, *, follow_s: float = 0.0) -> Watch:
    """Watch what `choose` found. To be shown by the last line of a cell; when nobody watches it returns at the end.

    follow_s: when nobody watches, look on for so many seconds at most; 0 = until it has ended.
    """
    found = Watch(source)
    if headless():
        found.follow(follow_s)
    return found


def settings_table(source: Source) -> pd.DataFrame | str:
    """The settings of the run that is followed now; those of an own notebook may not be known."""
    settings = Follower(source.path()).look().settings
    if not settings:
        return "its settings are not written yet"
    shown = {name: str(value) for name, value in settings.items() if name not in HIDDEN}
    return pd.DataFrame({"setting": shown.keys(), "value": shown.values()})
