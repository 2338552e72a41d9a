"""12_reward_models: tables and figures, of a run and over seeds."""

from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from rlhf_lab.workbench.artefacts import HOUSE
from rlhf_lab.workbench.records import read_jsonl
from rlhf_lab.workbench.studies.reward_models import BINS, GOLD
from rlhf_lab.workbench.studies.units import Figures, Recorded, Units, draw_means, gaps_text, latest, mean_text
from rlhf_lab.workbench.style import BLUE, GREEN, GREY, ORANGE, PALETTE, empty_figure, styled
from rlhf_lab.workbench.writing import user_path

RECORDED = HOUSE / "experiments" / "reference" / "reward-models.jsonl"
_RANKED = ("equal_replies", "equal_pairs")
FAMILIES = ("data", "epochs", "trunk", "flip", *_RANKED)
COMPARED = ("accuracy", "accuracy_gold", "gain", "ece")
_SHOWN = {  # figure -> digits
    "epochs": 0,
    "accuracy_train": 3,
    "accuracy": 3,
    "accuracy_gold": 3,
    "rank_correlation": 3,
    "gain": 2,
    "ece": 3,
    "slope": 2,
}
Weights = dict[str, float]
"""Unit -> its weight in a contrast."""


def recorded(file: str | Path = "") -> Recorded | None:
    """The results in a file, "" = the committed one, with the settings of its last line; None without any."""
    lines = read_jsonl(user_path(file) if file else RECORDED)
    return latest(lines) if lines else None


def family(units: Units, name: str) -> dict[str, str]:
    """What was varied -> its unit, for the units of a family; numbers in order of size, trunks of weights."""
    found = {unit.removeprefix(f"{name}_"): unit for unit in units if unit.startswith(f"{name}_")}
    if name in ("data", "epochs", "flip"):
        return {key: found[key] for key in sorted(found, key=float)}
    if name == "trunk":
        return {key: found[key] for key in sorted(found, key=lambda key: (_any(units[found[key]])["weights"], key))}
    return found


def reference(units: Units) -> str:
    """The unit that the others change one thing of: it has as many replies as they have, or the most there are."""
    sizes = list(family(units, "data").values())
    others = [unit for name in ("epochs", "flip", "trunk", "equal_replies") for unit in family(units, name).values()]
    replies = {_any(units[unit])["replies"]: unit for unit in sizes}
    return replies[_any(units[others[0]])["replies"]] if others else sizes[-1]


def _any(seeds: Mapping[int, Figures]) -> Figures:
    return next(iter(seeds.values()))


def table(units: Units) -> pd.DataFrame:
    """One row for each unit; over several seeds means with 95% intervals."""
    rows = {(GOLD, ""): units[GOLD]} if GOLD in units else {}
    rows |= {(name, key): units[unit] for name in FAMILIES for key, unit in family(units, name).items()}
    shown = {
        at: {"seeds": len(seeds)} | {name: mean_text(seeds, name, digits) for name, digits in _SHOWN.items()}
        for at, seeds in rows.items()
    }
    return pd.DataFrame.from_dict(shown, orient="index").rename_axis(["varied", "to"])


# ---- What is compared, seed by seed


def contrasts(units: Units) -> dict[str, dict[str, Weights]]:
    """Question -> its contrasts -> weights of the units: slopes along data and noise, differences of all others.

    By less and less is asked of the data alone: the slope of the upper half less that of the lower.
    """
    first, sizes, flips = reference(units), family(units, "data"), family(units, "flip")
    trunks = family(units, "trunk")
    bases = {key: unit for key, unit in trunks.items() if key != "base"}
    tenths = {0.0: first} | {10 * float(key): unit for key, unit in flips.items()}
    slopes = _halves({np.log2(float(n)): unit for n, unit in sizes.items()})
    if len(slopes) == 2:
        slopes["upper less lower half"] = _less(slopes["upper half"], slopes["lower half"])
    ranked = {f"{name}_{key}": unit for name in _RANKED for key, unit in family(units, name).items()}
    found = {
        "data": {f"a doubling, {span}": slope for span, slope in slopes.items()},
        "epochs": {
            f"{key} less {_any(units[first])['epochs']:g}": {unit: 1.0, first: -1.0}
            for key, unit in family(units, "epochs").items()
        },
        "trunk": {
            f"{big} less {small}": {bases[big]: 1.0, bases[small]: -1.0}
            for small, big in zip(bases, list(bases)[1:], strict=False)
        },
        "noise": {f"a tenth of flips, {span}": slope for span, slope in _halves(tenths).items()},
        "rankings": {f"{name} less pairs": {unit: 1.0, first: -1.0} for name, unit in ranked.items()},
    }
    if "base" in trunks:
        found["trunk"]["SFT model less its base"] = {first: 1.0, trunks["base"]: -1.0}
    return found


def _less(ours: Weights, theirs: Weights) -> Weights:
    return {unit: ours.get(unit, 0.0) - theirs.get(unit, 0.0) for unit in {**theirs, **ours}}


def _halves(at: Mapping[float, str]) -> dict[str, Weights]:
    """Slopes along the lower and the upper half of a grid (the middle of an odd one in both); of a short one, one."""
    places = sorted(at)
    if len(places) < 2:
        return {}
    if len(places) < 4:
        return {"all": slope_weights(places, at)}
    half = (len(places) + 1) // 2
    return {"lower half": slope_weights(places[:half], at), "upper half": slope_weights(places[-half:], at)}


def slope_weights(places: Sequence[float], at: Mapping[float, str]) -> Weights:
    """The weights with which values at these places sum to the slope of their least-squares line."""
    x = np.array(places) - np.mean(places)
    return {at[place]: float(weight) for place, weight in zip(places, x / (x**2).sum(), strict=True)}


def contrast(units: Units, weights: Weights, name: str) -> list[float]:
    """The weighted sum of a figure over units, for every seed that has them all."""
    seeds = [set(units[unit]) for unit in weights]
    return [
        sum(weight * units[unit][seed][name] for unit, weight in weights.items())
        for seed in sorted(set.intersection(*seeds))
    ]


def comparison_table(units: Units) -> pd.DataFrame:
    """Each contrast with its interval; those of one question and one column hold all at once (Bonferroni)."""
    rows = {}
    for question, asked in contrasts(units).items():
        for label, weights in asked.items():
            values = {name: contrast(units, weights, name) for name in COMPARED}
            rows[question, label] = {name: gaps_text(gaps, len(asked), 3) for name, gaps in values.items()}
    index = pd.MultiIndex.from_tuples(rows, names=["question", "contrast"])
    return pd.DataFrame(list(rows.values()), index=index, columns=list(COMPARED))


def results(units: Units) -> Figures:
    """What the run reports."""
    shown = [*_SHOWN, "confidence"]
    first = {unit: _any(seeds) for unit, seeds in units.items()}
    return {f"{name}_{unit}": own[name] for unit, own in first.items() for name in shown if name in own}


def tables(file: str | Path) -> str:
    """All tables of a file of results, for the terminal."""
    units = found.units if (found := recorded(file)) else {}
    shown = [table] * bool(units) + [comparison_table] * bool(family(units, "data"))
    return "\n\n".join(draw(units).to_string() for draw in shown)


# ---- Figures


@styled
def figure(units: Units) -> Figure:
    """Accuracy (above), gold of the best of n (below): by data, epochs, trunk, noise, and the form of the labels."""
    first = reference(units)
    sizes, trunks, flips = (family(units, name) for name in ("data", "trunk", "flip"))
    epochs = _by_epochs(units)
    forms = {f"{key} ({name[6:]})": u for name in _RANKED for key, u in family(units, name).items()}
    columns = [
        ("comparisons", [float(n) for n in sizes], list(sizes.values()), None),
        ("epochs", range(len(epochs)), list(epochs.values()), list(epochs)),
        ("starts from", range(len(trunks) + 1), [*trunks.values(), first], [*trunks, "SFT"]),
        ("share of labels flipped", [0.0, *map(float, flips)], [first, *flips.values()], None),
        ("form of the labels", range(len(forms) + 1), [first, *forms.values()], ["pairs", *forms]),
    ]
    fig, axes = empty_figure(2, len(columns), height=5.6)
    for ax in axes[:, 1:].flat:
        ax.sharey(axes[0, 0] if ax in axes[0] else axes[1, 0])
        ax.tick_params(labelleft=False)
    for (above, below), (label, x, shown, ticks) in zip(axes.T, columns, strict=True):
        style = {"linestyle": "" if ticks else "-"}
        _draw(above, units, list(x), shown, {"accuracy": ORANGE, "accuracy_gold": BLUE}, style)
        _draw(below, units, list(x), shown, {"gain": GREEN}, style)
        if ticks:
            below.set_xticks(list(x), ticks, rotation=90)
            above.set_xticks(list(x))
        above.tick_params(labelbottom=False)
        below.set_xlabel(label)
    for ax in axes[:, 0]:
        _along_data(ax, units, sizes)
    axes[0, 0].set_ylabel("accuracy")
    axes[1, 0].set_ylabel("gain in gold, best of n (sd)")
    axes[0, 0].legend(loc="best")
    return fig


def _draw(ax, units: Units, x: list[float], shown: Sequence[str], colors: Mapping[str, str], style: dict) -> None:
    """Figures of units at places x, and dashed what gold itself has."""
    names = {"accuracy": "on labels", "accuracy_gold": "against gold", "gain": "gold"}
    for name, color in colors.items():
        draw_means(ax, x, _values(units, shown, name), color, names[name], **style)
        if GOLD in units:
            top = np.mean([figures[name] for figures in units[GOLD].values()])
            ax.axhline(top, color=color, linewidth=0.8, linestyle="--")


def _by_epochs(units: Units) -> dict[str, str]:
    """Epochs -> unit, in order, the reference among them."""
    first = reference(units)
    found = {f"{_any(units[first])['epochs']:g}": first} | family(units, "epochs")
    return {key: found[key] for key in sorted(found, key=float)}


def _along_data(ax, units: Units, sizes: Mapping[str, str]) -> None:
    """An axis of sizes, dotted where the epochs change."""
    ax.set_xscale("log", base=2)
    ax.set_xticks([float(n) for n in sizes], list(sizes))
    for (n, unit), (more, other) in pairwise(sizes.items()):
        if _any(units[unit])["epochs"] != _any(units[other])["epochs"]:
            ax.axvline(np.sqrt(float(n) * float(more)), color=GREY, linewidth=0.8, linestyle=":")


def _values(units: Units, shown: Sequence[str], name: str) -> np.ndarray:
    """(seeds, units) of a figure, for the seeds that all of them have."""
    seeds = sorted(set.intersection(*({*units[unit]} for unit in shown)))
    return np.array([[units[unit][seed][name] for unit in shown] for seed in seeds])


@styled
def calibration_figure(units: Units) -> Figure:
    """What share of labels goes with a reward model's own probability: by data, noise, epochs; the gap by data."""
    sizes, flips = family(units, "data"), {"0": reference(units)} | family(units, "flip")
    fig, axes = empty_figure(2, 2, height=6.0)
    compared = {"comparisons": sizes, "flipped": flips, "epochs": _by_epochs(units)}
    for ax, (what, shown) in zip(axes.flat, compared.items(), strict=False):
        ax.plot([0.5, 1], [0.5, 1], color=GREY, linewidth=0.8, linestyle="--")
        for (key, unit), color in zip(shown.items(), PALETTE, strict=False):
            said, share = reliability(units[unit])
            ax.plot(said, share, color=color, marker="o", markersize=3.5, label=key)
        ax.set(xlabel="probability said", ylabel="share of labels")
        ax.legend(title=what, ncols=2)
    ax = axes[1, 1]
    draw_means(ax, [float(n) for n in sizes], _values(units, list(sizes.values()), "ece"), BLUE, "reward model")
    if GOLD in units:
        ax.axhline(np.mean([f["ece"] for f in units[GOLD].values()]), color=GREY, linestyle="--", label="gold itself")
    _along_data(ax, units, sizes)
    ax.set(xlabel="comparisons", ylabel="expected calibration error")
    ax.legend()
    return fig


def reliability(seeds: Mapping[int, Figures]) -> tuple[list[float], list[float]]:
    """(probability said, share of labels) of each bin that has comparisons, those of all seeds together."""
    said, share = [], []
    for place in range(BINS):
        bins = [figures for figures in seeds.values() if f"n_bin_{place}" in figures]
        sizes = [figures[f"n_bin_{place}"] for figures in bins]
        if bins:
            said.append(float(np.average([figures[f"said_bin_{place}"] for figures in bins], weights=sizes)))
            share.append(float(np.average([figures[f"share_bin_{place}"] for figures in bins], weights=sizes)))
    return said, share
