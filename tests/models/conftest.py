"""Small models of random weights, several architectures, saved as plain transformers does. No downloads."""

from pathlib import Path

import pytest
import torch
import transformers
from tokenizers import Tokenizer, pre_tokenizers
from tokenizers.models import WordLevel

from .tiny_models import EOS, PAD, VOCABULARY, Batch, build_config


@pytest.fixture(scope="session")
def tokenizer():
    """One token per word: w3, w4, ... Padding, EOS and BOS are tokens of their own."""
    words = ["<s>", "</s>", "<pad>", *(f"w{number}" for number in range(3, VOCABULARY))]
    plain = Tokenizer(WordLevel({word: number for number, word in enumerate(words)}, unk_token="<s>"))
    plain.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    names = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>"}
    return transformers.PreTrainedTokenizerFast(tokenizer_object=plain, **names)


@pytest.fixture(scope="session")
def save(tmp_path_factory, tokenizer):
    """Save a random causal language model or classifier of a config -> its directory."""

    def save(config, auto=transformers.AutoModelForCausalLM, seed: int = 0) -> Path:
        folder = tmp_path_factory.mktemp("model")
        torch.manual_seed(seed)
        model = auto.from_config(config)
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        return folder

    return save


@pytest.fixture(scope="session", params=["llama", "gpt2", "gpt_neox", "qwen2", "gemma", "gemma3", "bloom"])
def policy_dir(request, save) -> Path:
    return save(build_config(request.param))


@pytest.fixture(scope="session", params=["llama", "gpt2", "gpt_neox", "qwen2", "gemma", "gemma3"])
def reward_dir(request, save) -> Path:
    config = build_config(request.param, num_labels=1)
    return save(config, transformers.AutoModelForSequenceClassification)


@pytest.fixture(scope="session")
def llama_dir(save) -> Path:
    return save(build_config("llama"))


@pytest.fixture(scope="session")
def gpt2_dir(save) -> Path:
    return save(build_config("gpt2"))


@pytest.fixture(scope="session")
def batch() -> Batch:
    prompts = [
        [5, 6, 7, 8, 9],
        [10],
        [11, 12, 13],
        [14, 15, 2, 16],
    ]  # the last holds the padding id as a word
    replies = [[20, EOS], [21, 22, 23, 24, EOS], [25], [26, PAD, 27, EOS]]
    width, steps = max(map(len, prompts)), max(map(len, replies))
    left = [[PAD] * (width - len(row)) + row for row in prompts]
    right = [row + [PAD] * (steps - len(row)) for row in replies]
    prompt_mask = [[False] * (width - len(row)) + [True] * len(row) for row in prompts]
    response_mask = [[True] * len(row) + [False] * (steps - len(row)) for row in replies]
    return Batch(*map(torch.tensor, (left, prompt_mask, right, response_mask)), prompts, replies)
