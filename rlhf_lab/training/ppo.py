"""Proximal policy optimisation for language models, and its relatives: the loop around the step.

Left out on purpose: a base trainer, callbacks. The loop is a generator, so that a notebook, the command line and a
script of one's own all run the same one and look at each update as it comes; torchrun runs it in several processes.
"""

import copy
import math
import time
from collections.abc import Iterator, Sequence

import torch

from rlhf_lab.data import encode_prompt
from rlhf_lab.errors import LabError
from rlhf_lab.maths import adaptive_kl, kl_estimate, ppo_paper_kl, ziegler_paper_kl
from rlhf_lab.models.loading import disable_dropout
from rlhf_lab.rewards import Reward
from rlhf_lab.training.credit import estimate_advantages, final_scores
from rlhf_lab.training.interrupts import interrupts_held
from rlhf_lab.training.ppo_config import PPOConfig
from rlhf_lab.training.ppo_state import PPOState, PPOUpdate
from rlhf_lab.training.ppo_step import PPOStats, one_pass, ppo_step
from rlhf_lab.training.processes import Processes
from rlhf_lab.training.rollouts import FirstPass, Rollout, rollout
from rlhf_lab.training.sharding import shard_models

__all__ = [
    "PPOConfig",
    "PPOState",
    "PPOStats",
    "PPOUpdate",
    "estimate_advantages",
    "final_scores",
    "ppo_start",
    "ppo_step",
    "ppo_updates",
]


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
    texts: Sequence[str] | None = None,
    accelerator=None,
) -> PPOState:
    """Get ready to train `policy`. The reference is a frozen copy of the policy unless one is given.

    Dropout is switched off in all three: it would change log-probabilities between sampling and learning.
    texts: pretraining texts, whose loss is mixed in with `ptx_coef`.
    accelerator: accelerate's `Accelerator`, in each of several processes that train together; all give the same here.
    Errors: `LabError` if there are fewer prompts than one rollout needs, fewer replies than minibatches, a column of
    another length, no weight of the policy to train, a critic where the method has none, no texts for `ptx_coef`, or
    fewer rows than processes.
    """
    columns = columns or {}
    processes = Processes.of(accelerator, "PPO")
    _check_start(config, prompts, columns)
    _check_shares(config, processes)
    if critic is not None and not config.needs_critic:
        raise LabError(f"PPO: advantage '{config.advantage}' learns without a critic; give critic=None")
    if config.ptx_coef and not texts:
        raise LabError("PPO: ptx_coef is above 0 but there are no pretraining texts; give 'texts'")
    encoded = [ids for ids in (encode_prompt(tokenizer, text) for text in texts or []) if len(ids) > 1]
    torch.manual_seed(config.seed)
    if reference is None:
        reference = copy.deepcopy(policy)
        vars(reference).pop("forward", None)  # a forward patched onto the policy would read the policy's weights
    reference.eval().requires_grad_(False)
    for model in (policy, reference, critic):
        if model is not None:
            disable_dropout(model)
    if processes.sharded:
        shard_models(processes, policy, reference, critic)
    trained = [p for p in policy.parameters() if p.requires_grad]
    if not trained:
        raise LabError("PPO: the policy is frozen; load it with trainable=True, and the reference apart from it")
    groups = [{"params": trained, "lr": config.lr, "peak": config.lr}]
    if critic is not None:
        ours = {id(p) for p in trained}  # a critic on a shared trunk brings only its head
        fitted = [p for p in critic.parameters() if p.requires_grad and id(p) not in ours]
        groups.append({"params": fitted, "lr": config.critic_lr, "peak": config.critic_lr})
    optimizer = torch.optim.Adam(groups, eps=config.adam_eps, fused=not processes.sharded)  # one pass over the weights
    material = (list(prompts), columns, encoded)
    return PPOState(config, policy, reference, critic, reward, tokenizer, *material, optimizer, processes)


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


def _check_shares(config: PPOConfig, processes: Processes) -> None:
    """Every process must have a part of what is shared out, and with shards an equal one."""
    replies = config.batch_size * config.samples_per_prompt
    shared = {"batch_size": config.batch_size, "a minibatch": replies // config.minibatches}
    if config.ptx_coef:
        shared["ptx_batch_size"] = config.ptx_batch_size
    for name, rows in shared.items():
        if rows < processes.count:
            raise LabError(f"PPO: {name} of {rows} leaves some of {processes.count} processes without work; raise it")
    if processes.sharded and replies % (config.minibatches * processes.count):
        raise LabError(
            f"PPO: {replies} replies do not go evenly into minibatches={config.minibatches} on {processes.count} "
            "processes, as sharded weights need; change 'batch_size' or 'minibatches'"
        )


def ppo_updates(state: PPOState) -> Iterator[PPOUpdate]:
    """Train to `config.updates`, yielding after each whole update. Called again after an interrupt, it goes on.

    An interrupt while sampling undoes the sampling; while training it waits for the end of the update, which is then
    the first to be yielded when the loop goes on.
    """
    while state.unseen is not None or state.number < state.config.updates:
        if state.unseen is None:
            with state.processes.step():
                _update(state)
        update, state.unseen = state.unseen, None
        yield update


def _update(state: PPOState) -> None:
    """Take one update and put it into `state.unseen`. What ends the sampling leaves no trace."""
    config, number = state.config.model_copy(update={"kl_coef": state.kl_coef}), state.number
    lr = _set_learning_rates(state)
    state.before = before = state.streams()
    seconds: dict[str, float] = {}
    train_policy = not config.needs_critic or number >= config.critic_warmup
    first = FirstPass() if train_policy and one_pass(config, state.processes) else None
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
            processes=state.processes,
            first=first,
        )
        state.processes.agree_on_random_numbers()
        scored = time.perf_counter()
        with interrupts_held():
            scale = _score_scale(state, batch)
            advantages, returns = estimate_advantages(batch, config, scale=scale)
            stats = ppo_step(
                state.policy,
                state.critic,
                state.optimizer,
                batch,
                advantages,
                returns,
                config,
                texts=state.next_texts if state.texts else None,
                train_policy=train_policy,
                processes=state.processes,
                first=first,
            )
            seconds["train"] = time.perf_counter() - scored
            episode = (number + 1) * config.batch_size * config.samples_per_prompt
            state.unseen = PPOUpdate(batch, stats, number + 1, episode, lr, config.kl_coef, scale, seconds)
            _move_kl_coef(state, batch)
            _move_average(state)
            state.number, state.before = number + 1, None
    except BaseException:
        if state.number == number:
            state.rewind(before)
        raise
    finally:
        state.before = None


def _set_learning_rates(state: PPOState) -> float:
    """Set the learning rates of the coming update, by warm-up and decay, and return the policy's."""
    config, done = state.config, state.number
    if done < config.warmup:
        factor = (done + 1) / (config.warmup + 1)
    else:
        left = 1 - (done - config.warmup) / max(config.updates - config.warmup, 1)
        cosine = 0.1 + 0.9 * 0.5 * (1 - math.cos(math.pi * left))
        factor = {"linear": left, "cosine": cosine, "off": 1.0}[config.decay]
    for group in state.optimizer.param_groups:
        group["lr"] = group["peak"] * factor
    return config.lr * factor


def _score_scale(state: PPOState, batch: Rollout) -> float:
    """What the scores are divided by: 1, or the standard deviation of all scores so far, these included."""
    if state.config.score_scaling == "off":
        return 1.0
    state.scores.add(batch.scores)
    return state.scores.std


def _move_kl_coef(state: PPOState, batch: Rollout) -> None:
    """Let the controller set the coefficient of the next update."""
    config = state.config
    if config.kl_control == "fixed":
        return
    per_token = kl_estimate(batch.old_logp, batch.ref_logp, kind="k1").masked_fill(~batch.response_mask, 0)
    kl = per_token.sum(1).mean().item()
    if config.kl_control == "ziegler":
        state.kl_coef = adaptive_kl(
            state.kl_coef, kl, target=config.kl_target, horizon=config.kl_horizon, n_steps=len(batch.scores)
        )
    else:
        rule = ziegler_paper_kl if config.kl_control == "ziegler_paper" else ppo_paper_kl
        state.kl_coef = rule(state.kl_coef, kl, target=config.kl_target)


@torch.no_grad()
def _move_average(state: PPOState) -> None:
    """average <- ema * average + (1 - ema) * weights, after every update."""
    for kept, now in zip(state.average, state.policy.parameters(), strict=bool(state.average)):
        kept.lerp_(now, 1 - state.config.ema)
