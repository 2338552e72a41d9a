"""What the variants came to: means with intervals over seeds, and differences to the baseline, seed by seed."""

import difflib
from collections.abc import Sequence

import numpy as np
import pandas as pd

from rlhf_lab.errors import LabError
from rlhf_lab.workbench.comparing.reading import ComparedRun
from rlhf_lab.workbench.comparing.variants import Comparison, Variant
from rlhf_lab.workbench.intervals import mean_interval

COLUMNS = ["stage", "result", "variant", "n", "mean", "low", "high"]
PAIRED = ["pairs", "unpaired", "difference", "difference_low", "difference_high"]
DEFAULT = ("gold/mean", "objective/scores", "objective/kl", "heldout/score", "train/loss", "eval/accuracy", "eval/loss")


def result_names(comparison: Comparison) -> list[str]:
    """The results that every stage has; of a single stage all that any of its runs has."""
    stages = []
    for stage in comparison.stages:
        runs = [run for variant in comparison.variants if variant.stage == stage for run in variant.units.values()]
        stages.append(list(dict.fromkeys(name for run in runs for name in run.results)))
    return [name for name in stages[0] if all(name in other for other in stages)] if stages else []


def metric_names(comparison: Comparison) -> list[str]:
    """What the runs logged, but for their steps."""
    steps = {run.x for run in comparison.runs} | {"time"}
    return list(dict.fromkeys(str(name) for run in comparison.runs for name in run.metrics if name not in steps))


def curve_names(comparison: Comparison, most: int = 6) -> list[str]:
    """Metrics to draw when none is named: the most telling of those that several variants logged."""
    logged = metric_names(comparison)
    shared = [name for name in logged if all(any(name in r.metrics for r in v.runs) for v in comparison.variants)]
    return [*(name for name in DEFAULT if name in shared), *(name for name in shared if name not in DEFAULT)][:most]


def known(comparison: Comparison, names: Sequence[str]) -> list[str]:
    """The names, once each. Errors: `LabError` for one that no run has as a result or a logged metric."""
    there = list(dict.fromkeys([*(n for run in comparison.runs for n in run.results), *metric_names(comparison)]))
    for name in names:
        if name not in there:
            ends = [other for other in there if name.lower() in other.lower()]
            near = list(dict.fromkeys([*ends, *difflib.get_close_matches(name, there, n=3)]))[:4]
            hint = f" (did you mean {' or '.join(near)}?)" if near else f"; they have {', '.join(there[:12]) or 'none'}"
            raise LabError(f"metric {name}: no run has it{hint}")
    return list(dict.fromkeys(names))


def value_of(run: ComparedRun, name: str) -> float:
    """A result of a run, or the last value of a metric that it logged; NaN where it has neither."""
    if name in run.results:
        return run.results[name]
    values = pd.to_numeric(run.metrics[name], errors="coerce").dropna() if name in run.metrics else []
    return float(values.iloc[-1]) if len(values) else float("nan")


def effects(comparison: Comparison, names: Sequence[str]) -> pd.DataFrame:
    """One row for each result and variant that has it.

    Columns: n units with their mean and its 95% t-interval (NaN for one unit); and to the baseline, `pairs` units in
    common, `unpaired` of its own, the mean of the differences unit by unit, and its 95% t-interval.
    """
    rows = []
    for name in names:
        base = _values(comparison.baseline, name) if comparison.baseline else {}
        for variant in comparison.variants:
            values = _values(variant, name)
            if not values:
                continue
            row = [variant.stage, name, variant.name, len(values), *mean_interval(list(values.values()))]
            if variant is comparison.baseline or not base:
                rows.append([*row, 0, 0, *[np.nan] * 3])
                continue
            gaps = [value - base[unit] for unit, value in values.items() if unit in base]
            difference = mean_interval(gaps) if gaps else [np.nan] * 3
            rows.append([*row, len(gaps), len(values) - len(gaps), *difference])
    return pd.DataFrame(rows, columns=COLUMNS + PAIRED)


def flat_results(table: pd.DataFrame) -> dict[str, float]:
    """The effects as a run's results: `result/variant` with its interval, and `result less baseline/variant`."""
    found: dict[str, float] = {}
    for row in table.to_dict("records"):
        name = f"{row['result']}/{row['variant']}"
        less = f"{row['result']} less baseline/{row['variant']}"
        found |= {name: row["mean"], f"{name}_low": row["low"], f"{name}_high": row["high"]}
        found |= {less: row["difference"]}
        found |= {f"{less}_low": row["difference_low"], f"{less}_high": row["difference_high"]}
    return {name: float(value) for name, value in found.items() if np.isfinite(value)}


def _values(variant: Variant, name: str) -> dict[tuple, float]:
    values = {unit: value_of(run, name) for unit, run in variant.units.items()}
    return {unit: value for unit, value in values.items() if np.isfinite(value)}
