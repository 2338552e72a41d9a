"""The losses of reward models on a batch of scores, by the setting `loss`."""

import torch
from torch import Tensor

from rlhf_lab.maths import (
    best_of_k_loss,
    distribution_loss,
    plackett_luce_loss,
    ranking_loss,
    two_hot_targets,
)
from rlhf_lab.models import Scorer


def ranked_loss(
    kind: str,
    scores: Tensor,
    mask: Tensor,
    ranks: Tensor,
    *,
    margin: float | Tensor = 0.0,
    label_smoothing: float = 0.0,
) -> Tensor:
    """Nats per prompt of scores, mask and ranks (B, K), the columns in any order. `kind`: as in `RewardModelConfig`."""
    if kind == "pairwise":
        return ranking_loss(scores, mask=mask, ranks=ranks, margin=margin, label_smoothing=label_smoothing)
    # what is not there comes last
    places = ranks.masked_fill(~mask, torch.iinfo(ranks.dtype).max)
    if kind == "best_of_k":
        return best_of_k_loss(scores, places.argmin(dim=1), mask=mask)
    order = places.argsort(dim=1, stable=True)
    return plackett_luce_loss(scores.gather(1, order), mask=mask.gather(1, order))


def rated_loss(kind: str, scorer: Scorer, outputs: Tensor, ratings: Tensor) -> Tensor:
    """Mean loss of the head's outputs (B, n) against ratings (B,).

    regression: the squared error of the score. bins: nats, the cross-entropy with the rating's place among the bins.
    """
    if kind == "regression":
        return (scorer.scores(outputs) - ratings).square().mean()
    centres = torch.tensor(scorer.bins, device=outputs.device)
    return distribution_loss(outputs, two_hot_targets(ratings, centres)).mean()


def gaps(scores: Tensor, mask: Tensor, ranks: Tensor) -> Tensor:
    """(comparisons,) winner's score less loser's; scores, mask and ranks (B, K), the columns in any order."""
    pairs = (ranks[:, :, None] < ranks[:, None, :]) & mask[:, :, None] & mask[:, None, :]
    return (scores[:, :, None] - scores[:, None, :])[pairs]


def gaps_of_rated(scores: Tensor, ratings: Tensor) -> Tensor:
    """(comparisons,) of every two replies (B,) rated differently: the better one's score less the worse one's."""
    return gaps(scores[None], torch.ones_like(scores, dtype=torch.bool)[None], -ratings[None])


def accuracy(gaps: Tensor) -> float:
    """The share of gaps above 0, a tie counting 1/2; 1/2 where there is none."""
    return ((gaps > 0).float() + 0.5 * (gaps == 0).float()).mean().item() if len(gaps) else 0.5
