"""Where a reward model's zero lies and how large its unit is: what the comparisons leave open."""

from collections.abc import Sequence
from typing import NamedTuple

import torch

from rlhf_lab.data import encode_pair
from rlhf_lab.errors import LabError
from rlhf_lab.models import Scorer
from rlhf_lab.training.reward_data import head_outputs


class Moments(NamedTuple):
    """Mean and unbiased standard deviation of scores, in their own unit."""

    mean: float
    std: float


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
    limit, finished = scorer.limit(max_length), finished if finished is not None else [True] * len(prompts)
    pairs = [
        encode_pair(tokenizer, prompt, text, finished=end, max_length=limit)
        for prompt, text, end in zip(prompts, completions, finished, strict=True)
    ]
    order = torch.tensor(
        sorted(range(len(pairs)), key=lambda i: sum(map(len, pairs[i])))
    )  # alike in length: no padding
    scores = []
    for rows in order.split(64):
        prompt_ids, reply_ids = zip(*(pairs[i] for i in rows.tolist()), strict=True)
        scores.append(scorer.scores(head_outputs(scorer, tokenizer.pad_token_id, prompt_ids, reply_ids)))
    return torch.cat(scores)[order.argsort()]


def shift_to_demonstrations(scorer: Scorer, tokenizer, demonstrations, *, max_length: int | None = None) -> float:
    """Shift the scores so that the demonstrations' mean is 0, and return the mean they had. The gain stays.

    The loss does not see a shift, so it is free to choose. Source: Ouyang et al. 2022, 3.5.
    Errors: `LabError` if there are none.
    """
    if len(demonstrations) == 0:
        raise LabError("reward model: no demonstrations to shift the scores by; give at least one")
    mean = score_replies(
        scorer, tokenizer, demonstrations["prompt"], demonstrations["completion"], max_length=max_length
    ).mean()
    scorer.shift += mean.item() / scorer.gain
    return mean.item()


def normalise_to_reference(
    scorer: Scorer,
    tokenizer,
    prompts: Sequence[str],
    completions: Sequence[str],
    *,
    finished: Sequence[bool] | None = None,
    max_length: int | None = None,
) -> Moments:
    """Set gain and shift so that these replies of the reference policy score 0 on average, with deviation 1.

    Returns the moments that they had. Before training it gives the loss a fresh head of known scale, after training it
    makes the coefficient of the KL mean the same for every reward model.
    Source: Ziegler et al. 2019 (1909.08593), section 2.1: before and after training.
    Errors: `LabError` if there are fewer than two replies or all score alike.
    """
    if len(prompts) < 2:
        raise LabError("reward model: normalise 'reference' needs at least two replies; raise 'reference_replies'")
    scores = score_replies(scorer, tokenizer, prompts, completions, finished=finished, max_length=max_length).double()
    mean, std = scores.mean().item(), scores.std().item()
    if not std > 0:
        raise LabError("reward model: all replies of the reference score alike, so normalise 'reference' has no unit")
    scorer.shift += mean / scorer.gain
    scorer.gain /= std
    return Moments(mean, std)
