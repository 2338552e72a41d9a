"""10_overoptimisation: peaks, fits and paired differences by hand; each unit at the smallest size, and only once."""

import json
import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from rlhf_lab.errors import LabError
from rlhf_lab.maths import best_of_n_kl
from rlhf_lab.sandbox.world import World
from rlhf_lab.workbench.reference import as_text
from rlhf_lab.workbench.stages import OverOptimisationStage
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
    return curve | {"final_gain": float(gold[-1])} | more


def of_gao(offsets=(0.0, 0.1, -0.1)):
    """Three seeds, whose alpha differs by the offsets, drawn from the forms: best-of-n its own, PPO its own."""
    units = {}
    for unit, (alpha, beta) in BON.items():
        units[unit] = {
            100 + i: made_up(DISTANCES, DISTANCES * (alpha + o - beta * DISTANCES)) for i, o in enumerate(offsets)
        }
    d = np.array([0.0, 1.0, 2.0, 4.0, 6.0])
    gold = [d * (0.5 + o - 0.3 * np.log(d.clip(1e-9))) for o in offsets]
    units["default/ppo_30"] = {100 + i: made_up(d, g) for i, g in enumerate(gold)}
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
    ],
)
def test_settings_that_do_not_fit_are_named(settings, message):
    with pytest.raises(LabError, match=message):
        OverOptimisationStage.parse(settings)


# ---- The statistics by hand


def test_the_peak_is_chosen_on_one_half_of_the_prompts_and_the_fall_is_measured_on_the_other():
    gold = torch.tensor([[1.0, 4.0, 3.0], [1.0, 2.0, 1.0], [0.0, 1.0, 5.0], [0.0, 2.0, 1.0]])
    found = study.curve_figures([1, 2, 4], [0.0, 0.25, 1.0], torch.tensor([0.5, 1.0, 2.0]), gold)
    # First half: gains 0, 2, 1 -> the peak is at 2, KL 0.25. Second half: gains 0, 1.5, 3, so that nothing falls there.
    assert (found["peak_at"], found["peak_distance"], found["peak_gain"]) == (2, 0.5, 1.5)
    assert found["final_less_peak"] == 1.5 and found["final_gain"] == 2.0  # all: (2 + 0 + 5 + 1) / 4
    assert [found[f"gold_at_{n}"] for n in (1, 2, 4)] == [0, 1.75, 2.0]
    assert [found[f"score_at_{n}"] for n in (1, 2, 4)] == [0, 0.5, 1.5] and found["final_score"] == 1.5


def test_each_form_is_found_again_in_its_own_data_over_seeds():
    table = kept.fit_table(of_gao())
    own = table.loc["default", "bon", 30, "best_of_n"]
    # alpha .8, .9, .7: mean .8, standard error .1 / sqrt 3, t(2, .975) = 4.3027
    assert own["alpha"] == "0.80 [0.55, 1.05]" and own["beta"] == "0.400 [0.400, 0.400]"
    assert own["R squared"] == "1.00" and own["peak, sqrt(KL)"] == "1.00"  # .8 / (2 * .4)
    rl = table.loc["default", "ppo", 30, "rl"]
    assert rl["alpha"] == "0.50 [0.25, 0.75]" and rl["R squared"] == "1.00"
    assert rl["peak, sqrt(KL)"] == f"{math.exp(0.5 / 0.3 - 1):.2f}"
    assert float(table.loc["default", "ppo", 30, "best_of_n"]["R squared"]) < 0.95


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
    other = line("default/bon_30", 100, made_up(DISTANCES, DISTANCES * 9), common="other")
    file.write_text(other + "".join(lines))
    assert kept.recorded(file).left_out == 1
    text = as_text(file)
    assert "0.80 [0.55, 1.05]" in text and "1000 less 30" in text and "seeds [100, 101, 102]" in text
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
