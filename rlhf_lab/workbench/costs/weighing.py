"""The bytes that the parts of an update allocate, by torch's own count, and the constants that follow."""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import NamedTuple

import torch

from rlhf_lab.models import autocast, generate, response_logprobs
from rlhf_lab.training.ppo import estimate_advantages, ppo_step
from rlhf_lab.training.rollouts import rollout
from rlhf_lab.workbench.costs.cases import Case, begun
from rlhf_lab.workbench.costs.memory import FLOAT
from rlhf_lab.workbench.costs.shapes import Shape, shape_of
from rlhf_lab.workbench.costs.work import Work, forward

TEXTS, WORDS, LONG, WIDE = (
    Case(64, 2, 64, 16, 16, 16),
    Case(16, 1, 8192, 16, 4, 16),
    Case(64, 4, 64, 8, 4, 64),
    Case(128, 1, 8192, 1, 2, 2),
)
"""What is weighed: activations, logits, the cache, and an optimizer step prevail in these."""


class Weighed(NamedTuple):
    """Bytes that an update allocated at most, beyond what was there before, in each of its parts."""

    generation: int
    reading: int
    learning: int


def weighed(case: Case, precision: str) -> Weighed:
    """Run one update of a case part by part. Gradients are not there before, and count in learning."""
    state, _ = begun(case, precision, updates=1)
    config = state.config
    prompts, _ = state.next_prompts()
    models = (state.policy, state.reference, state.critic, state.reward, state.tokenizer)
    batch = rollout(*models, prompts, config, state.generator)
    credit = estimate_advantages(batch, config)
    state.optimizer.zero_grad(set_to_none=True)
    read = batch[:4]

    def sample() -> None:
        with autocast(precision, state.policy):
            ends = {"eos_id": state.tokenizer.eos_token_id, "pad_id": 0}
            generate(state.policy, *read[:2], max_new_tokens=case.reply, generator=state.generator, **ends)

    def score() -> None:
        with torch.no_grad(), autocast(precision, state.policy):
            response_logprobs(state.policy, *read)

    step = lambda: ppo_step(state.policy, state.critic, state.optimizer, batch, *credit, config)
    return Weighed(*map(allocated, (sample, score, step)))


def weigh(precision: str) -> dict[str, float]:
    """The constants of memory.py, in bytes of an element, logit, cached number or weight."""
    found = {case: weighed(case, precision) for case in (TEXTS, WORDS, LONG, WIDE)}
    cast = 2.0 if precision == "bf16" else 0.0
    learned = {case: one.learning - cast * _policy(case).parameters for case, one in found.items()}
    held = learned[TEXTS] / _read(TEXTS).elements  # the policy needs more than the critic, which learns after it
    words = learned[WORDS] - held * _read(WORDS).elements
    cached = 2 * LONG.layers * LONG.width * LONG.replies * (LONG.prompt + LONG.reply)
    return {
        "held": held,
        "held_logits": max(0.0, words) / _read(WORDS).logits,
        "passing": found[TEXTS].reading / (_read(TEXTS).elements / TEXTS.layers),
        "passing_logits": found[WORDS].reading / _read(WORDS).logits,
        "cached": found[LONG].generation / cached,
        "stepping": max(0.0, learned[WIDE] - FLOAT * _policy(WIDE).parameters) / _policy(WIDE).largest,
        "cast": cast,
    }


def _policy(case: Case) -> Shape:
    return shape_of(case.config)


def _read(case: Case) -> Work:
    return forward(_policy(case), case.replies, case.prompt + case.reply - 1, case.reply)


def allocated(function: Callable[[], None]) -> int:
    """The most bytes of tensors that a call holds at once, beyond those there before."""
    from torch.profiler import ProfilerActivity, profile

    with _silent(), profile(activities=[ProfilerActivity.CPU], profile_memory=True) as seen:
        function()
    events = [event for event in seen.profiler.kineto_results.events() if event.name() == "[memory]"]
    now = most = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        now += event.nbytes()
        most = max(most, now)
    return most


@contextmanager
def _silent() -> Iterator[None]:
    """The profiler's library writes lines to the process's standard error."""
    kept, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nowhere)
