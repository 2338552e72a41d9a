"""The one line that tells how a stage is getting on, redrawn in place on a terminal."""

import io
import json
import shutil
import threading
import time
from pathlib import Path
from typing import TextIO

from rlhf_lab.workbench.notebooks import Position
from rlhf_lab.workbench.report.figures import duration

PLAIN_EVERY = 10.0  # seconds between two lines where the output is no terminal


class ProgressLine:
    """Draws `[2/4] reward_model   training 45/120   0:13 left   (elapsed 0:21)` from progress.json."""

    def __init__(
        self,
        stream: TextIO | None,
        index: int,
        total: int,
        name: str,
        width: int,
        run_dir: Path,
        *,
        board: "Board | None" = None,
    ) -> None:
        """board: where several stages run at once on one terminal. stream: None draws nothing."""
        self.stream, self.run_dir, self.board, self.name = stream or _Nowhere(), run_dir, board, name
        self.head = f"[{index}/{total}] {name.ljust(width)}"
        self.started = time.monotonic()
        self.in_place = self.stream.isatty()
        self._last = -PLAIN_EVERY

    def update(self, position: Position) -> None:
        """Draw the line anew, or where the output is no terminal add one every `PLAIN_EVERY` seconds."""
        now = time.monotonic()
        if not self.in_place and now - self._last < PLAIN_EVERY:
            return
        self._last = now
        if self.board and self.in_place:
            self.board.show(self.name, self._doing(position))
            return
        self._write(f"{self.head}   {self._doing(position)}   (elapsed {duration(now - self.started)})", "")

    def end(self, text: str) -> None:
        """Replace the line by its last state."""
        if self.board and self.in_place:
            self.board.end(self.name, f"{self.head}   {text}")
            return
        self._write(f"{self.head}   {text}", "\n" if self.in_place else "")

    def _doing(self, position: Position) -> str:
        progress = read_progress(self.run_dir, since=position.since)
        if progress:
            return progress
        if not position.cell:
            return position.heading or "starting"
        heading = f"{position.heading[:40]}, " if position.heading else ""
        return f"{heading}cell {position.cell} of {position.cells}"

    def _write(self, line: str, ending: str) -> None:
        if self.in_place:
            line = line[: shutil.get_terminal_size().columns - 1]
            self.stream.write(f"\r{line}\x1b[K{ending}")
        else:
            self.stream.write(f"{line}\n")
        self.stream.flush()


class Board:
    """One line in place for all stages that run at once; above it a line for each that has ended."""

    def __init__(self, stream: TextIO) -> None:
        self.stream = stream
        self._doing: dict[str, str] = {}
        self._lock = threading.Lock()

    def show(self, name: str, doing: str) -> None:
        """What a stage is doing now."""
        with self._lock:
            self._doing[name] = " ".join(doing.split())
            self._draw()

    def end(self, name: str, line: str) -> None:
        """The last line of a stage."""
        with self._lock:
            self._doing.pop(name, None)
            self.stream.write(f"\r{line}\x1b[K\n")
            self._draw()

    def _draw(self) -> None:
        line = " | ".join(f"{name}: {doing}" for name, doing in self._doing.items())
        self.stream.write(f"\r{line[: shutil.get_terminal_size().columns - 1]}\x1b[K")
        self.stream.flush()


class _Nowhere(io.StringIO):
    def write(self, text: str) -> int:
        return len(text)


def read_progress(run_dir: Path, since: float = 0.0) -> str:
    """progress.json in words: "training 45/120   0:13 left"; "" when it is older than `since`."""
    file = run_dir / "progress.json"
    try:
        if file.stat().st_mtime < since - 1.0:  # an earlier cell's: file times may be coarse
            return ""
        progress = json.loads(file.read_text(encoding="utf-8"))
        done, total, eta = progress.get("done"), progress.get("total"), progress.get("eta_s")
        count = f" {done}/{total}" if total else ""
        left = f"   {duration(eta)} left" if eta is not None else ""
        return f"{progress.get('text') or 'working'}{count}{left}"
    except (OSError, ValueError, AttributeError, TypeError):  # not there yet, or just being replaced
        return ""
