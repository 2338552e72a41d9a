"""How far a policy has moved: KL(pi || pi_ref) from samples, its controller, and best-of-n in closed form.

Sign, for samples drawn from the policy: logr = ref_logp - logp. Reversed, a penalty pays the policy for
drifting.
"""

import math

import torch
from torch import Tensor

from rlhf_lab.maths.shapes import check_shapes


def kl_estimate(logp: Tensor, ref_logp: Tensor, *, kind: str) -> Tensor:
    """One estimate of KL(pi || pi_ref) per sample, for samples drawn from the policy pi.

    With logr = ref_logp - logp: k1 = -logr (unbiased, high variance, either sign); k2 = logr^2 / 2 (biased,
    at least 0); k3 = exp(logr) - 1 - logr (unbiased, at least 0). In the reward only k1 regularises. As a
    loss, k2 has the on-policy gradient of KL(pi || pi_ref), k3 that of KL(pi_ref || pi).

    Shapes: logp and ref_logp alike, any number of axes; the result likewise. There is no mask: reduce with
    one.
    Units: nats per sample (per token for token log-probabilities).
    Errors: ValueError when the shapes differ or `kind` is not k1, k2 or k3.
    Source: Schulman, "Approximating KL divergence" (2020), estimators k1 to k3.

    >>> kl_estimate(torch.tensor([-1.0]), torch.tensor([-1.5]), kind="k1")
    tensor([0.5000])
    """
    check_shapes("kl_estimate", "", logp=logp, ref_logp=ref_logp)
    logr = ref_logp - logp
    if kind == "k1":
        return -logr
    if kind == "k2":
        return logr.square() / 2
    if kind == "k3":
        return torch.expm1(logr) - logr  # exp(x) - 1 loses every digit of a small x in float32
    raise ValueError(f"kl_estimate: kind must be k1, k2 or k3, got {kind!r}")


def adaptive_kl(coef: float, kl: float, *, target: float, horizon: float, n_steps: float) -> float:
    """The next KL coefficient: higher when the policy is beyond `target` from the reference, else lower.

    coef * (1 + clip(kl / target - 1, -0.2, 0.2) * n_steps / horizon).

    Shapes: numbers. Units: kl and target in nats per reply (summed over its tokens); n_steps and horizon in
    replies.
    Errors: ValueError unless target and horizon are above 0.
    Source: Ziegler et al. (1909.08593) with the gain of their code in place of the paper's constant 0.1.

    >>> round(adaptive_kl(0.15, 12.0, target=6.0, horizon=10_000, n_steps=512), 6)  # 0.15 * 1.01024
    0.151536
    """
    if target <= 0 or horizon <= 0:
        raise ValueError(f"adaptive_kl: target and horizon must be above 0, got {target} and {horizon}")
    error = min(max(kl / target - 1, -0.2), 0.2)
    return coef * (1 + error * n_steps / horizon)


def ziegler_paper_kl(coef: float, kl: float, *, target: float) -> float:
    """The next KL coefficient by the paper's own rule: coef * (1 + 0.1 * clip(kl / target - 1, -0.2, 0.2)).

    Shapes: numbers. Units: kl and target in nats per reply. Errors: ValueError unless target is above 0.
    Source: Ziegler et al. (1909.08593) section 2.2, K_beta = 0.1; their code has `adaptive_kl`.

    >>> round(ziegler_paper_kl(0.15, 12.0, target=6.0), 6)  # 0.15 * (1 + 0.1 * 0.2)
    0.153
    """
    if target <= 0:
        raise ValueError(f"ziegler_paper_kl: target must be above 0, got {target}")
    return coef * (1 + 0.1 * min(max(kl / target - 1, -0.2), 0.2))


def ppo_paper_kl(coef: float, kl: float, *, target: float) -> float:
    """The next KL coefficient by halving and doubling: half below target / 1.5, double above 1.5 target.

    Shapes: numbers. Units: kl and target in nats per reply. Errors: ValueError unless target is above 0.
    Source: Schulman et al. (1707.06347) section 4. There the KL is that of one policy update.

    >>> ppo_paper_kl(0.2, 10.0, target=6.0), ppo_paper_kl(0.2, 3.0, target=6.0), ppo_paper_kl(0.2, 6.0, target=6.0)
    (0.4, 0.1, 0.2)
    """
    if target <= 0:
        raise ValueError(f"ppo_paper_kl: target must be above 0, got {target}")
    if kl < target / 1.5:
        return coef / 2
    return coef * 2 if kl > target * 1.5 else coef


def best_of_n_kl(n: int) -> float:
    """KL between best-of-n sampling and the policy sampled from, log n - (n - 1) / n.

    Exact when no two samples can tie under the ranker, otherwise an upper bound.

    Shapes: numbers. Units: nats per reply.
    Errors: ValueError when n is below 1.
    Source: Stiennon et al. (2009.01325); Gao et al. (2210.10760).

    >>> round(best_of_n_kl(2), 4)  # log 2 - 1/2
    0.1931
    """
    if n < 1:
        raise ValueError(f"best_of_n_kl: n must be at least 1, got {n}")
    return math.log(n) - (n - 1) / n
