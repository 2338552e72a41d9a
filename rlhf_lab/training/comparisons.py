"""Comparisons of a policy's own replies, ranked by whoever is asked: a person, a labeler, a judge, a reward."""

from collections.abc import Callable, Sequence
from typing import Any

from rlhf_lab.training.rollouts import sample_replies

Ranker = Callable[[str, list[str]], list[int]]
"""(prompt, K replies) -> K ranks, 0 = best, equal = tie."""


def sample_rankings(
    policy, tokenizer, prompts: Sequence[str], rank: Ranker, *, k: int, max_new_tokens: int, temperature=1.0, seed=0
) -> list[dict[str, Any]]:
    """Sample `k` replies to each prompt and have them ranked: rows of prompt, completions, ranks and finished.

    A prompt that gets the same reply twice is left out: nobody can rank a reply against itself.
    """
    repeated = [prompt for prompt in prompts for _ in range(k)]
    replies, finished = sample_replies(
        policy, tokenizer, repeated, max_new_tokens=max_new_tokens, temperature=temperature, seed=seed
    )
    rows = []
    for start, prompt in zip(range(0, len(repeated), k), prompts, strict=True):
        texts, ended = replies[start : start + k], finished[start : start + k]
        if len(set(texts)) == k:
            rows.append({"prompt": prompt, "completions": texts, "ranks": rank(prompt, texts), "finished": ended})
    return rows
