"""11_kl_coefficient: its figure, of a run and over seeds."""

import matplotlib as mpl
import numpy as np
from matplotlib.figure import Figure

from rlhf_lab.workbench.studies.kl_coefficient_results import curve, named
from rlhf_lab.workbench.studies.units import Units, draw_means
from rlhf_lab.workbench.style import BLUE, GREEN, GREY, ORANGE, RED, empty_figure, styled


@styled
def figure(units: Units) -> Figure:
    """Where each coefficient ends; gold against the KL on the way there; the KL on the way with k1, k3 and a target.

    Means over the seeds, with 95% intervals of where they end.
    """
    fig, axes = empty_figure(1, 3, height=3.8)
    _draw_ends(axes[0, 0], units)
    _draw_curves(axes[0, 1], units)
    _draw_kl(axes[0, 2], units)
    return fig


def _draw_ends(ax, units: Units) -> None:
    fixed = named(units, "kl")
    for what, color in (("score", ORANGE), ("gold", BLUE)):
        draw_means(ax, range(len(fixed)), _rows(units, list(fixed.values()), what), color, what)
    before = np.mean([figures["gold_sft"] for unit in fixed.values() for figures in units[unit].values()])
    ax.axhline(before, color=GREY, linewidth=0.8, linestyle="--", label="gold, SFT")
    ax.set(xlabel="coefficient of the KL", ylabel="score and gold at the end (sd)")
    ax.set_xticks(range(len(fixed)), [f"{coef:g}" for coef in fixed], rotation=45)
    ax.legend(loc="best")


def _rows(units: Units, names: list[str], what: str) -> np.ndarray:
    """(seeds, units) of a figure, for the seeds that all of them have."""
    seeds = sorted(set.intersection(*({*units[name]} for name in names)))
    return np.array([[units[name][seed][what] for name in names] for seed in seeds])


def _draw_curves(ax, units: Units) -> None:
    fixed = named(units, "kl")
    shades = mpl.colormaps["viridis"](np.linspace(0, 0.9, len(fixed)))
    for (coef, unit), color in zip(fixed.items(), shades, strict=True):
        x, y = _mean_curve(units, unit)
        ax.plot(x, y, color=color, marker="o", markersize=2.5, linewidth=1.1, label=f"{coef:g}")
    for unit in named(units, "again").values():
        x, y = _mean_curve(units, unit)
        ax.plot(x, y, color=GREY, linewidth=0.9, linestyle="--", label="0 again")
    for target, unit in named(units, "ziegler").items():
        x, y = _mean_curve(units, unit)
        ax.plot(x, y, color=RED, marker="s", markersize=2.5, linewidth=0.9, linestyle=":", label=f"target {target:g}")
    ax.set(xlabel="square root of the KL (nats per reply)", ylabel="gold (sd)")
    ax.legend(loc="upper center", bbox_to_anchor=(0.5, -0.16), ncols=4, fontsize=7)  # the curves fill the axes


def _mean_curve(units: Units, unit: str) -> tuple[np.ndarray, np.ndarray]:
    """The means over seeds of a unit's curve, measurement by measurement."""
    x, y = zip(*(curve(figures, "gold") for figures in units[unit].values()), strict=True)
    return np.mean(x, axis=0), np.mean(y, axis=0)


def _draw_kl(ax, units: Units) -> None:
    fixed, wrong = named(units, "kl"), named(units, "k3")
    strengths = dict(zip(wrong, ("-", "--", ":", "-."), strict=False))
    lines = [("kl_0", "none", GREY, "-")]
    lines += [(fixed[c], f"k1, {c:g}", BLUE, line) for c, line in strengths.items() if c in fixed]
    lines += [(wrong[c], f"k3, {c:g}", ORANGE, line) for c, line in strengths.items()]
    lines += [(unit, f"target {t:g}", GREEN, "-") for t, unit in named(units, "ziegler").items()]
    for unit, label, color, line in lines:
        names = [name for name in next(iter(units[unit].values())) if name.startswith("kl_at_")]
        updates = sorted(int(name.removeprefix("kl_at_")) for name in names)
        means = np.mean([[figures[f"kl_at_{u}"] for u in updates] for figures in units[unit].values()], axis=0)
        ax.plot(updates, means, line, color=color, linewidth=1.2, label=label)
    for target in named(units, "ziegler"):
        ax.axhline(target, color=GREEN, linewidth=0.6, alpha=0.6)
    ax.set(xlabel="update", ylabel="KL (nats per reply)")
    ax.legend(loc="best", fontsize=7)
