"""10_overoptimisation: the figures, of a run and over seeds."""

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedLocator

from rlhf_lab.workbench.intervals import mean_interval
from rlhf_lab.workbench.studies.overoptimisation import parts
from rlhf_lab.workbench.studies.overoptimisation_results import FORMS, curves, fit
from rlhf_lab.workbench.studies.units import Units
from rlhf_lab.workbench.style import BLUE, GREEN, GREY, INK, ORANGE, PALETTE, empty_figure, styled

WAYS = {"bon": "best of n", "ppo": "PPO"}
_X = {"bon": "square root of the KL bound (nats)", "ppo": "square root of the KL (nats)"}


@styled
def figure(units: Units) -> Figure:
    """Gold (solid) and score (dashed) against the distance: a row for each way, a column for each world.

    Means over seeds; gold of best-of-n with its 95% interval. Seeds of PPO go to different distances: each has a thin
    line of its own. Small gains and large falls are both to be read: the axis is linear between -0.5 and 0.5 only.
    """
    worlds = list(dict.fromkeys(parts(unit)[0] for unit in units))
    ways = [way for way in WAYS if any(parts(unit)[1] == way for unit in units)]
    fig, axes = empty_figure(len(ways), len(worlds), height=2.6 * len(ways) + 0.4)
    colors = _colors(units)
    for unit, found in units.items():
        world, way, size = parts(unit)
        ax, of_seeds = axes[ways.index(way), worlds.index(world)], curves(found)
        distance = of_seeds.distance.mean(0)
        if way == "bon":
            _line_with_band(ax, distance, of_seeds.gold, colors[size])
        else:
            ax.plot(distance, of_seeds.gold.mean(0), color=colors[size])
            ax.plot(of_seeds.distance.T, of_seeds.gold.T, color=colors[size], linewidth=0.5, alpha=0.6)
        ax.plot(distance, of_seeds.score.mean(0), color=colors[size], linestyle="--", linewidth=1)
    for row, way in zip(axes, ways, strict=True):
        row[0].set_ylabel(f"{WAYS[way]}: gain (sd)")
        for ax, world in zip(row, worlds, strict=True):
            if not ax.lines:  # no unit of this way in this world
                ax.set_axis_off()
                continue
            ax.set(xlabel=_X[way])
            _bend(ax)
            ax.axhline(0, color=GREY, linewidth=0.6)
            if way == ways[0]:
                ax.set_title(f"{world.replace('_', '-')} world")
    lines = [Line2D([], [], color=color, label=f"{size:,} comparisons") for size, color in colors.items()]
    lines += [Line2D([], [], color=INK, label="gold"), Line2D([], [], color=INK, linestyle="--", label="score")]
    fig.legend(handles=lines, loc="outside lower center", ncols=len(lines))
    return fig


@styled
def fit_figure(units: Units, world: str = "default") -> Figure:
    """Mean gold of each unit of a world, the way's own form fitted to it (solid) and the other way's (dotted)."""
    ways = [way for way in WAYS if any(parts(unit)[:2] == (world, way) for unit in units)]
    fig, axes = empty_figure(1, max(len(ways), 1), height=3.2)
    colors = _colors(units)
    for ax, way in zip(axes[0], ways, strict=False):
        for unit, found in units.items():
            if parts(unit)[:2] != (world, way):
                continue
            of_seeds, color = curves(found), colors[parts(unit)[2]]
            distance, gold = of_seeds.distance.mean(0), of_seeds.gold.mean(0)
            ax.plot(distance, gold, "o", color=color, markersize=4, label=f"{parts(unit)[2]:,} comparisons")
            for form in FORMS.values():
                _draw_form(ax, distance, gold, form, color, "-" if form == FORMS[way] else ":")
        ax.axhline(0, color=GREY, linewidth=0.6)
        ax.set(xlabel=_X[way], title=f"{WAYS[way]}, {world.replace('_', '-')} world", ylabel="gain in gold (sd)")
        ax.legend(loc="best")
    return fig


def _draw_form(ax: Axes, distance: np.ndarray, gold: np.ndarray, form: str, color: str, style: str) -> None:
    fitted = fit(distance, gold, form)
    if fitted is not None:
        d = np.linspace(1e-3, distance.max(), 200)
        bend = d if form == "best_of_n" else np.log(d)
        ax.plot(d, d * (fitted.alpha - fitted.beta * bend), color=color, linestyle=style, linewidth=1)


def _bend(ax: Axes) -> None:
    """Linear between -0.5 and 0.5, logarithmic beyond."""
    ax.set_yscale("symlog", linthresh=0.5)
    ax.yaxis.set_major_locator(FixedLocator([-8, -4, -2, -1, -0.5, 0, 0.5, 1, 2, 4, 8]))
    ax.yaxis.set_major_formatter("{x:g}")


def _colors(units: Units) -> dict[int, str]:
    """A colour for each number of comparisons."""
    sizes = sorted({parts(unit)[2] for unit in units})
    return dict(zip(sizes, [ORANGE, BLUE, GREEN, *PALETTE[3:]], strict=False))


def _line_with_band(ax: Axes, x: np.ndarray, rows: np.ndarray, color: str) -> None:
    """The mean of (seeds, places) with its 95% interval, where there are several seeds."""
    at = [mean_interval(column) for column in rows.T]
    ax.plot(x, [i.mean for i in at], color=color)
    if len(rows) > 1:
        ax.fill_between(x, [i.low for i in at], [i.high for i in at], color=color, alpha=0.15, linewidth=0)
