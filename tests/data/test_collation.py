"""Padding against tensors written by hand, and by properties."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from rlhf_lab.data import left_pad, right_pad

rows_of_ids = st.lists(st.lists(st.integers(0, 9), min_size=1, max_size=6), min_size=1, max_size=5)


def test_left_pad_by_hand():
    ids, mask = left_pad([[5, 6, 7], [8], [9, 5]], 0)
    assert ids.tolist() == [[5, 6, 7], [0, 0, 8], [0, 9, 5]]
    assert mask.tolist() == [[True, True, True], [False, False, True], [False, True, True]]
    assert ids.dtype == torch.int64
    assert mask.dtype == torch.bool


def test_right_pad_by_hand():
    ids, mask = right_pad([[5, 6, 7], [], [9, 5]], 0)
    assert ids.tolist() == [[5, 6, 7], [0, 0, 0], [9, 5, 0]]
    assert mask.tolist() == [[True, True, True], [False, False, False], [True, True, False]]
    assert ids.dtype == torch.int64
    assert mask.dtype == torch.bool


@pytest.mark.parametrize("pad", [left_pad, right_pad])
def test_a_pad_token_inside_a_row_counts(pad):
    """The EOS that ends a reply is the pad token of many models: the mask must not lose it."""
    rows = [[0, 4, 0], [4, 5, 6]]
    assert pad(rows, 0).mask.all()


def test_right_pad_of_empty_rows_only():
    ids, mask = right_pad([[], []], 3)
    assert ids.shape == mask.shape == (2, 0)
    assert ids.dtype == torch.int64


def test_what_cannot_be_padded_is_refused():
    with pytest.raises(ValueError, match="left_pad: row 1 has no tokens"):
        left_pad([[1], []], 0)
    for pad in (left_pad, right_pad):
        with pytest.raises(ValueError, match="no rows"):
            pad([], 0)


@given(rows=rows_of_ids, pad_id=st.integers(0, 9))
def test_unpadding_returns_the_rows(rows, pad_id):
    """The pad id is drawn from the same numbers as the tokens, so it stands inside rows as well."""
    for pad in (left_pad, right_pad):
        ids, mask = pad(rows, pad_id)
        assert mask.sum(1).tolist() == [len(row) for row in rows]
        assert [ids[i][mask[i]].tolist() for i in range(len(rows))] == rows
        assert (ids[~mask] == pad_id).all()
        assert ids.shape == (len(rows), max(map(len, rows)))


@given(rows=rows_of_ids)
def test_each_pads_on_its_own_side(rows):
    for row, left, right in zip(rows, left_pad(rows, 0).mask, right_pad(rows, 0).mask, strict=True):
        assert left[-len(row) :].all()
        assert right[: len(row)].all()
