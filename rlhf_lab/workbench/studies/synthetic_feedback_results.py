"""06_synthetic_feedback: what is finished is kept in a file and not run again; tables, of a run and over seeds.

A unit is what takes a while: the rule along its axes, the filters, the start, one chain. It comes to figures by name.
"""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from rlhf_lab.workbench.artefacts import HOUSE
from rlhf_lab.workbench.records import read_jsonl
from rlhf_lab.workbench.runs import Run
from rlhf_lab.workbench.stages import SyntheticFeedbackStage
from rlhf_lab.workbench.studies.finished_lines import NEEDED, fingerprint, short_hash
from rlhf_lab.workbench.studies.synthetic_feedback import CONDITIONS, FILTERS, Ground
from rlhf_lab.workbench.studies.units import (
    Figures,
    FinishedUnits,
    Recorded,
    Units,
    latest,
    less_text,
    mean_text,
)
from rlhf_lab.workbench.writing import user_path

_NO_MATTER = {"experiment", "run_dir", "results", "resume", "seed", "threads", "tracking", "almost", "judges"}
_MODELS = {"sizes", "student"}  # known by their weights
_OF_JUDGES = {"judge_temperature", "position", "length", "flip", "votes"}
CHAINS = ("rule", "filtered", "gold")


class Finished(FinishedUnits):
    """The finished units of these settings, models and seed."""

    def __init__(self, ground: Ground, run: Run):
        models = "-".join(fingerprint(path) for path in (*ground.cast.paths.values(), ground.student))
        super().__init__(ground.cfg, run, models, settings_hashes)


def settings_hashes(cfg: SyntheticFeedbackStage, unit: str) -> tuple[str, str]:
    """Two short hashes: of what all units share, and of the judge's faults and the remedy where the unit has such."""
    values = cfg.model_dump(mode="json", exclude=_NO_MATTER | _MODELS | _OF_JUDGES)
    own: dict[str, Any] = {}
    if unit in CONDITIONS:
        condition = CONDITIONS[unit]
        own = condition._asdict() | {"temperature": cfg.judge_temperature}
        own |= {"size": getattr(cfg, condition.errs)} if condition.errs else {}
        own |= {"votes": cfg.votes} if condition.remedy == "votes" else {}
    return short_hash(values), short_hash(own)


_NEEDED = {"almost": {"axes", "filters"}, "judges": {"fair"}}  # what the tables of a part begin with


def recorded(part: str, file: str | Path = "") -> Recorded | None:
    """The results in a file, "" = the committed one of `part` (almost or judges).

    None before the first units of the part are there. The last line says which settings are shown; a unit that was run
    with several is shown with its last.
    """
    path = user_path(file) if file else HOUSE / "experiments" / "reference" / f"synthetic-feedback-{part}.jsonl"
    lines = [line for line in read_jsonl(path, NEEDED) if (line["unit"] in CONDITIONS) == (part == "judges")]
    if not lines:
        return None
    found = latest(lines)
    return found if _NEEDED[part] <= found.units.keys() else None


# ---- ALMoST


def steps_along(axes: Figures) -> list[tuple[str, str, str]]:
    """(axis, better, worse) of every step whose accuracy was measured."""
    found = []
    for name in axes:
        if name.startswith("accuracy_"):
            better, worse = name.removeprefix("accuracy_").split("_over_")
            (size, shots, *_), (size_2, shots_2, *_) = better.split("_"), worse.split("_")
            found.append(("size" if size != size_2 else "shots" if shots != shots_2 else "quality", better, worse))
    return sorted(found, key=lambda step: ("size", "shots", "quality").index(step[0]))


def rule_table(units: Units) -> pd.DataFrame:
    """The rule's accuracy against gold at every step along an axis, and what the step is worth in gold."""
    axes, rows = units["axes"], []
    for axis, better, worse in steps_along(next(iter(axes.values()))):
        gains = [figures[f"gold_{better}"] - figures[f"gold_{worse}"] for figures in axes.values()]
        accuracy = mean_text(axes, f"accuracy_{better}_over_{worse}")
        rows.append({"axis": axis, "better": better, "worse": worse, "accuracy": accuracy, "gold": np.mean(gains)})
    return pd.DataFrame(rows).set_index(["axis", "better", "worse"]).round(2)


def filter_table(units: Units) -> pd.DataFrame:
    """What each filter leaves: pairs, the rule's accuracy, and characters that the chosen reply has more."""
    found = units["filters"]
    names = {"pairs": 0, "accuracy": 3, "longer": 1}
    rows = {f: {name: mean_text(found, f"{name}_{f}", digits) for name, digits in names.items()} for f in FILTERS}
    return pd.DataFrame(rows).T.rename_axis("filter")


def stage_table(units: Units) -> pd.DataFrame:
    """Each chain: its reward model, gold of what best-of-n chose, of the SFT model and of the policy, and the gains."""
    chains = [name for name in CHAINS if name in units]
    rows = {}
    for name in chains:
        shown = (
            "pairs",
            "accuracy_between",
            "accuracy_within",
            "gold_demonstrations",
            "gold_sft",
            "ppo_gold",
            "ppo_kl",
        )
        row = {key: mean_text(units[name], key, 0 if key == "pairs" else 2) for key in shown}
        gains = {s: f["gold_sft"] - units["start"][s]["gold_plain_sft"] for s, f in units[name].items()}
        row["SFT less plain SFT"] = mean_text({seed: {"gain": gain} for seed, gain in gains.items()}, "gain")
        row["PPO less SFT"] = mean_text(units[name], "ppo_gold_gain")
        row["PPO less rule's"] = less_text(units, name, "rule", "ppo_gold", 2) if name != "rule" else ""
        rows[name] = row
    return pd.DataFrame(rows).rename_axis("chain", axis=1)


# ---- Judges

MENDED = {
    "position_random": "position_weaker_first",
    "position_swap": "position_weaker_first",
    "length_regression": "length",
    "length_balance": "length",
    "noise_votes": "noise",
}
"""A condition with a remedy -> the one without."""


def judge_table(units: Units) -> pd.DataFrame:
    """Each condition: its labels, its reward model, gold of the policy, and that less the fair judge's, seed by seed.

    The intervals of these differences hold all at once (Bonferroni), and so do those of the remedies.
    """
    rows, present = {}, [name for name in CONDITIONS if name in units]
    for name in present:
        digits = {"calls": 0, "pairs": 0, "accuracy": 3, "longer": 2, "accuracy_within": 3, "ppo_gold": 2}
        row = {key: mean_text(units[name], key, places) for key, places in digits.items()}
        others = max(len(present) - 1, 1)
        row["less fair"] = less_text(units, name, "fair", "ppo_gold", others) if name != "fair" else ""
        before = MENDED.get(name)
        mended = sum(other in units for other in MENDED)
        row["less without the remedy"] = less_text(units, name, before, "ppo_gold", mended) if before else ""
        rows[name] = row
    return pd.DataFrame.from_dict(rows, orient="index").rename_axis("condition")


def tables(file: str | Path) -> str:
    """All tables of a file of results, for the terminal."""
    shown = []
    for part in ("almost", "judges"):
        found = recorded(part, file)
        units = found.units if found else {}
        wanted = {rule_table: "axes", filter_table: "filters", stage_table: "start"} if part == "almost" else {}
        shown += [table(units) for table, needed in wanted.items() if needed in units]
        shown += [judge_table(units)] if part == "judges" and units else []
    return "\n\n".join(table.to_string() for table in shown)


def results(units: Units) -> Figures:
    """What the run reports."""
    found: Figures = {}
    for unit, seeds in units.items():
        (figures,) = seeds.values()
        wanted = [name for name in figures if not name.startswith(("words_", "accuracy_")) or unit != "axes"]
        found |= {f"{name}_{unit}": figures[name] for name in wanted}
    return found
