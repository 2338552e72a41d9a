"""The same prompts side by side: what each variant, or each run, replied last."""

import json
from collections.abc import Sequence
from typing import Any, NamedTuple

import pandas as pd

from rlhf_lab.workbench.comparing.reading import ComparedRun
from rlhf_lab.workbench.comparing.variants import Comparison

REPLIES = ("reply", "completion", "response")
SCORES = ("gold", "score")


class SideBySide(NamedTuple):
    """`table` has a row for each prompt, and each reply with its gold or score beside; `notes` say what lacks."""

    table: pd.DataFrame
    notes: list[str]


def side_by_side(comparison: Comparison, n: int = 6, *, step: float | None = None) -> SideBySide:
    """The first `n` prompts that all have in common, one column for each variant: of a seed that they share if any.

    Of a single variant each run is a column. step: the samples of this step; None takes each run's last.
    """
    if len(comparison.variants) == 1:
        runs = {f"seed {'/'.join(map(str, unit))}": run for unit, run in comparison.variants[0].units.items()}
    else:
        shared = _shared_unit(comparison)
        runs = {
            v.name: v.units[shared] if shared in v.units else next(iter(v.units.values())) for v in comparison.variants
        }
    replies = {name: _replies(run, step) for name, run in runs.items()}
    notes = [
        f"{name}: no samples" + (f" at step {step:g}" if step is not None else "") for name in runs if not replies[name]
    ]
    replies = {name: rows for name, rows in replies.items() if rows}
    prompts = _common(list(replies.values()))
    if replies and not prompts:
        notes.append(f"no prompt was answered by all of {', '.join(replies)}")
    rows = [
        {"prompt": p, **{k: v for name in replies for k, v in _columns(name, replies[name][p])}} for p in prompts[:n]
    ]
    return SideBySide(pd.DataFrame(rows), notes)


def _shared_unit(comparison: Comparison) -> tuple | None:
    units = [list(variant.units) for variant in comparison.variants]
    return next((unit for unit in sum(units[:1], []) if all(unit in other for other in units)), None)


def _replies(run: ComparedRun, step: float | None) -> dict[str, tuple[Any, Any]]:
    """Prompt -> the run's own reply and its gold or score. Of several models the last is the run's own."""
    rows = run.samples
    if "prompt" not in rows:
        return {}
    if run.x in rows:
        rows = rows[rows[run.x] == (rows[run.x].max() if step is None else step)]
    texts = [
        name for name in rows if name not in ("prompt", run.x) and rows[name].map(lambda v: isinstance(v, str)).any()
    ]
    own = next((name for name in REPLIES if name in texts), texts[-1] if texts else None)
    if own is None:
        return {}
    score = next((name for name in [*(f"{own}, {s}" for s in SCORES), *SCORES] if name in rows), None)
    return {_text(row["prompt"]): (row[own], row[score] if score else None) for row in rows.to_dict("records")}


def _common(replies: Sequence[dict[str, Any]]) -> list[str]:
    return [prompt for prompt in replies[0] if all(prompt in other for other in replies)] if replies else []


def _columns(name: str, reply: tuple[Any, Any]) -> list[tuple[str, Any]]:
    text, score = reply
    return [(name, text)] + ([(f"{name}, gold", score)] if score is not None else [])


def _text(prompt: Any) -> str:
    return prompt if isinstance(prompt, str) else json.dumps(prompt, ensure_ascii=False)
