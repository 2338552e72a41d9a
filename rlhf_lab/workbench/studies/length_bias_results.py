"""14_length_bias: tables and figure, of a run and over seeds. A unit is a labeler and a remedy, fair_penalty."""

from pathlib import Path
from typing import get_args

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from rlhf_lab.workbench.artefacts import HOUSE
from rlhf_lab.workbench.records import read_jsonl
from rlhf_lab.workbench.stages import Remedy
from rlhf_lab.workbench.studies.units import Figures, Recorded, Units, draw_means, latest, less_rows, mean_text
from rlhf_lab.workbench.style import GREY, PALETTE, empty_figure, styled
from rlhf_lab.workbench.writing import user_path

RECORDED = HOUSE / "experiments" / "reference" / "length-bias.jsonl"
_ORDER = get_args(Remedy)
_LABELS = {  # what the reward model has learned from, and what it has learned
    "pairs": 0,
    "label_longer": 2,
    "label_accuracy": 2,
    "accuracy_gold": 2,
    "score_by_words": 2,
    "gold_by_words": 2,
}
_GAINS = {  # what the policy is
    "words": 1,
    "kl": 1,
    "eos_rate": 2,
    "score_gain": 2,
    "score_within": 2,
    "non_length": 2,
    "covered": 2,
    "gold_gain": 2,
    "gold_within": 2,
}
_WINS = {"win": 2, "win_fair": 2, "win_controlled": 2, "win_fair_controlled": 2, "win_rate": 2}
_MARKERS = {"win": "o", "win_fair": "x", "win_controlled": "D", "win_fair_controlled": "+"}
COMPARED = {"words": "words", "non_length": "share not of length", "gold_gain": "gold"}


def recorded(file: str | Path = "") -> Recorded | None:
    """The units in a file, "" = the committed one, with the settings of its last line; None without any."""
    lines = read_jsonl(user_path(file) if file else RECORDED)
    return latest(lines) if lines else None


def by_labeler(units: Units) -> dict[str, dict[str, str]]:
    """Labeler -> remedy -> its unit, the remedies in order."""
    found: dict[str, dict[str, str]] = {}
    for remedy in _ORDER:
        for unit in units:
            if unit.endswith(f"_{remedy}"):
                found.setdefault(unit.removesuffix(f"_{remedy}"), {})[remedy] = unit
    return found


def label_table(units: Units) -> pd.DataFrame:
    """Labels and reward models, a row for each unit; over several seeds means with 95% intervals."""
    return _table(units, _LABELS)


def gain_table(units: Units) -> pd.DataFrame:
    """Policies, and where their gains come from."""
    return _table(units, _GAINS)


def win_table(units: Units) -> pd.DataFrame:
    """Win rates over the SFT model: by who labelled and by one without a bias, raw and controlled; and by gold."""
    return _table(units, _WINS).rename(columns={"win_rate": "win_gold"})


def comparison_table(units: Units) -> pd.DataFrame:
    """Each remedy less none, seed by seed; the intervals of a column hold all at once (Bonferroni)."""
    pairs = {
        (labeler, remedy): (unit, remedies["none"])
        for labeler, remedies in by_labeler(units).items()
        for remedy, unit in remedies.items()
        if remedy != "none" and "none" in remedies
    }
    rows = less_rows(units, pairs, COMPARED)
    return pd.DataFrame.from_dict(rows, orient="index").rename_axis(["labeler", "less none"])


def evaluation_table(units: Units) -> pd.DataFrame:
    """How far the labeler's win rate is from that of one without a bias: both raw, and both controlled for length."""
    rows = {}
    for unit, seeds in units.items():
        apart = {
            seed: {
                "raw": figures["win"] - figures["win_fair"],
                "controlled": figures["win_controlled"] - figures["win_fair_controlled"],
            }
            for seed, figures in seeds.items()
        }
        rows[unit] = {name: mean_text(apart, name) for name in ("raw", "controlled")}
    return pd.DataFrame.from_dict(rows, orient="index").rename_axis("unit")


def results(units: Units) -> Figures:
    """What the run reports."""
    names = ("words", "non_length", "gold_gain", *(name for name in _WINS if name != "win_rate"))
    found: Figures = {}
    for unit, seeds in units.items():
        (figures,) = seeds.values()
        found |= {f"{name}_{unit}": figures[name] for name in names}
    return found


def tables(file: str | Path) -> str:
    """All tables of a file of results, for the terminal."""
    found = recorded(file)
    shown = (label_table, gain_table, win_table, comparison_table, evaluation_table)
    return "\n\n".join(table(found.units).to_string() for table in shown) if found else ""


@styled
def figure(units: Units) -> Figure:
    """Words, share of the gain in score that is not length, gold, and win rates, by remedy: means, 95% intervals."""
    panels = {
        "words": "words of a reply",
        "non_length": "share of the gain in score\nthat is not length",
        "gold_gain": "gain in gold (sd)",
    }
    fig, axes = empty_figure(2, 2, height=5.6)
    labelers = by_labeler(units)
    for place, (labeler, remedies) in enumerate(labelers.items()):
        aside, color = (place - (len(labelers) - 1) / 2) * 0.2, PALETTE[place % len(PALETTE)]
        x = [_ORDER.index(remedy) + aside for remedy in remedies]
        for ax, name in zip(axes.flat, panels, strict=False):
            draw_means(ax, x, _values(units, remedies, name), color, labeler, linestyle="none")
        for step, (name, marker) in enumerate(_MARKERS.items()):
            look = {"linestyle": "none", "marker": marker, "markersize": 5}
            at = [value + 0.05 * (step - 1.5) for value in x]
            draw_means(axes[1, 1], at, _values(units, remedies, name), color, "", **look)
    for ax, label in zip(
        axes.flat, [*panels.values(), "win rate: raw (o), fair (x);\ncontrolled (◆), fair (+)"], strict=True
    ):
        ax.set(ylabel=label)
        ax.set_xticks(range(len(_ORDER)), [remedy.replace("_", "\n") for remedy in _ORDER])
    sft = np.mean([figures["words_sft"] for seeds in units.values() for figures in seeds.values()])
    for ax, level in zip(axes.flat, (sft, 1.0, 0.0, 0.5), strict=True):
        ax.axhline(level, color=GREY, linewidth=0.8, linestyle="--")
    fig.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside lower center", ncols=max(len(labelers), 1))
    return fig


def _table(units: Units, shown: dict[str, int]) -> pd.DataFrame:
    rows = {
        (labeler, remedy): {name: mean_text(units[unit], name, digits) for name, digits in shown.items()}
        for labeler, remedies in by_labeler(units).items()
        for remedy, unit in remedies.items()
    }
    return pd.DataFrame.from_dict(rows, orient="index").rename_axis(["labeler", "remedy"])


def _values(units: Units, remedies: dict[str, str], name: str) -> np.ndarray:
    """(seeds, remedies) of a figure, of the seeds that all of these have."""
    seeds = sorted(set.intersection(*(set(units[unit]) for unit in remedies.values())))
    return np.array([[units[unit][seed][name] for unit in remedies.values()] for seed in seeds])
