"""The unbiased best-of-n estimator against enumeration of every draw, and against n/(n+1)."""

import itertools
import math

import pytest
import torch
from scipy.integrate import quad

from rlhf_lab.maths import best_of_n_curve, best_of_n_kl, tied_best_of_n_kl


@pytest.mark.parametrize("n", [1, 2, 3, 5, 7])
def test_it_is_the_average_over_every_draw_of_n(n):
    generator = torch.Generator().manual_seed(n)
    scores, values = torch.randn(2, 3, 7, generator=generator)
    found = best_of_n_curve(scores, values, [n])
    for row in range(3):
        best = [max(draw, key=lambda i: scores[row, i]) for draw in itertools.combinations(range(7), n)]
        assert found.value[row, 0].item() == pytest.approx(values[row, best].mean().item(), abs=1e-6)
        assert found.score[row, 0].item() == pytest.approx(scores[row, best].mean().item(), abs=1e-6)


def test_ties_are_decided_by_the_tie_breaker_alone():
    scores = torch.zeros(1, 4)
    values = torch.tensor([[1.0, 2.0, 3.0, 4.0]])
    last = torch.tensor([[0.9, 0.1, 0.2, 0.3]])
    assert best_of_n_curve(scores, values, [4], tie_breaker=last).value.item() == pytest.approx(1.0)
    coins = torch.rand(4000, 4, generator=torch.Generator().manual_seed(0))
    many = best_of_n_curve(scores.expand(4000, 4), values.expand(4000, 4), [3], tie_breaker=coins).value
    assert many.mean().item() == pytest.approx(2.5, abs=0.05)  # whatever n is: all replies are equally good


@pytest.mark.parametrize("n", [2, 4, 16, 64])
def test_the_best_of_n_under_gold_beats_an_independent_draw_n_times_in_n_plus_1(n):
    """DESIGN 5.10. Gold has five levels, so that most draws tie; the coin of each sample decides."""
    generator = torch.Generator().manual_seed(n)
    gold = torch.randint(0, 5, (400, 128), generator=generator).double()
    rival = torch.randint(0, 5, (400, 1), generator=generator).double()
    coin = torch.rand(400, 129, generator=generator)
    ours, theirs = coin[:, :128], coin[:, 128:]
    wins = (gold > rival) | ((gold == rival) & (ours > theirs))
    found = best_of_n_curve(gold, wins.double(), [n], tie_breaker=ours).value.mean().item()
    standard_error = math.sqrt(n / (n + 1) ** 2 / 400)
    assert found == pytest.approx(n / (n + 1), abs=4 * standard_error)


def test_large_pools_do_not_overflow():
    scores = torch.linspace(0, 1, 4096)[None]
    found = best_of_n_curve(scores, scores, [1, 1024, 4096])
    # The expected rank of the best of n from N is n (N + 1) / (n + 1).
    ranks = [n * 4097 / (n + 1) for n in (1, 1024, 4096)]
    assert found.value[0].tolist() == pytest.approx([(rank - 1) / 4095 for rank in ranks], rel=1e-6)


@pytest.mark.parametrize(
    ("shape", "ns", "message"),
    [((2, 3), [4], "from 1 to the 3"), ((2, 3), [0], "got 0"), ((3,), [1], "must both be")],
)
def test_wrong_input_is_named(shape, ns, message):
    with pytest.raises(ValueError, match=message):
        best_of_n_curve(torch.zeros(shape), torch.zeros(shape), ns)


# ---- The KL with ties


def test_without_ties_the_kl_is_the_bound_and_with_nothing_else_it_is_0():
    ns = [1, 2, 16, 256]
    scores = torch.stack([torch.randperm(100), torch.zeros(100, dtype=torch.long)])
    found = tied_best_of_n_kl(scores, ns)
    assert found[0].tolist() == pytest.approx([best_of_n_kl(n) for n in ns], abs=1e-9)
    assert found[1].tolist() == pytest.approx([0] * 4, abs=1e-12)


def test_five_levels_that_are_equally_likely():
    """P(level k) = (k/5)^n - ((k-1)/5)^n against 1/5 each; for n = 64 the best level alone is left: log 5 = 1.609."""
    scores = torch.arange(5).repeat(4)[None]
    assert tied_best_of_n_kl(scores, [4, 16, 64])[0].tolist() == pytest.approx([0.607, 1.480, 1.609], abs=5e-4)


def test_a_tie_below_what_does_not_tie():
    found = tied_best_of_n_kl(torch.tensor([[3.0, 0.0, 7.0, 0.0]]), [3])[0, 0].item()
    above, _ = quad(lambda u: 3 * u**2 * math.log(3 * u**2), 0.5, 1)
    assert found == pytest.approx(0.125 * math.log(0.125 / 0.5) + above, abs=1e-9)  # P(all three draws tie) = 1/8


def test_the_kl_with_ties_names_wrong_input():
    with pytest.raises(ValueError, match=r"must be \(B, N\)"):
        tied_best_of_n_kl(torch.zeros(3), [1])
    with pytest.raises(ValueError, match="at least 1, got 0"):
        tied_best_of_n_kl(torch.zeros(1, 3), [0])
