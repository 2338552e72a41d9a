"""Curves of a run's metrics, still or growing while it runs, each over the band in which it is healthy."""

import io
import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from rlhf_lab.workbench.glossary import GLOSSARY, healthy_ranges
from rlhf_lab.workbench.records import metrics_frame
from rlhf_lab.workbench.session import headless, in_kernel, shell
from rlhf_lab.workbench.style import BLUE, GREEN, GREY, INK, WIDTH, empty_figure, styled

if TYPE_CHECKING:
    from rlhf_lab.workbench.runs import Run


@styled
def curves(
    metrics: pd.DataFrame,
    names: Sequence[str],
    *,
    healthy: Mapping[str, tuple[float, float]] | None = None,
    x: str = "episode",
    ncols: int = 3,
    title: str = "",
) -> Figure:
    """A small curve for each metric, over a band where it is healthy.

    metrics: as `read_metrics` gives it. healthy: name -> (low, high); None takes the glossary's, {} none.
    x: the column to draw against; where it is missing the run's other step, or the row number.
    """
    bands = healthy_ranges(list(names)) if healthy is None else healthy
    column = next((name for name in (x, "episode", "global_step") if name in metrics), None)
    ncols = min(ncols, len(names))
    nrows = -(-len(names) // ncols)
    above, below, height = 0.32 + 0.28 * bool(title), 0.45, 1.85 * nrows + 0.35
    fig, axes = empty_figure(nrows, ncols, height=height, layout=None)
    fig.subplots_adjust(
        left=0.62 / WIDTH,
        right=1 - 0.25 / WIDTH,
        bottom=below / height,
        top=1 - above / height,
        wspace=0.24,
        hspace=0.45,
    )
    for ax, name in zip(axes.flat, names, strict=False):
        _curve(ax, metrics, name, column, bands.get(name))
    for ax in axes.flat[len(names) :]:
        ax.set_visible(False)
    for ax in axes.flat[len(names) - ncols : len(names)]:
        ax.set_xlabel(column or "row", labelpad=1)
    if title:
        fig.suptitle(title, x=0.01, y=1 - 0.05 / height, ha="left", va="top", color=INK)
    return fig


class LiveCurves:
    """Curves of a run that grow in place: at most twice a second, and for less than a tenth of the time."""

    def __init__(self, run: "Run", names: Sequence[str], **options: Any):
        self.run, self.names, self.options = run, list(names), options
        self.figure: Figure | None = None
        self._handle: Any = None
        self._cell: int | None = None  # the run of the cell that the handle shows its picture under
        self._next = 0.0
        self._watched = not headless()

    def update(self) -> None:
        """Draw what the run has logged so far, unless nobody watches or the last drawing was just now."""
        if not self._watched or time.monotonic() < self._next or not self.run.history:
            return
        began = time.monotonic()
        self._draw(self.run.progress_line())
        took = time.monotonic() - began
        self._next = time.monotonic() + max(0.5, 9 * took)

    def final(self) -> None:
        """Draw the last state, watched or not."""
        if self.run.history:
            self._draw("")

    def _draw(self, title: str) -> None:
        self.figure = curves(metrics_frame(self.run.history), self.names, title=title, **self.options)
        if not in_kernel():
            return
        from IPython.display import Image, display

        png = io.BytesIO()  # drawn once; a notebook would draw the figure twice, to crop it
        self.figure.savefig(png, format="png")
        image = Image(png.getvalue())
        cell = shell().execution_count
        if self._handle is None or cell != self._cell:  # a cell run again has lost the picture of its last run
            self._handle, self._cell = display(image, display_id=True), cell
        else:
            self._handle.update(image)


def live_curves(run: "Run", names: Sequence[str], **options: Any) -> LiveCurves:
    """Curves for a training loop: call `.update()` in it and `.final()` after it. Options as in `curves`."""
    return LiveCurves(run, names, **options)


def _curve(ax: Axes, metrics: pd.DataFrame, name: str, x: str | None, band: tuple[float, float] | None) -> None:
    ax.set_title(name, fontsize=9 if len(name) < 25 else 8)
    rows = metrics[[x, name] if x else [name]].dropna() if name in metrics else pd.DataFrame()
    if rows.empty:
        ax.text(0.5, 0.5, "not logged", transform=ax.transAxes, ha="center", va="center", color=GREY)
        ax.set(xticks=[], yticks=[])
        return
    across = rows[x].to_numpy(dtype=float) if x else np.arange(len(rows))
    values = rows[name].replace([np.inf, -np.inf], np.nan).to_numpy(dtype=float)
    many = len(values) > 80
    ax.plot(
        across,
        values,
        color=BLUE,
        alpha=0.25 if many else 1.0,
        marker="o" if len(values) < 15 else "",
        markersize=3,
    )
    if many:
        smooth = pd.Series(values).rolling(len(values) // 20, center=True, min_periods=1).mean()
        ax.plot(across, smooth, color=BLUE)
    if name in GLOSSARY and GLOSSARY[name].unit != "1":
        unit = GLOSSARY[name].unit.replace("standard deviations", "SD")  # a small curve is not high enough for it
        ax.set_ylabel(unit, fontsize=7.5, color=GREY)
    if band is not None:
        _band(ax, band, values)


def _band(ax: Axes, band: tuple[float, float], values: np.ndarray) -> None:
    """Shade the healthy range, without squeezing the curve: at most its nearer edge comes into view."""
    low, high = band
    bottom, top = ax.get_ylim()
    span = top - bottom
    if np.nanmin(values) > high:
        bottom = min(bottom, high - 0.1 * span)
    if np.nanmax(values) < low:
        top = max(top, low + 0.1 * span)
    ax.axhspan(low, high, color=GREEN, alpha=0.12, linewidth=0, zorder=0)
    ax.set_ylim(bottom, top)
    text = f"{low:g} to {high:g}"
    if len(ax.get_title(loc="left")) + len(text) <= 28:  # else there is no room for both
        text = f"healthy {text}"
    ax.set_title(text, loc="right", fontsize=7.5, color="#00785A", fontweight="normal")
