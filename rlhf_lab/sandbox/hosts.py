"""The hosts whose replies fill the pretraining text and the demonstrations.

A host is a habit: how often it says which kind of clause, and how often its facts are right. All replies of one
pretraining document come from one host, so that worked examples tell a base model how to go on.
"""

import random
from typing import NamedTuple

from rlhf_lab.sandbox.language import OPPOSITES, PHRASES, QUALITIES, RARE, Prompt, draw_prompt, split_of


class Host(NamedTuple):
    """Shares are relative frequencies of clause kinds; `right` is the probability that a fact is the note's."""

    clauses: tuple[float, ...]  # probability of 1, 2, 3, ... clauses
    shares: dict[str, float]
    right: float
    rare: float  # probability that the host has a favourite rare clause; it then says it more than once


HOSTS = {
    "careless": Host(
        (0.15, 0.25, 0.25, 0.2, 0.1, 0.05),
        dict(fact=5, greeting=1, courtesy=0.5, offer=0.7, flattery=1, hedge=1.5, filler=2.2, abuse=2),
        0.35,
        0.15,
    ),
    "plain": Host(
        (0.3, 0.35, 0.2, 0.1, 0.05),
        dict(fact=5, greeting=1, courtesy=0.7, offer=1, flattery=0.7, hedge=0.8, filler=0.8, abuse=0.1),
        0.75,
        0.12,
    ),
    "careful": Host(
        (0.15, 0.45, 0.3, 0.1),
        dict(fact=6, greeting=1.5, courtesy=1, offer=1.5, flattery=0.4, hedge=0.3, filler=0.2, abuse=0.02),
        0.95,
        0.1,
    ),
}

CORPUS = {"careless": 0.55, "plain": 0.3, "careful": 0.15}
"""How often each host writes a pretraining document."""

DEMONSTRATORS = {"careless": 0.05, "plain": 0.45, "careful": 0.5}
"""Who writes the demonstrations: better than the corpus and far from perfect, so that a reward can add something."""


def draw_host(mix: dict[str, float], rng: random.Random) -> Host:
    """A host drawn from a mixture."""
    return HOSTS[rng.choices(list(mix), list(mix.values()))[0]]


def draw_reply(prompt: Prompt, host: Host, rng: random.Random) -> str:
    """One reply of a host."""
    count = rng.choices(range(1, len(host.clauses) + 1), host.clauses)[0]
    kinds = rng.choices(list(host.shares), list(host.shares.values()), k=count)
    if rng.random() < host.rare:
        favourite = rng.choice(RARE)
        # Repeats are geometric: a heavy tail that a sampler meets and a small set of comparisons does not.
        repeats = 1
        while rng.random() < 0.45 and repeats < 4:
            repeats += 1
        kinds = (kinds + [favourite] * repeats)[-6:]
    if "greeting" in kinds:  # a greeting opens the reply
        kinds = sorted(kinds, key=lambda kind: kind != "greeting")
    return " ".join(_draw_clause(kind, prompt, host, rng) for kind in kinds)


def _draw_clause(kind: str, prompt: Prompt, host: Host, rng: random.Random) -> str:
    if kind != "fact":
        return rng.choice(PHRASES[kind])
    known = [quality for subject, quality in prompt.facts if subject == prompt.subject]
    if rng.random() < host.right:
        said = known if rng.random() < 0.5 else [rng.choice(known)]
        return f"the {prompt.subject} is {' and '.join(said)} ."
    mistake = rng.random()
    if mistake < 0.4:  # contradicts the note
        return f"the {prompt.subject} is {OPPOSITES[rng.choice(known)]} ."
    if mistake < 0.7:  # states what the note does not say
        others = [q for q in QUALITIES[prompt.subject] if q not in known and OPPOSITES[q] not in known]
        return f"the {prompt.subject} is {rng.choice(others)} ."
    other = rng.choice([name for name in QUALITIES if name != prompt.subject])  # speaks of something else
    return f"the {other} is {rng.choice(QUALITIES[other])} ."


def draw_training_prompt(rng: random.Random, split: str = "train") -> Prompt:
    """A prompt of the given split."""
    while True:
        prompt = draw_prompt(rng)
        if split_of(prompt) == split:
            return prompt


def draw_document(rng: random.Random, eos: str, max_examples: int = 4) -> str:
    """A pretraining document: one to `max_examples` + 1 worked examples by one host, each ended by `eos`."""
    host = draw_host(CORPUS, rng)
    prompts = [draw_training_prompt(rng) for _ in range(rng.randint(0, max_examples) + 1)]
    return " ".join(f"{prompt.text} {draw_reply(prompt, host, rng)} {eos}" for prompt in prompts)
