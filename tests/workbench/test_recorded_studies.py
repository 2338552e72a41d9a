"""What docs/studies.md says of the recorded studies, computed from their lines by scipy, and said in the notebooks."""

import json
import re

import numpy as np
import pytest
from recorded import interval, said

from rlhf_lab.workbench.studies.kl_coefficient_results import inverted_u_table
from rlhf_lab.workbench.studies.units import latest

SEEDS = [110, 120, 130, 140, 150]


class Study:
    """The figures of a study: unit -> one row of figures for each of the five seeds, all of one code."""

    def __init__(self, repo, name: str):
        self.text = (repo / "experiments" / "reference" / f"{name}.jsonl").read_text()
        lines = [json.loads(line) for line in self.text.splitlines()]
        assert len({(line["code"], line["commit"], line["common"]) for line in lines}) == 1
        assert "dirty" not in lines[0]["commit"]
        self.units: dict[str, dict[int, dict[str, float]]] = {}
        for line in lines:
            self.units.setdefault(line["unit"], {})[line["seed"]] = line["figures"]
        assert all(sorted(found) == SEEDS for found in self.units.values())

    def of(self, unit: str, figure: str) -> np.ndarray:
        return np.array([self.units[unit][seed][figure] for seed in SEEDS])

    def curve(self, unit: str, figure: str) -> np.ndarray:
        """(seeds, places)"""
        names = [name for name in self.units[unit][SEEDS[0]] if re.fullmatch(rf"{figure}_at_\d+", name)]
        names.sort(key=lambda name: int(name.rpartition("_")[2]))
        return np.stack([self.of(unit, name) for name in names], axis=1)


def unshown(values: np.ndarray, at_once: int) -> bool:
    """Whether the interval holds 0."""
    low, high = interval(values, at_once)
    return low < 0 < high


def mean(values: np.ndarray, *, share: bool = False) -> str:
    return re.sub(r"\b0\.", ".", f"{values.mean():.2f}") if share else f"{values.mean():.2f}"


@pytest.fixture(scope="module")
def page(repo) -> dict[str, str]:
    """Heading -> what stands below it, in one line."""
    parts = re.split(r"^## (.+)$", (repo / "docs" / "studies.md").read_text(), flags=re.M)
    return {heading: " ".join(text.split()) for heading, text in zip(parts[1::2], parts[2::2], strict=True)}


def test_each_notebook_says_what_the_page_says(repo, page):
    assert len(page) == 7
    for text in page.values():
        (name,) = re.findall(r"`notebooks/(\w+)\.ipynb`", text)
        cells = json.loads((repo / "notebooks" / f"{name}.ipynb").read_text())["cells"]
        parts = [part for cell in cells for part in "".join(cell["source"]).split("\n\n")]
        (place,) = [number for number, part in enumerate(parts) if part.startswith("**What was found**")]
        answer = parts[place].replace("\n", " ").partition(" (seeds 110, 120, 130, 140 and 150). ")[2]
        assert len(re.findall(r"\.(?= [A-Z]|$)", answer)) == 3, name
        (mind,) = [part for part in parts if part.startswith("**What would change our mind.**")]
        for told in (answer, parts[place + 1], mind):
            assert told and " ".join(told.split()) in text, name


def holds(text: str, *numbers: str) -> None:
    assert [number for number in numbers if number not in text] == []


def test_over_optimisation(repo, page):
    text, found = page["Over-optimisation"], Study(repo, "overoptimisation")
    few, many = (found.of(f"default/bon_{n}", "peak_distance") for n in (30, 1000))
    holds(text, f"{mean(few)} with 30 comparisons", f"{mean(many)} with 1,000", said(many - few, 6))
    holds(text, *(said(found.of(f"default/bon_{n}", "final_gain")) for n in (30, 1000)))
    ways = [f"default/ppo_{n}" for n in (30, 125, 1000)]
    falls = [found.of(unit, "final_less_peak") for unit in ways]
    holds(text, f"{sum((fall < 0).sum() for fall in falls)} of 15 runs")
    in_words = ("none", "one", "two", "three", "four", "all")
    holds(text, f"in {in_words[(falls[-1] < 0).sum()]} of the five with 1,000 comparisons")
    bon = [f"default/bon_{n}" for n in (30, 125, 500, 1000)]
    alone = {unit: found.of(unit, "final_less_peak") for unit in (*bon, *ways)}
    holds(text, *map(said, alone.values()))
    shown = [unit for unit, fall in alone.items() if interval(fall)[1] < 0]
    assert shown == ["default/bon_30", "default/bon_500", "default/ppo_30", "default/ppo_125"]
    peaks = [mean(found.of(unit, "peak_distance")) for unit in ways]
    holds(text, "{}, {} and {}".format(*peaks))
    fall = found.of("near_linear/ppo_30", "final_less_peak")
    assert (fall < 0).all()
    holds(text, said(fall))
    ends = [found.of(unit, "final_kl").mean() for unit in ways]
    holds(text, f"{min(ends):.0f} to {max(ends):.0f} nats")
    assert all((np.diff(found.curve(f"default/bon_{n}", "score")) > 0).all() for n in (30, 125, 500, 1000))
    wrong = [f"misspecified/{way}_{n}" for way in ("bon", "ppo") for n in (30, 1000)]
    holds(text, f"{sum((found.of(unit, 'final_gain') < 0).sum() for unit in wrong)} of 20 runs")
    holds(text, *(f"{mean(found.of(unit, 'final_gain'))} with" for unit in wrong[:2]))
    few, many = (found.of(unit, "final_gain") for unit in wrong[:2])
    holds(text, said(many - few))
    assert (np.diff(found.curve("near_linear/bon_1000", "gold")) > 0).all()
    holds(text, said(found.of("near_linear/ppo_1000", "final_gain")))


def test_the_two_forms(repo, page):
    """Least squares by numpy of each seed's curve. The differences of a unit's R squared hold at once for all 15."""
    text, found, bends = page["Over-optimisation"], Study(repo, "overoptimisation"), {"bon": np.array, "ppo": np.log}

    def fit(d, gold, bend) -> tuple[float, float]:
        """R squared and beta."""
        d, gold = d[d > 0], gold[d > 0]
        columns = np.stack([d, d * bend(d)], axis=1)
        factors = np.linalg.lstsq(columns, gold, rcond=None)[0]
        left = gold - columns @ factors
        return 1 - (left**2).sum() / ((gold - gold.mean()) ** 2).sum(), -factors[1]

    own = {"bon": [], "ppo": []}
    for unit in found.units:
        distance, gold = np.sqrt(found.curve(unit, "kl").clip(min=0)), found.curve(unit, "gold")
        both = [[fit(d, g, bend)[0] for d, g in zip(distance, gold, strict=True)] for bend in bends.values()]
        assert unshown(np.subtract(*both), 15), unit
        way = unit.partition("/")[2][:3]
        own[way].append(fit(distance.mean(0), gold.mean(0), bends[way]))
    for way, name in (("bon", "best-of-n"), ("ppo", "PPO")):
        fits = [r_squared for r_squared, _ in own[way]]
        holds(text, f"{min(fits):.2f} to {max(fits):.2f} ({name})".removeprefix("0"))
    betas = [f"{beta:.2f}".removeprefix("0") for _, beta in own["bon"][:4]]
    assert list(found.units)[:4] == [f"default/bon_{n}" for n in (30, 125, 500, 1000)]
    holds(text, "{}, {}, {} and {}".format(*betas))


def slope(rows: list[np.ndarray]) -> np.ndarray:
    """The slope of each seed along places 0, 1, 2."""
    return (rows[2] - rows[0]) / 2


def test_reward_models(repo, page):
    text, found = page["Reward models"], Study(repo, "reward-models")
    accuracy = lambda unit: found.of(unit, "accuracy_gold")
    holds(text, f"from {mean(accuracy('data_30'), share=True)} to {mean(accuracy('data_960'), share=True)}")
    holds(text, f"from {mean(found.of('data_30', 'gain'))} to {mean(found.of('data_960', 'gain'))}")
    for half in ((30, 60, 120), (240, 480, 960)):
        for figure in ("accuracy", "accuracy_gold", "gain"):
            assert unshown(slope([found.of(f"data_{n}", figure) for n in half]), 3)
    for figure in ("accuracy", "accuracy_gold", "gain"):
        assert unshown(found.of("trunk_large", figure) - found.of("trunk_medium", figure), 3)
        for loss in ("pairwise", "plackett_luce", "best_of_k"):
            assert unshown(found.of(f"equal_replies_{loss}", figure) - found.of("data_480", figure), 6)
    share = {"digits": 3, "share": True}
    step = lambda figure: found.of("trunk_medium", figure) - found.of("trunk_small", figure)
    assert unshown(step("accuracy_gold"), 3) and unshown(step("gain"), 3) and not unshown(step("accuracy"), 3)
    holds(text, said(step("accuracy"), 3, **share), said(step("accuracy_gold"), 3, **share), said(step("gain"), 3))
    holds(text, said(-slope([accuracy(unit) for unit in ("data_480", "flip_0.1", "flip_0.2")]), 2, **share))
    holds(text, *(said(found.of(f"flip_0.{tenths}", "gain")) for tenths in (4, 5)))
    holds(text, f"an accuracy of {mean(accuracy('flip_0.5'), share=True)}")
    less = lambda figure: found.of("data_480", figure) - found.of("equal_pairs_best_of_k", figure)
    holds(text, *(said(less(figure), 6, **share) for figure in ("accuracy_gold", "accuracy")))
    holds(text, *(said(found.of(unit, "slope"), share=True) for unit in ("epochs_4", "data_480")))


def test_length_bias(repo, page):
    text, found = page["Length bias"], Study(repo, "length-bias")
    grown = {unit: found.of(unit, "words") - found.of(unit, "words_sft") for unit in found.units}
    holds(text, f"{grown['likes_length_none'].mean():.1f} words longer")
    low, high = interval(grown["likes_length_none"], 14)  # twelve units, and two labelers less the fair ones
    holds(text, f"longer [{low:.1f}, {high:.1f}]")
    low, high = interval(-grown["fair_none"], 14)
    holds(text, f"{-grown['fair_none'].mean():.1f} shorter [{low:.1f}, {high:.1f}]")
    of = lambda figure, unit="likes_length_none": found.of(unit, figure)
    holds(text, said(of("score_gain") - of("score_within")), said(of("score_gain")), said(of("gold_gain")))
    less = lambda unit, who: of("gold_gain", f"{who}_{unit}") - of("gold_gain", f"{who}_none")
    remedies = len(found.units) - 3
    for unit, who in (("penalty", "likes_length"), ("balanced", "likes_length")):
        holds(text, said(less(unit, who), remedies))
    holds(text, *(said(less(unit, "misspecified"), remedies) for unit in ("penalty", "balanced")))
    for unit, who in (("fewer", "likes_length"), ("fewer", "misspecified"), ("like_length", "likes_length")):
        assert unshown(less(unit, who), remedies)
    assert unshown(less("omit", "likes_length"), remedies)
    biased = [unit for unit in found.units if not unit.startswith("fair")]
    raw = np.mean([of("win", unit) - of("win_fair", unit) for unit in biased], axis=0)
    left = np.mean([of("win_controlled", unit) - of("win_fair_controlled", unit) for unit in biased], axis=0)
    holds(text, f"within {left.mean():.2f}".replace("0.", "."), said(raw, len(biased) + 1, share=True))


def test_feedback_loops(repo, page):
    text, found = page["Feedback loops"], Study(repo, "feedback-loops")
    gold = lambda source, arm="offline": found.of(f"{source}_{arm}", "gold_2")
    sources = ("human", "noisy_human", "judge")
    for arm, other in (("online", "offline"), ("active", "online")):
        holds(text, said(np.mean([gold(source, arm) - gold(source, other) for source in sources], axis=0), 8))
    for figure in ("doubt_pool_2", "doubt_asked_2"):
        doubt = [found.of(f"{source}_active", figure).mean() for source in sources]
        holds(text, f"by {min(doubt):.3f} to {max(doubt):.3f}".replace("0.", "."))
    holds(text, said(gold("human") - gold("judge"), 14), said(gold("judge")), said(gold("judge_tenfold")))
    holds(text, said(gold("noisy_human") - gold("human"), 14), f"against {mean(gold('human_tenfold'))}")
    for other in ("human", "noisy_human", "judge"):
        assert unshown(gold("judge_tenfold") - gold(other), 14)
        holds(text, said(gold("judge_tenfold") - gold(other), 14))
    right = {source: mean(found.of(f"{source}_offline", "label_accuracy_2"), share=True) for source in sources[1:]}
    holds(text, f"({right['judge']} of them right)", f"({right['noisy_human']} right)")
    accuracy = lambda source: found.of(f"{source}_offline", "accuracy_gold_2")
    holds(text, said(accuracy("human_tenfold") - accuracy("judge_tenfold"), 14, share=True))


def test_ppo_details(repo, page):
    """Less the mean of the four runs without a detail; or of `short`, for the two that differ from that."""
    text, found = page["PPO's details"], Study(repo, "ppo-details")
    chance = ["baseline", "again", "again_2", "again_3"]
    against = dict.fromkeys(("short_no_eos_penalty", "short_eos_trick"), ["short"])
    controls = ["reversed", "dropout", "adam_eps_1e-8", "short_no_eos_penalty", "padded_whitening", "no_kl"]
    switched = [name for name in found.units if name not in (*chance, "short")]
    at_once = {name: 6 if name in controls else len(switched) - 6 for name in switched}

    def less(name: str, figure: str = "gold") -> np.ndarray:
        others = against.get(name, chance)
        return found.of(name, figure) - np.mean([found.of(other, figure) for other in others], axis=0)

    shown = {name for name in switched if not unshown(less(name), at_once[name])}
    assert shown == {"reversed", "no_kl", "no_clip"}
    holds(text, f"three of {len(switched)} switches", f"one of {len(switched) - 6} that were explored")
    always = {name for name in switched if (less(name) < 0).all()} - shown
    assert always == {"dropout", "lambda_0", "k3_reward", "k3_loss", "short_no_eos_penalty", "eos_unread"}
    for name in (*shown, "dropout", "lambda_0", "eos_unread"):
        holds(text, said(less(name), at_once[name]))
    holds(text, f"falls to {mean(found.of('eos_unread', 'accuracy_gold'), share=True)}")
    assert interval(found.of("reversed", "accuracy_gold"), 6)[1] < 0.5
    assert all(
        interval(less(*pair), 6)[0] > 0 for pair in (("padded_whitening", "policy_grad_norm"), ("no_kl", "score_ahead"))
    )
    expected = (("dropout", "first_ratio_off"), ("adam_eps_1e-8", "approx_kl"), ("short_no_eos_penalty", "eos_rate"))
    assert all(unshown(less(*pair), 6) for pair in expected)
    off = found.of("dropout", "first_ratio_off")
    holds(text, f"by {off.min():.0f} to more than a million")
    assert off.max() > 1e6 and found.of("baseline", "first_ratio_off").max() < 1e-4


def test_ensembles(repo, page):
    text, found = page["Ensembles of reward models"], Study(repo, "ensembles")
    less = lambda how, flip, other="single", figure="bon": (
        found.of(f"flip_{flip}_{how}", figure) - found.of(f"flip_{flip}_{other}", figure)
    )
    hows, flips = ("mean", "worst", "uncertainty"), ("0", "0.25")
    holds(text, said(less("worst", "0.25"), 6), said(less("mean", "0.25", figure="ppo"), 6))
    shown = [(how, flip, figure) for how in hows for flip in flips for figure in ("bon", "ppo")]
    shown = [(how, flip, figure) for how, flip, figure in shown if not unshown(less(how, flip, figure=figure), 6)]
    assert shown == [("mean", "0.25", "ppo"), ("worst", "0.25", "bon")]
    assert all(less(how, flip, figure=figure).mean() > 0 for how in hows for flip in flips for figure in ("bon", "ppo"))
    holds(text, *(said(less(how, "0"), 6) for how in hows))
    for figure in ("bon", "ppo"):
        assert all(unshown(less(how, flip, "mean", figure), 4) for how in hows[1:] for flip in flips)
        assert all(unshown(less(how, "0.25", figure=figure) - less(how, "0", figure=figure), 3) for how in hows)
    holds(text, said(less("worst", "0.25") - less("worst", "0"), 3))
    lost = lambda how: found.of(f"flip_0.25_{how}", "bon_at_32") - found.of(f"flip_0.25_{how}", "bon_at_256")
    holds(text, said(lost("worst")), said(lost("single")))
    holds(text, said(_as_far(found, "flip_0.25_mean", "flip_0.25_single"), 6))


def _as_far(found: Study, unit: str, other: str) -> np.ndarray:
    """Gold of one less that of another at the largest KL that both have come to, between points by straight lines."""
    gaps = []
    curves = [[found.curve(name, figure) for figure in ("ppo_kl", "ppo_gold")] for name in (unit, other)]
    for row in range(len(SEEDS)):
        (x, y), (other_x, other_y) = ((np.sqrt(kl[row].clip(min=0)), gold[row]) for kl, gold in curves)
        at = min(x.max(), other_x.max())
        ours, theirs = (
            np.interp(at, a[np.argsort(a, kind="stable")], b[np.argsort(a, kind="stable")])
            for a, b in ((x, y), (other_x, other_y))
        )
        gaps.append(ours - theirs)
    return np.array(gaps)


def test_the_kl_coefficient(repo, page):
    text, found = page["The KL coefficient"], Study(repo, "kl-coefficient")
    coefficients = (0, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2)
    gold = {coef: found.of(f"kl_{coef:g}", "gold") for coef in coefficients}
    means = [gold[coef].mean() for coef in coefficients]
    top = means.index(max(means))
    assert coefficients[top] == 0.1 and np.all(np.diff(means[: top + 1]) > 0) and np.all(np.diff(means[top:]) < 0)
    holds(text, f"{mean(gold[0])} without a penalty", f"{mean(gold[0.1])} with 0.1", f"{mean(gold[2])} with 2")
    units = latest([json.loads(line) for line in found.text.splitlines()]).units
    holds(text, *inverted_u_table(units)["gold"])  # by hand in test_kl_coefficient_study.py
    ends = [_at_equal_kl(found, f"kl_{coef:g}") for coef in coefficients[1:]]
    holds(text, f"by {min(map(np.mean, ends)):.2f} to {max(map(np.mean, ends)):.2f} in the mean")
    assert all(unshown(gaps, 10) for gaps in ends)
    for target in (1, 3):
        holds(text, said(found.of(f"ziegler_{target}", "kl")), mean(found.of(f"ziegler_{target}", "gold")))
    for coef in (0.5, 2):
        holds(
            text,
            said(found.of(f"k3_{coef}", "kl") - found.of(f"kl_{coef}", "kl"), 2),
            mean(found.of(f"k3_{coef}", "kl")),
        )


def _at_equal_kl(found: Study, unit: str) -> np.ndarray:
    """Gold at the end less that of the run without a penalty at the same KL, between its points by straight lines."""
    gaps = []
    for row, seed in enumerate(SEEDS):
        kl, gold = found.curve("kl_0", "kl")[row].clip(min=0), found.curve("kl_0", "gold")[row]
        order = np.argsort(kl, kind="stable")
        figures = found.units[unit][seed]
        assert figures["kl"] <= kl.max()
        gaps.append(figures["gold"] - np.interp(np.sqrt(figures["kl"]), np.sqrt(kl[order]), gold[order]))
    return np.array(gaps)
