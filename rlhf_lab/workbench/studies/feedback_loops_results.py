"""16_feedback_loops: tables and figure, of a run and over seeds. A unit is a source and an arm: judge_online."""

from pathlib import Path
from typing import get_args

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from rlhf_lab.workbench.artefacts import HOUSE
from rlhf_lab.workbench.records import read_jsonl
from rlhf_lab.workbench.stages import LoopArm
from rlhf_lab.workbench.studies.units import Figures, Recorded, Units, draw_means, latest, less_rows, mean_of, mean_text
from rlhf_lab.workbench.style import BLUE, GREEN, GREY, ORANGE, PALETTE, empty_figure, styled
from rlhf_lab.workbench.writing import user_path

RECORDED = HOUSE / "experiments" / "reference" / "feedback-loops.jsonl"
_ARMS = get_args(LoopArm)
_COLORS = {"offline": ORANGE, "online": BLUE, "active": GREEN}
_SHOWN = {  # what a round's labels have come to, and digits
    "label_accuracy": 2,
    "accuracy_gold": 3,
    "accuracy_policy": 3,
    "accuracy_first": 3,
    "gold": 2,
    "kl": 1,
    "words": 1,
    "duplicates": 2,
}
_ASKED = {  # what the pairs and labels of a round are like
    "gap": 2,
    "doubt_pool": 3,
    "doubt_asked": 3,
    "expected_accuracy": 2,
    "longer": 2,
}
_COMPARED = {
    "gold": "gold",
    "accuracy_gold": "accuracy, SFT's pairs",
    "accuracy_first": "accuracy, first policy's pairs",
}
ONE_THING = {"online": "offline", "active": "online"}
"""An arm -> the one that it differs from in one thing."""
_APART = [
    ("judge", "noisy_human"),  # wrong equally often
    ("judge_tenfold", "noisy_human"),  # and at equal cost
    ("judge_tenfold", "human_tenfold"),  # the bias alone, at ten times the labels
    ("judge_tenfold", "judge"),  # the number alone
]
"""Sources that are compared besides each one with the first."""


def recorded(file: str | Path = "") -> Recorded | None:
    """The units in a file, "" = the committed one, with the settings of its last line; None without any."""
    lines = read_jsonl(user_path(file) if file else RECORDED)
    return latest(lines) if lines else None


def by_source(units: Units) -> dict[str, dict[str, str]]:
    """Source -> arm -> its unit, the arms in order."""
    found: dict[str, dict[str, str]] = {}
    for arm in _ARMS:
        for unit in units:
            if unit.endswith(f"_{arm}"):
                found.setdefault(unit.removesuffix(f"_{arm}"), {})[arm] = unit
    return found


def rounds(units: Units) -> int:
    """How many rounds there were."""
    figures = next(iter(next(iter(units.values())).values()))
    return max(int(name.removeprefix("gold_")) for name in figures if name.removeprefix("gold_").isdigit())


def round_table(units: Units) -> pd.DataFrame:
    """One row for each round of each unit; over several seeds means with 95% intervals. All arms share round 1.

    Accuracy on pairs of the SFT model, of the round's own policy, and of the policy of round 1.
    """
    return _by_round(units, _SHOWN)


def asked_table(units: Units) -> pd.DataFrame:
    """The new pairs of each round: gap in gold, doubt in all and in those asked about, and what labels ought to be.

    expected_accuracy: how often they should agree with gold. longer: the share that is for the longer reply.
    """
    return _by_round(units, _ASKED)


def _by_round(units: Units, shown: dict[str, int]) -> pd.DataFrame:
    rows = {
        (source, arm, number): {
            name: mean_text(units[unit], f"{name}_{number}", digits) for name, digits in shown.items()
        }
        for source, arms in by_source(units).items()
        for arm, unit in arms.items()
        for number in range(1, rounds(units) + 1)
    }
    return pd.DataFrame.from_dict(rows, orient="index").rename_axis(["source", "arm", "round"])


def arm_table(units: Units) -> pd.DataFrame:
    """An arm less the one that it differs from in one thing, after the last round, seed by seed, for each source.

    And for the mean of the sources that have both arms. The intervals of a column hold all at once (Bonferroni).
    """
    sources = by_source(units)
    pairs = {
        (f"{arm} less {other}", source): (arms[arm], arms[other])
        for arm, other in ONE_THING.items()
        for source, arms in sources.items()
        if arm in arms and other in arms
    }
    units, pairs = dict(units), dict(pairs)
    for what in dict.fromkeys(what for what, _ in pairs):
        several = [ends for (name, _), ends in pairs.items() if name == what]
        if len(several) > 1:
            ends = tuple(f"mean, {what}, {side}" for side in (0, 1))
            for side, name in enumerate(ends):
                units[name] = mean_of([units[each[side]] for each in several])
            pairs[what, "mean of sources"] = ends
    return _less(units, pairs, _COMPARED, ["arms", "source"])


def source_table(units: Units) -> pd.DataFrame:
    """Sources less one another, at the end, seed by seed, in each arm that both have; intervals as in `arm_table`.

    Each source is compared with the first one, and those of `_APART` with each other.
    """
    sources = by_source(units)
    first = next(iter(sources))
    pairs = {
        (f"{source} less {other}", arm): (sources[source][arm], sources[other][arm])
        for source, other in [*((source, first) for source in sources if source != first), *_APART]
        for arm in sources.get(source, {})
        if arm in sources.get(other, {})
    }
    compared = {name: _COMPARED[name] for name in ("gold", "accuracy_gold")}  # first policies differ between sources
    return _less(units, pairs, compared, ["sources", "arm"])


def cost_table(units: Units) -> pd.DataFrame:
    """Labels, what they cost in labels of a person, and gold at the end."""
    last = rounds(units)
    names = {"labels": 0, "cost": 0, f"gold_{last}": 2}
    rows = {unit: {name: mean_text(units[unit], name, digits) for name, digits in names.items()} for unit in units}
    return pd.DataFrame.from_dict(rows, orient="index").rename_axis("unit")


def results(units: Units) -> Figures:
    """What the run reports."""
    found: Figures = {}
    for unit, seeds in units.items():
        (figures,) = seeds.values()
        wanted = [f"{name}_{number}" for name in _COMPARED for number in range(1, rounds(units) + 1)]
        found |= {f"{name}_{unit}": figures[name] for name in ("labels", "cost", *wanted) if name in figures}
    return found


def tables(file: str | Path) -> str:
    """All tables of a file of results, for the terminal."""
    found = recorded(file)
    shown = (round_table, asked_table, arm_table, source_table, cost_table)
    return "\n\n".join(table(found.units).to_string() for table in shown) if found else ""


@styled
def figure(units: Units) -> Figure:
    """Gold by number of labels, a panel for each source of several arms, and by cost, all sources' first arms.

    Means with 95% intervals.
    """
    sources, last = by_source(units), rounds(units)
    several = [source for source, arms in sources.items() if len(arms) > 1]
    fig, axes = empty_figure(1, len(several) + 1, height=3.4)
    for ax, source in zip(axes[0], several, strict=False):
        for number, (arm, unit) in enumerate(sources[source].items()):
            labels = _of(units[unit], "labels").mean() * np.arange(1, last + 1) / last
            aside = (number - 1) * 0.02 * labels[-1]  # so that intervals do not hide each other
            draw_means(ax, labels + aside, _golds(units[unit], last), _COLORS[arm], arm)
        ax.set(xlabel="labels so far", title=source.replace("_", " "))
    costs = {}
    for place, (source, arms) in enumerate(sources.items()):
        unit = next(iter(arms.values()))
        costs[source] = _of(units[unit], "cost").mean()
        at, color = costs[source] * 1.08 ** (place - 1), PALETTE[3 + place % (len(PALETTE) - 3)]
        draw_means(axes[0, -1], [at], _golds(units[unit], last)[:, -1:], color, source, linestyle="none")
    axes[0, -1].set(xlabel="cost (human labels)", xscale="log", title="by cost, at the end")
    axes[0, -1].set_xticks(sorted(set(costs.values())), [f"{cost:g}" for cost in sorted(set(costs.values()))])
    axes[0, -1].minorticks_off()
    sft = np.mean([figures["gold_sft_1"] for seeds in units.values() for figures in seeds.values()])
    low, high = np.inf, -np.inf
    for ax in axes[0]:
        ax.axhline(sft, color=GREY, linewidth=0.8, linestyle="--", label="SFT")
        low, high = min(low, ax.get_ylim()[0]), max(high, ax.get_ylim()[1])
    for ax in axes[0]:
        ax.set_ylim(low, high)
    axes[0, 0].set_ylabel("gold of the policy (sd)")
    handles = dict(zip(*reversed(axes[0, 0].get_legend_handles_labels()), strict=True))
    handles |= dict(zip(*reversed(axes[0, -1].get_legend_handles_labels()), strict=True))
    fig.legend(handles.values(), handles.keys(), loc="outside lower center", ncols=4)
    return fig


def _of(found: dict[int, Figures], name: str) -> np.ndarray:
    return np.array([figures[name] for figures in found.values()])


def _golds(found: dict[int, Figures], last: int) -> np.ndarray:
    """(seeds, rounds)."""
    return np.array([_of(found, f"gold_{number}") for number in range(1, last + 1)]).T


def _less(
    units: Units, pairs: dict[tuple[str, str], tuple[str, str]], compared: dict[str, str], names: list[str]
) -> pd.DataFrame:
    last = rounds(units)
    rows = less_rows(units, pairs, {f"{name}_{last}": label for name, label in compared.items()})
    table = pd.DataFrame.from_dict(rows, orient="index")
    return table.rename_axis(names) if rows else table  # one source, or one arm, has nothing to be compared with
