"""Curves of variants on the runs' own steps: the mean over seeds, with a band for how far it can be trusted."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from scipy import stats

from rlhf_lab.workbench.comparing.reading import ComparedRun
from rlhf_lab.workbench.comparing.variants import Comparison, Variant
from rlhf_lab.workbench.glossary import GLOSSARY
from rlhf_lab.workbench.style import GREY, INK, PALETTE, RED, empty_figure, styled

CROWD = 6  # variants, beyond which only means and faint bands are drawn
FEW = 5  # seeds whose own lines are drawn behind the mean
HEADROOM = 0.35  # of the curves' range, by which a wide band may enlarge it


class Band(NamedTuple):
    """A mean over seeds and its 95% t-interval, along steps. NaN where there is one seed."""

    steps: np.ndarray
    mean: np.ndarray
    low: np.ndarray
    high: np.ndarray


def curve_of(run: ComparedRun, name: str) -> tuple[np.ndarray, np.ndarray]:
    """Steps and values of a metric, in order; of a step that was logged twice the last, without NaN and infinities."""
    if name not in run.metrics or not run.x:
        return np.empty(0), np.empty(0)
    columns = {"x": run.metrics[run.x], "y": run.metrics[name]}
    rows = pd.DataFrame({key: pd.to_numeric(value, errors="coerce") for key, value in columns.items()})
    rows = rows.replace([np.inf, -np.inf], np.nan).dropna().groupby("x")["y"].last()
    return rows.index.to_numpy(dtype=float), rows.to_numpy(dtype=float)


def band(curves: Sequence[tuple[np.ndarray, np.ndarray]]) -> Band | None:
    """The mean of several curves and its 95% interval. None where they have no step in common.

    Where all have the same steps it is taken there. Else between the latest beginning and the earliest end, at every
    step that any of them has there, the others being interpolated linearly.
    """
    curves = [curve for curve in curves if len(curve[0])]
    if not curves:
        return None
    steps = curves[0][0]
    if not all(np.array_equal(steps, x) for x, _ in curves):
        first, last = max(x[0] for x, _ in curves), min(x[-1] for x, _ in curves)
        steps = np.unique(np.concatenate([x for x, _ in curves]))
        steps = steps[(steps >= first) & (steps <= last)]
    if not len(steps):
        return None
    values = np.stack([np.interp(steps, x, y) for x, y in curves])
    mean, n = values.mean(0), len(values)
    half = np.full(len(steps), np.nan)
    if n > 1:
        half = stats.t.ppf(0.975, n - 1) * values.std(0, ddof=1) / np.sqrt(n)
    return Band(steps, mean, mean - half, mean + half)


@styled
def curves(comparison: Comparison, names: Sequence[str]) -> Figure:
    """A panel for each metric, in it a line for each variant: the mean over seeds, its 95% band, and thin each seed."""
    if not names:
        return nothing("nothing was logged that these runs share")
    ncols = min(len(names), 2 if len(names) == 4 else 3)
    nrows = -(-len(names) // ncols)
    legend = -(-len(comparison.variants) // 3)
    fig, axes = empty_figure(nrows, ncols, height=2.15 * nrows + 0.2 * legend + 0.25)
    for ax, name in zip(axes.flat, names, strict=False):
        _panel(ax, comparison, name)
    for ax in axes.flat[len(names) :]:
        ax.set_visible(False)
    steps = dict.fromkeys(run.x for run in comparison.runs if run.x)
    for ax in axes.flat[max(0, len(names) - ncols) : len(names)]:
        ax.set_xlabel(" or ".join(steps))
    handles = [axes.flat[0].plot([], [], color=c, linewidth=2)[0] for c in colours(comparison).values()]
    names = [plain_label(variant.name) for variant in comparison.variants]
    fig.legend(handles, names, loc="outside lower center", ncols=min(3, len(names)))
    return fig


def colours(comparison: Comparison) -> dict[str, Any]:
    """Variant -> colour: the baseline apart, the others along a scale where they are too many to be told apart."""
    others = [variant.name for variant in comparison.variants if variant is not comparison.baseline]
    many = len(others) > 7
    palette = colormaps["viridis"](np.linspace(0, 0.95, len(others))) if many else PALETTE[:7]
    found = dict(zip(others, palette, strict=False))
    return {v.name: found.get(v.name, RED if many else INK) for v in comparison.variants}


@styled
def nothing(words: str) -> Figure:
    """A small figure that says why there is nothing to see."""
    fig, axes = empty_figure(1, 1, height=0.8)
    axes[0, 0].set_axis_off()
    axes[0, 0].text(0.5, 0.5, words, ha="center", va="center", color=GREY)
    return fig


def plain_label(text: str, limit: int = 44) -> str:
    """Text as a label: dollars are not taken for mathematics, and what is long is cut."""
    return (text if len(text) <= limit else text[: limit - 1] + "…").replace("$", r"\$")


def _panel(ax: Axes, comparison: Comparison, name: str) -> None:
    crowded = len(comparison.variants) > CROWD
    drawn = [_variant(ax, v, name, colours(comparison)[v.name], crowded) for v in comparison.variants]
    values = np.concatenate([values for values in drawn if len(values)] or [np.empty(0)])
    ax.set_title(plain_label(name, 34))
    if name in GLOSSARY and GLOSSARY[name].unit != "1":
        ax.set_ylabel(GLOSSARY[name].unit, fontsize=7.5, color=GREY)
    if not len(values):
        ax.text(0.5, 0.5, "not logged", transform=ax.transAxes, ha="center", va="center", color=GREY)
        return
    low, high = values.min(), values.max()
    room = HEADROOM * (high - low) or 1.0
    bottom, top = ax.get_ylim()  # of all that was drawn, the wide bands of few seeds among it
    ax.set_ylim(max(bottom, low - room), min(top, high + room))


def _variant(ax: Axes, variant: Variant, name: str, color: Any, crowded: bool) -> np.ndarray:
    """Draw a variant and return the values of its curves."""
    found = [curve for run in variant.units.values() if len((curve := curve_of(run, name))[0])]
    middle = band(found)
    if middle is None or 1 < len(found) <= FEW and not crowded:
        for x, y in found:
            ax.plot(x, y, color=color, linewidth=0.6, alpha=0.45)
    if middle is not None:
        ax.plot(middle.steps, middle.mean, color=color, marker="o" if len(middle.steps) < 12 else "", markersize=3)
        ax.fill_between(
            middle.steps, middle.low, middle.high, color=color, alpha=0.06 if crowded else 0.15, linewidth=0
        )
    return np.concatenate([y for _, y in found] or [np.empty(0)])
