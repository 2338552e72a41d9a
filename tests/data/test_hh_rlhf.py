"""Real preferences: the test split of HH-RLHF's harmless-base, 2,312 pairs of dialogues as text."""

import gzip
import json

import pytest

from rlhf_lab.data import load_preferences, load_prompts, preferences_to_rankings
from rlhf_lab.errors import LabError

# Found by reading: in these five pairs the dialogues differ before the last reply.
DIFFERENT_PROMPTS = [1255, 1689, 1951, 1953, 2037]


@pytest.fixture
def folder(shared):
    return shared / "data" / "hh-rlhf"


def test_five_pairs_with_different_prompts_are_named(folder):
    with pytest.raises(LabError) as caught:
        load_preferences(folder)
    line = str(caught.value)
    assert "harmless-base-test.jsonl.gz, line 1255, columns 'chosen', 'rejected': share no prompt" in line
    assert "5 such rows: 1255, 1689, 1951, 1953, 2037;" in line
    assert "on_bad='drop'" in line
    assert "\n" not in line


def test_the_other_pairs_load_and_lose_no_letter(folder, capsys):
    dataset = load_preferences(folder, on_bad="drop")
    told = capsys.readouterr().out
    assert "dropped 5 of 2312 rows" in told and "line 1255, then 1689, 1951, 1953, 2037)" in told
    with gzip.open(folder / "harmless-base-test.jsonl.gz", "rt", encoding="utf-8") as file:
        pairs = [json.loads(line) for line in file]
    assert len(pairs) == 2312
    pairs = [pair for number, pair in enumerate(pairs, 1) if number not in DIFFERENT_PROMPTS]
    assert [row["prompt"] + row["chosen"] for row in dataset] == [pair["chosen"] for pair in pairs]
    assert [row["prompt"] + row["rejected"] for row in dataset] == [pair["rejected"] for pair in pairs]
    assert all(row["prompt"].endswith("\n\nAssistant:") for row in dataset)
    assert not any("\n\nHuman:" in row["chosen"] + row["rejected"] for row in dataset)
    assert preferences_to_rankings(dataset)[0]["completions"] == [
        dataset[0]["chosen"],
        dataset[0]["rejected"],
    ]


def test_its_prompts_load_alone(folder):
    prompts = load_prompts(folder / "harmless-base-test.jsonl.gz", limit=3)
    assert prompts["prompt"][0].startswith("\n\nHuman: what are some pranks with a pen i can do?")
    assert prompts["prompt"][0].endswith("do not have anything to do with pens\n\nAssistant:")
    assert len(prompts) == 3
