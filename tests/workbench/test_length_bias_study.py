"""14_length_bias: the decomposition, the remedies and the win rates, each against what is known beforehand."""

import json
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import tiny
import torch
from scipy import stats

from rlhf_lab.errors import LabError
from rlhf_lab.judges import SimulatedJudge, SimulatedJudgeConfig, make_pairs
from rlhf_lab.maths import length_gain
from rlhf_lab.sandbox.world import World
from rlhf_lab.training.ppo import ppo_updates
from rlhf_lab.workbench.reference import as_text
from rlhf_lab.workbench.stages import LengthBiasStage
from rlhf_lab.workbench.studies import length_bias as study
from rlhf_lab.workbench.studies import length_bias_results as kept
from rlhf_lab.workbench.studies.ground import Finished

TINY = {
    "policy": World.load().base_model,
    "labelers": {"likes_length": {"length_bias": 0.3, "remedies": ["none", "balanced", "fewer", "penalty", "omit"]}},
    "comparisons": 24,
    "candidates": 30,
    "longest": 12,
    "eval_prompts": 12,
    "max_new_tokens": 12,
    "ppo": {"updates": 1, "batch_size": 16},
}


# ---- How much of a gain is length


def gain(before, after, lengths_before, lengths_after, width):
    tensors = (torch.tensor(values) for values in (before, after, lengths_before, lengths_after))
    return tuple(round(value.item(), 6) for value in length_gain(*tensors, width=width))


def test_a_gain_of_35_of_which_5_is_not_length_is_one_of_14_3_percent():
    # Three short replies worth 0 and a long one worth .6; then one short of .05 and three long ones of .65.
    found = length_gain(
        *(torch.tensor(v) for v in ([0, 0, 0, 0.6], [0.05, 0.65, 0.65, 0.65], [1, 2, 3, 12], [9, 10, 15, 19])), width=10
    )
    assert (found.total.item(), found.within.item()) == pytest.approx((0.35, 0.05))
    assert found.share.item() == pytest.approx(0.143, abs=5e-4)


def test_what_length_alone_explains_is_0_and_what_one_bin_holds_is_all():
    rng = np.random.default_rng(0)
    before, after = rng.integers(1, 20, 400), rng.integers(5, 25, 300)
    worth = lambda lengths: (0.1 * lengths**2).tolist()
    by_length = gain(worth(before), worth(after), before.tolist(), after.tolist(), 1)
    assert by_length[1] == 0 and by_length[0] > 5
    shifted = gain(worth(before), [w + 0.5 for w in worth(after)], before.tolist(), after.tolist(), 1)
    assert shifted[1] == 0.5 and shifted[2] == round((before >= 5).mean(), 6) < 1
    one_bin = gain(worth(before), worth(after), before.tolist(), after.tolist(), 100)
    assert one_bin[0] == one_bin[1] == by_length[0] and one_bin[2] == 1


def test_bins_begin_at_multiples_of_the_width_and_those_of_one_side_do_not_count():
    # Bins of 4: lengths 3 | 4 and 7 | 8. Bin 0 gains 1, bin 1 gains 3; bin 2 has replies before alone.
    # The replies before: 1 in bin 0, 2 in bin 1. Total 2.25 - 12.75.
    assert gain([0.0, 0.0, 1.0, 50.0], [1.0, 3.5], [3, 4, 7, 8], [0, 5], 4) == (-10.5, round((1 + 2 * 3) / 3, 6), 0.75)
    assert gain([1.0], [2.0], [1], [9], 4) == (1.0, 0.0, 0.0)


def test_a_length_that_is_missing_is_refused():
    with pytest.raises(ValueError, match="width"):
        gain([1.0], [1.0], [1], [1], 0)
    for lengths in ([1], [1, 2, 3]):
        with pytest.raises(ValueError, match="a length for each"):
            gain([1.0, 2.0], [1.0], lengths, [1], 4)
    with pytest.raises(ValueError, match="wants replies"):
        gain([], [1.0], [], [1], 4)


# ---- Remedies


def judge(**errs) -> SimulatedJudge:
    return SimulatedJudge(
        SimulatedJudgeConfig(**errs), lambda prompts, completions: [float("good" in c) for c in completions]
    )


def pairs_of(*words: tuple[int, int]) -> pd.DataFrame:
    rows = [
        {"prompt": f"p{i}", "reply_a": "w " * a + f"a{i}", "reply_b": "w " * b + f"b{i}", "finished_a": i % 2 == 0}
        for i, (a, b) in enumerate(words)
    ]
    return make_pairs(rows)


def longer(rows) -> list[int]:
    return [int(np.sign(len(row["chosen"].split()) - len(row["rejected"].split()))) for row in rows]


def test_balanced_labels_choose_the_longer_reply_as_often_as_not():
    pairs = pairs_of(*[(3, 5)] * 300, *[(9, 2)] * 300)
    biased = judge(length=0.4)
    plain = study.labelled(pairs, biased, "none", 600, 0)
    assert len(plain) == 600 and np.mean(longer(plain)) > 0.5
    balanced = study.labelled(pairs, biased, "balanced", 600, 0)
    assert sum(longer(balanced)) == 0 and 100 < len(balanced) < 500
    assert study.label_figures(balanced, biased.gold)["label_longer"] == 0.5
    ends = {(row["prompt"], row["chosen"]): row["finished"] for row in plain}  # reply a ended on even prompts, b always
    for (prompt, chosen), (won, lost) in ends.items():
        a_ended = int(prompt[1:]) % 2 == 0
        assert (won, lost) == ((a_ended, True) if "a" in chosen else (True, a_ended))


def test_fewer_labels_are_a_part_of_all_as_large_as_what_balancing_keeps():
    pairs, biased = pairs_of(*[(3, 5)] * 60, *[(9, 2)] * 60), judge(length=0.4)
    plain, balanced, fewer, other = (
        study.labelled(pairs, biased, data, 100, seed)
        for data, seed in (("none", 0), ("balanced", 0), ("fewer", 0), ("fewer", 1))
    )
    assert len(fewer) == len(balanced) < len(plain) == 100
    places = [plain.index(row) for row in fewer]
    assert places == sorted({*places}) and places[-1] > len(fewer), "drawn, and in their order"
    assert [row["prompt"] for row in other] != [row["prompt"] for row in fewer]
    assert np.mean(longer(fewer)) > 0.3, "the bias is left in them"


def test_pairs_of_like_length_are_as_many_and_those_of_least_difference():
    pairs = pairs_of((1, 9), (4, 4), (2, 3), (7, 1), (5, 5), (6, 8))
    prompts = {row["prompt"] for row in study.labelled(pairs, judge(), "like_length", 3, 0)}
    assert prompts == {"p1", "p2", "p4"}
    assert {row["prompt"] for row in study.labelled(pairs, judge(), "none", 3, 0)} == {"p0", "p1", "p2"}
    with pytest.raises(LabError, match="balanced: none of 1 labels is left"):
        study.labelled(pairs, judge(), "balanced", 1, 0)


def test_the_penalty_is_taken_off_for_every_word():
    reward = study.penalised(lambda completions: [2.0, 5.0], 0.25)
    assert reward(prompts=["p", "p"], completions=["one", "a b c d"]) == [1.75, 4.0]


def test_omitting_nothing_is_ppo_and_omitting_learns_from_the_short_alone():
    config, found = tiny.make_config(), []
    for updates in (ppo_updates, lambda state: study.short_updates(state, config.max_new_tokens)):
        state = tiny.start(config)  # from here on both draw the same random numbers
        told = [(update.number, update.episode, update.lr) for update in updates(state)]
        found.append((told, [*state.policy.parameters(), *state.critic.parameters()]))
    assert found[0][0] == found[1][0]
    for a, b in zip(found[0][1], found[1][1], strict=True):  # columns of padding are cut: the last digits may differ
        torch.testing.assert_close(a, b, atol=1e-5, rtol=0)
    short = tiny.start(tiny.make_config(samples_per_prompt=4))
    sizes = [update.rollout.response_mask.sum(1) for update in study.short_updates(short, 6)]
    assert max(int(lengths.max()) for lengths in sizes) <= 6 and 0 < min(map(len, sizes)) < 32
    with pytest.raises(LabError, match="omit: 0 of 8 replies have at most 0 tokens; raise 'longest'"):
        next(study.short_updates(tiny.start(config), 0))


# ---- Evaluation


def test_a_longer_reply_that_is_no_better_wins_by_the_bias_and_not_by_the_control():
    rng = np.random.default_rng(0)
    theirs, more = rng.integers(5, 15, 200), rng.integers(-3, 8, 200)
    answers = [
        pd.DataFrame({"prompt": [f"p{i}" for i in range(200)], "reply": ["w " * n for n in counts], "words": counts})
        for counts in (theirs + more, theirs)
    ]
    measure = SimpleNamespace(last=SimpleNamespace(answers=answers[0]), baseline=SimpleNamespace(answers=answers[1]))
    found = study.win_figures(measure, judge(length=0.3, position=1.0, flip=0.1))
    p = 0.5 * sum(1 / (1 + np.exp(-(0.3 * more + side))) for side in (1, -1))  # either of them stands first
    assert found["win"] == pytest.approx(np.mean(0.1 + 0.8 * p)) and found["win"] > 0.55
    assert found["win_fair"] == found["win_fair_controlled"] == pytest.approx(0.5)
    assert found["win_controlled"] == pytest.approx(0.5, abs=0.02)
    assert found["words_apart_sd"] == pytest.approx(more.std()) and found["win_by_length"] > 0.5
    assert found["win_fair_by_length"] == pytest.approx(0, abs=1e-6)


def test_lengths_and_both_gains_are_split_by_bins_of_several_widths():
    first = pd.DataFrame({"words": [1, 3, 5], "gold": [0.0, 1.0, 2.0], "score": [1.0, 1.0, 2.0]})
    last = pd.DataFrame({"words": [2, 3, 6], "gold": [1.0, 1.0, 2.0], "score": [2.0, 4.0, 2.0]})
    answers = [table.assign(prompt="p", reply=table["score"].astype(str), finished=True) for table in (first, last)]
    measure = SimpleNamespace(
        baseline=SimpleNamespace(answers=answers[0]),
        last=SimpleNamespace(answers=answers[1]),
        reward=lambda completions: [float(text) for text in completions],
    )
    found = study.gain_figures(measure, 4)  # bins 1 3 | 5 before, 2 3 | 6 after
    assert found["score_gain"] == pytest.approx(4 / 3)
    assert found["score_within"] == pytest.approx(2 / 3 * (3 - 1)) and found["covered"] == 1
    assert found["gold_within"] == pytest.approx(2 / 3 * (1 - 0.5))
    assert found["score_within_1"] == 3 and found["covered_1"] == pytest.approx(1 / 3)  # 3 words alone
    assert found["score_within_2"] == 2 and found["gold_within_2"] == 0  # 3 words before, 2 and 3 after
    assert found["score_within_8"] == pytest.approx(4 / 3) and found["covered_8"] == 1
    assert (found["words_sft"], found["words_sd_sft"]) == (3, 2) and found["words_q90_sft"] == pytest.approx(4.6)


def test_what_a_labeler_gains_is_gold_over_temperature_and_a_bias_for_every_word():
    figures = {"gold_gain": 0.6, "words": 14.0, "words_sft": 10.0}
    found = study.utility_figures(figures, judge(length=0.3, temperature=0.5))
    assert found == pytest.approx({"utility_gain": 0.6 / 0.5 + 0.3 * 4, "utility_words": 1.2})
    assert study.utility_figures(figures, judge(temperature=0.5))["utility_words"] == 0


# ---- Units


class Quiet(SimpleNamespace):
    """A run that only remembers."""

    def __init__(self, folder):
        super().__init__(folder=folder, progress=lambda *told: None, rewind=lambda step: None, log=lambda *a, **k: None)

    def file(self, name):
        return self.folder / name


@pytest.mark.slow
def test_units_share_what_they_do_not_change_and_are_not_run_twice(tmp_path, monkeypatch):
    cfg = LengthBiasStage.parse(TINY)
    ground, run = study.LengthGround(cfg), Quiet(tmp_path)
    finished = Finished(ground, run, cfg.units, lists={"labelers"})
    for name in cfg.units:
        figures = finished.add(name, study.unit(name, ground, run))
        assert np.isfinite(list(figures.values())).all(), name
    units = {name: seeds[0] for name, seeds in finished.units.items()}
    assert len(ground.learned) == 3  # penalty and omit have the reward model of none
    same = ("label_accuracy", "accuracy_gold", "score_by_words", "words_sft", "gold_sft", "score_before")
    for name in ("penalty", "omit"):
        assert [units[f"likes_length_{name}"][key] for key in same] == [units["likes_length_none"][key] for key in same]
    assert units["likes_length_balanced"]["label_longer"] == 0.5
    assert units["likes_length_fewer"]["pairs"] == units["likes_length_balanced"]["pairs"]
    assert {"helpful_first", "helpful_last", "concise_last", "words_q90", "seconds"} <= {*units["likes_length_none"]}
    assert len(kept.gain_table(finished.units)) == 5 and len(kept.comparison_table(finished.units)) == 4
    assert len(kept.figure(finished.units).axes) == 4 and kept.results(finished.units)
    assert "likes_length" in as_text(tmp_path / "finished.jsonl")

    more = {"likes_length": {"length_bias": 0.3, "remedies": ["penalty", "like_length"]}}
    more = LengthBiasStage.parse(TINY | {"labelers": more, "penalty": 0.1})
    monkeypatch.setattr(ground, "cfg", more)
    again = Finished(ground, run, more.units, lists={"labelers"})
    assert again.find("likes_length_penalty") == units["likes_length_penalty"]
    assert again.find("likes_length_like_length") is None
    ground.cfg = LengthBiasStage.parse(TINY | {"penalty": 0.2})
    assert Finished(ground, run, cfg.units, lists={"labelers"}).find("likes_length_none") is None


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"comparisons": 10, "candidates": 9}, "'comparisons' is 10, but 'candidates' only 9"),
        ({"labelers": {"x": {"remedies": ["pray"]}}}, "remedies"),
        ({"labelers": {"x": {"length": 1.0}}}, "length"),
        ({"ppo": {"warmup": 3}}, "ppo.warmup is not for remedy 'omit'"),
        ({"ppo": {"seed": 3}}, "ppo.seed follows from the settings that all units share"),
        ({"reward_model": {"loss": "best_of_k"}}, "for 'pairwise'"),
    ],
)
def test_settings_that_make_no_sense_are_refused_by_name(settings, message):
    with pytest.raises(LabError, match=message) as told:
        LengthBiasStage.parse(settings, "test.yaml")
    assert "\n" not in str(told.value)


# ---- Over seeds


def record(file, unit: str, seed: int, common="c", **figures) -> None:
    line = {"study": "length_bias", "unit": unit, "seed": seed, "common": common, "own": unit, "models": f"m{seed}"}
    with file.open("a") as out:
        out.write(json.dumps(line | {"figures": figures}) + "\n")


def text(values, comparisons: int, digits: int = 2) -> str:
    at = stats.ttest_1samp(values, 0).confidence_interval(1 - 0.05 / comparisons)
    return f"{np.mean(values):.{digits}f} [{at.low:.{digits}f}, {at.high:.{digits}f}]"


GAINS = {
    "likes_length_none": [0.1, 0.5, 0.2],
    "likes_length_penalty": [0.4, 0.6, 0.4],
    "fair_none": [0.3, 0.9, 0.5],
    "fair_penalty": [0.2, 0.9, 0.2],
}
WINS = {"win": 0.7, "win_fair": 0.5, "win_controlled": 0.6}


@pytest.fixture
def file(tmp_path):
    """Three seeds of four units; the labelers of `fair` judge as those without a bias."""
    file = tmp_path / "all.jsonl"
    assert kept.recorded(file) is None
    record(file, "fair_none", 0, common="old", gold_gain=9.0)
    for unit, values in GAINS.items():
        for seed, value in enumerate(values):
            wins = WINS | {"win_fair_controlled": 0.55 - value / 10}
            if unit.startswith("fair"):
                wins |= {"win": 0.5, "win_fair_controlled": 0.6}
            lengths = {"words_sft": 12.0, "words": 14.0 + value * (1 if unit.startswith("likes") else -10)}
            score = {"score_gain": value, "score_within": value / 4 + seed / 100}
            record(file, unit, seed, gold_gain=value, **lengths, **score, **wins)
    return file


def test_remedies_are_compared_seed_by_seed_with_intervals_that_hold_at_once(file):
    found = kept.recorded(file)
    assert found.left_out == 1 and len(found.units) == 4
    table = kept.comparison_table(found.units)
    assert list(table.index) == [("likes_length", "penalty"), ("fair", "penalty")]
    assert table.loc[("likes_length", "penalty"), "gold"] == text([0.3, 0.1, 0.2], 2)  # two comparisons
    assert table.loc[("likes_length", "penalty"), "score, of length"] == text([0.225, 0.075, 0.15], 2)
    assert len(kept.figure(found.units).axes) == 4 and "less none" in as_text(file)
    alone = {"fair_none": found.units["fair_none"]}
    assert kept.comparison_table(alone).empty and kept.evaluation_table(alone).empty
    file.write_text(file.read_text() + "{broken\n")
    with pytest.raises(LabError, match=r"all\.jsonl, line 14 is broken"):
        kept.recorded(file)


def test_whether_replies_grow_is_asked_of_every_unit_and_of_labelers(file):
    table = kept.length_table(kept.recorded(file).units)
    assert list(table.index) == [*GAINS, "fair less likes_length"]
    assert table.loc["likes_length_none", "words more"] == text([2.1, 2.5, 2.2], 5, 1)
    assert table.loc["likes_length_none", "replies are"] == "longer" and table.loc["fair_none", "replies are"] == ""
    assert table.loc["fair less likes_length", "words more"] == text([-1 - 2.1, -7 - 2.5, -3 - 2.2], 5, 1)


def test_a_control_is_held_against_what_is_apart_without_it(file):
    table = kept.evaluation_table(kept.recorded(file).units)
    assert list(table.index) == ["likes_length_none", "likes_length_penalty", "mean of these"]
    assert table["raw"].str.startswith("0.20 ").all()
    assert table.loc["likes_length_none", "controlled"] == text([0.06, 0.10, 0.07], 3)
    assert table.loc["likes_length_none", "nearer"] == text([0.14, 0.10, 0.13], 3)
    assert table.loc["mean of these", "nearer"] == text([0.125, 0.095, 0.12], 3)


def test_a_share_is_a_ratio_of_means_where_there_is_a_gain(file):
    part, whole = [0.2, 0.3, 0.1, 0.25], [1.0, 1.2, 0.9, 1.4]
    found = kept.ratio_interval(part, whole)
    assert found.mean == pytest.approx(0.85 / 4.5)
    for bound in (found.low, found.high):  # Fieller: where part less bound times whole is just not 0
        left = np.array(part) - bound * np.array(whole)
        assert stats.ttest_1samp(left, 0).pvalue == pytest.approx(0.05)
    assert found.low < found.mean < found.high
    assert kept.ratio_interval(part, [1.0, -1.0, 0.5, 0.0]) is None
    alone = kept.ratio_interval([0.2], [0.8])
    assert alone.mean == pytest.approx(0.25) and np.isnan(alone.low) and kept.ratio_interval([1.0], [0.0]) is None
    table = kept.gain_table(kept.recorded(file).units)
    assert table.loc[("fair", "penalty"), "share"] == "-"
    shown = kept.ratio_interval([0.1, 0.16, 0.12], [0.4, 0.6, 0.4])
    assert table.loc[("likes_length", "penalty"), "share"] == str(shown)
