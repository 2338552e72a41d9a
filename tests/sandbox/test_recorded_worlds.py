"""What the README claims of the worlds, read off the recorded results."""

import json
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

RECORDED = Path(__file__).resolve().parents[2] / "experiments" / "reference"
SIZES = (60, 250, 1000)


def recorded(world: str) -> dict[str, np.ndarray]:
    """Figure -> one value for each seed."""
    lines = (RECORDED / f"overoptimisation-{world}.jsonl").read_text().splitlines()
    rows = [json.loads(line) for line in lines]
    assert len({row["seed"] for row in rows}) == len(rows) >= 5
    results = [row["results"]["overoptimisation"] for row in rows]
    return {name: np.array([r[name] for r in results]) for name in results[0]}


def interval(values: np.ndarray) -> tuple[float, float]:
    return stats.t.interval(0.95, len(values) - 1, values.mean(), stats.sem(values))


@pytest.mark.parametrize("world", ["default", "misspecified", "near_linear"])
def test_the_proxy_rises_throughout_and_accuracy_rises_with_data(world):
    found = recorded(world)
    for size in SIZES:
        assert found[f"smallest_rise_of_the_score_{size}"].min() > 0
    means = [found[f"accuracy_{size}"].mean() for size in SIZES]
    assert means == sorted(means)


def test_default_falls_from_an_interior_peak_and_less_with_more_data():
    found = recorded("default")
    gold = [found[f"gold_60_at_{2**power}"].mean() for power in range(9)]
    assert 0 < int(np.argmax(gold)) < 8
    assert interval(found["final_less_peak_60"])[1] < 0
    means = [found[f"final_less_peak_{size}"].mean() for size in SIZES]
    assert means == sorted(means)
    assert interval(found["final_less_peak_1000"] - found["final_less_peak_60"])[0] > 0


def test_near_linear_does_not_fall():
    found = recorded("near_linear")
    for size in (250, 1000):
        assert (found[f"final_less_peak_{size}"] >= 0).all()
    low, high = interval(found["final_less_peak_60"])
    assert low < 0 < high and low > -0.05


def test_misspecified_gets_worse_with_more_data():
    found = recorded("misspecified")
    means = [found[f"final_gain_{size}"].mean() for size in SIZES]
    assert means == sorted(means, reverse=True)
    assert interval(found["final_gain_1000"] - found["final_gain_60"])[1] < 0
