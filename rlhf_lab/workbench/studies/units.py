"""A study's figures by unit and seed: kept in a file as they are finished, read again, tabled, and drawn.

A unit is what takes a while, such as one chain or one round. It comes to figures by name.
"""

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from rlhf_lab.errors import LabError
from rlhf_lab.workbench.intervals import mean_interval
from rlhf_lab.workbench.runs import Run
from rlhf_lab.workbench.studies.algorithm_results import bonferroni
from rlhf_lab.workbench.studies.finished_lines import NEEDED, FinishedLines

Figures = dict[str, float]
Units = dict[str, dict[int, Figures]]
"""Unit -> seed -> figures."""


class FinishedUnits:
    """The finished units of these settings, models and seed, in `cfg.results` or a file of the run's own.

    models: a fingerprint of what the study starts from. hashes: (cfg, unit) -> two short hashes, of the settings that
    all units share and of the unit's own. study: its name in each line, by which `rlhf-lab summarise` finds its tables.
    units: all there are; where other code has finished every one, its lines are taken.
    """

    def __init__(
        self,
        cfg: Any,
        run: Run,
        models: str,
        hashes: Callable[[Any, str], tuple[str, str]],
        *,
        study: str = "",
        units: Collection[str] = (),
    ):
        self.cfg, self.run, self.models, self.hashes, self.study = cfg, run, models, hashes, study
        self.lines = FinishedLines(cfg.results, run, type(cfg).__module__.rpartition(".")[2])
        self.lines.settle([self._key(unit) for unit in units])
        self.units: Units = {}

    def find(self, unit: str) -> Figures | None:
        """What was recorded, or None. Errors: `LabError` naming a broken line."""
        line = self.lines.find(unit, self._key(unit))
        return self._keep(unit, line["figures"]) if line else None

    def has(self, unit: str) -> bool:
        """Whether a unit was recorded."""
        return self.lines.last(self._key(unit)) is not None

    def add(self, unit: str, figures: Figures) -> Figures:
        """Append a finished unit to the file, and give its figures back."""
        told = {"study": self.study} if self.study else {}
        self.lines.add(self._key(unit), {**told, "figures": figures})
        return self._keep(unit, figures)

    def _keep(self, unit: str, figures: Figures) -> Figures:
        """Have it for the tables, and send it to the run's metrics, once: a unit is a step."""
        if unit not in self.units:
            self.run.log({f"{unit}/{name}": value for name, value in figures.items()}, step=len(self.units))
        self.units[unit] = {self.cfg.seed: figures}
        return figures

    def _key(self, unit: str) -> dict[str, Any]:
        common, own = self.hashes(self.cfg, unit)
        return {"unit": unit, "seed": self.cfg.seed, "common": common, "own": own, "models": self.models}


class Recorded(NamedTuple):
    """What a file of results holds of one set of settings."""

    units: Units
    left_out: int  # lines of other settings, or that a later line of the same replaces


def latest(lines: Sequence[Mapping[str, Any]]) -> Recorded:
    """Of a file's lines those of the settings and code of the last; of a unit run with several the last one's.

    Errors: `LabError` for a line that lacks something.
    """
    for number, line in enumerate(lines, 1):
        if missing := [name for name in NEEDED if name not in line]:
            raise LabError(f"results, line {number} of this study: it has no '{missing[0]}'; mend or delete it")
    code = lines[-1].get("code")
    kept = [line for line in lines if line["common"] == lines[-1]["common"] and line.get("code", code) == code]
    own = {line["unit"]: line["own"] for line in kept}
    last = {(line["unit"], line["seed"]): line["figures"] for line in kept if line["own"] == own[line["unit"]]}
    units: Units = {}
    for unit, seed in sorted(last, key=lambda key: key[1]):
        units.setdefault(unit, {})[seed] = last[unit, seed]
    return Recorded(units, len(lines) - len(last))


def mean_text(found: dict[int, Figures], name: str, digits: int = 2) -> str:
    """A figure's mean over the seeds that have it, with its 95% interval; one seed's value alone."""
    values = [figures[name] for figures in found.values() if name in figures]
    if not values:
        return "-"
    at = mean_interval(values)
    if len(values) == 1:
        return f"{at.mean:.{digits}f}"
    return f"{at.mean:.{digits}f} [{at.low:.{digits}f}, {at.high:.{digits}f}]"


def less_text(units: Units, unit: str, other: str, name: str, comparisons: int) -> str:
    """A figure of one unit less that of another, seed by seed, with an interval at level 1 - 0.05 / comparisons."""
    return gaps_text(gaps_of(units, unit, other, name), comparisons)


def gaps_text(gaps: Sequence[float], comparisons: int, digits: int = 2) -> str:
    """The mean of differences, one for each seed, with an interval at level 1 - 0.05 / comparisons; "" without any."""
    if len(gaps) < 2:
        return f"{gaps[0]:.{digits}f}" if gaps else ""
    low, high = bonferroni(gaps, comparisons)
    return f"{np.mean(gaps):.{digits}f} [{low:.{digits}f}, {high:.{digits}f}]"


def less_rows(
    units: Units, pairs: Mapping[Any, tuple[str, str]], names: Mapping[str, str]
) -> dict[Any, dict[str, str]]:
    """Key -> label -> the figures of one unit less those of another; the intervals of all pairs hold at once.

    pairs: key -> the two units. names: figure -> label.
    """
    return {
        key: {label: less_text(units, *ends, name, len(pairs)) for name, label in names.items()}
        for key, ends in pairs.items()
    }


def gaps_of(units: Units, unit: str, other: str, name: str) -> list[float]:
    """A figure of one unit less that of another, for every seed in which both have it."""
    ours, theirs = units.get(unit, {}), units.get(other, {})
    both = [seed for seed in ours if name in ours[seed] and name in theirs.get(seed, {})]
    return [ours[seed][name] - theirs[seed][name] for seed in both]


def joined(places: np.ndarray, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """A curve's y at some places of x, its points joined by straight lines in order of x; NaN beyond the last."""
    order = np.argsort(x, kind="stable")
    return np.interp(places, x[order], y[order], right=np.nan)


def mean_of(several: Sequence[Mapping[int, Figures]]) -> dict[int, Figures]:
    """The mean of units' figures, seed by seed, of the seeds and names that all have."""
    seeds = sorted(set.intersection(*(set(found) for found in several)))
    names = set.intersection(*(set(found[seed]) for found in several for seed in seeds)) if seeds else set()
    return {seed: {name: float(np.mean([found[seed][name] for found in several])) for name in names} for seed in seeds}


def draw_means(ax, x: Sequence[float], rows: np.ndarray, color: str, label: str, **style: Any) -> None:
    """Means of (seeds, places) with 95% intervals where there are several seeds."""
    at = [mean_interval(column) for column in rows.T]
    error = [[i.mean - i.low for i in at], [i.high - i.mean for i in at]] if len(rows) > 1 else None
    look = {"marker": "o", "markersize": 4, "capsize": 2} | style
    ax.errorbar(x, [i.mean for i in at], yerr=error, color=color, label=label, **look)
