"""What the cost of a model depends on, read off its configuration. It is built on torch's meta device: no weights."""

import copy
from typing import NamedTuple

import torch
from torch import nn

from rlhf_lab.errors import LabError
from rlhf_lab.models import LoraConfig
from rlhf_lab.models.loading import quiet, trusts_remote_code


class Shape(NamedTuple):
    """Sizes of one model. A linear layer of `in` to `out` costs in * out multiply-adds a token.

    parameters: all weights, tied ones once; largest: those of the largest tensor
    layers, width: of the trunk, and of its hidden state
    matrix: multiply-adds of the trunk's linear layers, a token
    last: of these, those of the last layer that are spared where nothing is read; 0 where a model spares none
    through: their inputs and outputs, elements a token
    queries, keys: width of all queries of a layer, and of all its keys (the values are as wide)
    head: multiply-adds of what is behind the trunk, a position
    outputs: of it: the vocabulary, or 1 of a scorer, or its bins
    """

    parameters: int
    layers: int
    width: int
    matrix: int
    last: int
    through: int
    queries: int
    keys: int
    head: int
    outputs: int
    largest: int


def shape_of(config, *, outputs: int | None = None) -> Shape:
    """The shape of the language model of a transformers config; with `outputs`, of a classifier of so many.

    Errors: `LabError` if transformers has no such model of this architecture.
    """
    model = _built(config, outputs)
    trunk = model.base_model
    inner, outer = _linear(trunk), _linear(model)
    heads = getattr(config, "num_attention_heads", 1)
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // heads
    return Shape(
        parameters=sum(weight.numel() for weight in model.parameters()),
        layers=config.num_hidden_layers,
        width=config.hidden_size,
        matrix=sum(weight.numel() for weight in inner.values()),
        last=sum(weight.numel() for name, weight in inner.items() if _spared(trunk, name)),
        through=sum(sum(weight.shape) for weight in inner.values()),
        queries=heads * head_dim,
        keys=(getattr(config, "num_key_value_heads", None) or heads) * head_dim,
        head=sum(weight.numel() for name, weight in outer.items() if name.removeprefix(_prefix(model)) not in inner),
        outputs=outputs or config.vocab_size,
        largest=max(weight.numel() for weight in model.parameters()),
    )


def adapter_parameters(config, lora: LoraConfig) -> int:
    """Weights of a LoRA adapter on the trunk: rank (in + out) for each layer that `SharedBase` would adapt."""
    layers = _linear(_built(config, None).base_model)
    if lora.targets != "all-linear":
        layers = {name: w for name, w in layers.items() if any(f".{name}".endswith(f".{t}") for t in lora.targets)}
    return lora.rank * sum(sum(weight.shape) for weight in layers.values())


def _built(config, outputs: int | None):
    from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

    kind = AutoModelForCausalLM
    if outputs is not None:
        kind, config = AutoModelForSequenceClassification, copy.deepcopy(config)
        config.num_labels = outputs
    try:
        with torch.device("meta"), quiet():
            return kind.from_config(config, trust_remote_code=trusts_remote_code())
    except ValueError as error:
        what = "causal language model" if outputs is None else "sequence classifier"
        raise LabError(f"{config.model_type}: transformers has no {what} of this architecture; name another") from error


def _linear(model) -> dict[str, torch.Tensor]:
    """The weights of the linear layers by name. GPT-2's own kind holds them transposed."""
    from transformers.pytorch_utils import Conv1D

    return {name: layer.weight for name, layer in model.named_modules() if isinstance(layer, nn.Linear | Conv1D)}


def _spared(trunk, name: str) -> bool:
    """Whether it is a layer that `packed.py` computes only where its output is wanted."""
    from rlhf_lab.models.packed import qualifies  # here and not above: transformers takes seconds to import

    last = f"layers.{trunk.config.num_hidden_layers - 1}."
    return last in name and not name.endswith(("k_proj", "v_proj")) and qualifies(trunk)


def _prefix(model) -> str:
    return f"{model.base_model_prefix}."
