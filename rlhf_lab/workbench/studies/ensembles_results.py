"""13_ensembles: tables and figure, of a run and over seeds."""

from pathlib import Path
from typing import get_args

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from rlhf_lab.workbench.artefacts import HOUSE
from rlhf_lab.workbench.intervals import mean_interval
from rlhf_lab.workbench.records import read_jsonl
from rlhf_lab.workbench.stages.ensembles import Combination
from rlhf_lab.workbench.studies.units import Figures, Recorded, Units, latest, less_rows, mean_text
from rlhf_lab.workbench.style import BLUE, GREEN, GREY, INK, ORANGE, empty_figure, styled
from rlhf_lab.workbench.writing import user_path

RECORDED = HOUSE / "experiments" / "reference" / "ensembles.jsonl"
_ORDER = get_args(Combination)
_COLORS = {"single": INK, "mean": ORANGE, "worst": BLUE, "uncertainty": GREEN}
_SHOWN = {  # figure -> digits
    "members": 0,
    "train_seconds": 0,
    "ppo_seconds": 0,
    "accuracy_gold": 3,
    "bon": 2,
    "ppo": 2,
    "kl": 1,
    "eos_rate": 2,
}
COMPARED = {"bon": "gold, best of n", "ppo": "gold, PPO", "accuracy_gold": "accuracy"}


def recorded(file: str | Path = "") -> Recorded | None:
    """The results in a file, "" = the committed one, with the settings of its last line; None without any."""
    lines = read_jsonl(user_path(file) if file else RECORDED)
    return latest(lines) if lines else None


def levels(units: Units) -> dict[str, dict[str, str]]:
    """Share of labels flipped -> combination -> its unit, both in order."""
    parts = {unit: unit.removeprefix("flip_").rpartition("_") for unit in units}
    flips = sorted({flip for flip, _, _ in parts.values()}, key=float)
    order = sorted(units, key=lambda unit: _ORDER.index(parts[unit][2]))
    return {flip: {parts[unit][2]: unit for unit in order if parts[unit][0] == flip} for flip in flips}


def table(units: Units) -> pd.DataFrame:
    """One row for each unit, with what it cost; over several seeds means with 95% intervals."""
    rows = {
        (flip, how): {name: mean_text(units[unit], name, digits) for name, digits in _SHOWN.items()}
        for flip, combined in levels(units).items()
        for how, unit in combined.items()
    }
    return pd.DataFrame.from_dict(rows, orient="index").rename_axis(["flipped", "combination"])


def comparison_table(units: Units) -> pd.DataFrame:
    """Each ensemble less the single model, seed by seed; the intervals of a column hold all at once (Bonferroni)."""
    pairs = {
        (flip, how): (unit, combined["single"])
        for flip, combined in levels(units).items()
        for how, unit in combined.items()
        if how != "single" and "single" in combined
    }
    rows = less_rows(units, pairs, COMPARED)
    index = pd.MultiIndex.from_tuples(rows, names=["flipped", "less the single model"])
    return pd.DataFrame(list(rows.values()), index=index, columns=list(COMPARED.values()))


def results(units: Units) -> Figures:
    """What the run reports."""
    found: Figures = {}
    for unit, seeds in units.items():
        (figures,) = seeds.values()
        found |= {f"{name}_{unit}": figures[name] for name in ("bon", "ppo", "kl", "accuracy_gold")}
    return found


def tables(file: str | Path) -> str:
    """All tables of a file of results, for the terminal."""
    found = recorded(file)
    return "\n\n".join(shown(found.units).to_string() for shown in (table, comparison_table)) if found else ""


@styled
def figure(units: Units) -> Figure:
    """Gain in gold along n (left) and along PPO's KL (right), a row for each level of noise: means, 95% intervals."""
    shown = levels(units)
    fig, axes = empty_figure(len(shown), 2, height=0.6 + 2.7 * len(shown))
    for row, (flip, combined) in zip(axes, shown.items(), strict=True):
        ns = along_n(units, next(iter(combined.values())))[0]
        for how, unit in combined.items():
            for ax, (x, gold) in zip(row, (along_n(units, unit), along_ppo(units, unit)), strict=True):
                at = [mean_interval(column) for column in gold.T]
                ax.plot(x, [i.mean for i in at], color=_COLORS[how], label=how, marker="o", markersize=3.5)
                if len(gold) > 1:
                    ax.fill_between(x, [i.low for i in at], [i.high for i in at], color=_COLORS[how], alpha=0.1)
        for ax in row:
            ax.axhline(0, color=GREY, linewidth=0.6)
        row[0].set_ylabel("gain in gold (sd)")
        row[0].set_title(f"{float(flip):.0%} of the labels flipped")
        row[0].set_xscale("log", base=2)
        row[0].set_xticks(ns, ns)
    axes[-1, 0].set_xlabel("n of the best of n")
    axes[-1, 1].set_xlabel("PPO: KL to the SFT model (nats per reply)")
    axes[0, 1].legend(loc="best")
    return fig


def along_n(units: Units, unit: str) -> tuple[list[int], np.ndarray]:
    """The n's, and (seeds, n's) of the gain in gold."""
    return _curves(units, unit, "bon_at_")


def along_ppo(units: Units, unit: str) -> tuple[np.ndarray, np.ndarray]:
    """The mean KL after so many updates, and (seeds, measurements) of the gain in gold."""
    _, kl = _curves(units, unit, "ppo_kl_at_")
    return kl.mean(0), _curves(units, unit, "ppo_gold_at_")[1]


def _curves(units: Units, unit: str, name: str) -> tuple[list[int], np.ndarray]:
    """The numbers at the end of some figures' names, and (seeds, numbers) of those figures."""
    seeds = list(units[unit].values())
    places = sorted(int(key.removeprefix(name)) for key in seeds[0] if key.startswith(name))
    return places, np.array([[figures[f"{name}{place}"] for place in places] for figures in seeds])
