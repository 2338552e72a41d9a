"""Rows that do not fit into what a model reads, and prompts held back from the demonstrations themselves."""

import json
from types import SimpleNamespace

import pytest
from datasets import Dataset
from tiny import make_policy, make_tokenizer

from rlhf_lab.errors import LabError
from rlhf_lab.workbench import own_data
from rlhf_lab.workbench.stages import SFTStage


def settings(**changes):
    return SimpleNamespace(**{"max_length": 8, "max_new_tokens": 3, "on_bad": "raise"} | changes)


def test_a_prompt_needs_room_for_the_longest_reply(capsys):
    rows = Dataset.from_dict({"prompt": ["w2 w3 w4 w5 w6", "w2 " * 6, "w2"], "n": [1, 2, 3]})  # 5, 6 and 1 tokens
    policy, tokenizer = make_policy(), make_tokenizer()
    line = "1 of 3 rows have a prompt that leaves no room for a reply of 3 in 8 tokens, the first is row 2; .*'drop'"
    with pytest.raises(LabError, match=line):
        own_data.prompts_that_fit(settings(), policy, tokenizer, rows)
    assert own_data.prompts_that_fit(settings(on_bad="drop"), policy, tokenizer, rows)["n"][:] == [1, 3]
    assert "dropped 1 of 3 rows, which have a prompt" in capsys.readouterr().out
    for most in (0, 999):  # the context is 48
        assert own_data.prompts_that_fit(settings(max_length=most), policy, tokenizer, rows) is rows
    with pytest.raises(LabError, match="so none is left; raise 'max_length'"):
        own_data.prompts_that_fit(settings(max_length=3, on_bad="drop"), policy, tokenizer, rows)
    with pytest.raises(LabError, match="in 48 tokens"):
        own_data.prompts_that_fit(settings(max_length=0, max_new_tokens=46), policy, tokenizer, rows)


def test_a_reply_needs_room_for_a_token_of_its_prompt():
    rows = Dataset.from_dict({"prompt": ["w2 " * 30] * 2, "completion": ["w3 " * 6, "w3 " * 7]})  # with EOS 7 and 8
    fits = own_data.demonstrations_that_fit(settings(on_bad="drop"), make_policy(), make_tokenizer(), rows)
    assert fits["completion"][:] == ["w3 " * 6]
    with pytest.raises(LabError, match="1 of 2 rows have a reply that leaves no room for a prompt in 8 tokens.*row 2"):
        own_data.demonstrations_that_fit(settings(), make_policy(), make_tokenizer(), rows)


def test_prompts_are_held_back_from_the_demonstrations(tmp_path):
    rows = [{"question": f"q {n % 10}", "completion": f" a {n}"} for n in range(20)]  # ten prompts, each twice
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    cfg = SFTStage(
        sandbox="", model="m", demonstrations=str(tmp_path / "a.jsonl"), columns={"prompt": "question"}, prompts="split"
    )
    demos, held_out = own_data.demonstration_split(cfg, {})
    assert len(held_out) == 2 and len(demos) == 16
    assert not {*demos["prompt"]} & {*held_out["prompt"]}
