"""Rows of unequal length as rectangular tensors, with masks made from the lengths."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor


class Padded(NamedTuple):
    """`ids` (B, L) int64 and `mask` (B, L) bool, True where a token of the row stands."""

    ids: Tensor
    mask: Tensor


def left_pad(rows: Sequence[Sequence[int]], pad_id: int) -> Padded:
    """Pad in front, as prompts need it: B rows of token ids -> (B, longest row), ending in the last column.

    The mask comes from the lengths, so a row may hold `pad_id` as a token of its own.
    Errors: `ValueError` without rows, or with an empty row (a model has nothing to continue there).
    """
    if empty := [number for number, row in enumerate(rows) if len(row) == 0]:
        raise ValueError(f"left_pad: row {empty[0]} has no tokens")
    return _fill(rows, _mask(rows, "left_pad").flip(1), pad_id)


def right_pad(rows: Sequence[Sequence[int]], pad_id: int) -> Padded:
    """Pad behind, as replies need it: B rows of token ids -> (B, longest row), starting in the first.

    The mask comes from the lengths, so a row may hold `pad_id` as a token of its own. A row may be empty;
    if all are, the tensors are (B, 0). Errors: `ValueError` without rows.
    """
    return _fill(rows, _mask(rows, "right_pad"), pad_id)


def _mask(rows: Sequence[Sequence[int]], function: str) -> Tensor:
    if len(rows) == 0:
        raise ValueError(f"{function}: no rows to pad")
    lengths = torch.tensor([len(row) for row in rows])
    return torch.arange(int(lengths.max())) < lengths[:, None]


def _fill(rows: Sequence[Sequence[int]], mask: Tensor, pad_id: int) -> Padded:
    ids = torch.full(mask.shape, pad_id, dtype=torch.long)
    # A boolean index runs through the mask row by row, which is the order of the concatenated rows.
    ids[mask] = torch.cat([torch.as_tensor(row, dtype=torch.long) for row in rows])
    return Padded(ids, mask)
