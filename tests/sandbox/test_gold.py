"""Gold, by hand: every part is the sum that its docstring names."""

import pytest

from rlhf_lab.sandbox.gold import GoldWeights, gold_parts

PROMPT = "note : the soup is hot and cheap . the bed is soft . guest : how is the soup ? host :"
WEIGHTS = GoldWeights(
    first_fact=1.0, second_fact=0.5, contradiction=-0.7, unsupported=-0.4, abuse=-1.5, filler=-0.6, repetition=-0.25,
    broken=-1.0, off_topic=-0.3, free_words=10, long_word=-0.1, wording=0.0,
    manner={"greeting": (0.4, 0.15), "song": (0.3, 0.25)},
)  # fmt: skip

CASES = {
    # right facts: 1 for the first, 0.5 for the second
    "the soup is hot .": {"helpful": 1.0},
    "the soup is hot and cheap .": {"helpful": 1.5},
    # said twice counts once, and the clause is a repetition: 5 + 5 words are free
    "the soup is hot . the soup is hot .": {"helpful": 1.0, "concise": -0.25},
    # cold is the opposite of hot; big is not in the note
    "the soup is cold .": {"honest": -0.7},
    "the soup is big .": {"honest": -0.4},
    # true, but not what was asked
    "the bed is soft .": {"concise": -0.3},
    # of another subject, against the note
    "the bed is hard .": {"honest": -0.7, "concise": -0.3},
    "go away .": {"harmless": -1.5},
    "well well .": {"concise": -0.6},
    # greeting once .4 - .15, twice .8 - .6 and a repetition; 6 words
    "good day .": {"manner": 0.25},
    "good day . good day .": {"manner": 0.2, "concise": -0.25},
    "good day . welcome friend .": {"manner": 0.2},
    # song three times: .9 - 2.25; two repetitions; 12 words are 2 too many
    "la la la . la la la . la la la .": {"manner": -1.35, "concise": -0.5 - 0.2},
    "soup hot": {"concise": -1.0},
    "": {"concise": -1.0},
}


@pytest.mark.parametrize("reply", CASES)
def test_parts_by_hand(reply):
    parts = gold_parts(PROMPT, reply, WEIGHTS)
    assert list(parts) == ["helpful", "honest", "harmless", "concise", "manner"]
    assert parts == pytest.approx({**dict.fromkeys(parts, 0.0), **CASES[reply]})


def test_a_little_is_good_and_more_is_worse():
    said = [gold_parts(PROMPT, " ".join(["sing with me ."] * k), WEIGHTS)["manner"] for k in range(5)]
    # a k - b k^2 with a = .3, b = .25
    assert said == pytest.approx([0.0, 0.05, -0.4, -1.35, -2.8])


def test_wording_separates_replies_that_would_tie():
    weights = GoldWeights()
    worth = {text: sum(gold_parts(PROMPT, text, weights).values()) for text in ("good day .", "welcome friend .")}
    assert worth["good day ."] != worth["welcome friend ."]
    assert abs(worth["good day ."] - worth["welcome friend ."]) < 0.5


def test_another_language_is_refused():
    with pytest.raises(ValueError, match="not a prompt of the sandbox language"):
        gold_parts("what is the capital of France?", "Paris", WEIGHTS)


def test_gold_is_the_same_to_the_last_bit_in_every_process():
    """Python hashes words differently in each process, so a sum over a set of them comes in another order."""
    import os
    import subprocess
    import sys

    code = (
        "from rlhf_lab.sandbox.world import World; w = World.load(); rows = w.demonstrations(200);"
        "print([g.hex() for g in w.gold([r['prompt'] for r in rows], [r['completion'] for r in rows])])"
    )
    said = {
        subprocess.run(
            [sys.executable, "-c", code],
            env={**os.environ, "PYTHONHASHSEED": seed},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed in ("0", "1", "2")
    }
    assert len(said) == 1
