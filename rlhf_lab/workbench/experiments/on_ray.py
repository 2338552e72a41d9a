"""Stages on the nodes of a Ray cluster: Ray chooses the node and starts a process there, the rest is as at home.

Every node sees the working directory, the notebooks and the runs under the paths they have here, on a shared file
system: what a stage leaves is read off its run directory, as ever.
"""

import contextlib
import os
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from rlhf_lab.errors import LabError, RunFailed
from rlhf_lab.workbench.experiments.on_node import There
from rlhf_lab.workbench.experiments.places import Order, cores
from rlhf_lab.workbench.notebooks import GRACE, Position
from rlhf_lab.workbench.records import one_line

try:
    import ray
    from ray.exceptions import RayError
except ImportError:
    raise LabError("--on ray needs Ray, which is not installed: pip install -e '.[ray]' -c constraints.txt") from None

CARRIED = ("RLHF_LAB_", "WANDB_", "HF_", "OPENAI_", "OMP_")  # variables that a kernel has there as it has here
CONNECT_S = 5.0  # Ray itself tries for minutes
# No report of usage to Ray's makers; and on a busy machine its own processes take longer than Ray waits for them.
VARIABLES = {"RAY_USAGE_STATS_ENABLED": "0", "RAY_agent_register_timeout_ms": "120000"}
LOCAL = {"num_cpus": cores(), "object_store_memory": 100_000_000, "include_dashboard": False}


class Away:
    """One notebook being executed by Ray: what `Execution` is at home."""

    def __init__(self, order: Order, resources: dict[str, int]) -> None:
        self.order, self.resources = order, resources
        self.node = ""
        self.position = Position(0, 0, time.time(), "waiting for a node")
        self._actor: Any = None
        self._error: LabError | None = None
        self._ended = False

    def start(self) -> None:
        """Hand it to Ray; returns at once."""
        carried = {name: value for name, value in os.environ.items() if name.startswith(CARRIED)}
        self._actor = ray.remote(There).options(max_concurrency=3, **self.resources).remote()
        self._end = self._actor.run.remote(self.order, Path.cwd(), carried)
        self._where = self._actor.where.remote()

    def wait(self, seconds: float) -> bool:
        """Wait for the end for at most `seconds`; True when it has ended."""
        if self._ended:
            return True
        if ray.wait([self._end], timeout=seconds)[0]:
            self._error = self._outcome()
            self._ended = True
            ray.kill(self._actor)  # its cores are free for the next
        elif ray.wait([self._where], timeout=0)[0]:
            with contextlib.suppress(RayError):  # which its end will tell
                self.node, position = ray.get(self._where)
                self.position = position or self.position
            self._where = self._actor.where.remote()
        return self._ended

    def stop(self) -> None:
        """Interrupt it as at home, and wait for the end. One that has not begun is taken back."""
        if self.position.cells:
            self._actor.stop.remote()
            if self.wait(3 * GRACE):
                return
        self.kill()
        self.wait(GRACE)

    def kill(self) -> None:
        """Take its process away at once; the kernel ends by itself then."""
        if self._actor is not None:
            ray.kill(self._actor)

    def raise_for_error(self) -> None:
        """Raise what ended it early, as at home."""
        if self._error is not None:
            raise self._error

    def _outcome(self) -> LabError | None:
        try:
            return ray.get(self._end)
        except RayError as error:
            name, why = self.order.notebook.name, one_line(str(error))
            lost = f"its process on node {self.node} was lost; the same command takes it up again"
            return RunFailed(f"{name}: {lost if self.node else 'no node could run it'} ({why})")


class Cluster:
    """The nodes of Ray."""

    def threads(self, workers: int) -> int:
        """The largest share of which the nodes that are there now hold `workers` at once; at least 1."""
        nodes = [int(node["Resources"].get("CPU", 0)) for node in ray.nodes() if node["Alive"]]
        fits = (n for n in range(max(nodes, default=0), 0, -1) if sum(cores // n for cores in nodes) >= workers)
        return next(fits, 1)

    def execution(self, order: Order, threads: int | None) -> Away:
        """On whichever node has so many cores free, and a GPU where the cluster has some."""
        order = order._replace(notebook=order.notebook.absolute(), output=order.output.absolute())
        return Away(order, {"num_cpus": threads or 1, "num_gpus": int("GPU" in ray.cluster_resources())})


@contextlib.contextmanager
def joined(say: Callable[[str], None]) -> Iterator[Cluster]:
    """The cluster at RAY_ADDRESS; without one a Ray of this machine alone, for as long as the block lasts.

    Errors: `LabError` where the cluster cannot be reached.
    """
    address = os.environ.get("RAY_ADDRESS") or "local"
    _refuse_unreachable(address)
    for name, value in VARIABLES.items():
        os.environ.setdefault(name, value)
    terminated = signal.getsignal(signal.SIGTERM)
    try:
        ray.init(address, log_to_driver=False, logging_level="ERROR", **(LOCAL if address == "local" else {}))
    except Exception as error:  # Ray raises whatever it likes here, `Exception` itself where a start takes too long
        raise LabError(f"--on ray, RAY_ADDRESS={address}: {one_line(str(error))}") from None
    try:
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, terminated)  # Ray's own would leave without stopping the notebooks
        where = "started for this machine alone, as RAY_ADDRESS names no other" if address == "local" else address
        say(f"stages run on Ray ({where}), nodes: {sum(node['Alive'] for node in ray.nodes())}")
        yield Cluster()
    finally:
        ray.shutdown()


def _refuse_unreachable(address: str) -> None:
    if "://" in address:
        todo = "take part by `ray start --address=HOST:PORT --num-cpus=0` here, and set RAY_ADDRESS=auto"
        raise LabError(f"RAY_ADDRESS={address}: Ray's client is not enough; {todo}")
    host, colon, port = address.rpartition(":")
    if not colon:
        return  # auto, local
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=CONNECT_S).close()
    except (OSError, ValueError, OverflowError) as error:
        raise LabError(f"RAY_ADDRESS={address}: no Ray there ({error}); `ray start --head` starts one") from None
