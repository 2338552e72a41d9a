"""How the lab's figures look: colours that the colour-blind can tell apart, readable sizes, little ink."""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import seaborn as sns
from matplotlib.figure import Figure

WIDTH = 9.0  # inches, at DPI as wide as a notebook's column
DPI = 100
BLUE, ORANGE, GREEN, RED, GREY, INK = "#0072B2", "#E69F00", "#009E73", "#D55E00", "#8A8A8A", "#333333"
PALETTE = [BLUE, ORANGE, GREEN, RED, "#CC79A7", "#56B4E9", "#8C6D31", "#333333"]
STYLE = sns.axes_style("whitegrid") | {
    "axes.edgecolor": "#BBBBBB",
    "axes.labelcolor": INK,
    "axes.labelsize": 9,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.titlesize": 9,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.titlecolor": INK,
    "axes.prop_cycle": mpl.cycler(color=PALETTE),
    "figure.dpi": DPI,
    "figure.titlesize": 10,
    "font.size": 9,
    "grid.color": "#EBEBEB",
    "legend.fontsize": 8.5,
    "legend.frameon": False,
    "lines.linewidth": 1.6,
    "patch.linewidth": 0,
    "patch.force_edgecolor": False,
    "xtick.labelsize": 8,
    "ytick.labelsize": 8,
    "xtick.color": INK,
    "ytick.color": INK,
}


# Loaded now: a notebook's backend turns interactive drawing on when it is loaded, and inside `rc_context` that would be
# undone at the end, so that the notebook's own plots would not be shown.
plt.switch_backend(mpl.get_backend())


def styled(draw: Callable[..., Figure]) -> Callable[..., Figure]:
    """Have a function draw in the lab's style, whatever the user's own is."""

    @functools.wraps(draw)
    def drawn(*args: Any, **kwargs: Any) -> Figure:
        with mpl.rc_context(STYLE):
            return draw(*args, **kwargs)

    return drawn


def empty_figure(
    nrows: int,
    ncols: int,
    *,
    height: float,
    width: float = WIDTH,
    ratios: Sequence[float] | None = None,
    layout: str | None = "constrained",
) -> tuple[Figure, np.ndarray]:
    """A figure and its axes (nrows, ncols). It is closed at once, or a notebook would show it by itself too.

    layout: None is for figures that are drawn often: arranging takes longer than drawing.
    """
    size = (width, height)
    fig, axes = plt.subplots(nrows, ncols, figsize=size, squeeze=False, layout=layout, height_ratios=ratios)
    plt.close(fig)
    return fig, axes
