"""At ratio 1 the gradient of policy_loss is the policy gradient of the textbook, -E[grad log pi * A]."""

import itertools

import pytest
import torch

from rlhf_lab.maths import policy_loss, token_logprobs

MASK = torch.tensor([[True, True, False], [True, True, True]])
ADVANTAGES = torch.tensor([[1.0, -0.5, 7.0], [2.0, 0.3, -1.5]], dtype=torch.float64)


@pytest.mark.parametrize(
    ("reduction", "weights"),
    [
        ("token", [1 / 5, 1 / 5]),  # five real tokens
        ("sequence", [1 / 4, 1 / 6]),  # two replies, of two and three tokens
        (10, [1 / 20, 1 / 20]),  # two replies, sums over 10
    ],
)
def test_gradient_in_the_logits_of_a_softmax_policy(reduction, weights):
    # d log softmax(z)_a / dz_v = 1[v = a] - p_v, so dL/dz_v = -weight * A * (1[v = a] - p_v), 0 where masked
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(2, 3, 4, dtype=torch.float64, generator=generator, requires_grad=True)
    tokens = torch.tensor([[0, 3, 1], [2, 2, 0]])
    logp = token_logprobs(logits, tokens)
    policy_loss(logp, logp.detach(), ADVANTAGES, MASK, clip=0.2, reduction=reduction).loss.backward()
    for b, t, v in itertools.product(range(2), range(3), range(4)):
        p = logits[b, t].softmax(-1)[v].item()
        by_hand = -weights[b] * ADVANTAGES[b, t].item() * ((v == tokens[b, t].item()) - p)
        assert logits.grad[b, t, v].item() == pytest.approx(by_hand if MASK[b, t] else 0.0, abs=1e-12)


# A policy over replies of at most two tokens out of (end, a, b): four logits tables, every reply enumerated.
REPLIES = [(0,), *itertools.product((1, 2), (0, 1, 2))]
REWARDS = [0.2, 1.0, -0.4, 2.0, 0.0, -1.0, 0.7]


def logits_of(theta, reply):
    """Logits at each position of a reply, padded to two."""
    return torch.stack([theta[0], theta[reply[0]]])


def test_expectation_over_all_replies_is_the_gradient_of_the_expected_reward():
    """The oracle differentiates J = sum_y pi(y) R(y) itself: no log-probability trick, no ratio."""
    theta = torch.randn(3, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(1))

    exact = theta.clone().requires_grad_()
    probabilities = []
    for reply in REPLIES:
        steps = [exact[0].softmax(0)[reply[0]]]
        if len(reply) == 2:
            steps.append(exact[reply[0]].softmax(0)[reply[1]])
        probabilities.append(torch.stack(steps).prod())
    assert sum(probabilities).item() == pytest.approx(1)
    sum(p * r for p, r in zip(probabilities, REWARDS, strict=True)).backward()

    ours = theta.clone().requires_grad_()
    mask = torch.tensor([[True, len(reply) == 2] for reply in REPLIES])
    tokens = torch.tensor([[*reply, 0][:2] for reply in REPLIES])
    logp = token_logprobs(torch.stack([logits_of(ours, reply) for reply in REPLIES]), tokens)
    # reduction 1 sums each reply; times pi(y) and the number of replies, the mean is the expectation
    weights = torch.stack(probabilities).detach() * torch.tensor(REWARDS, dtype=torch.float64) * len(REPLIES)
    policy_loss(logp, logp.detach(), weights[:, None].expand(-1, 2), mask, clip=0.2, reduction=1).loss.backward()
    assert torch.allclose(ours.grad, -exact.grad, atol=1e-12)


def test_a_constant_baseline_leaves_the_expected_gradient_alone():
    """E[grad log pi] = 0, by enumeration of a single choice: what lets an advantage replace a reward."""
    theta = torch.tensor([0.3, -1.0, 0.8], dtype=torch.float64)
    rewards = torch.tensor([1.0, 0.0, -1.0], dtype=torch.float64)
    gradients = []
    for baseline in (0.0, 5.0):
        logits = theta.clone().requires_grad_()
        logp = token_logprobs(logits.expand(3, 1, 3), torch.arange(3)[:, None])
        weighted = theta.softmax(0)[:, None] * (rewards - baseline)[:, None]
        mask = torch.ones(3, 1, dtype=torch.bool)
        policy_loss(logp, logp.detach(), weighted, mask, clip=0.2).loss.backward()
        gradients.append(logits.grad)
    assert torch.allclose(*gradients, atol=1e-12)
    assert gradients[0].abs().max() > 0.01
