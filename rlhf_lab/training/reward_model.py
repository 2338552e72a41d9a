"""The reward model: a scalar head that learns from ranked replies, after InstructGPT.

All C(K,2) pairs of a prompt stand in one batch element: K forward passes serve all pairs, and no reply is seen in
several updates of an epoch (Ouyang et al. 2022, 3.5). K = 2 is the pairwise loss of Bradley-Terry.
"""

import math
from collections.abc import Iterator, Sequence
from typing import Literal, NamedTuple

import torch
from pydantic import Field

from rlhf_lab.config import Config
from rlhf_lab.data import encode_pair, left_pad, right_pad
from rlhf_lab.errors import LabError, RunFailed
from rlhf_lab.maths import ranking_loss
from rlhf_lab.models import Scorer, autocast, resolve_precision


class RewardModelConfig(Config):
    """The settings of reward-model training. The loss is in nats per comparison."""

    epochs: int = Field(1, ge=1)
    batch_size: int = Field(16, ge=1)  # prompts in an optimizer step, each with all its ranked replies
    lr: float = Field(1e-3, ge=0)  # AdamW peak, decayed by a cosine to a tenth
    warmup_ratio: float = Field(0.05, ge=0, le=1)
    weight_decay: float = Field(0.0, ge=0)
    adam_eps: float = Field(1e-5, gt=0)
    max_grad_norm: float = Field(1.0, gt=0)
    max_length: int = Field(256, ge=2)  # tokens of prompt and reply; the prompt is cut from the left
    reverse: bool = False  # train on reversed rankings: the sign error that one source's text describes
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    seed: int = 0


class RewardModelStats(NamedTuple):
    """What one optimizer step measured: loss in nats, accuracy over its comparisons, the mean gap of their scores."""

    loss: float
    accuracy: float
    gap: float
    grad_norm: float
    lr: float


class Ranked(NamedTuple):
    """Tokenised rankings: for each prompt its ids, its replies' ids, and their ranks (0 = best, equal = tie)."""

    prompts: list[list[list[int]]]  # per prompt and reply: a long reply may cut its prompt
    replies: list[list[list[int]]]
    ranks: list[list[int]]


class RewardModelState:
    """A reward model in training."""

    def __init__(self, config: RewardModelConfig, scorer: Scorer, pad_id: int, data: Ranked, optimizer, order):
        self.config, self.scorer, self.pad_id, self.data = config, scorer, pad_id, data
        self.optimizer, self.order, self.step = optimizer, order, 0

    @property
    def steps(self) -> int:
        """Optimizer steps in the whole training."""
        return len(self.order)


def encode_rankings(rankings, tokenizer, max_length: int | None) -> Ranked:
    """Tokenise columns prompt, completions and ranks. A prompt whose replies all tie says nothing and is left out.

    A column `finished` (one true/false per reply) tells which replies ended by EOS; without it all did.
    Errors: `LabError` if nothing is left, or naming the row with a reply that does not fit.
    """
    data = Ranked([], [], [])
    for number, row in enumerate(rankings, 1):
        if len(set(row["ranks"])) < 2:
            continue
        ended = row.get("finished") or [True] * len(row["completions"])
        try:
            pairs = [
                encode_pair(tokenizer, row["prompt"], text, finished=end, max_length=max_length)
                for text, end in zip(row["completions"], ended, strict=True)
            ]
        except LabError as error:
            raise LabError(f"rankings, row {number}: {error}") from None
        data.prompts.append([pair.prompt_ids for pair in pairs])
        data.replies.append([pair.reply_ids for pair in pairs])
        data.ranks.append(list(row["ranks"]))
    if not data.ranks:
        raise LabError("reward model: no comparisons; give at least one prompt with two replies of unequal rank")
    return data


def reward_model_start(config: RewardModelConfig, scorer: Scorer, tokenizer, rankings) -> RewardModelState:
    """Get ready to train `scorer` on columns prompt, completions and ranks, and `finished` if there is one.

    Errors: `LabError` if there is no ranking to learn from, or a reply does not fit.
    """
    data = encode_rankings(rankings, tokenizer, scorer.limit(config.max_length))
    scorer.trained_with(config.max_length)
    generator = torch.Generator().manual_seed(config.seed)
    order = [
        rows
        for _ in range(config.epochs)
        for rows in torch.randperm(len(data.ranks), generator=generator).split(config.batch_size)
    ]
    optimizer = torch.optim.AdamW(
        scorer.parameters(), lr=config.lr, eps=config.adam_eps, weight_decay=config.weight_decay
    )
    return RewardModelState(config, scorer, tokenizer.pad_token_id, data, optimizer, order)


def reward_model_steps(state: RewardModelState) -> Iterator[RewardModelStats]:
    """Train to the end, yielding after each optimizer step. Called again after an interrupt, it goes on.

    Source: Ouyang et al. 2022, eq. 1. Errors: `RunFailed` on a loss that is not finite.
    """
    config, scorer = state.config, state.scorer
    precision = resolve_precision(config.precision, scorer)
    while state.step < state.steps:
        lr = config.lr * _schedule(state.step, state.steps, config.warmup_ratio)
        for group in state.optimizer.param_groups:
            group["lr"] = lr
        rows = state.order[state.step].tolist()
        with autocast(precision, scorer):
            scores, mask, ranks = _ranked_scores(scorer, state.pad_id, state.data, rows)
        ranks = -ranks if config.reverse else ranks
        loss = ranking_loss(scores, mask=mask, ranks=ranks)
        if not math.isfinite(loss.item()):
            raise RunFailed(f"reward model step {state.step + 1}: the loss is {loss.item()}; lower 'lr'")
        state.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        norm = float(torch.nn.utils.clip_grad_norm_(scorer.parameters(), config.max_grad_norm))
        if not math.isfinite(norm):  # one such step would leave no weight a number
            raise RunFailed(f"reward model step {state.step + 1}: the gradient's norm is {norm}; lower 'lr'")
        state.optimizer.step()
        state.step += 1
        gaps = _gaps(scores.detach(), mask, ranks)
        yield RewardModelStats(loss.item(), _accuracy(gaps), gaps.mean().item(), norm, lr)


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
    gaps, loss = [], 0.0
    for start in range(0, len(data.ranks), batch_size):
        rows = list(range(start, min(start + batch_size, len(data.ranks))))
        scores, mask, ranks = _ranked_scores(scorer, tokenizer.pad_token_id, data, rows)
        gaps.append(_gaps(scores, mask, ranks))
        loss += ranking_loss(scores, mask=mask, ranks=ranks).item() * len(rows)
    gap = torch.cat(gaps)
    return RewardModelEval(loss / len(data.ranks), _accuracy(gap), gap.mean().item(), len(gap))


@torch.no_grad()
def score_replies(
    scorer: Scorer,
    tokenizer,
    prompts: Sequence[str],
    completions: Sequence[str],
    *,
    finished: Sequence[bool] | None = None,
    max_length: int | None = None,
) -> torch.Tensor:
    """(N,) scores of replies, each read at its last token: its EOS, unless `finished` says it has none.

    Prompts are cut to `max_length`, or as in the model's training. Without gradients.
    """
    scores, limit = [], scorer.limit(max_length)
    finished = finished if finished is not None else [True] * len(prompts)
    for start in range(0, len(prompts), 64):
        rows = slice(start, start + 64)
        pairs = [
            encode_pair(tokenizer, prompt, text, finished=end, max_length=limit)
            for prompt, text, end in zip(prompts[rows], completions[rows], finished[rows], strict=True)
        ]
        scores.append(_scores(scorer, tokenizer.pad_token_id, [p for p, _ in pairs], [r for _, r in pairs]))
    return torch.cat(scores)


def shift_to_demonstrations(scorer: Scorer, tokenizer, demonstrations, *, max_length: int | None = None) -> float:
    """Shift the scores so that the demonstrations' mean is 0, and return the mean they had.

    The loss does not see a shift, so it is free to choose. Source: Ouyang et al. 2022, 3.5.
    Errors: `LabError` if there are none.
    """
    if len(demonstrations) == 0:
        raise LabError("reward model: no demonstrations to shift the scores by; give at least one")
    mean = score_replies(
        scorer, tokenizer, demonstrations["prompt"], demonstrations["completion"], max_length=max_length
    ).mean()
    scorer.shift += mean.item()
    return mean.item()


def _scores(scorer: Scorer, pad_id: int, prompts: list[list[int]], replies: list[list[int]]) -> torch.Tensor:
    prompt_ids, prompt_mask = left_pad(prompts, pad_id)
    reply_ids, reply_mask = right_pad(replies, pad_id)
    device = scorer.device
    return scorer.reply_scores(
        prompt_ids.to(device), prompt_mask.to(device), reply_ids.to(device), reply_mask.to(device)
    )


def _ranked_scores(scorer: Scorer, pad_id: int, data: Ranked, rows: list[int]):
    """(B, K) scores, mask and ranks of those prompts; K is the largest number of replies among them."""
    sizes = [len(data.ranks[i]) for i in rows]
    flat = _scores(
        scorer, pad_id, [p for i in rows for p in data.prompts[i]], [r for i in rows for r in data.replies[i]]
    )
    mask = torch.arange(max(sizes)).expand(len(rows), -1) < torch.tensor(sizes)[:, None]
    mask = mask.to(flat.device)
    scores = flat.new_zeros(mask.shape).masked_scatter(mask, flat)
    ranks = torch.zeros(mask.shape, dtype=torch.long, device=flat.device)
    ranks[mask] = torch.tensor([rank for i in rows for rank in data.ranks[i]], device=flat.device)
    return scores, mask, ranks


def _pairs(mask: torch.Tensor, ranks: torch.Tensor) -> torch.Tensor:
    """(B, K, K) True where column i is ranked above column j and both are real. The columns are in any order."""
    return (ranks[:, :, None] < ranks[:, None, :]) & mask[:, :, None] & mask[:, None, :]


def _gaps(scores: torch.Tensor, mask: torch.Tensor, ranks: torch.Tensor) -> torch.Tensor:
    """(comparisons,) winner's score less loser's."""
    return (scores[:, :, None] - scores[:, None, :])[_pairs(mask, ranks)]


def _accuracy(gaps: torch.Tensor) -> float:
    return ((gaps > 0).float() + 0.5 * (gaps == 0).float()).mean().item()


def _schedule(step: int, steps: int, warmup_ratio: float) -> float:
    """Linear warm-up, then a cosine from 1 to a tenth (Ouyang et al. 2022, C.2)."""
    warmup = int(steps * warmup_ratio)
    if step < warmup:
        return (step + 1) / warmup
    done = (step - warmup) / max(steps - warmup, 1)
    return 0.1 + 0.9 * 0.5 * (1 + math.cos(math.pi * done))
