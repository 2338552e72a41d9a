"""What 02_reward_model learns from and starts from, where that is not the sandbox."""

from types import SimpleNamespace

import pytest
from datasets import Dataset
from tiny import make_tokenizer

from rlhf_lab.errors import LabError
from rlhf_lab.workbench import artefacts, reward_runs
from rlhf_lab.workbench.stages import RewardModelStage

OWN = {"model": "some/encoder", "policy": "", "preferences": "pairs.jsonl", "heldout": "split", "demonstrations": ""}


def test_a_reward_model_of_ones_own_needs_no_policy():
    assert not RewardModelStage(**OWN, normalise="off").needs_policy
    assert RewardModelStage(**OWN | {"policy": "auto"}, normalise="reference").needs_policy


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({}, "normalise 'demonstrations' needs demonstrations"),
        ({"normalise": "off", "model": ""}, "policy is \"\": give 'model'"),
        ({"normalise": "reference"}, "policy is \"\": give 'model' and preferences of your own, and no normalise"),
        ({"normalise": "off", "heldout": "sandbox"}, "policy is"),
        (
            {"normalise": "off", "policy": "auto", "preferences": "sandbox"},
            "heldout 'split' divides comparisons of your",
        ),
        ({"normalise": "off", "loss": "regression"}, "heldout 'split' divides comparisons"),
    ],
)
def test_what_does_not_go_together_is_told(changes, line):
    with pytest.raises(LabError, match=line):
        RewardModelStage.parse(OWN | changes)


def rankings(*replies):
    pairs = [list(pair) for pair in replies]
    return Dataset.from_dict({"prompt": ["w2"] * len(pairs), "completions": pairs, "ranks": [[0, 1] for _ in pairs]})


def test_replies_that_leave_no_room_are_named_or_dropped(capsys):
    rows = rankings(("w3", "w4"), ("w3 " * 7, "w4"), ("w3", "w4 " * 6))  # with EOS 2, 8 and 7 tokens at most
    scorer, tokenizer = SimpleNamespace(limit=lambda length: length), make_tokenizer()
    how = SimpleNamespace(max_length=8, on_bad="raise")
    with pytest.raises(
        LabError, match="1 of 3 rows have a reply that leaves no room .* in 8 tokens, the first is row 2"
    ):
        reward_runs.that_fit(how, scorer, tokenizer, rows)
    how.on_bad = "drop"
    assert reward_runs.that_fit(how, scorer, tokenizer, rows)["completions"] == [["w3", "w4"], ["w3", "w4 " * 6]]
    assert "dropped 1 of 3 rows, which have a reply" in capsys.readouterr().out
    how.max_length = 2
    with pytest.raises(LabError, match="so none is left"):
        reward_runs.that_fit(how, scorer, tokenizer, rows)


def test_the_rule_of_length_is_taken_from_the_training_data():
    shorter = rankings(("w2", "w2 w3"), ("w4", "w4 w5"), ("w2 w3 w4", "w5"))  # two of three winners are shorter
    best, worst = ["w2", "w2 w3", "w4", "w5 w6"], ["w3 w4", "w5", "w6", "w7 w8 w9"]  # shorter wins 2, loses 1, ties 1
    assert artefacts._by_length(shorter, best, worst) == {"accuracy_of_length": 2.5 / 4}
    longer = rankings(("w2 w3", "w2"))
    assert artefacts._by_length(longer, best, worst) == {"accuracy_of_length": 1.5 / 4}
