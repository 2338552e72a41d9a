"""13_ensembles: tables and figure, of a run and over seeds."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from rlhf_lab.workbench.artefacts import HOUSE
from rlhf_lab.workbench.intervals import mean_interval
from rlhf_lab.workbench.records import read_jsonl
from rlhf_lab.workbench.stages.ensembles import Combination
from rlhf_lab.workbench.studies.units import Figures, Recorded, Units, gaps_text, joined, latest, less_rows, mean_text
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
COMPARED = {"bon": "gold, best of n", "ppo": "gold, PPO's end", "accuracy_gold": "accuracy"}
AT_EQUAL_KL = ("gold, PPO on the way", "gold, PPO as far")


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


def comparison_table(units: Units, than: str = "single") -> pd.DataFrame:
    """Each ensemble less the single model, or less the `mean`, seed by seed.

    The intervals of a column hold all at once (Bonferroni). At PPO's end the two have not gone equally far; what is
    compared on the way and as far says `at_equal_kl`.
    """
    pairs = {
        (flip, how): (unit, combined[than])
        for flip, combined in levels(units).items()
        for how, unit in combined.items()
        if how not in ("single", than) and than in combined
    }
    rows = less_rows(units, pairs, COMPARED)
    for key, ends in pairs.items():
        gaps = _equal_kl_gaps(units, *ends).values()
        rows[key] |= {name: gaps_text([gap[i] for gap in gaps], len(pairs)) for i, name in enumerate(AT_EQUAL_KL)}
    names = ["flipped", "less the single model" if than == "single" else f"less the {than}"]
    index = pd.MultiIndex.from_tuples(rows, names=names)
    return pd.DataFrame(list(rows.values()), index=index, columns=[*COMPARED.values(), *AT_EQUAL_KL])


def noise_table(units: Units) -> pd.DataFrame:
    """An ensemble's gain over the single model at the largest share of flips less that at the smallest, seed by seed.

    The intervals of a column hold all at once.
    """
    at = levels(units)
    clean, noisy = (at[end(at)] for end in (min, max)) if len(at) > 1 else ({}, {})
    hows = [how for how in noisy if how != "single" and how in clean and "single" in noisy and "single" in clean]
    rows = {}
    for how in hows:
        without, flipped = (_all_gaps(units, level[how], level["single"]) for level in (clean, noisy))
        seeds = [seed for seed in without if seed in flipped]
        rows[how] = {
            name: gaps_text([flipped[seed][name] - without[seed][name] for seed in seeds], len(hows))
            for name in (*COMPARED.values(), *AT_EQUAL_KL)
        }
    return pd.DataFrame.from_dict(rows, orient="index").rename_axis("flipped less clean: gain over the single model")


def _all_gaps(units: Units, unit: str, other: str) -> dict[int, dict[str, float]]:
    """Seed -> all that is compared of two units."""
    return {
        seed: {label: units[unit][seed][name] - units[other][seed][name] for name, label in COMPARED.items()}
        | dict(zip(AT_EQUAL_KL, gaps, strict=True))
        for seed, gaps in _equal_kl_gaps(units, unit, other).items()
    }


def _equal_kl_gaps(units: Units, unit: str, other: str) -> dict[int, tuple[float, float]]:
    both = [seed for seed in units[unit] if seed in units[other]]
    return {seed: at_equal_kl(units[unit][seed], units[other][seed]) for seed in both}


def at_equal_kl(figures: Figures, other: Figures) -> tuple[float, float]:
    """Gold under PPO less that of another unit at the same KL: on the mean of the way, and as far as both have gone.

    Each is compared at its own measurements with the other's, joined by straight lines: lines cut off the bend of a
    curve, and so take from both what they take.
    """
    (x, y), (other_x, other_y) = along_ppo(figures), along_ppo(other)
    ours, theirs = y - joined(x, other_x, other_y), joined(other_x, x, y) - other_y
    gaps, at = np.concatenate([ours[1:], theirs[1:]]), np.concatenate([x[1:], other_x[1:]])
    known = np.isfinite(gaps)
    return float(gaps[known].mean()), float(gaps[known][at[known].argmax()])


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
    if not found:
        return ""
    shown = table(found.units), comparison_table(found.units), comparison_table(found.units, "mean")
    return "\n\n".join(one.to_string() for one in (*shown, noise_table(found.units)) if len(one))


@styled
def figure(units: Units) -> Figure:
    """Gain in gold along n (left) and PPO's distance (right), a row for each level of noise: means, 95% intervals.

    PPO's mean goes as far as every seed does; thin is each seed.
    """
    shown = levels(units)
    fig, axes = empty_figure(len(shown), 2, height=0.6 + 2.7 * len(shown))
    for row, (flip, combined) in zip(axes, shown.items(), strict=True):
        for how, unit in combined.items():
            ns, gold = along_n(units, unit)
            _draw(row[0], ns, gold, how, marker="o", markersize=3.5)
            curves = [along_ppo(figures) for figures in units[unit].values()]
            for x, y in curves:
                row[1].plot(x, y, color=_COLORS[how], linewidth=0.6, alpha=0.4)
            places = np.linspace(0, min(x.max() for x, _ in curves), 40)
            _draw(row[1], places, np.array([joined(places, x, y) for x, y in curves]), how)
        for ax in row:
            ax.axhline(0, color=GREY, linewidth=0.6)
        row[0].set_ylabel("gain in gold (sd)")
        row[0].set_title(f"{float(flip):.0%} of the labels flipped")
        row[0].set_xscale("log", base=2)
        row[0].set_xticks(ns, ns)
    axes[-1, 0].set_xlabel("n of the best of n")
    axes[-1, 1].set_xlabel("PPO: square root of the KL (nats per reply)")
    axes[0, 1].legend(loc="best")
    return fig


def _draw(ax, x: Sequence[float], rows: np.ndarray, how: str, **style: Any) -> None:
    """The mean of (seeds, places), and where there are several seeds its 95% interval."""
    at = [mean_interval(column) for column in rows.T]
    ax.plot(x, [i.mean for i in at], color=_COLORS[how], label=how, **style)
    if len(rows) > 1:
        ax.fill_between(x, [i.low for i in at], [i.high for i in at], color=_COLORS[how], alpha=0.1)


def along_n(units: Units, unit: str) -> tuple[list[int], np.ndarray]:
    """The n's, and (seeds, n's) of the gain in gold."""
    seeds = list(units[unit].values())
    ns = _places(seeds[0], "bon_at_")
    return ns, np.array([[figures[f"bon_at_{n}"] for n in ns] for figures in seeds])


def along_ppo(figures: Figures) -> tuple[np.ndarray, np.ndarray]:
    """The square root of the KL (an estimate below 0 counts as 0) and the gain in gold, at each measurement."""
    updates = _places(figures, "ppo_kl_at_")
    kl, gold = (np.array([figures[f"ppo_{what}_at_{update}"] for update in updates]) for what in ("kl", "gold"))
    return np.sqrt(np.maximum(kl, 0)), gold


def _places(figures: Figures, name: str) -> list[int]:
    """The numbers at the end of some figures' names."""
    return sorted(int(key.removeprefix(name)) for key in figures if key.startswith(name))
