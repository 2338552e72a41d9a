"""Places inside of columns and texts put together from them; parts of a source; what else a format is read from."""

import pytest
from datasets import Dataset

from rlhf_lab.data import load_demonstrations, load_preferences, load_prompts, load_rankings
from rlhf_lab.errors import LabError


def first(load, row, **options):
    return load(Dataset.from_list([row]), **options)[0]


# the right side of a map


def test_a_place_inside_of_objects_and_of_each_object_of_a_list(write):
    row = {"prompt": "p", "answers": [{"text": "x", "rank": 2}, {"text": "y", "rank": 1}]}
    names = {"completions": "answers.text", "ranks": "answers.rank"}
    assert first(load_rankings, row, columns=names) == {"prompt": "p", "completions": ["x", "y"], "ranks": [1, 0]}
    as_lists = {"prompt": "p", "answers": {"text": ["x", "y"], "rank": [2, 1]}}  # as `datasets` gives a Sequence
    assert first(load_rankings, as_lists, columns=names)["ranks"] == [1, 0]
    path = write("a.jsonl", [{"info": {"a": {"b": "deep"}}}])
    assert load_prompts(path, columns={"prompt": "info.a.b"})[0]["prompt"] == "deep"


def test_a_column_of_that_very_name_comes_first(write):
    path = write("a.jsonl", [{"a.b": "flat", "a": {"b": "deep"}, "{c}": "braces", "c": "x"}])
    assert load_prompts(path, columns={"prompt": "a.b"})[0]["prompt"] == "flat"
    assert load_prompts(path, columns={"prompt": "{c}"})[0]["prompt"] == "braces"


def test_a_text_is_put_together(write):
    path = write("a.csv", "title,n\nOn tea,3\n")
    names = {"prompt": "{{{title}}}, {n}:\n", "completion": " {title}"}
    assert load_demonstrations(path, columns=names)[0] == {"prompt": "{On tea}, 3:\n", "completion": " On tea"}


@pytest.mark.parametrize(
    ("theirs", "line"),
    [
        ("answer.text", r"a.jsonl: columns=\{'prompt': 'answer.text'\} names a column that is not there, 'answer'; "
                        r"the columns are 'answers', 'title' \(did you mean 'answers'\?\)"),
        ("Q: {titel}", r"names a column that is not there, 'titel'; .* \(did you mean 'title'\?\)"),
        ("answers.txt", r"line 1, column 'answers.txt': 'answers.txt' is missing"),
        ("{answers}", r"line 1, column 'prompt': 'answers' is a list where text is expected"),
        ("{title", r"is no text with columns in braces"),
        ("{}", r"is no text with columns in braces"),
        ("{title:>3}", r"is no text with columns in braces"),
    ],
)  # fmt: skip
def test_a_map_that_names_nothing_is_one_line(theirs, line, write):
    path = write("a.jsonl", [{"answers": [{"text": "x"}], "title": "t"}])
    with pytest.raises(LabError, match=line) as told:
        load_prompts(path, columns={"prompt": theirs})
    assert "\n" not in str(told.value)


def test_rows_that_lack_the_place_are_bad_rows(write, capsys):
    path = write("a.jsonl", [{"info": {"post": "x"}}, {"info": {"article": "y"}}, {"info": {"post": None}}])
    with pytest.raises(LabError, match=r"line 2, column 'prompt': 'info.post' is missing; rows with other problems: 1"):
        load_prompts(path, columns={"prompt": "POST: {info.post}"})
    assert load_prompts(path, columns={"prompt": "POST: {info.post}"}, on_bad="drop")["prompt"][:] == ["POST: x"]
    assert "dropped 2 of 3 rows: column 'prompt': 'info.post' is missing (1, first at" in capsys.readouterr().out


# parts of a source


def test_a_split_and_its_first_rows_by_what_stands_behind_the_source(write, tmp_path):
    for split, count in (("train", 3), ("test_prefs", 2)):
        for part in (0, 1):
            write(f"set/{split}-{part}.jsonl", [{"prompt": f"{split} {part} {n}"} for n in range(count)])
    write("odd[test].jsonl", [{"prompt": "mine"}])
    folder = str(tmp_path / "set")
    assert len(load_prompts(folder)) == 6
    assert load_prompts(f"{folder}[test_prefs]")["prompt"][:2] == ["test_prefs 0 0", "test_prefs 0 1"]
    assert load_prompts(f"{folder}[:4]")["prompt"][-1] == "train 1 0"
    assert len(load_prompts(f"{folder}[test_prefs:1]")) == 1 and len(load_prompts(f"{folder}[train:99]")) == 6
    assert load_prompts(str(tmp_path / "odd[test].jsonl"))["prompt"][:] == ["mine"]  # a file of that name
    with pytest.raises(LabError, match="no file of split 'validation'"):
        load_prompts(f"{folder}[validation]")
    with pytest.raises(LabError, match="no such file or directory"):
        load_prompts(f"{folder}-[test]")


# what else is read


def test_the_best_reply_of_comparisons_is_a_demonstration():
    pair = {"chosen": "\n\nHuman: a\n\nAssistant: b", "rejected": "\n\nHuman: a\n\nAssistant: c"}
    assert first(load_demonstrations, pair) == {"prompt": "\n\nHuman: a\n\nAssistant:", "completion": " b"}
    ranked = {"prompt": "p", "completions": ["x", "y", "z"], "ranks": [2, 1, 1]}
    assert first(load_demonstrations, ranked) == {"prompt": "p", "completion": "y"}


def test_a_choice_is_a_ranking(write):
    row = {"prompt": "p", "completions": ["x", "y", "z"], "choice": 1}
    expected = {"prompt": "p", "completions": ["x", "y", "z"], "ranks": [1, 0, 1]}
    assert first(load_rankings, row) == expected
    assert load_rankings(write("a.csv", 'prompt,completions,choice\np,"[""x"",""y"",""z""]",1\n')).to_list() == [
        expected
    ]
    for wrong in (3, -1, "a", True, None, 0.5):
        with pytest.raises(LabError, match="row 1, column 'choice': is not the number of one of the 3 completions"):
            first(load_rankings, row | {"choice": wrong})


def test_ranks_may_be_whole_floats():
    assert first(load_rankings, {"prompt": "p", "completions": ["x", "y"], "ranks": [2.0, 1.0]})["ranks"] == [1, 0]


def test_messages_win_over_a_text_prompt_that_copies_them():
    asked, said, other = (
        {"role": r, "content": c} for r, c in (("user", "hi"), ("assistant", "x"), ("assistant", "y"))
    )
    row = {"prompt": "hi", "messages": [asked, said], "chosen": [asked, said], "rejected": [asked, other], "score": 1.5}
    assert first(load_prompts, row) == {"prompt": [asked], "score": 1.5}
    del row["messages"]
    assert first(load_prompts, row) == {"prompt": [asked], "chosen": [said], "rejected": [other], "score": 1.5}
    assert first(load_preferences, row) == {"prompt": [asked], "chosen": [said], "rejected": [other]}
