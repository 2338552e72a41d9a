"""From one score per reply to one advantage per token (PPO, REINFORCE) or per reply (RLOO, GRPO).

Masked positions are skipped, not filled with zeros: they cost no discount, and what follows them is what
comes next.
"""

import torch
from torch import Tensor

from rlhf_lab.maths.kl import kl_estimate
from rlhf_lab.maths.shapes import check_shapes


def shaped_rewards(
    score: Tensor, logp: Tensor, ref_logp: Tensor, mask: Tensor, *, kl_coef: float, kind: str = "k1"
) -> Tensor:
    """Per-token rewards: -kl_coef * k1 at every real token, and the reply's score on its last one.

    Summed over a reply: score - kl_coef * log(pi(y|x) / pi_ref(y|x)).

    Shapes: score (B,); logp, ref_logp, mask (B, T) -> (B, T), 0 at masked positions. The last True of a row
    is where the score lands (the EOS when there is one).
    Units: score in reward units, log-probabilities in nats, kl_coef in reward units per nat.
    kind: only k1 regularises. k2 and k3 as a reward lose their own gradient; they are here to be shown to fail.
    Errors: ValueError when shapes do not fit, the mask is not bool, or a row has no real token.
    Source: InstructGPT (2203.02155) eq. 2 without the pretraining term; Stiennon et al. (2009.01325).

    >>> logp, mask = torch.tensor([[-1.0, -1.0, 0.0]]), torch.tensor([[True, True, False]])
    >>> shaped_rewards(torch.tensor([2.0]), logp, logp - 0.5, mask, kl_coef=0.1)
    tensor([[-0.0500,  1.9500,  0.0000]])
    """
    check_shapes("shaped_rewards", "BT", logp=logp, ref_logp=ref_logp, mask=mask)
    if score.shape != mask.shape[:1]:
        raise ValueError(f"shaped_rewards: wants score (B,) with B = {len(mask)}, got {tuple(score.shape)}")
    if not mask.any(dim=1).all():
        row = mask.any(dim=1).logical_not().nonzero()[0].item()
        raise ValueError(f"shaped_rewards: row {row} has no real token to carry its score")
    penalty = -kl_coef * kl_estimate(torch.where(mask, logp, 0), torch.where(mask, ref_logp, 0), kind=kind)
    positions = torch.arange(mask.shape[1], device=mask.device)
    last = torch.where(mask, positions, -1).amax(dim=1, keepdim=True)
    return torch.where(positions == last, penalty + score[:, None], penalty)


def gae(rewards: Tensor, values: Tensor, mask: Tensor, *, gamma: float, lam: float) -> tuple[Tensor, Tensor]:
    """Generalised advantage estimates, and the returns the critic is trained on.

    delta_t = r_t + gamma V_{t+1} - V_t, A_t = delta_t + gamma lam A_{t+1}, returns = A + V, where t+1 is the
    next real token and V = A = 0 after the last. lam=0 is the TD error, lam=1 the discounted return minus the
    value.

    Shapes: rewards, values, mask (B, T) -> (advantages, returns), both (B, T) and 0 at masked positions.
    values[:, t] is the value of the state before token t.
    Units: reward units; nothing is whitened.
    Errors: ValueError when the shapes differ or the mask is not bool.
    Source: Schulman et al. (1506.02438) section 3; PPO (1707.06347) eq. 11 and 12.
    """
    check_shapes("gae", "BT", rewards=rewards, values=values, mask=mask)
    rewards, values = torch.where(mask, rewards, 0), torch.where(mask, values, 0)
    advantages = torch.zeros_like(values)
    next_value = next_advantage = values.new_zeros(len(values))
    for t in reversed(range(mask.shape[1])):
        here, value = mask[:, t], values[:, t]
        advantage = rewards[:, t] + gamma * next_value - value + gamma * lam * next_advantage
        next_value = torch.where(here, value, next_value)
        next_advantage = torch.where(here, advantage, next_advantage)
        advantages[:, t] = torch.where(here, advantage, 0)
    return advantages, advantages + values


def discounted_returns(rewards: Tensor, mask: Tensor, *, gamma: float) -> Tensor:
    """Sum of the rewards from each real token on, each later real token discounted once more by gamma.

    Shapes: rewards, mask (B, T) -> (B, T), 0 at masked positions.
    Units: reward units. Errors: ValueError when the shapes differ or the mask is not bool.
    Source: G_t = r_t + gamma G_{t+1}, Sutton and Barto, Reinforcement Learning (2nd edition) section 3.3.

    >>> discounted_returns(torch.tensor([[0.0, 0.0, 1.0]]), torch.tensor([[True, False, True]]), gamma=0.5)
    tensor([[0.5000, 0.0000, 1.0000]])
    """
    check_shapes("discounted_returns", "BT", rewards=rewards, mask=mask)
    rewards = torch.where(mask, rewards, 0)
    returns = torch.zeros_like(rewards)
    following = rewards.new_zeros(len(rewards))
    for t in reversed(range(mask.shape[1])):
        following = torch.where(mask[:, t], rewards[:, t] + gamma * following, following)
        returns[:, t] = torch.where(mask[:, t], following, 0)
    return returns


def rloo_advantages(scores: Tensor) -> Tensor:
    """Each score minus the mean of the other scores of its prompt.

    Shapes: scores (B, G), G samples for each of B prompts -> (B, G). Units: reward units.
    Errors: ValueError when scores has not two axes, or G is below 2: there is no other sample.
    Source: RLOO, Ahmadian et al. (2402.14740); equals G / (G - 1) * (score - mean).

    >>> rloo_advantages(torch.tensor([[1.0, 2.0, 3.0]]))
    tensor([[-1.5000,  0.0000,  1.5000]])
    """
    check_shapes("rloo_advantages", "BG", scores=scores)
    n = scores.shape[1]
    if n < 2:
        raise ValueError(f"rloo_advantages: wants at least two samples per prompt, got {n}")
    return scores - (scores.sum(dim=1, keepdim=True) - scores) / (n - 1)


def grpo_advantages(scores: Tensor, *, scale: bool = True) -> Tensor:
    """Each score minus its group's mean, over the group's standard deviation unless `scale` is False.

    Shapes: scores (B, G), G samples for each of B prompts -> (B, G).
    Units: group standard deviations (unbiased, G - 1); reward units with scale=False. A group whose scores
    are all equal, a group of one included, gets 0: it says nothing about what is better.
    Errors: ValueError when scores has not two axes.
    Source: GRPO, DeepSeekMath (2402.03300) section 4.1; scale=False is Dr. GRPO (2503.20783).

    >>> grpo_advantages(torch.tensor([[1.0, 2.0, 3.0]]))
    tensor([[-1.,  0.,  1.]])
    """
    check_shapes("grpo_advantages", "BG", scores=scores)
    # equality, not deviation 0: rounding in the mean would be blown up to advantages of order 1
    equal = (scores == scores[:, :1]).all(dim=1, keepdim=True)
    centred = torch.where(equal, 0, scores - scores.mean(dim=1, keepdim=True))
    if not scale:
        return centred
    std = (centred.square().sum(dim=1, keepdim=True) / max(scores.shape[1] - 1, 1)).sqrt()
    return centred / torch.where(std > 0, std, 1)
