"""10_overoptimisation: peaks, fits and paired differences by hand; each unit at the smallest size, and only once."""

import json
import math
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from matplotlib.image import imread
from scipy import stats

from rlhf_lab.cli import main
from rlhf_lab.errors import LabError
from rlhf_lab.maths import best_of_n_kl
from rlhf_lab.sandbox.world import World
from rlhf_lab.workbench.evaluation import Measure
from rlhf_lab.workbench.reference import as_text
from rlhf_lab.workbench.stages import OverOptimisationStage
from rlhf_lab.workbench.studies import chain
from rlhf_lab.workbench.studies import overoptimisation as study
from rlhf_lab.workbench.studies import overoptimisation_figures as figures
from rlhf_lab.workbench.studies import overoptimisation_results as kept
from rlhf_lab.workbench.studies.ground import Ground

TINY = {
    "comparisons": {6: 1, 8: 1},
    "best_of_n": {"default": [8], "misspecified": [8]},
    "ppo_against": {"misspecified": [8]},
    "n_heldout": 8,
    "pool_size": 8,
    "eval_prompts": 8,
    "max_new_tokens": 16,
    "ppo": {"updates": 2, "batch_size": 8},
    "measure_every": 1,
}
BON = {"default/bon_30": (0.8, 0.4), "default/bon_1000": (0.8, 0.1)}
DISTANCES = np.array([0.0, 0.5, 1.0, 1.5, 2.0])


class Quiet(SimpleNamespace):
    """A run that only remembers."""

    def __init__(self, folder):
        super().__init__(file=folder.joinpath, progress=lambda *told: None, rewind=lambda step: None, logged=[])

    def log(self, metrics, step):
        self.logged.append((step, metrics))


def made_up(distance: np.ndarray, gold: np.ndarray, **more: float) -> dict[str, float]:
    """Figures of a unit with these curves."""
    rows = {"kl": distance**2, "score": distance, "gold": gold}
    curve = {f"{name}_at_{i}": float(v) for name, values in rows.items() for i, v in enumerate(values)}
    ends = {"final_gain": float(gold[-1]), "final_less_peak": float(gold[-1] - gold.max())}
    return curve | ends | more | {"final_gain": float(gold[-1])} | more


def of_gao(offsets=(0.0, 0.1, -0.1)):
    """Three seeds, whose alpha differs by the offsets, drawn from the forms: best-of-n its own, PPO its own."""
    units = {}
    for unit, (alpha, beta) in BON.items():
        units[unit] = {
            110 + 10 * i: made_up(DISTANCES, DISTANCES * (alpha + o - beta * DISTANCES)) for i, o in enumerate(offsets)
        }
    d = np.array([0.0, 1.0, 2.0, 4.0, 6.0])
    gold = [d * (0.5 + o - 0.3 * np.log(d.clip(1e-9))) for o in offsets]
    units["default/ppo_30"] = {110 + 10 * i: made_up(d, g) for i, g in enumerate(gold)}
    return units


# ---- The settings


def test_a_name_says_what_a_unit_is():
    names = study.unit_names(OverOptimisationStage.parse(TINY))
    assert names == ["default/bon_8", "misspecified/bon_8", "misspecified/ppo_8"]
    assert study.parts(names[2]) == ("misspecified", "ppo", 8)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"best_of_n": {"default": [31]}}, "best_of_n.default has 31"),
        ({"ppo_against": {"default": [0]}}, "ppo_against.default"),
        ({"ppo": {"seed": 3}}, "ppo.seed"),
        ({"reward_model": {"precision": "bf16"}}, "reward_model.precision"),
        ({"reward_model": {"epochs": 3}}, "reward_model.epochs is what 'comparisons' say"),
        ({"reward_model": {"loss": "best_of_k"}}, "for 'pairwise'"),
    ],
)
def test_settings_that_do_not_fit_are_named(settings, message):
    with pytest.raises(LabError, match=message):
        OverOptimisationStage.parse(settings)


# ---- The statistics by hand


def test_each_half_of_the_prompts_chooses_the_peak_that_the_other_one_measures():
    gold = torch.tensor([[1.0, 4.0, 3.0], [1.0, 2.0, 1.0], [0.0, 1.0, 5.0], [0.0, 2.0, 1.0]])
    found = study.curve_figures([1, 2, 4], [0.0, 0.25, 1.0], torch.tensor([0.5, 1.0, 2.0]), gold)
    # First half: gains 0, 2, 1. Second half: gains 0, 1.5, 3. The first chooses 2, at KL .25, where the second has 1.5
    # and then gains 1.5 more; the second chooses 4, at KL 1 and the end, where the first has 1.
    assert (found["peak_distance"], found["peak_gain"], found["final_less_peak"]) == (0.75, 1.25, 0.75)
    assert [found[f"gold_first_at_{n}"] for n in (1, 2, 4)] == [0, 2, 1]
    assert [found[f"gold_second_at_{n}"] for n in (1, 2, 4)] == [0, 1.5, 3]
    assert [found[f"gold_at_{n}"] for n in (1, 2, 4)] == [0, 1.75, 2.0] and found["final_gain"] == 2.0
    assert [found[f"score_at_{n}"] for n in (1, 2, 4)] == [0, 0.5, 1.5] and found["final_score"] == 1.5


def test_a_reward_model_is_compared_with_labels_and_with_gold(monkeypatch):
    monkeypatch.setattr(chain, "ModelReward", lambda reward, *_: reward)
    worth = {"aa": 1.0, "b": 0.0, "c": 0.0, "dd": 1.0, "eee": 0.0, "f": 1.0, "g": 1.0, "h": 0.0}
    world = SimpleNamespace(gold=lambda prompts, completions, **_: [worth[reply] for reply in completions])
    pairs = [(["aa", "b"], [0, 1]), (["c", "dd"], [0, 1]), (["eee", "f"], [1, 0]), (["g", "h"], [0, 1])]
    rows = [{"prompt": "p", "completions": two, "ranks": ranks, "finished": [True, True]} for two, ranks in pairs]
    by_length = lambda prompts, completions, **_: [float(len(reply)) for reply in completions]
    found = chain.accuracies(by_length, SimpleNamespace(world=world, tokenizer=None), rows)
    # The longer reply is the first, the second, the first, and none; a tie counts a half.
    assert found == {"accuracy": (1 + 0 + 0 + 0.5) / 4, "accuracy_gold": (1 + 1 + 0 + 0.5) / 4}


def test_how_a_policy_answers_is_told_at_each_measurement():
    def point(gold: list[float], words: list[int], finished: list[bool]) -> Measure.Point:
        answers = pd.DataFrame({"gold": gold, "words": words, "finished": finished})
        return Measure.Point(answers.assign(**dict.fromkeys(chain.GOLD_PARTS, gold[0])), 0.0, 0.0)

    points = {0: point([1.0, 2.0], [4, 6], [True, True]), 3: point([2.0, 2.0], [1, 2], [True, False])}
    found = chain.reply_figures(SimpleNamespace(points=points, baseline=points[0], last=points[3]))
    assert [found[f"words_at_{at}"] for at in points] == [5, 1.5] and found["eos_rate_at_3"] == 0.5
    assert [found[f"win_rate_at_{at}"] for at in points] == [0.5, 0.75]  # better on one prompt, equal on the other
    assert (found["honest_first"], found["honest_last"]) == (1, 2)


def test_falls_hold_all_at_once_and_a_peak_at_the_end_is_told():
    table = kept.unit_table(of_gao())
    # bon_30: .4, .5 and .3 are the highest, at 1, and 0, .2 and -.2 the last
    oracle = stats.ttest_1samp([-0.4, -0.3, -0.5], 0).confidence_interval(1 - 0.05 / 3)
    row = table.loc["default", "bon", 30]
    assert (
        row["final_less_peak"] == f"-0.40 [{oracle.low:.2f}, {oracle.high:.2f}]" and row["peak at the end"] == "0 of 3"
    )
    assert table.loc["default", "bon", 1000]["peak at the end"] == "3 of 3"


def test_each_form_is_found_again_in_its_own_data_over_seeds():
    table = kept.fit_table(of_gao())
    own = table.loc["default", "bon", 30, "best_of_n"]
    # alpha .8, .9, .7: mean .8, standard error .1 / sqrt 3, t(2, .975) = 4.3027
    assert own["alpha"] == "0.80 [0.55, 1.05]" and own["beta"] == "0.400 [0.400, 0.400]"
    assert (
        own["R squared"] == "1.00 [1.00, 1.00]" and own["of the mean"] == "1.00" and own["peak, sqrt(KL)"] == "1.00"
    )  # .8 / (2 * .4)
    rl = table.loc["default", "ppo", 30, "rl"]
    assert rl["alpha"] == "0.50 [0.25, 0.75]" and rl["R squared"] == "1.00 [1.00, 1.00]"
    assert rl["peak, sqrt(KL)"] == f"{math.exp(0.5 / 0.3 - 1):.2f}"
    d, worse = np.array([1.0, 2.0, 4.0, 6.0]), []
    for alpha in (0.5, 0.6, 0.4):
        gold = d * (alpha - 0.3 * np.log(d))
        residuals = np.linalg.lstsq(np.stack([d, d**2], 1), gold)[1]
        worse.append(float(residuals[0] / ((gold - gold.mean()) ** 2).sum()))  # 1 - R squared of the other form
    oracle = stats.ttest_1samp(worse, 0).confidence_interval(1 - 0.05 / 3)
    assert rl["less the other's"] == f"{np.mean(worse):.2f} [{oracle.low:.2f}, {oracle.high:.2f}]"
    assert table.loc["default", "ppo", 30, "best_of_n"]["less the other's"] == ""


def test_more_data_against_less_is_paired_by_seed():
    table = kept.data_table(of_gao())
    row = table.loc["default", "bon", "1000 less 30"]
    # Every seed gains 4 * (.4 - .1) at d = 2, whatever its alpha
    assert row["final_gain"] == "1.20 [1.20, 1.20]" and row["beta"] == "-0.30 [-0.30, -0.30]"
    assert row["accuracy"] == "" and len(table) == 1


def test_the_kl_that_each_way_spends_for_the_same_gold():
    bon = made_up(np.array([0.0, 1.0, 2.0]), np.array([0.0, 0.6, 0.8]))
    ppo = made_up(np.array([0.0, 1.0, 3.0]), np.array([0.0, 0.2, 0.6]))
    low = made_up(np.array([0.0, 1.0, 3.0]), np.array([0.0, 0.2, 0.3]))
    table = kept.way_table({"default/bon_30": {0: bon, 1: bon}, "default/ppo_30": {0: ppo, 1: low}})
    row = table.loc["default", 30]
    # Half of .8 is .4: best-of-n has it at d = 2/3, KL .44, PPO half way from 1 to 3, KL 4. Seed 1 never gets there.
    assert (row["best of n"], row["PPO"], row["PPO less best of n"], row["seeds"]) == ("0.44", "4.00", "3.56", "1 of 2")
    late = made_up(np.array([0.0, 1.0, 4.0]), np.array([0.0, 0.2, 0.6]))  # half way from 1 to 4, KL 6.25
    two = {"default/bon_125": {0: bon, 1: bon}, "default/ppo_125": {0: ppo, 1: late}}
    both = kept.way_table({"default/bon_30": {0: bon}, "default/ppo_30": {0: ppo}} | two)
    oracle = stats.ttest_1samp([4 - 4 / 9, 6.25 - 4 / 9], 0).confidence_interval(1 - 0.05 / 2)
    assert both.loc["default", 125]["PPO less best of n"] == f"4.68 [{oracle.low:.2f}, {oracle.high:.2f}]"


def test_curves_too_short_to_fit_are_left_out():
    short = {"default/bon_8": {0: made_up(np.array([0.0, 0.5, 1.0]), np.array([0.0, 1.0, 2.0]))}}
    assert kept.fit_table(short).empty and kept.data_table(short).empty and kept.way_table(short).empty
    assert len(figures.fit_figure(short).axes) == 1


def test_the_figures_have_a_panel_for_each_way_and_world():
    units = of_gao()
    assert len(figures.figure(units).axes) == 2 and len(figures.fit_figure(units).axes) == 2
    assert len(figures.figure(units | {"near_linear/bon_30": units["default/bon_30"]}).axes) == 4


# ---- The file of results


def line(unit: str, seed: int, found: dict[str, float], common: str = "c") -> str:
    key = {"unit": unit, "seed": seed, "common": common, "own": "o", "models": "m", "study": "overoptimisation"}
    return json.dumps(key | {"figures": found}) + "\n"


def test_summarise_shows_the_tables_and_leaves_other_settings_apart(tmp_path):
    file = tmp_path / "r.jsonl"
    units = of_gao()
    lines = [line(unit, seed, found) for unit, seeds in units.items() for seed, found in seeds.items()]
    other = line("default/bon_30", 110, made_up(DISTANCES, DISTANCES * 9), common="other")
    file.write_text(other + "".join(lines))
    assert kept.recorded(file).left_out == 1
    text = as_text(file)
    assert "0.80 [0.55, 1.05]" in text and "1000 less 30" in text and "seeds [110, 120, 130]" in text
    assert main(["summarise", str(file), "--figure", str(tmp_path / "drawn.png")]) == 0
    assert imread(tmp_path / "drawn.png").std() > 0.01, "not blank"
    file.write_text(lines[0] + '{"unit": "def\n' + lines[1])
    with pytest.raises(LabError, match="line 2 is broken"):
        as_text(file)


@pytest.mark.slow
def test_each_unit_runs_once_and_is_read_again(tmp_path, capsys, monkeypatch):
    cfg = OverOptimisationStage.parse(TINY | {"policy": World.load().base_model, "results": str(tmp_path / "r.jsonl")})
    ground = Ground(cfg, cfg.n_train)
    finished, proxies = study.Finished(ground, Quiet(tmp_path)), study.Proxies(ground, Quiet(tmp_path))
    found = {name: finished.add(name, study.unit(name, proxies)) for name in study.unit_names(cfg)}

    bon, ppo = found["misspecified/bon_8"], found["misspecified/ppo_8"]
    assert [bon[f"kl_at_{n}"] for n in (1, 2, 4, 8)] == pytest.approx([best_of_n_kl(n) for n in (1, 2, 4, 8)])
    assert all(bon[f"tied_kl_at_{n}"] <= bon[f"kl_at_{n}"] + 1e-9 for n in (1, 2, 4, 8))
    scores = [bon[f"score_at_{n}"] for n in (1, 2, 4, 8)]
    assert scores == sorted(scores) and scores[-1] > 0 == bon["gold_at_1"]
    words = [len(reply.split()) for row in proxies.pool.replies for reply in row]
    assert bon["words_at_1"] == pytest.approx(np.mean(words)) and ppo["words_at_0"] > 0
    assert bon["comparisons"] == len(proxies.learned_from("misspecified", 8)) <= 8 and ppo["seconds"] > 0
    assert 0 <= bon["accuracy_gold"] <= 1 and ppo["reward_gain"] == pytest.approx(bon["reward_gain"])
    assert [ppo[f"{what}_at_0"] for what in ("kl", "score", "gold")] == [0, 0, 0] and ppo["kl_at_2"] != 0
    assert bon["gold_at_8"] != found["default/bon_8"]["gold_at_8"], "another world, another gold"

    monkeypatch.setattr(study, "unit", None)
    more = cfg.model_copy(update={"best_of_n": {"default": [6, 8]}, "ppo_against": {"misspecified": [8]}})
    again = study.Finished(Ground(more, more.n_train), Quiet(tmp_path))
    assert again.find("default/bon_8") == found["default/bon_8"] and again.find("misspecified/ppo_8") == ppo
    assert again.find("default/bon_6") is None and "finished before" in capsys.readouterr().out
    other = cfg.model_copy(update={"ppo": cfg.ppo.model_copy(update={"lr": 1e-5})})
    changed = study.Finished(Ground(other, other.n_train), Quiet(tmp_path))
    assert changed.find("misspecified/ppo_8") is None and changed.find("misspecified/bon_8") is not None
    assert "final_gain_misspecified_ppo_8" in kept.results(finished.units)
    assert json.loads((tmp_path / "r.jsonl").read_text().splitlines()[0])["study"] == "overoptimisation"
