"""A judge whose biases are planted, so that a statistic can be held against the truth."""

import hashlib
import math

import numpy as np
import pandas as pd
from pydantic import Field
from scipy.special import expit

from rlhf_lab.config import Config
from rlhf_lab.judges.backends.scorers import score_both
from rlhf_lab.judges.bias.expected import Expected, expected_statistics
from rlhf_lab.judges.protocol import Verdict
from rlhf_lab.judges.table import count_words, exchange
from rlhf_lab.rewards import Reward


class SimulatedJudgeConfig(Config):
    """How a simulated judge errs. Its biases are logits, added to those of gold.

    P(first) = sigmoid((gold_first - gold_second)/temperature + position + length*(words more in the first)),
    then the choice is turned round with probability `flip`, and left out with probability `invalid`.
    """

    position: float = 0.0  # for the reply shown first; below 0: for the second
    length: float = 0.0  # for each word that a reply has more than the other
    temperature: float = Field(default=1.0, ge=0)  # in units of gold; 0: biases matter only where gold ties
    flip: float = Field(default=0.0, ge=0, le=1)  # share of choices that are turned round
    invalid: float = Field(default=0.0, ge=0, le=1)  # share of answers that are no verdict
    seed: int = 0

    @property
    def terms(self) -> dict[str, float]:
        """The logits of a place, a unit of gold and a word: what `fit_biases` should find where nothing is flipped."""
        gold = 1 / self.temperature if self.temperature else math.inf
        return {"position": self.position, "gold": gold, "length": self.length}


class SimulatedJudge:
    """A judge with planted biases around a gold reward.

    Its random draw depends on the seed and the question's pair, order and repeat only: the verdict is the
    same in any batch, and independent between questions even where two of them show the same text.
    """

    def __init__(self, config: SimulatedJudgeConfig, gold: Reward):
        self.config, self.gold = config, gold

    def __call__(
        self,
        *,
        prompts: list[str],
        firsts: list[str],
        seconds: list[str],
        pair_ids: list[str] | None = None,
        orders: list[int] | None = None,
        repeats: list[int] | None = None,
    ) -> list[Verdict]:
        pair_ids = pair_ids or ["\0".join(texts) for texts in zip(prompts, firsts, seconds, strict=True)]
        orders, repeats = orders or [0] * len(prompts), repeats or [0] * len(prompts)
        p_first = self.p_first(prompts, firsts, seconds)
        draw_choice, draw_invalid = self._draws(pair_ids, orders, repeats)
        choices = np.where(draw_choice < p_first, "first", "second").tolist()
        failed = draw_invalid < self.config.invalid
        return [
            Verdict(None, "no idea", reason="simulated failure") if lost else Verdict(choice, choice, p_first=p)
            for choice, p, lost in zip(choices, p_first.tolist(), failed, strict=True)
        ]

    def p_first(self, prompts: list[str], firsts: list[str], seconds: list[str]) -> np.ndarray:
        """P(a valid verdict is for the first reply), flips included. Lists of n texts -> (n,)."""
        config = self.config
        gold_first, gold_second = score_both(self.gold, prompts, firsts, seconds)
        gap = gold_first - gold_second
        words = [np.array([count_words(text) for text in shown]) for shown in (firsts, seconds)]
        bias = config.position + config.length * (words[0] - words[1])
        if config.temperature > 0:
            p = expit(gap / config.temperature + bias)
        else:
            p = np.where(gap == 0, expit(bias), gap > 0)
        return p * (1 - config.flip) + (1 - p) * config.flip

    def expected(self, pairs: pd.DataFrame, *, min_difference: float = 0) -> Expected:
        """The exact expectation of each statistic on these pairs; see `expected_statistics`."""
        p_first = []
        for order in (0, 1):
            firsts, seconds = exchange(pairs["reply_a"], pairs["reply_b"], np.full(len(pairs), order))
            p_first.append(self.p_first(pairs["prompt"].tolist(), firsts.tolist(), seconds.tolist()))
        invalid_rate = self.config.invalid
        return expected_statistics(pairs, *p_first, invalid_rate=invalid_rate, min_difference=min_difference)

    def _draws(self, pair_ids: list[str], orders: list[int], repeats: list[int]) -> np.ndarray:
        """Two uniform numbers in [0, 1) per question, from a hash of what names it. (2, n)."""
        seed, named = self.config.seed, zip(orders, repeats, pair_ids, strict=True)
        names = [f"{seed}/{order}/{repeat}/{pair}".encode(errors="replace") for order, repeat, pair in named]
        digests = b"".join(hashlib.blake2b(name, digest_size=16).digest() for name in names)
        integers = np.frombuffer(digests, dtype="<u8").reshape(-1, 2).T
        return (integers >> np.uint64(11)) * 2.0**-53
