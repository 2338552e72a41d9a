"""The three-armed bandit of 03_ppo: which estimator of the KL, in the reward, reaches the optimum."""

import torch
from matplotlib.figure import Figure

from rlhf_lab.maths import kl_estimate
from rlhf_lab.workbench.style import BLUE, GREY, ORANGE, RED, empty_figure, styled

REWARD = torch.tensor([1.0, 0.0, -1.0])
REFERENCE = torch.full((3,), 1 / 3)


def climb(kind: str, *, steps: int = 200, rate: float = 0.5) -> torch.Tensor:
    """(steps + 1, 3) policies of exact policy-gradient ascent on reward - KL estimate, at coefficient 1 from uniform.

    The expectation is a sum over the arms, so nothing is left to chance. The estimate is a constant to the gradient, as
    every reward is. Source: Schulman's note on KL estimators (2020) for k1, k2 and k3.
    """
    theta = torch.zeros(3)
    policies = [theta.softmax(0)]
    for _ in range(steps):
        logp = theta.log_softmax(0)
        worth = REWARD - kl_estimate(logp, REFERENCE.log(), kind=kind)
        p = logp.exp()
        theta = theta + rate * p * (worth - (p * worth).sum())  # sum_a p_a worth_a grad log p_a
        policies.append(theta.softmax(0))
    return torch.stack(policies)


@styled
def figure() -> Figure:
    """The best arm's probability over the steps, with the optimum e^r normalised as a dashed line."""
    fig, axes = empty_figure(1, 1, height=2.8)
    ax = axes[0, 0]
    for kind, color in (("k1", BLUE), ("k2", ORANGE), ("k3", RED)):
        ax.plot(climb(kind)[:, 0], color=color, label=f"{kind} in the reward")
    optimum = (REFERENCE * REWARD.exp() / (REFERENCE * REWARD.exp()).sum())[0].item()
    ax.axhline(optimum, color=GREY, linestyle="--", label=f"optimum {optimum:.3f}")
    ax.set(xlabel="exact gradient step", ylabel="probability of the best arm", ylim=(0.3, 1.02))
    ax.legend(loc="center right")
    return fig
