"""Measure what this machine takes: a few updates of small random models, each short, and the constants that fit them.

The updates are the lab's own (`ppo_updates`), so that a change of how they are computed changes the constants too.
"""

from collections.abc import Callable, Sequence

import numpy as np

from rlhf_lab.workbench.costs.cases import Case, begun, seconds_of
from rlhf_lab.workbench.costs.constants import TIMED, Constants, identity
from rlhf_lab.workbench.costs.weighing import TEXTS, weigh
from rlhf_lab.workbench.costs.work import Phases, update_work
from rlhf_lab.workbench.memory import peak_memory

TIMES = [
    Case(64, 1, 64, 4, 8, 8),
    Case(64, 12, 64, 4, 8, 8),
    Case(64, 2, 64, 64, 8, 8),
    Case(64, 2, 64, 4, 8, 64),
    Case(64, 2, 64, 8, 96, 16),
    Case(64, 2, 64, 64, 64, 48),
    Case(64, 1, 24000, 4, 8, 8),
    Case(64, 1, 50000, 12, 4, 8),
    Case(128, 2, 1000, 16, 16, 24),
    Case(128, 2, 200, 32, 8, 8, micro=4),
    Case(256, 2, 200, 16, 16, 16),
    Case(256, 4, 2000, 4, 8, 8),
    Case(512, 2, 200, 4, 8, 8),
    Case(512, 3, 200, 8, 16, 16),
    Case(768, 3, 200, 8, 8, 8),
]
"""What is timed: each kind of work prevails in one of them."""


def measure_constants(precision: str, *, told: Callable[[str], None] = lambda line: None) -> Constants:
    """Measure this machine, in ten seconds or so. precision: fp32 or bf16."""
    begun(TEXTS, precision)  # what is set up at first use
    libraries = 1e6 * peak_memory().get("peak_memory_mb", 0.0)
    points = []
    for number, case in enumerate(TIMES, 1):
        told(f"measuring this machine, {number} of {len(TIMES)}")
        points.append((update_work(case.roles(), case.update), seconds_of(case, precision)))
    seconds = {phase: fit(phase, points) for phase in TIMED}
    return Constants(**identity(precision), seconds=seconds, bytes=weigh(precision), libraries=libraries)


def fit(phase: str, points: Sequence[tuple[Phases, dict[str, float]]]) -> dict[str, float]:
    """Seconds of a unit of each kind of work, none negative, with the least squares of relative errors."""
    from scipy.optimize import nnls

    kinds = TIMED[phase]
    took = np.array([seconds[phase] for _, seconds in points])
    work = np.array([[getattr(getattr(phases, phase), kind) for kind in kinds] for phases, _ in points])
    work = work / took[:, None]
    scale = work.max(axis=0)
    scale[scale == 0] = 1.0
    found, _ = nnls(work / scale, np.ones(len(took)))
    return dict(zip(kinds, (found / scale).tolist(), strict=True))
