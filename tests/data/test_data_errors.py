"""Every bad input: one line that names file, row and column, and says what to do."""

import json
import re

import pyarrow.parquet as pq
import pytest
from datasets import Dataset

from rlhf_lab.data import load_demonstrations, load_preferences, load_prompts, load_rankings
from rlhf_lab.errors import LabError

USER, BOT, OTHER = (
    {"role": role, "content": content} for role, content in (("user", "hi"), ("assistant", "yes"), ("assistant", "no"))
)
TEXT = "\n\nHuman: {}\n\nAssistant: {}".format

GOOD = {
    load_prompts: {"prompt": "x"},
    load_demonstrations: {"prompt": "x", "completion": "y"},
    load_preferences: {"prompt": "x", "chosen": "y", "rejected": "z"},
    load_rankings: {"prompt": "x", "completions": ["y", "z"], "ranks": [0, 1]},
}


def demonstration(completion, prompt="x"):
    return {"prompt": prompt, "completion": completion}


def pair(chosen, rejected, **prompt):
    return {**prompt, "chosen": chosen, "rejected": rejected}


def ranking(completions, ranks):
    return {"prompt": "x", "completions": completions, "ranks": ranks}


# name of the case: loader, a row that it cannot use, the columns and what is said of them
BAD_ROWS = {
    "number": (load_prompts, {"prompt": 3}, ["'prompt'", "is a number where text"]),
    "null": (load_prompts, {"prompt": None}, ["'prompt'", "is null where text"]),
    "object": (load_prompts, {"prompt": {"a": 1}}, ["'prompt'", "is an object where text"]),
    "list": (load_prompts, {"prompt": ["x"]}, ["'prompt'", "is not an object with 'role' and 'content'"]),
    "no content": (load_prompts, {"prompt": [{"role": "user"}]}, ["'prompt'", "with 'role' and 'content'"]),
    "null content": (
        load_prompts,
        {"prompt": [{"role": "user", "content": None}]},
        ["'prompt'", "content is null where text"],
    ),
    "half a character": (load_prompts, {"prompt": "\ud83d"}, ["'prompt'", "surrogate"]),
    "blank prompt": (load_prompts, {"prompt": " \n"}, ["'prompt'", "is empty"]),
    "empty prompt": (load_demonstrations, demonstration("y", ""), ["'prompt'", "is empty"]),
    "no messages": (load_prompts, {"prompt": []}, ["'prompt'", "is empty"]),
    "empty question": (load_prompts, {"prompt": [{**USER, "content": ""}]}, ["'prompt'", "is empty"]),
    "prompt with reply": (
        load_prompts,
        {"prompt": [USER, BOT]},
        ["'prompt'", "ends with an assistant message"],
    ),
    "no prompt": (load_prompts, {"other": "x"}, ["'prompt'", "is missing"]),
    "list reply": (load_demonstrations, demonstration(["y"]), ["'completion'", "is a list where text"]),
    "true": (load_demonstrations, demonstration(True), ["'completion'", "is true/false where text"]),
    "no reply": (load_demonstrations, {"prompt": "x"}, ["'completion'", "is missing"]),
    "user's reply": (
        load_demonstrations,
        demonstration([USER], [USER]),
        ["'completion'", "a message by 'user'"],
    ),
    "no message": (load_demonstrations, demonstration([], [USER]), ["'completion'", "holds no message"]),
    "text for messages": (
        load_demonstrations,
        demonstration("y", [USER]),
        ["'completion'", "is text where a list"],
    ),
    "no last reply": (
        load_demonstrations,
        {"messages": [USER]},
        ["'messages'", "does not end with an assistant"],
    ),
    "nothing asked": (load_demonstrations, {"messages": [BOT]}, ["'messages'", "is empty"]),
    "null reply": (load_preferences, pair(None, "z", prompt="x"), ["'chosen'", "is null where text"]),
    "equal": (load_preferences, pair("y", "y", prompt="x"), ["'chosen', 'rejected'", "are equal"]),
    "equal dialogues": (
        load_preferences,
        pair([USER, BOT], [USER, BOT]),
        ["'chosen', 'rejected'", "are equal"],
    ),
    "equal words": (load_preferences, pair("yes", "yes"), ["'chosen', 'rejected'", "are equal"]),
    "no shared text": (load_preferences, pair("yes", "yet"), ["'chosen', 'rejected'", "share no prompt"]),
    "other turns": (
        load_preferences,
        pair(TEXT("a", "x"), TEXT("b", "y")),
        ["'chosen', 'rejected'", "share no prompt", "differ before their last '\\n\\nAssistant:'"],
    ),
    "no turn in one": (load_preferences, pair(TEXT("a", "x"), "\n\nHuman: a"), ["share no prompt"]),
    "other messages": (
        load_preferences,
        pair([USER, BOT, USER, BOT], [USER, OTHER, USER, OTHER]),
        ["'chosen', 'rejected'", "share no prompt", "differ before the last assistant turn"],
    ),
    "only replies": (load_preferences, pair([BOT], [OTHER]), ["'chosen', 'rejected'", "share no prompt"]),
    "unanswered": (
        load_preferences,
        pair([USER, BOT], [USER]),
        ["'rejected'", "does not end with an assistant"],
    ),
    "fewer ranks": (load_rankings, ranking(["y", "z"], [0]), ["'ranks'", "has 1 entries for 2 completions"]),
    "one completion": (load_rankings, ranking(["y"], [0]), ["'completions'", "has 1 where two or more"]),
    "number inside": (load_rankings, ranking(["y", 2], [0, 1]), ["'completions'", "item 2 is a number"]),
    "text completions": (load_rankings, ranking("y, z", [0, 1]), ["'completions'", "is text where a list"]),
    "scores": (load_rankings, ranking(["y", "z"], [0.5, 1.5]), ["'ranks'", "other than whole numbers"]),
    "ranks from 2": (load_rankings, ranking(["y", "z"], [2, 3]), ["'ranks'", "another number than 0 or 1"]),
    "one rank": (load_rankings, ranking(["y", "z"], 0), ["'ranks'", "is a number where a list"]),
}


def complaint(call, *arguments, **options):
    with pytest.raises(LabError) as caught:
        call(*arguments, **options)
    line = str(caught.value)
    assert "\n" not in line
    return line


def in_order(line, parts):
    return re.search(".*".join(re.escape(part) for part in parts), line) is not None


@pytest.mark.parametrize("case", BAD_ROWS)
def test_a_bad_row_is_named_and_can_be_dropped(case, tmp_path, capsys):
    load, bad, parts = BAD_ROWS[case]
    path = tmp_path / "a.jsonl"
    good = json.dumps(GOOD[load])
    path.write_text(f"{good}\n\n{json.dumps(bad)}\n{good}\n")
    line = complaint(load, path)
    assert in_order(line, [f"{path}, line 3, column", *parts, "mend the file", "on_bad='drop'"]), line
    assert load(path, on_bad="drop").to_list() == [GOOD[load]] * 2
    printed = capsys.readouterr().out
    assert printed.startswith("dropped 1 of 3 rows: column")
    assert in_order(printed, [*parts, f"(1, first at {path}, line 3)"])
    assert printed.count("\n") == 1


def test_a_bad_only_row_leaves_nothing(write):
    path = write("a.jsonl", [{"prompt": ""}])
    assert complaint(load_prompts, path, on_bad="drop").startswith(f"{path}: no row is left")


def test_text_among_messages(write):
    path = write("a.jsonl", [{"prompt": [USER]}, {"prompt": "x"}])
    assert f"{path}, line 2, column 'prompt': is text, unlike the rows before" in complaint(load_prompts, path)


def test_rows_are_counted_as_each_file_type_counts(write):
    path = write("a.csv", 'prompt,n\n"two\nlines",1\n,2\n')
    assert complaint(load_prompts, path).startswith(f"{path}, line 4, column 'prompt': is empty")
    for name in ("a.parquet", "a.json"):
        path = write(name, [{"prompt": "x"}, {"prompt": "y"}, {"prompt": None}])
        assert complaint(load_prompts, path).startswith(f"{path}, row 3, column 'prompt': is null")


def test_a_list_in_csv_as_python_writes_it(write):
    path = write("a.csv", "prompt,completions,ranks\nx,\"['a', 'b']\",\"[0, 1]\"\n")
    line = complaint(load_rankings, path)
    assert in_order(line, [f"{path}, line 2", "'completions'", "is text where a list", "in CSV as JSON"])


def test_bad_rows_are_counted_and_listed(write):
    equal = '{"prompt": "x", "chosen": "y", "rejected": "y"}\n'
    path = write("a.jsonl", (equal + '{"prompt": "x", "chosen": "y", "rejected": "z"}\n') * 3 + '{"prompt": ""}\n')
    line = complaint(load_preferences, path)
    assert line.startswith(f"{path}, line 1, columns 'chosen', 'rejected': are equal")
    assert "3 such rows: 1, 3, 5; rows with other problems: 1;" in line


def test_a_long_list_of_bad_rows_is_cut(write):
    line = complaint(load_prompts, write("a.jsonl", [{"prompt": ""}] * 25))
    assert "25 such rows: 1, 2, 3, 4, 5, 6, 7, 8, 9, 10 and 15 more" in line


def test_bad_rows_of_a_directory_name_their_files(write, tmp_path):
    write("set/a.jsonl", [{"prompt": "x"}, {"prompt": ""}])
    second = write("set/b.jsonl", [{"prompt": ""}])
    line = complaint(load_prompts, tmp_path / "set")
    assert line.startswith(
        f"{tmp_path / 'set' / 'a.jsonl'}, line 2, column 'prompt': is empty; 2 such rows: 2, {second}:1"
    )


def test_columns_are_told_by_the_name_in_the_file(write):
    path = write("a.jsonl", [{"question": 1}])
    assert "line 1, column 'question': is a number" in complaint(load_prompts, path, columns={"prompt": "question"})


# files


def test_no_such_file(tmp_path):
    path = tmp_path / "nowhere.jsonl"
    assert f"{path}: no such file or directory" in complaint(load_prompts, path)
    assert "no such file or directory" in complaint(load_prompts, "nowhere.jsonl")
    assert "no such file or directory" in complaint(load_prompts, "./some/folder/of/mine")
    assert "no such file or directory" in complaint(load_prompts, "../somewhere")


def test_unknown_file_type(write):
    path = write("a.xlsx", "x")
    assert in_order(complaint(load_prompts, path), [str(path), "unknown file type '.xlsx'", ".jsonl", ".parquet"])


def test_no_source_at_all():
    for nothing in ("", None, 3):
        assert f"the data source is {nothing!r}" in complaint(load_prompts, nothing)


@pytest.mark.parametrize(
    ("name", "content"),
    [("a.jsonl", ""), ("a.jsonl", "\n\n"), ("a.json", "[]"), ("a.csv", "prompt\n"), ("a.csv", "")],
)
def test_empty_data_set(name, content, write):
    path = write(name, content)
    assert complaint(load_prompts, path).startswith(f"{path}: no rows")


def test_other_empty_data_sets(write, tmp_path):
    path = write("a.parquet", [{"prompt": "x"}])
    pq.write_table(pq.read_table(path).slice(0, 0), path)
    assert complaint(load_prompts, path).startswith(f"{path}: no rows")
    (tmp_path / "empty").mkdir()
    assert "no file in this directory ends in" in complaint(load_prompts, tmp_path / "empty")
    assert "no rows" in complaint(load_prompts, Dataset.from_dict({"prompt": []}))


def test_a_broken_json_line_is_a_row_that_cannot_be_used(write, capsys):
    path = write("a.jsonl", '{"prompt": "x"}\n{"prompt": "y"\n')
    assert complaint(load_prompts, path).startswith(f"{path}, line 2: broken JSON at character 15")
    assert load_prompts(path, on_bad="drop").to_list() == [{"prompt": "x"}]
    assert capsys.readouterr().out.startswith("dropped 1 of 2 rows: broken JSON (1, first at")


def test_broken_json_list(write):
    path = write("a.json", '[{"prompt": "x"},\n {"prompt" "y"}]')
    assert complaint(load_prompts, path).startswith(f"{path}: broken JSON at line 2, character")


def test_a_line_that_is_no_object(write):
    path = write("a.jsonl", '{"prompt": "x"}\n["y"]\n')
    assert complaint(load_prompts, path).startswith(f"{path}, line 2: not a JSON object")


def test_broken_csv(write):
    path = write("a.csv", "prompt,n\nx,1\ny,2,3\n")
    assert complaint(load_prompts, path).startswith(f"{path}, line 3: 3 cells under a header of 2")
    path = write("b.csv", 'prompt,n\nx,1\n"y,2\n')
    assert complaint(load_prompts, path).startswith(f"{path}, line 3: broken CSV")
    path = write("c.csv", "prompt,prompt\nx,1\n")
    assert "two columns have the same name" in complaint(load_prompts, path)


def test_other_encodings_and_damaged_files(write):
    path = write("a.jsonl", '{"prompt": "x"}\n{"prompt": "é"}\n'.encode("latin-1"))
    assert complaint(load_prompts, path).startswith(f"{path}, line 2: not UTF-8")
    path = write("a.parquet", b"not parquet at all")
    assert complaint(load_prompts, path).startswith(f"{path}: cannot be read")
    path = write("a.jsonl.gz", b"not gzip at all")
    assert complaint(load_prompts, path).startswith(f"{path}: cannot be read")


# columns and options


def test_a_missing_column_lists_those_there_and_how_to_name_it(write):
    path = write("a.csv", "question,answer\nx,y\n")
    line = complaint(load_demonstrations, path)
    parts = ["no column 'prompt', 'completion'", "the columns are 'question', 'answer'"]
    assert in_order(line, [str(path), *parts, "columns={'prompt': '<its name there>', 'completion':"])
    line = complaint(load_demonstrations, path, columns={"prompt": "question"})
    assert in_order(line, ["no column 'completion'", "the columns are 'question', 'answer'"])


def test_the_missing_column_is_that_of_the_nearest_format(write):
    path = write("a.jsonl", [{"prompt": "x", "chosen": "y"}])
    assert "no column 'rejected';" in complaint(load_preferences, path)
    assert "no column 'completion';" in complaint(load_demonstrations, path)
    path = write("b.jsonl", [{"prompt": "x", "chosen": "y", "rejected": "z"}])
    assert "no column 'completions', 'ranks';" in complaint(load_rankings, path)


def test_a_renamed_column_is_no_longer_there_under_its_old_name(write):
    path = write("a.jsonl", [{"prompt": "x", "other": "y"}])
    assert "no column 'prompt';" in complaint(load_demonstrations, path, columns={"completion": "prompt"})


def test_a_map_to_a_column_that_is_not_there(write):
    path = write("a.jsonl", [{"question": "x"}])
    line = complaint(load_prompts, path, columns={"prompt": "qestion"})
    assert in_order(line, [str(path), "columns={'prompt': 'qestion'}", "the columns are 'question'", "did you mean"])


def test_a_map_from_a_name_that_is_not_ours(write):
    path = write("a.jsonl", [{"question": "x"}])
    line = complaint(load_prompts, path, columns={"promt": "question"})
    assert in_order(line, ["'promt' is none of our names 'prompt'", "did you mean 'prompt'?"])
    assert "mapped to a number" in complaint(load_prompts, path, columns={"prompt": 0})


@pytest.mark.parametrize("limit", [0, -1, 2.5, True, "all"])
def test_a_limit_that_is_no_count(limit, write):
    assert f"limit is {limit!r}" in complaint(load_prompts, write("a.jsonl", [{"prompt": "x"}]), limit=limit)


def test_on_bad_has_two_values(write):
    line = complaint(load_prompts, write("a.jsonl", [{"prompt": "x"}]), on_bad="ignore")
    assert "on_bad is 'ignore'; give 'raise' or 'drop'" in line


def test_other_columns_must_be_columns(write):
    path = write("a.jsonl", [{"prompt": "x", "id": None}, {"prompt": "x", "id": 7}, {"prompt": "y", "id": "eight"}])
    assert complaint(load_prompts, path).startswith(f"{path}, line 3, column 'id': is text where the rows before have")
    path = write("b.jsonl", [{"prompt": "x", "id": 2**80}])
    assert in_order(complaint(load_prompts, path), [str(path), "column 'id': cannot be a column"])
