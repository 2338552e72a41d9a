"""15_ppo_details: which details matter. Tables and forest plot, of a run and over seeds."""

from pathlib import Path
from statistics import fmean
from typing import NamedTuple

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, NullLocator

from rlhf_lab.workbench.artefacts import HOUSE
from rlhf_lab.workbench.intervals import mean_interval
from rlhf_lab.workbench.records import read_jsonl
from rlhf_lab.workbench.stages.ppo_details import DETAILS
from rlhf_lab.workbench.studies.algorithm_results import bonferroni
from rlhf_lab.workbench.studies.units import Figures, Recorded, Units, gaps_text, latest, mean_text
from rlhf_lab.workbench.style import BLUE, GREY, RED, empty_figure, styled
from rlhf_lab.workbench.writing import user_path

RECORDED = HOUSE / "experiments" / "reference" / "ppo-details.jsonl"
COMPARED = {"gold": "gold (sd)", "kl": "KL (nats)", "eos_rate": "EOS rate"}


class Control(NamedTuple):
    """What was to be shown, before anything was recorded."""

    shows_in: str  # a figure
    expected: str
    than: float | None = None  # None: than what the detail is compared with


CONTROLS = {
    "reversed": Control("accuracy_gold", "lower", 0.5),
    "dropout": Control("first_ratio_off", "higher"),
    "adam_eps_1e-8": Control("approx_kl", "higher"),
    "short_no_eos_penalty": Control("eos_rate", "lower"),
    "padded_whitening": Control("policy_grad_norm", "higher"),
    "no_kl": Control("score_ahead", "higher"),
}
"""All other details are explored."""
_CHANCE = ["baseline", *(name for name, detail in DETAILS.items() if detail.kind == "chance")]
_COMPARATORS = {detail.against for detail in DETAILS.values()}
_LINEAR = {"gold": 0.5, "kl": 2.0, "eos_rate": 0.1}  # the axis is linear up to here, logarithmic beyond
_ENDS = {"gold": 2, "score": 2, "score_ahead": 2, "kl": 2, "win_rate": 2, "eos_rate": 3, "words": 1, "accuracy_gold": 3}
_STEPS = {
    "first_kl": 5,
    "first_ratio_off": 5,
    "approx_kl": 4,
    "clip_fraction": 3,
    "ratio_off": 3,
    "value_clip_fraction": 3,
    "explained_variance": 2,
    "explained_variance_last": 2,
    "policy_grad_norm": 2,
    "policy_grad_norm_max": 2,
    "value_grad_norm": 2,
    "value_grad_norm_max": 2,
    "entropy_last": 2,
    "score_scale": 2,
    "unfinished": 3,
    "optimizer_steps": 0,
    "seconds": 0,
}
_COLORS = {"chance": GREY, "setting": BLUE, "mistake": RED}


def recorded(file: str | Path = "") -> Recorded | None:
    """The results in a file, "" = the committed one, with the settings of its last line.

    None without any, or before the baseline is there: nothing can be compared.
    """
    lines = read_jsonl(user_path(file) if file else RECORDED)
    found = latest(lines) if lines else None
    return found if found and "baseline" in found.units else None


def gaps(units: Units, name: str, what: str) -> list[float]:
    """A figure of a detail less that of what it is compared with, seed by seed.

    That is the mean of the runs in which chance alone differs, or of the others of them for one of these; or the unit
    that the detail names.
    """
    against = DETAILS[name].against
    others = [against] if against else [run for run in _CHANCE if run != name]
    found = []
    for seed, figures in units[name].items():
        if theirs := [units[other][seed][what] for other in others if seed in units.get(other, {})]:
            found.append(figures[what] - fmean(theirs))
    return found


def acted(units: Units, name: str) -> list[bool]:
    """For every seed: whether a detail changed anything. If it never came to act, all figures are the comparator's."""
    other = units.get(DETAILS[name].against or "baseline", {})
    return [
        any(figures[what] != other[seed][what] for what in figures if what != "seconds")
        for seed, figures in units[name].items()
        if seed in other
    ]


def families(units: Units) -> dict[str, list[str]]:
    """What is compared: chance, the controls, and what is explored. Intervals hold at once within the last two."""
    there = [name for name in DETAILS if name in units and name not in _COMPARATORS]
    chance = [name for name in there if name in _CHANCE]
    controls = [name for name in CONTROLS if name in there]
    return {"chance": chance, "control": controls, "explored": [n for n in there if n not in {*chance, *controls}]}


def comparisons(family: str, names: list[str]) -> int:
    """How many intervals hold at once. Those of chance show what it does, and test nothing."""
    return 1 if family == "chance" else len(names)


def verdict(found: list[float], number: int) -> str:
    """`higher` or `lower` where the interval at level 1 - 0.05 / number leaves out 0, else ""."""
    low, high = bonferroni(found, number)
    return "higher" if low > 0 else "lower" if high < 0 else ""


def control_table(units: Units) -> pd.DataFrame:
    """The controls: each by the figure in which it ought to show, with intervals that hold at once (Bonferroni)."""
    names = families(units)["control"]
    rows = {}
    for name in names:
        what, expected, than = CONTROLS[name]
        values = [figures[what] for figures in units[name].values()]
        found = gaps(units, name, what) if than is None else [value - than for value in values]
        seen = verdict(found, len(names))
        rows[name] = {"what is switched": DETAILS[name].said, "shows in": what, "expected": expected}
        rows[name] |= {"less": "runs without" if than is None else than, "found": gaps_text(found, len(names), 4)}
        rows[name]["as expected"] = "yes" if seen == expected else "no" if seen else "not shown"
    return pd.DataFrame.from_dict(rows, orient="index").rename_axis("control")


def comparison_table(units: Units) -> pd.DataFrame:
    """Each detail less the runs without it, seed by seed. The intervals of a column and a family hold all at once.

    `gold is`: in which direction it matters, where that is shown. `lower in`: the seeds in which gold is lower.
    """
    rows = {}
    for family, names in families(units).items():
        number = comparisons(family, names)
        for name in names:
            found, moved = gaps(units, name, "gold"), acted(units, name)
            said = {what: gaps_text(gaps(units, name, what), number) for what in COMPARED}
            said |= {"gold is": verdict(found, number), "lower in": f"{sum(g < 0 for g in found)} of {len(found)}"}
            if not any(moved):
                said = dict.fromkeys(said, "") | {"gold": "never acted"}
            about = {"family": family, "what is switched": DETAILS[name].said, "N+ or": DETAILS[name].source}
            rows[name] = about | {"acted in": f"{sum(moved)} of {len(moved)}"} | said
    return pd.DataFrame.from_dict(rows, orient="index").rename_axis("less the runs without it")


def table(units: Units) -> pd.DataFrame:
    """Where each unit ended and what it was on the way there; over several seeds means with 95% intervals."""
    there = {name for seeds in units.values() for figures in seeds.values() for name in figures}
    way = {name: 2 for name in sorted(there) if name.startswith(("gold_at_", "kl_at_"))}
    return _table(units, _ENDS | way)


def steps_table(units: Units) -> pd.DataFrame:
    """How each unit's steps were, and whether what it switches came to act."""
    return _table(units, _STEPS)


def _table(units: Units, digits: dict[str, int]) -> pd.DataFrame:
    rows = {
        name: {what: mean_text(units[name], what, places) for what, places in digits.items()}
        for name in ["baseline", *DETAILS]
        if name in units
    }
    return pd.DataFrame.from_dict(rows, orient="index").rename_axis("unit")


def tables(file: str | Path) -> str:
    """All tables of a file of results, for the terminal."""
    found, shown = recorded(file), (control_table, comparison_table, table, steps_table)
    return "\n\n".join(make(found.units).to_string() for make in shown) if found else ""


def results(units: Units) -> Figures:
    """What the run reports: each unit's gold and KL, and each detail's gold less that of the runs without it."""
    found: Figures = {}
    for unit, seeds in units.items():
        (figures,) = seeds.values()
        found |= {f"{name}_{unit}": figures[name] for name in ("gold", "kl")}
    for names in families(units).values():
        found |= {f"gold_gap_{name}": gaps(units, name, "gold")[0] for name in names}
    return found


@styled
def figure(units: Units) -> Figure:
    """Each detail less the runs without it, paired by seed: gold, KL and EOS rate. Chance, controls, what is explored.

    A thick line is the 95% interval of that difference alone, the thin one holds for all of its family at once. Grey is
    what chance alone does, red what breaks something. The axes are linear near 0 and logarithmic further out.
    """
    rows = [(name, comparisons(family, names)) for family, names in families(units).items() for name in names]
    fig, axes = empty_figure(1, len(COMPARED), height=1.0 + 0.19 * max(len(rows), 4))
    for ax, (what, label) in zip(axes[0], COMPARED.items(), strict=True):
        for place, (name, number) in enumerate(reversed(rows)):
            if any(acted(units, name)):
                _draw(ax, place, gaps(units, name, what), _COLORS[DETAILS[name].kind], number)
            else:
                ax.plot([0], [place], "x", color=GREY, markersize=4)
        ax.axvline(0, color=GREY, linewidth=0.8)
        ax.set(xlabel=f"{label}, less runs without", yticks=range(len(rows)), yticklabels=[], ylim=(-1, len(rows)))
        ax.set_xscale("symlog", linthresh=_LINEAR[what])  # one mistake is ten times as large as all other details
        ax.xaxis.set_major_locator(
            FixedLocator([part * _LINEAR[what] for part in (-10, -4, -1, -0.5, 0, 0.5, 1, 4, 10)])
        )
        ax.xaxis.set_major_formatter("{x:g}")
        ax.xaxis.set_minor_locator(NullLocator())
    axes[0, 0].set_yticklabels([name + " (never acted)" * (not any(acted(units, name))) for name, _ in reversed(rows)])
    return fig


def _draw(ax, place: int, found: list[float], color: str, number: int) -> None:
    at = mean_interval(found)
    if len(found) > 1:
        ax.plot(bonferroni(found, number), [place, place], color=color, linewidth=0.7)
        ax.plot([at.low, at.high], [place, place], color=color, linewidth=2.6, alpha=0.6, solid_capstyle="butt")
    ax.plot([np.mean(found)], [place], "o", color=color, markersize=4)
