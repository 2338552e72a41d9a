"""Labelers err as often as they say, and are biased only where told to be."""

import math

import numpy as np
import pytest

from rlhf_lab.sandbox.labelers import Labeler, LabelerConfig

WORTH = {"good": 1.0, "fine": 0.5, "bad": 0.0, "bad and long": 0.0}


def labeler(**settings) -> Labeler:
    return Labeler(lambda prompt, reply: WORTH[reply], LabelerConfig(**settings))


def test_probability_by_hand():
    # sigmoid(1 / 0.5) = 0.8808
    assert labeler(temperature=0.5).probability("p", "good", "bad") == pytest.approx(0.8807970779778823)
    # flips: .8808 * .9 + .1192 * .1
    assert labeler(temperature=0.5, flip=0.1).probability("p", "good", "bad") == pytest.approx(0.8046376623823059)
    # two more words at .3 logits each: sigmoid(-.6) for the shorter; and 1 logit for the first
    assert labeler(length_bias=0.3).probability("p", "bad", "bad and long") == pytest.approx(1 / (1 + math.exp(0.6)))
    assert labeler(position_bias=1.0).probability("p", "bad", "bad") == pytest.approx(1 / (1 + math.exp(-1)))
    assert labeler(temperature=0.0).probability("p", "good", "bad") == 1.0
    assert labeler(temperature=0.0).probability("p", "bad", "bad") == 0.5


@pytest.mark.parametrize("settings", [{}, {"flip": 0.2}, {"position_bias": 0.7}, {"length_bias": 0.4}])
def test_labels_come_as_often_as_their_probability(settings):
    judge = labeler(temperature=0.7, **settings)
    labels = [judge.prefers(f"prompt {i}", "fine", "bad and long") for i in range(4000)]
    expected = 1 - judge.probability("", "fine", "bad and long")
    assert np.mean(labels) == pytest.approx(expected, abs=4 * math.sqrt(0.25 / 4000))


def test_the_same_question_gets_the_same_label():
    judge, again = labeler(seed=3), labeler(seed=3)
    assert [judge.prefers(str(i), "fine", "bad") for i in range(50)] == [
        again.prefers(str(i), "fine", "bad") for i in range(50)
    ]
    assert [labeler(seed=4).prefers(str(i), "fine", "bad") for i in range(50)] != [
        judge.prefers(str(i), "fine", "bad") for i in range(50)
    ]


def test_a_ranking_of_two_is_a_comparison_and_ranks_are_whole():
    judge = labeler(temperature=0.5)
    ranks = [judge.rank(f"p{i}", ["good", "bad"]) for i in range(4000)]
    assert {tuple(r) for r in ranks} == {(0, 1), (1, 0)}
    # 0.8808 as above; four binomial standard errors
    assert np.mean([r == [0, 1] for r in ranks]) == pytest.approx(0.8808, abs=0.021)
    assert sorted(judge.rank("p", ["good", "fine", "bad"])) == [0, 1, 2]


def test_the_best_of_three_is_picked_by_plackett_luce():
    judge = labeler(temperature=1.0)
    first = [judge.rank(f"p{i}", ["good", "fine", "bad"]).index(0) for i in range(6000)]
    weights = np.exp([1.0, 0.5, 0.0])
    assert np.bincount(first) / 6000 == pytest.approx(weights / weights.sum(), abs=0.026)


def test_without_noise_the_ranking_is_golds():
    assert labeler(temperature=0.0).rank("p", ["bad", "good", "fine"]) == [2, 0, 1]
