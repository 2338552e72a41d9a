"""How much of a gain in reward is length."""

from typing import NamedTuple

import torch


class LengthGain(NamedTuple):
    """A gain in mean reward, and what is left of it among replies of like length. Scalars, in units of the reward."""

    total: torch.Tensor  # mean after less mean before
    within: torch.Tensor  # the non-length reward gain; 0 where no bin has replies of both
    covered: torch.Tensor  # share of the replies before that are in bins with replies after, too

    @property
    def share(self) -> torch.Tensor:
        """within / total: 0 where only lengths have moved, 1 where they do not matter."""
        return self.within / self.total


def length_gain(
    before: torch.Tensor,
    after: torch.Tensor,
    length_before: torch.Tensor,
    length_after: torch.Tensor,
    *,
    width: int,
) -> LengthGain:
    """Split a gain in reward into a part within bins of like length, and the rest, which is a shift between bins.

    within = sum over bins of (share of the replies before) * (mean reward after - mean reward before), over the bins
    that have replies of both, with the shares summing to 1 over these.
    Shapes: before and length_before (N,); after and length_after (M,).
    Units: lengths in words or tokens; bin k holds the lengths from k*width up to, and without, (k+1)*width.
    Errors: ValueError on a width below 1, no replies, or a length missing.
    Source: Singhal et al. 2023 (2310.03716), non-length reward gain; bins that only one side has are left out by us.

    >>> rewards, lengths = torch.tensor([0.0, 0.0, 0.0, 0.6]), torch.tensor([5, 6, 7, 15])
    >>> longer, their_lengths = torch.tensor([0.05, 0.65, 0.65, 0.65]), torch.tensor([9, 10, 12, 19])
    >>> gain = length_gain(rewards, longer, lengths, their_lengths, width=10)
    >>> [round(value.item(), 3) for value in (gain.total, gain.within, gain.share, gain.covered)]
    [0.35, 0.05, 0.143, 1.0]
    """
    if width < 1:
        raise ValueError(f"length_gain: width must be at least 1, got {width}")
    if not len(before) or not len(after) or before.shape != length_before.shape or after.shape != length_after.shape:
        shapes = [tuple(x.shape) for x in (before, length_before, after, length_after)]
        raise ValueError(f"length_gain: wants replies before and after, and a length for each; got {shapes}")
    bins = [torch.div(lengths, width, rounding_mode="floor").long() for lengths in (length_before, length_after)]
    size = int(torch.cat(bins).max()) + 1
    counts = [torch.bincount(places, minlength=size) for places in bins]
    sums = [
        torch.bincount(places, weights=rewards.double(), minlength=size)
        for places, rewards in zip(bins, (before, after), strict=True)
    ]
    both = (counts[0] > 0) & (counts[1] > 0)
    share = counts[0][both].double() / len(before)
    means = [total[both] / count[both] for total, count in zip(sums, counts, strict=True)]
    covered = share.sum()
    within = (share * (means[1] - means[0])).sum() / covered.clamp(min=1 / len(before))
    return LengthGain(after.double().mean() - before.double().mean(), within, covered)
