"""08_human_feedback: what is finished is kept in a file and not run again; tables and figure, of a run and over seeds.

A unit is a round of an arm, such as offline/2.
"""

from collections.abc import Iterable
from pathlib import Path
from typing import get_args

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from rlhf_lab.workbench.artefacts import HOUSE
from rlhf_lab.workbench.records import read_jsonl
from rlhf_lab.workbench.runs import Run
from rlhf_lab.workbench.stages import Arm, HumanFeedbackStage
from rlhf_lab.workbench.studies.finished_lines import NEEDED, short_hash
from rlhf_lab.workbench.studies.human_feedback import Ground
from rlhf_lab.workbench.studies.units import (
    Figures,
    FinishedUnits,
    Recorded,
    Units,
    draw_means,
    latest,
    less_text,
    mean_text,
)
from rlhf_lab.workbench.style import BLUE, GREEN, GREY, INK, ORANGE, empty_figure, styled
from rlhf_lab.workbench.writing import user_path

RECORDED = HOUSE / "experiments" / "reference" / "human-feedback.jsonl"
ARMS = get_args(Arm)
_NO_MATTER = {"experiment", "run_dir", "results", "resume", "seed", "threads", "tracking", "arms", "annotator"}
_COLORS = {"online_disagreement": GREEN, "online_uniform": BLUE, "offline": ORANGE}
_SHOWN = {  # figure -> digits
    "labels": 0,
    "label_accuracy": 2,
    "ties": 2,
    "duplicates": 2,
    "accuracy": 3,
    "accuracy_gold": 3,
    "accuracy_policy": 3,
    "gold": 2,
    "score": 2,
    "kl": 1,
}
COMPARED = {"online_uniform": "offline", "online_disagreement": "online_uniform"}
"""An arm -> the one that differs from it in one thing."""


class Finished(FinishedUnits):
    """The finished rounds of these settings, SFT model and seed."""

    def __init__(self, ground: Ground, run: Run):
        super().__init__(ground.cfg, run, ground.models, settings_hashes)


def settings_hashes(cfg: HumanFeedbackStage, unit: str) -> tuple[str, str]:
    """Two short hashes: of what all rounds share, and, as in every study, of the unit's own, which here is nothing.

    The SFT model is known by its weights.
    """
    values = cfg.model_dump(mode="json", exclude=_NO_MATTER)
    values |= {"policy": ""} if Path(cfg.policy).exists() else {}
    return short_hash(values), short_hash({})


def recorded(file: str | Path = "") -> Recorded | None:
    """The robot's rounds in a file, "" = the committed one, with the settings of its last line; None without any."""
    path = user_path(file) if file else RECORDED
    lines = [line for line in read_jsonl(path, NEEDED) if line["unit"].split("/")[0] in ARMS]
    return latest(lines) if lines else None


def arms_of(units: Units) -> dict[str, list[str]]:
    """Arm -> its units by round, the ones of the study first."""
    names = dict.fromkeys(unit.rpartition("/")[0] for unit in units)
    order = sorted(names, key=lambda name: ARMS.index(name) if name in ARMS else len(ARMS))
    numbers = {name: sorted(int(u.rpartition("/")[2]) for u in units if u.rpartition("/")[0] == name) for name in order}
    return {name: [f"{name}/{number}" for number in numbers[name]] for name in order}


def round_table(units: Units) -> pd.DataFrame:
    """One row for each round of each arm; over several seeds means with 95% intervals."""
    rows = {}
    for arm, rounds in arms_of(units).items():
        for number, unit in enumerate(rounds, 1):
            rows[arm, number] = {name: mean_text(units[unit], name, digits) for name, digits in _SHOWN.items()}
    return pd.DataFrame.from_dict(rows, orient="index").rename_axis(["arm", "round"])


def comparison_table(units: Units) -> pd.DataFrame:
    """Gold and accuracy of an arm less those of the one it differs from in one thing, seed by seed, in each round.

    Left out is the first round, which is the same in all arms. The intervals of a column hold all at once (Bonferroni).
    """
    arms, rows = arms_of(units), {}
    pairs = [(arm, other) for arm, other in COMPARED.items() if arm in arms and other in arms]
    rounds = max((len(found) for found in arms.values()), default=0)
    for arm, other in pairs:
        for number in range(2, rounds + 1):
            names, many = ("gold", "accuracy_gold", "accuracy_policy"), len(pairs) * (rounds - 1)
            ends = f"{arm}/{number}", f"{other}/{number}"
            rows[f"{arm} less {other}", number] = {name: less_text(units, *ends, name, many) for name in names}
    return pd.DataFrame.from_dict(rows, orient="index").rename_axis(["arms", "round"])


def results(units: Units) -> Figures:
    """What the run reports."""
    found: Figures = {}
    for unit, seeds in units.items():
        (figures,) = seeds.values()
        found |= {f"{name}_{unit.replace('/', '_')}": value for name, value in figures.items()}
    return found


def tables(file: str | Path) -> str:
    """All tables of a file of results, for the terminal."""
    found = recorded(file)
    shown = [table(found.units).to_string() for table in (round_table, comparison_table)] if found else []
    return "\n\n".join(shown)


@styled
def figure(units: Units) -> Figure:
    """Gold of the policy, and accuracy of the reward models on the SFT model's pairs and on the policy's own."""
    names = {
        "gold": "gold of the policy (sd)",
        "accuracy_gold": "accuracy, SFT model's pairs",
        "accuracy_policy": "accuracy, policy's own pairs",
    }
    arms = arms_of(units)
    fig, axes = empty_figure(1, 3, height=3.4)
    for ax, (name, label) in zip(axes[0], names.items(), strict=True):
        for place, (arm, rounds) in enumerate(arms.items()):
            seeds = _common(units, rounds, name)
            if not seeds:
                continue
            values = np.array([[units[unit][seed][name] for unit in rounds] for seed in seeds])
            labels = np.mean([[units[unit][seed]["labels"] for unit in rounds] for seed in seeds], axis=0)
            aside = (place - len(arms) / 2 + 0.5) * 0.01 * labels[-1]  # so that intervals do not hide each other
            draw_means(ax, labels + aside, values, _COLORS.get(arm, INK), arm)
        ax.set(xlabel="labels so far", ylabel=label)
    before = [f["gold_sft"] for seeds in units.values() for f in seeds.values() if "gold_sft" in f]
    if before:
        axes[0, 0].axhline(np.mean(before), color=GREY, linewidth=0.8, linestyle="--", label="SFT")
    fig.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside lower center", ncols=len(arms) + 1)
    return fig


def _common(units: Units, rounds: Iterable[str], name: str) -> list[int]:
    """The seeds that every one of these rounds has with this figure."""
    each = [{seed for seed, figures in units[unit].items() if name in figures} for unit in rounds]
    return sorted(set.intersection(*each))
