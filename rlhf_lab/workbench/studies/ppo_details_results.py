"""15_ppo_details: which details matter. Table and forest plot, of a run and over seeds."""

from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, NullLocator

from rlhf_lab.workbench.artefacts import HOUSE
from rlhf_lab.workbench.intervals import mean_interval
from rlhf_lab.workbench.records import read_jsonl
from rlhf_lab.workbench.stages.ppo_details import DETAILS
from rlhf_lab.workbench.studies.algorithm_results import bonferroni
from rlhf_lab.workbench.studies.units import Figures, Recorded, Units, gaps_of, latest, less_text, mean_text
from rlhf_lab.workbench.style import BLUE, GREY, RED, empty_figure, styled
from rlhf_lab.workbench.writing import user_path

RECORDED = HOUSE / "experiments" / "reference" / "ppo-details.jsonl"
COMPARED = {"gold": "gold (sd)", "kl": "KL (nats)", "eos_rate": "EOS rate"}
_LINEAR = {"gold": 0.5, "kl": 2.0, "eos_rate": 0.1}  # the axis is linear up to here, logarithmic beyond
_STEPS = {"score": 2, "words": 1, "approx_kl": 4, "clip_fraction": 3, "explained_variance": 2, "ratio_off": 3}


def recorded(file: str | Path = "") -> Recorded | None:
    """The results in a file, "" = the committed one, with the settings of its last line.

    None without any, or before the baseline is there: nothing can be compared.
    """
    lines = read_jsonl(user_path(file) if file else RECORDED)
    found = latest(lines) if lines else None
    return found if found and "baseline" in found.units else None


def details_of(units: Units) -> list[str]:
    """The details that were switched, in the order of `DETAILS`."""
    return [name for name in DETAILS if name in units]


def verdict(gaps: list[float], comparisons: int) -> str:
    """`higher` or `lower` where the interval at level 1 - 0.05 / comparisons leaves out 0, else ""."""
    low, high = bonferroni(gaps, comparisons)
    return "higher" if low > 0 else "lower" if high < 0 else ""


def comparison_table(units: Units) -> pd.DataFrame:
    """Each detail less the baseline, seed by seed. The intervals of a column hold all at once (Bonferroni).

    `gold is`: in which direction it matters, where that is shown. `lower in`: the seeds in which gold is lower.
    """
    names = details_of(units)
    rows = {}
    for name in names:
        gaps = gaps_of(units, name, "baseline", "gold")
        rows[name] = {"what is switched": DETAILS[name].said, "N+ or": DETAILS[name].source}
        rows[name] |= {what: less_text(units, name, "baseline", what, len(names)) for what in COMPARED}
        rows[name] |= {"gold is": verdict(gaps, len(names)), "lower in": f"{sum(g < 0 for g in gaps)} of {len(gaps)}"}
    return pd.DataFrame.from_dict(rows, orient="index").rename_axis("less the baseline")


def table(units: Units) -> pd.DataFrame:
    """Where each unit ended and how its steps were; over several seeds means with 95% intervals."""
    digits = {"gold": 2, "kl": 2, "eos_rate": 3} | _STEPS
    rows = {
        name: {what: mean_text(units[name], what, places) for what, places in digits.items()}
        for name in ["baseline", *details_of(units)]
    }
    return pd.DataFrame.from_dict(rows, orient="index").rename_axis("unit")


def tables(file: str | Path) -> str:
    """All tables of a file of results, for the terminal."""
    found = recorded(file)
    return "\n\n".join(shown(found.units).to_string() for shown in (comparison_table, table)) if found else ""


def results(units: Units) -> Figures:
    """What the run reports: each unit's gold and KL, and each detail's gold less the baseline's."""
    found: Figures = {}
    for unit, seeds in units.items():
        (figures,) = seeds.values()
        found |= {f"{name}_{unit}": figures[name] for name in ("gold", "kl")}
        if unit != "baseline":
            found[f"gold_gap_{unit}"] = gaps_of(units, unit, "baseline", "gold")[0]
    return found


@styled
def figure(units: Units) -> Figure:
    """Each detail less the baseline, paired by seed: gold, KL and EOS rate.

    A thick line is the 95% interval of that difference alone, the thin one holds for all details at once. Grey is what
    chance alone does, red what breaks something. The axes are linear near 0 and logarithmic further out.
    """
    names = details_of(units)
    fig, axes = empty_figure(1, len(COMPARED), height=1.0 + 0.22 * max(len(names), 4))
    for ax, (what, label) in zip(axes[0], COMPARED.items(), strict=True):
        for place, name in enumerate(reversed(names)):
            _draw(ax, place, gaps_of(units, name, "baseline", what), _color(name), len(names))
        ax.axvline(0, color=GREY, linewidth=0.8)
        ax.set(xlabel=f"{label}, less the baseline", yticks=range(len(names)), yticklabels=[])
        ax.set_xscale("symlog", linthresh=_LINEAR[what])  # one mistake is ten times as large as all other details
        ax.xaxis.set_major_locator(
            FixedLocator([part * _LINEAR[what] for part in (-10, -4, -1, -0.5, 0, 0.5, 1, 4, 10)])
        )
        ax.xaxis.set_major_formatter("{x:g}")
        ax.xaxis.set_minor_locator(NullLocator())
    axes[0, 0].set_yticklabels(reversed(names))
    return fig


def _color(name: str) -> str:
    return GREY if name == "again" else BLUE if DETAILS[name].changes else RED


def _draw(ax, place: int, gaps: list[float], color: str, comparisons: int) -> None:
    if not gaps:
        return
    at = mean_interval(gaps)
    if len(gaps) > 1:
        ax.plot(bonferroni(gaps, comparisons), [place, place], color=color, linewidth=0.7)
        ax.plot([at.low, at.high], [place, place], color=color, linewidth=2.6, alpha=0.6, solid_capstyle="butt")
    ax.plot([np.mean(gaps)], [place], "o", color=color, markersize=4)
