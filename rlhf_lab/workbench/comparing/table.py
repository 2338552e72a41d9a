"""The comparison as tables: one tidy table of the runs, and what the terminal and the notebook show of it."""

from collections.abc import Sequence

import pandas as pd

from rlhf_lab.workbench.comparing.settings import ABSENT, told
from rlhf_lab.workbench.comparing.variants import Comparison
from rlhf_lab.workbench.report.figures import aligned, duration, number

WIDEST = 60  # characters of a cell


def run_table(comparison: Comparison) -> pd.DataFrame:
    """One row for each run: where it stands, the settings that differ as `setting.NAME`, its results as `result.NAME`.

    Lists and mappings among the settings are JSON; what a run lacks is "absent". `counts`: whether it is in the means.
    """
    rows = []
    for variant in comparison.variants:
        for run in variant.runs:
            row = {
                "run": run.name,
                "variant": variant.name,
                "experiment": run.experiment,
                "stage": run.stage,
                "group": run.group,
                "tags": " ".join(run.tags),
                "seed": run.seed,
                "state": run.state,
                "counts": run in variant.units.values(),
                "seconds": run.seconds,
                "commit": run.commit,
            }
            values = {key: run.settings.get(key, ABSENT) for key in comparison.settings}
            row |= {
                f"setting.{key}": told(value) if isinstance(value, list | dict) else value
                for key, value in values.items()
            }
            rows.append(row | {f"result.{name}": value for name, value in run.results.items()})
    return pd.DataFrame(rows)


def variant_table(comparison: Comparison) -> pd.DataFrame:
    """One row for each variant: how many runs, which seeds count, how they ended, how long they took on average."""
    rows = []
    for variant in comparison.variants:
        states = [run.state for run in variant.runs]
        seconds = [run.seconds for run in variant.units.values() if run.seconds is not None]
        rows.append(
            (
                variant.name + (" *" if variant is comparison.baseline else ""),
                ", ".join(dict.fromkeys(run.experiment for run in variant.runs)),
                variant.stage,
                len(states),
                ", ".join(variant.seeds),
                ", ".join(
                    state if states.count(state) == len(states) else f"{states.count(state)} {state}"
                    for state in dict.fromkeys(states)
                ),
                duration(sum(seconds) / len(seconds)) if seconds else "",
            )
        )
    columns = ["variant", "experiment", "stage", "runs", "seeds", "state", "time"]
    return pd.DataFrame(rows, columns=columns).set_index("variant")


def settings_table(comparison: Comparison) -> pd.DataFrame:
    """The settings that differ, a row each, with a column for each variant."""
    columns = {
        variant.name: [told(variant.settings[key]) if key in variant.settings else "" for key in comparison.settings]
        for variant in comparison.variants
    }
    return pd.DataFrame(columns, index=pd.Index(comparison.settings, name="setting"))


def effect_table(effects: pd.DataFrame, comparison: Comparison) -> pd.DataFrame:
    """The effects as people read them: a mean and a difference with their intervals, all text."""
    rows = []
    baseline = comparison.baseline_name
    places = {name: _places(group["mean"]) for name, group in effects.groupby("result")}
    for row in effects.to_dict("records"):
        difference, pairs, digits = "", "", places[row["result"]]
        if row["variant"] == baseline:
            difference = "baseline"
        elif row["pairs"]:
            difference = _interval(row["difference"], row["difference_low"], row["difference_high"], digits, sign=True)
            pairs = f"{row['pairs']}" + (f", {row['unpaired']} unpaired" if row["unpaired"] else "")
        elif row["unpaired"]:
            pairs = "no seed in common"
        rows.append(
            (
                row["result"],
                row["variant"],
                row["n"],
                _interval(row["mean"], row["low"], row["high"], digits),
                difference,
                pairs,
            )
        )
    columns = ["result", "variant", "n", "mean [95%]", f"less {baseline} [95%]", "pairs"]
    return pd.DataFrame(rows, columns=columns).set_index(["result", "variant"])


def effect_words(effects: pd.DataFrame) -> list[str]:
    """What the intervals are, and where there are none."""
    if effects.empty:
        return []
    words = ["mean [95% interval by Student's t], the seed as the unit; differences are taken seed by seed"]
    intervals = int(effects["difference_low"].notna().sum())
    if intervals > 1:
        words.append(
            f"{intervals} differences, each interval of level 95% alone: of 20 about one leaves out 0 by chance"
        )
    few = effects[(effects["difference"].notna() & (effects["pairs"] < 2))]["variant"]
    if len(few):
        words.append(
            f"fewer than two seeds in common with the baseline, so no interval: {', '.join(dict.fromkeys(few))}"
        )
    return words


def as_lines(table: pd.DataFrame, right: Sequence[int] = ()) -> list[str]:
    """A table with its index as aligned lines of text, the columns numbered in `right` to the right."""
    table = table.reset_index()
    rows = [[str(name) for name in table.columns]]
    rows += [[_short(str(value)) for value in row] for row in table.itertuples(index=False)]
    return aligned(rows, right)


def _interval(mean: float, low: float, high: float, places: int | None, *, sign: bool = False) -> str:
    text = ("+" if sign and mean > 0 else "") + number(mean, places)
    return f"{text} [{number(low, places)}, {number(high, places)}]" if pd.notna(low) else text


def _places(means: pd.Series) -> int | None:
    """Decimals that suit all of these: three significant digits of the largest."""
    largest = number(float(means.abs().max()))
    return None if "e" in largest else len(largest.partition(".")[2])


def _short(text: str) -> str:
    return text if len(text) <= WIDEST else text[: WIDEST - 1] + "~"
