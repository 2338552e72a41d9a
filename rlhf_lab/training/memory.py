"""Memory that was freed goes back to the system."""

import ctypes
import time
from collections.abc import Callable
from functools import cache

EVERY_S = 5.0  # between two calls, of which each takes up to a tenth of a second

_called = 0.0


def give_back() -> None:
    """Let the C library return the free pages of its heap, if it has not for five seconds; glibc alone can.

    Batches of many shapes leave holes that no later tensor fits: pretraining on texts of all lengths grew by a gigabyte
    in 30 steps, and by a fifth of that with this.
    """
    global _called
    now = time.monotonic()
    if now - _called >= EVERY_S and (trim := _trim()) is not None:
        trim(0)
        _called = time.monotonic()


@cache
def _trim() -> Callable[[int], int] | None:
    try:
        return ctypes.CDLL(None).malloc_trim
    except (AttributeError, OSError, TypeError):  # musl, macOS, Windows
        return None
