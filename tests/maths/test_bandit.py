"""Where the KL enters: a three-armed bandit whose optimum is known in closed form.

Rewards (1, 0, -1), uniform reference, coefficient 1. The optimum of E[r] - KL(pi || pi_ref) is pi_ref e^r
normalised, that is e^1, e^0, e^-1 over their sum 4.0862. The policy is three logits, the gradient the exact
expectation over the arms, so nothing here is left to chance.
"""

import pytest
import torch

from rlhf_lab.maths import kl_estimate, policy_loss, shaped_rewards

REWARD = torch.tensor([1.0, 0.0, -1.0], dtype=torch.float64)
REFERENCE = torch.full((3,), 1 / 3, dtype=torch.float64)
OPTIMUM = [0.6652, 0.2447, 0.0900]
ONE_TOKEN = torch.ones(3, 1, dtype=torch.bool)


def climb(objective, steps=600, rate=0.5):
    """The policy after exact gradient ascent on the sum over arms of p * objective(logp), p held constant."""
    theta = torch.zeros(3, dtype=torch.float64, requires_grad=True)
    for _ in range(steps):
        logp = theta.log_softmax(0)
        value = (logp.detach().exp() * objective(logp)).sum()
        (gradient,) = torch.autograd.grad(value, theta)
        theta = (theta + rate * gradient).detach().requires_grad_()
    return theta.detach().softmax(0)


def total_variation(p, q):
    return (p - torch.tensor(q, dtype=p.dtype)).abs().sum().item() / 2


def kl_in_the_reward(kind):
    """REINFORCE on reward - KL estimate: the estimate is a constant, as any reward is."""
    return lambda logp: logp * (REWARD - kl_estimate(logp, REFERENCE.log(), kind=kind)).detach()


def kl_in_the_loss(kind):
    """REINFORCE on the reward, and the estimate differentiated beside it."""
    return lambda logp: logp * REWARD - kl_estimate(logp, REFERENCE.log(), kind=kind)


def test_k1_in_the_reward_reaches_the_optimum():
    assert total_variation(climb(kl_in_the_reward("k1")), OPTIMUM) < 0.001


def test_shaped_rewards_and_policy_loss_reach_the_optimum():
    """The same through the functions that training uses: three replies of one token, one per arm."""

    def objective(logp):
        now = logp.detach()[:, None]
        advantages = shaped_rewards(REWARD, now, REFERENCE.log()[:, None], ONE_TOKEN, kl_coef=1.0)
        weighted = now.exp() * advantages * 3  # so that the mean over three replies is the expectation
        return -policy_loss(logp[:, None], now, weighted, ONE_TOKEN, clip=0.2).loss

    assert total_variation(climb(objective), OPTIMUM) < 0.01


@pytest.mark.parametrize("kind", ["k2", "k3"])
def test_k2_and_k3_in_the_reward_collapse(kind):
    assert total_variation(climb(kl_in_the_reward(kind)), [1.0, 0.0, 0.0]) < 0.01


def test_k2_in_the_loss_reaches_the_optimum():
    assert total_variation(climb(kl_in_the_loss("k2")), OPTIMUM) < 0.001


def test_k3_in_the_loss_reaches_the_optimum_of_the_other_kl():
    # E[r] - KL(pi_ref || pi): its derivative in pi_a, r_a + ref_a / pi_a, is the same c for every arm, so
    # pi_a = (1/3) / (c - r_a), with c found by bisection so that they sum to 1
    low, high = 1.0 + 1e-9, 5.0
    for _ in range(100):
        c = (low + high) / 2
        low, high = (c, high) if sum(1 / (3 * (c - r)) for r in (1, 0, -1)) > 1 else (low, c)
    other = [1 / (3 * (c - r)) for r in (1, 0, -1)]
    assert sum(other) == pytest.approx(1)
    reached = climb(kl_in_the_loss("k3"))
    assert total_variation(reached, other) < 0.001
    assert total_variation(reached, OPTIMUM) > 0.02


def test_without_a_kl_the_best_arm_takes_all():
    assert total_variation(climb(lambda logp: logp * REWARD), [1.0, 0.0, 0.0]) < 0.01
