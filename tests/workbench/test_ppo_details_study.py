"""15_ppo_details: every switch changes something and only that, every mistake is made, differences by scipy."""

from types import SimpleNamespace

import pytest
import torch
from scipy import stats
from tiny import make_config, make_policy, make_scorer, sample, start

from rlhf_lab.errors import LabError
from rlhf_lab.sandbox.world import World
from rlhf_lab.training import ppo
from rlhf_lab.training.ppo import PPOConfig, ppo_updates
from rlhf_lab.workbench.evaluation import Measure
from rlhf_lab.workbench.stages import PPODetailsStage
from rlhf_lab.workbench.stages.ppo_details import DETAILS
from rlhf_lab.workbench.studies import chain
from rlhf_lab.workbench.studies import ppo_details as study
from rlhf_lab.workbench.studies import ppo_details_results as kept
from rlhf_lab.workbench.studies.one_reward import OneReward

SMALL = {
    "policy": World.load().base_model,
    "comparisons": 12,
    "eval_prompts": 8,
    "max_new_tokens": 8,
    "reward_model": {"epochs": 20},
    "ppo": {"updates": 2, "batch_size": 8, "minibatches": 1, "micro_batch_size": 4, "epochs": 1, "lr": 1e-3},
}
BROKEN = [
    *("again", "again_2", "again_3", "critic_zero", "reward_head_zero", "prompts_again", "score_no_zero", "score_raw"),
    *("eos_unread", "score_everywhere", "eos_masked", "padded_whitening", "dropout", "reversed"),
]


def ground_of(**changes) -> OneReward:
    nothing = lambda *told: None
    return OneReward(PPODetailsStage.parse(SMALL | changes, "test.yaml"), SimpleNamespace(progress=nothing))


@pytest.fixture(scope="module")
def ground() -> OneReward:
    return ground_of()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"details": ["no_kl", "no_such"]}, "there is no 'no_such'"),
        ({"details": ["no_kl", "no_kl"]}, "twice"),
        ({"details": ["short_eos_trick"]}, "'short_eos_trick' is compared with 'short', which is not among them"),
        ({"ppo": {"precision": "bf16"}}, "ppo.precision"),
        ({"reward_model": {"loss": "best_of_k"}}, "pairwise"),
    ],
)
def test_settings_that_make_no_sense_are_refused_by_name(settings, message):
    with pytest.raises(LabError, match=message) as told:
        PPODetailsStage.parse(settings, "test.yaml")
    assert "\n" not in str(told.value)


@pytest.mark.parametrize("name", [name for name in DETAILS if DETAILS[name].changes])
def test_a_setting_that_is_switched_is_another_than_the_baselines(name):
    baseline = PPODetailsStage().ppo
    changed = PPOConfig(**(baseline.model_dump() | DETAILS[name].changes))
    differ = {field for field in PPOConfig.model_fields if getattr(changed, field) != getattr(baseline, field)}
    assert differ == {*DETAILS[name].changes}


def test_what_is_no_setting_has_its_own_name_in_the_file():
    own = study.units_of(PPODetailsStage())
    assert [name for name in DETAILS if not DETAILS[name].changes and not DETAILS[name].learns] == BROKEN
    assert own["reward_one_epoch"] == {"learns": {"epochs": 1}} and PPODetailsStage().reward_model.epochs != 1
    assert all(own[name]["detail"] == name for name in BROKEN) and own["baseline"] == {}
    assert len({str(values) for values in own.values()}) == len(own) == len(DETAILS) + 1
    for name, detail in DETAILS.items():
        if detail.against:  # one thing more than what it is compared with
            assert len(detail.changes.items() - DETAILS[detail.against].changes.items()) == 1, name


# ---- Mistakes


def test_dropout_is_on_while_it_trains():
    config = make_config(updates=1, epochs=1, minibatches=1, micro_batch_size=4, advantage="reinforce++")
    for architecture in ("gpt2", "llama"):
        state = start(config, policy=make_policy(architecture))
        study.set_dropout(state.policy, 0.3)
        assert abs(next(ppo_updates(state)).stats.ratio - 1) > 1e-4, architecture
    with pytest.raises(LabError, match="no dropout to set"):
        study.set_dropout(torch.nn.Linear(2, 2), 0.1)


def test_padding_is_whitened_and_the_right_way_comes_back():
    config = make_config(advantage="gae", whiten="rollout")
    batch = sample(make_policy(), make_scorer(), config)
    mask = batch.response_mask
    assert not mask.all(), "some replies are shorter"
    plain, targets = ppo.estimate_advantages(batch, config.model_copy(update={"whiten": "off"}))
    assert (plain[~mask] == 0).all()
    with study.padded_whitening():
        found, returns = ppo.estimate_advantages(batch, config)
    by_hand = (plain - plain.mean()) / plain.std()  # over the zeros, too
    torch.testing.assert_close(found[mask], by_hand[mask])
    assert (found[~mask] == 0).all() and torch.equal(returns, targets)
    right, _ = ppo.estimate_advantages(batch, config)
    assert abs(right[mask].mean()) < 1e-6 < abs(found[mask].mean())
    with pytest.raises(KeyError), study.padded_whitening():
        raise KeyError
    torch.testing.assert_close(ppo.estimate_advantages(batch, config)[0], right)


def test_the_eos_is_taken_from_replies_that_ended():
    told = {}
    reward = study.without_eos(lambda **given: told.update(given) or [0.0])
    reward(completion_ids=[[5, 0], [5, 6], [0]], finished=[True, False, True], prompt_ids=[[1]])
    assert told == {"completion_ids": [[5], [5, 6], [0]], "finished": [False] * 3, "prompt_ids": [[1]]}


def test_the_mean_score_is_that_of_the_replys_tokens():
    scorer = make_scorer()
    reward = study.mean_score(scorer, 0)
    told = reward(prompt_ids=[[5, 6, 7], [8]], completion_ids=[[9, 10], [11, 12, 13, 0]], finished=[False, True])
    for row, (prompt, reply) in enumerate([([5, 6, 7], [9, 10]), ([8], [11, 12, 13, 0])]):
        ids = torch.tensor([prompt + reply])
        each = scorer.token_scores(ids, torch.ones_like(ids, dtype=torch.bool))[0, len(prompt) :]
        assert told[row] == pytest.approx(each.mean().item(), abs=1e-5)
        assert abs(told[row] - each[-1].item()) > 1e-4


def test_the_eos_is_masked_in_the_step_alone(monkeypatch):
    seen, ends = [], []

    def step(policy, critic, optimizer, batch, *rest, **more):
        seen.append(batch.response_mask)
        ends.append((batch.response_ids, batch.finished))
        return right(policy, critic, optimizer, batch, *rest, **more)

    right = ppo.ppo_step
    monkeypatch.setattr(ppo, "ppo_step", step)
    state = start(make_config(updates=1))
    with study.eos_masked():
        update = next(ppo_updates(state))
    ((ids, finished),), (mask,), whole = ends, seen, update.rollout.response_mask
    assert finished.any() and ppo.ppo_step is step
    eos = (ids == state.tokenizer.eos_token_id) & whole
    alone = whole.sum(1) == 1
    assert torch.equal(mask, whole & (~eos | alone[:, None])) and not torch.equal(mask, whole)


def accuracy(ground: OneReward, scorer) -> float:
    reward = ground.reward_of(scorer)
    right = []
    for row in ground.rows:
        first, second = reward(
            prompts=[row["prompt"]] * 2, completions=row["completions"], finished=[bool(end) for end in row["finished"]]
        )
        right.append((first > second) == (row["ranks"][0] < row["ranks"][1]))
    return sum(right) / len(right)


def test_a_reward_model_from_reversed_labels_prefers_the_worse(ground):
    assert accuracy(ground, ground.scorer) > 0.8
    assert accuracy(ground, study._scorer("reversed", ground)) < 0.2


def test_raw_scores_differ_by_the_zero_and_the_unit_alone(ground):
    texts = {
        "prompts": ground.held_out[:5],
        "completions": ["yes .", "no .", "i do .", "a b", "c"],
        "finished": [True] * 5,
    }
    scaled, raw, no_zero = (
        ground.reward_of(s)(**texts)
        for s in (ground.scorer, *(study._scorer(n, ground) for n in ("score_raw", "score_no_zero")))
    )
    assert ground.scorer.gain != 1 and ground.scorer.shift != 0
    by_hand = [ground.scorer.gain * (score - ground.scorer.shift) for score in raw]
    assert scaled == pytest.approx(by_hand, abs=1e-4)
    assert no_zero == pytest.approx([ground.scorer.gain * score for score in raw], abs=1e-4)


# ---- Units


def test_units_differ_by_what_is_switched_alone(ground, monkeypatch):
    """One optimizer step an update: the ratio is 1 unless there is dropout. Each unit is measured without it."""
    rates, pools, measure, share = [], {}, Measure.__call__, study.right_share

    def watch(self, policy, update):
        rates.extend(layer.self_attn.attention_dropout for layer in policy.model.layers)
        return measure(self, policy, update)

    monkeypatch.setattr(Measure, "__call__", watch)
    monkeypatch.setattr(
        study, "right_share", lambda reward, world, pool: pools.update({name: pool}) or share(reward, world, pool)
    )
    found = {}
    for name in ("baseline", "dropout", "critic_zero", "again", "short", "eos_unread"):
        found[name] = without_seconds(study.unit(name, ground))
    assert found["baseline"]["ratio_off"] < 1e-5 < 1e-4 < found["dropout"]["ratio_off"]
    assert found["baseline"]["first_ratio_off"] < 1e-5 < 1e-4 < found["dropout"]["first_ratio_off"]
    assert found["baseline"]["first_kl"] < 1e-8 < 1e-5 < found["dropout"]["first_kl"]
    assert found["baseline"]["clip_fraction"] == 0 and found["critic_zero"]["ratio_off"] < 1e-5
    assert len({figures["kl"] for figures in found.values()}) == 6 and {*rates} == {0.0}
    before = {figures["gold_sft"] for name, figures in found.items() if name != "short"}
    assert len(before) == 1 and found["short"]["words_sft"] > found["baseline"]["words_sft"]  # of 16 tokens, not 8
    assert any(map(any, pools["baseline"].finished)) and not any(map(any, pools["eos_unread"].finished))
    assert pools["eos_unread"].replies == pools["baseline"].replies
    assert without_seconds(study.unit("baseline", ground)) == found["baseline"], "whatever came before it"
    started = []
    monkeypatch.setattr(ground, "start", lambda settings, **more: started.append(settings) or 1 / 0)
    for name in ("no_kl", "again"):
        with pytest.raises(ZeroDivisionError):
            study.unit(name, ground)
    assert [(s.kl_coef, s.seed) for s in started] == [(0.0, 0), (0.05, study.OTHER_SEEDS["again"])]


def test_what_is_changed_of_the_reward_model_and_the_prompts(ground, monkeypatch):
    made, updates = [], ppo.ppo_updates
    monkeypatch.setattr(ppo, "ppo_updates", lambda state: made.append(state) or updates(state))
    heads, broken = [], ("score_everywhere", "eos_masked", "bf16")
    names = ("baseline", "prompts_again", *broken, "reward_head_zero", "reward_one_epoch")
    load = chain.models.load_scorer
    monkeypatch.setattr(chain.models, "load_scorer", lambda path, **how: heads.append(how["head"]) or load(path, **how))
    found = {n: study.unit(n, ground) for n in names}
    assert len({figures["kl"] for figures in found.values()}) == len(names)
    whole, quarter = (len(state.prompts) for state in made[:2])
    assert (whole, quarter) == (len(ground.train), len(ground.train) // 4)
    assert heads[-2:] == ["zero", "new"]


def without_seconds(figures: dict[str, float]) -> dict[str, float]:
    return {name: value for name, value in figures.items() if name != "seconds"}


def test_measuring_on_the_way_leaves_the_training_as_it_was(ground, monkeypatch):
    watched, measure = without_seconds(study.unit("dropout", ground)), Measure.__call__
    assert watched["gold_at_1"] != watched["gold"]
    monkeypatch.setattr(study, "first_figures", lambda state: {})
    monkeypatch.setattr(Measure, "__call__", lambda self, *told: measure(self, *told) if told[1] == 2 else None)
    alone = study.unit("dropout", ground)
    assert len(alone) < len(watched) and without_seconds(alone) == {
        name: watched[name] for name in without_seconds(alone)
    }


# ---- Over seeds

CHANCE = {"baseline": [0.0, 0.4, 0.2, 0.4], "again": [0.2, 0.6, 0.4, 0.4], "again_2": [0.1, 0.5, 0.3, 0.4]}
MEAN = [0.1, 0.5, 0.3, 0.4]  # of these three


def made_up(gaps: dict[str, list[float]]) -> kept.Units:
    """Units of four seeds, whose gold is so much above the mean of the runs without."""
    golds = CHANCE | {name: [m + gap for m, gap in zip(MEAN, values, strict=True)] for name, values in gaps.items()}
    return {
        name: {
            seed: {
                "gold": gold,
                "kl": 2.0 + 2 * gold,
                "eos_rate": 1.0,
                "score_ahead": -gold,
                "accuracy_gold": 0.5 + gold,
            }
            | {"seconds": 100 * seed + len(name)}
            for seed, gold in enumerate(values)
        }
        for name, values in golds.items()
    }


def interval(values: list[float], comparisons: int, digits: int = 2) -> str:
    at = stats.ttest_1samp(values, 0).confidence_interval(1 - 0.05 / comparisons)
    return f"{sum(values) / len(values):.{digits}f} [{at.low:.{digits}f}, {at.high:.{digits}f}]"


def test_differences_are_to_the_mean_of_the_runs_without_and_hold_at_once_within_a_family():
    lower, little = [-1.0, -1.1, -0.9, -1.0], [0.1, -0.1, 0.2, 0.2]
    units = made_up({"reversed": lower, "no_kl": little, "k3_loss": lower, "k3_reward": little, "one_epoch": little})
    table = kept.comparison_table(units)
    assert list(table.index) == ["again", "again_2", "reversed", "no_kl", "k3_reward", "k3_loss", "one_epoch"]
    assert table["family"].tolist() == ["chance"] * 2 + ["control"] * 2 + ["explored"] * 3
    assert table.loc["no_kl", "gold"] == interval(little, 2) and table.loc["k3_reward", "gold"] == interval(little, 3)
    assert table.loc["no_kl", "kl"] == interval([2 * gap for gap in little], 2)
    # `again` less the mean of the two others: .2 - .05, .6 - .45, .4 - .25, .4 - .4
    assert table.loc["again", "gold"] == interval([0.15, 0.15, 0.15, 0.0], 1)
    assert table.loc["k3_loss", "gold is"] == "lower" and table.loc["k3_reward", "gold is"] == ""
    assert table.loc["no_kl", "lower in"] == "1 of 4" and table.loc["reversed", "lower in"] == "4 of 4"
    controls = kept.control_table(units)
    assert controls.loc["no_kl", "found"] == interval([-gap for gap in little], 2, 4)  # what the score is ahead
    assert controls.loc["reversed", "found"] == interval([m + gap for m, gap in zip(MEAN, lower, strict=True)], 2, 4)
    assert controls["as expected"].tolist() == ["yes", "not shown"]
    assert list(kept.table(units).index) == ["baseline", *[name for name in DETAILS if name in units]]
    assert len(kept.figure(units).axes) == 3 and len(kept.steps_table(units)) == 8


def test_what_never_acted_has_no_interval_and_what_names_its_comparator_is_compared_with_that():
    units = made_up({"short": [0.5] * 4, "short_eos_trick": [0.6, 0.7, 0.8, 0.9]})
    units["no_clip"] = {seed: figures | {"seconds": 9.0} for seed, figures in units["baseline"].items()}
    units["no_decay"] = units["no_clip"] | {3: units["again"][3]}
    units["no_decay"][3] = units["no_decay"][3] | {"kl": 0.0}
    table = kept.comparison_table(units)
    assert "short" not in table.index and "short" in kept.table(units).index
    assert table.loc["short_eos_trick", "gold"] == interval([0.1, 0.2, 0.3, 0.4], 3)
    assert (table.loc["no_clip", "gold"], table.loc["no_clip", "kl"]) == ("never acted", "")
    assert table.loc["no_decay", "acted in"] == "1 of 4" and table.loc["no_decay", "gold"].startswith("-0.0")
    assert "no_clip (never acted)" in [text.get_text() for text in kept.figure(units).axes[0].get_yticklabels()]


def test_one_seed_has_no_interval_and_no_verdict():
    units = {name: {3: seeds[0]} for name, seeds in made_up({"no_kl": [0.25] * 4}).items()}
    row = kept.comparison_table(units).loc["no_kl"]
    assert (row["gold"], row["gold is"]) == ("0.25", "")
    assert kept.results(units)["gold_gap_no_kl"] == pytest.approx(0.25) and len(kept.figure(units).axes) == 3
    alone = {name: units[name] for name in ("baseline", "no_kl")}
    assert kept.comparison_table(alone).loc["no_kl", "gold"] == "0.35"  # without the others, less the baseline's


def test_a_verdict_needs_the_interval_of_all():
    values = [0.05, 0.2, 0.1, 0.12, 0.18]
    alone = stats.ttest_1samp(values, 0).confidence_interval(0.95)
    assert alone.low > 0 and kept.verdict(values, 1) == "higher" and kept.verdict(values, 25) == ""


def test_nothing_is_shown_before_the_baseline_is_there(tmp_path):
    file = tmp_path / "all.jsonl"
    assert kept.recorded(file) is None and kept.tables(file) == ""
    file.write_text('{"unit": "no_kl", "seed": 0, "common": "c", "own": "o", "figures": {"gold": 1.0}}\n')
    assert kept.recorded(file) is None
    file.write_text("{broken\n" + file.read_text())
    with pytest.raises(LabError, match="line 1 is broken"):
        kept.recorded(file)
