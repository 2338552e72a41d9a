"""A tiny reward model, and tokenizers made on the spot. No downloads."""

import pytest
import torch
import transformers
from tokenizers import Tokenizer, pre_tokenizers
from tokenizers.models import WordLevel

from rlhf_lab.models import load_scorer


def make_tokenizer(words: list[str]):
    """One token per word, in this order."""
    plain = Tokenizer(WordLevel({word: number for number, word in enumerate(words)}, unk_token="<unk>"))
    plain.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    names = {"eos_token": "</s>", "pad_token": "<pad>", "unk_token": "<unk>"}
    return transformers.PreTrainedTokenizerFast(tokenizer_object=plain, **names)


WORDS = ["<unk>", "</s>", "<pad>", *(f"w{number}" for number in range(3, 30))]


@pytest.fixture(scope="session")
def tokenizer():
    return make_tokenizer(WORDS)


@pytest.fixture(scope="session")
def other_tokenizer():
    """The same words under other ids."""
    return make_tokenizer([*WORDS[:3], *reversed(WORDS[3:])])


@pytest.fixture(scope="session")
def reward_dir(tokenizer, tmp_path_factory):
    """A sequence classifier of random weights with one label, saved by plain transformers."""
    folder = tmp_path_factory.mktemp("reward")
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=64,
        initializer_range=0.5,
        num_labels=1,
        pad_token_id=None,
        bos_token_id=None,
        eos_token_id=1,
    )
    transformers.AutoModelForSequenceClassification.from_config(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def scorer(reward_dir):
    return load_scorer(reward_dir, trainable=False)


@pytest.fixture(scope="session")
def plain_score(reward_dir):
    """Score one row of ids by transformers' own forward, which reads the last token."""
    plain = transformers.AutoModelForSequenceClassification.from_pretrained(reward_dir).eval()

    @torch.no_grad()
    def score(ids: list[int]) -> float:
        return plain(input_ids=torch.tensor([ids])).logits[0, 0].item()

    return score
