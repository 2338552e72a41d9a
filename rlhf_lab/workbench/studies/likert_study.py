"""A simulation of "Can foundation models label data like humans?" (Hugging Face blog, June 2023), the truth known.

There GPT-4 rated two replies at once from 1 (the first is much better) to 8, for all pairs of four models on 327
prompts, the order random. It piled up on 1, and the models were ranked by Elo all the same. Here the judges are
planted (likert_simulation.py), and Elo and four fits are held against what is planted.

All that is planted is an assumption. The ratings are those that the study's human raters gave. The thresholds make 4
or 5 as common between equals as in the study's most tied pair (96 of 327). The sizes of bias and spike are for show,
and so is the judge told to de-bias, whose bias is turned round: the study says that the lean turned round and was
smaller than before.
"""

from typing import NamedTuple

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from pydantic import Field

from rlhf_lab.config import Config
from rlhf_lab.judges.ranking.bradley_terry import bradley_terry
from rlhf_lab.judges.ranking.elo import bootstrap_elo, elo_sequences, resampled_orders
from rlhf_lab.judges.ranking.likert import fit_likert, likert_outcomes
from rlhf_lab.workbench.intervals import mean_interval
from rlhf_lab.workbench.studies.likert_simulation import (
    MODELS,
    PAIRS,
    PLANTED,
    LikertJudge,
    expected_answers,
    expected_ratings,
    published,
    simulate,
)
from rlhf_lab.workbench.style import BLUE, GREY, INK, ORANGE, RED, empty_figure, styled

MARGIN = 0.1  # what is planted counts as recovered if the interval lies within this of it
FAIR, BIASED, SPIKED, TOLD = "fair", "biased", "biased, spike", "told to de-bias"
_COLORS = {FAIR: GREY, BIASED: BLUE, SPIKED: ORANGE, TOLD: RED}


class LikertStudyConfig(Config):
    """What is planted, and how much is simulated."""

    bias: float = 1.0  # logits for the reply shown first
    spike: float = Field(default=0.1, ge=0, lt=1)  # share of answers 1 that heed nothing
    overshoot: float = 1.0  # told to de-bias, the judge has the bias -overshoot*bias
    prompts: int = Field(default=327, ge=20)
    seeds: int = Field(default=20, ge=2)
    rounds: int = Field(default=30, ge=1)  # resamples of each seed's games, of whose Elo the median is taken
    k: float = Field(default=4.0, gt=0)  # of Elo
    seed: int = 0


class LikertStudy(NamedTuple):
    """Tidy tables: means over seeds with 95% intervals, the seed as the unit; "expected" needs no simulation.

    A gap scale is the slope of estimated on planted ratings: 1 is right, below 1 they are too close together.
    """

    claims: pd.DataFrame  # claim, found, holds
    ranking: pd.DataFrame  # judge, ties, seeds, kept (in how many Elo ranks as planted), gap_scale, low, high, expected
    fits: pd.DataFrame  # judge, fit, quantity, planted, value, low, high, sd (over seeds: the error of one study)
    elo: pd.DataFrame  # judge, ties, model, planted, elo, low, high, expected
    answers: pd.DataFrame  # judge, answer, expected (share)
    widths: pd.DataFrame  # intervals of one study under the fair judge: method, half_width (Elo points, mean of models)


def run_study(**settings) -> LikertStudy:
    """Simulate the study under four judges, rank by Elo, and fit what the judges are made of.

    settings: fields of LikertStudyConfig. A seed's orders and draws are the same for every judge.
    """
    config = LikertStudyConfig.parse(settings, "likert_study")
    judges = {
        FAIR: LikertJudge(0.0, 0.0),
        BIASED: LikertJudge(config.bias, 0.0),
        SPIKED: LikertJudge(config.bias, config.spike),
        TOLD: LikertJudge(-config.overshoot * config.bias, 0.0),
    }
    n = len(PAIRS) * config.prompts
    orders = resampled_orders(np.arange(n), config.rounds * config.seeds, config.seed)
    orders += np.repeat(np.arange(config.seeds) * n, config.rounds).astype(orders.dtype)
    elo, ranking, fits = [], [], []
    for name, judge in judges.items():
        studies = [simulate(judge, prompts=config.prompts, seed=config.seed + i) for i in range(config.seeds)]
        for ties in (False, True):
            ratings = _elo([likert_outcomes(battles, ties=ties) for battles in studies], orders, config)
            expected = expected_ratings(judge, ties=ties)
            elo += _elo_rows(name, ties, ratings, expected)
            ranking.append(_ranking_row(name, ties, ratings, expected))
        fits += _fit_rows(name, judge, [likert_outcomes(battles) for battles in studies])
    answers = [(name, j + 1, p) for name, judge in judges.items() for j, p in enumerate(expected_answers(judge))]
    tables = {"ranking": pd.DataFrame(ranking), "fits": pd.DataFrame(fits), "elo": pd.DataFrame(elo)}
    told = pd.DataFrame(answers, columns=["judge", "answer", "expected"])
    widths = _widths(simulate(judges[FAIR], prompts=config.prompts, seed=config.seed))
    return LikertStudy(_claims(tables["ranking"], tables["fits"], widths), **tables, answers=told, widths=widths)


@styled
def figure(study: LikertStudy) -> Figure:
    """Elo under each judge; the gaps and the bias that each fit finds, diamonds where they are planted."""
    fig, axes = empty_figure(1, 3, height=3.7)
    _draw_elo(axes[0, 0], study.elo[~study.elo["ties"]])
    for ax, quantity, label in (
        (axes[0, 1], "gap scale", "gaps found / planted"),
        (axes[0, 2], "bias", "bias found (logits)"),
    ):
        _draw_fits(ax, study.fits, quantity)
        ax.set(xlabel=label)
    axes[0, 2].tick_params(labelleft=False)
    fig.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside lower center", ncols=4)
    return fig


def _elo(studies: list[pd.DataFrame], orders: np.ndarray, config: LikertStudyConfig) -> np.ndarray:
    """(seeds, models) the median Elo over the resamples of each study, all studies side by side."""
    a, b = np.tile(np.repeat(PAIRS, config.prompts, axis=0), (len(studies), 1)).T
    score = np.concatenate(
        [battles["outcome"].map({"a": 1.0, "b": 0.0, "tie": 0.5}).to_numpy(float) for battles in studies]
    )
    ratings = elo_sequences(a, b, score, orders, len(MODELS), k=config.k)
    return np.median(ratings.reshape(len(studies), config.rounds, len(MODELS)), axis=1)


def _elo_rows(judge: str, ties: bool, ratings: np.ndarray, expected: np.ndarray) -> list[dict]:
    rows = []
    for i, model in enumerate(MODELS):
        found = mean_interval(ratings[:, i])
        told = {"elo": found.mean, "low": found.low, "high": found.high, "expected": expected[i]}
        rows.append({"judge": judge, "ties": ties, "model": model, "planted": PLANTED[i], **told})
    return rows


def _ranking_row(judge: str, ties: bool, ratings: np.ndarray, expected: np.ndarray) -> dict:
    kept = (np.argsort(-ratings, axis=1) == np.argsort(-PLANTED)).all(axis=1)
    found = mean_interval(_gap_scale(ratings))
    told = {"gap_scale": found.mean, "low": found.low, "high": found.high, "expected": float(_gap_scale(expected))}
    return {"judge": judge, "ties": ties, "seeds": len(kept), "kept": int(kept.sum()), **told}


def _gap_scale(ratings: np.ndarray) -> np.ndarray:
    """Slope of ratings (..., models) on what is planted."""
    planted = PLANTED - PLANTED.mean()
    return ratings @ planted / (planted @ planted)


def _fit_rows(name: str, judge: LikertJudge, studies: list[pd.DataFrame]) -> list[dict]:
    methods = {
        "who won": lambda battles: bradley_terry(battles, rounds=0),
        "who won, order": lambda battles: bradley_terry(battles, position=True, rounds=0),
        "scale, order": lambda battles: fit_likert(battles, spike=None, rounds=0),
        "scale, order, spike": lambda battles: fit_likert(battles, rounds=0),
    }
    planted, rows = {"gap scale": 1.0, "bias": judge.bias, "spike": judge.spike}, []
    for method, run in methods.items():
        found: dict[str, list[float]] = {}
        for battles in studies:
            ranking = run(battles)
            ratings = ranking.ratings.set_index("model")["rating"].loc[MODELS].to_numpy()
            terms = ranking.terms.set_index("term")["value"].rename({"position": "bias"})
            for quantity, value in {"gap scale": _gap_scale(ratings), **terms}.items():
                found.setdefault(quantity, []).append(float(value))
        for quantity, values in found.items():
            mean = mean_interval(values)
            told = {"value": mean.mean, "low": mean.low, "high": mean.high, "sd": float(np.std(values, ddof=1))}
            rows.append({"judge": name, "fit": method, "quantity": quantity, "planted": planted[quantity], **told})
    return rows


def _widths(battles: pd.DataFrame) -> pd.DataFrame:
    """Half the width of 95% intervals, for one set of games, beside what the study printed."""
    won, theirs = likert_outcomes(battles), published()
    found = {
        "the study, GPT-4": theirs[(theirs["rater"] == "GPT-4") & ~theirs["ties"]],
        "Elo, K = 32": bootstrap_elo(won, k=32, rounds=200),
        "Elo, K = 4": bootstrap_elo(won, k=4, rounds=200),
        "Bradley-Terry": bradley_terry(won, rounds=200).ratings,
    }
    rows = [(method, float((table["high"] - table["low"]).mean() / 2)) for method, table in found.items()]
    return pd.DataFrame(rows, columns=["method", "half_width"])


def _claims(ranking: pd.DataFrame, fits: pd.DataFrame, widths: pd.DataFrame) -> pd.DataFrame:
    """What was to be shown, what came out, and whether it holds."""
    elo = ranking[~ranking["ties"]].set_index("judge")
    of = fits.set_index(["judge", "fit", "quantity"])
    fair, biased = elo.loc[FAIR], elo.loc[BIASED]
    kept = {name: f"{name} {row['kept']} of {row['seeds']}" for name, row in elo.iterrows()}
    rows = [
        (
            "Random order keeps Elo's ranking",
            f"seeds ranked as planted: {kept[BIASED]}; {kept[SPIKED]}",
            all(elo["kept"] == elo["seeds"]),
        ),
        (
            "It shrinks Elo's gaps",
            "; ".join(f"{name} {_told(row, 'gap_scale')}" for name, row in elo.iterrows()),
            bool(max(biased["high"], elo.loc[SPIKED, "high"]) < fair["low"]),
        ),
    ]
    for title, judge, fit in (
        ("A fit of who won, with the order, recovers bias and gaps", BIASED, "who won, order"),
        ("The same fit does so where there is a spike", SPIKED, "who won, order"),
        ("A fit of the scale, with order and spike, does", SPIKED, "scale, order, spike"),
    ):
        parts = [of.loc[(judge, fit, quantity)] for quantity in ("gap scale", "bias")]
        found = f"gaps {_told(parts[0])} of 1; bias {_told(parts[1])} of {parts[1]['planted']:g}"
        rows.append((title, found, all(_recovered(part) for part in parts)))
    told, turned = elo.loc[TOLD], of.loc[(TOLD, "who won, order", "bias")]
    found = f"bias {_told(turned)}; gaps {_told(told, 'gap_scale')}"
    rows.append(("A bias turned round (assumed) shrinks the gaps as well", found, told["high"] < fair["low"]))
    found = f"seeds ranked as planted: {kept[TOLD]}"
    rows.append(("It changes the ranking, as it did in the study", found, told["kept"] < told["seeds"]))
    half = widths.set_index("method")["half_width"]
    found = "; ".join(f"{method} ±{width:.0f}" for method, width in half.items())
    rows.append(("Intervals as wide as the study's are owed to its games", found, half.iloc[-1] > half.iloc[0] / 2))
    return pd.DataFrame([(*row[:2], bool(row[2])) for row in rows], columns=["claim", "found", "holds"])


def _told(row: pd.Series, name: str = "value") -> str:
    return f"{row[name]:.2f} [{row['low']:.2f}, {row['high']:.2f}]"


def _recovered(row: pd.Series) -> bool:
    return bool(max(row["high"] - row["planted"], row["planted"] - row["low"]) <= MARGIN)


def _draw_elo(ax: Axes, elo: pd.DataFrame) -> None:
    x = np.arange(len(MODELS))
    ax.hlines(PLANTED, x - 0.42, x + 0.42, color=INK, linewidth=1.2, label="planted")
    for number, (name, color) in enumerate(_COLORS.items()):
        rows = elo[elo["judge"] == name]
        error = [rows["elo"] - rows["low"], rows["high"] - rows["elo"]]
        ax.errorbar(x - 0.3 + 0.14 * number, rows["elo"], yerr=error, fmt="o", markersize=4, color=color, label=name)
    theirs = published()
    theirs = theirs[~theirs["ties"]]
    for place, rater, marker in ((0.26, "GPT-4", "s"), (0.38, "GPT-4, told to de-bias", "^")):
        ratings = theirs[theirs["rater"] == rater].set_index("model")["elo"].loc[MODELS]
        ratings = ratings - ratings.mean() + PLANTED.mean()
        look = {"markersize": 5, "markerfacecolor": "none", "markeredgecolor": INK}
        ax.plot(x + place, ratings, marker, label=f"the study: {rater}", **look)
    ax.set_xticks(x, [name.split("-")[0] for name in MODELS])
    ax.set(ylabel="Elo, mean of the four models 1000")
    ax.grid(axis="x", visible=False)


def _draw_fits(ax: Axes, fits: pd.DataFrame, quantity: str) -> None:
    methods = list(dict.fromkeys(fits["fit"]))
    for number, (name, color) in enumerate(_COLORS.items()):
        rows = fits[(fits["judge"] == name) & (fits["quantity"] == quantity)]
        y = np.array([methods.index(method) for method in rows["fit"]]) - 0.27 + 0.18 * number
        error = [rows["value"] - rows["low"], rows["high"] - rows["value"]]
        ax.plot(rows["planted"], y, "D", markersize=7, markerfacecolor="none", markeredgecolor=INK, markeredgewidth=0.7)
        ax.errorbar(rows["value"], y, xerr=error, fmt="o", markersize=4, color=color)
    ax.set_yticks(range(len(methods)), methods)
    ax.set_ylim(len(methods) - 0.5, -0.5)
    ax.grid(axis="y", visible=False)
