"""Which number format the matrix products run in: float32, or bfloat16 autocast where that is truly faster.

Weights, log-probabilities, scores and the optimiser stay in float32 either way.
"""

import re
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

import torch
from torch import Tensor

from rlhf_lab.errors import LabError
from rlhf_lab.models.inputs import context_length

PRECISIONS = ("auto", "fp32", "bf16")
WORTHWHILE = 1.2  # bf16 costs accuracy: below this gain in speed it is not worth it

_decided: dict[tuple, str] = {}


def resolve_precision(setting: str, model=None) -> str:
    """The precision to run in: "auto" becomes "fp32" or "bf16", and those two come back as they are.

    "auto" takes bf16 only where the processor computes in it natively and a short forward and backward of
    the model (of two linear layers if there is none) is at least 1.2 times as fast. Measured once per process
    and kind of model. Times vary: a run that must be repeatable records the answer and asks for it by name.
    Errors: `LabError` for another setting.
    """
    if setting not in PRECISIONS:
        raise LabError(f"precision is {setting!r}; choose one of {', '.join(PRECISIONS)}")
    if setting != "auto":
        return setting
    device = _device(model)
    if not has_native_bf16(device.type):
        return "fp32"
    size = sum(parameter.numel() for parameter in model.parameters()) if model is not None else 0
    key = (type(model), size, device.type, torch.get_num_threads())
    if key not in _decided:
        _decided[key] = "bf16" if speedup(model) >= WORTHWHILE else "fp32"
    return _decided[key]


def autocast(precision: str, model=None) -> AbstractContextManager:
    """The context to run forwards in: bfloat16 autocast on the model's device (CPU without one), or nothing.

    Errors: `LabError` for anything else: "auto" must be resolved first.
    """
    if precision == "fp32":
        return nullcontext()
    if precision == "bf16":
        return torch.autocast(_device(model).type, dtype=torch.bfloat16)
    raise LabError(f"precision is {precision!r}; autocast takes 'fp32' or 'bf16' (resolve_precision settles 'auto')")


def has_native_bf16(device_type: str) -> bool:
    """Whether the processor multiplies bfloat16 matrices itself. Where that cannot be known, it does not."""
    if device_type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    cpuinfo = Path("/proc/cpuinfo")
    if device_type != "cpu" or not cpuinfo.exists():
        return False
    return re.search(r"\b(avx512_bf16|amx_bf16|bf16)\b", cpuinfo.read_text()) is not None


def speedup(model=None) -> float:
    """Seconds of a short forward and backward in fp32 over seconds in bf16, by turns, each at its best.

    The model's gradients are left alone.
    """
    loss, weights = _model_work(model) if model is not None else _linear_work()
    best = {"fp32": float("inf"), "bf16": float("inf")}
    begun = time.perf_counter()
    for turn in range(12):
        took = {precision: _seconds(loss, weights, precision, model) for precision in best}
        slow = sum(took.values()) > 2.0
        if turn > 0 or slow:  # the first turn also pays for setting up, unless it is long enough to hide that
            best = {precision: min(best[precision], took[precision]) for precision in best}
        if slow or (turn > 1 and time.perf_counter() - begun > 1.0):
            break
    return best["fp32"] / best["bf16"]


def _seconds(loss: Callable[[], Tensor], weights: list[Tensor], precision: str, model) -> float:
    on_gpu = _device(model).type == "cuda"
    start = time.perf_counter()
    with torch.set_grad_enabled(bool(weights)), autocast(precision, model):
        value = loss()
    if weights:
        torch.autograd.grad(value, weights, allow_unused=True)
    if on_gpu:
        torch.cuda.synchronize()
    return time.perf_counter() - start


def _model_work(model) -> tuple[Callable[[], Tensor], list[Tensor]]:
    """Four rows of 64 tokens through a policy or a Scorer."""
    is_scorer = hasattr(model, "sequence_scores")
    length = min(64, (model.limit() if is_scorer else context_length(model)) or 64)
    ids = (torch.arange(4 * length) % model.config.vocab_size).view(4, length).to(_device(model))
    mask = torch.ones_like(ids)

    def loss() -> Tensor:
        if is_scorer:
            return model.sequence_scores(ids, mask.bool()).mean()
        return model(input_ids=ids, attention_mask=mask).logits.float().logsumexp(dim=-1).mean()

    return loss, [weight for weight in model.parameters() if weight.requires_grad]


def _linear_work() -> tuple[Callable[[], Tensor], list[Tensor]]:
    """256 tokens through two linear layers of a small model's sizes: 256 to 1,024 and back."""
    tokens = torch.full((256, 256), 0.1)
    up, down = torch.full((1024, 256), 0.01).requires_grad_(), torch.full((256, 1024), 0.01).requires_grad_()
    linear = torch.nn.functional.linear
    return lambda: linear(linear(tokens, up), down).float().mean(), [up, down]


def _device(model) -> torch.device:
    return next(model.parameters()).device if model is not None else torch.device("cpu")
