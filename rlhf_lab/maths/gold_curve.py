"""How gold depends on the distance that was gone under a proxy: the two forms of Gao et al., by least squares."""

from typing import NamedTuple

import torch
from torch import Tensor

from rlhf_lab.maths.shapes import check_shapes


class GoldCurve(NamedTuple):
    """A form fitted to gains in gold."""

    alpha: float  # gold per unit of distance at the start
    beta: float  # what bends it down; below 0 it bends up
    r_squared: float  # 1 - squared residuals / squared deviations from the mean; below 0 a constant fits better
    peak: float  # the distance at which the form is highest; infinite where it has no highest place


def fit_gold_curve(distance: Tensor, gain: Tensor, *, form: str) -> GoldCurve:
    """The least-squares fit of gains in gold over the distance d = sqrt(KL), linear in alpha and beta.

    best_of_n: R(d) = d (alpha - beta d), with its peak at alpha / (2 beta). rl: R(d) = d (alpha - beta log d), natural
    logarithm, with its peak at exp(alpha / beta - 1). Points at d = 0 are left out: their gain is 0 by definition, in
    both forms.

    Shapes: distance and gain (N,) -> numbers.
    Units: distance in square roots of nats, gain in those of gold; alpha and beta in gold per unit of distance, beta of
    best_of_n per its square.
    Errors: ValueError on unequal shapes, another form, a negative distance, or fewer than two different ones above 0.
    Source: Gao, Schulman and Hilton (2210.10760), their two functional forms.

    >>> d = torch.tensor([1.0, 2.0, 3.0])
    >>> [round(x, 6) for x in fit_gold_curve(d, torch.tensor([2.0, 2.0, 0.0]), form="best_of_n")]  # d (3 - d)
    [3.0, 1.0, 1.0, 1.5]
    """
    check_shapes("fit_gold_curve", "N", distance=distance, gain=gain)
    if form not in ("best_of_n", "rl"):
        raise ValueError(f"fit_gold_curve: form must be best_of_n or rl, got {form!r}")
    if (distance < 0).any():
        raise ValueError(f"fit_gold_curve: a distance must not be negative, got {distance.min():g}")
    d, y = distance[distance > 0].double(), gain[distance > 0].double()
    if len(d.unique()) < 2:
        raise ValueError("fit_gold_curve: two coefficients want at least two different distances above 0")
    bend = d if form == "best_of_n" else d.log()
    terms = torch.stack([d, -d * bend], dim=1)
    solution = torch.linalg.lstsq(terms, y[:, None]).solution[:, 0]
    left = (y - terms @ solution).square().sum()
    r_squared = 1 - left / (y - y.mean()).square().sum()
    alpha, beta = solution
    peak = torch.tensor(torch.inf)
    if beta > 0:
        peak = (alpha / (2 * beta)).clamp(min=0) if form == "best_of_n" else (alpha / beta - 1).exp()
    return GoldCurve(alpha.item(), beta.item(), r_squared.item(), peak.item())
