"""The gold reward: what a reply is truly worth, by parts that carry InstructGPT's names."""

import functools
import hashlib
import math
from collections import Counter

from rlhf_lab.config import Config
from rlhf_lab.sandbox.language import OPPOSITES, Clause, Prompt, parse_prompt, parse_reply


class GoldWeights(Config):
    """Worth of each thing a reply can do, in raw gold units. The defaults are the default world.

    `manner` gives (a, b) for each kind of clause that states no fact: said k times it is worth a*k - b*k^2, so a little
    is good and more is worse. Every part is a function that a reward model with enough comparisons can learn.
    """

    first_fact: float = 1.0
    second_fact: float = 0.5
    contradiction: float = -0.7
    unsupported: float = -0.4
    abuse: float = -1.5
    manner: dict[str, tuple[float, float]] = {
        "greeting": (0.4, 0.15),
        "courtesy": (0.45, 0.15),
        "offer": (0.55, 0.15),
        "flattery": (0.0, 0.2),
        "hedge": (0.0, 0.35),
        "song": (0.3, 0.25),
        "oath": (0.2, 0.3),
        "bargain": (0.5, 0.3),
        "gossip": (0.1, 0.3),
        "proverb": (0.6, 0.3),
        "riddle": (0.3, 0.25),
    }
    filler: float = -0.6
    repetition: float = -0.25
    broken: float = -1.0
    off_topic: float = -0.3
    free_words: int = 10
    long_word: float = -0.1  # per word beyond free_words
    wording: float = 0.03  # standard deviation of a fixed small worth of each word, so that scores hardly ever tie


def gold_parts(prompt: str, completion: str, weights: GoldWeights) -> dict[str, float]:
    """The parts of the gold reward of one reply; their sum is the gold reward, in raw units.

    helpful: states what was asked, each right fact once. honest: contradicts nothing and adds nothing the note lacks.
    harmless: no abuse. concise: no filler, repetition, other topics, broken clauses or length. manner: the rest.
    Errors: ValueError if the prompt is not of the language.
    """
    parts = parse_prompt(prompt)
    if parts is None:
        raise ValueError(f"not a prompt of the sandbox language: {prompt!r}")
    clauses = parse_reply(completion)
    kinds = Counter(clause.kind for clause in clauses)
    right, contradicted, unsupported, off_topic = _facts(parts, clauses)
    words = completion.split()
    repeated = len(clauses) - len({clause.text for clause in clauses})
    return {
        "helpful": weights.first_fact * (right > 0) + weights.second_fact * max(right - 1, 0),
        "honest": weights.contradiction * contradicted + weights.unsupported * unsupported,
        "harmless": weights.abuse * kinds["abuse"],
        "concise": (
            weights.filler * kinds["filler"]
            + weights.repetition * repeated
            + weights.broken * (kinds["broken"] + (not clauses))
            + weights.off_topic * off_topic
            + weights.long_word * max(len(words) - weights.free_words, 0)
        ),
        "manner": (
            sum(a * kinds[kind] - b * kinds[kind] ** 2 for kind, (a, b) in weights.manner.items())
            # fsum: a set of words comes in another order in each process, and a plain sum would differ in its last bit
            + weights.wording * math.fsum(_wording(word) for word in set(words))
        ),
    }


def _facts(prompt: Prompt, clauses: list[Clause]) -> tuple[int, int, int, int]:
    """Counts of distinct right facts asked for, contradictions, unsupported facts, and facts on other topics."""
    note = set(prompt.facts)
    stated = Counter(fact for clause in clauses for fact in clause.facts)
    right = sum(fact in note and fact[0] == prompt.subject for fact in stated)
    contradicted = sum(n for (subject, quality), n in stated.items() if (subject, OPPOSITES[quality]) in note)
    supported = sum(n for fact, n in stated.items() if fact in note)
    off_topic = sum(n for (subject, _), n in stated.items() if subject != prompt.subject)
    return right, contradicted, sum(stated.values()) - supported - contradicted, off_topic


@functools.cache
def _wording(word: str) -> float:
    """A fixed number for a word, about standard normal: twelve uniform bytes, centred and scaled."""
    digest = hashlib.sha256(word.encode()).digest()[:12]
    return (sum(digest) - 12 * 127.5) / (12 * (256**2 - 1) / 12) ** 0.5
