"""The unbiased best-of-n estimator against enumeration of every draw, and against n/(n+1)."""

import itertools
import math

import pytest
import torch

from rlhf_lab.maths import best_of_n_curve


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
