"""11_kl_coefficient: is gold an inverted U, is the penalty more than early stopping? Of a run and over seeds."""

import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd

from rlhf_lab.workbench.artefacts import HOUSE
from rlhf_lab.workbench.records import read_jsonl
from rlhf_lab.workbench.studies.units import Figures, Recorded, Units, gaps_text, joined, latest, less_text, mean_text
from rlhf_lab.workbench.writing import user_path

RECORDED = HOUSE / "experiments" / "reference" / "kl-coefficient.jsonl"
_SHOWN = {"gold": 2, "score": 2, "kl": 2, "kl_coef": 2, "eos_rate": 2, "words": 1}


def recorded(file: str | Path = "") -> Recorded | None:
    """The results in a file, "" = the committed one, with the settings of its last line; None without any."""
    lines = read_jsonl(user_path(file) if file else RECORDED)
    return latest(lines) if lines else None


def named(units: Units, kind: str) -> dict[float, str]:
    """Number -> unit, ascending, of the units of one kind: kl (fixed coefficients), again, ziegler or k3."""
    found = {float(unit.removeprefix(f"{kind}_")): unit for unit in units if unit.startswith(f"{kind}_")}
    return dict(sorted(found.items()))


def table(units: Units) -> pd.DataFrame:
    """Where each unit ended; over several seeds means with 95% intervals."""
    rows = {
        unit: {name: mean_text(units[unit], name, digits) for name, digits in _SHOWN.items()}
        for kind in ("kl", "again", "ziegler", "k3")
        for unit in named(units, kind).values()
    }
    return pd.DataFrame.from_dict(rows, orient="index").rename_axis("unit")


# ---- Is it an inverted U?


class Best(NamedTuple):
    """The best coefficient, found without the gold that then judges it."""

    chosen: dict[int, float]  # seed -> coefficient
    stopped: dict[int, int]  # seed -> the update after which the run without a penalty is best stopped
    less: dict[str, list[float]]  # what it is compared with -> gold of the chosen one less that, for each seed


def best_inside(units: Units) -> Best:
    """The best fixed coefficient against the two ends, and against the run without a penalty, best stopped.

    For each seed both are chosen by the mean gold of the other seeds on the first half of the prompts, and measured on
    this seed's second half: a run that was lucky cannot choose itself. With one seed that seed's first half chooses.
    """
    fixed = named(units, "kl")
    seeds = sorted(set.intersection(*({*units[unit]} for unit in fixed.values())))
    ends = [list(fixed.values())[0], list(fixed.values())[-1]]
    ended = {coef: (unit, "gold_chooses") for coef, unit in fixed.items()}
    stops = {update: ("kl_0", f"gold_chooses_at_{update}") for update in measured_at(units["kl_0"][seeds[0]])}
    best = Best({}, {}, {})
    for seed in seeds:
        others = [s for s in seeds if s != seed] or [seed]
        best.chosen[seed], best.stopped[seed] = (_highest(units, places, others) for places in (ended, stops))
        gold = units[fixed[best.chosen[seed]]][seed]["gold_tests"]
        rivals = {end: units[end][seed]["gold_tests"] for end in ends}
        rivals["kl_0, stopped"] = units["kl_0"][seed][f"gold_tests_at_{best.stopped[seed]}"]
        for rival, other in rivals.items():
            best.less.setdefault(rival, []).append(gold - other)
    return best


def _highest(units: Units, places: Mapping[float, tuple[str, str]], seeds: list[int]) -> float:
    """The key of the highest mean over seeds. places: key -> a unit and one of its figures."""
    means = {key: np.mean([units[unit][seed][name] for seed in seeds]) for key, (unit, name) in places.items()}
    return max(means, key=means.__getitem__)


def inverted_u_table(units: Units) -> pd.DataFrame:
    """Gold of the best coefficient less that of either end, and of the run without a penalty where it is best stopped.

    The three intervals hold at once (Bonferroni).
    """
    best = best_inside(units)
    coefficients, updates = (", ".join(f"{x:g}" for x in sorted({*x.values()})) for x in (best.chosen, best.stopped))
    rows = {f"less {rival}": {"chosen": coefficients, "gold": gaps_text(gaps, 3)} for rival, gaps in best.less.items()}
    rows["less kl_0, stopped"]["stopped after"] = updates
    return pd.DataFrame.from_dict(rows, orient="index").fillna("").rename_axis("the best coefficient")


# ---- Is the penalty only early stopping?


def measured_at(figures: Figures) -> list[int]:
    """The updates after which a unit was measured."""
    return sorted(int(name.removeprefix("kl_at_")) for name in figures if name.startswith("kl_at_"))


def curve(figures: Figures, what: str) -> tuple[np.ndarray, np.ndarray]:
    """The square root of the KL and a figure, at each measurement. An estimate of the KL below 0 counts as 0."""
    updates = measured_at(figures)
    distance = np.sqrt(np.maximum([figures[f"kl_at_{update}"] for update in updates], 0))
    return distance, np.array([figures[f"{what}_at_{update}"] for update in updates])


def gaps_at_equal_kl(figures: Figures, without: Figures, what: str) -> np.ndarray:
    """A unit's figure less that of the run without a penalty at the same KL, at each measurement but the first.

    That run's curve against the square root of the KL is joined by straight lines, in order of the KL; NaN beyond it.
    """
    distance, values = curve(figures, what)
    return (values - joined(distance, *curve(without, what)))[1:]


def early_stopping_table(units: Units) -> pd.DataFrame:
    """What a penalty gives over stopping the run without one at the same KL: at the end, and on the average of the way.

    Where a run went further than the one without a penalty there is nothing to compare with; `seeds` says how many are
    left. `kl_0 after` is the update after which that one was as far as the other at its end, which took all of its own.
    again_0 is what chance alone does. The intervals of a column hold all at once (Bonferroni).
    """
    held = [unit for coef, unit in named(units, "kl").items() if coef]
    held += [unit for kind in ("ziegler", "again") for unit in named(units, kind).values()]
    return pd.DataFrame.from_dict({unit: _beyond_stopping(units, unit, len(held)) for unit in held}, orient="index")


def _beyond_stopping(units: Units, unit: str, comparisons: int) -> dict[str, str | int]:
    pairs = [(figures, units["kl_0"][seed]) for seed, figures in units[unit].items() if seed in units["kl_0"]]

    def gaps(what: str, reduce: Callable[[np.ndarray], float]) -> list[float]:
        each = [reduce(gaps_at_equal_kl(*pair, what)) for pair in pairs]
        return [gap for gap in each if np.isfinite(gap)]

    there = [_updates_to(math.sqrt(max(ours["kl"], 0)), without) for ours, without in pairs]
    at_end = gaps("gold", lambda row: row[-1])
    return {
        "seeds": len(at_end),
        "kl_0 after": f"{np.nanmean(there):.0f}" if at_end else "",
        "gold, at the end": gaps_text(at_end, comparisons),
        "gold, on the way": gaps_text(gaps("gold", _known_mean), comparisons),
        "score, at the end": gaps_text(gaps("score", lambda row: row[-1]), comparisons),
    }


def _updates_to(distance: float, without: Figures) -> float:
    """The update after which the run without a penalty was at a distance; NaN where it never was."""
    return float(joined(distance, curve(without, "kl")[0], np.array(measured_at(without))))


def _known_mean(row: np.ndarray) -> float:
    return float(row[np.isfinite(row)].mean()) if np.isfinite(row).any() else float("nan")


# ---- k3 in the reward


def k3_table(units: Units) -> pd.DataFrame:
    """k3 in the reward less k1 at the same coefficient, and less no penalty; intervals of a column hold all at once."""
    fixed, wrong = named(units, "kl"), named(units, "k3")
    rows = {}
    for coef, unit in wrong.items():
        rows[unit] = {"kl": mean_text(units[unit], "kl")}
        for label, other in (("k1", fixed.get(coef)), ("none", "kl_0")):
            for what in ("kl", "gold"):
                rows[unit][f"{what} less {label}"] = less_text(units, unit, other, what, len(wrong)) if other else ""
    return pd.DataFrame.from_dict(rows, orient="index").rename_axis("in the reward")


# ---- All together


def tables(file: str | Path) -> str:
    """All tables of a file of results, for the terminal."""
    found = recorded(file)
    shown = (table, inverted_u_table, early_stopping_table, k3_table)
    return "\n\n".join(each(found.units).to_string() for each in shown) if found else ""


def results(units: Units) -> Figures:
    """What the run reports."""
    found: Figures = {}
    for unit, seeds in units.items():
        (figures,) = seeds.values()
        found |= {f"{name}_{unit}": figures[name] for name in ("gold", "score", "kl", "kl_coef")}
    return found
