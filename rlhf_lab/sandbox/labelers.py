"""Simulated people who compare replies: noisy, and biased only where told to be."""

import hashlib
import math
import random
from collections.abc import Callable

from pydantic import Field

from rlhf_lab.config import Config


class Biases(Config):
    """What sways a labeler besides gold."""

    length_bias: float = 0.0  # logits per extra word
    position_bias: float = 0.0  # logits for the reply shown first


class LabelerConfig(Biases):
    """How a labeler errs. Gold differences are in standard deviations of the reference policy.

    P(first is preferred) = sigmoid((gold_first - gold_second)/temperature + length_bias*(words_first - words_second)
    + position_bias), and then the label is flipped with probability `flip`.
    """

    temperature: float = Field(0.5, ge=0)  # noise; 0: none
    flip: float = Field(0.0, ge=0, le=1)  # share of labels that are turned round
    seed: int = Field(0, ge=0)


class Labeler:
    """A labeler with its own random stream: the same (seed, prompt, replies) always gets the same label."""

    def __init__(self, score: Callable[[str, str], float], config: LabelerConfig):
        self.score, self.config = score, config

    def probability(self, prompt: str, first: str, second: str) -> float:
        """P(first is labelled better), noise and flips included."""
        config = self.config
        gap = self.score(prompt, first) - self.score(prompt, second)
        words = len(first.split()) - len(second.split())
        logit = config.length_bias * words + config.position_bias
        if config.temperature > 0:
            p = _sigmoid(gap / config.temperature + logit)
        else:  # the limit: gold decides, and bias only where gold ties
            p = _sigmoid(logit) if gap == 0 else float(gap > 0)
        return p * (1 - config.flip) + (1 - p) * config.flip

    def prefers(self, prompt: str, first: str, second: str) -> int:
        """0 if the first reply is labelled better, 1 if the second is."""
        draw = self._stream(prompt, first, second).random()
        return int(draw >= self.probability(prompt, first, second))

    def rank(self, prompt: str, completions: list[str]) -> list[int]:
        """Ranks of K replies, 0 = best: the best is picked with Bradley-Terry noise, then the best of the rest.

        For K = 2 this is one comparison. `position_bias` favours whatever is shown first, `flip` swaps a choice with
        the runner-up.
        """
        config, rng = self.config, self._stream(prompt, *completions)
        temperature = max(config.temperature, 1e-9)
        utility = [
            self.score(prompt, text) / temperature + config.length_bias * len(text.split()) for text in completions
        ]
        # Adding Gumbel noise and sorting draws from the Plackett-Luce model, whose pairs are Bradley-Terry.
        noisy = [u - math.log(-math.log(1 - rng.random())) for u in utility]
        noisy[0] += config.position_bias
        order = sorted(range(len(completions)), key=lambda i: -noisy[i])
        for place in range(len(order) - 1):
            if rng.random() < config.flip:
                order[place], order[place + 1] = order[place + 1], order[place]
        ranks = [0] * len(order)
        for place, index in enumerate(order):
            ranks[index] = place
        return ranks

    def rate(self, prompts: list[str], completions: list[str]) -> list[int]:
        """A rating from 1 to 5 for each reply, graded on a curve: 3 is the mean of these replies.

        One more for each standard deviation of the reference policy's gold, with the noise and the length bias of
        `rank`; with probability `flip` the scale is held the wrong way round. Nothing is shown first.
        """
        temperature = self.config.temperature
        liked = [
            self.score(prompt, text) + temperature * self.config.length_bias * len(text.split())
            for prompt, text in zip(prompts, completions, strict=True)
        ]
        middle = math.fsum(liked) / max(len(liked), 1)
        ratings = []
        for prompt, text, value in zip(prompts, completions, liked, strict=True):
            rng = self._stream("rate", prompt, text)
            noise = -math.log(-math.log(1 - rng.random())) - 0.5772156649015329  # Gumbel's, less its mean
            rating = min(5, max(1, round(3 + value - middle + temperature * noise)))
            ratings.append(6 - rating if rng.random() < self.config.flip else rating)
        return ratings

    def _stream(self, *texts: str) -> random.Random:
        digest = hashlib.sha256("\0".join([str(self.config.seed), *texts]).encode()).digest()
        return random.Random(digest)


def _sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x)) if x >= 0 else math.exp(x) / (1 + math.exp(x))
