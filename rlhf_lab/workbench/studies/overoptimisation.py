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
from rlhf_lab.workbench.artefacts import HOUSE
from rlhf_lab.workbench.reference import summarise
from rlhf_lab.workbench.style import BLUE, GREEN, GREY, ORANGE, PALETTE, WIDTH, empty_figure, styled


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


@styled
def recorded_figure(*worlds: str) -> Figure:
    """Gold over the recorded seeds, mean and 95% interval, a panel for each world: experiments/reference holds them.

    Errors: `LabError` where nothing is recorded.
    """
    fig, axes = empty_figure(1, len(worlds), height=3.2, width=WIDTH if len(worlds) > 1 else WIDTH / 2)
    for ax, world in zip(axes[0], worlds, strict=True):
        table = summarise(HOUSE / "experiments/reference" / f"overoptimisation-{world}.jsonl").loc["overoptimisation"]
        for size, color in zip((60, 250, 1000), (ORANGE, BLUE, GREEN), strict=True):
            ns = [2**power for power in range(20) if f"gold_{size}_at_{2**power}" in table.index]
            rows, kl = table.loc[[f"gold_{size}_at_{n}" for n in ns]], np.sqrt([best_of_n_kl(n) for n in ns])
            ax.plot(kl, rows["mean"], color=color, label=f"{size:,} comparisons")
            ax.fill_between(kl, rows["low"], rows["high"], color=color, alpha=0.15, linewidth=0)
        ax.axhline(0, color=GREY, linewidth=0.6)
        seeds = int(table["seeds"].max())
        ax.set(title=f"{world.replace('_', '-')} world, {seeds} seeds", xlabel="square root of the KL bound (nats)")
    axes[0, 0].set_ylabel("gain in gold (sd)")
    axes[0, 0].legend(loc="best")
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
