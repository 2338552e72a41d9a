"""Every alarm on a series planted by hand, silent on a healthy one, and deaf to a single noisy point."""

import numpy as np
import pytest

from rlhf_lab.workbench.glossary import GLOSSARY
from rlhf_lab.workbench.live.alarms import RULES, find_alarms
from rlhf_lab.workbench.records import Status

# A recorded quickstart (60 updates of 128 replies), every fifth update.
HEALTHY = {
    "objective/scores": [0.041, 0.649, 0.791, 0.904, 0.878, 0.884, 0.870, 0.925, 0.962, 1.011, 0.978, 0.975],
    "objective/rlhf_reward": [0.041, 0.541, 0.613, 0.736, 0.732, 0.740, 0.711, 0.774, 0.803, 0.831, 0.814, 0.787],
    "objective/kl": [0.0, 2.160, 3.565, 3.357, 2.920, 2.888, 3.173, 3.025, 3.183, 3.594, 3.291, 3.770],
    "objective/kl_coef": [0.05] * 12,
    "policy/approxkl_avg": [0.0149, 0.0147, 0.0113, 5e-3, 9e-4, 8e-4, 7e-4, 1e-3, 4e-4, 4e-4, 8e-4, 1e-4],
    "policy/clipfrac_avg": [0.057, 0.022, 0.021, 0.017, 0.008, 0.005, 0.005, 0.002, 0.002, 0.002, 0.001, 0.001],
    "policy/entropy_avg": [0.679, 0.598, 0.436, 0.379, 0.381, 0.346, 0.331, 0.326, 0.309, 0.294, 0.280, 0.270],
    "val/explained_var": [-1.576, -0.286, 0.074, 0.128, 0.323, 0.277, 0.349, 0.438, 0.505, 0.413, 0.611, 0.557],
    "val/ratio": [0.995, 0.994, 1.014, 0.998, 1.001, 0.999, 0.999, 0.999, 1.0, 0.999, 1.0, 1.0],
    "completions/eos_rate": [1.0, 1.0, 1.0, 1.0, 0.992, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0],
    "completions/mean_length": [13.67, 9.21, 9.28, 9.01, 9.26, 9.95, 10.32, 10.12, 10.88, 11.19, 10.11, 10.63],
}
MEASURED = {  # at updates 10, 20, ..., 60
    "gold/mean": [0.352, 0.694, 0.801, 0.853, 0.893, 0.948],
    "gold/win_rate": [0.637, 0.745, 0.790, 0.800, 0.815, 0.840],
    "heldout/score": [0.812, 0.905, 0.921, 0.955, 0.974, 1.013],
}
FALL = [1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 0.3, 0.3, 0.3, 0.3, 0.3, 0.3, 0.3]


def series(**columns: list) -> list[dict]:
    """Rows of metrics.jsonl, a point each; `__` stands for the `/` of a name, None for what was not logged."""
    names = {name: name.replace("__", "/") for name in columns}
    rows = zip(*columns.values(), strict=True)
    return [
        {"episode": 8.0 * (i + 1)} | {names[n]: v for n, v in zip(columns, row, strict=True) if v is not None}
        for i, row in enumerate(rows)
    ]


def healthy(noise: float = 0.0) -> list[dict]:
    """The recorded run with the points between, each with relative noise."""
    random = np.random.default_rng(0)
    rows = [{"episode": 128.0 * (i + 1)} for i in range(60)]
    for name, points in HEALTHY.items():
        for row, value in zip(rows, np.interp(np.arange(60), np.arange(12) * 5, points), strict=True):
            row[name] = value * (1 + noise * random.standard_normal())
    for name, points in MEASURED.items():
        for i, value in enumerate(points):
            rows[10 * i + 9][name] = value
    return rows


def rung(rows: list[dict], **settings) -> dict[str, float | None]:
    """Metric -> since."""
    return {alarm.metric: alarm.since for alarm in find_alarms(rows, settings)}


@pytest.mark.parametrize("noise", [0.0, 0.1])
def test_a_healthy_run_is_silent_at_every_update(noise):
    rows = healthy(noise)
    for row in rows:
        row["completions/eos_rate"] = min(row["completions/eos_rate"], 1.0)
        row["val/ratio"] = 1.0
    for n in range(0, len(rows) + 1, 3):
        assert find_alarms(rows[:n], {"eval_prompts": 256}) == []


ZIEGLER = {"kl_control": "ziegler", "kl_target": 6.0}
CASES = {  # points, settings, metric, and the point (from 0) at which the streak begins that rings at the last point
    "KL above three times its target": ({"objective__kl": [1, 17.9, *[18.1] * 5]}, ZIEGLER, 2),
    "KL without a target": ({"objective__kl": [1, 49.9, *[50.1] * 5]}, {}, 2),
    "KL negative": ({"objective__kl": [0.0, *[-0.06] * 10]}, {}, 1),
    "steps too large": ({"policy__approxkl_avg": [0.049, *[0.051] * 5]}, {}, 1),
    "clipped": ({"policy__clipfrac_avg": [0.19, *[0.21] * 5]}, {}, 1),
    "ratio high": ({"val__ratio": [1.9, 2.1, 2.1, 2.1]}, {}, 1),
    "ratio low": ({"val__ratio": [0.6, 0.4, 0.4, 0.4]}, {}, 1),
    # Means of five: 1 up to point 9, then 0.86, 0.72, 0.58, 0.44 (point 13), 0.3, 0.3. Half of that five points before
    # is 0.5 (13), 0.5 (14), 0.43 (15): the streak begins at 13 and is three long at 15.
    "entropy halves": ({"policy__entropy_avg": FALL[:16]}, {}, 13),
    # To 9% of where it began, so slowly that it never halves within five points. The mean of five is
    # (0.16 + 4 * 0.09) / 5 = 0.104 at point 28, and below a tenth from 29 on.
    "entropy gone": (
        {"policy__entropy_avg": [1.0] * 3 + [0.9] * 5 + [0.55] * 5 + [0.3] * 6 + [0.16] * 6 + [0.09] * 7},
        {},
        29,
    ),
    "critic": ({"val__explained_var": [0.0] * 60}, {}, 50),
    "no EOS": ({"completions__eos_rate": [0.5, 0.0, 0.0, 0.0]}, {}, 1),
    # The best mean of five is 1.
    "EOS falls": ({"completions__eos_rate": [*[1.0] * 6, 0.91, *[0.89] * 5]}, {}, 7),
    # Means of (up to) five: length 12, 13.2, 14.8 at point 5 and 16.4 at point 6, above 15; the entropy's is 0.46 at 5.
    "length with entropy": (
        {"completions__mean_length": [10] * 3 + [18] * 8, "policy__entropy_avg": [1.0] * 3 + [0.1] * 8},
        {},
        6,
    ),
    # Without noise any move counts, from the eleventh point on, where there is a mean ten points before.
    "shaped reward falls": (
        {"objective__rlhf_reward": [-0.1 * i for i in range(13)], "objective__scores": [0.1 * i for i in range(13)]},
        {},
        10,
    ),
    "coefficient swings": ({"objective__kl_coef": [0.1, 0.2, 0.4, 0.2, 0.1]}, ZIEGLER, 4),
    # Peak 0.9, margin 3/sqrt(256) = 0.19 but at least 0.2; not logged at every update.
    "gold falls": (
        {
            "gold__mean": [0.5, None, 0.9, None, 0.72, 0.69, None, 0.4],
            "heldout__score": [0.1, None, 0.5, None, 0.6, 0.7, None, 0.8],
        },
        {},
        5,
    ),
    # 1/2 - 1/sqrt(100) = 0.4
    "worse than the reference": ({"gold__win_rate": [0.41, 0.39, 0.39]}, {"eval_prompts": 100}, 1),
}


@pytest.mark.parametrize(("columns", "settings", "since"), CASES.values(), ids=CASES)
def test_it_rings_at_the_last_point_and_not_before(columns, settings, since):
    rows = series(**columns)
    metric = next(iter(columns)).replace("__", "/")
    assert rung(rows, **settings).get(metric) == rows[since]["episode"]
    assert metric not in rung(rows[:-1], **settings)


def test_every_rule_has_a_case_and_something_to_try():
    planted = [next(iter(columns)).replace("__", "/") for columns, _, _ in CASES.values()]
    assert {rule.needs[0] for rule in RULES} == set(planted)
    assert all(GLOSSARY[rule.needs[0]].otherwise for rule in RULES)


def test_one_point_far_outside_does_not_ring():
    for name in HEALTHY:
        for value in (-1000.0, 0.0, 1000.0):
            rows = healthy()
            rows[-1][name] = value
            assert find_alarms(rows, {}) == [], (name, value)


def test_what_only_looks_alike_does_not_ring():
    rising = [0.1 * i for i in range(40)]
    assert rung(series(objective__scores=rising, objective__rlhf_reward=rising)) == {}
    falling = [-value for value in rising]
    assert rung(series(objective__scores=falling, objective__rlhf_reward=falling)) == {}
    noise = list(np.random.default_rng(1).standard_normal(400))
    other = list(np.random.default_rng(2).standard_normal(400))
    for n in range(15, 400, 15):
        assert rung(series(objective__scores=noise[:n], objective__rlhf_reward=other[:n])) == {}
    assert rung(series(completions__eos_rate=[0.1, 0.2, 0.4, 0.6, 0.7, 0.8])) == {}  # it learns to stop
    assert rung(series(gold__mean=[0.9, 0.4, 0.4], heldout__score=[0.9, 0.5, 0.5])) == {}  # both fall
    assert rung(series(gold__mean=[0.9, 0.4, 0.4], heldout__score=[0.1, 0.5, 0.5]), eval_prompts=8) == {}  # few prompts
    slowly = [0.2 * 0.95**i for i in range(60)]
    assert rung(series(objective__kl_coef=slowly), **ZIEGLER) == {}  # it settles
    assert rung(series(completions__mean_length=[10] * 3 + [18] * 7, policy__entropy_avg=[0.5] * 10)) == {}


def test_what_is_not_finite_rings_at_once_and_is_forgotten():
    rows = healthy()[:20]
    assert find_alarms(rows) == []
    rows.append({"episode": 2688.0, "loss/policy_avg": None, "not_finite": {"loss/policy_avg": "nan"}})
    (alarm,) = find_alarms(rows)
    assert (alarm.metric, alarm.since) == ("loss/policy_avg", 2688.0)
    assert "loss/policy_avg is nan" in alarm.words
    rows += [{**row, "episode": 2816.0 + i} for i, row in enumerate(healthy()[20:25])]
    assert find_alarms(rows) == []


def test_a_dead_or_silent_process_is_told():
    beat = "2026-01-01T00:00:00.000+00:00"
    midnight = 1767225600.0  # 2026-01-01 in UTC
    alive = Status(state="running", pid=7, host="here", started=beat, heartbeat=beat)
    died = alive.model_copy(update={"state": "died", "reason": "process 7 on here is gone"})
    assert "process 7 on here is gone" in find_alarms([], status=died, now=midnight)[0].words
    assert find_alarms([], status=alive, now=midnight + 119) == []
    (alarm,) = find_alarms([], status=alive, now=midnight + 125)
    assert alarm.metric == "" and "2:05" in alarm.words
    # Where updates take up to 100 s, silence begins after 500 s; the last row is a sign of life too.
    rows = [{"episode": 8.0, "time": midnight - 100}, {"episode": 16.0, "time": midnight}]
    assert find_alarms(rows, status=alive, now=midnight + 499) == []
    assert len(find_alarms(rows, status=alive, now=midnight + 501)) == 1
    ended = alive.model_copy(update={"state": "done"})
    assert find_alarms(rows, status=ended, now=midnight + 9999) == []


def test_a_metric_rings_once_and_the_run_itself_comes_first():
    rows = series(completions__eos_rate=[1.0] * 6 + [0.0] * 5, policy__clipfrac_avg=[0.3] * 11)
    died = Status(state="died", reason="gone")
    assert [alarm.metric for alarm in find_alarms(rows, status=died)] == [
        "",
        "policy/clipfrac_avg",
        "completions/eos_rate",
    ]
    assert find_alarms(rows)[1].words == "No reply ends with EOS."
