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
from rlhf_lab.models.forward import TokenLogprobs
from rlhf_lab.models.inputs import model_inputs
from rlhf_lab.models.shards import whole
from rlhf_lab.training.ppo_config import PPOConfig
from rlhf_lab.training.processes import ALONE, Processes
from rlhf_lab.training.rollouts import FirstPass, Rollout, micro_batches

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
    first: FirstPass | None = None,
) -> PPOStats:
    """`epochs` passes over a rollout in `minibatches` optimizer steps each. `critic` may be None.

    Micro-batches split a minibatch to save memory and change nothing: every mean is over the whole minibatch.
    texts: pretraining texts, whose loss is mixed into every optimizer step (PPO-ptx).
    train_policy=False: the critic learns alone.
    first: what was kept of the rollout's own passes, where `one_pass` says so; the first step learns from it.
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
            measured.append(step.take(rollout, advantages, returns, rows, first))
            first = None  # from here on the weights are others
            if config.target_kl is not None and measured[-1]["approx_kl"] > config.target_kl:
                return _average(measured)
    return _average(measured)


def one_pass(config: PPOConfig, processes: Processes) -> bool:
    """Whether the first step is on the whole rollout at once, so that it can take the passes that read the rollout."""
    whole = config.minibatches == 1 and not config.micro_batch_size and processes.count == 1
    return whole and not config.entropy_coef and config.value_loss == "mse"


class _Step(NamedTuple):
    """One optimizer step."""

    policy: torch.nn.Module
    critic: torch.nn.Module | None
    optimizer: torch.optim.Optimizer
    config: PPOConfig
    texts: Texts | None
    train_policy: bool
    processes: Processes

    def take(self, rollout: Rollout, advantages, returns, rows: torch.Tensor, first) -> dict[str, float]:
        """Policy and critic learn one after the other, so that one's gradients are gone before the other's come."""
        if self.config.whiten == "minibatch":
            advantages = advantages.clone()
            advantages[rows] = masked_whiten(advantages[rows], rollout.response_mask[rows])
        sums = dict.fromkeys(("value_loss", "value_clip_fraction", "explained_variance", "value_grad_norm"), 0.0)
        for learners in self._apart():
            sums |= self._learn(learners, rollout, advantages, returns, rows, first)
        return sums

    def _apart(self) -> list[tuple[str, ...]]:
        """Who learns in one backward pass: policy and critic, each alone unless they train weights in common."""
        if self.critic is None:
            return [("policy",)]
        ours, theirs = ({id(p) for p in m.parameters() if p.requires_grad} for m in (self.policy, self.critic))
        return [("policy", "critic")] if ours & theirs else [("policy",), ("critic",)]

    def _learn(self, learners, rollout: Rollout, advantages, returns, rows, first) -> dict[str, float]:
        config, mask = self.config, rollout.response_mask[rows]
        self.optimizer.zero_grad(set_to_none=True)
        sums: dict[str, float] = {}
        fitted: list[tuple[torch.Tensor, torch.Tensor]] = []
        if first is None:
            parts = micro_batches(rollout.response_mask, self.processes.share(rows), config.micro_batch_size)
        else:
            parts = [torch.arange(len(rows))]  # all of them, as they were read
        for part in parts:
            batch = rollout.take(part)
            width = batch.response_mask.shape[1]
            tokens = float(batch.response_mask.sum() / mask.sum())
            replies = tokens if config.reduction == "token" else len(part) / len(rows)
            loss, figures = torch.zeros(()), {}
            if "policy" in learners:
                figures |= self._policy_losses(batch, advantages[part, :width], first)
                loss = loss + replies * figures["policy"] if self.train_policy else loss
            if "critic" in learners:
                found, values = self._value_losses(batch, returns[part, :width], first)
                figures |= found
                loss = loss + tokens * config.value_coef * figures["value_loss"]
                fitted.append((values[batch.response_mask].cpu(), returns[part, :width][batch.response_mask].cpu()))
            self.processes.backward(loss)
            for name, figure in figures.items():
                weight = replies if name in ("policy", "policy_loss", "kl_loss") else tokens
                sums[name] = sums.get(name, 0.0) + weight * figure.item()
        if "policy" in learners:
            if not self.train_policy:  # a critic on the policy's trunk has left its gradient there
                for parameter in self.policy.parameters():
                    parameter.grad = None
            sums["ptx_loss"] = self._pretraining()
        self._step(learners, sums := self.processes.sum(sums))
        if fitted:  # a variance is no mean over micro-batches: it needs the whole minibatch
            everywhere = [pair for pairs in self.processes.gather(fitted) for pair in pairs]
            sums["explained_variance"] = _explained_variance(*map(torch.cat, zip(*everywhere, strict=True)))
        return sums

    def _step(self, learners, sums: dict[str, float]) -> None:
        """Move the weights of those who learned, unless the loss is broken, and note the norms of the gradients."""
        for name in [name for name in ("policy", "value_loss") if name in sums]:
            if not math.isfinite(sums[name]):
                whose = name.removesuffix("_loss")
                raise RunFailed(f"PPO: the loss is {sums[name]} ({whose}); lower 'lr' or look for a broken reward")
        sums.pop("policy", None)
        self.processes.sum_gradients(p for group in self.optimizer.param_groups for p in group["params"])
        self._clip_gradients(learners, sums)
        self.optimizer.step()

    def _logprobs(self, batch: Rollout) -> TokenLogprobs:
        entropy = True if self.config.entropy_coef else "no_grad"
        with torch.set_grad_enabled(self.train_policy), self._autocast():
            return response_logprobs(
                self.policy, *_read(batch), temperature=self.config.temperature, with_entropy=entropy
            )

    def _policy_losses(self, batch: Rollout, advantages, first: FirstPass | None) -> dict[str, torch.Tensor]:
        """The policy's losses and token means in a micro-batch; `policy` is what is to be minimised."""
        config, mask = self.config, batch.response_mask
        logp, entropy = self._logprobs(batch) if first is None else (first.logp, first.entropy)
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
        return {
            "policy": loss,
            "policy_loss": result.loss,
            "kl_loss": kl_loss,
            "approx_kl": result.approx_kl,
            "clip_fraction": result.clip_fraction,
            "ratio": result.ratio,
            "entropy": masked_mean(entropy.detach(), mask),
        }

    def _value_losses(self, batch: Rollout, returns, first) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
        """The critic's loss in a micro-batch, how much of it was clipped, and the values (B, T)."""
        config, mask = self.config, batch.response_mask
        if config.value_loss == "hl_gauss":
            with self._autocast():
                outputs = response_value_outputs(self.critic, *_read(batch))
            centres = self.critic.centres
            width = (centres[1] - centres[0]).item()
            values = self.critic.scores(outputs).masked_fill(~mask, 0.0)
            # 0.75 bin widths: Farebrother et al. 2024 (2403.03950), section 3.1
            result = hl_gauss_loss(outputs, returns, mask, centres=centres, sigma=0.75 * width)
        else:
            with self._autocast():
                values = response_values(self.critic, *_read(batch)) if first is None else first.values
            result = value_loss(values, batch.values, returns, mask, clip=config.value_clip)
        return {"value_loss": result.loss, "value_clip_fraction": result.clip_fraction}, values.detach()

    def _autocast(self):
        return autocast(resolve_precision(self.config.precision, self.policy), self.policy)

    def _pretraining(self) -> float:
        """Add the gradient of the pretraining loss, and return that loss in nats per token."""
        if self.texts is None or not self.config.ptx_coef or not self.train_policy:
            return 0.0
        ids, mask = self.texts()
        everyone = mask[:, 1:].sum()
        ids, mask = self.processes.share(ids), self.processes.share(mask)
        with self._autocast():
            logits = self.policy(**model_inputs(self.policy, ids, mask), use_cache=False).logits[:, :-1]
        loss = -masked_mean(token_logprobs(logits.float(), ids[:, 1:]), mask[:, 1:])
        loss = loss * (mask[:, 1:].sum() / everyone)
        self.processes.backward(self.config.ptx_coef * loss)
        return loss.item()

    def _clip_gradients(self, learners, sums: dict[str, float]) -> None:
        """Clip the gradient of each model by itself, and note its norm."""
        models = {"policy_grad_norm": list(self.policy.parameters())} if "policy" in learners else {}
        if "critic" in learners:
            shared = {id(p) for p in self.policy.parameters()}
            models["value_grad_norm"] = [p for p in self.critic.parameters() if id(p) not in shared]
        for name, parameters in models.items():
            parameters = [p for p in parameters if p.grad is not None]
            norm = torch.nn.utils.clip_grad_norm_(parameters, self.config.max_grad_norm) if parameters else 0.0
            sums[name] = float(whole(norm))
            if not math.isfinite(sums[name]):  # one such step would leave no weight a number
                raise RunFailed(f"PPO: {name} is {sums[name]}; lower 'lr' or look for a broken reward")


def _read(batch: Rollout) -> tuple[torch.Tensor, ...]:
    """What the models read of a batch."""
    return batch.prompt_ids, batch.prompt_mask, batch.response_ids, batch.response_mask


def _explained_variance(values: torch.Tensor, returns: torch.Tensor) -> float:
    row = (values[None], values[None], returns[None], torch.ones_like(values, dtype=torch.bool)[None])
    return float(value_loss(*row, clip=None).explained_variance)


def _average(measured: list[dict[str, float]]) -> PPOStats:
    means = {name: sum(m[name] for m in measured) / len(measured) for name in measured[0]}
    return PPOStats(**means, optimizer_steps=len(measured))
