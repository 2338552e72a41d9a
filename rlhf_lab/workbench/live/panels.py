"""What the live view shows of a run's metrics: a few curves in each panel, over the band in which they are healthy."""

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from rlhf_lab.workbench.glossary import GLOSSARY

POINTS = 300  # of a curve that are sent to the page


class Panel(NamedTuple):
    """One small plot. curves: metric -> its name in the legend. The first gives unit and band."""

    title: str
    curves: dict[str, str]


PANELS = (
    Panel("Reward", {"objective/scores": "score", "objective/rlhf_reward": "after KL", "gold/mean": "gold"}),
    Panel("KL to the reference", {"objective/kl": "KL"}),
    Panel("Size of a step", {"policy/approxkl_avg": "KL of an update"}),
    Panel("Clip fraction", {"policy/clipfrac_avg": "policy"}),
    Panel("Entropy", {"policy/entropy_avg": "entropy"}),
    Panel("Explained variance", {"val/explained_var": "critic"}),
    Panel("Policy loss", {"loss/policy_avg": "policy"}),
    Panel("Value loss", {"loss/value_avg": "critic"}),
    Panel("Length", {"completions/mean_length": "tokens"}),
    Panel("Ends with EOS", {"completions/eos_rate": "EOS"}),
    Panel("Loss", {"train/loss": "training", "eval/loss": "held out"}),
    Panel("Accuracy", {"train/accuracy": "training", "eval/accuracy": "held out"}),
    Panel("Score gap", {"train/gap": "training", "eval/gap": "held out"}),
    Panel("Gradient norm", {"policy/grad_norm": "policy"}),
    Panel("Learning rate", {"lr": "lr"}),
    Panel("Seconds of an update", {"time/rollout": "rollout", "time/score": "score", "time/train": "train"}),
)


def metric_names(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """The metrics that the panels show, as far as they were logged."""
    logged = {name for row in rows for name in row}
    return [name for panel in PANELS for name in panel.curves if name in logged]


def panel_views(rows: Sequence[Mapping[str, Any]], settings: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The panels as the page draws them, those without a point left out."""
    views = []
    for panel in PANELS:
        curves = [{"name": name, "points": _points(rows, metric)} for metric, name in panel.curves.items()]
        curves = [curve for curve in curves if curve["points"]]
        if not curves:
            continue
        first, target = GLOSSARY[next(iter(panel.curves))], _target(panel, settings)
        views.append(
            {
                "title": panel.title,
                "unit": "" if first.unit == "1" else first.unit,
                "band": first.healthy if target is None else None,
                "target": target,
                "curves": curves,
            }
        )
    return views


def step_name(rows: Sequence[Mapping[str, Any]]) -> str:
    """The run's own x-axis."""
    return next((name for name in ("episode", "global_step") if rows and name in rows[-1]), "row")


def _points(rows: Sequence[Mapping[str, Any]], metric: str) -> list[tuple[float, float]]:
    """(x, y) of every point that is a number; of a long curve the newest and each so many-th before it."""
    step = step_name(rows)
    points = [(row.get(step, place), row[metric]) for place, row in enumerate(rows) if row.get(metric) is not None]
    every = math.ceil(len(points) / POINTS) or 1
    return points[::-1][::every][::-1]


def _target(panel: Panel, settings: Mapping[str, Any]) -> float | None:
    if "objective/kl" not in panel.curves or settings.get("kl_control", "fixed") == "fixed":
        return None
    return settings.get("kl_target")
