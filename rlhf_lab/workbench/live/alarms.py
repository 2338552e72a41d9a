"""Alarms: a diagnostic that has left its healthy range, in words, with what to try.

A rule says at each logged point whether it is outside, and rings when the newest few points all are: one noisy
point does not. What is not finite, and a process that is gone, ring at once. What to try stands in the glossary.
"""

from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from rlhf_lab.workbench.glossary import GLOSSARY
from rlhf_lab.workbench.records import Status, metrics_frame
from rlhf_lab.workbench.report.figures import duration

SILENT_S = 120.0  # a run that has said nothing for so long is looked at; a slow one may take longer
RECENT = 5  # rows in which a value that is not finite still counts


class Alarm(NamedTuple):
    """What rings. metric: "" for the run itself. since: the run's own step at which it began, None for no step."""

    metric: str
    words: str
    advice: str
    since: float | None = None


class Rule(NamedTuple):
    """When a metric rings. rings: (settings, a column for each of `needs`) -> True at each point that is outside."""

    needs: tuple[str, ...]  # the first is the one the alarm is about; of the others the value logged last counts
    last: int  # points in a row
    words: str
    rings: Callable[..., np.ndarray]


def find_alarms(
    rows: Sequence[Mapping[str, Any]],
    settings: Mapping[str, Any] | None = None,
    *,
    status: Status | None = None,
    now: float = 0.0,
) -> list[Alarm]:
    """What rings now, the run itself first, at most one alarm for each metric.

    rows: of metrics.jsonl. settings: the run's config. status and now (seconds since 1970): to notice that it has died
    or fallen silent; without a status this is left out.
    """
    settings = settings or {}
    found = _life(rows, status, now) if status is not None else []
    if rows:
        frame = metrics_frame(list(rows))
        found += _not_finite(rows)
        found += [alarm for rule in RULES if (alarm := _applied(rule, frame, settings))]
    return list({alarm.metric: alarm for alarm in reversed(found)}.values())[::-1]


def _applied(rule: Rule, frame: pd.DataFrame, settings: Mapping[str, Any]) -> Alarm | None:
    if any(name not in frame for name in rule.needs):
        return None
    first, *others = rule.needs
    known = frame[list(rule.needs)].replace([np.inf, -np.inf], np.nan)
    known[others] = known[others].ffill()
    known = known.dropna()
    if len(known) < rule.last:
        return None
    columns = [known[name].to_numpy(dtype=float) for name in rule.needs]
    with np.errstate(all="ignore"):
        outside = np.asarray(rule.rings(settings, *columns), dtype=bool)
    if not outside[-rule.last :].all():
        return None
    inside = np.flatnonzero(~outside)
    begin = known.index[inside[-1] + 1 if len(inside) else 0]
    words = rule.words.format(*(f"{column[-1]:.3g}" for column in columns), limit=f"{_kl_limit(settings):g}")
    return Alarm(first, words, GLOSSARY[first].otherwise, _step(frame.loc[begin]))


def _step(row: Mapping[str, Any]) -> float | None:
    step = next((row[name] for name in ("episode", "global_step") if name in row), None)
    return None if step is None or pd.isna(step) else float(step)


def _not_finite(rows: Sequence[Mapping[str, Any]]) -> list[Alarm]:
    for row in reversed(rows[-RECENT:]):
        if odd := row.get("not_finite"):
            names = ", ".join(f"{name} is {value}" for name, value in odd.items())
            advice = "The run is lost from here: resume from a checkpoint before it, with a lower lr or precision fp32."
            return [Alarm(next(iter(odd)), f"Not a finite number: {names}.", advice, _step(row))]
    return []


def _life(rows: Sequence[Mapping[str, Any]], status: Status, now: float) -> list[Alarm]:
    """Whether the run's process is there, and still says something."""
    if status.state == "died":
        advice = "The command that started it takes it up at its last checkpoint; `dmesg` tells whether memory ran out."
        return [Alarm("", f"The run has died: {status.reason}.", advice)]
    try:
        heard = datetime.fromisoformat(status.heartbeat or status.started).timestamp()
    except ValueError:
        return []
    times = [row["time"] for row in rows if "time" in row]
    slowest = max(np.diff(times), default=0.0)
    silence = now - max([heard, *times[-1:]])
    if status.state != "running" or silence <= max(SILENT_S, 5 * slowest):
        return []
    advice = f"Look at what process {status.pid} on {status.host} does (`py-spy dump`, `top`), or stop the run."
    return [Alarm("", f"Nothing heard of the run for {duration(silence)}: it is stalled, or in a long step.", advice)]


# --- the rules


def _kl_limit(settings: Mapping[str, Any]) -> float:
    """Three times the controller's target; without a controller where published runs were over-optimised."""
    controlled = settings.get("kl_control", "fixed") != "fixed"
    return 3 * settings.get("kl_target", 6.0) if controlled else 50.0


def _recent(values: np.ndarray, width: int = 5) -> np.ndarray:
    """The mean of the newest points at each point."""
    return pd.Series(values).rolling(width, min_periods=1).mean().to_numpy()


def _gained(values: np.ndarray, back: int = 10) -> np.ndarray:
    """How far the mean of five points has moved in `back` points, in units of that difference's noise; NaN before.

    The noise of a point is taken from the steps from point to point: their standard deviation over the root of 2.
    """
    level = pd.Series(_recent(values))
    noise = np.std(np.diff(values)) / np.sqrt(2) * np.sqrt(2 / 5) if len(values) > 1 else 0.0
    return ((level - level.shift(back)) / max(noise, 1e-12)).to_numpy()


def _entropy_collapses(_: Mapping[str, Any], entropy: np.ndarray) -> np.ndarray:
    """Below a tenth of where it began, or halved within five points."""
    level = pd.Series(_recent(entropy))
    return (level < 0.1 * entropy[:3].mean()) | (level < 0.5 * level.shift(5))


def _coefficient_swings(settings: Mapping[str, Any], coef: np.ndarray) -> np.ndarray:
    """Up fourfold and down fourfold within 20 points."""
    swings = np.zeros(len(coef), dtype=bool)
    for end in range(len(coef)) if settings.get("kl_control", "fixed") != "fixed" else ():
        part = coef[max(0, end - 19) : end + 1]
        up = (part / np.minimum.accumulate(part)).max() >= 4
        swings[end] = up and (part / np.maximum.accumulate(part)).min() <= 0.25
    return swings


def _gold_falls(settings: Mapping[str, Any], gold: np.ndarray, proxy: np.ndarray) -> np.ndarray:
    """Below its peak by more than three standard errors of the held-out mean, while the proxy is above its own there.

    Gold is in units of the reference's standard deviation, so that one is about 1 / sqrt(prompts).
    """
    margin = max(0.2, 3 / np.sqrt(settings.get("eval_prompts", 256)))
    peak = np.maximum.accumulate(gold)
    at_peak = proxy[[int(np.argmax(gold[: i + 1])) for i in range(len(gold))]]
    return (gold < peak - margin) & (proxy > at_peak)


RULES = (
    Rule(
        ("objective/kl",),
        10,
        "The KL to the reference is negative ({} nats per reply) for ten updates: that is a bug, not a policy.",
        lambda _, kl: kl < -0.05,
    ),
    Rule(
        ("objective/kl",),
        5,
        "The KL to the reference is {} nats per reply, above {limit}.",
        lambda settings, kl: kl > _kl_limit(settings),
    ),
    Rule(
        ("policy/approxkl_avg",),
        5,
        "An update moves the policy by {} nats per token, above 0.05: the steps are too large.",
        lambda _, moved: moved > 0.05,
    ),
    Rule(
        ("policy/clipfrac_avg",),
        5,
        "A share of {} of the tokens is clipped, above 0.2: the steps are too large.",
        lambda _, clipped: clipped > 0.2,
    ),
    Rule(
        ("val/ratio",),
        3,
        "The mean ratio of new to old policy is {}, not near 1.",
        lambda _, ratio: (ratio > 2.0) | (ratio < 0.5),
    ),
    Rule(
        ("policy/entropy_avg",),
        3,
        "The entropy collapses: {} nats per token.",
        _entropy_collapses,
    ),
    Rule(
        ("val/explained_var",),
        10,
        "The critic explains nothing after 50 updates (explained variance {}).",
        lambda _, explained: (np.arange(len(explained)) >= 50) & (explained <= 0),
    ),
    Rule(
        ("completions/eos_rate",),
        3,
        "No reply ends with EOS.",
        lambda _, rate: rate == 0,
    ),
    Rule(
        ("completions/eos_rate",),
        5,
        "Fewer and fewer replies end with EOS: a share of {} now.",
        lambda _, rate: rate < np.maximum.accumulate(_recent(rate)) - 0.1,
    ),
    Rule(
        ("completions/mean_length", "policy/entropy_avg"),
        5,
        "Replies grow longer ({} tokens) while the policy grows sure (entropy {}): a pattern may have taken over.",
        lambda _, length, entropy: (
            (_recent(length) > 1.5 * length[:3].mean()) & (_recent(entropy) < 0.5 * entropy[:3].mean())
        ),
    ),
    Rule(
        ("objective/rlhf_reward", "objective/scores"),
        3,
        "The score rises (to {1}) while the reward after the KL penalty falls (to {0}).",
        lambda _, shaped, score: (_gained(shaped) < -3) & (_gained(score) > 3),
    ),
    Rule(
        ("objective/kl_coef",),
        1,
        "The KL coefficient swings up and down; now {}.",
        _coefficient_swings,
    ),
    Rule(
        ("gold/mean", "heldout/score"),
        2,
        "Gold has fallen (to {0}) while the proxy went on rising (to {1}): over-optimisation.",
        _gold_falls,
    ),
    Rule(
        ("gold/win_rate",),
        2,
        "The replies are worse than where the policy began: they win a share of {} by gold.",
        lambda settings, rate: rate < 0.5 - 1 / np.sqrt(settings.get("eval_prompts", 256)),
    ),
)
