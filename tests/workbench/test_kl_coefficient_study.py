"""11_kl_coefficient: how k3 pulls, gaps at equal KL and the choice of the best coefficient by hand, a tiny run."""

import json
import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from scipy import stats

from rlhf_lab.errors import LabError
from rlhf_lab.sandbox.world import World
from rlhf_lab.workbench.stages import KLCoefficientStage
from rlhf_lab.workbench.studies import kl_coefficient as study
from rlhf_lab.workbench.studies import kl_coefficient_results as kept
from rlhf_lab.workbench.studies.ground import Finished
from rlhf_lab.workbench.studies.kl_coefficient_figures import figure
from rlhf_lab.workbench.studies.one_reward import OneReward

SMALL = {
    "policy": World.load().base_model,
    "comparisons": 8,
    "coefficients": [0.0, 0.5],
    "targets": [0.01],
    "k3": [0.5],
    "measurements": 2,
    "n_heldout": 8,
    "eval_prompts": 8,
    "max_new_tokens": 8,
    "reward_model": {"epochs": 1},
    "ppo": {"updates": 2, "batch_size": 8, "minibatches": 1, "epochs": 1, "lr": 1e-3, "kl_horizon": 8},
}


def config(**changes) -> KLCoefficientStage:
    return KLCoefficientStage.parse(SMALL | changes, "test.yaml")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"coefficients": [0.1, 0.5]}, "begin with 0"),
        ({"coefficients": [0.0, 0.5, 0.2]}, "ascend"),
        ({"coefficients": [0.0, 0.5, 0.5]}, "ascend"),
        ({"measurements": 3}, "no multiple"),
        ({"ppo": SMALL["ppo"] | {"seed": 1}}, "ppo.seed"),
        ({"reward_model": {"loss": "best_of_k"}}, "pairwise"),
    ],
)
def test_settings_that_make_no_sense_are_refused_by_name(settings, message):
    with pytest.raises(LabError, match=message) as told:
        config(**settings)
    assert "\n" not in str(told.value)


def test_as_a_reward_k3_pulls_by_the_difference_of_the_two_directions():
    p, q = torch.tensor([0.85, 0.1, 0.05]).double(), torch.tensor([0.4, 0.3, 0.3]).double()
    found = study.pulls(p, q)
    kl = (p * (p / q).log()).sum()
    forward, backward = (
        -p * ((p / q).log() - kl),
        q - p,
    )  # minus the gradients on the logits, by the softmax's derivative
    torch.testing.assert_close(found["KL(pi, ref)"], forward)
    torch.testing.assert_close(found["KL(ref, pi)"], backward)
    torch.testing.assert_close(found["k1"], forward)
    torch.testing.assert_close(found["k3"], forward - backward)
    near = study.pulls(q + torch.tensor([0.01, -0.01, 0.0]).double(), q)
    assert near["k3"].abs().max() < 0.05 * near["k1"].abs().max(), "it holds nothing near the reference"
    assert found["k1"][0] < 0 < found["k3"][0], "and far off it pushes on"


# ---- Gaps at equal KL


def run_of(kl: list[float], gold: list[float], **more: float) -> kept.Figures:
    points = zip((0, 10, 20, 30), kl, gold, strict=False)
    found = {name: v for at, k, g in points for name, v in ((f"kl_at_{at}", k), (f"gold_at_{at}", g))}
    scores = {name.replace("gold", "score"): 2 * value for name, value in found.items() if "gold" in name}
    return found | scores | {"gold": gold[-1], "score": 2 * gold[-1], "kl": kl[-1], "gold_sft": gold[0]} | more


def test_gaps_are_read_off_the_run_without_a_penalty_at_the_same_distance():
    without = run_of([0.0, 1.0, 4.0], [0.0, 1.0, 0.0])  # at distances 0, 1 and 2
    ours = run_of([0.0, 0.25, 2.25, 9.0], [0.0, 0.8, 0.9, 5.0])  # at 0, .5, 1.5 and, beyond its end, 3
    gaps = kept.gaps_at_equal_kl(ours, without, "gold")
    assert gaps[:2].tolist() == pytest.approx([0.3, 0.4]) and math.isnan(gaps[2])
    assert kept.gaps_at_equal_kl(ours, without, "score")[:2].tolist() == pytest.approx([0.6, 0.8])
    back = run_of([0.0, 4.0, 1.0], [0.0, 0.0, 1.0])  # it came back: its curve goes by the KL, not by time
    assert kept.gaps_at_equal_kl(ours, back, "gold")[:2].tolist() == pytest.approx([0.3, 0.4])
    assert kept.gaps_at_equal_kl(run_of([0.0, -0.1], [0.0, 0.2]), without, "gold").tolist() == pytest.approx([0.2])
    assert kept.gaps_at_equal_kl(without, without, "gold").tolist() == [0.0, 0.0]


def made_up() -> kept.Units:
    """Three seeds; 0.1 is the best by 1 in gold, but seed 0 had luck with 2 on the prompts that choose."""
    units: kept.Units = {}
    ends = {"kl_0": 0.0, "kl_0.1": 1.0, "kl_2": 0.5, "again_0": 0.1, "k3_2": -1.0, "ziegler_3": 0.7}
    for seed, noise in enumerate([0.0, 0.3, -0.1]):
        for unit, end in ends.items():
            gold = end + noise * (unit == "kl_0.1")
            lucky = 9.0 if (unit, seed) == ("kl_2", 0) else gold
            figures = run_of([0.0, 4.0 if unit == "kl_0" else 1.0], [0.0, gold], gold_chooses=lucky, gold_tests=gold)
            units.setdefault(unit, {})[seed] = figures
        # Stopped at once the run without a penalty is better by .1, but seed 2 had luck with stopping later.
        halves = {
            "chooses_at_0": 0.1,
            "chooses_at_10": 9.0 if seed == 2 else 0.0,
            "tests_at_0": 0.2,
            "tests_at_10": -0.3,
        }
        units["kl_0"][seed] |= {f"gold_{name}": value for name, value in halves.items()}
    return units


def test_no_run_chooses_itself():
    best = kept.best_inside(made_up())
    assert best.chosen == {0: 0.1, 1: 2.0, 2: 2.0}  # seed 0 is chosen for by 1 and 2, these by the lucky one as well
    assert best.less["kl_0"] == pytest.approx([1.0, 0.5, 0.5]) and best.less["kl_2"] == pytest.approx([0.5, 0.0, 0.0])
    assert best.stopped == {0: 10, 1: 10, 2: 0} and best.less["kl_0, stopped"] == pytest.approx([1.3, 0.8, 0.3])
    oracle = stats.ttest_1samp([1.0, 0.5, 0.5], 0).confidence_interval(1 - 0.05 / 3)
    row = kept.inverted_u_table(made_up()).loc["less kl_0"]
    assert row["gold"] == f"0.67 [{oracle.low:.2f}, {oracle.high:.2f}]" and row["chosen"] == "0.1, 2"
    assert list(kept.inverted_u_table(made_up())["stopped after"]) == ["", "", "0, 10"]
    alone = {unit: {0: seeds[0]} for unit, seeds in made_up().items()}
    assert kept.best_inside(alone).chosen == {0: 2.0}  # with one seed its other half of the prompts chooses


def test_tables_say_what_is_known_and_how_surely():
    units = made_up()
    assert list(kept.table(units).index) == ["kl_0", "kl_0.1", "kl_2", "again_0", "ziegler_3", "k3_2"]
    table = kept.early_stopping_table(units)
    assert list(table.index) == ["kl_0.1", "kl_2", "ziegler_3", "again_0"]
    gaps = [1.0, 1.3, 0.9]  # the run without a penalty has gold 0 all the way
    oracle = stats.ttest_1samp(gaps, 0).confidence_interval(1 - 0.05 / 4)
    assert table.loc["kl_0.1", "gold, at the end"] == f"{np.mean(gaps):.2f} [{oracle.low:.2f}, {oracle.high:.2f}]"
    assert table.loc["again_0", "gold, on the way"] == "0.10 [0.10, 0.10]"
    assert table.loc["kl_0.1", "kl_0 after"] == "5"  # half way to distance 2, which it reached after 10 updates
    further = {seed: figures | {"kl_at_10": 5.0} for seed, figures in units["kl_2"].items()}
    assert kept.early_stopping_table(units | {"kl_2": further}).loc["kl_2", "gold, at the end"] == ""
    assert kept.k3_table(units).loc["k3_2", "gold less k1"] == "-1.50 [-1.50, -1.50]"
    assert kept.k3_table(units).loc["k3_2", "kl less none"] == "-3.00 [-3.00, -3.00]"
    assert len(figure(units).axes) == 3


# ---- A run


def quiet(folder) -> SimpleNamespace:
    nothing = lambda *told, **more: None
    return SimpleNamespace(file=folder.joinpath, progress=nothing, log=nothing, rewind=nothing)


def test_every_unit_holds_the_kl_by_its_own_settings_and_is_measured_alike(tmp_path):
    ground = OneReward(config(), quiet(tmp_path))
    units = study.units_of(ground.cfg)
    assert list(units) == ["kl_0", "kl_0.5", "again_0", "ziegler_0.01", "k3_0.5"]
    found = {name: study.unit(name, ground) for name in units}
    for figures in found.values():
        assert {name for name in figures if name.startswith("kl_at_")} == {"kl_at_0", "kl_at_1", "kl_at_2"}
        assert figures["kl_at_0"] == pytest.approx(0, abs=1e-5) and figures["kl"] == figures["kl_at_2"] != 0
        halves = (figures["gold_chooses"] + figures["gold_tests"]) / 2
        assert figures["gold"] == figures["gold_at_2"] == pytest.approx(halves)
        assert figures["gold_at_0"] == figures["gold_sft"] == found["kl_0"]["gold_sft"]
        assert figures["gold_chooses"] == figures["gold_chooses_at_2"] and figures["words"] == figures["words_at_2"]
    coefficients = {name: figures["kl_coef"] for name, figures in found.items()}
    assert [coefficients[name] for name in ("kl_0", "again_0", "kl_0.5", "k3_0.5")] == [0, 0, 0.5, 0.5]
    # batch 8, horizon 8: at first the KL is 0, far below the target, later far above it
    assert coefficients["ziegler_0.01"] == found["ziegler_0.01"]["kl_coef_at_2"] == pytest.approx(0.05 * 0.8 * 1.2)
    assert found["kl_0.5"]["kl"] != found["k3_0.5"]["kl"]
    assert found["again_0"]["kl"] != found["kl_0"]["kl"] and {"accuracy", "reward_gain"} <= {*found["kl_0"]}
    once = OneReward(config(measurements=1), quiet(tmp_path))
    again = study.unit("kl_0.5", once)  # whatever came before it, and however often it is measured
    assert not {"kl_at_1", "accuracy"} & {*again} and "kl_at_1" in study.unit("kl_0", once)
    assert all(found["kl_0.5"][name] == value for name, value in again.items() if name != "seconds")
    one = {name: {0: figures} for name, figures in found.items()}
    assert kept.inverted_u_table(one).notna().all(axis=None) and len(figure(one).axes) == 3
    assert kept.results(one)["kl_kl_0.5"] == found["kl_0.5"]["kl"]


def test_more_coefficients_leave_the_finished_ones_as_they_are_and_other_settings_do_not(tmp_path):
    file = tmp_path / "all.jsonl"

    def finished(**changes) -> Finished:
        cfg = config(results=str(file), **changes)
        ground = SimpleNamespace(cfg=cfg, models="m")
        return Finished(ground, quiet(tmp_path), study.units_of(cfg), lists=study.LISTS)

    finished().add("kl_0.5", {"gold": 1.0})
    assert json.loads(file.read_text())["study"] == "kl_coefficient"
    assert finished(coefficients=[0.0, 0.5, 1.0], targets=[], k3=[]).find("kl_0.5") == {"gold": 1.0}
    others = [{"seed": 1}, {"comparisons": 9}, {"measurements": 1}, {"ppo": SMALL["ppo"] | {"lam": 1.0}}]
    assert [finished(**other).find("kl_0.5") for other in others] == [None] * 4
    assert kept.recorded(file).units == {"kl_0.5": {0: {"gold": 1.0}}}
    file.write_text("{broken\n" + file.read_text())
    with pytest.raises(LabError, match="line 1 is broken"):
        kept.recorded(file)
