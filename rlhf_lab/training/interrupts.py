"""Ctrl-C and SIGTERM wait until a training step is whole."""

import signal
import threading
from contextlib import contextmanager

_HELD = (signal.SIGINT, signal.SIGTERM)


@contextmanager
def interrupts_held():
    """Hold back Ctrl-C and SIGTERM until the block ends, so that weights are never left in the middle of a step."""
    with interrupts_noted([]):
        yield


@contextmanager
def interrupts_noted(held: list[tuple]):
    """The same, and put what was held back into a list, for whoever in the block can stop early."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    previous = {number: signal.signal(number, lambda *received: held.append(received)) for number in _HELD}
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler or signal.SIG_DFL)
    if held:
        number, frame = held[0]
        handler = previous[number]
        handler(number, frame) if callable(handler) else signal.raise_signal(number)
