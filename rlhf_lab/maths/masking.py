"""Mean, variance and whitening over the entries that count.

Masks are bool, True = counts. What stands at a masked position, NaN and infinity included, reaches neither
the result nor the gradient: it is replaced before any arithmetic, because 0 times NaN is NaN.
"""

import torch
from torch import Tensor

from rlhf_lab.maths.shapes import check_shapes


def masked_mean(x: Tensor, mask: Tensor, dim: int | tuple[int, ...] | None = None) -> Tensor:
    """Mean of the entries of `x` that count.

    Shapes: x and mask alike, any number of axes; the result lacks the axes of `dim` (None: it is a scalar).
    Units: those of x. An empty mask gives 0, never NaN.
    Errors: ValueError when the shapes differ or the mask is not bool.
    Source: the one reduction behind every token loss and metric here; "token-level" mean of DAPO
    (2503.14476).

    >>> masked_mean(torch.tensor([1.0, 2.0, 9.0]), torch.tensor([True, True, False]))
    tensor(1.5000)
    """
    check_shapes("masked_mean", "", x=x, mask=mask)
    return torch.where(mask, x, 0).sum(dim) / mask.sum(dim).clamp(min=1)


def masked_var(x: Tensor, mask: Tensor, *, unbiased: bool = True) -> Tensor:
    """Variance of the entries of `x` that count.

    Shapes: x and mask alike, any number of axes; the result is a scalar.
    Units: those of x, squared. `unbiased` divides by count - 1, otherwise by count. Fewer than two entries
    give 0.
    Errors: ValueError when the shapes differ or the mask is not bool.
    Source: Bessel's correction. TRL whitens with the unbiased variance, OpenAI's code with the biased one.

    >>> masked_var(torch.tensor([1.0, 3.0, 9.0]), torch.tensor([True, True, False]))
    tensor(2.)
    """
    check_shapes("masked_var", "", x=x, mask=mask)
    centred = torch.where(mask, x - masked_mean(x, mask), 0)
    return centred.square().sum() / (mask.sum() - int(unbiased)).clamp(min=1)


def masked_whiten(x: Tensor, mask: Tensor, *, center: bool = True, unbiased: bool = True) -> Tensor:
    """Scale the entries that count to variance 1, and to mean 0 unless `center` is False.

    (x - mean) / sqrt(var + 1e-8); center=False adds the mean back, so that only the spread changes.
    Advantages are centred; rewards, where they are whitened at all, are not.

    Shapes: x and mask alike, any number of axes; the result likewise, 0 at masked positions.
    Units: standard deviations (center=False: shifted by a mean in the units of x).
    Errors: ValueError when the shapes differ or the mask is not bool.
    Source: N+ implementation details of RLHF with PPO (2403.17031), details 24 (rewards) and 25 (advantages).

    >>> masked_whiten(torch.tensor([1.0, 3.0, 9.0]), torch.tensor([True, True, False]), unbiased=False)
    tensor([-1.,  1.,  0.])
    """
    check_shapes("masked_whiten", "", x=x, mask=mask)
    mean = masked_mean(x, mask)
    # replaced before the product, or a gradient would meet NaN times 0
    scaled = (torch.where(mask, x, mean) - mean) * torch.rsqrt(masked_var(x, mask, unbiased=unbiased) + 1e-8)
    return torch.where(mask, scaled if center else scaled + mean, 0)
