"""Where a reward model is right and where it is not: accuracy by confidence, length, source, and size of the data."""

from collections.abc import Callable, Sequence

import numpy as np
import pandas as pd
import torch
from statsmodels.stats.proportion import proportion_confint

from rlhf_lab.errors import LabError
from rlhf_lab.models import load_scorer
from rlhf_lab.training.reward_model import (
    evaluate_reward_model,
    reward_model_start,
    reward_model_steps,
    score_replies,
)

LENGTHS = {
    "4 or more shorter": (-np.inf, -4),
    "1 to 3 shorter": (-3, -1),
    "as long": (0, 0),
    "1 to 3 longer": (1, 3),
    "4 or more longer": (4, np.inf),
}


def scored_comparisons(scorers: Sequence, tokenizer, rankings, *, max_length: int | None = None) -> pd.DataFrame:
    """One row per prompt, of its best and worst reply: `gap` of mean scores, `words` that the best has more, `source`.

    The mean is over the scorers, which may be one. A prompt whose replies all tie is left out.
    """
    rows = [_best_and_worst(row) for row in rankings if len(set(row["ranks"])) > 1]
    if not rows:
        raise LabError("reward model: no comparisons to look at; give at least one prompt with unequal ranks")
    sides = []
    for side in ("best", "worst"):
        texts = [row[side] for row in rows]
        ended = [row[f"{side}_finished"] for row in rows]
        prompts = [row["prompt"] for row in rows]
        scores = [score_replies(s, tokenizer, prompts, texts, finished=ended, max_length=max_length) for s in scorers]
        sides.append(torch.stack(scores).double().mean(0).cpu().numpy())
    words = [len(row["best"].split()) - len(row["worst"].split()) for row in rows]
    return pd.DataFrame({"gap": sides[0] - sides[1], "words": words, "source": [row["source"] for row in rows]})


def _best_and_worst(row) -> dict:
    best, worst = int(np.argmin(row["ranks"])), int(np.argmax(row["ranks"]))
    ended = row.get("finished") or [True] * len(row["ranks"])
    texts = {"best": row["completions"][best], "worst": row["completions"][worst]}
    finished = {"best_finished": ended[best], "worst_finished": ended[worst]}
    return {"prompt": row["prompt"], "source": row.get("source"), **texts, **finished}


def strata(comparisons: pd.DataFrame, *, parts: int = 4) -> pd.DataFrame:
    """Accuracy with its 95% Wilson interval by |gap| in `parts` of equal size, by length difference, and by source.

    Columns by, group, accuracy, low, high, n. A tie counts 1/2. Sources are shown where there is one; empty groups are
    not. Healthy: accuracy rises with confidence, and does not depend on who is longer.
    """
    size = comparisons["gap"].abs()
    place = np.minimum((size.rank(method="average") - 1) * parts // len(size), parts - 1).astype(int)
    found = [_row("confidence", _span(size[place == part]), comparisons[place == part]) for part in sorted(set(place))]
    for name, (low, high) in LENGTHS.items():
        found.append(_row("the better one is", name, comparisons[comparisons["words"].between(low, high)]))
    for name in sorted(comparisons["source"].dropna().unique()):
        found.append(_row("source", name, comparisons[comparisons["source"] == name]))
    table = pd.DataFrame(found)
    return table[table["n"] > 0].reset_index(drop=True)


def _span(sizes: pd.Series) -> str:
    return f"gap {sizes.min():.2f} to {sizes.max():.2f}"


def _row(by: str, group: str, part: pd.DataFrame) -> dict:
    right = float((part["gap"] > 0).sum() + 0.5 * (part["gap"] == 0).sum())
    return {"by": by, "group": group, **_accuracy(right, len(part))}


def _accuracy(right: float, n: int) -> dict[str, float]:
    low, high = proportion_confint(right, n, method="wilson") if n else (np.nan, np.nan)
    return {"accuracy": right / n if n else np.nan, "low": float(low), "high": float(high), "n": n}


def members_table(scorers: Sequence, tokenizer, rankings, *, max_length: int | None = None) -> pd.DataFrame:
    """The accuracy of each member of an ensemble and of their mean score."""
    groups = {f"member {number}": [scorer] for number, scorer in enumerate(scorers)} | {"their mean": list(scorers)}
    rows = [
        _row("ensemble", name, scored_comparisons(some, tokenizer, rankings, max_length=max_length))
        for name, some in groups.items()
    ]
    return pd.DataFrame(rows).drop(columns="by").set_index("group")


def learning_curve(
    cfg,
    start_from: str,
    tokenizer,
    rows,
    held_out,
    *,
    progress: Callable[[int, int, str], None] | None = None,
    accelerator=None,
) -> pd.DataFrame:
    """Held-out accuracy of fresh reward models from the first rows alone, for each size in `cfg.learning_curve`.

    Columns rows, accuracy, low, high, n. Every size has the same head and settings. Errors: `LabError` for a size that
    the data do not have.
    """
    if too_many := [size for size in cfg.learning_curve if size > len(rows)]:
        raise LabError(f"learning_curve: {too_many[0]} is more than the {len(rows)} rows of the data; lower it")
    found = []
    for size in cfg.learning_curve:
        torch.manual_seed(cfg.seed)
        scorer = load_scorer(start_from, head="new", bins=cfg.head_bins, lora=getattr(cfg, "lora", None))
        state = reward_model_start(cfg, scorer, tokenizer, rows.select(range(size)), accelerator=accelerator)
        for _ in reward_model_steps(state):
            if progress:
                progress(state.step, state.steps, f"learning curve, {size} rows")
        result = evaluate_reward_model(scorer, tokenizer, held_out, max_length=cfg.max_length)
        found.append({"rows": size, **_accuracy(result.accuracy * result.comparisons, result.comparisons)})
    return pd.DataFrame(found, columns=["rows", "accuracy", "low", "high", "n"])
