"""Several processes that train one model.

What is small is computed alike by every process: the order of the data, random numbers, advantages, controllers. Only
the passes through the models are shared out: each process takes its part of the rows, weighted as a part of the whole,
and gradients and figures are summed. So a minibatch of one process and the same one on four give the same step.

Left out on purpose: DistributedDataParallel. Its forward would hide a critic's own methods, and it takes the mean over
processes of means over their tokens, which is no mean over tokens. Sharded weights (FSDP2) are in sharding.py.
"""

import atexit
import datetime
import os
import socket
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any, Self, TypeVar

import torch

from rlhf_lab.errors import LabError, RunFailed
from rlhf_lab.models.device import named
from rlhf_lab.training.interrupts import interrupts_noted
from rlhf_lab.training.memory import give_back

T = TypeVar("T")
BUCKET = 16_000_000  # gradients that are summed in one message


def launched_processes() -> int:
    """How many processes torchrun, `accelerate launch` or `notebook_launcher` started this one among; 1 without."""
    return int(os.environ.get("WORLD_SIZE") or 1)


def launched(timeout_s: float = 300.0):
    """The `Accelerator` of a process that was launched among several; None in one that was not.

    timeout_s: how long a process waits for the others; one that was killed is noticed at once.
    """
    if launched_processes() == 1:
        if os.environ.get("ACCELERATE_USE_CPU", "").lower() == "true":  # it does not tell how many were asked for
            print(
                "accelerate launch --cpu starts one process; for several use torchrun, or accelerate launch --multi_gpu"
            )
        return None
    from accelerate import Accelerator
    from accelerate.utils import InitProcessGroupKwargs

    # accelerate launch sets it: all processes but the first would load models without weights
    os.environ["FSDP_CPU_RAM_EFFICIENT_LOADING"] = "false"
    patience = datetime.timedelta(seconds=float(os.environ.get("RLHF_LAB_TIMEOUT_S") or timeout_s))
    on_cpu = named() == "cpu"  # also where there is a card: models are on the CPU then
    backend = {"backend": "gloo"} if on_cpu else {}
    accelerator = Accelerator(cpu=on_cpu, kwargs_handlers=[InitProcessGroupKwargs(timeout=patience, **backend)])
    atexit.register(_leave)
    return accelerator


def _leave() -> None:
    """A process group that is still there when Python ends aborts it."""
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


def batch_of_one(batch_size: int, doing: str) -> int:
    """How many rows of a batch each process takes, for trainers that multiply them by the processes.

    Errors: `LabError` where they do not go evenly.
    """
    count = launched_processes()
    if batch_size % count:
        raise LabError(f"{doing}: batch_size {batch_size} does not go evenly into {count} processes; change it")
    return batch_size // count


class Processes:
    """This process among those that train together. Without an accelerator it is alone, and nothing is sent."""

    def __init__(self, accelerator=None, doing: str = "training"):
        self.accelerator, self.doing = accelerator, doing
        self.count: int = accelerator.num_processes if accelerator is not None else 1
        self.rank: int = accelerator.process_index if accelerator is not None else 0
        self.sharded = self.count > 1 and _asks_for_shards(accelerator)
        self.pids = self.gather((socket.gethostname(), os.getpid())) if self.count > 1 else []

    @classmethod
    def of(cls, accelerator, doing: str) -> Self:
        """The processes of accelerate's `Accelerator`; None is one process. doing: what an error says has failed.

        Errors: `LabError` where a launcher started more processes than the accelerator has: each would train alone.
        """
        processes, launched = cls(accelerator, doing), launched_processes()
        if processes.count < launched:
            have = "no accelerator was given" if accelerator is None else f"the accelerator has {processes.count}"
            raise LabError(f"{doing}: {launched} processes were launched, but {have}; give accelerator=launched()")
        return processes

    @property
    def main(self) -> bool:
        """Whether this is the one that writes files."""
        return self.rank == 0

    def share(self, rows: Any) -> Any:
        """This process's rows of a tensor or list (N, ...), in order: the first N/count, the next, and so on."""
        start, end = (len(rows) * number // self.count for number in (self.rank, self.rank + 1))
        return rows if self.count == 1 else rows[start:end]

    def gather(self, mine: T) -> list[T]:
        """What every process gives, in their order. Tensors must be on the CPU."""
        if self.count == 1:
            return [mine]
        from accelerate.utils import gather_object

        return gather_object([mine])

    def together(self, work: Callable[[], T]) -> list[T]:
        """The results of every process's work, in their order. Errors: the first `LabError` of any, in all of them."""
        if self.count == 1:
            return [work()]
        done: T | None = None
        error: LabError | None = None
        try:
            done = work()
        except LabError as found:
            error = found
        everyone = self.gather((done, error and (type(error) is RunFailed, str(error))))
        for _, found in everyone:
            if found is not None:
                raise error or (RunFailed if found[0] else LabError)(found[1])
        return [result for result, _ in everyone]

    def sum(self, figures: dict[str, float]) -> dict[str, float]:
        """Each figure summed over the processes, the same bits in all of them."""
        if self.count == 1:
            return figures
        total = self._sum(torch.tensor(list(figures.values()), dtype=torch.float64))
        return dict(zip(figures, total.tolist(), strict=True))

    def everyone(self, number: int) -> int:
        """The sum of the processes' numbers."""
        return int(self.sum({"": number})[""])

    def backward(self, loss: torch.Tensor) -> None:
        """Add the gradient of this process's part of the loss, which is a part of a sum."""
        if self.sharded:
            loss = loss * self.count  # FSDP takes the mean over processes
        if loss.requires_grad:
            loss.backward()
        give_back()

    def sum_gradients(self, parameters: Iterable[torch.nn.Parameter]) -> None:
        """Sum the gradients over the processes, where each stands. Shards have been summed in the backward pass."""
        if self.count == 1 or self.sharded:
            return
        parameters = list(parameters)
        # An expert that no token of ours went to has no gradient here, and may have one elsewhere.
        used = self._sum(torch.tensor([float(p.grad is not None) for p in parameters]))
        gradients = []
        for parameter, processes in zip(parameters, used.tolist(), strict=True):
            if processes and parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
            if processes:
                gradients.append(parameter.grad)
        for bucket in _buckets(gradients):
            flat = self._sum(torch.cat([gradient.flatten() for gradient in bucket]))
            for gradient, part in zip(bucket, flat.split([g.numel() for g in bucket]), strict=True):
                gradient.copy_(part.view_as(gradient))

    def agree_on_random_numbers(self) -> None:
        """Set torch's stream to the main process's: a reward may have drawn from it, here more often than there."""
        if self.count > 1:
            torch.set_rng_state(self.gather(torch.get_rng_state() if self.main else None)[0])

    @contextmanager
    def step(self) -> Iterator[None]:
        """A block that the processes go through together; where there is one process, nothing but the block.

        An interrupt of any waits for its end, and then stops them all. Errors: `RunFailed` where one died or hangs.
        """
        if self.count == 1:
            yield
            return
        held: list[tuple] = []
        try:
            with interrupts_noted(held):
                yield
                told = any(self.gather(bool(held)))
        except RuntimeError as error:
            if lost := lost_connection(error, self.doing, self.count):
                raise lost from error
            raise
        if told:  # another process: an interrupt of our own has been raised by now
            raise KeyboardInterrupt

    def lost(self) -> list[int]:
        """The processes of this machine that are gone."""
        here = socket.gethostname()
        return [rank for rank, (host, pid) in enumerate(self.pids) if host == here and not _alive(pid)]

    def _sum(self, tensor: torch.Tensor) -> torch.Tensor:
        device = tensor.device
        return self.accelerator.reduce(tensor.to(self.accelerator.device), "sum").to(device)


ALONE = Processes()


def lost_connection(error: RuntimeError, doing: str, count: int) -> RunFailed | None:
    """The one line for an error that came of another process's death; None for any other error."""
    reason = (str(error).splitlines() or [""])[0]
    signs = ("gloo", "nccl", "connection", "timed out", "timeout")
    if not isinstance(error, torch.distributed.DistError) and not any(sign in reason.lower() for sign in signs):
        return None
    reason = reason.split(".cc:", 1)[-1].split("] ", 1)[-1].split(". ")[0]  # where in gloo's source is no help
    return RunFailed(
        f"{doing}: one of the {count} processes died or hangs ({reason[:100]}); "
        "the last checkpoint resumes, on as many processes or on one"
    )


def _asks_for_shards(accelerator) -> bool:
    """Whether the accelerator was made for FSDP2. On CPUs accelerate forgets that it was, and the variable tells.

    Errors: `LabError` for FSDP's first version.
    """
    if os.environ.get("ACCELERATE_USE_FSDP", "false").lower() != "true":
        return False
    plugin = getattr(accelerator.state, "fsdp_plugin", None)
    version = plugin.fsdp_version if plugin is not None else int(os.environ.get("FSDP_VERSION", "1"))
    if version != 2:
        raise LabError(f"sharded training is FSDP's version 2, not {version}; pass --fsdp_version 2")
    return True


def _buckets(gradients: list[torch.Tensor]) -> Iterator[list[torch.Tensor]]:
    """Gradients of one type, in groups of about `BUCKET` numbers."""
    for kind in sorted({g.dtype for g in gradients}, key=str):
        bucket: list[torch.Tensor] = []
        for gradient in (g for g in gradients if g.dtype == kind):
            if bucket and sum(g.numel() for g in bucket) + gradient.numel() > BUCKET:
                yield bucket
                bucket = []
            bucket.append(gradient)
        yield bucket


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except OSError as error:
        return not isinstance(error, ProcessLookupError)
    return True
