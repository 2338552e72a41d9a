"""What happens on a node of a cluster: it is looked at first, then the notebook is executed as it is at home."""

import os
import signal
import socket
from pathlib import Path

import rlhf_lab
from rlhf_lab.errors import LabError
from rlhf_lab.workbench.experiments.fingerprint import code_cells, package_source, read_made_from, versions
from rlhf_lab.workbench.experiments.places import Order
from rlhf_lab.workbench.notebooks import Execution, Position


class There:
    """Executes one notebook, in a process of its own."""

    def __init__(self) -> None:
        self.execution: Execution | None = None

    def run(self, order: Order, folder: Path, carried: dict[str, str]) -> LabError | None:
        """Execute it to its end in that folder. Returns what ended it early."""
        os.environ.update(carried)  # here and not for the kernel alone: what is a key is taken out of outputs by these
        try:
            refuse_another(order, folder)
            execution = Execution(*order)
            # Ray blocks Ctrl-C in its processes, and a kernel that inherits this cannot be interrupted.
            blocked = signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
            execution.start()
            signal.pthread_sigmask(signal.SIG_SETMASK, blocked)
            self.execution = execution
            while not execution.wait(60.0):
                pass
            execution.raise_for_error()
        except LabError as error:
            return error
        return None

    def where(self) -> tuple[str, Position | None]:
        """The node, and where the execution is; None before it began."""
        return socket.gethostname(), self.execution and self.execution.position

    def stop(self) -> None:
        """Interrupt it, so that it saves a checkpoint."""
        self.execution.stop()


def refuse_another(order: Order, folder: Path) -> None:
    """Go to the folder. Errors: `LabError` naming the node where something is not there, or not the same."""
    node, shared = f"node {socket.gethostname()}", "it must lie on a file system that all nodes share"
    try:
        os.chdir(folder)
    except OSError:
        raise LabError(f"{node} does not see the working directory {folder}; {shared}") from None
    made = read_made_from(order.output.parent)
    if made is None:
        raise LabError(f"{node} does not see the run's directory {order.output.parent}; {shared}")
    if not order.notebook.is_file() or code_cells(order.notebook) != made.code:
        raise LabError(f"{node} does not see the same notebook {order.notebook}; {shared}")
    if package_source() != made.package:
        source = f"another source of rlhf_lab ({Path(rlhf_lab.__file__).parent})"
        raise LabError(f"{node} has {source}; install the same, or start again if it was edited while the stage waited")
    for name, version in made.versions.items():
        if versions()[name] != version:
            raise LabError(f"{node} has {name} {versions()[name]}, not {version}; install the same")
