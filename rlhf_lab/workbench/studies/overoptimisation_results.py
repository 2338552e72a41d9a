"""10_overoptimisation: the fits of Gao et al. and the tables, of a run and over seeds."""

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
import torch

from rlhf_lab.maths import GoldCurve, fit_gold_curve
from rlhf_lab.workbench.artefacts import HOUSE
from rlhf_lab.workbench.records import read_jsonl
from rlhf_lab.workbench.studies.overoptimisation import parts
from rlhf_lab.workbench.studies.units import Figures, Recorded, Units, gaps_text, latest, less_text, mean_text
from rlhf_lab.workbench.writing import user_path

RECORDED = HOUSE / "experiments" / "reference" / "overoptimisation.jsonl"
FORMS = {"bon": "best_of_n", "ppo": "rl"}
"""A way of optimising -> the form that Gao et al. found for it."""
_SHOWN = {  # figure -> digits
    "accuracy": 3,
    "accuracy_gold": 3,
    "final_kl": 1,
    "final_score": 2,
    "final_gain": 2,
    "peak_distance": 2,
    "peak_gain": 2,
}


class Curves(NamedTuple):
    """A unit's curves, a row for each seed and a column for each n or measurement."""

    distance: np.ndarray  # square roots of nats per reply
    score: np.ndarray
    gold: np.ndarray


def recorded(file: str | Path = "") -> Recorded | None:
    """The units in a file, "" = the committed one, with the settings of its last line; None without any."""
    lines = read_jsonl(user_path(file) if file else RECORDED)
    return latest(lines) if lines else None


def curves(found: dict[int, Figures]) -> Curves:
    """The curves of a unit over its seeds. A KL estimated below 0 is a distance of 0."""

    def rows(what: str) -> np.ndarray:
        places = sorted(int(name.removeprefix(f"{what}_at_")) for name in first if name.startswith(f"{what}_at_"))
        return np.array([[figures[f"{what}_at_{place}"] for place in places] for figures in found.values()])

    first = next(iter(found.values()))
    return Curves(np.sqrt(rows("kl").clip(min=0)), rows("score"), rows("gold"))


def fit(distance: np.ndarray, gold: np.ndarray, form: str) -> GoldCurve | None:
    """A form fitted to one curve; None where it has too few distances for the fit to say anything."""
    if len(np.unique(distance[distance > 0])) < 3:
        return None
    return fit_gold_curve(torch.tensor(distance), torch.tensor(gold), form=form)


def fits(found: dict[int, Figures], form: str) -> dict[int, GoldCurve]:
    """A form fitted to the curve of each seed that has enough distances."""
    of_seeds = curves(found)
    each = zip(found, of_seeds.distance, of_seeds.gold, strict=True)
    return {seed: fitted for seed, distance, gold in each if (fitted := fit(distance, gold, form))}


def unit_table(units: Units) -> pd.DataFrame:
    """One row for each unit; over several seeds means with 95% intervals, those of `final_less_peak` all at once.

    peak at the end: in how many seeds gold is highest at the last place, so that its peak may lie further out.
    """
    rows = {}
    for unit, found in units.items():
        row = {name: mean_text(found, name, digits) for name, digits in _SHOWN.items()}
        falls = [figures["final_less_peak"] for figures in found.values() if "final_less_peak" in figures]
        gold = curves(found).gold
        at_end = int((gold.argmax(1) == gold.shape[1] - 1).sum())
        row |= {"final_less_peak": gaps_text(falls, len(units)), "peak at the end": f"{at_end} of {len(gold)}"}
        rows[parts(unit)] = row
    return _table(rows, ["world", "way", "comparisons"])


def fit_table(units: Units) -> pd.DataFrame:
    """Both forms fitted to each unit: alpha, beta and R squared of each seed's curve, R squared and peak of the mean.

    R squared less the other form's is seed by seed, on the row of the way's own form; its intervals hold all at once.
    """
    rows = {}
    for unit, found in units.items():
        own = FORMS[parts(unit)[1]]
        (other,) = {*FORMS.values()} - {own}
        fitted = {form: fits(found, form) for form in FORMS.values()}
        if len(fitted[own]) < len(found):
            continue
        distance, _, gold = (of_seeds.mean(0) for of_seeds in curves(found))
        better = [fitted[own][seed].r_squared - fitted[other][seed].r_squared for seed in found]
        for form, each in fitted.items():
            whole, figures = fit(distance, gold, form), {seed: one._asdict() for seed, one in each.items()}
            rows[*parts(unit), form] = {
                "alpha": mean_text(figures, "alpha"),
                "beta": mean_text(figures, "beta", 3),
                "R squared": mean_text(figures, "r_squared"),
                "less the other's": gaps_text(better, len(units)) if form == own else "",
                "of the mean": f"{whole.r_squared:.2f}",
                "peak, sqrt(KL)": f"{whole.peak:.2f}" if whole.peak < 100 else "none",
            }
    return _table(rows, ["world", "way", "comparisons", "form"])


def data_table(units: Units) -> pd.DataFrame:
    """What the most comparisons change against the fewest, seed by seed. Intervals of a column hold all at once."""
    sizes: dict[tuple[str, str], list[int]] = {}
    for world, way, size in map(parts, units):
        sizes.setdefault((world, way), []).append(size)
    ends = {key: (min(several), max(several)) for key, several in sizes.items() if len(several) > 1}
    known, rows = _with_beta(units), {}
    for (world, way), (few, many) in ends.items():
        pair = f"{world}/{way}_{many}", f"{world}/{way}_{few}"
        names = ("accuracy", "peak_distance", "final_less_peak", "final_gain", "beta")
        rows[world, way, f"{many} less {few}"] = {name: less_text(known, *pair, name, len(ends)) for name in names}
    return _table(rows, ["world", "way", "comparisons"])


def way_table(units: Units) -> pd.DataFrame:
    """The KL that PPO and best-of-n spend for the same gold: half of the most that best-of-n gains, in the same seed.

    Seeds in which PPO never gets that far are left out, and counted: it did well in those that stay, and its KL is
    underrated. The intervals of the difference hold all at once.
    """
    pairs, rows = list(_both_ways(units)), {}
    for world, size, ours, theirs in pairs:
        spent = {seed: _kl_at_equal_gold(ours[seed], theirs[seed]) for seed in ours if seed in theirs}
        reached = {seed: kl for seed, kl in spent.items() if kl is not None}
        rows[world, size] = {name: mean_text(reached, name) for name in ("best of n", "PPO")}
        gaps = [kl["PPO"] - kl["best of n"] for kl in reached.values()]
        rows[world, size] |= {
            "PPO less best of n": gaps_text(gaps, len(pairs)),
            "seeds": f"{len(reached)} of {len(spent)}",
        }
    return _table(rows, ["world", "comparisons"])


def _both_ways(units: Units) -> Iterator[tuple[str, int, dict[int, Figures], dict[int, Figures]]]:
    for unit in units:
        world, way, size = parts(unit)
        if way == "bon" and f"{world}/ppo_{size}" in units:
            yield world, size, units[unit], units[f"{world}/ppo_{size}"]


def _kl_at_equal_gold(bon: Figures, ppo: Figures) -> Figures | None:
    """The KL at which each first reaches half of best-of-n's greatest gain; None where one of them never does."""
    ours, theirs = curves({0: bon}), curves({0: ppo})
    wanted = ours.gold.max() / 2
    here, there = (_first_reached(one.distance[0], one.gold[0], wanted) for one in (ours, theirs))
    if here is None or there is None:
        return None
    return {"best of n": here**2, "PPO": there**2}


def _first_reached(distance: np.ndarray, gold: np.ndarray, wanted: float) -> float | None:
    """Where straight lines through the points first rise to `wanted`; None where they do not."""
    above = np.flatnonzero(gold >= wanted)
    if not len(above) or wanted <= gold[0]:
        return None
    at = above[0]
    share = (wanted - gold[at - 1]) / (gold[at] - gold[at - 1])
    return float(distance[at - 1] + share * (distance[at] - distance[at - 1]))


def _with_beta(units: Units) -> Units:
    """The figures with the beta of the way's own form, fitted to each seed."""
    more: Units = {}
    for unit, found in units.items():
        each = fits(found, FORMS[parts(unit)[1]])
        more[unit] = {
            seed: figures | ({"beta": each[seed].beta} if seed in each else {}) for seed, figures in found.items()
        }
    return more


def _table(rows: dict[tuple, dict[str, str]], names: list[str]) -> pd.DataFrame:
    """Rows by world, way and size, in the order in which the worlds first come."""
    if not rows:
        return pd.DataFrame()
    worlds = list(dict.fromkeys(key[0] for key in rows))
    index = pd.MultiIndex.from_tuples(sorted(rows, key=lambda key: (worlds.index(key[0]), *key[1:])), names=names)
    return pd.DataFrame([rows[key] for key in index], index=index)


def tables(file: str | Path) -> str:
    """All tables of a file of results, for the terminal."""
    found = recorded(file)
    shown = [table(found.units) for table in (unit_table, fit_table, data_table, way_table)] if found else []
    return "\n\n".join(table.to_string() for table in shown if len(table))


def results(units: Units) -> Figures:
    """What the run reports."""
    found: Figures = {}
    for unit, seeds in units.items():
        (figures,) = seeds.values()
        name = unit.replace("/", "_")
        found |= {f"{shown}_{name}": figures[shown] for shown in (*_SHOWN, "final_less_peak") if shown in figures}
    return found
