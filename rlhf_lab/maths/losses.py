"""The losses of RLHF: reward model (pairs and rankings), policy and critic.

Every loss is a scalar to minimise. The other fields of a result are metrics and carry no gradient.
"""

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from rlhf_lab.maths.masking import masked_mean
from rlhf_lab.maths.shapes import check_shapes


class PreferenceLoss(NamedTuple):
    """What `preference_loss` returns: three scalars."""

    loss: Tensor
    accuracy: Tensor  # share of pairs in which the chosen reply scores higher, a tie counting 1/2
    gap: Tensor  # mean of chosen - rejected, in reward units


class PolicyLoss(NamedTuple):
    """What `policy_loss` returns: four scalars."""

    loss: Tensor
    clip_fraction: Tensor  # share of real tokens at which the clipped branch is strictly the larger loss
    approx_kl: Tensor  # mean of (logp - old_logp)^2 / 2 over real tokens, nats
    ratio: Tensor  # mean of pi / pi_old over real tokens


class ValueLoss(NamedTuple):
    """What `value_loss` returns: three scalars."""

    loss: Tensor
    clip_fraction: Tensor  # share of real tokens at which the clipped branch is strictly the larger loss
    explained_variance: Tensor  # 1 - MSE(values, returns) / variance of returns; 1 is perfect, 0 a constant


def preference_loss(
    chosen: Tensor, rejected: Tensor, *, margin: float | Tensor = 0.0, label_smoothing: float = 0.0
) -> PreferenceLoss:
    """Pairwise reward-model loss, mean of -log sigmoid(chosen - rejected - margin).

    Descending it raises the score of the chosen reply over that of the rejected one. Only differences matter.
    label_smoothing: the share of labels held to be flipped; the loss is its mean over such flips.

    Shapes: chosen, rejected (B,) with B >= 1; margin a number or (B,). Units: nats; gap in reward units.
    Errors: ValueError when the shapes do not fit, there is no pair, or label_smoothing is not in [0, 1/2).
    Source: Bradley and Terry 1952; InstructGPT (2203.02155) eq. 1 at K = 2; the margin of Llama 2
    (2307.09288); the smoothing of cDPO (Mitchell 2023), eq. 3.

    >>> preference_loss(torch.tensor([1.0]), torch.tensor([0.0])).loss  # log(1 + e^-1)
    tensor(0.3133)
    """
    margins = margin if isinstance(margin, Tensor) else None
    check_shapes("preference_loss", "B", chosen=chosen, rejected=rejected, margin=margins)
    if not len(chosen):
        raise ValueError("preference_loss: wants at least one pair, got none")
    gap = chosen - rejected
    accuracy = (gap.detach().sign() + 1) / 2
    per_pair = _pair_loss("preference_loss", gap, margin, label_smoothing)
    return PreferenceLoss(per_pair.mean(), accuracy.mean(), gap.detach().mean())


def ranking_loss(
    scores: Tensor,
    *,
    mask: Tensor | None = None,
    ranks: Tensor | None = None,
    margin: float | Tensor = 0.0,
    label_smoothing: float = 0.0,
) -> Tensor:
    """Pairwise loss over whole rankings: mean over the pairs of a prompt, then over the prompts with one.

    Shapes: scores (B, K), columns best to worst; mask (B, K) bool, False where a prompt has no such reply
    (None: all there); ranks (B, K) integer, 0 = best. With ranks, they and not the columns say who is better,
    and pairs of equal rank are dropped. margin a number or (B,), the same for all pairs of a prompt.
    The result is a scalar, 0 when no prompt has a pair.
    Units: nats per pair. Errors: ValueError when the shapes differ, the mask is not bool, or label_smoothing is not
    in [0, 1/2).
    Source: InstructGPT (2203.02155) eq. 1; margin and label_smoothing as in `preference_loss`.

    >>> ranking_loss(torch.tensor([[1.0, 0.0]]))  # one pair: log(1 + e^-1)
    tensor(0.3133)
    """
    check_shapes("ranking_loss", "BK", scores=scores, mask=mask, ranks=ranks)
    if isinstance(margin, Tensor):
        check_shapes("ranking_loss", "B", scores=scores[:, 0], margin=margin)
        margin = margin[:, None, None]
    if mask is None:
        mask = torch.ones_like(scores, dtype=torch.bool)
    if ranks is None:
        ranks = torch.arange(scores.shape[1], device=scores.device).expand_as(scores)
    scores = torch.where(mask, scores, 0)
    # (B, K, K): row beats column
    pairs = (ranks[:, :, None] < ranks[:, None, :]) & mask[:, :, None] & mask[:, None, :]
    per_pair = _pair_loss("ranking_loss", scores[:, :, None] - scores[:, None, :], margin, label_smoothing)
    return masked_mean(masked_mean(per_pair, pairs, dim=(1, 2)), pairs.any(dim=(1, 2)))


def _pair_loss(caller: str, gap: Tensor, margin: float | Tensor, label_smoothing: float) -> Tensor:
    """-log sigmoid(gap - margin), or its mean over flips of the label with that probability."""
    if not 0 <= label_smoothing < 0.5:
        raise ValueError(f"{caller}: label_smoothing must be in [0, 1/2), got {label_smoothing}")
    loss = -logsigmoid(gap - margin)
    if not label_smoothing:
        return loss
    return (1 - label_smoothing) * loss - label_smoothing * logsigmoid(-gap - margin)


def best_of_k_loss(scores: Tensor, best: Tensor, *, mask: Tensor | None = None) -> Tensor:
    """Softmax cross-entropy on the reply that was picked as the best of K, mean over the prompts with two or more.

    Shapes: scores (B, K); best (B,) integer, the column of the best; mask (B, K) bool, False where a prompt has no
    such reply (None: all there). The result is a scalar, 0 when no prompt has two replies.
    Units: nats per pick. Errors: ValueError when the shapes differ, the mask is not bool, or a best reply is not there.
    Source: Ziegler et al. 2019 (1909.08593), eq. 1. Equals `preference_loss` at K = 2, and the first factor of
    `plackett_luce_loss`.

    >>> best_of_k_loss(torch.zeros(1, 4), torch.tensor([2]))  # log 4: no reply stands out
    tensor(1.3863)
    """
    check_shapes("best_of_k_loss", "BK", scores=scores, mask=mask)
    check_shapes("best_of_k_loss", "B", scores=scores[:, 0], best=best)
    if mask is None:
        mask = torch.ones_like(scores, dtype=torch.bool)
    counted = mask.sum(-1) > 1
    inside = (best >= 0) & (best < scores.shape[1])
    picked = best.clamp(0, scores.shape[1] - 1)[:, None]
    if not bool((inside & mask.gather(1, picked)[:, 0])[counted].all()):
        raise ValueError("best_of_k_loss: best must name a column that the mask counts")
    scores = torch.where(mask, scores, 0)
    # where nothing is left, logsumexp has no gradient: such rows keep all their zeros
    others = torch.where(mask | ~counted[:, None], scores, -torch.inf)
    return masked_mean(others.logsumexp(-1) - scores.gather(1, picked)[:, 0], counted)


def plackett_luce_loss(scores: Tensor, *, mask: Tensor | None = None) -> Tensor:
    """Negative log-likelihood of a ranking that was drawn best first, each time by softmax among those left.

    -sum_{i<K} [ s_i - logsumexp_{j>=i} s_j ], mean over the prompts with at least two replies.

    Shapes: scores (B, K), columns best to worst; mask (B, K) bool, False where a prompt has no such reply,
    which is then left out of its ranking. The result is a scalar, 0 when no prompt has two replies.
    Units: nats per ranking. Errors: ValueError when the shapes differ or the mask is not bool.
    Source: Plackett 1975, Luce 1959; DPO (2305.18290) appendix A.3. Equals `preference_loss` at K = 2.

    >>> plackett_luce_loss(torch.zeros(1, 3))  # log(3!): all orders alike
    tensor(1.7918)
    """
    check_shapes("plackett_luce_loss", "BK", scores=scores, mask=mask)
    if mask is None:
        mask = torch.ones_like(scores, dtype=torch.bool)
    scores = torch.where(mask, scores, 0)
    itself = torch.eye(scores.shape[1], dtype=torch.bool, device=scores.device)
    later = torch.ones_like(itself).triu()  # (K, K): column stands at or after row
    # a missing reply keeps itself: logsumexp of nothing has no gradient
    left = (later & mask[:, None, :]) | itself
    over_own = scores[:, None, :] - scores[:, :, None]
    per_choice = torch.where(left, over_own, -torch.inf).logsumexp(-1)  # (B, K), 0 for the last one left
    return masked_mean(torch.where(mask, per_choice, 0).sum(-1), mask.sum(-1) > 1)


def policy_loss(
    logp: Tensor,
    old_logp: Tensor,
    advantages: Tensor,
    mask: Tensor,
    *,
    clip: float,
    clip_high: float | None = None,
    dual_clip: float | None = None,
    reduction: str | float = "token",
) -> PolicyLoss:
    """Clipped surrogate of PPO: max(-A ratio, -A clip(ratio, 1 - clip, 1 + clip_high)), ratio = pi / pi_old.

    Only `logp` gets a gradient, which at ratio 1 is that of the policy gradient, -E[grad log pi * A].

    Shapes: logp, old_logp, advantages, mask (B, T); mask True at real tokens. Results are scalars.
    Units: log-probabilities in nats, the loss in units of the advantage.
    clip_high: width above 1 where it differs from `clip`. dual_clip: bound c > 1 on the loss at negative
    advantages, which is then at most -c A.
    reduction: "token", the mean over all real tokens; "sequence", the mean over replies of their token means;
    a number, the mean over replies of their token sums divided by it. Replies without a real token are not
    counted.
    Errors: ValueError when shapes differ, the mask is not bool, or dual_clip or reduction is none of the
    above.
    Source: PPO (1707.06347) eq. 7. clip_high and "token": DAPO (2503.14476). "sequence": GRPO (2402.03300). A
    number: Dr. GRPO (2503.20783). dual_clip: Ye et al. (1912.09729). approx_kl: k2 of Schulman's note (2020).
    """
    check_shapes("policy_loss", "BT", logp=logp, old_logp=old_logp, advantages=advantages, mask=mask)
    if dual_clip is not None and dual_clip <= 1:
        raise ValueError(f"policy_loss: dual_clip must be above 1, got {dual_clip}")
    # before exp: a masked infinity would come back as NaN through the gradient
    log_ratio = torch.where(mask, logp - old_logp.detach(), 0)
    advantages = torch.where(mask, advantages.detach(), 0)
    ratio = log_ratio.exp()
    unclipped = -advantages * ratio
    clipped = -advantages * ratio.clamp(1 - clip, 1 + (clip if clip_high is None else clip_high))
    per_token = torch.maximum(unclipped, clipped)
    if dual_clip is not None:
        per_token = torch.where(advantages < 0, torch.minimum(per_token, -dual_clip * advantages), per_token)
    return PolicyLoss(
        loss=reduce_tokens(per_token, mask, reduction),
        clip_fraction=masked_mean(clipped > unclipped, mask),
        approx_kl=masked_mean(log_ratio.detach().square() / 2, mask),
        ratio=masked_mean(ratio.detach(), mask),
    )


def reduce_tokens(per_token: Tensor, mask: Tensor, reduction: str | float) -> Tensor:
    """A loss per token as one number.

    "token": the mean over all real tokens. "sequence": the mean over replies of their token means. A number: the mean
    over replies of their token sums divided by it. Replies without a real token are not counted.

    Shapes: per_token, mask (B, T) -> scalar. Units: those of per_token. Errors: ValueError for any other reduction.
    Source: DAPO (2503.14476), GRPO (2402.03300) and Dr. GRPO (2503.20783), in this order.

    >>> tokens, mask = torch.tensor([[1.0, 0.0], [4.0, 6.0]]), torch.tensor([[True, False], [True, True]])
    >>> [round(reduce_tokens(tokens, mask, kind).item(), 2) for kind in ("token", "sequence", 2.0)]
    [3.67, 3.0, 2.75]
    """
    if reduction == "token":
        return masked_mean(per_token, mask)
    if reduction == "sequence":
        per_reply = masked_mean(per_token, mask, dim=1)
    elif isinstance(reduction, int | float) and not isinstance(reduction, bool) and reduction > 0:
        per_reply = torch.where(mask, per_token, 0).sum(1) / reduction
    else:
        wanted = '"token", "sequence" or a number above 0'
        raise ValueError(f"policy_loss: reduction must be {wanted}, got {reduction!r}")
    return masked_mean(per_reply, mask.any(dim=1))


def value_loss(values: Tensor, old_values: Tensor, returns: Tensor, mask: Tensor, *, clip: float | None) -> ValueLoss:
    """Critic loss: half the mean over real tokens of max((V - R)^2, (V_clipped - R)^2).

    V_clipped is V held within `clip` of old_values; clip=None drops that branch. Only `values` gets a
    gradient.

    Shapes: values, old_values, returns, mask (B, T); mask True at real tokens. Results are scalars.
    Units: reward units squared; clip in reward units. explained_variance has none, and is 0 where returns do
    not vary.
    Errors: ValueError when the shapes differ or the mask is not bool.
    Source: L^VF of PPO (1707.06347) eq. 9; the clipping is OpenAI's code's, N+ details (2403.17031) table 7.
    """
    check_shapes("value_loss", "BT", values=values, old_values=old_values, returns=returns, mask=mask)
    old_values, returns = torch.where(mask, old_values.detach(), 0), torch.where(mask, returns.detach(), 0)
    values = torch.where(mask, values, 0)
    unclipped = clipped = (values - returns).square()
    if clip is not None:
        clipped = (old_values + (values - old_values).clamp(-clip, clip) - returns).square()
    return ValueLoss(
        loss=masked_mean(torch.maximum(unclipped, clipped), mask) / 2,
        clip_fraction=masked_mean(clipped > unclipped, mask),
        explained_variance=_explained_variance(values.detach()[mask], returns[mask]),
    )


def _explained_variance(values: Tensor, returns: Tensor) -> Tensor:
    # equality, not variance 0: the mean of equal floats can be off by a rounding error
    if not len(returns) or (returns == returns[0]).all():
        return returns.new_zeros(())
    return 1 - (values - returns).square().mean() / returns.var(correction=0)
