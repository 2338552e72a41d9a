"""06_synthetic_feedback: its figures, of a run and over seeds."""

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from rlhf_lab.judges.feedback import QUALITIES, SIZES
from rlhf_lab.workbench.intervals import mean_interval
from rlhf_lab.workbench.studies.synthetic_feedback import CONDITIONS
from rlhf_lab.workbench.studies.synthetic_feedback_results import CHAINS, MENDED, steps_along
from rlhf_lab.workbench.studies.units import Figures, Units, draw_means, gaps_of
from rlhf_lab.workbench.style import BLUE, GREEN, GREY, ORANGE, PALETTE, empty_figure, styled


@styled
def almost_figure(units: Units) -> Figure:
    """Gold of the responders by shots; the rule's accuracy along each axis; gold from stage to stage."""
    fig, axes = empty_figure(1, 3, height=3.4)
    if "axes" in units:
        _draw_responders(axes[0, 0], units["axes"])
        _draw_rule(axes[0, 1], units["axes"])
    _draw_stages(axes[0, 2], units)
    return fig


def _draw_responders(ax, axes: dict[int, Figures]) -> None:
    figures = pd.DataFrame(axes.values()).mean()
    shots = sorted({int(name.split("_")[2]) for name in figures.index if name.startswith("gold_")})
    for size, color in zip(SIZES, (ORANGE, GREEN, BLUE), strict=True):
        for quality, line in zip(QUALITIES, ("--", "-"), strict=True):
            names = [f"gold_{size}_{n}" + (f"_{quality}" if n else "") for n in shots]
            label = size if quality == "good" else None
            ax.plot(shots, figures[names], line, color=color, marker="o", markersize=3, label=label)
    ax.set(xlabel="worked examples (dashed: poor ones)", ylabel="gold (sd)", xticks=shots)
    ax.legend(loc="best")


def _draw_rule(ax, axes: dict[int, Figures]) -> None:
    table = pd.DataFrame(axes.values())
    for axis, better, worse in steps_along(next(iter(axes.values()))):
        place = ("size", "shots", "quality").index(axis)
        value = table[f"accuracy_{better}_over_{worse}"].mean()
        color = dict(zip(SIZES, (ORANGE, GREEN, BLUE), strict=True))[better.split("_")[0]]
        beside = 0 if axis == "quality" else 0.12 if "poor" in better + worse else -0.12
        ax.plot(place + beside, value, "o", color=color, markersize=4)
    ax.axhline(0.5, color=GREY, linewidth=0.6)
    ax.set(xticks=range(3), xticklabels=["size", "shots", "quality"], xlim=(-0.5, 2.5), ylabel="the rule's accuracy")
    ax.set_xlabel("axis (right of it: with poor examples)")


def _draw_stages(ax, units: Units) -> None:
    places = ("self-play", "best of it", "SFT", "PPO")
    for name, color in zip(CHAINS, PALETTE, strict=False):
        if name not in units or "start" not in units:
            continue
        seeds = [seed for seed in units[name] if seed in units["start"]]
        keys = ("gold_demonstrations", "gold_sft", "ppo_gold")
        rows = np.array([[units["start"][s]["gold_self_play"], *(units[name][s][key] for key in keys)] for s in seeds])
        draw_means(ax, range(4), rows, color, name)
    if "start" in units:
        plain = np.mean([figures["gold_plain_sft"] for figures in units["start"].values()])
        ax.axhline(plain, color=GREY, linewidth=0.8, linestyle="--", label="plain SFT")
        ax.legend(loc="best")
    ax.set(xticks=range(4), xticklabels=places, ylabel="gold (sd)")


@styled
def judges_figure(units: Units) -> Figure:
    """Accuracy of the labels, and gold of the policy less that of the fair judge's, for each condition."""
    fig, axes = empty_figure(1, 2, height=3.6)
    names = [name for name in CONDITIONS if name in units]
    for place, name in enumerate(reversed(names)):
        color = GREEN if name in MENDED else BLUE if name == "fair" else ORANGE
        gaps = np.array(gaps_of(units, name, "fair", "ppo_gold"))
        labels = np.array([figures["accuracy"] for figures in units[name].values()])
        for ax, values in zip(axes[0], (labels, gaps), strict=True):
            if len(values):
                at = mean_interval(values)
                error = [[at.mean - at.low], [at.high - at.mean]] if len(values) > 1 else None
                ax.errorbar([at.mean], [place], xerr=error, color=color, marker="o", markersize=4, capsize=2)
    for ax, label in zip(axes[0], ("accuracy of the labels", "gold of the policy less fair (sd)"), strict=True):
        ax.set(yticks=range(len(names)), yticklabels=reversed(names), xlabel=label)
    axes[0, 1].set_yticklabels([])
    axes[0, 1].axvline(0, color=GREY, linewidth=0.6)
    return fig
