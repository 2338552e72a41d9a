"""06_synthetic_feedback: what is measured, by hand; nothing run twice; every chain at the smallest size."""

import json
from types import SimpleNamespace

import numpy as np
import pytest
from scipy import stats

from rlhf_lab.errors import LabError
from rlhf_lab.judges.feedback import Responder
from rlhf_lab.sandbox.world import World
from rlhf_lab.workbench.reference import as_text
from rlhf_lab.workbench.stages import AlmostLabels, JudgeLabels, SyntheticFeedbackStage
from rlhf_lab.workbench.studies import synthetic_feedback as study
from rlhf_lab.workbench.studies import synthetic_feedback_figures as figures
from rlhf_lab.workbench.studies import synthetic_feedback_results as kept
from rlhf_lab.workbench.studies.synthetic_responders import axis_of, cast, steps
from rlhf_lab.workbench.studies.units import gaps_of

TINY = {
    "sizes": {"small": "sandbox", "medium": "sandbox", "large": "sandbox"},
    "n_demonstrations": 40,
    "n_prompts": 8,
    "as_is_pairs": 8,
    "n_self_play": 16,
    "best_of": 2,
    "eval_prompts": 8,
    "max_new_tokens": 16,
    "sft": {"epochs": 1},
    "ppo": {"updates": 1, "batch_size": 8},
}


class Quiet(SimpleNamespace):
    """A run that only remembers."""

    def __init__(self, folder):
        super().__init__(file=folder.joinpath, progress=lambda *told: None, rewind=lambda step: None, logged=[])

    def log(self, metrics, step):
        self.logged.append((step, metrics))


@pytest.fixture(scope="module")
def ground(tmp_path_factory):
    return study.common_ground(SyntheticFeedbackStage.parse(TINY), Quiet(tmp_path_factory.mktemp("run")))


# ---- The settings


def test_the_lists_of_names_are_those_of_the_study():
    assert SyntheticFeedbackStage().judges == list(study.CONDITIONS) == list(JudgeLabels.__args__)
    assert SyntheticFeedbackStage().almost == list(kept.CHAINS) == list(AlmostLabels.__args__)
    assert {*kept.MENDED, *kept.MENDED.values()} < {*study.CONDITIONS}


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"responders": [{"size": "small", "shots": 1}, {"size": "large", "shots": 1}]}, "small_1_good above large_1"),
        ({"responders": [{"size": "large", "shots": 1}]}, "at least two"),
        ({"shots": [1, 3]}, "'shots' hold 0"),
        ({"sizes": {"small": "a", "large": "b"}}, "medium"),
        ({"judges": ["kind"]}, "judges.0"),
        ({"ppo": {"seed": 3}}, "ppo.seed"),
        ({"reward_model": {"precision": "bf16"}}, "reward_model.precision"),
        ({"reward_model": {"loss": "best_of_k"}}, "for 'pairwise'"),
    ],
)
def test_settings_that_make_no_sense_are_refused_by_name(settings, message):
    with pytest.raises(LabError, match=message) as told:
        SyntheticFeedbackStage.parse(settings, "test.yaml")
    assert "\n" not in str(told.value)


@pytest.mark.parametrize("changes", [{}, {"shots": [0, 1]}])  # a responder has three of its own
def test_more_examples_than_a_tenth_of_the_demonstrations_are_refused(changes):
    with pytest.raises(LabError, match="n_demonstrations: a tenth of 20 is fewer than 3 examples"):
        cast(SyntheticFeedbackStage.parse(TINY | {"n_demonstrations": 20} | changes), World.load())


def test_without_a_world_there_is_no_gold_to_measure_by(tmp_path):
    with pytest.raises(LabError, match="'sandbox' is empty"):
        study.common_ground(SyntheticFeedbackStage(sandbox=""), Quiet(tmp_path))


# ---- Who answers


def test_a_step_changes_one_thing_by_one():
    everyone = [
        Responder(size=size, shots=n, demonstrations=quality)
        for size in ("small", "medium", "large")
        for n in (0, 1, 3)
        for quality in (("poor", "good") if n else ("good",))
    ]
    found = steps(everyone)
    # size: 2 steps x 5; shots: 3 sizes x 2 qualities x (0-1, 1-3); quality: 3 sizes x 2 numbers of shots
    axes = [axis_of(*pair, everyone) for pair in found]
    assert [axes.count(axis) for axis in ("size", "shots", "demonstrations")] == [10, 12, 6]
    names = {(better.name, worse.name) for better, worse in found}
    assert ("small_1_poor", "small_0") in names and ("large_3_good", "small_3_good") not in names
    assert ("small_3_good", "small_0") not in names and ("medium_3_good", "medium_1_poor") not in names


def test_examples_stand_before_the_prompt_and_gold_reads_the_prompt_alone(ground):
    who = Responder(size="large", shots=3, demonstrations="good")
    prompts = ground.held_out[:4]
    shown = ground.cast.behind(prompts, who, 5)
    good = {f"{row['prompt']} {row['completion']} </s>" for row in ground.cast.examples["good"]}
    for text, prompt in zip(shown, prompts, strict=True):
        assert text.endswith(prompt) and text.count("</s>") == 3
        examples = [part.strip() + " </s>" for part in text.removesuffix(prompt).split("</s>")[:-1]]
        assert {*examples} <= good and len({*examples}) == 3
    assert ground.cast.behind(prompts, Responder(size="large", shots=0), 5) == prompts
    gold = [
        np.mean(ground.world.gold(prompts=[r["prompt"] for r in rows], completions=[r["completion"] for r in rows]))
        for rows in (ground.cast.examples["poor"], ground.cast.examples["good"])
    ]
    assert gold[1] > gold[0] + 2 and len(ground.cast.examples["good"]) == 4
    assert [row["prompt"] for row in ground.answers["large_3_good"]] == ground.train[:8]


# ---- Labels


def test_gold_turns_round_what_the_rule_has_wrong():
    rows = [
        {"prompt": "p", "chosen": "x", "rejected": "y", "finished": [True, False], "gold": gold}
        for gold in ((2.0, 1.0), (1.0, 2.0), (1.0, 1.0))
    ]
    right, turned = study.labelled_by_gold(rows)
    assert right == rows[0]
    assert (turned["chosen"], turned["rejected"], turned["finished"], turned["gold"]) == (
        *("y", "x"),
        *([False, True], (2.0, 1.0)),
    )


def test_figures_of_the_filters_by_hand():
    rows = [
        {"chosen": "aaaa", "rejected": "b", "gold": (1.0, 0.0)},
        {"chosen": "a", "rejected": "bb", "gold": (0.0, 1.0)},
        {"chosen": "a", "rejected": "b", "gold": (1.0, 1.0)},
    ]
    found = study.filter_figures({"none": rows, "all": []})
    assert found == {"pairs_none": 3, "pairs_all": 0, "accuracy_none": 0.5, "longer_none": pytest.approx(2 / 3)}


def test_agreement_leaves_out_gold_ties_and_halves_ours():
    ours, gold = np.array([1.0, -2.0, 0.0, 5.0]), np.array([2.0, 1.0, -1.0, 0.0])
    assert study.agreement(ours, gold) == pytest.approx((1 + 0 + 0.5) / 3)


def test_a_judge_is_asked_about_the_same_pairs_as_the_rule_has(ground):
    pairs = study.pairs_of(ground)
    rows = study.compared(ground.answers, ground.world)
    assert pairs["reply_b"].tolist() == [row["chosen"] for row in rows]  # b is the reply of the higher-ranked one
    assert pairs["gold_a"].tolist() == [row["gold"][1] for row in rows]
    for name, calls in (("fair", 1), ("position_swap", 2), ("noise_votes", 5)):
        found, figures = study.label_pairs(name, ground)
        assert figures["calls"] == found.calls == calls * len(pairs) and figures["pairs"] == len(found.rows)
    fixed = {
        name: study.label_pairs(f"position_{name}_first", ground)[1]["accuracy"] for name in ("weaker", "stronger")
    }
    assert fixed["weaker"] != fixed["stronger"]


# ---- The chains


def test_every_chain_at_the_smallest_size(ground, tmp_path):
    run = Quiet(tmp_path)
    finished = kept.Finished(ground, run)
    before = {name: value.clone() for name, value in ground.plain.state_dict().items()}
    finished.add("start", study.start_figures(ground))
    finished.add("axes", study.axis_figures(ground, run))
    filtered = study.filtered(ground, run)
    finished.add("filters", study.filter_figures(filtered))
    finished.add("rule", study.almost("rule", filtered["none"], ground, run))
    finished.add("length_regression", study.judged("length_regression", ground, run))
    for name, value in ground.plain.state_dict().items():
        assert (value == before[name]).all(), "PPO changed the model that all chains start from"
    rule, judge = (finished.units[name][0] for name in ("rule", "length_regression"))
    plain = np.mean([judge["ppo_gold"] - judge["ppo_gold_gain"]])
    assert judge["gold_sft"] == pytest.approx(plain) and rule["gold_sft"] != judge["gold_sft"]
    assert rule["ppo_score_before"] != rule["ppo_score"] and 0 <= rule["accuracy_within"] <= 1
    assert all(len(filtered[name]) <= len(filtered["none"]) for name in study.FILTERS)
    tables = kept.rule_table, kept.filter_table, kept.stage_table, kept.judge_table
    assert all(len(table(finished.units)) for table in tables)
    assert len(figures.almost_figure(finished.units).axes) == 3 and len(figures.judges_figure(finished.units).axes) == 2
    assert all(np.isfinite(list(kept.results(finished.units).values())))
    assert [step for step, _ in run.logged] == [0, 1, 2, 3, 4]

    again = kept.Finished(ground, Quiet(tmp_path))
    assert again.find("rule") == rule and again.find("gold") is None
    with pytest.raises(LabError, match="no pair is left"):
        study.almost("filtered", [], ground, run)


# ---- Nothing is run twice


def hashes(unit: str, **changes) -> tuple[str, str]:
    return kept.settings_hashes(SyntheticFeedbackStage.parse(changes), unit)


def test_a_unit_is_known_by_the_settings_that_it_depends_on():
    for unit in ("rule", "length"):
        same = {"seed": 3, "threads": 1, "results": "x", "judges": [], "almost": [], "resume": True, "votes": 9}
        assert hashes(unit) == hashes(unit, **same)
        assert hashes(unit)[0] != hashes(unit, n_prompts=7)[0] and hashes(unit)[0] != hashes(unit, ppo={"lr": 1e-4})[0]
    assert hashes("rule") == hashes("rule", length=9.0)
    assert hashes("length") != hashes("length", length=9.0) and hashes("fair") == hashes("fair", length=9.0)
    assert hashes("noise_votes") != hashes("noise_votes", votes=9) and hashes("noise") != hashes("noise", flip=0.1)
    assert hashes("fair") != hashes("fair", judge_temperature=1.0)


# ---- Over seeds


def record(file, unit: str, seed: int, common="c", own="o", **values) -> None:
    line = {"unit": unit, "seed": seed, "common": common, "own": own, "models": "m", "figures": values}
    with file.open("a") as out:
        out.write(json.dumps(line) + "\n")


JUDGED = {"calls": 5, "pairs": 4, "longer": 0.5, "accuracy": 0.8, "accuracy_within": 0.6}


def test_differences_are_paired_by_seed_and_hold_all_at_once(tmp_path):
    file = tmp_path / "all.jsonl"
    assert kept.recorded("judges", file) is None
    gold = {"fair": [0.4, 0.9, 0.5], "length": [0.1, 0.5, 0.1], "length_balance": [0.3, 0.6, 0.4]}
    record(file, "fair", 0, common="old", ppo_gold=9.0, **JUDGED)
    record(file, "rule", 0, ppo_gold=9.0)  # of the other half
    for name, values in gold.items():
        for seed in (2, 0, 1):
            record(file, name, seed, ppo_gold=values[seed], **JUDGED)
    record(file, "length", 7, ppo_gold=99.0, **JUDGED)  # a seed that nobody else has
    record(file, "fair", 1, ppo_gold=0.9, **JUDGED)  # the same again: it replaces
    found = kept.recorded("judges", file)
    assert found.left_out == 2 and list(found.units["fair"]) == [0, 1, 2]
    assert gaps_of(found.units, "length", "fair", "ppo_gold") == pytest.approx([-0.3, -0.4, -0.4])
    table = kept.judge_table(found.units)
    oracle = stats.ttest_1samp([-0.3, -0.4, -0.4], 0).confidence_interval(1 - 0.05 / 2)  # two conditions beside fair
    assert table.loc["length", "less fair"] == f"-0.37 [{oracle.low:.2f}, {oracle.high:.2f}]"
    one = stats.ttest_1samp([0.2, 0.1, 0.3], 0).confidence_interval(0.95)  # one remedy
    assert table.loc["length_balance", "less without the remedy"] == f"0.20 [{one.low:.2f}, {one.high:.2f}]"
    assert table.loc["fair", "less fair"] == "" and table.loc["fair", "calls"].startswith("5 ")
    assert len(figures.judges_figure(found.units).axes) == 2
    assert table.loc["length", "less fair"] in as_text(file)
    assert kept.recorded("almost", file) is None, "a chain alone has no table of the rule and the filters"
    record(file, "axes", 0), record(file, "filters", 0)
    assert kept.recorded("almost", file).units["rule"] == {0: {"ppo_gold": 9.0}}


def test_a_file_of_the_judges_half_alone_has_nothing_of_the_other(tmp_path):
    file = tmp_path / "judges.jsonl"
    for unit in ("start", "fair"):  # the start is of both halves
        record(file, unit, 0, ppo_gold=0.4, **JUDGED)
    assert kept.recorded("almost", file) is None and kept.recorded("judges", file) is not None


def test_the_rule_by_axis_from_recorded_figures():
    one = {"gold_small_0": 0.0, "gold_small_1_good": 0.5, "accuracy_small_1_good_over_small_0": 0.6}
    other = {"gold_small_0": 0.0, "gold_small_1_good": 0.1, "accuracy_small_1_good_over_small_0": 0.7}
    table = kept.rule_table({"axes": {0: one, 1: other}})
    assert table.index.tolist() == [("shots", "small_1_good", "small_0")]
    assert table["gold"].tolist() == [0.3] and table["accuracy"].iloc[0].startswith("0.65 [")
