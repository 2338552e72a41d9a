"""Where a reward model is right: strata counted by hand, and the sizes of a learning curve."""

from types import SimpleNamespace

import pandas as pd
import pytest
import torch
from datasets import Dataset
from tiny import make_policy, make_scorer, make_tokenizer

from rlhf_lab.errors import LabError
from rlhf_lab.training.reward_model import RewardModelConfig, score_replies
from rlhf_lab.workbench import reward_diagnostics, reward_runs

# gap, words that the better one has more, source
COMPARISONS = pd.DataFrame(
    [
        (0.1, 5, "a"),
        (-0.2, 4, "a"),
        (0.0, 0, "b"),
        (0.4, -1, "b"),
        (-1.0, -9, "b"),
        (2.0, 2, "a"),
        (3.0, 0, None),
        (4.0, 1, "a"),
    ],
    columns=["gap", "words", "source"],
)


def test_strata_counted_by_hand():
    table = reward_diagnostics.strata(COMPARISONS).set_index(["by", "group"])
    # sizes in order 0 .1 | .2 .4 | 1 2 | 3 4: a tie and a hit, a miss and a hit, a miss and a hit, two hits
    confidence = table.loc["confidence"]
    assert confidence["accuracy"].tolist() == [0.75, 0.5, 0.5, 1.0]
    assert confidence["n"].tolist() == [2, 2, 2, 2]
    assert confidence.index[0] == "gap 0.00 to 0.10"
    length = table.loc["the better one is"]
    assert length["accuracy"].to_dict() == {
        "4 or more shorter": 0.0,
        "1 to 3 shorter": 1.0,
        "as long": 0.75,
        "1 to 3 longer": 1.0,
        "4 or more longer": 0.5,
    }
    source = table.loc["source"]
    assert source[["accuracy", "n"]].to_numpy().tolist() == [[0.75, 4], [0.5, 3]]
    # Wilson for 3 of 4 (Newcombe 1998, method 3): (p + z^2/2n -+ z sqrt(p(1-p)/n + z^2/4n^2)) / (1 + z^2/n)
    assert source.loc["a", ["low", "high"]].tolist() == pytest.approx([0.3006, 0.9544], abs=1e-4)


def test_equal_gaps_stand_together():
    ties = pd.DataFrame({"gap": [1.0] * 6 + [2.0, 2.0], "words": 0, "source": None})
    table = reward_diagnostics.strata(ties)
    assert table[table["by"] == "confidence"]["n"].tolist() == [6, 2]
    assert set(table["by"]) == {"confidence", "the better one is"}  # no source, no rows


RANKED = [
    {"prompt": "w2", "completions": ["w3", "w4 w5 w6", "w7"], "ranks": [1, 0, 2], "source": "x"},
    {"prompt": "w8", "completions": ["w9", "w10 w11"], "ranks": [0, 1], "finished": [False, True], "source": None},
    {"prompt": "w8", "completions": ["w9", "w10"], "ranks": [0, 0]},
]


def test_the_best_is_compared_with_the_worst_and_members_are_averaged():
    scorers, tokenizer = [make_scorer(), make_scorer(seed=2)], make_tokenizer()
    found = reward_diagnostics.scored_comparisons(scorers, tokenizer, RANKED)
    expected = []
    for prompt, best, worst, ended in (("w2", "w4 w5 w6", "w7", [True, True]), ("w8", "w9", "w10 w11", [False, True])):
        scores = [score_replies(s, tokenizer, [prompt] * 2, [best, worst], finished=ended) for s in scorers]
        expected.append(sum((score[0] - score[1]).item() for score in scores) / 2)
    assert found["gap"].tolist() == pytest.approx(expected, rel=1e-5)
    assert found["words"].tolist() == [2, -1]
    assert found["source"].dropna().to_dict() == {0: "x"}
    table = reward_diagnostics.members_table(scorers, tokenizer, RANKED)
    assert table.loc["their mean", "accuracy"] == sum(gap > 0 for gap in expected) / 2
    assert list(table.index) == ["member 0", "member 1", "their mean"]
    with pytest.raises(LabError, match="no comparisons to look at"):
        reward_diagnostics.scored_comparisons(scorers, tokenizer, RANKED[2:])


def test_a_learning_curve_trains_on_the_first_rows(tmp_path):
    make_policy(initializer_range=0.1).save_pretrained(tmp_path)
    rows = Dataset.from_list(
        [
            {"prompt": f"w{2 + i % 12}", "completions": [f"w3 w{4 + i % 10}", f"w{13 - i % 9} w5"], "ranks": [0, 1]}
            for i in range(80)
        ]
    )
    settings = {"epochs": 4, "batch_size": 8, "lr": 1e-2, "precision": "fp32"}
    cfg = SimpleNamespace(
        **RewardModelConfig(**settings).model_dump(), rated=False, head_bins=None, learning_curve=[4, 64]
    )
    held_out, seen = rows.select(range(64, 80)), []
    found = reward_diagnostics.learning_curve(
        cfg, tmp_path, make_tokenizer(), rows.select(range(64)), held_out, progress=lambda *said: seen.append(said)
    )
    assert found["rows"].tolist() == [4, 64]
    assert found["n"].tolist() == [16, 16]
    assert found["accuracy"][1] > 0.9 >= found["accuracy"][0] - 0.1
    assert len(seen) == 4 * 1 + 4 * 8
    cfg.learning_curve = [65]
    with pytest.raises(LabError, match=r"^learning_curve: 65 is more than the 64 rows"):
        reward_diagnostics.learning_curve(cfg, tmp_path, make_tokenizer(), rows.select(range(64)), held_out)


def test_members_differ_in_their_seed_alone():
    cfg = RewardModelConfig(seed=2**32 - 1)
    other = reward_runs.member(cfg, 1)
    first = torch.rand(1)
    assert reward_runs.member(cfg, 2).seed != other.seed
    assert 0 <= other.seed < 2**32
    reward_runs.member(cfg, 1)
    assert torch.equal(torch.rand(1), first)
    assert other.model_copy(update={"seed": cfg.seed}) == cfg
