"""13_ensembles: what each combination picks, by hand; what is learned from and paid; differences by scipy."""

import json
from types import SimpleNamespace

import pandas as pd
import pytest
import torch
from scipy import stats

from rlhf_lab.errors import LabError
from rlhf_lab.sandbox.world import World
from rlhf_lab.workbench.evaluation import Measure
from rlhf_lab.workbench.reference import as_text
from rlhf_lab.workbench.stages import EnsemblesStage
from rlhf_lab.workbench.studies import chain, ensembles
from rlhf_lab.workbench.studies import ensembles_results as kept
from rlhf_lab.workbench.studies.ground import Finished

SMALL = {
    "policy": World.load().base_model,
    "comparisons": 8,
    "members": 3,
    "flips": [0.0, 1.0],
    "pool_prompts": 3,
    "pool_size": 4,
    "eval_prompts": 6,
    "max_new_tokens": 12,
    "reward_model": {"epochs": 1},
    "ppo": {"updates": 4, "batch_size": 4, "minibatches": 1, "epochs": 1},
    "measurements": 2,
}


def config(**changes) -> EnsemblesStage:
    return EnsemblesStage.parse(SMALL | changes, "test.yaml")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"flips": [0.25, 0.25]}, "once"),
        ({"flips": [1.5]}, "flips"),
        ({"measurements": 3}, "ppo.updates is 4, no multiple of 'measurements'"),
        ({"labeler": {"flip": 0.1}}, "labeler.flip"),
        ({"pool_prompts": 7}, "6 'eval_prompts'"),
        ({"ppo": {"seed": 1}}, "ppo.seed"),
        ({"reward_model": {"loss": "best_of_k"}}, "pairwise"),
    ],
)
def test_settings_that_make_no_sense_are_refused_by_name(settings, message):
    with pytest.raises(LabError, match=message) as told:
        config(**settings)
    assert "\n" not in str(told.value)


@pytest.mark.parametrize(
    ("how", "coef", "gain"),
    [
        ("single", 0, 0.0),  # the first picks the better reply, the second the worse
        ("mean", 0, 0.5),  # .25 and .5
        ("worst", 0, -0.5),  # .2 and 0
        ("uncertainty", 0.5, 0.5),  # variances .0025 and .25: .249 and .375
        ("uncertainty", 2.0, -0.5),  # .245 and 0
    ],
)
def test_what_the_best_of_two_is_by_hand(how, coef, gain):
    scores = torch.tensor([[[0.3, 1.0]], [[0.2, 0.0]]])  # two members, one prompt, two replies
    found = ensembles.best_of(scores, torch.tensor([[0.0, 1.0]]), how=how, coef=coef, seed=0)
    assert found["bon"] == found["bon_at_2"] == pytest.approx(gain) and found["bon_at_1"] == 0
    assert found["accuracy_gold"] == gain + 0.5


def test_the_score_of_the_best_and_the_first_alone_by_hand():
    scores, gold = torch.tensor([[[0.3, 1.0]], [[0.2, 0.0]]]), torch.tensor([[0.0, 1.0]])
    single = ensembles.best_of(scores, gold, how="single", coef=0, seed=0)
    assert (single["bon_score_at_1"], single["bon_score_at_2"]) == pytest.approx(((0.65 + 0.1) / 2, (1.0 + 0.2) / 2))
    assert (single["bon_first_at_1"], single["bon_first_at_2"]) == pytest.approx((0, 0.5))  # the second loses as much
    assert single["score_sd"] == pytest.approx((0.7 + 0.2) / 2 / 2**0.5)
    worst = ensembles.best_of(scores, gold, how="worst", coef=0, seed=0)
    assert worst["bon_score_at_2"] == pytest.approx(0.2) and "bon_first_at_2" not in worst


def test_the_correlation_of_members_is_that_of_scipy():
    scores = torch.randn(3, 4, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    rows = scores.reshape(3, 20).numpy()
    pairs = [stats.pearsonr(rows[a], rows[b]).statistic for a, b in ((0, 1), (0, 2), (1, 2))]
    assert ensembles.correlation(scores) == pytest.approx(sum(pairs) / 3)


def test_what_is_paid_and_how_far_members_differ_by_hand():
    def answers(gold: float) -> pd.DataFrame:
        columns = {"prompt": "p", "reply": ["a b", "c"], "finished": [True, False], "words": [2, 1], "gold": gold}
        return pd.DataFrame(columns).assign(**dict.fromkeys(chain.GOLD_PARTS, 0.0))

    class Everyone:
        def __call__(self, *, prompts, completions, finished):
            assert (prompts, completions, finished) == (["p", "p"], ["a b", "c"], [True, False])
            self.last = [[1.0, 0.0], [3.0, 1.0]]
            return [0.0, 0.0]

    points = {at: Measure.Point(answers(gold), at / 10, at) for at, gold in ((0, 1.0), (5, 1.5))}
    measure = SimpleNamespace(points=points, baseline=points[0], last=SimpleNamespace(answers=points[5].answers))
    found = ensembles.along_ppo(measure, Everyone(), 2, how="worst", coef=0)
    named = ("kl", "gold", "score", "paid", "disagreement", "words", "eos_rate", "win_rate")
    assert [found[f"ppo_{name}_at_5"] for name in named] == [5, 0.5, 0.5, 0.5, 0.75, 1.5, 0.5, 1]
    alone = ensembles.along_ppo(measure, Everyone(), 1, how="mean", coef=0)
    assert (alone["ppo_paid_at_0"], alone["ppo_disagreement_at_0"], alone["ppo_gold_at_0"]) == (0.5, 0.75, 0)


def test_members_share_their_labels_and_each_combination_pays_for_itself(monkeypatch):
    cfg, run = config(), SimpleNamespace(progress=lambda *told: None)
    shared = ensembles.Shared(cfg, run)
    learned, paid, began = [], [], chain.ppo_start
    train = chain.train_scorer

    def watch_training(settings, path, tokenizer, rankings, *rest):
        learned.append((settings.seed, [row["ranks"] for row in rankings]))
        return train(settings, path, tokenizer, rankings, *rest)

    def watch_ppo(*args, critic, reward, **rest):
        assert all(weight.requires_grad for weight in critic.parameters()), "the members are frozen, the critic learns"
        assert critic.model is not shared.members(0.0).scorers[0].model
        paid.append((reward.mode, len(reward.members)))
        return began(*args, critic=critic, reward=reward, **rest)

    monkeypatch.setattr(chain, "train_scorer", watch_training)
    monkeypatch.setattr(chain, "ppo_start", watch_ppo)
    names = ["flip_0_single", "flip_0_worst", "flip_0_uncertainty"]
    found = {name: ensembles.learn(name, shared, run) for name in names}
    assert paid == [("mean", 1), ("worst", 3), ("uncertainty", 3)]
    assert len(learned) == 3, "the members are trained once for all"
    shared.members(1.0)
    seeds, ranks = zip(*learned, strict=True)
    assert len({*seeds}) == 3 and seeds[:3] == seeds[3:]
    assert ranks[0] == ranks[1] == ranks[2]
    assert [[1 - rank for rank in row] for row in ranks[0]] == ranks[3] == ranks[4]
    heads = [scorer.head.weight for scorer in shared.members(0.0).scorers]
    assert not torch.equal(heads[0], heads[1])
    single, worst = found["flip_0_single"], found["flip_0_worst"]
    assert (single["members"], worst["members"]) == (1, 3)
    assert single["train_seconds"] == pytest.approx(worst["train_seconds"] / 3)
    assert {name for name in single if name.startswith("ppo_kl_at_")} == {f"ppo_kl_at_{u}" for u in (0, 2, 4)}
    assert single["ppo"] == pytest.approx(single["ppo_gold_at_4"]) and single["ppo_gold_at_0"] == 0
    assert abs(worst["ppo_kl_at_0"]) < 1e-4 < worst["kl"]
    assert single["ppo_paid_at_4"] == pytest.approx(single["ppo_score_at_4"], abs=1e-4)
    assert worst["ppo_paid_at_4"] < worst["ppo_score_at_4"] - 1e-3, "the mean is measured, the worst is paid"
    assert worst["seconds"] > worst["ppo_seconds"] > 0 and worst["flipped"] == 0 == 1 - shared.members(1.0).flipped
    units = {name: {0: figures} for name, figures in found.items()}
    assert len(kept.figure(units).axes) == 2
    assert kept.comparison_table(units).loc[("0", "worst"), "gold, PPO's end"] == f"{worst['ppo'] - single['ppo']:.2f}"


def test_the_scale_of_a_member_does_not_decide_who_is_the_worst():
    """Scores are brought to one scale before they are combined: a member of ten times the logits counts no more."""
    shared = ensembles.Shared(config(), SimpleNamespace(progress=lambda *told: None))
    scorers, before, *_ = shared.members(0.0)
    scorers[0].gain *= 10
    chain.normalise(scorers, shared.sft, shared)
    again = ensembles.score_pool(ensembles.ModelReward(scorers[0], shared.tokenizer), shared.replies)
    assert torch.allclose(again, before[0], atol=1e-4)


# ---- Over seeds


def made_up() -> kept.Units:
    units: kept.Units = {}
    for flip, gain in (("0.25", 2.0), ("0", 1.0)):
        for how, more in {"worst": [0.1, 0.3, 0.2, 0.2], "mean": [0.0, 0.1, -0.1, 0.3], "single": [0.0] * 4}.items():
            for seed in range(4):
                value = gain * more[seed] + seed
                curve = {f"bon_at_{n}": value for n in (1, 2, 16)} | {f"ppo_gold_at_{u}": value for u in (0, 10)}
                curve |= {f"ppo_kl_at_{u}": u + seed for u in (0, 10)}
                figures = {"bon": value, "ppo": -value, "accuracy_gold": 0.5, "members": 1.0, **curve}
                units.setdefault(f"flip_{flip}_{how}", {})[seed] = figures
    return units


def test_differences_to_the_single_model_are_paired_and_hold_all_at_once():
    units = made_up()
    assert list(kept.levels(units)) == ["0", "0.25"] and list(kept.levels(units)["0"]) == ["single", "mean", "worst"]
    table = kept.comparison_table(units)
    assert len(table) == 4
    oracle = stats.ttest_1samp([0.2, 0.6, 0.4, 0.4], 0).confidence_interval(1 - 0.05 / 4)
    assert table.loc[("0.25", "worst"), "gold, best of n"] == f"0.40 [{oracle.low:.2f}, {oracle.high:.2f}]"
    assert table.loc[("0.25", "worst"), "gold, PPO's end"] == f"-0.40 [{-oracle.high:.2f}, {-oracle.low:.2f}]"
    oracle = stats.ttest_1samp([0.2, 0.4, 0.6, -0.2], 0).confidence_interval(1 - 0.05 / 2)
    table = kept.comparison_table(units, "mean")
    assert len(table) == 2
    assert table.loc[("0.25", "worst"), "gold, best of n"] == f"0.25 [{oracle.low:.2f}, {oracle.high:.2f}]"
    oracle = stats.ttest_1samp([0.1, 0.3, 0.2, 0.2], 0).confidence_interval(1 - 0.05 / 2)  # twice the gain, less once
    assert kept.noise_table(units).loc["worst", "gold, best of n"] == f"0.20 [{oracle.low:.2f}, {oracle.high:.2f}]"
    n, gold = kept.along_n(units, "flip_0_single")
    assert n == [1, 2, 16] and gold.tolist() == [[0.0] * 3, [1.0] * 3, [2.0] * 3, [3.0] * 3]
    distance, gold = kept.along_ppo(units["flip_0_single"][3])
    assert distance.tolist() == [3**0.5, 13**0.5] and gold.tolist() == [3.0, 3.0]
    assert len(kept.figure(units).axes) == 4


def curve(*places: tuple[float, float]) -> kept.Figures:
    """A unit whose PPO was at these distances with these gains."""
    kl = {f"ppo_kl_at_{at}": distance**2 for at, (distance, _) in enumerate(places)}
    return kl | {f"ppo_gold_at_{at}": gold for at, (_, gold) in enumerate(places)}


def test_gold_at_equal_kl_by_hand():
    single = curve((0, 0), (1, 1), (2, 0), (4, -4))
    slow = curve((0, 0), (1.5, 1.5), (2.5, 0.5))
    # its places 1.5 and 2.5: 1.5 - 0.5 and 0.5 + 1; the places of the other it has passed, 1 and 2: 1 - 1 and 1 - 0
    assert kept.at_equal_kl(slow, single) == pytest.approx(((1 + 1.5 + 0 + 1) / 4, 1.5))
    assert kept.at_equal_kl(single, slow) == pytest.approx((-(1 + 1.5 + 0 + 1) / 4, -1.5))
    back = curve((0, 0), (2, 0), (1, 1))  # the same curve, gone back on
    assert kept.at_equal_kl(back, single) == pytest.approx((0, 0))


def test_the_terminal_shows_the_tables(tmp_path):
    key = {"study": "ensembles", "common": "c", "own": "o", "models": "m"}
    lines = [key | {"unit": u, "seed": s, "figures": f} for u, seeds in made_up().items() for s, f in seeds.items()]
    (tmp_path / "all.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    shown = as_text(tmp_path / "all.jsonl")
    assert "less the single model" in shown and "0.40 [" in shown and "seeds [0, 1, 2, 3]" in shown


def test_other_settings_stand_apart(tmp_path):
    file = tmp_path / "all.jsonl"
    run = SimpleNamespace(file=tmp_path.joinpath, log=lambda row, step: None, rewind=lambda step: None)

    def finished(**changes) -> Finished:
        cfg = config(results=str(file), **changes)
        return Finished(SimpleNamespace(cfg=cfg, models="m"), run, ensembles.own_settings(cfg), lists=ensembles.LISTS)

    for unit in ("flip_0_single", "flip_0_uncertainty"):
        finished().add(unit, {"bon": 1.0})
    fewer = finished(uncertainty_coef=2.0, flips=[0.0], combinations=["single", "uncertainty"])
    assert fewer.find("flip_0_single") and not fewer.find("flip_0_uncertainty"), "its coefficient is its own"
    others = [{"seed": 1}, {"comparisons": 9}, {"members": 2}, {"ppo": SMALL["ppo"] | {"kl_coef": 0.1}}]
    assert [finished(**other).find("flip_0_single") for other in others] == [None] * 4
    file.write_text("{broken\n" + file.read_text())
    with pytest.raises(LabError, match="line 1 is broken"):
        finished().find("flip_0_single")
