"""16_feedback_loops: who labels what at which cost, and that units share what they do not change."""

import json
import math
from types import SimpleNamespace

import numpy as np
import pytest
from scipy import stats

from rlhf_lab.errors import LabError
from rlhf_lab.sandbox.labelers import Labeler, LabelerConfig
from rlhf_lab.sandbox.world import World
from rlhf_lab.workbench.labelling import pair_items
from rlhf_lab.workbench.reference import as_text
from rlhf_lab.workbench.stages import FeedbackLoopsStage
from rlhf_lab.workbench.stages.feedback_loops import Source
from rlhf_lab.workbench.studies import feedback_loops as study
from rlhf_lab.workbench.studies import feedback_loops_results as kept
from rlhf_lab.workbench.studies.ground import Finished

TINY = {
    "policy": World.load().base_model,
    "sources": {
        "human": {},
        "twofold": {"flip": 0.5, "price": 0.1, "times": 2, "arms": ["offline", "online"]},
    },
    "labels": 12,
    "pool": 24,
    "members": 2,
    "eval_prompts": 6,
    "max_new_tokens": 8,
    "reward_model": {"epochs": 1},
    "ppo": {"updates": 1, "batch_size": 8},
}


class Quiet(SimpleNamespace):
    """A run that only remembers."""

    def __init__(self, folder):
        super().__init__(folder=folder, progress=lambda *told: None, rewind=lambda step: None, log=lambda *a, **k: None)

    def file(self, name):
        return self.folder / name


def items(n):
    rows = [{"prompt": f"p{i}", "reply_a": f"a{i}", "reply_b": f"b{i}"} for i in range(n)]
    return pair_items([row | {"finished": [True, i % 2 == 0]} for i, row in enumerate(rows)])


# ---- Labels


def test_sides_are_drawn_and_the_reply_that_won_is_the_chosen_one():
    first = SimpleNamespace(prefers=lambda prompt, first, second: 0)
    rows = study.labelled(items(400), first, seed=0)
    a_won = sum(row["chosen"].startswith("a") for row in rows)
    assert abs(a_won - 200) < 4 * math.sqrt(400 / 4)
    alphabet = SimpleNamespace(prefers=lambda prompt, first, second: int(second < first))
    for row in study.labelled(items(20), alphabet, seed=1):
        number = int(row["prompt"][1:])
        assert (row["chosen"], row["rejected"]) == (f"a{number}", f"b{number}")
        assert row["finished"] == [True, number % 2 == 0]


def test_new_pairs_are_told_of_by_gold_by_chance_and_by_length():
    rows = [
        {"prompt": "p", "reply_a": "3 more", "reply_b": "1"},  # 2 apart in gold, the longer one is better
        {"prompt": "q", "reply_a": "2", "reply_b": "2 too"},  # equal: no label is right
        {"prompt": "r", "reply_a": "0", "reply_b": "4"},  # 4 apart, of one length
    ]
    asked = pair_items([row | {"finished": [True, True]} for row in rows])
    config = LabelerConfig(temperature=2.0, length_bias=1.0, flip=0.1)
    labeler = Labeler(lambda prompt, reply: float(reply[0]), config)
    labels = [
        {"chosen": "3 more", "rejected": "1"},
        {"chosen": "2", "rejected": "2 too"},
        {"chosen": "4", "rejected": "0"},
    ]
    sigmoid = lambda x: 1 / (1 + math.exp(-x))
    right = [0.1 + 0.8 * sigmoid(2 / 2 + 1), 0.1 + 0.8 * sigmoid(4 / 2)]
    for seed in range(4):  # whichever is shown first
        found = study.asked_figures(asked, labels, labeler, seed)
        assert found == pytest.approx({"gap": 2.0, "expected_accuracy": sum(right) / 2, "longer": 0.5})


def test_a_source_adds_its_errors_to_those_of_the_common_labeler():
    cfg = FeedbackLoopsStage.parse(TINY | {"labeler": {"flip": 0.1, "length_bias": 0.2, "temperature": 0.0}})
    ground = study.LoopGround(cfg)
    config = ground.who(Source(flip=0.2, length_bias=0.3, position_bias=0.4)).config
    # turned round by one of the two and not by the other: .1 * .8 + .9 * .2
    assert config.flip == pytest.approx(0.26) and config.temperature == 0
    assert (config.length_bias, config.position_bias) == (0.5, 0.4)


# ---- Units


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    """All units at the smallest size: the ground, the finished ones, and what each round has learned from."""
    cfg, seen = FeedbackLoopsStage.parse(TINY), []
    ground, run = study.LoopGround(cfg), Quiet(tmp_path_factory.mktemp("done"))
    finished = Finished(ground, run, cfg.units, lists={"sources"})
    learn = study.learn
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            study, "learn", lambda ground, rows, run, name: seen.append((name, rows)) or learn(ground, rows, run, name)
        )
        for name in cfg.units:
            finished.add(name, study.unit(name, ground, run))
    return ground, finished, dict(seen)


def test_every_arm_of_a_source_has_the_same_first_round_and_number_of_labels(done):
    _, finished, seen = done
    assert list(finished.units) == [
        "human_offline",
        "human_online",
        "human_active",
        "twofold_offline",
        "twofold_online",
    ]
    assert list(seen) == [
        *("human_offline, round 1", "human_offline, round 2", "human_online, round 2", "human_active, round 2"),
        *("twofold_offline, round 1", "twofold_offline, round 2", "twofold_online, round 2"),
    ]
    for name, rows in seen.items():
        assert len(rows) == (1 + name.startswith("twofold")) * 12 * int(name[-1])
        first = seen[f"{name.split('_')[0]}_offline, round 1"]
        assert rows[: len(first)] == first
        assert len({row["prompt"] for row in rows}) == len(rows)  # the prompts of a round are new
    asked = {
        arm: {row["prompt"]: {row["chosen"], row["rejected"]} for row in seen[f"human_{arm}, round 2"][12:]}
        for arm in kept._ARMS
    }
    online, offline = (asked["active"].keys() & asked[other].keys() for other in ("online", "offline"))
    assert online and all(asked["active"][prompt] == asked["online"][prompt] for prompt in online)
    assert offline and any(asked["active"][prompt] != asked["offline"][prompt] for prompt in offline)
    assert asked["online"] != asked["offline"] and asked["active"].keys() != asked["online"].keys()


def test_costs_are_labels_times_price(done):
    units = done[1].units
    costs = {name: (seeds[0]["labels"], seeds[0]["cost"]) for name, seeds in units.items()}
    assert costs["human_active"] == (24, 24) and costs["twofold_online"] == (48, pytest.approx(4.8))
    firsts = [{k: v for k, v in units[f"human_{arm}"][0].items() if k.endswith("_1")} for arm in kept._ARMS]
    assert firsts[0] == firsts[1] == firsts[2]


def test_reward_models_of_all_arms_are_held_against_the_same_pairs_of_the_first_policy(done, monkeypatch):
    ground, finished, _ = done
    asked, share = [], study.right_share
    monkeypatch.setattr(study, "right_share", lambda *told: asked.append(told[-1]) or share(*told))
    again = {arm: study.unit(f"human_{arm}", ground, finished.run) for arm in ("offline", "online")}
    assert asked[0] is asked[1] is ground.first[str(ground.cfg.units["human_online"]["source"])].own
    for arm, figures in again.items():  # and the same arm comes to the same again
        kept_before = finished.units[f"human_{arm}"][0]
        assert {k: v for k, v in figures.items() if k != "seconds"} == {
            k: kept_before[k] for k in figures if k != "seconds"
        }


def test_active_asks_where_the_reward_models_doubt(done):
    figures = {arm: done[1].units[f"human_{arm}"][0] for arm in kept._ARMS}
    assert figures["active"]["doubt_asked_2"] > figures["active"]["doubt_pool_2"] == figures["online"]["doubt_pool_2"]
    assert figures["offline"]["doubt_pool_2"] != figures["online"]["doubt_pool_2"]
    assert "doubt_asked_1" not in figures["active"]
    assert {f["words_sft"] for f in figures.values()} == {done[1].units["twofold_online"][0]["words_sft"]}


def test_tables_figure_and_what_the_sources_of_others_do_not_change(done, tmp_path):
    ground, finished, _ = done
    assert all(np.isfinite(list(seeds[0].values())).all() for seeds in finished.units.values())
    assert len(kept.round_table(finished.units)) == len(kept.asked_table(finished.units)) == 10
    assert kept.rounds(finished.units) == 2
    assert len(kept.figure(finished.units).axes) == 3 and kept.results(finished.units)["labels_human_active"] == 24
    assert set(study.asked_table(ground)["human"]) <= {"a", "b"}
    changed = FeedbackLoopsStage.parse(TINY | {"sources": {"human": {}, "twofold": {"flip": 0.4, "times": 2}}})
    again = study.LoopGround(changed)
    found = Finished(again, Quiet(finished.run.folder), changed.units, lists={"sources"})
    assert found.find("human_active") == finished.units["human_active"][0] and found.find("twofold_offline") is None


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"labels": 9}, "labels"),
        ({"labels": 65, "pool": 64}, "'labels' is 65, but the 'pool' that they are chosen from is 64"),
        ({"members": 1}, "arm 'active' wants 'members' of 2"),
        ({"rounds": 1}, "rounds"),
        ({"sources": {"x": {"flips": 0.1}}}, "flips"),
        ({"sources": {"x": {"arms": ["later"]}}}, "arms"),
        ({"reward_model": {"seed": 3}}, "reward_model.seed follows from the settings that all units share"),
        ({"reward_model": {"loss": "best_of_k"}}, "for 'pairwise'"),
    ],
)
def test_settings_that_make_no_sense_are_refused_by_name(settings, message):
    with pytest.raises(LabError, match=message) as told:
        FeedbackLoopsStage.parse(settings, "test.yaml")
    assert "\n" not in str(told.value)


# ---- Over seeds

GOLD = {
    "human_offline": [0.1, 0.5, 0.2],
    "human_online": [0.4, 0.6, 0.4],
    "judge_offline": [0.0, 0.1, 0.1],
    "judge_online": [0.1, 0.4, 0.1],
}


def record(file, unit: str, seed: int, gold: float, common="c") -> None:
    figures = {"labels": 20, "cost": 20.0, "gold_sft_1": 0.0}
    for number in (1, 2):
        figures |= {f"gold_{number}": gold * number, f"accuracy_gold_{number}": 0.6, f"accuracy_first_{number}": 0.5}
    line = {"study": "feedback_loops", "unit": unit, "seed": seed, "common": common, "own": unit, "models": f"m{seed}"}
    with file.open("a") as out:
        out.write(json.dumps(line | {"figures": figures}) + "\n")


def text(gaps, comparisons) -> str:
    at = stats.ttest_1samp(gaps, 0).confidence_interval(1 - 0.05 / comparisons)
    return f"{np.mean(gaps):.2f} [{at.low:.2f}, {at.high:.2f}]"


def test_arms_and_sources_are_compared_seed_by_seed_after_the_last_round(tmp_path):
    file = tmp_path / "all.jsonl"
    assert kept.recorded(file) is None
    record(file, "human_offline", 0, 9.0, common="old")
    for unit, values in GOLD.items():
        for seed, value in enumerate(values):
            record(file, unit, seed, value)
    found = kept.recorded(file)
    assert found.left_out == 1 and len(found.units) == 4
    table = kept.arm_table(found.units)
    assert list(table.index) == [("online less offline", who) for who in ("human", "judge", "mean of sources")]
    # gold after round 2 is twice the value; human .6 .2 .4, judge .2 .6 .0, and three comparisons
    assert table["gold"].tolist() == [text(gaps, 3) for gaps in ([0.6, 0.2, 0.4], [0.2, 0.6, 0.0], [0.4, 0.4, 0.2])]
    table = kept.source_table(found.units)
    assert list(table.index) == [("judge less human", "offline"), ("judge less human", "online")]
    assert table["gold"].tolist() == [text(gaps, 2) for gaps in ([-0.2, -0.8, -0.2], [-0.6, -0.4, -0.6])]
    assert list(table) == ["gold", "accuracy, SFT's pairs"]  # the first policies of two sources are two
    for unit in ("noisy_human_offline", "judge_tenfold_offline", "human_tenfold_offline"):
        for seed, value in enumerate([0.1, 0.3, 0.2]):
            record(file, unit, seed, value)
    table = kept.source_table(kept.recorded(file).units)
    others = ("noisy_human less human", "judge_tenfold less human", "human_tenfold less human")
    apart = ("judge less noisy_human", "judge_tenfold less noisy_human", "judge_tenfold less human_tenfold")
    wanted = {(what, "offline") for what in (*others, *apart, "judge less human", "judge_tenfold less judge")}
    assert {*table.index} == {*wanted, ("judge less human", "online")}
    assert table.loc[("judge less noisy_human", "offline"), "gold"] == text([-0.2, -0.4, -0.2], 9)
    assert "judge less human" in as_text(file)
    alone = {unit: seeds for unit, seeds in found.units.items() if unit == "human_offline"}
    assert kept.arm_table(alone).empty and kept.source_table(alone).empty
    file.write_text(file.read_text() + "{broken\n")
    with pytest.raises(LabError, match=r"all\.jsonl, line 23 is broken"):
        kept.recorded(file)
