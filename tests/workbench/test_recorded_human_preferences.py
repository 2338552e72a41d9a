"""What the README says of human preferences, read off the recorded results."""

import json

import numpy as np
from recorded import interval, said


def test_a_reward_model_from_human_preferences(repo):
    lines = (repo / "experiments" / "reference" / "human-preferences.jsonl").read_text().splitlines()
    rows = [json.loads(line) for line in lines]
    assert sorted(row["seed"] for row in rows) == [105, 106, 107, 108, 109]
    assert len({row["commit"] for row in rows}) == 1 and "dirty" not in rows[0]["commit"]
    results = [row["results"]["reward_model"] for row in rows]
    names = ("accuracy", "accuracy_of_length", "accuracy_before", "calibration_gap", "comparisons")
    found = {name: np.array([result[name] for result in results]) for name in names}
    text = (repo / "README.md").read_text().partition("### Human preferences")[2].partition("###")[0]
    ours, length = found["accuracy"], found["accuracy_of_length"]
    for values in (ours, length, ours - length, found["accuracy_before"], found["calibration_gap"]):
        assert said(values, digits=3, share=True) in text
    assert f"{found['comparisons'].min():.0f} to {found['comparisons'].max():.0f}" in text
    assert ours.mean() >= 0.595
    assert interval(ours)[0] > interval(length)[1]
