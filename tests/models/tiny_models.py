"""Small models of several architectures, and a batch of token ids to put through them."""

from typing import NamedTuple

import torch
import transformers
from torch import Tensor

VOCABULARY, CONTEXT, EOS, PAD = 40, 48, 1, 2
SIZES = {"vocab_size": VOCABULARY, "max_position_embeddings": CONTEXT, "initializer_range": 0.3}
WIDTHS = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
TOKENS = {"bos_token_id": 0, "eos_token_id": EOS, "pad_token_id": PAD}


def build_config(architecture: str, **changes):
    """A tiny config of an architecture, with dropout wherever the architecture knows it."""
    if architecture == "gpt2":
        options = {
            "n_embd": 32,
            "n_layer": 2,
            "n_head": 4,
            "resid_pdrop": 0.2,
            "embd_pdrop": 0.2,
            "attn_pdrop": 0.2,
        }
        return transformers.GPT2Config(**(SIZES | options | TOKENS | changes))
    if architecture == "bloom":  # takes no position_ids
        options = {
            "vocab_size": VOCABULARY,
            "hidden_size": 32,
            "n_layer": 2,
            "n_head": 4,
            "initializer_range": 0.3,
        }
        return transformers.BloomConfig(
            **(options | {"hidden_dropout": 0.2, "attention_dropout": 0.2} | TOKENS | changes)
        )
    if architecture in ENCODERS:
        return build_encoder_config(architecture, **changes)
    dropout = {"attention_dropout": 0.2}
    if architecture == "gpt_neox":
        return transformers.GPTNeoXConfig(**(SIZES | WIDTHS | dropout | {"hidden_dropout": 0.2} | TOKENS | changes))
    kinds = {
        "llama": transformers.LlamaConfig,
        "qwen2": transformers.Qwen2Config,
        "qwen3": transformers.Qwen3Config,
        "gemma": transformers.GemmaConfig,
        "gemma2": transformers.Gemma2Config,
        "gemma3": transformers.Gemma3TextConfig,
    }
    heads = {"num_key_value_heads": 2}
    if architecture not in ("llama", "qwen2"):
        heads["head_dim"] = 8
    if architecture in ("gemma2", "gemma3"):  # every other layer sees the last six tokens only
        heads |= {"sliding_window": 6, "layer_types": ["sliding_attention", "full_attention"]}
        heads["query_pre_attn_scalar"] = 8
    return kinds[architecture](**(SIZES | WIDTHS | dropout | heads | TOKENS | changes))


OWN_WAY = ("gpt2", "gpt_neox", "bloom", "gemma", "gemma2", "gemma3")
"""Go through their own forward; models like Llama have a shorter way."""
ENCODERS = ("bert", "roberta", "distilbert")


def build_encoder_config(architecture: str, **changes):
    """A tiny config of a model that reads in both directions."""
    if architecture == "distilbert":
        options = {"dim": 32, "hidden_dim": 48, "n_layers": 2, "n_heads": 4, "dropout": 0.2}
        return transformers.DistilBertConfig(**(SIZES | options | TOKENS | changes))
    kinds = {"bert": transformers.BertConfig, "roberta": transformers.RobertaConfig}
    dropout = {"hidden_dropout_prob": 0.2, "attention_probs_dropout_prob": 0.2}
    return kinds[architecture](**(SIZES | WIDTHS | dropout | TOKENS | changes))


class Batch(NamedTuple):
    """Four prompts padded on the left, four replies padded on the right, and the rows they were made from."""

    prompt_ids: Tensor
    prompt_mask: Tensor
    response_ids: Tensor
    response_mask: Tensor
    prompts: list[list[int]]
    replies: list[list[int]]

    @property
    def tensors(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        return self[:4]

    def padded(self, left: int, right: int, junk: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """The same tokens with more columns of padding, and the id `junk` under every masked position."""
        grow = torch.nn.functional.pad
        prompt_mask = grow(self.prompt_mask, (left, 0), value=False)
        response_mask = grow(self.response_mask, (0, right), value=False)
        prompt_ids = grow(self.prompt_ids, (left, 0)).masked_fill(~prompt_mask, junk)
        return (
            prompt_ids,
            prompt_mask,
            grow(self.response_ids, (0, right)).masked_fill(~response_mask, junk),
            response_mask,
        )
