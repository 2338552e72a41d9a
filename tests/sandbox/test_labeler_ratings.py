"""Ratings by simulated labelers: what they mean without noise, and what noise and flips do to them."""

import statistics

from rlhf_lab.sandbox.labelers import Labeler, LabelerConfig

GOLD = {f"reply {number}": number / 100 for number in range(-400, 401)}  # mean 0


def ratings(replies, **settings) -> list[int]:
    labeler = Labeler(lambda prompt, text: GOLD[text], LabelerConfig(**settings))
    return labeler.rate(["p"] * len(replies), list(replies))


def test_without_noise_a_rating_is_gold_from_the_mean_rounded_into_1_to_5():
    found = dict(zip(GOLD, ratings(GOLD, temperature=0), strict=True))
    assert [found[f"reply {n}"] for n in (-400, -180, -120, 0, 40, 60, 120, 180, 400)] == [1, 1, 2, 3, 3, 4, 4, 5, 5]
    assert ratings(["reply 100", "reply 300"], temperature=0) == [2, 4]  # graded on a curve: the mean gets 3


def test_a_flip_turns_the_scale_around():
    straight, turned = ratings(GOLD, temperature=0), ratings(GOLD, temperature=0, flip=1)
    assert turned == [6 - rating for rating in straight]
    some = ratings(GOLD, temperature=0, flip=0.25)
    wrong = [a != b for a, b, c in zip(some, straight, turned, strict=True) if b != c]
    assert 0.18 < statistics.mean(wrong) < 0.32  # of about 700: four standard errors


def test_noise_blurs_and_does_not_shift():
    middle = [name for name, gold in GOLD.items() if abs(gold) < 1]
    found = ratings(middle, temperature=0.5)
    # Gumbel noise of scale 0.5 has deviation 0.64; 199 replies: four standard errors of the mean are 0.25
    assert abs(statistics.mean(found) - 3) < 0.25
    assert found == ratings(middle, temperature=0.5)
    assert found != ratings(middle, temperature=0.5, seed=1)
    alike = Labeler(lambda prompt, text: 0.0, LabelerConfig(temperature=1.0))
    many = alike.rate([f"p{number}" for number in range(2000)], ["x"] * 2000)
    # rounding and the ends of the scale move the mean by a few hundredths, Gumbel's own mean would by 0.58
    assert abs(statistics.mean(many) - 3) < 0.2
    blurred, sharp = ratings(middle, temperature=3.0), ratings(middle, temperature=0.1)
    gold = [GOLD[name] for name in middle]
    assert statistics.correlation(sharp, gold) > 0.8 > 0.5 > statistics.correlation(blurred, gold)


def test_a_length_bias_pays_for_words():
    labeler = Labeler(lambda prompt, text: 0.0, LabelerConfig(temperature=1.0, length_bias=0.5))
    texts = ["w " * 2, "w " * 10] * 100
    found = labeler.rate([f"p{n}" for n in range(200)], texts)
    assert statistics.mean(found[1::2]) - statistics.mean(found[::2]) > 1.5
