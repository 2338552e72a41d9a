"""The notebooks' figures. Each function returns a matplotlib Figure; the curves of a run are in curves.py."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from scipy import stats

from rlhf_lab.errors import LabError
from rlhf_lab.workbench.curves import LiveCurves, curves, live_curves
from rlhf_lab.workbench.style import BLUE, GREY, INK, ORANGE, PALETTE, RED, empty_figure, styled

__all__ = [
    "LiveCurves",
    "calibration",
    "calibration_table",
    "curves",
    "live_curves",
    "proxy_gold",
    "reward_histogram",
    "token_bars",
    "verdict_bars",
]


@styled
def reward_histogram(
    before: Sequence[float],
    after: Sequence[float],
    *,
    labels: tuple[str, str] = ("before", "after"),
    xlabel: str = "reward",
    bins: int = 30,
) -> Figure:
    """Two distributions of one reward, with their means. NaN is left out."""
    samples = [_finite(values, label) for values, label in zip((before, after), labels, strict=True)]
    edges = np.histogram_bin_edges(np.concatenate(samples), bins=bins)
    fig, axes = empty_figure(1, 1, height=2.8)
    ax = axes[0, 0]
    for values, label, color in zip(samples, labels, (GREY, BLUE), strict=True):
        weights = np.full(len(values), 100 / len(values))
        ax.hist(values, edges, weights=weights, color=color, alpha=0.45, edgecolor="white", linewidth=0.4)
        ax.axvline(values.mean(), color=color, linewidth=1.8, label=f"{label}: mean {values.mean():.2f}")
    ax.set(xlabel=xlabel, ylabel="% of replies", title="")
    ax.grid(axis="x", visible=False)
    ax.legend(loc="lower left", bbox_to_anchor=(0.0, 1.0), ncols=2)
    return fig


@styled
def token_bars(
    tokens: Sequence[str],
    rewards: Sequence[float],
    kl: Sequence[float],
    *,
    per_row: int = 24,
    title: str = "",
) -> Figure:
    """One reply, token by token: log pi - log pi_ref in nats above, the shaped reward below.

    A reward that dwarfs the others, as the score at the end does, is cut off with its value written at it.
    """
    if not len(tokens) == len(rewards) == len(kl) or not len(tokens):
        counts = f"{len(tokens)} tokens, {len(rewards)} rewards and {len(kl)} KL values"
        raise LabError(f"token_bars: {counts}; give one of each for every token")
    labels = [_visible(token) for token in tokens]
    rewards, kl = (np.asarray([float(value) for value in values]) for values in (rewards, kl))
    limit = _cut(rewards)
    shown = rewards if limit is None else np.clip(rewards, -limit, limit)
    rows = -(-len(tokens) // per_row)
    fig, axes = empty_figure(2 * rows, 1, height=(2.2 + 0.05 * max(map(len, labels))) * rows)
    for row in range(rows):
        part = slice(row * per_row, (row + 1) * per_row)
        places = np.arange(len(labels[part]))
        top, bottom = axes[2 * row : 2 * row + 2, 0]
        top.bar(places, kl[part], color=ORANGE, width=0.75)
        top.set(ylabel="KL (nats)", xticks=[], ylim=_limits(kl, 0.08))
        colors = [BLUE if reward >= 0 else RED for reward in rewards[part]]
        bottom.bar(places, shown[part], color=colors, width=0.75)
        bottom.set(ylabel="reward", ylim=_limits(shown, 0.08 if limit is None else 0.3))
        bottom.set_xticks(places, labels[part], rotation=55, ha="right", rotation_mode="anchor")
        for place, reward in zip(places, rewards[part], strict=True):
            if limit is not None and abs(reward) > limit:
                _label_cut(bottom, place, reward, limit)
        for ax in (top, bottom):
            ax.set_xlim(-0.6, (per_row if rows > 1 else len(tokens)) - 0.4)
            ax.grid(axis="x", visible=False)
            ax.axhline(0, color=INK, linewidth=0.6)
    note = "" if limit is None else " (a bar with a number is cut off)"
    sums = f"KL {kl.sum():.2f} nats, reward {rewards.sum():.2f}{note}"
    fig.suptitle(title or sums, x=0.01, ha="left", color=INK)
    fig.align_ylabels()
    return fig


@styled
def proxy_gold(
    metrics: pd.DataFrame,
    *,
    proxy: str = "objective/scores",
    gold: str = "gold/mean",
    against: str = "objective/kl",
) -> Figure:
    """Proxy reward and gold against the KL to the reference or another column, as gains since the first row.

    Where the proxy goes on rising while gold falls, the policy over-optimises.
    """
    missing = [name for name in (proxy, gold, against) if name not in metrics]
    if missing:
        raise LabError(f"proxy_gold: the metrics have no '{missing[0]}'; they have {', '.join(metrics.columns)}")
    fig, axes = empty_figure(1, 1, height=3.4)
    ax = axes[0, 0]
    for name, label, color in ((proxy, "proxy", ORANGE), (gold, "gold", BLUE)):
        rows = metrics[[against, name]].dropna()
        if rows.empty:
            continue
        gain = rows[name].to_numpy() - rows[name].iloc[0]
        ax.plot(rows[against], gain, color=color, linewidth=1.2, alpha=0.7, marker="o", markersize=3.5)
        text = f"{label} {gain[-1]:+.2f}"
        ax.annotate(
            text, (rows[against].iloc[-1], gain[-1]), xytext=(7, 0), textcoords="offset points", color=color,
            va="center", fontweight="bold",
        )  # fmt: skip
    ax.axhline(0, color=GREY, linewidth=0.8)
    ax.margins(x=0.02)
    ax.set_xlim(right=ax.get_xlim()[1] + 0.14 * np.ptp(ax.get_xlim()))
    ax.set(
        xlabel="KL to the reference (nats per reply)" if against.endswith("/kl") else against,
        ylabel="gain since the start",
    )
    return fig


@styled
def calibration(probabilities: Sequence[float], outcomes: Sequence[float], bins: int = 10) -> Figure:
    """How often what was given probability p happened, by bins of p, with 95% Wilson intervals.

    outcomes: 0 or 1, or 1/2 for a tie. On the diagonal is calibrated, below it on the right overconfident.
    """
    said, happened = np.asarray(probabilities, dtype=float), np.asarray(outcomes, dtype=float)
    if said.shape != happened.shape or not len(said) or not ((said >= 0) & (said <= 1)).all():
        raise LabError("calibration: give as many outcomes as probabilities, at least one, and all p in [0, 1]")
    table = calibration_table(said, happened, bins)
    fig, axes = empty_figure(2, 1, height=4.6, width=5.4, ratios=(4, 1))
    ax, counts = axes[:, 0]
    ax.plot([0, 1], [0, 1], color=GREY, linewidth=1, linestyle="--")
    error = [table["share"] - table["low"], table["high"] - table["share"]]
    ax.errorbar(table["said"], table["share"], yerr=error, color=BLUE, marker="o", markersize=4.5, capsize=2.5)
    gap = np.average((table["share"] - table["said"]).abs(), weights=table["n"])
    ax.text(0.03, 0.95, f"mean gap {gap:.3f}", transform=ax.transAxes, va="top", color=INK)
    ax.set(xlim=(-0.02, 1.02), ylim=(-0.02, 1.02), ylabel="share that happened")
    counts.bar(table["middle"], table["n"], width=0.9 / bins, color=BLUE, alpha=0.45)
    counts.set(xlim=(-0.02, 1.02), xlabel="probability said", ylabel="count")
    ax.tick_params(labelbottom=False)
    return fig


def calibration_table(said: np.ndarray, happened: np.ndarray, bins: int = 10) -> pd.DataFrame:
    """One row for each bin with entries: its middle, the mean p, the share that happened with interval, n."""
    place = np.minimum((said * bins).astype(int), bins - 1)
    rows = []
    for index in np.unique(place):
        inside = place == index
        share, n = happened[inside].mean(), int(inside.sum())
        z2 = stats.norm.ppf(0.975) ** 2
        center = (share + z2 / (2 * n)) / (1 + z2 / n)
        half = np.sqrt(z2 * (share * (1 - share) / n + z2 / (4 * n * n))) / (1 + z2 / n)
        low, high = min(share, center - half), max(share, center + half)  # at 0 and 1 rounding may cross the share
        rows.append(((index + 0.5) / bins, said[inside].mean(), share, low, high, n))
    return pd.DataFrame(rows, columns=["middle", "said", "share", "low", "high", "n"])


@styled
def verdict_bars(summary: pd.DataFrame, truth: Mapping[Any, float] | None = None) -> Figure:
    """Statistics of judges with their 95% intervals, and what was planted as a diamond.

    summary: columns statistic, value, low, high, and judge where there are several.
    truth: (judge, statistic) or statistic -> planted value.
    """
    missing = {"statistic", "value", "low", "high"} - set(summary.columns)
    if missing:
        raise LabError(f"verdict_bars: the summary has no column '{sorted(missing)[0]}'")
    truth = truth or {}
    judges = list(dict.fromkeys(summary["judge"])) if "judge" in summary else [""]
    statistics = list(dict.fromkeys(summary["statistic"]))
    fig, axes = empty_figure(1, 1, height=0.7 + len(statistics) * (0.16 + 0.17 * len(judges)))
    ax = axes[0, 0]
    planted = False
    for number, judge in enumerate(judges):
        rows = summary[summary["judge"] == judge] if "judge" in summary else summary
        offset = 0.7 * ((number + 0.5) / len(judges) - 0.5)
        y = np.array([statistics.index(name) for name in rows["statistic"]]) + offset
        value, low, high = (rows[name].to_numpy(dtype=float) for name in ("value", "low", "high"))
        color = PALETTE[number % len(PALETTE)]
        ax.hlines(y, low, high, color=color, linewidth=2.4, alpha=0.55)
        ax.plot(value, y, "o", color=color, markersize=5, label=judge or None)
        for place, name in zip(y, rows["statistic"], strict=True):
            true = truth.get((judge, name), truth.get(name))
            if true is not None:
                ax.plot(true, place, "D", markersize=7, markerfacecolor="none", markeredgecolor=INK, zorder=5)
                planted = True
    if planted:
        ax.plot([], [], "D", markersize=7, markerfacecolor="none", markeredgecolor=INK, label="expected")
    ax.set_yticks(range(len(statistics)), [name.replace("_", " ") for name in statistics])
    ax.set_ylim(len(statistics) - 0.5, -0.5)
    ax.grid(axis="y", visible=False)
    ax.hlines(
        np.arange(len(statistics) - 1) + 0.5,
        0,
        1,
        transform=ax.get_yaxis_transform(),
        color="#DDDDDD",
        linewidth=0.7,
    )
    ax.axvline(0, color=GREY, linewidth=0.8)
    ax.set_xlabel("estimate and 95% interval")
    if len(judges) > 1 or planted:
        ax.legend(loc="upper left", bbox_to_anchor=(1.0, 1.0))
    return fig


def _finite(values: Sequence[float], name: str) -> np.ndarray:
    array = np.asarray(values, dtype=float)
    array = array[np.isfinite(array)]
    if not len(array):
        raise LabError(f"reward_histogram: '{name}' has no finite values")
    return array


def _visible(token: str) -> str:
    """A token as a label: spaces and line ends shown, dollars not taken for mathematics, long ones cut."""
    text = token.replace("Ġ", " ").replace("▁", " ").replace("\n", "↵").strip(" ") or "␣"
    return (text if len(text) <= 14 else text[:13] + "…").replace("$", r"\$")


def _cut(rewards: np.ndarray) -> float | None:
    """Where to cut a bar that dwarfs the others; None when none does."""
    sizes = np.sort(np.abs(rewards))
    if len(sizes) < 3 or sizes[-2] == 0 or sizes[-1] <= 5 * sizes[-2]:
        return None
    return float(2 * sizes[-2])


def _label_cut(ax: Axes, place: float, reward: float, limit: float) -> None:
    up = reward > 0
    ax.annotate(
        f"{reward:.2f}",
        (place, limit if up else -limit),
        xytext=(0, 2 if up else -2),
        textcoords="offset points",
        ha="center",
        va="bottom" if up else "top",
        fontweight="bold",
        color=BLUE if up else RED,
    )


def _limits(values: np.ndarray, margin: float) -> tuple[float, float]:
    """Limits of an axis that hold 0 and the values, the same for every row of a figure."""
    low, high = min(0.0, np.nanmin(values)), max(0.0, np.nanmax(values))
    pad = margin * ((high - low) or 1.0)
    return low - pad, high + pad
