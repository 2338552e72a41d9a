"""One PPO step: some passes over a rollout, each in a number of optimizer steps."""

import math
from collections.abc import Callable
from typing import NamedTuple

import torch

from rlhf_lab.errors import LabError, RunFailed
from rlhf_lab.maths import (
    hl_gauss_loss,
    kl_estimate,
    masked_mean,
    masked_whiten,
    policy_loss,
    reduce_tokens,
    token_logprobs,
    value_loss,
)
from rlhf_lab.models import autocast, resolve_precision, response_logprobs, response_value_outputs, response_values
from rlhf_lab.models.forward import model_inputs
from rlhf_lab.models.shards import whole
from rlhf_lab.training.ppo_config import PPOConfig
from rlhf_lab.training.processes import ALONE, Processes
from rlhf_lab.training.rollouts import Rollout

Texts = Callable[[], tuple[torch.Tensor, torch.Tensor]]
"""Gives the next pretraining texts: ids and bool mask, both (N, L)."""


class PPOStats(NamedTuple):
    """What one `ppo_step` measured, averaged over its optimizer steps; token figures are masked means."""

    policy_loss: float
    value_loss: float
    kl_loss: float  # the estimate that is a part of the loss, before its coefficient; 0 with the KL in the reward
    ptx_loss: float  # nats per token of pretraining text, 0 without
    approx_kl: float
    clip_fraction: float
    ratio: float
    entropy: float  # of the policy's whole distribution, nats per token
    value_clip_fraction: float
    explained_variance: float
    policy_grad_norm: float  # before clipping
    value_grad_norm: float
    optimizer_steps: int


def ppo_step(
    policy,
    critic,
    optimizer,
    rollout: Rollout,
    advantages: torch.Tensor,
    returns: torch.Tensor,
    config: PPOConfig,
    *,
    texts: Texts | None = None,
    train_policy: bool = True,
    processes: Processes = ALONE,
) -> PPOStats:
    """`epochs` passes over a rollout in `minibatches` optimizer steps each. `critic` may be None.

    Micro-batches split a minibatch to save memory and change nothing: every mean is over the whole minibatch.
    texts: pretraining texts, whose loss is mixed into every optimizer step (PPO-ptx).
    train_policy=False: the critic learns alone.
    Of several `processes` each takes a part of every minibatch: a micro-batch that is computed elsewhere.
    Source: Schulman et al. 2017 (PPO), eq. 7 and algorithm 1; Ouyang et al. 2022 (InstructGPT), eq. 2 for ptx.
    Errors: `RunFailed` on a loss that is not finite.
    """
    size = len(rollout.scores)
    if size < config.minibatches:
        raise LabError(f"a rollout of {size} replies cannot be split into minibatches={config.minibatches}")
    measured: list[dict[str, float]] = []
    for _ in range(config.epochs):
        for rows in torch.randperm(size).tensor_split(config.minibatches):  # `chunk` may give fewer
            step = _Step(policy, critic, optimizer, config, texts, train_policy, processes)
            measured.append(step.take(rollout, advantages, returns, rows))
            if config.target_kl is not None and measured[-1]["approx_kl"] > config.target_kl:
                return _average(measured)
    return _average(measured)


class _Step(NamedTuple):
    """One optimizer step."""

    policy: torch.nn.Module
    critic: torch.nn.Module | None
    optimizer: torch.optim.Optimizer
    config: PPOConfig
    texts: Texts | None
    train_policy: bool
    processes: Processes

    def take(self, rollout: Rollout, advantages, returns, rows: torch.Tensor) -> dict[str, float]:
        config = self.config
        mask = rollout.response_mask[rows]
        if config.whiten == "minibatch":
            advantages = advantages.clone()
            advantages[rows] = masked_whiten(advantages[rows], mask)
        self.optimizer.zero_grad(set_to_none=True)
        sums: dict[str, float] = {}
        fitted: list[tuple[torch.Tensor, torch.Tensor]] = []
        ours = self.processes.share(rows)
        for part in ours.split(config.micro_batch_size or len(ours)):
            batch = rollout.take(part)
            width = batch.response_mask.shape[1]
            target = returns[part, :width]
            tokens = float(batch.response_mask.sum() / mask.sum())
            replies = tokens if config.reduction == "token" else len(part) / len(rows)
            parts, values = self._losses(batch, advantages[part, :width], target)
            fitted.append((values[batch.response_mask], target[batch.response_mask]))
            policy, value = parts.pop("policy"), parts["value_loss"]
            loss = tokens * config.value_coef * value
            if self.train_policy:
                loss = loss + replies * policy
            self.processes.backward(loss)
            for name, figure in (parts | {"policy": policy}).items():
                weight = replies if name in ("policy", "policy_loss", "kl_loss") else tokens
                sums[name] = sums.get(name, 0.0) + weight * figure.item()
        if not self.train_policy:  # a critic on the policy's trunk has left its gradient there
            for parameter in self.policy.parameters():
                parameter.grad = None
        sums["ptx_loss"] = self._pretraining()
        sums = self.processes.sum(sums)
        policy, value = sums.pop("policy"), sums["value_loss"]
        if not math.isfinite(policy + value):
            raise RunFailed(
                f"PPO: the loss is {policy + value} (policy {policy:.3g}, value {value:.3g}); "
                "lower 'lr' or look for a broken reward"
            )
        # A variance is no mean over micro-batches: it needs the whole minibatch.
        fitted = [pair for part in self.processes.gather([(v.cpu(), t.cpu()) for v, t in fitted]) for pair in part]
        everything = (torch.cat(part) for part in zip(*fitted, strict=True))
        sums["explained_variance"] = _explained_variance(*everything) if self.critic is not None else 0.0
        self.processes.sum_gradients(p for group in self.optimizer.param_groups for p in group["params"])
        self._clip_gradients(sums)
        self.optimizer.step()
        return sums

    def _losses(self, batch: Rollout, advantages, returns) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
        """The losses and token means of a micro-batch, and its values (B, T), which are 0 without a critic."""
        config, mask = self.config, batch.response_mask
        read = (batch.prompt_ids, batch.prompt_mask, batch.response_ids, mask)
        with autocast(resolve_precision(config.precision, self.policy), self.policy):
            logp, entropy = response_logprobs(self.policy, *read, temperature=config.temperature, with_entropy=True)
            read_critic = response_value_outputs if config.value_loss == "hl_gauss" else response_values
            values = read_critic(self.critic, *read) if self.critic is not None else None
        reduction = float(config.max_new_tokens) if config.reduction == "max_tokens" else config.reduction
        result = policy_loss(
            logp,
            batch.old_logp,
            advantages,
            mask,
            clip=config.clip,
            clip_high=config.clip_high,
            dual_clip=config.dual_clip,
            reduction=reduction,
        )
        loss, kl_loss = result.loss, torch.zeros(())
        if config.kl_in == "loss":
            kl_loss = reduce_tokens(kl_estimate(logp, batch.ref_logp, kind=config.kl_kind), mask, reduction)
            loss = loss + config.kl_coef * kl_loss
        if config.entropy_coef:
            loss = loss - config.entropy_coef * reduce_tokens(entropy, mask, reduction)
        parts = {
            "policy": loss,
            "policy_loss": result.loss,
            "kl_loss": kl_loss,
            "approx_kl": result.approx_kl,
            "clip_fraction": result.clip_fraction,
            "ratio": result.ratio,
            "entropy": masked_mean(entropy.detach(), mask),
        }
        if values is None:
            nothing = torch.zeros(())
            return parts | {"value_loss": nothing, "value_clip_fraction": nothing}, torch.zeros_like(returns)
        if config.value_loss == "hl_gauss":  # then the head's outputs were read
            outputs, centres = values, self.critic.centres
            width = (centres[1] - centres[0]).item()
            values = self.critic.scores(outputs).masked_fill(~mask, 0.0)
            # 0.75 bin widths: Farebrother et al. 2024 (2403.03950), section 3.1
            value = hl_gauss_loss(outputs, returns, mask, centres=centres, sigma=0.75 * width)
        else:
            value = value_loss(values, batch.values, returns, mask, clip=config.value_clip)
        return parts | {"value_loss": value.loss, "value_clip_fraction": value.clip_fraction}, values.detach()

    def _pretraining(self) -> float:
        """Add the gradient of the pretraining loss, and return that loss in nats per token."""
        if self.texts is None or not self.config.ptx_coef or not self.train_policy:
            return 0.0
        ids, mask = self.texts()
        everyone = mask[:, 1:].sum()
        ids, mask = self.processes.share(ids), self.processes.share(mask)
        with autocast(resolve_precision(self.config.precision, self.policy), self.policy):
            logits = self.policy(**model_inputs(self.policy, ids, mask), use_cache=False).logits[:, :-1]
        loss = -masked_mean(token_logprobs(logits.float(), ids[:, 1:]), mask[:, 1:])
        loss = loss * (mask[:, 1:].sum() / everyone)
        self.processes.backward(self.config.ptx_coef * loss)
        return loss.item()

    def _clip_gradients(self, sums: dict[str, float]) -> None:
        """Clip the gradient of each model by itself, and note its norm."""
        shared = {id(p) for p in self.policy.parameters()}
        own = [p for p in self.critic.parameters() if id(p) not in shared] if self.critic is not None else []
        for name, parameters in (("policy_grad_norm", list(self.policy.parameters())), ("value_grad_norm", own)):
            parameters = [p for p in parameters if p.grad is not None]
            norm = torch.nn.utils.clip_grad_norm_(parameters, self.config.max_grad_norm) if parameters else 0.0
            sums[name] = float(whole(norm))
            if not math.isfinite(sums[name]):  # one such step would leave no weight a number
                raise RunFailed(f"PPO: {name} is {sums[name]}; lower 'lr' or look for a broken reward")


def _explained_variance(values: torch.Tensor, returns: torch.Tensor) -> float:
    row = (values[None], values[None], returns[None], torch.ones_like(values, dtype=torch.bool)[None])
    return float(value_loss(*row, clip=None).explained_variance)


def _average(measured: list[dict[str, float]]) -> PPOStats:
    means = {name: sum(m[name] for m in measured) / len(measured) for name in measured[0]}
    return PPOStats(**means, optimizer_steps=len(measured))
