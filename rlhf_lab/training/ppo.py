"""Proximal policy optimisation for language models: advantages, one step, and the loop around them.

Left out on purpose: a base trainer, callbacks, several processes. The loop is a generator, so that a notebook, the
command line and a script of one's own all run the same one and look at each update as it comes.
"""

import copy
import math
import signal
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Literal, NamedTuple

import torch
from pydantic import Field

from rlhf_lab.config import Config
from rlhf_lab.errors import LabError, RunFailed
from rlhf_lab.maths import gae, masked_mean, masked_whiten, policy_loss, shaped_rewards, value_loss
from rlhf_lab.models import autocast, resolve_precision, response_logprobs, response_values
from rlhf_lab.models.loading import disable_dropout
from rlhf_lab.rewards import Reward
from rlhf_lab.training.rollouts import Rollout, rollout


class PPOConfig(Config):
    """The settings of PPO. Defaults suit the sandbox; papers' values stand in the experiment files."""

    updates: int = Field(60, ge=1)  # rollouts, each followed by `epochs` passes over it
    batch_size: int = Field(128, ge=1)  # prompts in a rollout
    samples_per_prompt: int = Field(1, ge=1)
    minibatches: int = Field(2, ge=1)  # optimizer steps in one epoch
    micro_batch_size: int = Field(0, ge=0)  # replies in one forward; 0 = the whole minibatch
    epochs: int = Field(2, ge=1)
    max_new_tokens: int = Field(40, ge=1)
    temperature: float = Field(1.0, gt=0)  # divides the logits of policy and reference alike
    lr: float = Field(5e-4, ge=0)  # Adam, decayed linearly to 0 over the run
    critic_lr: float = Field(5e-4, ge=0)
    adam_eps: float = Field(1e-5, gt=0)
    kl_coef: float = Field(0.05, ge=0)  # nats to reward: the penalty on log pi/pi_ref of each token
    clip: float = Field(0.2, gt=0)
    value_clip: float | None = Field(0.2, gt=0)
    value_coef: float = Field(0.1, ge=0)
    gamma: float = Field(1.0, ge=0, le=1)
    lam: float = Field(0.95, ge=0, le=1)
    whiten: Literal["rollout", "minibatch", "off"] = "rollout"  # the scope over which advantages are whitened
    missing_eos_penalty: float = Field(1.0, ge=0)  # taken from the score of a reply that did not end
    max_grad_norm: float = Field(1.0, gt=0)
    target_kl: float | None = Field(None, gt=0)  # stop the epochs of an update beyond this approximate KL
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    seed: int = 0


class PPOStats(NamedTuple):
    """What one `ppo_step` measured, averaged over its optimizer steps; token figures are masked means."""

    policy_loss: float
    value_loss: float
    approx_kl: float
    clip_fraction: float
    ratio: float
    entropy: float  # of the policy's whole distribution, nats per token
    value_clip_fraction: float
    explained_variance: float
    policy_grad_norm: float  # before clipping
    value_grad_norm: float
    optimizer_steps: int


class PPOUpdate(NamedTuple):
    """One finished update: what was sampled, what was learned, and at what cost."""

    rollout: Rollout
    stats: PPOStats
    number: int  # 1 for the first
    episode: int  # replies sampled so far
    lr: float
    kl_coef: float
    seconds: dict[str, float]  # rollout, score, train


def final_scores(rollout: Rollout, config: PPOConfig) -> torch.Tensor:
    """(B,) the scores that enter the rewards: the raw ones, less the penalty where the EOS is missing."""
    return rollout.scores - config.missing_eos_penalty * (~rollout.finished).float()


def estimate_advantages(rollout: Rollout, config: PPOConfig) -> tuple[torch.Tensor, torch.Tensor]:
    """(advantages, returns), both (B, T): GAE over KL-shaped rewards; whitened over the rollout if the config says so.

    Source: Schulman et al. 2016 (GAE); Ouyang et al. 2022 (InstructGPT) 3.5 for the reward; returns are unwhitened.
    """
    scores = final_scores(rollout, config)
    mask = rollout.response_mask
    rewards = shaped_rewards(scores, rollout.old_logp, rollout.ref_logp, mask, kl_coef=config.kl_coef)
    advantages, returns = gae(rewards, rollout.values, mask, gamma=config.gamma, lam=config.lam)
    if config.whiten == "rollout":
        advantages = masked_whiten(advantages, mask)
    return advantages, returns


def ppo_step(policy, critic, optimizer, rollout: Rollout, advantages, returns, config: PPOConfig) -> PPOStats:
    """`epochs` passes over a rollout in `minibatches` optimizer steps each. `critic` may be None.

    Micro-batches split a minibatch to save memory and change nothing: every mean is over the whole minibatch's tokens.
    Source: Schulman et al. 2017 (PPO), eq. 7 and algorithm 1. Errors: `RunFailed` on a loss that is not finite.
    """
    size = len(rollout.scores)
    if size < config.minibatches:
        raise LabError(f"a rollout of {size} replies cannot be split into minibatches={config.minibatches}")
    measured: list[dict[str, float]] = []
    for _ in range(config.epochs):
        for rows in torch.randperm(size).tensor_split(config.minibatches):  # `chunk` may give fewer
            measured.append(_minibatch(policy, critic, optimizer, rollout, advantages, returns, rows, config))
            if config.target_kl is not None and measured[-1]["approx_kl"] > config.target_kl:
                return _average(measured)
    return _average(measured)


def _minibatch(policy, critic, optimizer, rollout, advantages, returns, rows, config) -> dict[str, float]:
    """One optimizer step."""
    mask = rollout.response_mask[rows]
    if config.whiten == "minibatch":
        advantages = advantages.clone()
        advantages[rows] = masked_whiten(advantages[rows], mask)
    optimizer.zero_grad(set_to_none=True)
    sums: dict[str, float] = {}
    fitted: list[tuple[torch.Tensor, torch.Tensor]] = []
    total = mask.sum()
    for part in rows.split(config.micro_batch_size or len(rows)):
        batch = rollout.take(part)
        width = batch.response_mask.shape[1]
        weight = float(batch.response_mask.sum() / total)
        target = returns[part, :width]
        parts, values = _losses(policy, critic, batch, advantages[part, :width], target, config)
        fitted.append((values[batch.response_mask], target[batch.response_mask]))
        loss = parts["policy_loss"] + config.value_coef * parts["value_loss"]
        figures = {name: value.item() for name, value in parts.items()}
        if not math.isfinite(loss.item()):
            raise RunFailed(
                f"PPO: the loss is {loss.item()} (policy {figures['policy_loss']:.3g}, value "
                f"{figures['value_loss']:.3g}); lower 'lr' or look for a broken reward"
            )
        (weight * loss).backward()
        for name, value in figures.items():
            sums[name] = sums.get(name, 0.0) + weight * value
    # A variance is no mean over micro-batches: it needs the whole minibatch.
    everything = (torch.cat(part) for part in zip(*fitted, strict=True))
    sums["explained_variance"] = _explained_variance(*everything) if critic is not None else 0.0
    for name, model in (("policy_grad_norm", policy), ("value_grad_norm", critic)):
        parameters = [p for p in model.parameters() if p.grad is not None] if model is not None else []
        norm = torch.nn.utils.clip_grad_norm_(parameters, config.max_grad_norm) if parameters else 0.0
        sums[name] = float(norm)
        if not math.isfinite(sums[name]):  # one such step would leave no weight a number
            raise RunFailed(f"PPO: {name} is {sums[name]}; lower 'lr' or look for a broken reward")
    optimizer.step()
    return sums


def _losses(
    policy, critic, batch: Rollout, advantages, returns, config
) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
    """The losses and token means of a micro-batch, and its values (B, T), which are 0 without a critic."""
    read = (batch.prompt_ids, batch.prompt_mask, batch.response_ids, batch.response_mask)
    mask = batch.response_mask
    with autocast(resolve_precision(config.precision, policy), policy):
        logp, entropy = response_logprobs(policy, *read, temperature=config.temperature, with_entropy=True)
        values = response_values(critic, *read) if critic is not None else None
    result = policy_loss(logp, batch.old_logp, advantages, mask, clip=config.clip)
    parts = {
        "policy_loss": result.loss,
        "approx_kl": result.approx_kl,
        "clip_fraction": result.clip_fraction,
        "ratio": result.ratio,
        "entropy": masked_mean(entropy.detach(), mask),
    }
    if values is None:
        nothing = torch.zeros(())
        return parts | {"value_loss": nothing, "value_clip_fraction": nothing}, torch.zeros_like(returns)
    value = value_loss(values, batch.values, returns, mask, clip=config.value_clip)
    return parts | {"value_loss": value.loss, "value_clip_fraction": value.clip_fraction}, values.detach()


def _explained_variance(values: torch.Tensor, returns: torch.Tensor) -> float:
    row = (values[None], values[None], returns[None], torch.ones_like(values, dtype=torch.bool)[None])
    return float(value_loss(*row, clip=None).explained_variance)


def _average(measured: list[dict[str, float]]) -> PPOStats:
    means = {name: sum(m[name] for m in measured) / len(measured) for name in measured[0]}
    return PPOStats(**means, optimizer_steps=len(measured))


class PPOState:
    """Everything a run needs to take the next update. Whole updates only: an interrupted one leaves no trace."""

    def __init__(self, config, policy, reference, critic, reward, tokenizer, prompts, columns, optimizer):
        self.config: PPOConfig = config
        self.policy, self.reference, self.critic = policy, reference, critic
        self.reward: Reward = reward
        self.tokenizer = tokenizer
        self.prompts: list[str] = prompts
        self.columns: dict[str, list] = columns
        self.optimizer: torch.optim.Optimizer = optimizer
        self.number = 0  # whole updates done
        self.unseen: PPOUpdate | None = None  # done, but an interrupt came before it could be yielded
        self.order: list[int] = []  # prompts still to come in this pass over the data
        self.generator = torch.Generator(device=policy.device).manual_seed(config.seed)
        self.shuffler = torch.Generator().manual_seed(config.seed)

    def next_prompts(self) -> tuple[list[str], dict[str, list]]:
        """The next batch of prompts; every prompt comes once before any comes again."""
        while len(self.order) < self.config.batch_size:
            self.order += torch.randperm(len(self.prompts), generator=self.shuffler).tolist()
        rows, self.order = self.order[: self.config.batch_size], self.order[self.config.batch_size :]
        return [self.prompts[i] for i in rows], {name: [v[i] for i in rows] for name, v in self.columns.items()}


def ppo_start(
    config: PPOConfig,
    *,
    policy,
    critic,
    reward: Reward,
    tokenizer,
    prompts: Sequence[str],
    reference=None,
    columns: dict[str, list] | None = None,
) -> PPOState:
    """Get ready to train `policy`. The reference is a frozen copy of the policy unless one is given.

    Dropout is switched off in all three: it would change log-probabilities between sampling and learning.
    Errors: `LabError` if there are fewer prompts than one rollout needs, fewer replies than minibatches, a column of
    another length, or no weight of the policy to train.
    """
    columns = columns or {}
    _check_start(config, prompts, columns)
    torch.manual_seed(config.seed)
    if reference is None:
        reference = copy.deepcopy(policy)
        vars(reference).pop("forward", None)  # a forward patched onto the policy would read the policy's weights
    reference.eval().requires_grad_(False)
    for model in (policy, reference, critic):
        if model is not None:
            disable_dropout(model)
    trained = [p for p in policy.parameters() if p.requires_grad]
    if not trained:
        raise LabError("PPO: the policy is frozen; load it with trainable=True, and the reference apart from it")
    groups = [{"params": trained, "lr": config.lr, "peak": config.lr}]
    if critic is not None:
        fitted = [p for p in critic.parameters() if p.requires_grad]
        groups.append({"params": fitted, "lr": config.critic_lr, "peak": config.critic_lr})
    optimizer = torch.optim.Adam(groups, eps=config.adam_eps)
    return PPOState(config, policy, reference, critic, reward, tokenizer, list(prompts), columns, optimizer)


def _check_start(config: PPOConfig, prompts: Sequence[str], columns: dict[str, list]) -> None:
    if len(prompts) < config.batch_size:
        raise LabError(
            f"PPO: {len(prompts)} prompts are fewer than batch_size={config.batch_size}; "
            "give more prompts or lower 'batch_size'"
        )
    replies = config.batch_size * config.samples_per_prompt
    if replies < config.minibatches:
        raise LabError(f"PPO: a rollout of {replies} cannot be split into minibatches={config.minibatches}")
    for name, values in columns.items():
        if len(values) != len(prompts):
            raise LabError(f"PPO: column '{name}' has {len(values)} values for {len(prompts)} prompts")


def ppo_updates(state: PPOState) -> Iterator[PPOUpdate]:
    """Train to `config.updates`, yielding after each whole update. Called again after an interrupt, it goes on.

    An interrupt while sampling undoes the sampling; while training it waits for the end of the update, which is then
    the first to be yielded when the loop goes on.
    """
    while state.unseen is not None or state.number < state.config.updates:
        if state.unseen is None:
            _update(state)
        update, state.unseen = state.unseen, None
        yield update


def _update(state: PPOState) -> None:
    """Take one update and put it into `state.unseen`. What ends the sampling leaves no trace."""
    config, number = state.config, state.number
    lr = _decay(state)
    before = (
        list(state.order),
        state.shuffler.get_state(),
        state.generator.get_state(),
        torch.get_rng_state(),
    )
    seconds: dict[str, float] = {}
    try:
        prompts, columns = state.next_prompts()
        batch = rollout(
            state.policy,
            state.reference,
            state.critic,
            state.reward,
            state.tokenizer,
            prompts,
            config,
            state.generator,
            columns,
            seconds,
        )
        scored = time.perf_counter()
        with _interrupts_held():
            advantages, returns = estimate_advantages(batch, config)
            stats = ppo_step(state.policy, state.critic, state.optimizer, batch, advantages, returns, config)
            seconds["train"] = time.perf_counter() - scored
            episode = (number + 1) * config.batch_size * config.samples_per_prompt
            state.unseen = PPOUpdate(batch, stats, number + 1, episode, lr, config.kl_coef, seconds)
            state.number = number + 1
    except BaseException:
        if state.number == number:
            state.order = before[0]
            state.shuffler.set_state(before[1])
            state.generator.set_state(before[2])
            torch.set_rng_state(before[3])
        raise


def _decay(state: PPOState) -> float:
    """Set the learning rates of the coming update: linear from the peak towards 0."""
    left = 1 - state.number / state.config.updates
    for group in state.optimizer.param_groups:
        group["lr"] = group["peak"] * left
    return state.config.lr * left


@contextmanager
def _interrupts_held():
    """Hold back Ctrl-C until the block ends, so that weights are never left in the middle of an update."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    held: list[tuple] = []
    previous = signal.signal(signal.SIGINT, lambda *received: held.append(received))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, previous or signal.SIG_DFL)
    if held:
        previous(*held[0]) if callable(previous) else signal.raise_signal(signal.SIGINT)
