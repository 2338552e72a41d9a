"""The same rows from every kind of source, and no source touched."""

import subprocess
import sys

import datasets
import huggingface_hub
import pytest

from rlhf_lab.data import load_demonstrations, load_preferences, load_prompts, load_rankings
from rlhf_lab.errors import LabError

MESSAGES = [{"role": "user", "content": 'say "hi", please'}]

PROMPTS = [
    {"prompt": "42", "answer": 4, "weight": 0.5, "good": True, "tags": ["x", "y"], "note": "a, b"},
    {"prompt": 'two\nlines, "so"', "answer": -1, "weight": 2.0, "good": False, "tags": [], "note": ""},
    {"prompt": "שלום 🙂 été", "answer": None, "weight": 1e-5, "good": True, "tags": ["z"], "note": "007"},
]
SAME = {
    "prompts": (load_prompts, PROMPTS),
    "demonstrations": (
        load_demonstrations,
        [{"prompt": "1", "completion": "2"}, {"prompt": "\na", "completion": ""}],
    ),
    "conversations": (
        load_demonstrations,
        [{"prompt": MESSAGES, "completion": [{"role": "assistant", "content": "hi,\nyou"}]}],
    ),
    "preferences": (load_preferences, [{"prompt": "p", "chosen": "3", "rejected": "[4]"}]),
    "rankings": (load_rankings, [{"prompt": "p", "completions": ["x, y", "7"], "ranks": [1, 0]}]),
}


@pytest.mark.parametrize("case", SAME)
def test_every_file_type_gives_the_same_data_set(case, write):
    load, rows = SAME[case]
    loaded = [load(write(f"rows{suffix}", rows)) for suffix in (".jsonl", ".parquet", ".csv", ".json", ".jsonl.gz")]
    assert loaded[0].to_list() == rows
    for other in loaded[1:]:
        assert other.to_list() == rows
        assert other.features == loaded[0].features


def test_long_identifiers_in_csv_stay_text(write):
    path = write("a.csv", "prompt,id,zip\np,123456789012345678901234,00501\n")
    assert load_prompts(path).to_list() == [{"prompt": "p", "id": "123456789012345678901234", "zip": "00501"}]


def test_a_json_file_may_hold_json_lines(write):
    assert load_prompts(write("a.json", '{"prompt": "x"}\n{"prompt": "y"}\n'))["prompt"][:] == ["x", "y"]


def test_a_byte_order_mark_and_blank_lines_are_no_data(write):
    assert load_prompts(write("a.jsonl", b'\xef\xbb\xbf{"prompt": "x"}\n\n{"prompt": "y"}\n'))["prompt"][:] == [
        "x",
        "y",
    ]
    assert load_prompts(write("a.csv", b"\xef\xbb\xbfprompt,n\r\nx,1\r\n\r\ny,2\r\n"))["n"][:] == [1, 2]


def test_a_column_that_only_some_rows_have_is_null_elsewhere(write):
    path = write("a.jsonl", [{"prompt": "x"}, {"prompt": "y", "n": 1}])
    assert load_prompts(path).to_list() == [{"prompt": "x", "n": None}, {"prompt": "y", "n": 1}]


def test_a_path_may_be_text_or_path(write):
    path = write("a.jsonl", [{"prompt": "x"}])
    assert load_prompts(path).to_list() == load_prompts(str(path)).to_list()


def test_limit_takes_the_first_good_rows_and_reads_no_further(write, capsys):
    rows = [{"prompt": "x"}, {"prompt": ""}, {"prompt": "y"}, {"prompt": "z"}]
    path = write("a.jsonl", "\n".join(f'{{"prompt": "{row["prompt"]}"}}' for row in rows) + "\n{broken")
    assert load_prompts(path, limit=1)["prompt"][:] == ["x"]
    assert load_prompts(path, limit=2, on_bad="drop")["prompt"][:] == ["x", "y"]
    assert "dropped 1 of 3 rows" in capsys.readouterr().out
    with pytest.raises(LabError, match="line 2"):
        load_prompts(path, limit=2)


# directories


def test_a_directory_is_its_files_in_the_order_of_their_names(write, tmp_path):
    write("set/b.jsonl", [{"prompt": "2"}])
    write("set/a.jsonl", [{"prompt": "1"}])
    write("set/README.md", "not data")
    assert load_prompts(tmp_path / "set")["prompt"][:] == ["1", "2"]


def test_splits_of_a_directory_are_told_apart(write, tmp_path):
    write("set/train-00000-of-00002.parquet", [{"prompt": "1"}])
    write("set/train-00001-of-00002.parquet", [{"prompt": "2"}])
    write("set/test.parquet", [{"prompt": "3"}])
    assert load_prompts(tmp_path / "set")["prompt"][:] == ["1", "2"]
    assert load_prompts(tmp_path / "set", split="test")["prompt"][:] == ["3"]
    with pytest.raises(LabError, match="no file of split 'validation'; its files are 'test.parquet', 'train-0"):
        load_prompts(tmp_path / "set", split="validation")


def test_held_out_rows_are_not_taken_for_training_rows(write, tmp_path):
    write("set/test.jsonl", [{"prompt": "3"}])
    with pytest.raises(LabError, match="no file of split 'train'"):
        load_prompts(tmp_path / "set")


def test_a_directory_of_two_file_types_is_ambiguous(write, tmp_path):
    write("set/a.jsonl", [{"prompt": "1"}])
    write("set/a.csv", [{"prompt": "1"}])
    with pytest.raises(LabError, match=r"several types \(.csv, .jsonl\); name one file"):
        load_prompts(tmp_path / "set")


def test_directories_written_by_datasets_are_read(tmp_path):
    made = datasets.Dataset.from_list([{"prompt": "x"}])
    made.save_to_disk(tmp_path / "one")
    datasets.DatasetDict({"test": made}).save_to_disk(tmp_path / "many")
    assert load_prompts(tmp_path / "one").to_list() == [{"prompt": "x"}]
    assert load_prompts(tmp_path / "many", split="test").to_list() == [{"prompt": "x"}]
    with pytest.raises(LabError, match="no split 'train'; it has 'test'"):
        load_prompts(tmp_path / "many")


@pytest.mark.parametrize("name", ["a.jsonl", "a.json", "a.csv", "a.parquet"])
def test_the_source_is_never_written_to(name, write, tmp_path):
    path = write(name, [{"prompt": "x", "n": 1}, {"prompt": "y", "n": 2}])
    before, when = path.read_bytes(), path.stat().st_mtime_ns
    load_prompts(path)
    load_prompts(tmp_path)
    with pytest.raises(LabError):
        load_rankings(path)
    assert path.read_bytes() == before
    assert path.stat().st_mtime_ns == when
    assert [entry.name for entry in tmp_path.iterdir()] == [name]


# the hub


def test_a_hub_id_goes_through_datasets(monkeypatch):
    asked = []

    def answer(*place, split):
        asked.append((*place, split))
        return datasets.Dataset.from_list([{"question": "x"}, {"question": ""}])

    monkeypatch.setattr(datasets, "load_dataset", answer)
    wanted = {"columns": {"prompt": "question"}, "split": "test"}
    assert load_prompts("someone/things:main", limit=1, **wanted).to_list() == [{"prompt": "x"}]
    assert asked == [("someone/things", "main", "test")]
    with pytest.raises(LabError, match=r"someone/things \(test\), row 2, column 'question': is empty"):
        load_prompts("someone/things", **wanted)
    assert asked[1] == ("someone/things", None, "test")


def test_a_hub_id_without_network_is_one_line(monkeypatch, tmp_path, capfd):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    with pytest.raises(LabError) as caught:
        load_prompts("nobody/nothing-here")
    line = str(caught.value)
    assert "\n" not in line
    assert line.startswith("nobody/nothing-here: no such file or directory here, and not to be had from the hub (")
    assert line.endswith("check the name and the network, or give a local path")
    assert capfd.readouterr() == ("", "")


def test_the_room_is_light_to_import():
    code = "import sys, rlhf_lab.data; print([name for name in ('transformers', 'trl') if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
