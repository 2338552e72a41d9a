"""Comparisons held back by what the human says first, so that no dialogue is half learned from."""

import pytest
from datasets import Dataset

from rlhf_lab.data import hold_out_openings, load_preferences
from rlhf_lab.errors import LabError


def dialogues(*openings):
    rows = [
        f"\n\nHuman: {opening}\n\nAssistant: hm\n\nHuman: go on {n}\n\nAssistant:" for n, opening in enumerate(openings)
    ]
    return Dataset.from_dict({"prompt": rows, "n": list(range(len(rows)))})


def test_dialogues_that_open_alike_stay_together():
    rows = dialogues(*"aabbcd")
    for seed in range(8):
        train, held = hold_out_openings(rows, 2, seed=seed)
        letters = [{"aabbcd"[n] for n in part["n"]} for part in (train, held)]
        assert not letters[0] & letters[1]
        assert sorted([*train["n"], *held["n"]]) == [0, 1, 2, 3, 4, 5]
        assert len(held) in (2, 3)  # c or d, and then a whole a or b
    assert len({tuple(hold_out_openings(rows, 2, seed=seed).heldout["n"]) for seed in range(8)}) > 2


def test_neither_blanks_nor_the_order_of_the_rows_matter():
    rows = dialogues(*"abcd")
    backwards = rows.select([3, 2, 1, 0])
    assert (
        sorted(hold_out_openings(backwards, 2, seed=5).heldout["n"]) == hold_out_openings(rows, 2, seed=5).heldout["n"]
    )
    spaced = dialogues("so  what", "so what", "so\nwhat ", "other")
    held = hold_out_openings(spaced, 1, seed=0)
    assert {len(held.train), len(held.heldout)} == {1, 3}


def test_conversations_open_with_the_first_turn_of_the_user():
    system = {"role": "system", "content": "be kind"}
    rows = [[system, {"role": "user", "content": text}, {"role": "assistant", "content": str(n)}] for n, text in
            enumerate(["hello", "hello", "bye"])]  # fmt: skip
    train, held = hold_out_openings(Dataset.from_dict({"prompt": rows}), 1, seed=0)
    assert {len(train), len(held)} == {1, 2}


def test_what_cannot_be_split_is_told():
    with pytest.raises(LabError, match="2 rows with 1 different openings cannot be split"):
        hold_out_openings(dialogues("a", "a"), 1, seed=0)
    with pytest.raises(LabError, match="lower 'n_heldout'"):
        hold_out_openings(dialogues("a", "b"), 2, seed=0)


def test_real_dialogues_repeat_their_openings(shared):
    """2,307 usable pairs of harmless-base with 2,173 first turns."""
    rows = load_preferences(shared / "data" / "hh-rlhf", on_bad="drop")
    train, held = hold_out_openings(rows, 500, seed=100)
    first = [{prompt.split("\n\nAssistant:")[0] for prompt in part["prompt"]} for part in (train, held)]
    assert len(first[0]) + len(first[1]) == len(first[0] | first[1]) == 2173
    assert 500 <= len(held) < 520 and len(train) + len(held) == 2307
