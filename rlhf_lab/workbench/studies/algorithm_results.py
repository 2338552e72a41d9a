"""05_algorithms: what is finished is kept in a file and not run again; tables and figures, of a run and over seeds."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from scipy import stats

from rlhf_lab.training.methods import METHODS
from rlhf_lab.workbench.artefacts import HOUSE
from rlhf_lab.workbench.intervals import mean_interval
from rlhf_lab.workbench.records import read_jsonl
from rlhf_lab.workbench.runs import Run
from rlhf_lab.workbench.stages import AlgorithmsStage
from rlhf_lab.workbench.studies.algorithms import Ground, Outcome
from rlhf_lab.workbench.studies.finished_lines import FinishedLines, fingerprint, short_hash
from rlhf_lab.workbench.style import GREY, PALETTE, empty_figure, styled
from rlhf_lab.workbench.writing import user_path

RECORDED = HOUSE / "experiments" / "reference" / "algorithms.jsonl"
_OWN = ("online", "dpo", "kto", "raft")
_NO_MATTER = {"experiment", "run_dir", "methods", "results", "resume", "seed", "threads", "tracking"}


class Finished:
    """The finished (method, seed) of these settings and these models, in `cfg.results` or a file of the run's own."""

    def __init__(self, ground: Ground, run: Run):
        self.cfg, self.run = ground.cfg, run
        self.models = fingerprint(ground.sft_path) + "-" + fingerprint(ground.reward_name)
        self.lines = FinishedLines(self.cfg.results, run, "algorithms")
        self.lines.settle([self._key(method) for method in self.cfg.methods])
        self.logged: set[str] = set()

    def find(self, method: str) -> Outcome | None:
        """What was recorded, or None. Errors: `LabError` naming a broken line."""
        line = self.lines.find(method, self._key(method))
        return self._log(method, Outcome(line["curve"])) if line else None

    def add(self, method: str, outcome: Outcome) -> Outcome:
        """Append a finished method to the file and its curve to the run's metrics, and give it back."""
        self.lines.add(self._key(method), {"curve": outcome.curve})
        return self._log(method, outcome)

    def _log(self, method: str, outcome: Outcome) -> Outcome:
        """Send a curve to the run's metrics, once."""
        if method not in self.logged:
            self.logged.add(method)
            for row in outcome.curve:
                self.run.log({f"{method}/{name}": value for name, value in row.items()}, step=row["replies"])
        return outcome

    def _key(self, method: str) -> dict[str, Any]:
        common, own = settings_hashes(self.cfg, method)
        return {"method": method, "seed": self.cfg.seed, "common": common, "own": own, "models": self.models}


def settings_hashes(cfg: AlgorithmsStage, method: str) -> tuple[str, str]:
    """Two short hashes: of what all methods share, and of what is this method's own.

    Paths do not count, since a run's directory is another every time; the models there are known by their weights.
    """
    values = cfg.model_dump(mode="json", exclude=_NO_MATTER | set(_OWN))
    values |= {name: "" for name in ("policy", "reward") if Path(values[name]).exists()}
    values |= cfg.online.model_dump(mode="json", include={"temperature", "missing_eos_penalty"})
    section = "online" if method in METHODS else method
    own = getattr(cfg, section).model_dump(mode="json") if section in _OWN else {}
    return short_hash(values), short_hash(own)


def table(outcomes: Mapping[str, Outcome]) -> pd.DataFrame:
    """One row for each method: where it ended, and what it cost."""
    shown = ["gold_gain", "score_gain", "kl", "words", "eos_rate", "replies", "tokens", "reward_calls", "seconds"]
    rows = pd.DataFrame({method: outcome.figures for method, outcome in outcomes.items()}).T
    return rows[[name for name in shown if name in rows]].round(2)


def results(outcomes: Mapping[str, Outcome]) -> dict[str, float]:
    """What the run reports: gold, proxy, KL, tokens and seconds of each method."""
    return {
        f"{name}_{method}": outcome.figures[name]
        for name in ("gold_gain", "score_gain", "kl", "tokens", "seconds")
        for method, outcome in outcomes.items()
        if name in outcome.figures
    }


class Recorded(NamedTuple):
    """What a file of results holds of one set of settings."""

    outcomes: dict[str, list[Outcome]]  # method -> one for each unit, in the order of `units`
    units: dict[str, list[str]]  # method -> the seed and models of each
    left_out: int  # lines of other settings, or that a later line of the same replaces


def recorded(file: str | Path = "") -> Recorded | None:
    """The results in a file, "" = the committed one; None if there are none.

    The last line says which settings are shown; a method that was run with several is shown with its last.
    """
    path = user_path(file) if file else RECORDED
    lines = read_jsonl(path, ("method", "seed", "common", "own", "models", "curve"))
    if not lines:
        return None
    code = lines[-1].get("code")
    kept = [line for line in lines if line["common"] == lines[-1]["common"] and line.get("code", code) == code]
    own = {line["method"]: line["own"] for line in kept}
    last = {
        (line["method"], f"seed {line['seed']}, models {line['models']}"): Outcome(line["curve"])
        for line in kept
        if line["own"] == own[line["method"]]
    }
    outcomes: dict[str, list[Outcome]] = {}
    units: dict[str, list[str]] = {}
    for method, unit in sorted(last, key=lambda key: ([*METHODS, *own].index(key[0]), key[1])):
        outcomes.setdefault(method, []).append(last[method, unit])
        units.setdefault(method, []).append(unit)
    return Recorded(outcomes, units, len(lines) - len(last))


def over_seeds(found: Recorded, *, against: str = "ppo") -> pd.DataFrame:
    """Means with 95% intervals over seeds, and each method's gain in gold over `against`, seed by seed.

    The intervals of these differences hold all at once: each is of level 1 - 0.05 / m for m methods compared
    (Bonferroni). "higher" and "lower" are said where such an interval leaves out 0, "-" where nothing can be said.
    """
    rows = {}
    name = f"{_judged_by(found.outcomes)}_gain"
    for method, outcomes in found.outcomes.items():
        figures = pd.DataFrame([outcome.figures for outcome in outcomes])
        row: dict[str, Any] = {"seeds": len(outcomes), name: str(mean_interval(figures[name]))}
        row |= {key: round(figures[key].mean(), 2) for key in ("kl", "score_gain", "eos_rate", "tokens", "seconds")}
        if against in found.outcomes and method != against:
            gaps = paired_gaps(found, method, against, name)
            low, high = bonferroni(gaps, len(found.outcomes) - 1)
            row[f"less {against}"] = f"{np.mean(gaps):.2f} [{low:.2f}, {high:.2f}]" if len(gaps) else ""
            row["gold is"] = "higher" if low > 0 else "lower" if high < 0 else "-"
        rows[method] = row
    return pd.DataFrame.from_dict(rows, orient="index").fillna("")


def paired_gaps(found: Recorded, method: str, against: str, name: str) -> list[float]:
    """A figure of one method less that of another, for every seed (and models) that both were run with."""
    one, other = (
        {unit: outcome.figures[name] for unit, outcome in zip(found.units[m], found.outcomes[m], strict=True)}
        for m in (method, against)
    )
    return [one[unit] - other[unit] for unit in one if unit in other]


def bonferroni(values: list[float], comparisons: int) -> tuple[float, float]:
    """An interval for the mean by Student's t at level 1 - 0.05 / comparisons; NaN for fewer than two values."""
    if len(values) < 2:
        return float("nan"), float("nan")
    half = stats.t.ppf(1 - 0.025 / comparisons, len(values) - 1) * stats.sem(values)
    return float(np.mean(values) - half), float(np.mean(values) + half)


def _judged_by(outcomes: Mapping[str, list[Outcome]]) -> str:
    """Gold where every outcome has it, else the score."""
    return "gold" if all("gold" in o.curve[0] for several in outcomes.values() for o in several) else "score"


@styled
def figure(outcomes: Mapping[str, list[Outcome]]) -> Figure:
    """Gold against KL, tokens sampled and seconds: means over seeds, with 95% intervals where a method ends.

    Without a known gold reward it is the score.
    """
    name = _judged_by(outcomes)
    fig, axes = empty_figure(1, 3, height=3.6)
    for (method, several), color in zip(outcomes.items(), [*PALETTE, GREY], strict=False):
        gains = np.array([[row[name] - o.curve[0][name] for row in o.curve] for o in several])
        end = mean_interval(gains[:, -1])
        for ax, (x, unit) in zip(axes[0], (("kl", 1), ("tokens", 1000), ("seconds", 1)), strict=True):
            places = np.array([[row[x] / unit for row in o.curve] for o in several]).mean(0)
            ax.plot(places, gains.mean(0), color=color, linewidth=1.1, label=method)
            error = [[end.mean - end.low], [end.high - end.mean]] if len(several) > 1 else None
            ax.errorbar(places[-1:], gains.mean(0)[-1:], yerr=error, color=color, marker="o", markersize=4, capsize=2)
    for ax, label in zip(
        axes[0], ("KL to the SFT model (nats per reply)", "thousand tokens sampled", "seconds"), strict=True
    ):
        ax.set(xlabel=label)
        ax.axhline(0, color=GREY, linewidth=0.6)
    axes[0, 0].set(ylabel=f"gain in {name} over the SFT model" + (" (sd)" if name == "gold" else ""))
    fig.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside lower center", ncols=len(outcomes))
    return fig
