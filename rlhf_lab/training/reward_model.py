"""The reward model: a head that learns from ranked or rated replies, after InstructGPT.

All C(K,2) pairs of a prompt stand in one batch element: K forward passes serve all pairs, and no reply is seen in
several updates of an epoch (Ouyang et al. 2022, 3.5). K = 2 is the pairwise loss of Bradley-Terry.
"""

import math
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch

from rlhf_lab.errors import LabError, RunFailed
from rlhf_lab.maths import ranking_loss
from rlhf_lab.models import Scorer, autocast, resolve_precision
from rlhf_lab.models.shards import whole
from rlhf_lab.training.interrupts import interrupts_held
from rlhf_lab.training.processes import Processes
from rlhf_lab.training.reward_config import RewardModelConfig
from rlhf_lab.training.reward_data import Ranked, Rated, encode_rankings, encode_ratings, head_outputs, ranked_scores
from rlhf_lab.training.reward_loss import accuracy, gaps, gaps_of_rated, ranked_loss, rated_loss
from rlhf_lab.training.reward_scale import normalise_to_reference, score_replies, shift_to_demonstrations
from rlhf_lab.training.sharding import shard_models

__all__ = [
    "RatingEval",
    "RewardModelConfig",
    "RewardModelEval",
    "RewardModelState",
    "RewardModelStats",
    "encode_rankings",
    "evaluate_ratings",
    "evaluate_reward_model",
    "normalise_to_reference",
    "reward_model_start",
    "reward_model_steps",
    "score_replies",
    "shift_to_demonstrations",
]


class RewardModelStats(NamedTuple):
    """What one optimizer step measured: loss in nats, accuracy over its comparisons, the mean gap of their scores."""

    loss: float
    accuracy: float
    gap: float
    grad_norm: float
    lr: float


class RewardModelState:
    """A reward model in training."""

    def __init__(
        self, config: RewardModelConfig, scorer: Scorer, pad_id: int, data: Ranked | Rated, optimizer, order, processes
    ):
        self.processes: Processes = processes
        self.config, self.scorer, self.pad_id, self.data = config, scorer, pad_id, data
        self.optimizer, self.order, self.step = optimizer, order, 0

    @property
    def steps(self) -> int:
        """Optimizer steps in the whole training."""
        return len(self.order)

    def material(self) -> list[Any]:
        """What it learns from."""
        return list(self.data)

    def progress(self) -> dict[str, Any]:
        """Where it stands. The order of the rows follows from seed and data."""
        return {"step": self.step}

    def restore(self, progress: dict[str, Any]) -> None:
        """Take up what `progress` gave."""
        self.step = progress["step"]


def reward_model_start(
    config: RewardModelConfig, scorer: Scorer, tokenizer, rows, *, accelerator=None
) -> RewardModelState:
    """Get ready to train `scorer` on rankings (prompt, completions, ranks, perhaps finished and margin).

    Losses `regression` and `bins` take ratings (prompt, completion, rating, perhaps finished) instead.

    accelerator: accelerate's `Accelerator`, in each of several processes that train together.
    Errors: `LabError` if there is nothing to learn from, a reply does not fit, ranks tie where the loss allows none,
    ratings lie outside the bins, or the scorer has another head than the loss needs.
    """
    processes = Processes.of(accelerator, "reward model")
    encode = _encode_ratings if config.rated else _encode_rankings
    data = encode(config, scorer, tokenizer, rows)
    scorer.trained_with(config.max_length)
    generator = torch.Generator().manual_seed(config.seed)
    order = [
        rows
        for _ in range(config.epochs)
        for rows in torch.randperm(len(data.prompts), generator=generator).split(config.batch_size)
    ]
    if processes.sharded:
        if len(order[-1]) < processes.count:
            raise LabError(
                f"reward model: the last step has {len(order[-1])} rows for {processes.count} processes, and with "
                "sharded weights each needs one; change 'batch_size'"
            )
        shard_models(processes, scorer)
    optimizer = torch.optim.AdamW(
        scorer.parameters(), lr=config.lr, eps=config.adam_eps, weight_decay=config.weight_decay
    )
    return RewardModelState(config, scorer, tokenizer.pad_token_id, data, optimizer, order, processes)


def _encode_rankings(config: RewardModelConfig, scorer: Scorer, tokenizer, rows) -> Ranked:
    if config.loss != "pairwise":
        for number, row in enumerate(rows, 1):
            _refuse_ties(config, row["ranks"], number)
    data = encode_rankings(rows, tokenizer, scorer.limit(config.max_length))
    if config.margin == "column" and not any("margin" in row for row in rows):
        raise LabError("reward model: margin is 'column' but the data have no column 'margin'; give one, or a number")
    return data


def _refuse_ties(config: RewardModelConfig, ranks: list[int], number: int) -> None:
    first = max(ranks) if config.reverse else min(ranks)
    if config.loss == "plackett_luce" and len(set(ranks)) < len(ranks):
        raise LabError(f"rankings, row {number}: ranks tie, which loss 'plackett_luce' cannot read; choose 'pairwise'")
    if config.loss == "best_of_k" and ranks.count(first) > 1:
        raise LabError(f"rankings, row {number}: no single best, which loss 'best_of_k' needs; choose 'pairwise'")


def _encode_ratings(config: RewardModelConfig, scorer: Scorer, tokenizer, rows) -> Rated:
    data = encode_ratings(rows, tokenizer, scorer.limit(config.max_length))
    low, high = min(data.ratings), max(data.ratings)
    if config.loss == "bins":
        if scorer.bins != config.bins:
            raise LabError(f"reward model: loss 'bins' needs a head of bins {config.bins}, this one has {scorer.bins}")
        for number, rating in enumerate(data.ratings, 1):
            if not config.bins[0] <= rating <= config.bins[-1]:
                raise LabError(f"ratings, row {number}: rating {rating:g} lies outside 'bins' {config.bins}")
        low, high = config.bins[0], config.bins[-1]
    elif scorer.new_head and not scorer.shift:
        scorer.shift = -sum(data.ratings) / len(data.ratings)  # a head without bias would be long in finding it
    return data._replace(ratings=[low + high - rating for rating in data.ratings]) if config.reverse else data


def reward_model_steps(state: RewardModelState) -> Iterator[RewardModelStats]:
    """Train to the end, yielding after each optimizer step. Called again after an interrupt, it goes on.

    Source: Ouyang et al. 2022, eq. 1. Errors: `RunFailed` on a loss that is not finite.
    """
    while state.step < state.steps:
        with state.processes.step():
            stats = _take_step(state)
        yield stats


def _take_step(state: RewardModelState) -> RewardModelStats:
    config, scorer, processes = state.config, state.scorer, state.processes
    lr = config.lr * _schedule(state.step, state.steps, config.warmup_ratio)
    for group in state.optimizer.param_groups:
        group["lr"] = lr
    rows = state.order[state.step].tolist()
    ours = processes.share(rows)
    state.optimizer.zero_grad(set_to_none=True)
    figure, seen = 0.0, []
    if ours:  # the last step of an epoch may have too few rows for all processes
        loss, *seen = _loss_and_compared(state, ours, resolve_precision(config.precision, scorer))
        loss = loss * (len(ours) / len(rows))  # a mean over rows
        figure = loss.item()
        processes.backward(loss)
    figure = processes.sum({"loss": figure})["loss"]
    gap = _gaps([part for part in processes.gather([tensor.cpu() for tensor in seen]) if part])
    if not math.isfinite(figure):
        raise RunFailed(f"reward model step {state.step + 1}: the loss is {figure}; lower 'lr'")
    processes.sum_gradients(scorer.parameters())
    norm = float(whole(torch.nn.utils.clip_grad_norm_(scorer.parameters(), config.max_grad_norm)))
    if not math.isfinite(norm):  # one such step would leave no weight a number
        raise RunFailed(f"reward model step {state.step + 1}: the gradient's norm is {norm}; lower 'lr'")
    with interrupts_held():
        state.optimizer.step()
        state.step += 1
    return RewardModelStats(figure, accuracy(gap), gap.mean().item() if len(gap) else 0.0, norm, lr)


def _gaps(parts: list[list[torch.Tensor]]) -> torch.Tensor:
    """The gaps of all comparisons of a step, of what each process saw: its gaps, or its scores and ratings."""
    seen = [torch.cat(tensors) for tensors in zip(*parts, strict=True)]
    return gaps_of_rated(*seen) if len(seen) > 1 else seen[0]


def _loss_and_compared(state: RewardModelState, rows: list[int], precision: str) -> tuple[torch.Tensor, ...]:
    """The loss of a batch, and without gradient the gaps of its comparisons, or its scores and ratings."""
    config, scorer, data = state.config, state.scorer, state.data
    if isinstance(data, Rated):
        with autocast(precision, scorer):
            prompts, replies = [data.prompts[i] for i in rows], [data.replies[i] for i in rows]
            outputs = head_outputs(scorer, state.pad_id, prompts, replies)
        ratings = torch.tensor([data.ratings[i] for i in rows], device=outputs.device)
        return rated_loss(config.loss, scorer, outputs, ratings), scorer.scores(outputs).detach(), ratings
    with autocast(precision, scorer):
        scores, mask, ranks = ranked_scores(scorer, state.pad_id, data, rows)
    ranks = -ranks if config.reverse else ranks
    margin = config.margin
    if margin == "column":
        margin = torch.tensor([data.margins[i] for i in rows], device=scores.device)
    loss = ranked_loss(config.loss, scores, mask, ranks, margin=margin, label_smoothing=config.label_smoothing)
    return loss, gaps(scores.detach(), mask, ranks)


class RewardModelEval(NamedTuple):
    """A reward model on rankings: loss in nats, accuracy over comparisons (a tie counts 1/2), mean gap, comparisons."""

    loss: float
    accuracy: float
    gap: float
    comparisons: int


@torch.no_grad()
def evaluate_reward_model(
    scorer: Scorer, tokenizer, rankings, *, max_length: int | None = None, batch_size: int = 64
) -> RewardModelEval:
    """Loss, accuracy and gap on columns prompt, completions and ranks, and `finished` if there is one.

    Prompts are cut to `max_length`, or as in the model's training. Errors: `LabError` on an empty set.
    """
    data = encode_rankings(rankings, tokenizer, scorer.limit(max_length))
    lengths = [max(map(len, prompts)) + max(map(len, replies)) for prompts, replies in zip(*data[:2], strict=True)]
    order = torch.tensor(sorted(range(len(lengths)), key=lengths.__getitem__))  # alike in length: little padding
    found, loss = [], 0.0
    for rows in (part.tolist() for part in order.split(batch_size)):
        scores, mask, ranks = ranked_scores(scorer, tokenizer.pad_token_id, data, rows)
        found.append(gaps(scores, mask, ranks))
        loss += ranking_loss(scores, mask=mask, ranks=ranks).item() * len(rows)
    gap = torch.cat(found)
    return RewardModelEval(loss / len(data.ranks), accuracy(gap), gap.mean().item(), len(gap))


class RatingEval(NamedTuple):
    """A reward model on rated replies: mean squared error, share of the ratings' variance explained, replies."""

    squared_error: float
    explained_variance: float  # 1 is perfect, 0 a constant; 0 where the ratings do not vary
    replies: int


def evaluate_ratings(scorer: Scorer, tokenizer, rows, *, max_length: int | None = None) -> RatingEval:
    """How near the scores come to columns prompt, completion and rating, and `finished` if there is one.

    Meant before `shift_to_demonstrations` and its kin, which move the scores away from the ratings' scale.
    Prompts are cut to `max_length`, or as in the model's training. Errors: `LabError` on an empty set.
    """
    rows = list(rows)
    if not rows:
        raise LabError("reward model: no rated replies; give at least one")
    ended = [row.get("finished") is not False for row in rows]
    texts = [row["prompt"] for row in rows], [row["completion"] for row in rows]
    scores = score_replies(scorer, tokenizer, *texts, finished=ended, max_length=max_length).double().cpu()
    ratings = torch.tensor([float(row["rating"]) for row in rows], dtype=torch.double)
    error, variance = (scores - ratings).square().mean().item(), ratings.var(correction=0).item()
    return RatingEval(error, 1 - error / variance if variance else 0.0, len(rows))


def _schedule(step: int, steps: int, warmup_ratio: float) -> float:
    """Linear warm-up, then a cosine from 1 to a tenth (Ouyang et al. 2022, C.2)."""
    warmup = int(steps * warmup_ratio)
    if step < warmup:
        return (step + 1) / warmup
    done = (step - warmup) / max(steps - warmup, 1)
    return 0.1 + 0.9 * 0.5 * (1 + math.cos(math.pi * done))
