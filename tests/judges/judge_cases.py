"""Pairs and judges that several tests of this room share."""

import numpy as np

from rlhf_lab.judges.protocol import Verdict
from rlhf_lab.judges.table import make_pairs, verdict_table


def written_gold(prompts, completions):
    """A gold reward that reads the score from the reply's first word."""
    return [float(text.split()[0]) for text in completions]


def reply(score, words):
    """A reply of that many words whose gold score is its first word."""
    return " ".join([repr(float(score))] + ["w"] * (int(words) - 1))


def drawn_pairs(n, seed):
    """n pairs from a fixed population: gold scores, and lengths that gold likes a little."""
    rng = np.random.default_rng(seed)
    gold = rng.normal(size=(n, 2)).round(6)
    words = 1 + rng.poisson(np.exp(2.3 + 0.2 * gold))
    rows = [
        {
            "prompt": f"question {i}",
            "reply_a": reply(gold[i, 0], words[i, 0]),
            "reply_b": reply(gold[i, 1], words[i, 1]),
            "gold_a": gold[i, 0],
            "gold_b": gold[i, 1],
        }
        for i in range(n)
    ]
    return make_pairs(rows)


def perfect(*, prompts, firsts, seconds):
    """The judge that says what gold says."""
    scores = zip(written_gold(prompts, firsts), written_gold(prompts, seconds), strict=True)
    return [Verdict("tie" if x == y else "first" if x > y else "second") for x, y in scores]


def always_tie(*, prompts, firsts, seconds):
    return [Verdict("tie")] * len(prompts)


def by_hand(gold, words, verdicts):
    """Pairs and verdicts from a few letters, for counting by hand.

    gold: one letter per pair, a b t, or - for none. words: (words_a, words_b) per pair. verdicts: per pair
    what was said in order 0 and in order 1, as f(irst), s(econd), t(ie), x (invalid) or - (not asked).
    """
    place = {"f": "first", "s": "second", "t": "tie", "x": None}
    label = {"a": "a", "b": "b", "t": "tie", "-": None}
    pairs = make_pairs(
        [
            {"pair_id": f"p{i}", "gold": label[g], "words_a": a, "words_b": b}
            for i, (g, (a, b)) in enumerate(zip(gold, words, strict=True))
        ]
    )
    table = verdict_table(
        [
            {"pair_id": f"p{i}", "judge": "hand", "order": order, "shown_verdict": place[letter]}
            for i, said in enumerate(verdicts.split())
            for order, letter in enumerate(said)
            if letter != "-"
        ]
    )
    return table, pairs
