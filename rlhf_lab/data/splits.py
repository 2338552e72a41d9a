"""Training data and held-out data that share no prompt: what was learned by heart must not be measured."""

import hashlib
import json
import random
from collections import Counter
from collections.abc import Sequence
from typing import Any, NamedTuple

from datasets import Dataset

from rlhf_lab.data.validation import one_line
from rlhf_lab.errors import LabError

SHARE = 5  # at most a fifth of the prompts is held back
REPLY = "\n\nAssistant:"  # begins a reply in dialogues that are one text, as in HH-RLHF


class Split(NamedTuple):
    """Rows to learn from and rows to measure on; no prompt is in both."""

    train: Dataset
    heldout: Dataset


def hold_out(rows: Dataset, count: int) -> Split:
    """Hold back `count` different prompts of a data set, or a fifth of them if that is fewer, one row of each.

    A hash of the text decides which, so they are the same in every run and whatever the order of the rows.
    Errors: `LabError` when there are not two different prompts.
    """
    keys = [_key(prompt) for prompt in rows["prompt"]]
    first = {key: number for number, key in reversed(list(enumerate(keys)))}
    if len(first) < 2:
        raise LabError(
            "one prompt cannot be both learned from and measured on; give a data set of two or more different ones"
        )
    by_hash = sorted(first, key=lambda key: hashlib.sha256(key.encode()).digest())
    held = set(by_hash[: min(count, max(1, len(first) // SHARE))])
    train = [number for number, key in enumerate(keys) if key not in held]
    return Split(rows.select(train), rows.select(sorted(first[key] for key in held)))


def hold_out_openings(rows: Dataset, count: int, *, seed: int) -> Split:
    """Hold back `count` rows or a few more: all rows whose dialogues open alike are held back together, or none is.

    An opening is what the human says first. Dialogues that share it often share more, so a reward model that has
    learned from one knows something of the other. The seed decides which; the order of the rows does not matter.
    Errors: `LabError` where that would leave no row, or fewer than two openings are there.
    """
    openings = [_opening(prompt) for prompt in rows["prompt"]]
    order = sorted(set(openings))
    if len(order) < 2 or count >= len(rows):
        what = f"{len(rows)} rows with {len(order)} different openings"
        raise LabError(f"{what} cannot be split into {count} held-out ones and others; lower 'n_heldout'")
    random.Random(seed).shuffle(order)
    sizes = Counter(openings)
    held, found = set(), 0
    for opening in order[:-1]:
        if found >= count:
            break
        held.add(opening)
        found += sizes[opening]
    parts = ([n for n, o in enumerate(openings) if (o in held) is side] for side in (False, True))
    return Split(*(rows.select(part) for part in parts))


def unseen(heldout: Dataset, train: Dataset, *, on_bad: str = "raise") -> Dataset:
    """The held-out rows, none of whose prompts is among the training rows'. Blanks do not make two prompts of one.

    on_bad: "raise": a shared prompt is an error; "drop": held-out rows with one are left out, and a line says how many.
    Errors: `LabError` with the number of shared prompts and the first of them, or when no row is left.
    """
    known = {_key(prompt) for prompt in train["prompt"]}
    shared = [number for number, prompt in enumerate(heldout["prompt"]) if _key(prompt) in known]
    if not shared:
        return heldout
    what = f"{len(shared)} of {len(heldout)} held-out rows have a prompt of the training data"
    if on_bad != "drop":
        example = repr(one_line(_text(heldout[shared[0]]["prompt"]), 60))
        todo = "take them out of one of the two, or leave them out of the held-out rows with on_bad='drop'"
        raise LabError(f"{what}, the first is row {shared[0] + 1}, {example}; {todo}")
    if len(shared) == len(heldout):
        raise LabError(f"{what}, so no row is left to measure on; give other held-out rows")
    print(f"dropped {what.replace(' have', ', which have')}")
    return heldout.select(sorted(set(range(len(heldout))) - set(shared)))


def _opening(prompt: str | Sequence[dict[str, Any]]) -> str:
    """What the human says first, without regard to blanks."""
    if not isinstance(prompt, str):
        prompt = next((turn["content"] for turn in prompt if turn["role"] == "user"), _text(prompt))
    return " ".join(prompt.partition(REPLY)[0].split())


def _key(prompt: str | Sequence[dict[str, Any]]) -> str:
    return " ".join(_text(prompt).split())


def _text(prompt: str | Sequence[dict[str, Any]]) -> str:
    return prompt if isinstance(prompt, str) else json.dumps(prompt, ensure_ascii=False, sort_keys=True)
