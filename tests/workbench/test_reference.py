"""Recorded results: appended, never rewritten, and summarised with the seed as the unit."""

import json

import pytest
from scipy import stats

from rlhf_lab.errors import LabError
from rlhf_lab.workbench.evaluation import win_rate
from rlhf_lab.workbench.intervals import mean_interval
from rlhf_lab.workbench.reference import as_text, draw, record_results, summarise


def line(seed: int, gain: float) -> str:
    return json.dumps({"seed": seed, "results": {"ppo": {"gold_gain": gain, "note": "text"}}}) + "\n"


def test_the_summary_is_a_t_interval_over_seeds(tmp_path):
    file = tmp_path / "r.jsonl"
    file.write_text(line(100, 9.0) + line(101, 1.0) + line(102, 2.0) + line(100, 3.0) + '{"seed": 103, "resu')
    row = summarise(file).loc[("ppo", "gold_gain")]
    # seeds 100 (its last line), 101, 102: 3, 1, 2 -> mean 2, sd 1, se 1/sqrt(3), t(2, .975) = 4.3027
    assert row["mean"] == 2.0 and row["seeds"] == 3
    assert row["high"] - row["mean"] == pytest.approx(4.302652729696142 / 3**0.5)
    assert "seeds [100, 101, 102" in as_text(file)


def test_the_interval_is_scipys():
    values = [0.3, 1.2, -0.4, 0.9]
    low, high = stats.ttest_1samp(values, 0).confidence_interval(0.95)
    assert mean_interval(values)[1:] == pytest.approx((low, high))


def test_a_tie_is_half_a_win():
    assert win_rate([1, 2, 3, 0], [0, 2, 4, 1]) == (1 + 0.5) / 4


def test_nothing_recorded_says_how_to_record(tmp_path):
    with pytest.raises(LabError, match="no recorded results; make some with `rlhf-lab run"):
        summarise(tmp_path / "none.jsonl")


def test_results_of_no_study_have_no_figure(tmp_path):
    (tmp_path / "r.jsonl").write_text('{"seed": 100, "results": {"ppo": {"gold": 1.0}}}\n')
    with pytest.raises(LabError, match="holds no results of a study, so there is no figure"):
        draw(tmp_path / "r.jsonl", tmp_path / "drawn.png")
    assert not (tmp_path / "drawn.png").exists()


def test_an_unfinished_run_is_not_recorded(tmp_path):
    from rlhf_lab.workbench.experiments.record import ExperimentRecord, StageRecord

    stage = StageRecord("sft", tmp_path / "n.ipynb", tmp_path, state="failed")
    record = ExperimentRecord("x", "", tmp_path / "x.yaml", tmp_path, "rlhf-lab run x", "now", [stage])
    with pytest.raises(LabError, match="x is failed; only a finished run is recorded"):
        record_results(record, tmp_path / "r.jsonl")
    assert not (tmp_path / "r.jsonl").exists()
    stage.state, stage.results = "done", {"gold": 1.0}
    record_results(record, tmp_path / "deep" / "r.jsonl")
    assert json.loads((tmp_path / "deep" / "r.jsonl").read_text())["results"] == {"sft": {"gold": 1.0}}


def test_a_study_of_methods_is_summarised_by_method(tmp_path):
    file = tmp_path / "study.jsonl"
    for seed, gain in ((100, 1.0), (101, 3.0)):
        curve = [{"gold": 0.5, "score": 0.0}, {"gold": 0.5 + gain, "score": 1.0, "kl": 2.0, "eos_rate": 1.0}]
        curve[-1] |= {"tokens": 9, "seconds": 1.0}
        key = {"method": "ppo", "seed": seed, "common": "c", "own": "o", "models": str(seed)}
        file.open("a").write(json.dumps(key | {"curve": curve}) + "\n")
    found = as_text(file)
    assert "gold_gain" in found and "2.00 [-10.71, 14.71]" in found  # t(1, .975) = 12.706, se = sqrt(2)/sqrt(2)
    assert "seeds [100, 101]" in found
