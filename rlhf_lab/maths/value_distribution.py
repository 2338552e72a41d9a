"""A number predicted as a distribution over bins: the targets, the expectation and the losses.

A head of n outputs gives the logits of n bins with fixed centres; what it predicts is the mean of the centres under
their softmax. Cross-entropy bounds the gradient of an outlier, where a square does not.
"""

import torch
from torch import Tensor

from rlhf_lab.maths.losses import ValueLoss, value_loss
from rlhf_lab.maths.masking import masked_mean
from rlhf_lab.maths.shapes import check_shapes


def expected_value(logits: Tensor, centres: Tensor) -> Tensor:
    """The mean of the bin centres under the softmax of the logits.

    Shapes: logits (..., n), centres (n,) -> (...). Units: those of the centres.
    Errors: ValueError when there is not one logit for each of at least two ascending centres.
    Source: Imani and White 2018 (1806.04613), section 3.

    >>> expected_value(torch.tensor([[0.0, 0.0, 0.0]]), torch.tensor([1.0, 2.0, 6.0]))
    tensor([3.])
    """
    _check_centres("expected_value", centres, logits)
    return (logits.softmax(-1) * centres).sum(-1)


def two_hot_targets(values: Tensor, centres: Tensor) -> Tensor:
    """Each value shared between the two bin centres around it, so that the mean of the target is the value.

    A value on a centre falls into that bin alone.

    Shapes: values (...), centres (n,) ascending -> (..., n), which sums to 1. Units: values in those of the centres.
    Errors: ValueError when a value lies outside the centres, or these are not at least two and ascending.
    Source: MuZero (1911.08265), appendix F, as Farebrother et al. 2024 (2403.03950) name it.

    >>> two_hot_targets(torch.tensor([1.75]), torch.tensor([1.0, 2.0, 4.0]))
    tensor([[0.2500, 0.7500, 0.0000]])
    """
    _check_centres("two_hot_targets", centres)
    if not bool(((values >= centres[0]) & (values <= centres[-1])).all()):
        raise ValueError(f"two_hot_targets: a value lies outside {centres[0].item():g} to {centres[-1].item():g}")
    above = torch.searchsorted(centres, values.contiguous()).clamp(1, len(centres) - 1)
    share = (values - centres[above - 1]) / (centres[above] - centres[above - 1])
    target = torch.zeros(*values.shape, len(centres), dtype=centres.dtype, device=centres.device)
    target.scatter_(-1, (above - 1)[..., None], (1 - share)[..., None])
    return target.scatter_(-1, above[..., None], share[..., None])


def hl_gauss_targets(values: Tensor, centres: Tensor, *, sigma: float) -> Tensor:
    """A normal distribution around each value, cut off at the outermost edges: the mass that falls into each bin.

    Edges lie half way between centres, the outermost as far from theirs. A value beyond the outermost centre counts as
    that centre.

    Shapes: values (...), centres (n,) ascending -> (..., n), which sums to 1.
    Units: values and sigma in those of the centres. Errors: ValueError when sigma is not above 0, or the centres are
    not at least two and ascending.
    Source: Imani and White 2018 (1806.04613), section 3; Farebrother et al. 2024 (2403.03950), section 3.1, who find
    sigma = 0.75 bin widths good.

    >>> hl_gauss_targets(torch.tensor([0.0]), torch.tensor([-1.0, 0.0, 1.0]), sigma=1e-3)
    tensor([[0., 1., 0.]])
    """
    _check_centres("hl_gauss_targets", centres)
    if not sigma > 0:
        raise ValueError(f"hl_gauss_targets: sigma must be above 0, got {sigma}")
    middles = (centres[1:] + centres[:-1]) / 2
    edges = torch.cat([2 * centres[:1] - middles[:1], middles, 2 * centres[-1:] - middles[-1:]])
    values = values.clamp(centres[0], centres[-1])
    below = torch.special.ndtr((edges - values[..., None]) / sigma)
    mass = below.diff(dim=-1)
    return mass / mass.sum(-1, keepdim=True)


def distribution_loss(logits: Tensor, targets: Tensor) -> Tensor:
    """Cross-entropy of predicted distributions over bins with their targets, one for each.

    Shapes: logits, targets (..., n); each target sums to 1 -> (...). Units: nats.
    Errors: ValueError when the shapes differ.
    Source: Imani and White 2018 (1806.04613), eq. 1.

    >>> distribution_loss(torch.zeros(1, 2), torch.tensor([[0.3, 0.7]]))  # log 2
    tensor([0.6931])
    """
    check_shapes("distribution_loss", "", logits=logits, targets=targets)
    return -(targets * logits.log_softmax(-1)).sum(-1)


def hl_gauss_loss(logits: Tensor, returns: Tensor, mask: Tensor, *, centres: Tensor, sigma: float) -> ValueLoss:
    """Critic loss of a head of bins: mean cross-entropy with `hl_gauss_targets` of the returns, over real tokens.

    Only `logits` gets a gradient. Nothing is clipped: the clip fraction is 0.

    Shapes: logits (B, T, n), returns and mask (B, T), centres (n,); mask True at real tokens. Results are scalars.
    Units: nats; returns, centres and sigma in reward units. explained_variance is of the expected values and has none.
    Errors: ValueError when shapes differ, the mask is not bool, or as in `hl_gauss_targets`.
    Source: Farebrother et al. 2024 (2403.03950), eq. 3 and section 3.1.
    """
    check_shapes("hl_gauss_loss", "BT", returns=returns, mask=mask)
    _check_centres("hl_gauss_loss", centres, logits)
    check_shapes("hl_gauss_loss", "BT", logits=logits[..., 0], mask=mask)
    # before the softmax: a masked infinity would come back as NaN through the gradient
    logits = torch.where(mask[..., None], logits, 0)
    returns = torch.where(mask, returns.detach(), 0)
    per_token = distribution_loss(logits, hl_gauss_targets(returns, centres, sigma=sigma))
    values = expected_value(logits.detach(), centres)
    explained = value_loss(values, values, returns, mask, clip=None).explained_variance
    return ValueLoss(masked_mean(per_token, mask), torch.zeros_like(explained), explained)


def _check_centres(caller: str, centres: Tensor, logits: Tensor | None = None) -> None:
    if centres.dim() != 1 or len(centres) < 2 or not bool((centres.diff() > 0).all()):
        raise ValueError(f"{caller}: centres must be at least two numbers in ascending order")
    if logits is not None and logits.shape[-1] != len(centres):
        raise ValueError(f"{caller}: wants one logit for each of {len(centres)} centres, got {tuple(logits.shape)}")
