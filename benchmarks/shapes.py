"""The models and prompts that both sides of a comparison load: the same files, random weights.

A shape is that of a Llama. The policy is built so that its replies end when they should: never, or at every token with
the same probability, by an embedding that is constant in one direction which only the logit of EOS reads.
"""

import json
import math
from pathlib import Path
from typing import NamedTuple

import tokenizers
import torch
import transformers

PAD, EOS = 0, 1


class Shape(NamedTuple):
    """A size of model and of rollout."""

    hidden: int
    layers: int
    heads: int
    feed_forward: int
    vocabulary: int
    episodes: int
    micro_batch: int = 0  # replies in one forward of the lab; 0 = all
    prompt: int = 32
    response: int = 48
    epochs: int = 4

    @property
    def blocks(self) -> int:
        """Parameters of all layers that multiply every token."""
        return self.layers * (4 * self.hidden**2 + 3 * self.hidden * self.feed_forward)

    @property
    def head(self) -> int:
        """Parameters of the language-model head."""
        return self.hidden * self.vocabulary


SHAPES = {
    "small": Shape(256, 4, 4, 1024, 2048, episodes=64),
    "gpt2": Shape(768, 12, 12, 3072, 50257, episodes=16, micro_batch=4),
}


def write(shape: Shape, folder: Path, *, ends: bool) -> None:
    """Policy, value and reward model with tokenizer, and prompts. ends: EOS at half of the longest reply on average."""
    torch.manual_seed(0)
    tokenizer = _tokenizer(shape.vocabulary)
    policy = transformers.LlamaForCausalLM(_config(shape))
    _set_ends(policy, _hazard(shape.response) if ends else 0.0)
    _save(policy, tokenizer, folder / "policy")
    for role in ("value", "reward"):
        scorer = transformers.LlamaForSequenceClassification(_config(shape, num_labels=1, pad_token_id=PAD))
        _save(scorer, tokenizer, folder / role)
    ids = torch.randint(2, shape.vocabulary, (4 * shape.episodes, shape.prompt))
    prompts = [" ".join(f"t{token}" for token in row) for row in ids.tolist()]
    (folder / "prompts.json").write_text(json.dumps(prompts))


def _config(shape: Shape, **more) -> transformers.LlamaConfig:
    return transformers.LlamaConfig(
        vocab_size=shape.vocabulary,
        hidden_size=shape.hidden,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        intermediate_size=shape.feed_forward,
        max_position_embeddings=256,
        tie_word_embeddings=False,
        bos_token_id=None,
        eos_token_id=EOS,
        **{"pad_token_id": PAD} | more,
    )


def _tokenizer(vocabulary: int) -> transformers.PreTrainedTokenizerFast:
    words = {"<pad>": PAD, "<eos>": EOS} | {f"t{token}": token for token in range(2, vocabulary)}
    inner = tokenizers.Tokenizer(tokenizers.models.WordLevel(words, unk_token="<pad>"))
    inner.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
    return transformers.PreTrainedTokenizerFast(tokenizer_object=inner, pad_token="<pad>", eos_token="<eos>")


def _save(model, tokenizer, folder: Path) -> None:
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def _hazard(longest: int) -> float:
    """The probability h of ending at each token, for which a reply cut at `longest` has half that length on average."""
    low, high = 1e-6, 0.5
    for _ in range(60):
        middle = (low + high) / 2
        mean = (1 - (1 - middle) ** longest) / middle
        low, high = (middle, high) if mean > longest / 2 else (low, middle)
    return low


@torch.no_grad()
def _set_ends(policy, hazard: float) -> None:
    """Make every token EOS with this probability, whatever stands before it, and never padding."""
    embeddings, head = policy.model.embed_tokens.weight, policy.lm_head.weight
    embeddings[:, 0] = 0.3
    ids = torch.randint(2, len(embeddings), (8, 64))
    logit = math.log(hazard / (1 - hazard) * len(embeddings)) if hazard else -30.0
    constant = policy.model(ids).last_hidden_state[..., 0].mean()
    head[:, 0] = 0
    for token, value in ((EOS, logit), (PAD, -30.0)):
        head[token] = 0
        head[token, 0] = value / constant
