"""Rated replies, and what comparisons say of themselves: margin and source."""

import pytest
from datasets import Dataset

from rlhf_lab.data import load_preferences, load_rankings, load_ratings, preferences_to_rankings
from rlhf_lab.errors import LabError

PLAIN = {"prompt": "The sky is", "completion": " blue.", "rating": 4.0}
TALK = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]
PAIR = {"prompt": "p", "chosen": " x", "rejected": " y"}


def first(load, row, **options):
    return load(Dataset.from_list([row]), **options)[0]


def test_ratings_as_text_and_as_messages():
    assert first(load_ratings, PLAIN | {"who": "me"}) == PLAIN
    assert first(load_ratings, PLAIN | {"rating": 3}) == PLAIN | {"rating": 3.0}
    talk = {"prompt": TALK[:1], "completion": TALK[1:], "rating": 2.5}
    assert first(load_ratings, talk) == talk
    assert first(load_ratings, {"messages": TALK, "rating": 2.5}) == talk
    stars = {"prompt": "p", "completion": " x", "stars": 5}
    assert first(load_ratings, stars, columns={"rating": "stars"}) == {"prompt": "p", "completion": " x", "rating": 5.0}


def test_ratings_from_csv_and_whether_a_reply_finished(tmp_path):
    (tmp_path / "r.csv").write_text("prompt,completion,rating,finished\np, x,4,True\nq, y,2.5,false\nr, z,1,\n")
    rows = load_ratings(tmp_path / "r.csv").to_list()
    assert [(row["rating"], row["finished"]) for row in rows] == [(4.0, True), (2.5, False), (1.0, None)]


@pytest.mark.parametrize("rating", ["good", "", float("nan"), float("inf"), True, None, "1e999"])
def test_a_rating_that_is_no_number_is_named_with_its_row(rating, tmp_path):
    rows = Dataset.from_dict({"prompt": ["p"], "completion": [" x"], "rating": [rating]})
    with pytest.raises(LabError, match=r"row 1, column 'rating': is .* where a finite number is expected"):
        load_ratings(rows)


def test_other_bad_ratings():
    with pytest.raises(LabError, match=r"no column 'rating'"):
        first(load_ratings, {"prompt": "p", "completion": " x"})
    with pytest.raises(LabError, match=r"column 'finished': is a number where true/false is expected"):
        first(load_ratings, PLAIN | {"finished": 1})
    good_and_bad = Dataset.from_dict({"prompt": ["p", "q"], "completion": [" x", " y"], "rating": ["3", "bad"]})
    assert load_ratings(good_and_bad, on_bad="drop")["rating"] == [3.0]


def test_margin_and_source_stay_with_their_comparisons():
    rows = Dataset.from_dict(
        {
            "prompt": ["p", "q"],
            "chosen": [" x", " x"],
            "rejected": [" y", " z"],
            "margin": [2, 0],
            "source": ["web", None],
        }
    )
    found = load_preferences(rows)
    assert found.to_list() == [
        {"prompt": "p", "chosen": " x", "rejected": " y", "margin": 2.0, "source": "web"},
        {"prompt": "q", "chosen": " x", "rejected": " z", "margin": 0.0, "source": None},
    ]
    ranked = preferences_to_rankings(found)
    assert ranked["margin"] == [2.0, 0.0]
    assert ranked["source"] == ["web", None]
    again = load_rankings(ranked)
    assert again.to_list() == ranked.to_list()
    plain = preferences_to_rankings(load_preferences(Dataset.from_list([PAIR])))
    assert plain.column_names == ["prompt", "completions", "ranks"]


def test_a_margin_that_is_no_number():
    with pytest.raises(LabError, match=r"row 1, column 'margin': is text where a finite number is expected"):
        first(load_preferences, PAIR | {"margin": "wide"})
