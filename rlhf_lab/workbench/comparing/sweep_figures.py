"""Results with intervals: by variant, or against the settings that were varied."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd
from matplotlib import colormaps
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.transforms import ScaledTranslation

from rlhf_lab.workbench.comparing.effects import effects, value_of
from rlhf_lab.workbench.comparing.figures import colours, nothing, plain_label
from rlhf_lab.workbench.comparing.settings import told
from rlhf_lab.workbench.comparing.variants import Comparison, rank
from rlhf_lab.workbench.style import GREY, INK, PALETTE, empty_figure, styled

WIDE = 15.0  # largest over smallest, from where on an axis is logarithmic
CURVES = 6  # values of a key that can be told apart as lines; with more of both keys it is a map
AXES = 8  # keys in parallel coordinates
DODGE = 0.06  # inches between the intervals of several lines
SEED = {
    "marker": "o",
    "linestyle": "",
    "markersize": 3.4,
    "markerfacecolor": "white",
    "markeredgewidth": 0.8,
    "zorder": 4,
}


class Scale(NamedTuple):
    """Where the values of a key stand on an axis, how it is scaled, and what is written at it."""

    places: dict[str, float]  # the value as text -> its place
    kind: str  # linear | log | symlog
    numeric: bool
    smallest: float = 1.0  # above 0


@styled
def results_figure(comparison: Comparison, names: Sequence[str]) -> Figure:
    """Results against what was varied: one key, two by colour or as a map, more as parallel coordinates.

    Where the variants are no sweep, the results by variant. Means with 95% intervals over seeds.
    """
    table = effects(comparison, names)
    names = [name for name in names if name in set(table["result"])]
    if not names:
        return nothing("these runs have no results to draw")
    keys = comparison.settings
    if (
        len(comparison.stages) > 1
        or not keys
        or len(keys) > AXES
        or len(keys) > 2
        and len(keys) >= len(table) / len(names)
    ):
        return _by_variant(comparison, table, names)
    if len(keys) > 2:
        return _parallel(comparison, table, names)
    if len(keys) == 2 and min(len(scale(comparison, key).places) for key in keys) > CURVES:
        return _maps(comparison, table, names)
    return _against(comparison, table, names)


def scale(comparison: Comparison, key: str) -> Scale:
    """Numbers stand where they are, on a logarithmic axis where they span much; all else in a row."""
    values = sorted({told(v.settings[key]): v.settings[key] for v in comparison.variants}.values(), key=rank)
    if not all(isinstance(value, int | float) and not isinstance(value, bool) for value in values):
        return Scale({told(value): float(index) for index, value in enumerate(values)}, "linear", False)
    places = {told(value): float(value) for value in values}
    above = [value for value in places.values() if value > 0]
    wide = min(places.values()) >= 0 and len(above) > 1 and max(above) / min(above) >= WIDE
    kind = "linear" if not wide else "log" if len(above) == len(places) else "symlog"
    return Scale(places, kind, True, min(above, default=1.0))


def _against(comparison: Comparison, table: pd.DataFrame, names: Sequence[str]) -> Figure:
    scales = {key: scale(comparison, key) for key in comparison.settings}
    *others, key = sorted(scales, key=lambda key: (scales[key].numeric, len(scales[key].places)))
    by = others[0] if others else None
    groups = dict(zip(scales[by].places, [*PALETTE, GREY], strict=False)) if by else {"": PALETTE[0]}
    fig, axes = empty_figure(1, len(names), height=3.1)
    for ax, name in zip(axes[0], names, strict=True):
        rows = table[table["result"] == name].set_index("variant")
        _scaled(ax, scales[key])
        for index, (group, color) in enumerate(groups.items()):
            mine = [
                v for v in comparison.variants if v.name in rows.index and (not by or told(v.settings[by]) == group)
            ]
            at = {v.name: scales[key].places[told(v.settings[key])] for v in mine}
            dodge = ScaledTranslation((index - (len(groups) - 1) / 2) * DODGE, 0, ax.figure.dpi_scale_trans)
            drawn = _line(ax, rows.loc[sorted(at, key=at.get)], sorted(at.values()), color, joined=scales[key].numeric)
            for variant in mine:
                seeds = [value_of(run, name) for run in variant.units.values()]
                drawn += ax.plot([at[variant.name]] * len(seeds), seeds, color=color, **SEED)
            for artist in drawn:  # moved only now: the limits of the axes come from where they stood
                artist.set_transform(ax.transData + dodge)
        ax.set(xlabel=plain_label(key), title=plain_label(name, 40))
        ax.margins(x=0.1)
    if by:
        handles = [axes[0, 0].plot([], [], color=color, marker="o")[0] for color in groups.values()]
        labels = [plain_label(group) for group in groups]
        fig.legend(handles, labels, title=plain_label(by), loc="outside right upper")
    return fig


def _line(ax: Axes, rows: pd.DataFrame, places: list[float], color: str, *, joined: bool) -> list[Artist]:
    """Means with intervals, joined where what they stand against is a number."""
    error = np.nan_to_num([rows["mean"] - rows["low"], rows["high"] - rows["mean"]])
    line = {"linestyle": "-" if joined else "", "marker": "o", "markersize": 5, "elinewidth": 1.2, "capsize": 3}
    points, caps, bars = ax.errorbar(places, rows["mean"], yerr=error, color=color, **line)
    return [points, *caps, *bars]


def _by_variant(comparison: Comparison, table: pd.DataFrame, names: Sequence[str]) -> Figure:
    variants, color = comparison.variants, colours(comparison)
    fig, axes = empty_figure(1, len(names), height=0.8 + 0.32 * len(variants))
    for ax, name in zip(axes[0], names, strict=True):
        rows = table[table["result"] == name].set_index("variant")
        for place, variant in enumerate(variants):
            if variant.name not in rows.index:
                continue
            seeds = [value_of(run, name) for run in variant.units.values()]
            mean, low, high = rows.loc[variant.name, ["mean", "low", "high"]]
            ax.plot(mean, place, "o", color=color[variant.name], markersize=6)
            ax.hlines(place, low, high, color=color[variant.name], linewidth=2.2)
            ax.plot(seeds, [place] * len(seeds), color=color[variant.name], **SEED)
        if comparison.baseline and comparison.baseline.name in rows.index:
            ax.axvline(rows.loc[comparison.baseline.name, "mean"], color=GREY, linewidth=0.8, linestyle="--", zorder=0)
        ax.set(title=plain_label(name, 40), ylim=(len(variants) - 0.5, -0.5))
        ax.set_yticks(range(len(variants)), [plain_label(variant.name) for variant in variants])
        ax.tick_params(labelleft=ax is axes[0, 0])
        ax.grid(axis="y", visible=False)
    return fig


def _maps(comparison: Comparison, table: pd.DataFrame, names: Sequence[str]) -> Figure:
    down, across = comparison.settings
    rows_at, columns_at = list(scale(comparison, down).places), list(scale(comparison, across).places)
    fig, axes = empty_figure(1, len(names), height=1.2 + 0.3 * len(rows_at))
    for ax, name in zip(axes[0], names, strict=True):
        means = table[table["result"] == name].set_index("variant")["mean"]
        cells = np.full((len(rows_at), len(columns_at)), np.nan)
        for variant in comparison.variants:
            place = rows_at.index(told(variant.settings[down])), columns_at.index(told(variant.settings[across]))
            cells[place] = means.get(variant.name, np.nan)
        image = ax.imshow(cells, cmap="viridis", aspect="auto", origin="lower")
        fig.colorbar(image, ax=ax, pad=0.02)
        ax.set_xticks(range(len(columns_at)), [plain_label(text, 10) for text in columns_at], rotation=45)
        ax.set_yticks(range(len(rows_at)), [plain_label(text, 10) for text in rows_at])
        ax.set(xlabel=plain_label(across), ylabel=plain_label(down), title=plain_label(name, 40))
        ax.grid(visible=False)
    return fig


def _parallel(comparison: Comparison, table: pd.DataFrame, names: Sequence[str]) -> Figure:
    """A line for each variant across one upright axis for each key, coloured by the result."""
    keys = comparison.settings
    fig, axes = empty_figure(len(names), 1, height=2.9 * len(names))
    for ax, name in zip(axes[:, 0], names, strict=True):
        means = table[table["result"] == name].set_index("variant")["mean"]
        shade = colormaps["viridis"]
        low, high = means.min(), means.max()
        heights = {key: _heights(scale(comparison, key)) for key in keys}
        for variant in sorted(comparison.variants, key=lambda v: means.get(v.name, -np.inf)):
            if variant.name not in means:
                continue
            share = (means[variant.name] - low) / ((high - low) or 1.0)
            at = [heights[key][told(variant.settings[key])] for key in keys]
            ax.plot(range(len(keys) + 1), [*at, share], color=shade(0.95 * share), linewidth=1.4, alpha=0.9)
        for place, key in enumerate(keys):
            _upright(ax, place, heights[key])
        _upright(ax, len(keys), {f"{low:.3g}": 0.0, f"{high:.3g}": 1.0})
        ax.set_xticks(range(len(keys) + 1), [*(plain_label(key, 18) for key in keys), plain_label(name, 24)])
        ax.set(yticks=[], xlim=(-0.35, len(keys) + 0.35), ylim=(-0.08, 1.08))
        ax.grid(visible=False)
        ax.spines[["left", "bottom"]].set_visible(False)
    return fig


def _upright(ax: Axes, place: float, marks: dict[str, float]) -> None:
    ax.axvline(place, color=INK, linewidth=0.8, zorder=0)
    shown = marks if len(marks) <= 8 else {text: marks[text] for text in (*list(marks)[:1], *list(marks)[-1:])}
    for text, height in shown.items():
        box = {"facecolor": "white", "alpha": 0.75, "pad": 0.8, "linewidth": 0}
        ax.text(place + 0.03, height, plain_label(text, 16), va="center", fontsize=8, color=INK, bbox=box, zorder=5)


def _heights(across: Scale) -> dict[str, float]:
    """The places on an axis of length 1."""
    places = np.array(list(across.places.values()))
    if across.kind == "log":
        places = np.log(places)
    elif across.kind == "symlog":
        places = np.arcsinh(places / across.smallest)
    span = (places.max() - places.min()) or 1.0
    return dict(zip(across.places, (places - places.min()) / span, strict=True))


def _scaled(ax: Axes, across: Scale) -> None:
    """Scale the axis and write the values that were tried at it, where there is room for them."""
    if across.kind == "log":
        ax.set_xscale("log")
    elif across.kind == "symlog":
        ax.set_xscale("symlog", linthresh=across.smallest)
    if len(across.places) <= 8:
        labels = [plain_label(text, 14) for text in across.places]
        turned = sum(map(len, labels)) > 24
        ax.set_xticks(
            list(across.places.values()), labels, rotation=30 if turned else 0, ha="right" if turned else "center"
        )
        ax.set_xticks([], minor=True)
