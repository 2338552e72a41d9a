"""What the README says of online and offline labels, read off the recorded results."""

import json
from collections import defaultdict
from pathlib import Path

import numpy as np
from scipy import stats

FILE = Path(__file__).resolve().parents[2] / "experiments" / "reference" / "human-feedback.jsonl"
ARMS = ("offline", "online_uniform", "online_disagreement")


def figures() -> dict[str, dict[int, dict[str, float]]]:
    """arm/round -> seed -> figures."""
    found = defaultdict(dict)
    for line in map(json.loads, FILE.read_text().splitlines()):
        found[line["unit"]][line["seed"]] = line["figures"]
    return found


def less(unit: str, other: str, name: str, level: float) -> tuple[float, float, float]:
    """Mean of the differences seed by seed, with a t interval of that level."""
    found = figures()
    gaps = [found[unit][seed][name] - found[other][seed][name] for seed in sorted(found[unit])]
    low, high = stats.t.interval(level, len(gaps) - 1, np.mean(gaps), stats.sem(gaps))
    return round(float(np.mean(gaps)), 2), round(float(low), 2), round(float(high), 2)


def test_three_arms_three_rounds_five_seeds_at_the_same_cost():
    found = figures()
    assert set(found) == {f"{arm}/{number}" for arm in ARMS for number in (1, 2, 3)}
    for unit, seeds in found.items():
        assert sorted(seeds) == [100, 101, 102, 103, 104]
        assert {f["labels"] for f in seeds.values()} == {64 * int(unit[-1])}
    lines = [json.loads(line) for line in FILE.read_text().splitlines()]
    assert len({(line["common"], line["commit"]) for line in lines}) == 1 and "dirty" not in lines[0]["commit"]


def test_the_first_round_is_the_same_in_all_arms():
    found = figures()
    for name in ("gold", "accuracy_gold", "label_accuracy"):
        assert len({tuple(found[f"{arm}/1"][seed][name] for seed in range(100, 105)) for arm in ARMS}) == 1
    assert round(np.mean([found["offline/1"][seed]["gold"] for seed in range(100, 105)]), 2) == 0.31


def test_no_difference_between_arms_leaves_out_0_when_four_intervals_hold_at_once():
    level = 1 - 0.05 / 4
    for number in (2, 3):
        for arm, other in (("online_uniform", "offline"), ("online_disagreement", "online_uniform")):
            for name in ("gold", "accuracy_gold", "accuracy_policy"):
                _, low, high = less(f"{arm}/{number}", f"{other}/{number}", name, level)
                assert low < 0 < high, (arm, number, name)
    assert less("online_uniform/3", "offline/3", "gold", level) == (-0.10, -0.38, 0.17)
    assert less("online_uniform/3", "offline/3", "accuracy_policy", level) == (0.06, -0.14, 0.26)
    assert less("online_disagreement/3", "online_uniform/3", "gold", level) == (0.05, -0.20, 0.30)
    assert less("online_disagreement/3", "online_uniform/3", "accuracy_policy", level) == (0.04, -0.02, 0.09)


def test_the_table_of_the_third_round():
    found, text = figures(), (FILE.parents[2] / "README.md").read_text()
    for arm in ARMS:
        rows = [found[f"{arm}/3"][seed] for seed in range(100, 105)]
        cells = [f"{np.mean([r['label_accuracy'] for r in rows]):.2f}"[1:]]
        for name, digits in (("accuracy_gold", 3), ("accuracy_policy", 3), ("gold", 2)):
            values = [r[name] for r in rows]
            low, high = stats.t.interval(0.95, 4, np.mean(values), stats.sem(values))
            shown = [f"{value:.{digits}f}" for value in (np.mean(values), low, high)]
            shown = [cell.removeprefix("0") for cell in shown] if digits == 3 else shown
            cells.append(f"{shown[0]} [{shown[1]}, {shown[2]}]")
        assert " | ".join(cells) in text, arm
