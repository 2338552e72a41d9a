"""Stay with a notebook that is being executed, wherever that is, until its end."""

import contextlib
import os
import threading
import time
from collections.abc import Callable
from pathlib import Path

from rlhf_lab.workbench.experiments.places import Underway
from rlhf_lab.workbench.notebooks import Position
from rlhf_lab.workbench.records import BUSY, STOP

SIGN_S = 5.0  # between two signs of life, for readers on other hosts


def watch(execution: Underway, run_dir: Path, tick: Callable[[Position], None], stopping: threading.Event) -> None:
    """Start it, tick four times a second, and stop it where that is asked for by a file in the run's directory.

    Errors: what ended it early; `KeyboardInterrupt` when all are `stopping`, once it has ended.
    """
    asked = run_dir / STOP
    asked.unlink(missing_ok=True)  # of another time
    told = 0.0
    execution.start()
    try:
        while not execution.wait(0.25):
            tick(execution.position)
            if time.monotonic() - told > SIGN_S:
                told = time.monotonic()
                with contextlib.suppress(OSError):  # the end will tell
                    os.utime(run_dir / BUSY)
            if stopping.is_set():
                raise KeyboardInterrupt
            if asked.exists():
                execution.stop()
    except BaseException:  # none may leave a kernel behind
        execution.stop()
        raise
    finally:
        asked.unlink(missing_ok=True)
    execution.raise_for_error()
