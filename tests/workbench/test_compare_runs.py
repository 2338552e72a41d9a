"""Which runs are meant, what differs between them, and what their numbers say. The numbers are planted."""

import json
import shutil

import pandas as pd
import pytest
import yaml
from compared_runs import make_run, sweep
from scipy import stats

from rlhf_lab.errors import LabError
from rlhf_lab.workbench.comparing.effects import effects, flat_results, known, result_names
from rlhf_lab.workbench.comparing.find import find_runs, newest
from rlhf_lab.workbench.comparing.reading import from_wandb, read_run
from rlhf_lab.workbench.comparing.samples import side_by_side
from rlhf_lab.workbench.comparing.settings import ABSENT, differing
from rlhf_lab.workbench.comparing.table import effect_table, effect_words, run_table, settings_table, variant_table
from rlhf_lab.workbench.comparing.variants import compare
from rlhf_lab.workbench.comparing.wandb_files import WandbRun
from rlhf_lab.workbench.report.figures import plain_numbers


@pytest.fixture(scope="module")
def planted(tmp_path_factory):
    """A folder with `runs/kl`, made once."""
    folder = tmp_path_factory.mktemp("planted")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setenv("RLHF_LAB_HEADLESS", "1")
        patch.delenv("RLHF_LAB_RUNS", raising=False)
        sweep()
    return folder


@pytest.fixture
def here(planted, monkeypatch):
    """In the folder of the planted runs, which are only read."""
    monkeypatch.chdir(planted)
    monkeypatch.delenv("RLHF_LAB_RUNS", raising=False)
    return planted


@pytest.fixture
def empty(tmp_path, monkeypatch):
    """In a folder without runs."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("RLHF_LAB_HEADLESS", "1")
    monkeypatch.delenv("RLHF_LAB_RUNS", raising=False)
    return tmp_path


def compared(*names, **options):
    found = find_runs(names)
    return compare(found.runs, found.notes, **options)


# ------------------------------------------------------------------------------------------------ which runs


@pytest.mark.parametrize(
    ("name", "count"),
    [
        ("kl", 7),  # an experiment: its last stage
        ("kl/ppo", 7),
        ("kl/sft", 4),
        ("runs/kl/sft/s1", 1),
        ("kl/sft/s1", 1),
        ("s1", 1),
        ("kl0.2-s4", 1),
        ("kl/ppo/kl0.2*", 3),
        ("*/sft", 4),
        ("week 47", 3),
        ("tag:week 47", 3),
        ("group:kl", 11),
        ("runs", 11),  # a folder above: all of it
    ],
)
def test_a_name_means(here, name, count):
    assert len(find_runs([name]).runs) == count


def test_runs_named_twice_are_taken_once_and_an_experiment_tells_which_stage_it_took(here):
    found = find_runs(["kl", "kl/ppo", "kl0.2-s4"])
    assert len(found.runs) == 7
    assert found.notes == ["kl: of its stages the last, ppo (others: sft; name kl/STAGE)"]


@pytest.mark.parametrize(
    ("names", "line"),
    [
        (["kll"], r"kll: no run, experiment, group or tag of this name \(did you mean 'kl'\?\).*kl, tag:week 47"),
        (["kl/ppo/x*"], "no run"),
        (["tag:kl"], "no run"),
        ([], "no run was named"),
    ],
)
def test_a_name_that_means_nothing(here, names, line):
    with pytest.raises(LabError, match=line):
        find_runs(names)


def test_a_broken_run_is_left_out_by_name_and_the_rest_is_compared(here, tmp_path, monkeypatch):
    shutil.copytree(here / "runs", tmp_path / "runs")
    monkeypatch.chdir(tmp_path)
    ppo = tmp_path / "runs" / "kl" / "ppo"
    (ppo / "kl0.1-s1" / "config.yaml").write_text("config: [")
    (ppo / "kl0.1-s2" / "config.yaml").unlink()
    (ppo / "kl0.1-s3" / "metrics.jsonl").write_text('{"episode": 1\n{"episode": 2}\n')
    (ppo / "kl0.2-s2" / "status.json").write_text("{")
    (ppo / "kl0.2-s3" / "results.json").write_text("[1, 2]")
    found = find_runs(["kl/ppo"])
    assert len(found.runs) == 2
    told = "\n".join(found.notes)
    for words in (
        "kl0.1-s1/config.yaml is broken",
        "kl0.1-s2/config.yaml cannot",
        "line 1 is broken",
        "status.json is",
        "kl0.2-s3/results.json is broken",
    ):
        assert words in told
    shutil.rmtree(ppo)
    ppo.mkdir()
    with pytest.raises(LabError, match="no run in it"):
        find_runs(["kl/ppo"])


def test_the_newest_runs_are_those_of_the_stage_that_ran_last(here):
    assert {run.stage for run in newest().runs} == {"ppo"} and len(newest().runs) == 7


def test_a_run_that_only_looks_at_others_is_not_meant(empty):
    make_run("x/ppo/a", results={"gold": 1.0})
    make_run("x/compare/b", results={"runs": 1})
    assert [run.name for run in newest().runs] == [run.name for run in find_runs(["x"]).runs] == ["x/ppo/a"]


def test_without_any_run_everything_is_empty_and_says_so(empty):
    found = newest()
    comparison = compare(found.runs, found.notes)
    assert "no run below" in comparison.notes[0] and comparison.baseline is None
    for table in (variant_table(comparison), settings_table(comparison), run_table(comparison)):
        assert table.empty
    assert effect_table(effects(comparison, result_names(comparison)), comparison).empty
    assert side_by_side(comparison).table.empty


# ------------------------------------------------------------------------------------------------ what differs


def test_only_what_differs_is_named():
    a = {"lr": 1, "kl": 0.1, "size": [1, 2], "label": "x", "flag": True, "policy": "{sft}", "policy.lr": 0.1}
    b = {"lr": 1.0, "kl": 0.2, "size": [1, 3], "label": "x", "flag": 1, "policy": "{sft}", "policy.lr": 0.1}
    assert differing([a, b]) == ["kl", "size", "flag"]
    assert differing([a, b | {"new": None}]) == ["kl", "size", "flag", "new"]  # what one lacks differs
    assert differing([a]) == [] and differing([]) == []


def test_a_setting_reached_by_two_ways_is_named_once_and_a_missing_input_is_one_difference():
    shared = {"policy": "{sft}", "reward": "{rm}"}
    a = shared | {"policy.lr": 1, "reward.policy.lr": 1, "reward.lr": 5}
    b = shared | {"policy.lr": 2, "reward.policy.lr": 2, "reward.lr": 5}
    assert differing([a, b]) == ["policy.lr"]
    gold = {"policy": "{sft}", "reward": "gold", "policy.lr": 1}
    assert differing([a, gold]) == ["reward"]
    assert differing([a, b, gold]) == ["reward", "policy.lr"]
    lockstep = [shared | {"policy.lr": lr, "reward.lr": lr} for lr in (1, 2)]
    assert differing(lockstep) == ["policy.lr", "reward.lr"]  # neither is the other, though they move together


def test_inputs_that_differ_only_by_seed_are_the_same_and_others_are_told_by_their_settings(empty):
    for seed in (1, 2):
        make_run(f"old/sft/s{seed}", seed=seed, results={})
        make_run(f"old/ppo/s{seed}", seed=seed, results={"gold": 1.0}, policy=f"runs/old/sft/s{seed}/checkpoint")
        make_run(f"new/sft/s{seed}", seed=seed, results={}, lr=0.25, labeler={"flip": 0.1})
        make_run(f"new/ppo/s{seed}", seed=seed, results={"gold": 1.0}, policy=f"runs/new/sft/s{seed}")
    comparison = compared("old", "new")
    assert comparison.settings == ["policy.lr", "policy.labeler.flip"]  # a run's checkpoint is the run
    assert [len(variant.units) for variant in comparison.variants] == [2, 2]
    first = {variant.runs[0].experiment: variant.settings for variant in comparison.variants}
    assert first["old"]["policy.lr"] == 0.5 and first["new"]["policy.lr"] == 0.25
    assert first["old"]["policy.labeler.flip"] == ABSENT

    (empty / "runs").rename(empty / "moved")  # a folder of runs that was sent elsewhere still holds its inputs
    assert compared("moved/old/ppo", "moved/new/ppo").settings == comparison.settings


def test_where_an_input_is_gone_the_sweep_still_tells_its_settings(empty):
    for lr in (0.1, 0.2):
        for seed in (1, 2):
            run = make_run(f"x/ppo/{lr}-s{seed}", seed=seed, results={"gold": lr}, policy=f"runs/x/sft/{lr}-s{seed}")
            (run / "made_from.json").write_text(json.dumps({"point": {"sft.lr": lr, "seed": seed}}))
    comparison = compared("x")
    assert comparison.settings == ["sft.lr"]
    assert [variant.name for variant in comparison.variants] == ["sft.lr=0.1", "sft.lr=0.2"]
    assert [variant.seeds for variant in comparison.variants] == [["1", "2"], ["1", "2"]]


def test_the_seed_of_an_input_is_part_of_the_unit_where_it_is_free(empty):
    for model in (1, 2):
        make_run(f"x/sft/{model}", seed=model, results={})
        for seed in (7, 8):
            make_run(f"x/ppo/{model}-{seed}", seed=seed, results={"gold": 1.0}, policy=f"runs/x/sft/{model}")
    (variant,) = compared("x/ppo").variants
    assert variant.seeds == ["7/1", "7/2", "8/1", "8/2"]


def test_of_two_runs_with_one_seed_the_newer_that_is_done_counts_but_two_experiments_are_two_variants(empty):
    make_run("x/ppo/a", seed=1, results={"gold": 1.0})
    make_run("x/ppo/b", seed=1, results={"gold": 2.0})
    make_run("x/ppo/c", seed=1)  # failed
    (variant,) = compared("x").variants
    assert [run.name for run in variant.units.values()] == ["x/ppo/b"] and len(variant.runs) == 3
    notes = " ".join(compared("x").notes)
    assert "x/ppo/c failed" in notes and "1 older of the same settings and seed" in notes

    make_run("y/ppo/a", seed=1, results={"gold": 3.0})  # the code changed in between
    assert [variant.name for variant in compared("x", "y").variants] == ["(x)", "(y)"]


# ------------------------------------------------------------------------------------------------ what they came to


def test_means_and_paired_differences_are_those_by_hand(here):
    comparison = compared("kl", baseline="kl_coef=0.1")
    assert [variant.name for variant in comparison.variants] == ["kl_coef=0", "kl_coef=0.1", "kl_coef=0.2"]
    table = effects(comparison, ["gold"]).set_index("variant")

    base = table.loc["kl_coef=0.1"]  # 1, 2, 3: s = 1; t(0.975, 2) = 4.3027; 4.3027 / sqrt(3) = 2.4841
    assert (base["n"], base["mean"], base["pairs"]) == (3, 2.0, 0)
    assert [base["low"], base["high"]] == pytest.approx([2 - 2.4841, 2 + 2.4841], abs=1e-4)

    other = table.loc["kl_coef=0.2"]  # seeds 2 and 3 are shared: 2.5 - 2 and 4.5 - 3; s = 0.7071, t(0.975, 1) = 12.706
    assert (other["pairs"], other["unpaired"], other["difference"]) == (2, 1, 1.0)
    assert [other["difference_low"], other["difference_high"]] == pytest.approx([1 - 6.353, 1 + 6.353], abs=1e-3)
    expected = stats.ttest_rel([2.5, 4.5], [2.0, 3.0]).confidence_interval(0.95)
    assert [other["difference_low"], other["difference_high"]] == pytest.approx([expected.low, expected.high])

    lone = table.loc["kl_coef=0"]  # one seed: a difference, no interval
    assert (lone["n"], lone["difference"], lone["pairs"]) == (1, 6.0, 1)
    assert pd.isna(lone["low"]) and pd.isna(lone["difference_low"])
    assert any("no interval: kl_coef=0" in line for line in effect_words(table.reset_index()))


def test_results_are_flat_finite_numbers(here):
    found = flat_results(effects(compared("kl", baseline="0.1"), ["gold"]))
    assert found["gold/kl_coef=0.1"] == 2.0 and found["gold less baseline/kl_coef=0.2"] == 1.0
    assert "gold/kl_coef=0_low" not in found and all(isinstance(value, float) for value in found.values())
    assert plain_numbers({"a": 1, "b": {"c": 2.0}, "d": [3.0, 2.0, 4.0], "e": True, "f": "x", "g": {"value": 5}}) == {
        "a": 1.0,
        "b/c": 2.0,
        "d": 3.0,
        "g": 5.0,
    }


def test_stages_are_compared_by_the_results_they_share_and_seeds(here):
    comparison = compared("kl/sft", "kl/ppo/kl0.1*")
    assert comparison.stages == ["sft", "ppo"] and result_names(comparison) == ["eos_rate"]
    row = effects(comparison, ["eos_rate"]).set_index("variant").loc["ppo"]
    assert (row["difference"], row["pairs"]) == (0.5, 3)


def test_a_logged_metric_counts_by_its_last_value_and_an_unknown_one_is_refused(here):
    comparison = compared("kl/ppo/kl0.1*")
    assert effects(comparison, known(comparison, ["objective/kl"]))["mean"].tolist() == [40.0]  # 20 * (1, 2, 3)
    with pytest.raises(LabError, match=r"metric kl: no run has it \(did you mean objective/kl\?\)"):
        known(comparison, ["kl"])


@pytest.mark.parametrize("name", ["kl_coef=0.2", "kl/ppo/kl0.2-s3", "runs/kl/ppo/kl0.2-s3", "kl0.2"])
def test_a_baseline_is_pinned_by_its_name_or_one_of_its_runs(here, name):
    assert compared("kl", baseline=name).baseline_name == "kl_coef=0.2"


@pytest.mark.parametrize(("name", "line"), [("kl_coef=0.3", "did you mean 'kl_coef=0.2'"), ("kl_coef", "3 variants")])
def test_a_baseline_that_is_not_among_them(here, name, line):
    with pytest.raises(LabError, match=line):
        compared("kl", baseline=name)


def test_the_tidy_table_has_a_row_for_each_run_with_what_differs_and_what_it_came_to(here):
    table = run_table(compared("kl")).set_index("run")
    assert len(table) == 7
    row = table.loc["kl/ppo/kl0.2-s4"]
    assert (row["setting.kl_coef"], row["result.gold"], row["seed"], row["tags"]) == (0.2, 10.0, 4, "week 47")
    assert [name for name in table if name.startswith("setting.")] == ["setting.kl_coef"]


# ------------------------------------------------------------------------------------------------ samples


def test_the_same_prompts_stand_side_by_side_whatever_their_order(here):
    beside = side_by_side(compared("kl/ppo/kl0.1*", "kl/ppo/kl0.2*"), 2).table
    assert beside["prompt"].tolist() == ["who ?", "why ?"]  # seed 2 is the first that both have, and it is reversed
    assert beside["kl_coef=0.1"].tolist() == ["who ? 0.1 2", "why ? 0.1 2"]
    assert beside["kl_coef=0.2"].tolist() == ["who ? 0.2 2", "why ? 0.2 2"]
    assert beside["kl_coef=0.2, gold"].tolist() == [2.5, 2.5]


def test_prompts_that_not_all_answered_are_left_out(empty):
    for kl, prompts in ((0.1, "abc"), (0.2, "dcb")):
        make_run(f"x/ppo/{kl}", kl_coef=kl, results={}, samples=[{"prompt": p, "reply": p * 2} for p in prompts])
    beside = side_by_side(compared("x")).table
    assert beside.to_dict("list") == {"prompt": ["b", "c"], "kl_coef=0.1": ["bb", "cc"], "kl_coef=0.2": ["bb", "cc"]}


def test_the_runs_of_one_variant_stand_side_by_side_and_a_step_can_be_chosen(here):
    comparison = compared("kl/ppo/kl0.1*")
    first = side_by_side(comparison, 1).table.iloc[0]
    assert [first["seed 1"], first["seed 2"]] == ["how ? 0.1 1", "how ? 0.1 2"]
    assert side_by_side(comparison, step=20).table.shape == (3, 7)
    missing = side_by_side(comparison, step=10)
    assert missing.table.empty and missing.notes[0] == "seed 1: no samples at step 10"


# ------------------------------------------------------------------------------------------------ foreign runs


def foreign(name, seed, lr, tmp_path):
    metrics = pd.DataFrame({"step": [1, 2], "loss": [2.0, 1.0]})
    summary = {"loss": 1.0, "score": 5.0 + seed, "_runtime": 60, "_wandb": {"runtime": 60}}
    config = {"optim": {"lr": lr}, "seed": seed, "model": {"name": "gpt"}}
    path = tmp_path / name
    return WandbRun(name, name, "theirs", "train", ("a",), "p", config, metrics, "step", summary, {}, "done", (path,))


def test_foreign_runs_of_wandb_are_compared_by_their_nested_settings_and_summaries(tmp_path):
    runs = [from_wandb(foreign(f"r{lr}{seed}", seed, lr, tmp_path)) for lr in (0.1, 0.2) for seed in (1, 2)]
    comparison = compare(runs)
    assert comparison.settings == ["optim.lr"] and [len(v.units) for v in comparison.variants] == [2, 2]
    assert result_names(comparison) == ["score"]  # what it logged along the way is a curve, not a result
    assert effects(comparison, ["score"])["mean"].tolist() == [6.5, 6.5]
    assert runs[0].seconds == 60 and runs[0].x == "step" and runs[0].name == "wandb/r0.11"


def test_a_run_read_is_what_its_files_say(here):
    run = read_run(here / "runs" / "kl" / "ppo" / "kl0.2-s4")
    content = yaml.safe_load((run.path / "config.yaml").read_text())
    assert (run.seed, run.stage, run.state, run.x) == (4, "ppo", "done", "episode")
    assert run.settings["kl_coef"] == content["config"]["kl_coef"] == 0.2
    assert run.results == {"gold": 10.0, "eos_rate": 1.0} and run.seeds == {"policy.seed": 4}
    assert run.settings["policy"] == "{sft}" and run.settings["policy.lr"] == 0.5
