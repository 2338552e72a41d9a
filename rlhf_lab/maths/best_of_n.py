"""What best-of-n sampling gives, estimated from one pool of samples for every n at once."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch


class BestOfN(NamedTuple):
    """Expected figures of the best of n replies; one column for each n asked for."""

    score: torch.Tensor  # (B, n's) of the ranker's own score
    value: torch.Tensor  # (B, n's) of the value that was looked at


def best_of_n_curve(
    scores: torch.Tensor, values: torch.Tensor, ns: Sequence[int], *, tie_breaker: torch.Tensor | None = None
) -> BestOfN:
    """Expected score and value of the reply that scores highest among n drawn without replacement from a pool.

    With the pool sorted by score, ascending, the i-th of N replies is the best of n in C(i-1, n-1) of the C(N, n)
    draws. That is the average over every draw of n from the pool, so the estimator is unbiased for any n up to N.

    Shapes: scores (B, N), values (B, N), tie_breaker (B, N) of independent uniform numbers -> (B, len(ns)) each.
    Units: those of scores and values. Equal scores are ordered by `tie_breaker`, without one by their place in the row.
    Errors: ValueError on unequal shapes or an n outside 1..N.
    Source: Nakano et al. 2021 (WebGPT, 2112.09332), appendix I; Gao et al. (2210.10760), 2.

    >>> pool = torch.tensor([[0.0, 1.0, 2.0]])  # of the pairs (0,1), (0,2), (1,2) the best are 1, 2, 2
    >>> best_of_n_curve(pool, pool, [2]).value
    tensor([[1.6667]], dtype=torch.float64)
    """
    if scores.shape != values.shape or scores.dim() != 2:
        shapes = f"{tuple(scores.shape)} and {tuple(values.shape)}"
        raise ValueError(f"best_of_n_curve: scores and values must both be (B, N), got {shapes}")
    size = scores.shape[1]
    if bad := [n for n in ns if not 1 <= n <= size]:
        raise ValueError(f"best_of_n_curve: n must be from 1 to the {size} replies of the pool, got {bad[0]}")
    order = scores.argsort(dim=1, stable=True)
    if tie_breaker is not None:
        shuffled = tie_breaker.argsort(dim=1)
        order = shuffled.gather(1, scores.gather(1, shuffled).argsort(dim=1, stable=True))
    weights = torch.stack([_weights(size, n) for n in ns], dim=1).to(scores.device)  # (N, n's)
    ranked = [x.double().gather(1, order) @ weights for x in (scores, values)]
    return BestOfN(*ranked)


def _weights(size: int, n: int) -> torch.Tensor:
    """(N,) C(i-1, n-1) / C(N, n) for i = 1..N, by logarithms: the binomials themselves overflow."""
    total = math.lgamma(size + 1) - math.lgamma(n + 1) - math.lgamma(size - n + 1)
    logs = [
        math.lgamma(i) - math.lgamma(n) - math.lgamma(i - n + 1) - total if i >= n else -math.inf
        for i in range(1, size + 1)
    ]
    return torch.tensor(logs, dtype=torch.float64).exp()
