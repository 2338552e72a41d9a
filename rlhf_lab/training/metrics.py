"""The figures of an update, under the names that people's dashboards already use."""

import math

import torch

from rlhf_lab.maths import kl_estimate
from rlhf_lab.rewards import WeightedReward
from rlhf_lab.training.ppo import PPOConfig, PPOUpdate, final_scores
from rlhf_lab.training.reward_model import RewardModelStats


def ppo_metrics(update: PPOUpdate, config: PPOConfig) -> dict[str, float]:
    """Metrics of one update. `objective/*` are sums over a reply, averaged over replies; the others are token means."""
    rollout, stats = update.rollout, update.stats
    mask = rollout.response_mask
    kl, kl_k2, kl_k3 = (
        kl_estimate(rollout.old_logp, rollout.ref_logp, kind=kind).masked_fill(~mask, 0).sum(1)
        for kind in ("k1", "k2", "k3")
    )
    penalty = update.kl_coef if config.kl_in == "reward" else 0.0
    entropy = -rollout.old_logp.masked_fill(~mask, 0).sum(1)
    scores = final_scores(rollout, config, scale=update.score_scale)
    lengths = mask.sum(1).float()
    unfinished = ~rollout.finished
    return {
        "episode": update.episode,
        "objective/kl": kl.mean().item(),
        "objective/kl_k2": kl_k2.mean().item(),
        "objective/kl_k3": kl_k3.mean().item(),
        "objective/non_score_reward": -(penalty * kl).mean().item(),
        "objective/entropy": entropy.mean().item(),
        "objective/scores": scores.mean().item(),
        "objective/scores_raw": rollout.scores.mean().item(),
        "objective/rlhf_reward": (scores - penalty * kl).mean().item(),
        "objective/kl_coef": update.kl_coef,
        "policy/approxkl_avg": stats.approx_kl,
        "policy/clipfrac_avg": stats.clip_fraction,
        "policy/entropy_avg": stats.entropy,
        "policy/grad_norm": stats.policy_grad_norm,
        "loss/policy_avg": stats.policy_loss,
        "loss/value_avg": stats.value_loss,
        "loss/kl_avg": stats.kl_loss,
        "loss/ptx_avg": stats.ptx_loss,
        "val/clipfrac_avg": stats.value_clip_fraction,
        "val/ratio": stats.ratio,
        "val/explained_var": stats.explained_variance,
        "val/grad_norm": stats.value_grad_norm,
        "val/num_eos_tokens": float(rollout.finished.sum()),
        "completions/mean_length": lengths.mean().item(),
        "completions/clipped_ratio": _share(unfinished & (mask.sum(1) >= config.max_new_tokens)),
        "completions/eos_rate": _share(rollout.finished),
        "time/rollout": update.seconds["rollout"],
        "time/score": update.seconds["score"],
        "time/train": update.seconds["train"],
        "lr": update.lr,
    }


def reward_parts(reward) -> dict[str, float]:
    """The mean of each part of a weighted reward over the replies it scored last; none of any other reward."""
    parts = reward.last if isinstance(reward, WeightedReward) else {}
    return {f"rewards/{name}": math.fsum(values) / len(values) for name, values in parts.items()}


def _share(flags: torch.Tensor) -> float:
    return flags.float().mean().item()


def reward_model_metrics(stats: RewardModelStats) -> dict[str, float]:
    """Metrics of one optimizer step of reward-model training."""
    return {
        "train/loss": stats.loss,
        "train/accuracy": stats.accuracy,
        "train/gap": stats.gap,
        "policy/grad_norm": stats.grad_norm,
        "lr": stats.lr,
    }
