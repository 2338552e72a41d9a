"""Rows of like length, so that little is computed on padding: padding costs as much as text."""

from collections.abc import Sequence


def alike(lengths: Sequence[int], *, within: float = 0.75, least: int = 0, most: int = 0) -> list[list[int]]:
    """The indices of the lengths, longest first, in groups whose shortest is at least `within` of their longest.

    least: tokens below which a group takes in shorter rows too; a call has a cost of its own. most: rows of a group
    at most, 0 = any number.
    """
    groups: list[list[int]] = []
    for i in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        group = groups[-1] if groups else []
        longest = lengths[group[0]] if group else 0
        short = lengths[i] < within * longest and len(group) * longest >= least
        if not group or short or len(group) == most:
            groups.append([])
        groups[-1].append(i)
    return groups
