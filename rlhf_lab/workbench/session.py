"""The process a run lives in: who watches it, and what becomes of its runs when a cell or the process ends.

A cell that fails, Ctrl-C, SIGTERM and a plain exit each leave a true status.json. SIGKILL cannot be caught:
readers find that the process is gone (`read_status`).
"""

import asyncio
import atexit
import os
import signal
import sys
import threading
from typing import TYPE_CHECKING, Any

import psutil

from rlhf_lab.errors import LabError
from rlhf_lab.workbench.records import one_line

if TYPE_CHECKING:
    from rlhf_lab.workbench.runs import Run

BATCH_TOOLS = {"papermill", "jupyter-nbconvert", "jupyter-execute", "rlhf-lab"}  # as commands
BATCH_MODULES = {
    "papermill",
    "nbconvert",
    "rlhf_lab",
    "rlhf_lab.cli",
    "ipykernel_launcher",
}  # after python -m

_open: list["Run"] = []  # runs of this process that have not ended for good
_owner = 0  # the process that installed the hooks: forked children inherit them and must not use them
_previous_sigterm: Any = None


def shell() -> Any:
    """The IPython shell this code runs in, or None."""
    ipython = sys.modules.get("IPython")
    return ipython.get_ipython() if ipython else None


def in_kernel() -> bool:
    """True in a Jupyter kernel, watched or not."""
    return hasattr(shell(), "kernel")


def headless() -> bool:
    """True when nobody watches the output grow: no Jupyter kernel, or a kernel that a batch tool started.

    The environment variable RLHF_LAB_HEADLESS decides when it is set: 1 is headless, 0 is watched.
    """
    forced = os.environ.get("RLHF_LAB_HEADLESS", "")
    if forced:
        return forced != "0"
    if not in_kernel():
        return True
    try:
        words = psutil.Process().parent().cmdline()
    except (psutil.Error, AttributeError):
        return False
    modules = {after for word, after in zip(words, words[1:], strict=False) if word == "-m"}
    commands = {os.path.basename(word) for word in words[:2]}  # the script, or its interpreter and the script
    return bool(commands & BATCH_TOOLS or modules & BATCH_MODULES)


def describe(error: BaseException) -> tuple[str, str]:
    """What an error makes of a run: ("failed" or "stopped", the reason in one line)."""
    if isinstance(error, KeyboardInterrupt | asyncio.CancelledError):
        return "stopped", "interrupted"
    if isinstance(error, SystemExit):
        if error.code in (None, 0):
            return "stopped", "the notebook left before the run was finished"
        return "failed", f"exit with {error.code}"
    name = "" if isinstance(error, LabError) else f"{type(error).__name__}: "
    return "failed", one_line(name + str(error)).rstrip(": ")


def watch(run: "Run") -> None:
    """See to it that `run` gets a true ending."""
    global _owner, _previous_sigterm
    _open.append(run)
    come_first_at_exit()
    if _owner == os.getpid():
        return
    _owner = os.getpid()
    if shell() is not None:
        shell().events.register("post_run_cell", _after_cell)
    if threading.current_thread() is threading.main_thread():
        _previous_sigterm = signal.signal(signal.SIGTERM, _at_sigterm)


def come_first_at_exit() -> None:
    """Hooks run last registered first, and ours must come before wandb's, which would report success."""
    atexit.unregister(_at_exit)
    atexit.register(_at_exit)


def open_runs() -> list["Run"]:
    """The runs of this process that have not ended for good."""
    return list(_open)


def unwatch(run: "Run") -> None:
    """Forget a run that has ended."""
    if run in _open:
        _open.remove(run)


def close_older(stage: str) -> None:
    """End the runs of the same stage that this notebook left open: its cell was run again."""
    if shell() is None:
        return
    for run in [run for run in _open if run.stage == stage]:
        run.close("stopped", "a newer run of this stage was started in the same notebook")


def _after_cell(result: Any) -> None:
    error = result and (result.error_before_exec or result.error_in_exec)
    if error:
        state, reason = describe(error)
        for run in list(_open):
            if state == "stopped":  # a cell that failed may have left a state that would fail again
                run.save()
            run.pause(state, reason)


def _at_exit() -> None:
    if os.getpid() != _owner:
        return
    state, reason = "stopped", "the process ended before the run was finished"
    # an uncaught error leaves itself here; in a notebook it may be an old one, which the cell hook has seen
    error = getattr(sys, "last_value", None) if shell() is None else None
    if error is not None:
        state, reason = describe(error)
    for run in list(_open):
        run.close(state, reason)


def _at_sigterm(signum: int, frame: Any) -> None:
    if os.getpid() == _owner:
        for run in list(_open):
            run.save()
            if lost := run.processes.lost():  # what launched us ends all processes when one has died
                run.close("failed", f"process {lost[0]} of {run.processes.count} died", patience_s=5.0)
            run.close("stopped", "terminated by SIGTERM", patience_s=5.0)
    if _previous_sigterm == signal.SIG_IGN:
        return
    if callable(_previous_sigterm):
        _previous_sigterm(signum, frame)
        return
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    os.kill(os.getpid(), signal.SIGTERM)
