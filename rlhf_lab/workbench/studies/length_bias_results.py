"""14_length_bias: tables and figure, of a run and over seeds. A unit is a labeler and a remedy, fair_penalty."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import get_args

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from scipy import stats

from rlhf_lab.workbench.artefacts import HOUSE
from rlhf_lab.workbench.intervals import Interval
from rlhf_lab.workbench.records import read_jsonl
from rlhf_lab.workbench.stages import Remedy
from rlhf_lab.workbench.studies.algorithm_results import bonferroni
from rlhf_lab.workbench.studies.units import (
    Figures,
    Recorded,
    Units,
    draw_means,
    gaps_of,
    gaps_text,
    latest,
    less_rows,
    mean_of,
    mean_text,
)
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
    "words_q90": 1,
    "kl": 1,
    "eos_rate": 2,
    "score_gain": 2,
    "score_within": 2,
    "score_by_length": 2,
    "covered": 2,
    "gold_gain": 2,
    "gold_within": 2,
    "utility_gain": 2,
    "utility_words": 2,
}
_WINS = {
    "win": 2,
    "win_fair": 2,
    "win_controlled": 2,
    "win_fair_controlled": 2,
    "win_rate": 2,
    "win_by_length": 2,
    "words_apart_sd": 1,
}
_MARKERS = {"win": "o", "win_fair": "x", "win_controlled": "D", "win_fair_controlled": "+"}
COMPARED = {
    "words": "words",
    "score_within": "score, not of length",
    "score_by_length": "score, of length",
    "gold_gain": "gold",
}


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


def ratio_interval(parts: Sequence[float], wholes: Sequence[float]) -> Interval | None:
    """The mean of parts over the mean of wholes, with Fieller's 95% interval; one pair has none (NaN).

    None where the 95% interval of the wholes' mean holds 0: then the ratio may be anything.
    Source: Fieller 1954, Some problems in interval estimation; the pairs are those of independent seeds.
    """
    part, whole = np.mean(parts), np.mean(wholes)
    if len(parts) < 2:
        return Interval(part / whole, math.nan, math.nan) if whole else None
    t = stats.t.ppf(0.975, len(parts) - 1)
    (of_parts, both), (_, of_wholes) = np.cov(parts, wholes) / len(parts) * t**2
    a, b, c = whole**2 - of_wholes, part * whole - both, part**2 - of_parts
    if a <= 0:
        return None
    root = math.sqrt(max(b**2 - a * c, 0.0))
    return Interval(part / whole, (b - root) / a, (b + root) / a)


def label_table(units: Units) -> pd.DataFrame:
    """Labels and reward models, a row for each unit; over several seeds means with 95% intervals."""
    return _table(units, _LABELS)


def gain_table(units: Units) -> pd.DataFrame:
    """Policies, and where their gains come from; `share` is score_within over score_gain, as a ratio of means.

    Its interval is Fieller's; "-" where it is not shown that there is any gain in score to have a share of.
    """
    table = _table(units, _GAINS)
    shares = []
    for labeler, remedy in table.index:
        seeds = units[f"{labeler}_{remedy}"].values()
        found = ratio_interval(*([figures[name] for figures in seeds] for name in ("score_within", "score_gain")))
        shares.append("-" if found is None else str(found) if len(seeds) > 1 else f"{found.mean:.2f}")
    table.insert(list(table).index("covered"), "share", shares)
    return table


def width_table(units: Units) -> pd.DataFrame:
    """What of the gain in score is within bins of other widths, and the share of replies in bins that both have."""
    return _table(units, {f"{name}_{width}": 2 for width in (1, 2, 8) for name in ("score_within", "covered")})


def win_table(units: Units) -> pd.DataFrame:
    """Win rates over the SFT model: by who labelled and by one without a bias, raw and controlled; and by gold."""
    return _table(units, _WINS).rename(columns={"win_rate": "win_gold"})


def length_table(units: Units) -> pd.DataFrame:
    """Whether replies grow: each unit's words less the SFT model's, and among labelers without a remedy.

    There each labeler's less the first one's. All intervals hold at once (Bonferroni).
    """
    units, labelers = _derived(units), by_labeler(units)
    plain = {labeler: remedies["none"] for labeler, remedies in labelers.items() if "none" in remedies}
    found = {unit: [figures["grown"] for figures in seeds.values()] for unit, seeds in units.items()}
    for labeler in list(plain)[1:]:
        first = next(iter(plain))
        found[f"{labeler} less {first}"] = gaps_of(units, plain[labeler], plain[first], "grown")
    rows = {}
    for name, values in found.items():
        low, high = bonferroni(values, len(found))
        seen = "longer" if low > 0 else "shorter" if high < 0 else ""
        rows[name] = {"words more": gaps_text(values, len(found), 1), "replies are": seen}
    return pd.DataFrame.from_dict(rows, orient="index").rename_axis("than the SFT model's, or the first labelers'")


def comparison_table(units: Units) -> pd.DataFrame:
    """Each remedy less none, seed by seed; the intervals of a column hold all at once (Bonferroni)."""
    pairs = {
        (labeler, remedy): (unit, remedies["none"])
        for labeler, remedies in by_labeler(units).items()
        for remedy, unit in remedies.items()
        if remedy != "none" and "none" in remedies
    }
    table = pd.DataFrame.from_dict(less_rows(_derived(units), pairs, COMPARED), orient="index")
    return table.rename_axis(["labeler", "less none"]) if pairs else table


def evaluation_table(units: Units) -> pd.DataFrame:
    """How far the labeler's win rate is from that of one without a bias: both raw, and both controlled for length.

    `nearer`: by how much the control brings them together, |raw| - |controlled|, seed by seed. Labelers without a bias
    are left out. The intervals of a column hold all at once, with that of the mean over units.
    """
    shown = {unit: seeds for unit, seeds in _derived(units).items() if any(f["raw"] for f in seeds.values())}
    if len(shown) > 1:
        shown["mean of these"] = mean_of(list(shown.values()))
    rows = {
        unit: {
            name: gaps_text([figures[name] for figures in seeds.values()], len(shown))
            for name in ("raw", "controlled", "nearer")
        }
        for unit, seeds in shown.items()
    }
    return pd.DataFrame.from_dict(rows, orient="index").rename_axis("unit")


def results(units: Units) -> Figures:
    """What the run reports."""
    names = ("words", "score_within", "score_by_length", "gold_gain", *_MARKERS)
    found: Figures = {}
    for unit, seeds in _derived(units).items():
        (figures,) = seeds.values()
        found |= {f"{name}_{unit}": figures[name] for name in names}
    return found


def tables(file: str | Path) -> str:
    """All tables of a file of results, for the terminal."""
    found = recorded(file)
    shown = (label_table, gain_table, width_table, win_table, length_table, comparison_table, evaluation_table)
    return "\n\n".join(table(found.units).to_string() for table in shown) if found else ""


@styled
def figure(units: Units) -> Figure:
    """Words, gain in score within lengths and by length, gain in gold, and win rates: means, 95% intervals."""
    panels = {
        "words of a reply": {"words": "o"},
        "gain in score (sd): within\nlike lengths (o), by length (x)": {"score_within": "o", "score_by_length": "x"},
        "gain in gold (sd)": {"gold_gain": "o"},
        "win rate: raw (o), fair (x);\ncontrolled (◆), fair (+)": _MARKERS,
    }
    units, labelers = _derived(units), by_labeler(units)
    fig, axes = empty_figure(2, 2, height=5.6)
    for place, (labeler, remedies) in enumerate(labelers.items()):
        aside, color = (place - (len(labelers) - 1) / 2) * 0.24, PALETTE[place % len(PALETTE)]
        for ax, markers in zip(axes.flat, panels.values(), strict=True):
            for step, (name, marker) in enumerate(markers.items()):
                at = [_ORDER.index(remedy) + aside + 0.05 * (step - (len(markers) - 1) / 2) for remedy in remedies]
                look = {"linestyle": "none", "marker": marker, "markersize": 5}
                draw_means(ax, at, _values(units, remedies, name), color, labeler if step == 0 else "", **look)
    sft = np.mean([figures["words_sft"] for seeds in units.values() for figures in seeds.values()])
    for ax, label, level in zip(axes.flat, panels, (sft, 0.0, 0.0, 0.5), strict=True):
        ax.set(ylabel=label)
        ax.set_xticks(range(len(_ORDER)), [remedy.replace("_", "\n") for remedy in _ORDER])
        ax.axhline(level, color=GREY, linewidth=0.8, linestyle="--")
    fig.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside lower center", ncols=max(len(labelers), 1))
    return fig


def _derived(units: Units) -> Units:
    """The units with what follows from their figures."""
    return {unit: {seed: f | _parts(f) for seed, f in seeds.items()} for unit, seeds in units.items()}


def _parts(figures: Figures) -> Figures:
    raw = figures["win"] - figures["win_fair"]
    controlled = figures["win_controlled"] - figures["win_fair_controlled"]
    return {
        "grown": figures["words"] - figures["words_sft"],
        "score_by_length": figures["score_gain"] - figures["score_within"],
        "raw": raw,
        "controlled": controlled,
        "nearer": abs(raw) - abs(controlled),
    }


def _table(units: Units, shown: dict[str, int]) -> pd.DataFrame:
    units = _derived(units)
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
