"""From the reward's answer to an advantage for every token: the place where the methods differ most."""

import math
from dataclasses import dataclass

import torch

from rlhf_lab.maths import (
    discounted_returns,
    gae,
    grpo_advantages,
    kl_estimate,
    masked_whiten,
    rloo_advantages,
    shaped_rewards,
)
from rlhf_lab.training.ppo_config import GROUPED, PPOConfig
from rlhf_lab.training.rollouts import Rollout


@dataclass
class RunningMoments:
    """Mean and variance of all numbers seen so far, by Chan's parallel update of Welford's sums."""

    count: float = 0.0
    mean: float = 0.0
    squares: float = 0.0  # sum of squared deviations from the mean

    def add(self, values: torch.Tensor) -> None:
        """Take in further numbers, a tensor of any shape."""
        values = values.double().flatten()
        n, mean = values.numel(), values.mean().item()
        gap, total = mean - self.mean, self.count + n
        self.squares += (values - mean).square().sum().item() + gap**2 * self.count * n / total
        self.mean += gap * n / total
        self.count = total

    @property
    def std(self) -> float:
        """Standard deviation, unbiased; 1 while fewer than two numbers differ."""
        spread = math.sqrt(self.squares / (self.count - 1)) if self.count > 1 else 0.0
        return spread or 1.0


def final_scores(rollout: Rollout, config: PPOConfig, *, scale: float = 1.0) -> torch.Tensor:
    """(B,) the scores that enter the rewards: divided by `scale`, clipped, and then the rule for a missing EOS.

    Source: `penalty` as TRL has it; `replace` is the EOS trick of N+ (2403.17031), detail 23.
    """
    scores = rollout.scores / scale
    if config.score_clip is not None:
        scores = scores.clamp(-config.score_clip, config.score_clip)
    without = scores - config.missing_eos_penalty
    if config.missing_eos == "replace":
        without = torch.full_like(scores, -config.missing_eos_penalty)
    return torch.where(rollout.finished, scores, without)


def estimate_advantages(
    rollout: Rollout, config: PPOConfig, *, scale: float = 1.0
) -> tuple[torch.Tensor, torch.Tensor]:
    """(advantages, returns), both (B, T) and 0 where masked. `scale` divides the scores. Returns are unwhitened.

    gae: GAE over KL-shaped rewards. reinforce++: their discounted returns. rloo, grpo and dr_grpo: one number for a
    whole reply, compared with the other replies to its prompt; a KL in the reward is then that of the whole reply.
    Source: Schulman et al. 2016 (GAE); Ouyang et al. 2022 (InstructGPT) 3.5; `rlhf_lab.maths` for the others.
    """
    scores, mask = final_scores(rollout, config, scale=scale), rollout.response_mask
    kl_coef = config.kl_coef if config.kl_in == "reward" else 0.0
    if config.advantage in GROUPED:
        advantages, returns = _by_group(rollout, scores, kl_coef, config), torch.zeros_like(rollout.values)
    else:
        rewards = shaped_rewards(scores, rollout.old_logp, rollout.ref_logp, mask, kl_coef=kl_coef, kind=config.kl_kind)
        if config.whiten_rewards:
            rewards = masked_whiten(rewards, mask, center=False)
        if config.advantage == "gae":
            advantages, returns = gae(rewards, rollout.values, mask, gamma=config.gamma, lam=config.lam)
        else:
            advantages = returns = discounted_returns(rewards, mask, gamma=config.gamma)
    if config.whiten == "rollout":
        advantages = masked_whiten(advantages, mask)
    return advantages, returns


def _by_group(rollout: Rollout, scores: torch.Tensor, kl_coef: float, config: PPOConfig) -> torch.Tensor:
    per_token = kl_estimate(rollout.old_logp, rollout.ref_logp, kind=config.kl_kind)
    kl = per_token.masked_fill(~rollout.response_mask, 0).sum(1)
    groups = (scores - kl_coef * kl).view(-1, config.samples_per_prompt)
    if config.advantage == "rloo":
        advantages = rloo_advantages(groups)
    else:
        advantages = grpo_advantages(groups, scale=config.advantage == "grpo")
    return advantages.reshape(-1, 1) * rollout.response_mask
