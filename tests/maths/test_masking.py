"""Means, variances and whitening count what the mask says and nothing else."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rlhf_lab.maths import masked_mean, masked_var, masked_whiten

JUNK = [math.nan, math.inf, -math.inf]
MASKS = st.integers(1, 4).flatmap(
    lambda width: st.lists(st.lists(st.booleans(), min_size=width, max_size=width), min_size=1, max_size=3)
)


def doubles(values):
    return torch.tensor(values, dtype=torch.float64)


def bools(values):
    return torch.tensor(values, dtype=torch.bool)


# ---- numbers from public tests


def test_mean_and_variance_of_torchtune():
    # pytorch/torchtune bd2a0fc7, tests/torchtune/rlhf/test_rewards.py L122-157
    x, mask = doubles([1.0, 2, 3, 4, 5]), bools([1, 1, 1, 0, 0])
    assert masked_mean(x, mask).item() == 2.0
    assert masked_var(x, mask).item() == 1.0


def test_mean_by_rows_of_torchtune():
    # pytorch/torchtune bd2a0fc7, tests/torchtune/rlhf/test_rewards.py L132-146
    x = doubles([[1.0, 2, 3, 4, 5], [2.0, 3, 4, 5, 6]])
    mask = bools([[1, 1, 1, 0, 0], [0, 0, 1, 1, 1]])
    assert masked_mean(x, mask, dim=1).tolist() == [2.0, 5.0]


def test_means_of_open_instruct():
    # allenai/open-instruct e6c3044a, open_instruct/test_rl_utils.py L340-412
    x, mask = doubles([[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]]), bools([[1, 1, 0], [1, 0, 0]])
    assert masked_mean(x, mask, dim=1).mean().item() == 2.75  # rows: 1.5 and 4
    assert masked_mean(x, mask).item() == pytest.approx(7 / 3)  # tokens: (1 + 2 + 4) / 3
    assert masked_mean(x, torch.zeros_like(mask)).item() == 0.0
    mask[1] = False
    assert masked_mean(x, mask, dim=1).mean().item() == 0.75  # an empty row is 0


def test_whitening_of_trl():
    # huggingface/trl f2cd5771, tests/experimental/test_ppo_trainer.py L663-687 (inputs; numbers recomputed):
    # mean 2.5, unbiased variance 0.5, so -+0.5 / sqrt(0.5 + 1e-8)
    x, mask = doubles([1, 2, 3, 4]), bools([0, 1, 1, 0])
    assert masked_mean(x, mask).item() == 2.5
    assert masked_var(x, mask).item() == 0.5
    expected = [0, -0.7071067741154798, 0.7071067741154798, 0]
    assert masked_whiten(x, mask).tolist() == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize(
    ("unbiased", "expected"),
    [
        (False, [-1.3416407811333109, -0.44721359371110364, 0.44721359371110364, 1.3416407811333109]),
        (True, [-1.1618950003765403, -0.38729833345884673, 0.38729833345884673, 1.1618950003765403]),
    ],
)
def test_whitening_of_openai(unbiased, expected):
    # openai/lm-human-preferences cbfd210b, train_policy.py whiten(shift_mean=True): variance 5/4 or 5/3
    x = doubles([1.0, 2, 3, 4])
    assert masked_whiten(x, x > 0, unbiased=unbiased).tolist() == pytest.approx(expected, abs=1e-12)


def test_global_whitening_of_reinforce_plus_plus():
    # NVIDIA-NeMo/RL 7ea279ab, tests/unit/algorithms/test_grpo.py L4410-4445 (inputs; numbers recomputed):
    # scores 0..3 minus their mean, spread over five tokens each, biased variance 1.25
    x = (doubles([0.0, 1, 2, 3]) - 1.5)[:, None].expand(4, 5)
    white = masked_whiten(x, torch.ones(4, 5, dtype=torch.bool), unbiased=False)
    expected = doubles([-1.3416407864998738, -0.4472135954999579, 0.4472135954999579, 1.3416407864998738])
    assert torch.allclose(white, expected[:, None].expand(4, 5), atol=1e-6)


# ---- worked by hand


def test_whitening_centres_unless_told_otherwise():
    # 2, 4, 6: mean 4, biased variance 8/3, deviation 1.632993; 2 / 1.632993 = 1.224745
    x, mask = doubles([2.0, 4.0, 6.0, 99.0]), bools([1, 1, 1, 0])
    centred = masked_whiten(x, mask, unbiased=False)
    kept = masked_whiten(x, mask, unbiased=False, center=False)
    assert centred.tolist() == pytest.approx([-1.224745, 0, 1.224745, 0], abs=1e-6)
    assert kept.tolist() == pytest.approx([4 - 1.224745, 4, 4 + 1.224745, 0], abs=1e-6)


def test_fewer_than_two_entries_have_no_variance():
    x = doubles([3.0, 7.0])
    for unbiased in (True, False):
        assert masked_var(x, bools([1, 0]), unbiased=unbiased).item() == 0.0
        assert masked_var(x, bools([0, 0]), unbiased=unbiased).item() == 0.0
    assert masked_whiten(x, bools([1, 0])).tolist() == [0.0, 0.0]
    assert masked_whiten(x, bools([1, 0]), center=False).tolist() == [3.0, 0.0]


def test_mean_over_two_axes():
    x = torch.arange(8.0).reshape(2, 2, 2)
    mask = bools([[[1, 0], [0, 1]], [[0, 0], [0, 0]]])
    assert masked_mean(x, mask, dim=(1, 2)).tolist() == [1.5, 0.0]  # (0 + 3) / 2; nothing


# ---- identities


@settings(max_examples=60, deadline=None, derandomize=True)
@given(MASKS, st.integers(0, 99))
def test_masking_is_selecting(mask, seed):
    """Selecting the entries and using torch's own functions gives the same."""
    mask = bools(mask)
    x = torch.randn(mask.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    if mask.any():
        assert masked_mean(x, mask).item() == pytest.approx(x[mask].mean().item(), abs=1e-12)
        assert masked_var(x, mask, unbiased=False).item() == pytest.approx(x[mask].var(correction=0).item())
    if mask.sum() > 1:
        assert masked_var(x, mask).item() == pytest.approx(x[mask].var().item())
        white = masked_whiten(x, mask)[mask]
        assert white.mean().item() == pytest.approx(0, abs=1e-6)
        assert white.var().item() == pytest.approx(1 / (1 + 1e-8 / x[mask].var().item()))


@settings(max_examples=60, deadline=None, derandomize=True)
@given(MASKS, st.sampled_from(JUNK), st.integers(0, 99))
def test_junk_under_the_mask_reaches_nothing(mask, junk, seed):
    mask = bools(mask)
    clean = torch.randn(mask.shape, generator=torch.Generator().manual_seed(seed))
    functions = [
        masked_mean,
        lambda x, m: masked_mean(x, m, dim=0),
        masked_var,
        masked_whiten,
        lambda x, m: masked_whiten(x, m, center=False, unbiased=False),
    ]
    for function in functions:
        dirty = clean.masked_fill(~mask, junk).requires_grad_()
        result = function(dirty, mask)
        assert torch.equal(result, function(clean, mask))
        (result * torch.arange(1.0, result.numel() + 1).reshape(result.shape)).sum().backward()
        assert dirty.grad.isfinite().all()
        assert not dirty.grad[~mask].any()


def test_padding_changes_nothing():
    x, mask = (
        torch.randn(3, 4, generator=torch.Generator().manual_seed(0)),
        bools([[1, 1, 1, 0], [1] * 4, [0, 1, 0, 0]]),
    )
    for left, right in [(2, 0), (0, 3), (1, 2)]:
        wide = torch.nn.functional.pad(x, (left, right), value=math.nan)
        wide_mask = torch.nn.functional.pad(mask, (left, right), value=False)
        assert torch.allclose(masked_mean(wide, wide_mask), masked_mean(x, mask))
        assert torch.allclose(masked_mean(wide, wide_mask, dim=1), masked_mean(x, mask, dim=1))
        assert torch.allclose(masked_var(wide, wide_mask), masked_var(x, mask))
        assert torch.allclose(masked_whiten(wide, wide_mask)[:, left : left + 4], masked_whiten(x, mask), atol=1e-6)


@pytest.mark.parametrize("function", [masked_mean, masked_var, masked_whiten])
def test_refuses_what_does_not_fit(function):
    with pytest.raises(ValueError, match=rf"^{function.__name__}: wants one shape, got x \(2, 3\), mask \(2,\)$"):
        function(torch.zeros(2, 3), bools([1, 0]))
    with pytest.raises(ValueError, match=rf"^{function.__name__}: mask must be bool .* got torch.float32$"):
        function(torch.zeros(2), torch.ones(2))
