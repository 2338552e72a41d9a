"""Where the stages of an experiment are executed: on this machine, or on the nodes of a Ray cluster.

The plan, the locks, skipping, resuming and the record stay with the runner, wherever the notebooks are executed.
"""

import contextlib
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from rlhf_lab.errors import LabError
from rlhf_lab.workbench.notebooks import Execution, Position


class Order(NamedTuple):
    """What is to be executed, as `Execution` takes it."""

    notebook: Path
    output: Path
    parameters: dict[str, Any]
    environment: dict[str, str | None]


class Underway(Protocol):
    """One notebook being executed somewhere: what the runner needs of it. `Execution` says what each does."""

    position: Position

    def start(self) -> None: ...

    def wait(self, seconds: float) -> bool: ...

    def stop(self) -> None: ...

    def kill(self) -> None: ...

    def raise_for_error(self) -> None: ...


class Place(Protocol):
    """What executes notebooks for the runner."""

    def threads(self, workers: int) -> int | None:
        """The share of each of `workers` stages side by side; None: a stage takes what it likes."""

    def execution(self, order: Order, threads: int | None) -> Underway:
        """An execution that has not started. threads: its share."""


class Here:
    """This machine, in local processes."""

    def threads(self, workers: int) -> int | None:
        """The cores shared out: two stages with all threads each are ten times slower than one."""
        return max(1, cores() // workers) if workers > 1 else None

    def execution(self, order: Order, threads: int | None) -> Underway:
        """Executed by papermill in a thread, its kernel a process of its own."""
        return Execution(*order)


@contextlib.contextmanager
def opened(on: str, say: Callable[[str], None]) -> Iterator[Place]:
    """The place of that name. say: is told what was joined or started.

    Errors: `LabError` for a name that is none, or a cluster that cannot be reached.
    """
    if on == "local":
        yield Here()
    elif on == "ray":
        from rlhf_lab.workbench.experiments.on_ray import joined

        with joined(say) as cluster:
            yield cluster
    else:
        raise LabError(f"--on {on}: stages run on 'local', this machine, or on 'ray'")


def cores() -> int:
    """The cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
