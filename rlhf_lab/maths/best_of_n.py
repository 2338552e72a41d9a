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


def tied_best_of_n_kl(scores: torch.Tensor, ns: Sequence[int]) -> torch.Tensor:
    """KL between best-of-n sampling and the policy sampled from, with the ties that a pool shows taken into account.

    A score that m of a pool's N replies share is a tie of probability p = m / N: the best of n falls on it with
    probability P = F(<=)^n - F(<)^n, equal scores are decided by a coin, and it adds P log(P / p). A score that came up
    once counts as untied: it adds the integral of n u^(n-1) log(n u^(n-1)) over its share of the quantiles u. Without
    any tie the sum is log n - (n - 1) / n; ties too rare to show in the pool make it too high.

    Shapes: scores (B, N) -> (B, len(ns)) in float64. Units: nats per reply.
    Errors: ValueError on other shapes or an n below 1.
    Source: the best of n under the ranker's cumulative distribution F, as in `best_of_n_kl`; here with F's steps.

    >>> tied_best_of_n_kl(torch.tensor([[0.0, 0.0, 1.0, 1.0]]), [2])  # 1/4 log 1/2 + 3/4 log 3/2
    tensor([[0.1308]], dtype=torch.float64)
    """
    if scores.dim() != 2:
        raise ValueError(f"tied_best_of_n_kl: scores must be (B, N), got {tuple(scores.shape)}")
    if bad := [n for n in ns if n < 1]:
        raise ValueError(f"tied_best_of_n_kl: n must be at least 1, got {bad[0]}")
    return torch.stack([torch.stack([_tied_kl(row, n) for n in ns]) for row in scores])


def _tied_kl(row: torch.Tensor, n: int) -> torch.Tensor:
    counts = row.unique(return_counts=True)[1]  # of the levels from the lowest to the highest
    share = counts.double() / len(row)
    high = share.cumsum(0).clamp(max=1)
    low = torch.cat([torch.zeros(1, dtype=torch.float64, device=row.device), high[:-1]])
    mass = high**n - low**n
    tied = torch.special.xlogy(mass, mass / share)
    untied = _untied(high, n) - _untied(low, n)
    return torch.where(counts > 1, tied, untied).sum()


def _untied(u: torch.Tensor, n: int) -> torch.Tensor:
    """The integral of n v^(n-1) log(n v^(n-1)) over v from 0 to u."""
    return u**n * (math.log(n) - (n - 1) / n) + (n - 1) * torch.special.xlogy(u**n, u)


def _weights(size: int, n: int) -> torch.Tensor:
    """(N,) C(i-1, n-1) / C(N, n) for i = 1..N, by logarithms: the binomials themselves overflow."""
    total = math.lgamma(size + 1) - math.lgamma(n + 1) - math.lgamma(size - n + 1)
    logs = [
        math.lgamma(i) - math.lgamma(n) - math.lgamma(i - n + 1) - total if i >= n else -math.inf
        for i in range(1, size + 1)
    ]
    return torch.tensor(logs, dtype=torch.float64).exp()
