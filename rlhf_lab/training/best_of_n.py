"""Many replies to each prompt, scored once, from which best-of-n and rejection sampling choose."""

from collections.abc import Sequence
from typing import NamedTuple

import torch

from rlhf_lab.rewards import Reward, call_reward
from rlhf_lab.training.rollouts import sample_replies


class Pool(NamedTuple):
    """N replies to each of B prompts, as text."""

    prompts: list[str]  # B
    replies: list[list[str]]  # B rows of N
    finished: list[list[bool]]  # B rows of N, the reply ended by EOS

    @property
    def duplicates(self) -> float:
        """The share of replies that repeat an earlier one to the same prompt. They tie, under any ranker."""
        total = sum(len(row) for row in self.replies)
        return 1 - sum(len(set(row)) for row in self.replies) / total


def sample_pool(
    policy,
    tokenizer,
    prompts: Sequence[str],
    *,
    size: int,
    max_new_tokens: int,
    temperature=1.0,
    batch_size=256,
    seed=0,
) -> Pool:
    """`size` independent replies of the policy to each prompt."""
    repeated = [prompt for prompt in prompts for _ in range(size)]
    replies, finished = sample_replies(
        policy,
        tokenizer,
        repeated,
        max_new_tokens=max_new_tokens,
        temperature=temperature,
        batch_size=batch_size,
        seed=seed,
    )
    rows = range(0, len(repeated), size)
    return Pool(list(prompts), [replies[i : i + size] for i in rows], [finished[i : i + size] for i in rows])


def score_pool(reward: Reward, pool: Pool) -> torch.Tensor:
    """(B, N) scores in float64. A reply that came up several times is scored once."""
    rows = zip(pool.prompts, pool.replies, pool.finished, strict=True)
    keys = [[(prompt, reply, end) for reply, end in zip(row, ends, strict=True)] for prompt, row, ends in rows]
    distinct = list(dict.fromkeys(key for row in keys for key in row))
    prompts, completions, finished = (list(column) for column in zip(*distinct, strict=True))
    found = call_reward(reward, prompts=prompts, completions=completions, finished=finished)
    score = dict(zip(distinct, found, strict=True))
    return torch.tensor([[score[key] for key in row] for row in keys], dtype=torch.float64)


def best_of_n(pool: Pool, scores: torch.Tensor, n: int, *, seed: int = 0) -> list[str]:
    """The best of the first `n` replies to each prompt; a seeded coin decides between equals. Errors: ValueError."""
    size = scores.shape[1]
    if not 1 <= n <= size:
        raise ValueError(f"best_of_n: n must be from 1 to the {size} replies of the pool, got {n}")
    coin = torch.rand(scores.shape, generator=torch.Generator().manual_seed(seed))[:, :n]
    best = [
        max(range(n), key=lambda i, row=row: (scores[row, i].item(), coin[row, i].item())) for row in range(len(scores))
    ]
    return [replies[i] for replies, i in zip(pool.replies, best, strict=True)]
