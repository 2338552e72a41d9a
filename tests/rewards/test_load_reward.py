"""A run names its reward: a function in a file, or a model."""

import pytest
import torch
import transformers

from rlhf_lab.errors import LabError
from rlhf_lab.rewards import ModelReward, call_reward, load_reward

TWO = {"prompts": ["p", "q"], "completions": ["yes please", "no"]}


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "mine.py"
    path.write_text(
        "from dataclasses import dataclass\n\n"
        "WORD = 'please'\n\n"
        "@dataclass\n"
        "class Scale:\n"
        "    by: float = 3.0\n\n"
        "def polite(completions, **kwargs):\n"
        "    return [Scale().by * (WORD in text) for text in completions]\n"
    )
    return path


def test_a_function_in_a_file(file):
    assert call_reward(load_reward(f"{file}:polite"), **TWO) == [3.0, 0.0]


def test_a_path_relative_to_the_working_directory(file, monkeypatch):
    monkeypatch.chdir(file.parent)
    assert call_reward(load_reward("mine.py:polite"), **TWO) == [3.0, 0.0]


def test_an_edited_file_is_read_again(file):
    load_reward(f"{file}:polite")
    file.write_text("def polite(completions):\n    return [5.0 for _ in completions]\n")
    assert call_reward(load_reward(f"{file}:polite"), **TWO) == [5.0, 5.0]


def test_a_reward_model(reward_dir, tokenizer, plain_score):
    reward = load_reward(reward_dir, policy_tokenizer=tokenizer)
    assert isinstance(reward, ModelReward)
    assert not any(weight.requires_grad for weight in reward.scorer.parameters())
    found = call_reward(reward, prompts=["w5"], completions=["w6"], prompt_ids=[[5]], completion_ids=[[6, 1]])
    assert found == pytest.approx([plain_score([5, 6, 1])], rel=1e-5)
    assert load_reward(str(reward_dir))(prompts=["w5"], completions=["w6"], finished=[True]) == pytest.approx(found)


def fails(source, *words):
    with pytest.raises(LabError) as caught:
        load_reward(source)
    line = str(caught.value)
    assert "\n" not in line
    for word in words:
        assert word in line


def test_errors_in_files(file, tmp_path):
    fails(f"{tmp_path}/none.py:polite", "none.py", "no file")
    fails(f"{file}:polit", "no function 'polit'", "did you mean 'polite'?")
    fails(f"{file}:xyz", "no function 'xyz'", "polite")
    fails(f"{file}:WORD", "is a str, not a function")
    fails(str(file), "which function?", "mine.py:name")
    file.write_text("x = 1\ndef polite(:\n")
    fails(f"{file}:polite", "line 2", "SyntaxError")
    file.write_text("import a_module_that_nobody_has\n")
    fails(f"{file}:polite", "ModuleNotFoundError", "a_module_that_nobody_has")


def test_a_model_without_a_trained_head_is_no_reward_model(reward_dir, tokenizer, tmp_path):
    fails(tmp_path, "config.json is missing")
    config = transformers.AutoConfig.from_pretrained(reward_dir)
    torch.manual_seed(0)
    transformers.AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    fails(tmp_path, "no score head", "train one")
