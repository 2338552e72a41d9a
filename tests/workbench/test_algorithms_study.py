"""05_algorithms: one budget for all, nothing run twice, and what the table over seeds says, by hand."""

import json
import math
from types import SimpleNamespace

import pytest
import torch
from scipy import stats
from tiny import WORDS, make_policy, make_scorer, make_tokenizer

from rlhf_lab.errors import LabError
from rlhf_lab.models import load_policy, save_policy
from rlhf_lab.rewards import WeightedReward
from rlhf_lab.training import metrics
from rlhf_lab.training.best_of_n import Pool
from rlhf_lab.workbench import roles
from rlhf_lab.workbench.stages import AlgorithmsStage, PPOStage
from rlhf_lab.workbench.studies import algorithm_results as kept
from rlhf_lab.workbench.studies import algorithms
from rlhf_lab.workbench.studies.algorithms import Outcome

SMALL = {
    "eval_prompts": 8,
    "replies": 32,
    "batch_size": 16,
    "max_new_tokens": 8,
    "measurements": 1,
    "precision": "fp32",
    "raft": {"rounds": 2, "k": 4},
}
METHODS = ["ppo", "rloo", "grpo", "dr_grpo", "reinforce++", "dpo", "kto", "best_of_n", "raft"]


# ---- The budget


def test_every_method_starts_from_the_same_model_and_spends_the_same(tmp_path, capsys):
    save_policy(tmp_path / "sft", make_policy(initializer_range=0.2), make_tokenizer())
    prompts = [f"{one} {two}" for one in WORDS[2:10] for two in WORDS[2:8]]
    (tmp_path / "prompts.jsonl").write_text("".join(json.dumps({"prompt": text}) + "\n" for text in prompts))
    (tmp_path / "own.py").write_text(
        "def brevity(completions, **_):\n    return [-float(len(text.split())) for text in completions]\n"
    )
    cfg = AlgorithmsStage.parse(
        SMALL
        | {"sandbox": "", "policy": str(tmp_path / "sft"), "prompts": str(tmp_path / "prompts.jsonl")}
        | {"reward": f"{tmp_path}/own.py:brevity", "online": {"lr": 1e-2}}
    )
    run = SimpleNamespace(progress=lambda *told: None)
    ground = algorithms.common_ground(cfg, run)
    assert len(ground.train) == 40 and not {*ground.train} & {*ground.measure.prompts}
    outcomes = {method: algorithms.learn(method, ground, run) for method in METHODS}

    first = ground.measure.baseline
    words = [len(reply.split()) for reply in first.answers["reply"]]
    for method, outcome in outcomes.items():
        assert outcome.curve[0]["score"] == pytest.approx(-sum(words) / 8) and outcome.curve[0]["replies"] == 0
        last = outcome.figures
        assert (last["replies"], last["reward_calls"]) == (32, 32), method
        assert 32 <= last["tokens"] <= 32 * 8 and last["seconds"] > 0
        assert last["score_gain"] == pytest.approx(last["score"] - outcome.curve[0]["score"])
        assert last["kl"] != 0 and "gold" not in last
    sizes = [row["replies"] for row in outcomes["best_of_n"].curve]
    assert sizes == [0, 8, 16, 32]  # n = 1, 2, 4 of 8 prompts
    assert [row["replies"] for row in outcomes["raft"].curve] == [0, 16, 32]
    scores = [row["score"] for row in outcomes["best_of_n"].curve[1:]]
    assert scores == sorted(scores) and outcomes["best_of_n"].figures["kl"] == pytest.approx(math.log(4) - 3 / 4)
    assert list(kept.table(outcomes).index) == METHODS and "score_gain_kto" in kept.results(outcomes)
    assert len(kept.figure({name: [outcome] for name, outcome in outcomes.items()}).axes) == 3
    untouched = load_policy(tmp_path / "sft").state_dict()
    assert all(torch.equal(v, untouched[k]) for k, v in ground.measure.reference.state_dict().items())


@pytest.mark.parametrize("method", METHODS[:5])
def test_an_update_is_of_as_many_replies_in_every_relative_of_ppo(method):
    settings = AlgorithmsStage(online={"kl_coef": 0.2}).online_settings(method)
    grouped = method in ("rloo", "grpo", "dr_grpo")
    assert (settings.batch_size, settings.samples_per_prompt) == ((32, 4) if grouped else (128, 1))
    assert settings.updates * settings.batch_size * settings.samples_per_prompt == 3072
    assert settings.kl_coef == 0.2 and settings.kl_in == ("loss" if "grpo" in method else "reward")
    assert settings.advantage == ("gae" if method == "ppo" else method)


def test_the_reward_ranks_the_pairs_and_equal_replies_or_scores_say_nothing():
    pool = Pool(["p", "q", "r"], [["a", "b"], ["c", "c"], ["d", "e"]], [[True, False], [True, True], [True, True]])
    rows = algorithms.ranked_pairs(pool, torch.tensor([[1.0, 2.0], [3.0, 3.0], [4.0, 4.0]]))
    assert rows == [
        {"prompt": "p", "completions": ["a", "b"], "ranks": [1, 0], "finished": [True, False]},
        {"prompt": "r", "completions": ["d", "e"], "ranks": [0, 0], "finished": [True, True]},
    ]


def test_tokens_count_the_eos_of_what_is_finished():
    pool = Pool(["w2"], [["w3 w4", "w5 w6 w7"]], [[True, False]])
    assert algorithms.tokens_of_pool(pool, make_tokenizer()) == 3 + 3


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"replies": 100}, "'replies' must be a multiple of 'batch_size'"),
        ({"batch_size": 6, "replies": 96}, "'samples_per_prompt'"),
        ({"raft": {"rounds": 5}}, "multiple of raft.rounds"),
        ({"eval_prompts": 4096}, "best_of_n"),
        ({"methods": ["ppo", "trpo"]}, "methods.1"),
        ({"reward": "yours"}, "file.py:function"),
        ({"online": {"updates": 3}}, "online.updates"),
        ({"dpo": {"seed": 3}}, "dpo.seed"),
        ({"dpo": {"flip": 0.5}}, "dpo.flip"),
        ({"kto": {"batch_size": 1}}, "kto.batch_size"),
        ({"raft": {"k": 1}}, "raft.k"),
        ({"raft": {"sft": {"seed": 3}}}, "raft.sft.seed"),
        ({"raft": {"sft": {"precision": "bf16"}}}, "raft.sft.precision"),
        ({"online": {"advantage": "reinforce++"}}, "online.advantage follows from the methods"),
        ({"online": {"kl_in": "loss", "kl_kind": "k3"}}, "online.kl_in"),
        ({"online": {"kl_kind": "k3"}}, "online.kl_kind"),
        ({"online": {"reduction": "sequence"}}, "online.reduction"),
        ({"online": {"whiten": "off"}}, "online.whiten"),
        ({"online": {"kl_control": "ziegler"}}, "online does not fit grpo: kl_control moves .* must be 'fixed'"),
        ({"online": {"critic_warmup": 24}, "methods": ["dpo"]}, "online does not fit ppo: critic_warmup 24 leaves"),
    ],
)
def test_settings_that_make_no_sense_are_refused_by_name(settings, message):
    with pytest.raises(LabError, match=message) as told:
        AlgorithmsStage.parse(settings, "test.yaml")
    assert "\n" not in str(told.value)


# ---- Nothing is run twice


def store(tmp_path, *, weights=b"one", **changes) -> kept.Finished:
    (tmp_path / "sft").mkdir(exist_ok=True)
    (tmp_path / "sft" / "model.safetensors").write_bytes(weights)
    cfg = AlgorithmsStage.parse({"results": str(tmp_path / "found" / "all.jsonl")} | changes)
    ground = SimpleNamespace(cfg=cfg, sft_path=str(tmp_path / "sft"), reward_name="gold")
    logged = []
    run = SimpleNamespace(file=tmp_path.joinpath, log=lambda row, step: logged.append((row, step)), logged=logged)
    run.rewind = lambda step: logged.clear()
    return kept.Finished(ground, run)


OUTCOME = Outcome([{"gold": 0.0, "kl": 0.0, "replies": 0}, {"gold": 0.5, "kl": 3.0, "replies": 64}])


def test_what_is_finished_is_read_back_and_only_for_the_same_settings_seed_and_models(tmp_path):
    assert store(tmp_path).find("dpo") is None
    store(tmp_path).add("dpo", OUTCOME)
    assert store(tmp_path).find("dpo") == OUTCOME
    assert store(tmp_path, methods=["dpo"], experiment="other", threads=1, raft={"k": 4}).find("dpo") == OUTCOME
    others = [
        {"seed": 1},
        {"replies": 1536},
        {"dpo": {"beta": 0.2}},
        {"reward": "auto2"},
        {"online": {"temperature": 0.5}},
    ]
    assert [store(tmp_path, **other).find("dpo") for other in others] == [None] * 5
    assert store(tmp_path, weights=b"two").find("dpo") is None
    assert store(tmp_path).find("kto") is None
    lines = (tmp_path / "found" / "all.jsonl").read_text().splitlines()
    assert len(lines) == 1 and {"method", "seed", "common", "own", "models", "commit", "curve"} <= {
        *json.loads(lines[0])
    }


def test_without_a_file_the_run_keeps_its_own_and_its_metrics_have_the_curve(tmp_path):
    own = store(tmp_path, results="")
    own.add("dpo", OUTCOME)
    assert own.run.logged == [
        ({"dpo/gold": 0.0, "dpo/kl": 0.0, "dpo/replies": 0}, 0),
        ({"dpo/gold": 0.5, "dpo/kl": 3.0, "dpo/replies": 64}, 64),
    ]
    assert own.find("dpo") == OUTCOME and not (tmp_path / "found").exists()
    assert len(own.run.logged) == 2, "a curve is logged once"
    resumed = store(tmp_path, results="", resume=True)
    assert resumed.find("dpo") == OUTCOME and resumed.run.logged == own.run.logged


def test_a_torn_last_line_is_run_again(tmp_path):
    store(tmp_path).add("dpo", OUTCOME)
    file = tmp_path / "found" / "all.jsonl"
    file.write_text(file.read_text() + '{"method": "kto", "se')
    assert store(tmp_path).find("dpo") == OUTCOME and store(tmp_path).find("kto") is None
    store(tmp_path).add("kto", OUTCOME)
    store(tmp_path).add("ppo", OUTCOME)
    assert [store(tmp_path).find(method) for method in ("dpo", "kto", "ppo")] == [OUTCOME] * 3
    assert len(file.read_text().splitlines()) == 3


# ---- Over seeds


def record(file, method: str, seed: int, gain: float, *, common="c", own="o", models="m") -> None:
    curve = [{"gold": 1.0, "score": 0.0, "kl": 0.0, "eos_rate": 1.0, "tokens": 0, "seconds": 0.0}]
    curve.append({"gold": 1.0 + gain, "score": 1.0, "kl": 2.0, "eos_rate": 1.0, "tokens": 9, "seconds": 1.0})
    line = {"method": method, "seed": seed, "common": common, "own": own, "models": models, "curve": curve}
    with file.open("a") as out:
        out.write(json.dumps(line) + "\n")


def test_settings_are_kept_apart_and_the_last_line_says_which_are_shown(tmp_path):
    file = tmp_path / "all.jsonl"
    assert kept.recorded(file) is None
    record(file, "ppo", 1, 9.0, common="old")
    record(file, "dpo", 2, 9.0, own="untuned")
    record(file, "dpo", 1, 0.1)
    record(file, "dpo", 1, 0.2)  # the same again: it replaces
    record(file, "ppo", 1, 0.3)
    found = kept.recorded(file)
    assert found.left_out == 3 and list(found.outcomes) == ["ppo", "dpo"]
    assert [o.figures["gold_gain"] for o in found.outcomes["dpo"]] == pytest.approx([0.2])


def test_differences_are_paired_by_seed_and_hold_all_at_once(tmp_path):
    file = tmp_path / "all.jsonl"
    ppo, dpo, kto = [0.1, 0.9, 0.5, 0.7], [0.3, 1.0, 0.7, 0.8], [0.0, 1.2, 0.3, 0.9]
    for seed in (3, 1, 0, 2):  # in no order
        for method, gains in (("kto", kto), ("ppo", ppo), ("dpo", dpo)):
            record(file, method, seed, gains[seed])
    record(file, "dpo", 7, 99.0)  # a seed that PPO has not
    record(file, "dpo", 0, 99.0, models="other")  # and other models
    found = kept.recorded(file)
    gaps = kept.paired_gaps(found, "dpo", "ppo", "gold_gain")
    assert sorted(gaps) == pytest.approx([0.1, 0.1, 0.2, 0.2])
    oracle = stats.ttest_1samp(gaps, 0).confidence_interval(1 - 0.05 / 2)
    assert kept.bonferroni(gaps, 2) == pytest.approx((oracle.low, oracle.high))
    rows = kept.over_seeds(found)
    assert rows.loc["dpo", "gold is"] == "higher" and rows.loc["kto", "gold is"] == "-"
    assert rows.loc["dpo", "less ppo"].startswith("0.15 [") and rows.loc["ppo", "seeds"] == 4
    assert rows.loc["ppo", "gold_gain"].startswith("0.55 [") and rows.loc["ppo", "less ppo"] == ""
    assert len(kept.figure(found.outcomes).axes) == 3


def test_one_seed_has_no_interval_and_no_verdict(tmp_path):
    file = tmp_path / "all.jsonl"
    record(file, "ppo", 1, 0.1)
    record(file, "dpo", 1, 0.9)
    assert kept.over_seeds(kept.recorded(file)).loc["dpo", "gold is"] == "-"


# ---- Several rewards with weights, by name


def test_a_mix_of_rewards_from_a_config(tmp_path):
    (tmp_path / "own.py").write_text(
        "def words(completions, **_):\n    return [float(len(text.split())) for text in completions]\n"
    )
    name = f"{tmp_path}/own.py:words"
    cfg = PPOStage.parse({"reward": {name: 0.5, "yours": -2}})
    reward = roles.reward(cfg, None, None, lambda completions, **_: [1.0] * len(completions))
    assert isinstance(reward, WeightedReward)
    assert metrics.reward_parts(reward) == {}  # before the first call
    assert reward(prompts=["p", "p"], completions=["a b", "a b c d"]) == [1.0 - 2.0, 2.0 - 2.0]
    assert metrics.reward_parts(reward) == {f"rewards/{name}": 3.0, "rewards/yours": 1.0}
    assert metrics.reward_parts(len) == {}


@pytest.mark.parametrize("wrong", [{"a.py:f": "much"}, ["auto"], {"auto": None}])
def test_a_mix_that_is_none_is_refused(wrong):
    with pytest.raises(LabError, match="reward"):
        PPOStage.parse({"reward": wrong})
    with pytest.raises(LabError, match="no rewards given"):
        roles.reward(PPOStage.parse({"reward": {}}), None, None, None)


def test_the_critic_starts_from_the_model_of_a_mix(tmp_path):
    save_policy(tmp_path / "sft", make_policy(), make_tokenizer())
    scorer = make_scorer()
    scorer.save(tmp_path / "reward", make_tokenizer())
    mixed = PPOStage(reward={"gold": 0.1, str(tmp_path / "reward"): 1.0})
    critic = roles.critic(mixed, str(tmp_path / "sft"), load_policy(tmp_path / "sft"))
    ours, theirs = dict(critic.named_parameters()), dict(scorer.named_parameters())
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
