"""Synthetic feedback: comparisons labelled by a rule of thumb, or by a judge under a remedy. Rows in, rows out.

The rule and the filters are those of ALMoST (Kim et al. 2023, arXiv 2305.13735): of two replies, the one by the larger
model, behind more worked examples, behind better ones, is taken to be the better. Nobody looks at the reply.
"""

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple

import numpy as np
import pandas as pd
from pydantic import Field
from scipy.special import expit, logit

from rlhf_lab.config import Config
from rlhf_lab.errors import LabError
from rlhf_lab.judges.bias.gold import pair_values
from rlhf_lab.judges.protocol import Judge, ask
from rlhf_lab.judges.remedies.evidence import majority
from rlhf_lab.judges.remedies.swap import swap_and_average
from rlhf_lab.judges.remedies.votes import spent
from rlhf_lab.judges.table import verdict_table

SIZES = ("small", "medium", "large")
QUALITIES = ("poor", "good")
Row = dict[str, Any]


class Responder(Config):
    """Who answers: a model of some size, behind some worked examples of some quality."""

    size: Literal["small", "medium", "large"]  # of the model
    shots: int = Field(ge=0)  # worked examples before the prompt
    demonstrations: Literal["poor", "good"] = "good"  # means nothing without shots

    @property
    def name(self) -> str:
        """A name for tables and files."""
        return f"{self.size}_{self.shots}" + (f"_{self.demonstrations}" if self.shots else "")


def rule(one: Responder, other: Responder) -> int:
    """1 if `one` is taken to answer better, -1 if `other` is, 0 where the rule is silent.

    It is silent where the two are alike, and where one is ahead in one thing and behind in another. The quality of
    examples counts only where both have some.
    """
    ahead = [np.sign(SIZES.index(one.size) - SIZES.index(other.size)), np.sign(one.shots - other.shots)]
    if one.shots and other.shots:
        ahead.append(np.sign(QUALITIES.index(one.demonstrations) - QUALITIES.index(other.demonstrations)))
    return int(max(ahead)) if min(ahead) >= 0 else int(min(ahead)) if max(ahead) <= 0 else 0


def check_ranking(responders: Sequence[Responder]) -> None:
    """Errors: `ValueError` naming the first two that the rule does not put in the order given."""
    for place, better in enumerate(responders):
        for worse in responders[place + 1 :]:
            if rule(better, worse) != 1:
                raise ValueError(f"the rule does not put {better.name} above {worse.name}; change their order, or one")


def pairs_by_rule(answers: Mapping[str, Sequence[Row]]) -> list[Row]:
    """Every pair of replies to one prompt, the reply of the responder that stands earlier being the chosen one.

    answers: responder -> rows of prompt, reply and finished, from best to worst by the rule, on the same prompts.
    -> rows of prompt, chosen, rejected, chosen_by, rejected_by, finished (of chosen and rejected), and the mean and
    population standard deviation of the characters of all replies to the prompt. Equal replies make no pair.
    """
    names, pairs = list(answers), []
    for replies in zip(*answers.values(), strict=True):
        lengths = [len(row["reply"]) for row in replies]
        spread = {"mean_chars": float(np.mean(lengths)), "sd_chars": float(np.std(lengths))}
        for i, better in enumerate(replies):
            for j, worse in enumerate(replies[i + 1 :], i + 1):
                if better["reply"] != worse["reply"]:
                    pairs.append(
                        {"prompt": better["prompt"], "chosen": better["reply"], "rejected": worse["reply"]}
                        | {"chosen_by": names[i], "rejected_by": names[j]}
                        | {"finished": [better["finished"], worse["finished"]]}
                        | spread
                    )
    return pairs


def without_bad_replies(rows: Sequence[Row], openings: Sequence[str]) -> list[Row]:
    """The rows whose two replies are whole: not empty, finished, and not begun with one of `openings`."""

    def whole(reply: str, finished: bool) -> bool:
        return bool(reply.strip()) and finished and not reply.lstrip().startswith(tuple(openings))

    return [
        row for row in rows if whole(row["chosen"], row["finished"][0]) and whole(row["rejected"], row["finished"][1])
    ]


def long_enough(rows: Sequence[Row]) -> list[Row]:
    """The rows in which the chosen reply is the longer one, or longer than M - S/2, in characters.

    M and S are the mean and standard deviation of the prompt's replies: a short failure is not taught, and yet not
    length alone.
    """
    return [
        row
        for row in rows
        if len(row["chosen"]) > len(row["rejected"]) or len(row["chosen"]) > row["mean_chars"] - row["sd_chars"] / 2
    ]


def agreed(rows: Sequence[Row], chosen: Sequence[float], rejected: Sequence[float]) -> list[Row]:
    """The rows in which another reward scores the chosen reply above the rejected one as well."""
    return [row for row, better, worse in zip(rows, chosen, rejected, strict=True) if better > worse]


# ---- Labels by a judge

Remedy = Literal["none", "swap", "votes", "length_regression", "length_balance"]
Shown = Literal["random", "a_first", "b_first"]


class Labels(NamedTuple):
    """What a judge's verdicts came to."""

    rows: list[Row]  # prompt, chosen, rejected, finished, pair_id
    calls: int  # to the judge
    pairs: int  # asked about


def label(
    judge: Judge,
    pairs: pd.DataFrame,
    *,
    shown: Shown = "random",
    remedy: Remedy = "none",
    votes: int = 5,
    seed: int = 0,
) -> Labels:
    """Have a judge say which reply of each pair is the better.

    pairs: as `make_pairs` makes them, perhaps with finished_a and finished_b. shown: whose reply stands first; random
    is one seeded coin a pair, at no further call. remedy: swap asks in both orders and keeps the pairs on which they
    agree; votes takes the majority of `votes` answers; the other two work on single answers, see `length_regressed` and
    `length_balanced`. Ties and invalid verdicts give no row.
    Errors: `LabError` without pairs.
    """
    if not len(pairs):
        raise LabError("label: there are no pairs to label; were all replies alike, or all filtered out?")
    repeats = votes if remedy == "votes" else 1
    if remedy == "swap":
        asked = ask(judge, pairs, name="judge")
    else:
        asked = _asked_in_order(judge, pairs, _orders(pairs, shown, seed), repeats)
    table = {
        "none": lambda: asked,
        "swap": lambda: swap_and_average(asked),
        "votes": lambda: majority(asked),
        "length_regression": lambda: length_regressed(asked, pairs, seed=seed),
        "length_balance": lambda: length_balanced(asked, pairs, seed=seed),
    }[remedy]()
    return Labels(preferences(table, pairs), round(spent(asked)["n_calls"].sum()), len(pairs))


def _orders(pairs: pd.DataFrame, shown: Shown, seed: int) -> np.ndarray:
    """(n,) 0 where a is shown first, 1 where b is."""
    if shown != "random":
        return np.full(len(pairs), int(shown == "b_first"))
    return np.array([_coin(seed, "order", pair) < 0.5 for pair in pairs["pair_id"]], dtype=int)


def _asked_in_order(judge: Judge, pairs: pd.DataFrame, orders: np.ndarray, repeats: int) -> pd.DataFrame:
    parts = [
        ask(judge, pairs[orders == order], name="judge", orders=[order], repeats=repeats) for order in sorted({*orders})
    ]
    return verdict_table(pd.concat(parts, ignore_index=True))


def length_regressed(table: pd.DataFrame, pairs: pd.DataFrame, *, seed: int = 0) -> pd.DataFrame:
    """The verdicts drawn anew, as if the judge did not care for length.

    The logit of p_a is regressed on the words that a has more (least squares, with an intercept, which is left in);
    the slope times these words is taken off, and a seeded coin of what remains decides: drawing keeps the judge's
    noise. The slope also takes off what length rightly counts for. Errors: `LabError` if a valid verdict has no p_a.
    """
    valid = table[table["valid"]].reset_index(drop=True)
    p = valid["p_a"].to_numpy(dtype=float)
    if np.isnan(p).any():
        raise LabError("length_regression: the judge gives no probabilities (p_a); take remedy 'length_balance'")
    words = _more_words(valid, pairs)
    logits = logit(np.clip(p, 1e-6, 1 - 1e-6))
    spread = words - words.mean()
    slope = float(spread @ logits / (spread @ spread)) if spread.any() else 0.0
    p = expit(logits - slope * words)
    draws = np.array([_coin(seed, "length", pair) for pair in valid["pair_id"]])
    told = valid[["pair_id", "judge", "order", "repeat", "prompt"]]
    return verdict_table(told.assign(verdict=np.where(draws < p, "a", "b"), p_a=p))


def length_balanced(table: pd.DataFrame, pairs: pd.DataFrame, *, seed: int = 0) -> pd.DataFrame:
    """As many verdicts for the longer reply as for the shorter one, at every difference in words.

    Which of the others are left out is decided by a seeded coin. Replies of one length stay, ties and invalid verdicts
    do not.
    """
    decided = table[table["verdict"].isin(["a", "b"])].reset_index(drop=True)
    more = np.where(decided["verdict"] == "a", 1, -1) * _more_words(decided, pairs)  # words that the winner has more
    shuffled = np.argsort([_coin(seed, "balance", pair) for pair in decided["pair_id"]])
    kept = np.flatnonzero(more == 0).tolist()
    for size in sorted({*np.abs(more[more != 0])}):
        longer, shorter = (shuffled[more[shuffled] == sign * size] for sign in (1, -1))
        n = min(len(longer), len(shorter))
        kept += [*longer[:n], *shorter[:n]]
    return decided.iloc[sorted(kept)]


def _more_words(table: pd.DataFrame, pairs: pd.DataFrame) -> np.ndarray:
    return pair_values(table, pairs, "words_a").astype(float) - pair_values(table, pairs, "words_b").astype(float)


def preferences(table: pd.DataFrame, pairs: pd.DataFrame) -> list[Row]:
    """Rows of prompt, chosen, rejected, finished and pair_id, of the verdicts for a or for b."""
    known = pairs.set_index("pair_id")
    rows = []
    for pair, verdict in zip(table["pair_id"], table["verdict"], strict=True):
        if verdict not in ("a", "b"):
            continue
        of, loser = known.loc[pair], "b" if verdict == "a" else "a"
        ended = [bool(of.get(f"finished_{side}", True)) for side in (verdict, loser)]
        row = {"prompt": of["prompt"], "chosen": of[f"reply_{verdict}"], "rejected": of[f"reply_{loser}"]}
        rows.append(row | {"finished": ended, "pair_id": pair})
    return rows


def _coin(seed: int, what: str, pair: str) -> float:
    """A number in [0, 1) that depends on nothing else."""
    digest = hashlib.blake2b(f"{seed}/{what}/{pair}".encode(errors="replace"), digest_size=8).digest()
    return (int.from_bytes(digest, "little") >> 11) * 2.0**-53
