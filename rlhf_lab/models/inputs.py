"""What a Hugging Face model is given to read, and what it takes: its context, the arguments of its forward."""

import inspect

from torch import Tensor

from rlhf_lab.errors import LabError

_told: set[str] = set()


def model_inputs(model, ids: Tensor, mask: Tensor, *, room: int = 0) -> dict[str, Tensor]:
    """Keyword inputs of a Hugging Face model for ids and mask (B, L), padded on either side.

    Errors: `LabError` if the longest row, and `room` tokens more, exceed the model's context, or an id its
    vocabulary: then the tokenizer is another model's.
    """
    limit = context_length(model)
    longest = int(mask.sum(dim=1).max()) + room
    if limit is not None and longest > limit:
        raise LabError(f"{longest} tokens are too long for the model's context of {limit}; shorten prompts or replies")
    ids = ids.masked_fill(~mask, 0)
    vocabulary, largest = getattr(model.config, "vocab_size", None), int(ids.max())
    if vocabulary is not None and largest >= vocabulary:
        raise LabError(
            f"token id {largest} is beyond the model's vocabulary of {vocabulary}; give the model's own tokenizer"
        )
    inputs = {"input_ids": ids, "attention_mask": mask.long()}
    if accepts(model, "position_ids"):
        inputs["position_ids"] = positions(mask)
    return inputs


def context_length(model) -> int | None:
    """How many tokens a model can read at once; None where its config sets no bound."""
    limit = getattr(model.config, "max_position_embeddings", None)
    # RoBERTa and its kin count positions from padding_idx + 1, and so cannot use the first of their embeddings.
    embeddings = getattr(getattr(model, "base_model", model), "embeddings", None)
    padding = getattr(embeddings, "padding_idx", None)
    return limit if limit is None or padding is None else limit - padding - 1


def positions(mask: Tensor) -> Tensor:
    """Position of each real token among the real tokens of its row, from 0: (B, L) bool -> (B, L) long."""
    return (mask.long().cumsum(dim=1) - 1).clamp(min=0)


def accepts(model, name: str) -> bool:
    """Whether a model's forward names this argument. Adapters (PEFT) are looked through."""
    inner = model.get_base_model() if hasattr(model, "get_base_model") else model
    return name in inspect.signature(inner.forward).parameters


def tell_once(text: str) -> None:
    """Print a line, once in a process."""
    if text not in _told:
        print(text)
        _told.add(text)
