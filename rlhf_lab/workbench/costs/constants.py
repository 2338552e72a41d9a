"""What a machine takes for each piece of work, as measured on it, and what that makes of a run."""

import os
import platform
from collections.abc import Mapping
from pathlib import Path

import torch

import rlhf_lab
from rlhf_lab.config import Config
from rlhf_lab.errors import LabError
from rlhf_lab.workbench.costs.work import Phases, Work
from rlhf_lab.workbench.experiments.fingerprint import digest
from rlhf_lab.workbench.writing import make_folder, write_json

CHECKED: dict[str, tuple[float, float]] = {
    "replies": (8, 128),
    "prompt tokens": (16, 64),
    "reply tokens": (16, 128),
    "layers": (2, 6),
    "width": (64, 768),
    "vocabulary": (130, 50257),
}
"""Where benchmarks/growth.py compares predictions with measurements: beyond it they extrapolate."""

TIMED = {
    "rollout": ("kernels", "flops", "attention", "elements", "logits", "weights", "cached"),
    "score": ("kernels", "flops", "attention", "elements", "logits", "weights"),
    "train": ("kernels", "flops", "attention", "elements", "logits", "weights", "updated"),
}
"""The phases of an update, and the kinds of work that their time is made of."""


class Constants(Config):
    """Constants of one machine in one precision."""

    machine: str
    threads: int
    torch: str
    code: str  # of the lab, that was measured
    precision: str
    seconds: dict[str, dict[str, float]]  # phase -> kind of work -> seconds of a unit
    bytes: dict[str, float]  # see memory.py
    libraries: float  # bytes of a process that has imported everything and holds no model

    def times(self, work: Phases) -> dict[str, float]:
        """Seconds of each phase of an update."""
        return {name: self.time(name, part) for name, part in work._asdict().items()}

    def time(self, phase: str, work: Work) -> float:
        """Seconds of some work that is done as in this phase."""
        return sum(each * getattr(work, kind) for kind, each in self.seconds[phase].items())


def beyond(sizes: Mapping[str, float]) -> list[str]:
    """Which of these sizes lie outside what was checked, in words."""
    found = []
    for name, value in sizes.items():
        low, high = CHECKED.get(name, (value, value))
        if not low <= value <= high:
            found.append(f"{name} {value:,.0f} (checked {low:,.0f} to {high:,.0f})")
    return found


def identity(precision: str) -> dict[str, str | int]:
    """What constants belong to: they hold for no other machine, number of threads, torch, code or precision."""
    root = Path(rlhf_lab.__file__).parent
    return {
        "machine": platform.node(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "code": "".join(digest(root / room)[:4] for room in ("maths", "models", "training")),
        "precision": precision,
    }


def cache_file(precision: str) -> Path:
    """Where the constants of this machine are kept, below the user's cache."""
    root = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    parts = [str(part) for part in identity(precision).values()]
    return root / "rlhf_lab" / f"costs-{'-'.join(parts)}.json"


def read_constants(precision: str) -> Constants | None:
    """The constants of this machine, or None where there are none that can be used."""
    try:
        return Constants.model_validate_json(cache_file(precision).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None


def keep_constants(constants: Constants) -> None:
    """Keep them for the next time. Where the cache cannot be written, the next time measures again."""
    file = cache_file(constants.precision)
    try:
        make_folder(file.parent)
        write_json(file, constants.model_dump())
    except LabError:
        return
