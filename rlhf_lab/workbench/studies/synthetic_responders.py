"""06_synthetic_feedback: who answers. Base models of three sizes, behind worked examples of two qualities."""

import random
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from rlhf_lab import models
from rlhf_lab.errors import LabError
from rlhf_lab.judges.feedback import QUALITIES, SIZES, Responder, Row, rule
from rlhf_lab.sandbox.world import World
from rlhf_lab.training.rollouts import sample_replies
from rlhf_lab.workbench import artefacts
from rlhf_lab.workbench.evaluation import win_rate

_TENTH = 10  # of the demonstrations, the best and the worst tenth become worked examples


class Cast(NamedTuple):
    """The models by size, and the worked examples by quality."""

    world: World
    tokenizer: object
    paths: dict[str, str]  # size -> model directory
    policies: dict[str, object]
    examples: dict[str, list[dict[str, str]]]  # quality -> rows of prompt and completion
    max_new_tokens: int

    def behind(self, prompts: Sequence[str], who: Responder, seed: int) -> list[str]:
        """The prompts, each behind worked examples of its own."""
        rng = random.Random(f"shots/{seed}")
        shown = [rng.sample(self.examples[who.demonstrations], who.shots) for _ in prompts]
        eos = self.tokenizer.eos_token
        return [
            " ".join([*(f"{row['prompt']} {row['completion']} {eos}" for row in rows), prompt])
            for rows, prompt in zip(shown, prompts, strict=True)
        ]

    def answer(self, who: Responder, prompts: Sequence[str], seed: int) -> list[Row]:
        """One reply to each prompt: rows of prompt (without the examples), reply and finished."""
        replies, finished = sample_replies(
            self.policies[who.size],
            self.tokenizer,
            self.behind(prompts, who, seed),
            max_new_tokens=self.max_new_tokens,
            seed=seed,
        )
        rows = zip(prompts, replies, finished, strict=True)
        return [{"prompt": prompt, "reply": reply, "finished": end} for prompt, reply, end in rows]


def cast(cfg, world: World) -> Cast:
    """Load the responders, which are the same for every seed, and choose the worked examples by gold.

    In the paper the better demonstrations were written with more care. Here care is gold: this choice, of a few
    replies, is all that the rule's labels know of it. Errors: `LabError` if the examples take more demonstrations.
    """
    once = cfg.model_copy(update={"seed": 0})
    paths = {
        size: world.base_model if name == "sandbox" else artefacts.checkpoint(name, "pretrain", once)
        for size, name in cfg.sizes.items()
    }
    rows = world.demonstrations(cfg.n_demonstrations, cfg.seed)
    gold = world.gold(prompts=[row["prompt"] for row in rows], completions=[row["completion"] for row in rows])
    order, n = np.argsort(gold, kind="stable"), cfg.n_demonstrations // _TENTH
    if n < (most := max(*cfg.shots, *(who.shots for who in cfg.responders))):
        raise LabError(f"n_demonstrations: a tenth of {cfg.n_demonstrations} is fewer than {most} examples")
    examples = {"poor": [rows[i] for i in order[:n]], "good": [rows[i] for i in order[-n:]]}
    policies = {size: models.load_policy(path, trainable=False) for size, path in paths.items()}
    tokenizer = models.load_tokenizer(world.base_model)
    return Cast(world, tokenizer, paths, policies, examples, cfg.max_new_tokens)


def axes(responders: Cast, prompts: Sequence[str], shots: Sequence[int], *, seed: int, tell) -> dict[str, float]:
    """Gold of every responder, and how often gold agrees with the rule on two that differ in one thing.

    tell(done, total): called after each responder. -> gold_<name>, words_<name>, and accuracy_<better>_over_<worse> for
    neighbours along an axis; equal gold counts 1/2.
    """
    everyone = [
        Responder(size=size, shots=n, demonstrations=quality)
        for size in SIZES
        for n in sorted(shots)
        for quality in (QUALITIES if n else ("good",))
    ]
    gold, figures = {}, {}
    for number, who in enumerate(everyone, 1):
        rows = responders.answer(who, prompts, seed + number)
        gold[who.name] = _gold(responders.world, rows)
        figures[f"gold_{who.name}"] = float(gold[who.name].mean())
        figures[f"words_{who.name}"] = float(np.mean([len(row["reply"].split()) for row in rows]))
        tell(number, len(everyone))
    for better, worse in steps(everyone):
        figures[f"accuracy_{better.name}_over_{worse.name}"] = win_rate(gold[better.name], gold[worse.name])
    return figures


def steps(everyone: Sequence[Responder]) -> list[tuple[Responder, Responder]]:
    """(better, worse) by the rule, for all who differ in one thing by one step."""
    return [
        (one, other)
        for one in everyone
        for other in everyone
        if rule(one, other) == 1 and axis_of(one, other, everyone)
    ]


def axis_of(one: Responder, other: Responder, everyone: Sequence[Responder]) -> str:
    """size, shots or demonstrations: the one thing in which the two differ, by one step; "" otherwise."""
    shots = sorted({who.shots for who in everyone})
    apart = {
        "size": abs(SIZES.index(one.size) - SIZES.index(other.size)),
        "shots": abs(shots.index(one.shots) - shots.index(other.shots)),
        "demonstrations": int(one.demonstrations != other.demonstrations and 0 not in (one.shots, other.shots)),
    }
    different = [name for name, distance in apart.items() if distance]
    return different[0] if len(different) == 1 and apart[different[0]] == 1 else ""


def _gold(world: World, rows: Sequence[Mapping]) -> np.ndarray:
    return np.array(world.gold(prompts=[r["prompt"] for r in rows], completions=[r["reply"] for r in rows]))
