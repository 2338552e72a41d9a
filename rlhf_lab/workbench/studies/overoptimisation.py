"""10_overoptimisation: proxy and gold of the best of n, for reward models of several sizes of data."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd
import torch
from matplotlib.figure import Figure

from rlhf_lab.errors import LabError
from rlhf_lab.maths import best_of_n_curve, best_of_n_kl
from rlhf_lab.sandbox.world import World
from rlhf_lab.workbench.style import BLUE, GREY, ORANGE, PALETTE, empty_figure, styled


class Curve(NamedTuple):
    """Best of n under one ranker. Gains over a single sample, in standard deviations over the pool."""

    ranker: str | int  # the number of comparisons it learned from, or a name
    ns: list[int]
    proxy: np.ndarray  # (prompts, n's) of the ranker's score
    gold: np.ndarray  # (prompts, n's)

    @property
    def gain(self) -> np.ndarray:
        """(n's,) mean gold over all prompts, less that of one sample."""
        return self.gold.mean(0) - self.gold.mean(0)[0]


def world_of(cfg) -> World:
    """The world of the study. Errors: `LabError` without one, for nothing else has a known gold reward."""
    if not cfg.sandbox:
        raise LabError("overoptimisation: 'sandbox' is empty, but only an embedded world has a known gold reward")
    return World.load(cfg.sandbox)


def curve(ranker: str | int, scores: torch.Tensor, gold: torch.Tensor, *, seed: int) -> Curve:
    """(B, N) scores and gold -> the curve for n = 1, 2, 4, ... up to N. Equal scores are ordered by a seeded coin."""
    size = scores.shape[1]
    ns = [2**power for power in range(size.bit_length()) if 2**power <= size]
    coin = torch.rand(scores.shape, generator=torch.Generator().manual_seed(seed))
    found = best_of_n_curve(scores, gold, ns, tie_breaker=coin)
    return Curve(ranker, ns, (found.score / scores.std()).numpy(), found.value.numpy())


@styled
def figure(curves: Sequence[Curve]) -> Figure:
    """Score (left) and gold (right) against the square root of the KL bound, one line for each reward model."""
    fig, axes = empty_figure(1, 2, height=3.4)
    colors = dict(zip([c.ranker for c in curves], [GREY, ORANGE, BLUE, *PALETTE[2:]], strict=False))
    for c in curves:
        kl = np.sqrt([best_of_n_kl(n) for n in c.ns])
        label = f"{c.ranker} comparisons" if isinstance(c.ranker, int) else c.ranker
        axes[0, 0].plot(kl, c.proxy.mean(0) - c.proxy.mean(0)[0], color=colors[c.ranker], label=label)
        axes[0, 1].plot(kl, c.gain, color=colors[c.ranker], label=label)
        if isinstance(c.ranker, int):
            peak = int(c.gain.argmax())
            axes[0, 1].plot(kl[peak], c.gain[peak], "o", color=colors[c.ranker], markersize=5)
    for ax, what in zip(axes[0], ("score", "gold"), strict=True):
        ax.set(xlabel="square root of the KL bound (nats)", ylabel=f"gain in {what} (sd)")
        ax.axhline(0, color=GREY, linewidth=0.6)
    axes[0, 1].legend(loc="best")
    return fig


class Report(NamedTuple):
    """What the study shows and records."""

    table: pd.DataFrame
    results: dict[str, float]


def report(curves: Sequence[Curve], accuracy: dict[int, float]) -> Report:
    """Accuracy, gold at its peak and at the largest n, and the fall between them, for each size of data.

    The first half of the prompts chooses the peak, the second half measures the fall: final less peak, in sd of gold.
    """
    rows, results = [], {}
    for c in curves:
        if not isinstance(c.ranker, int):
            continue
        half = len(c.gold) // 2
        peak = int(c.gold[:half].mean(0).argmax())
        unseen = c.gold[half:].mean(0)
        row = {
            "accuracy": accuracy[c.ranker],
            "peak n": c.ns[peak],
            "peak gain": float(unseen[peak] - unseen[0]),
            "final gain": float(c.gain[-1]),
            "final less peak": float(unseen[-1] - unseen[peak]),
            "smallest rise of the score": float(np.diff(c.proxy.mean(0)).min()),
        }
        rows.append({"comparisons": c.ranker, **row})
        results |= {f"{name.replace(' ', '_')}_{c.ranker}": value for name, value in row.items()}
        results |= {f"gold_{c.ranker}_at_{n}": float(gain) for n, gain in zip(c.ns, c.gain, strict=True)}
    return Report(pd.DataFrame(rows).set_index("comparisons").round(3), results)
