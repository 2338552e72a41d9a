"""12_reward_models: what the units learn from, calibration and best of n by hand, contrasts against scipy."""

import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from scipy import stats
from tiny import make_policy, make_tokenizer

from rlhf_lab.errors import LabError
from rlhf_lab.models import load_policy, load_tokenizer, save_policy
from rlhf_lab.sandbox.world import World
from rlhf_lab.workbench.reference import as_text
from rlhf_lab.workbench.stages import RewardModelsStage
from rlhf_lab.workbench.studies import reward_models
from rlhf_lab.workbench.studies import reward_models_results as kept
from rlhf_lab.workbench.studies.ground import Finished

SMALL = {
    "policy": World.load().base_model,
    "comparisons": {6: 2, 12: 1},
    "fixed": 12,
    "epochs": [2],
    "trunks": {"base": "sandbox"},
    "flips": [0.2, 0.6],
    "losses": ["plackett_luce"],
    "n_heldout": 8,
    "n": 4,
    "pool_size": 4,
    "eval_prompts": 4,
    "max_new_tokens": 12,
}


def config(**changes) -> RewardModelsStage:
    return RewardModelsStage.parse(SMALL | changes, "test.yaml")


# ---- What the units learn from


def test_what_is_called_equal_is_equal():
    learners = reward_models.learners(RewardModelsStage())
    assert len(learners) == 6 + 2 + 4 + 5 + 2 * 3
    for name, who in learners.items():
        replies, pairs = who.prompts * who.k, who.prompts * who.k * (who.k - 1) // 2
        if name.startswith("equal_replies"):
            assert (replies, pairs) == (960, 1440)  # 240 rankings of four
        elif name.startswith("equal_pairs"):
            assert (replies, pairs) == (320, 480)
        elif not name.startswith("data"):
            assert (replies, pairs) == (960, 480)
        assert who.epochs == (int(name[7:]) if "epochs" in name else 4 if who.prompts in (30, 60, 120) else 2)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"fixed": 24}, "not one of 'comparisons'"),
        ({"k": 5}, "must divide by 10"),
        ({"n": 8}, "at most 'pool_size', 4"),
        ({"n": 3}, "power of 2"),
        ({"flips": [0.0]}, "flips"),
        ({"reward_model": {"loss": "best_of_k"}}, "reward_model.loss"),
        ({"reward_model": {"seed": 1}}, "reward_model.seed"),
        ({"reward_model": {"epochs": 4}}, "reward_model.epochs"),
    ],
)
def test_settings_that_make_no_sense_are_refused_by_name(settings, message):
    with pytest.raises(LabError, match=message) as told:
        config(**settings)
    assert "\n" not in str(told.value)


@pytest.fixture(scope="module")
def ground():
    return reward_models.Shared(config())


def test_units_share_replies_and_differ_in_labels_alone(ground):
    few, many = (ground.rankings(reward_models.Learner(n, 1)) for n in (6, 12))
    assert few == many[:6] and len(many) == 12
    some, more, all_of_them = (ground.rankings(reward_models.Learner(12, 1, flip=flip)) for flip in (0.2, 0.6, 1.0))
    turned = [
        {i for i, (row, old) in enumerate(zip(rows, many, strict=True)) if row["ranks"] != old["ranks"]}
        for rows in (some, more, all_of_them)
    ]
    assert turned[0] < turned[1] < turned[2] == set(range(12))
    assert [row["completions"] for row in more] == [row["completions"] for row in many]
    fours = ground.rankings(reward_models.Learner(2, 1, 4))
    assert [len(row["completions"]) for row in fours] == [4, 4]


def test_a_unit_learns_and_is_measured_where_the_others_are(ground):
    run = SimpleNamespace(progress=lambda *told: None)
    found = {
        name: reward_models.learn(name, ground, run)
        for name in ("gold", "data_6", "data_12", "epochs_2", "trunk_base", "equal_pairs_plackett_luce")
    }
    assert all(figures.pop("seconds") > 0 for figures in found.values())
    assert found["gold"]["accuracy_gold"] == 1.0
    best = ground.gold.amax(1).mean() - ground.gold.mean()  # of four, by gold
    assert found["gold"]["gain"] == pytest.approx(float(best))
    assert found["trunk_base"] == found["data_12"], "the SFT model is the base model here, and the rest is equal"
    other = found["equal_pairs_plackett_luce"]
    assert (other["prompts"], other["replies"], other["pairs"]) == (2, 8, 12)
    assert other["accuracy"] != found["gold"]["accuracy"]
    assert [found[name]["steps"] for name in ("data_6", "data_12", "epochs_2")] == [2, 1, 2]
    assert found["epochs_2"]["accuracy_train"] != found["data_12"]["accuracy_train"]
    assert found["gold"]["rank_correlation"] == pytest.approx(1)
    assert found["gold"]["score_sd"] == pytest.approx(float(ground.gold.std()) / ground.cfg.labeler.temperature)
    words = [len(reply.split()) for row in ground.replies.replies for reply in row]
    assert [figures["words_at_1"] for figures in found.values()] == pytest.approx([np.mean(words)] * len(found))
    assert all(figures["gain"] <= float(best) + 1e-9 for figures in found.values())
    units = {name: {0: figures} for name, figures in found.items()}
    assert len(kept.figure(units).axes) == 10 and len(kept.calibration_figure(units).axes) == 4
    assert kept.table(units).loc[("trunk", "base"), "seeds"] == 1


def test_a_trunk_of_other_tokens_is_refused_by_name(tmp_path):
    save_policy(tmp_path / "other", make_policy(), make_tokenizer())
    with pytest.raises(LabError, match="trunks: strange .* has another tokenizer"):
        reward_models.own_settings(reward_models.Shared(config(trunks={"strange": str(tmp_path / "other")})))


# ---- Measures by hand


def test_calibration_by_hand():
    three = np.log(3)  # a probability of 3/4
    found = reward_models.calibration(np.array([three, three, three, -three]))
    assert found["ece"] == pytest.approx(0) and found["slope"] == pytest.approx(1, abs=1e-4)
    assert (found["said_bin_7"], found["share_bin_7"], found["n_bin_7"]) == pytest.approx((0.75, 0.75, 4))
    sure = reward_models.calibration(2 * np.array([three, three, three, -three]))  # 9/10, right in 3/4
    assert sure["ece"] == pytest.approx(0.15) and sure["slope"] == pytest.approx(0.5, abs=1e-4)
    both = reward_models.calibration(np.array([three, three, three, -three, 9.0, 0.0]))
    assert both["n_bin_9"] == 1 and both["share_bin_5"] == 0.5  # sure and right; a tie is half right
    assert both["ece"] == pytest.approx((0 * 4 + (1 - 1 / (1 + np.exp(-9.0))) + 0) / 6)


def test_best_of_by_hand():
    gold = torch.tensor([[0.0, 1.0, 2.0, 6.0]])
    words = torch.tensor([[8, 6, 4, 2]])
    worst = reward_models.best_of(-gold, gold, words, seed=0)
    # of the six pairs the lower ones are 0 0 0 1 1 2; of all four it is 0; one alone is 9/4
    assert worst == pytest.approx(
        {
            "gain_at_2": 4 / 6 - 9 / 4,
            "gain_at_4": -9 / 4,
            "words_at_1": 5,
            "words_at_2": (3 * 8 + 2 * 6 + 4) / 6,
            "words_at_4": 8,
        }
    )


def test_rank_correlation_is_within_a_prompt():
    gold = torch.tensor([[1.0, 2.0, 3.0], [7.0, 8.0, 9.0]])
    assert reward_models.rank_correlation(100 - gold.exp(), gold) == pytest.approx(-1)
    shifted = torch.tensor([[50.0, 60.0, 70.0], [3.0, 2.0, 1.0]])  # one prompt as gold, one the other way round
    assert reward_models.rank_correlation(shifted, gold) == pytest.approx(0)
    tied = torch.tensor([[1.0, 2.0, 3.0], [5.0, 5.0, 5.0]])  # ranks 1 2 3 and 2 2 2: covariance 2, variances 2 and 4
    assert reward_models.rank_correlation(tied, gold) == pytest.approx(2 / 8**0.5)


# ---- Over seeds


def made_up() -> kept.Units:
    rng, units = np.random.default_rng(0), {}
    for seed in range(4):
        level = rng.normal()
        for n in (30, 60, 120, 240):
            slope = 0.05 if n <= 60 else 0.01 * (seed + 1)
            start = 0.0 if n <= 60 else 5.0
            figures = {"accuracy": level + start + slope * np.log2(n), "replies": 2.0 * n, "epochs": 2}
            units.setdefault(f"data_{n}", {})[seed] = figures
        top = units["data_240"][seed]["accuracy"]
        for unit, less, weights in (
            ("flip_0.5", 0.25, 9),
            ("trunk_b", 0.5, 2),
            ("trunk_a", 0.4, 3),
            ("trunk_base", 1, 3),
            ("epochs_4", 0.3, 3),
        ):
            units.setdefault(unit, {})[seed] = {"accuracy": top - less, "replies": 480.0, "weights": weights}
        units.setdefault("equal_pairs_pairwise", {})[seed] = {"accuracy": top - [0.1, 0.3, 0.2, 0.2][seed]}
    for seeds in units.values():
        for figures in seeds.values():
            figures |= dict.fromkeys(("accuracy_gold", "gain", "ece", "slope", "confidence"), 0.0)
    units["data_30"][9] = dict.fromkeys(units["data_30"][0], 1000000.0)  # a seed that the others have not
    return units


def test_contrasts_are_slopes_and_differences_seed_by_seed():
    units = made_up()
    asked = kept.contrasts(units)
    assert kept.reference(units) == "data_240"
    lower, upper, bend = asked["data"].values()
    assert kept.contrast(units, lower, "accuracy") == pytest.approx([0.05] * 4)
    assert kept.contrast(units, upper, "accuracy") == pytest.approx([0.01, 0.02, 0.03, 0.04])
    assert kept.contrast(units, bend, "accuracy") == pytest.approx([-0.04, -0.03, -0.02, -0.01])
    assert kept.contrast(units, asked["epochs"]["4 less 2"], "accuracy") == pytest.approx([-0.3] * 4)
    (noise,) = asked["noise"].values()  # five tenths of flips cost 0.25
    assert kept.contrast(units, noise, "accuracy") == pytest.approx([-0.05] * 4)
    sizes = {label: kept.contrast(units, weights, "accuracy")[0] for label, weights in asked["trunk"].items()}
    assert sizes == pytest.approx({"a less b": 0.1, "SFT model less its base": 1.0})


def test_intervals_of_one_question_hold_at_once():
    table = kept.comparison_table(made_up())
    oracle = stats.ttest_1samp([0.01, 0.02, 0.03, 0.04], 0).confidence_interval(1 - 0.05 / 3)
    shown = table.loc[("data", "a doubling, upper half"), "accuracy"]
    assert shown == f"0.025 [{oracle.low:.3f}, {oracle.high:.3f}]"
    alone = stats.ttest_1samp([-0.1, -0.3, -0.2, -0.2], 0).confidence_interval(0.95)
    shown = table.loc[("rankings", "equal_pairs_pairwise less pairs"), "accuracy"]
    assert shown == f"-0.200 [{alone.low:.3f}, {alone.high:.3f}]"


def test_the_terminal_shows_the_tables(tmp_path):
    key = {"study": "reward_models", "common": "c", "own": "o", "models": "m"}
    lines = [key | {"unit": u, "seed": s, "figures": f} for u, seeds in made_up().items() for s, f in seeds.items()]
    (tmp_path / "all.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert "a doubling, upper half" in as_text(tmp_path / "all.jsonl")
    (tmp_path / "one.jsonl").write_text(json.dumps(key | {"unit": "gold", "seed": 1, "figures": {"gain": 1.5}}) + "\n")
    assert "1.50" in as_text(tmp_path / "one.jsonl"), "a study that has only begun has no comparisons yet"


def test_the_bins_of_all_seeds_are_put_together():
    seeds = {
        0: {"said_bin_6": 0.6, "share_bin_6": 0.5, "n_bin_6": 1.0},
        1: {
            "said_bin_6": 0.64,
            "share_bin_6": 0.9,
            "n_bin_6": 3.0,
            "said_bin_9": 1.0,
            "share_bin_9": 1.0,
            "n_bin_9": 2.0,
        },
    }
    said, share = kept.reliability(seeds)
    assert said == pytest.approx([0.63, 1.0]) and share == pytest.approx([0.8, 1.0])


# ---- Nothing is run twice


def test_other_settings_stand_apart_and_a_broken_line_is_named(tmp_path):
    file = tmp_path / "all.jsonl"
    run = SimpleNamespace(file=tmp_path.joinpath, log=lambda row, step: None, rewind=lambda step: None)

    def finished(**changes) -> Finished:
        shared = reward_models.Shared(config(results=str(file), **changes))
        return Finished(shared, run, reward_models.own_settings(shared), lists=reward_models.LISTS)

    assert finished().find("data_12") is None
    finished().add("data_12", {"accuracy": 0.7})
    assert finished().find("data_12") == {"accuracy": 0.7}
    assert finished(comparisons={6: 1, 9: 1, 12: 1}, flips=[0.1], trunks={}).find("data_12"), (
        "more units, the same ones"
    )
    others = [{"seed": 1}, {"n_heldout": 9}, {"comparisons": {12: 2}}, {"labeler": {"flip": 0.1}}]
    others += [{"comparisons": {12: 1, 24: 1}}]  # of which the first twelve are others
    assert [finished(**other).find("data_12") for other in others] == [None] * 5
    trunk = tmp_path / "trunk"
    shutil.copytree(SMALL["policy"], trunk)
    finished(trunks={"base": str(trunk)}).add("trunk_base", {"accuracy": 0.5})
    assert finished().find("trunk_base") == {"accuracy": 0.5}, "the same weights, wherever they lie"
    policy = load_policy(trunk)
    torch.nn.init.zeros_(next(policy.parameters()))
    save_policy(trunk, policy, load_tokenizer(trunk))
    assert finished(trunks={"base": str(trunk)}).find("trunk_base") is None, "the same place, other weights"
    finished(n_heldout=9).add("data_12", {"accuracy": 0.1})
    finished().add("data_6", {"accuracy": 0.6})
    found = kept.recorded(file)
    assert found.left_out == 1 and found.units == {
        "data_12": {0: {"accuracy": 0.7}},
        "trunk_base": {0: {"accuracy": 0.5}},
        "data_6": {0: {"accuracy": 0.6}},
    }
    file.write_text("{broken\n" + Path(file).read_text())
    with pytest.raises(LabError, match="line 1 is broken"):
        finished().find("data_12")
