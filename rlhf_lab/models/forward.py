"""One forward pass over prompts and replies: log-probabilities of the reply's tokens, and values before them.

Prompts are padded on the left, replies on the right, so that replies begin in the same column in every row.
Padding never reaches the numbers: positions count real tokens, attention skips the rest, and the ids under
padding are replaced, so that any padding id will do, even one the model has no embedding for.
"""

import inspect
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from rlhf_lab.errors import LabError
from rlhf_lab.maths.logprobs import token_entropy, token_logprobs


class TokenLogprobs(NamedTuple):
    """What a policy says about given tokens.

    logp: (B, T) nats, log pi(a_t | s_t) at the asked temperature; 0 where masked
    entropy: (B, T) nats, of the distribution each token was drawn from; 0 where masked; None unless asked for
    """

    logp: Tensor
    entropy: Tensor | None


def response_logprobs(
    model,
    prompt_ids: Tensor,
    prompt_mask: Tensor,
    response_ids: Tensor,
    response_mask: Tensor,
    *,
    temperature: float = 1.0,
    with_entropy: bool | Literal["no_grad"] = False,
) -> TokenLogprobs:
    """Log-probabilities of a reply's tokens under a policy, in nats, from float32 logits.

    prompt_ids, prompt_mask (B, P): padded on the left, at least one real token a row; bool, True = counts.
    response_ids, response_mask (B, T): padded on the right. -> TokenLogprobs of (B, T), differentiable.
    The logits are divided by `temperature`, as in sampling: the softmax of that is what was sampled from.
    Logits are computed for the reply's positions only, where the model can (`logits_to_keep`).
    with_entropy: "no_grad" gives the entropy without a gradient, which would cost several copies of the logits.
    Errors: ValueError for prompts that do not end in a real token or temperature <= 0; `LabError` if a row is
    longer than the model's context.
    Source: log pi(a_t | s_t) of Schulman et al. 2017 (arXiv:1707.06347), section 3. Old and new policy go
    through this one function, so that their ratio is 1 before the first step.
    """
    if temperature <= 0:
        raise ValueError(f"temperature is {temperature}; log-probabilities need one above 0")
    steps = response_ids.shape[1]
    if steps == 0:
        empty = torch.zeros(response_ids.shape, device=response_ids.device)
        return TokenLogprobs(empty, empty if with_entropy else None)
    inputs = model_inputs(model, *_states(prompt_ids, prompt_mask, response_ids, response_mask))
    if accepts(model, "logits_to_keep"):
        inputs["logits_to_keep"] = steps
    logits = model(**inputs, use_cache=False).logits[:, -steps:]
    if temperature != 1:
        logits = logits.float() / temperature
    tokens = response_ids.masked_fill(~response_mask, 0)
    logp = token_logprobs(logits, tokens).masked_fill(~response_mask, 0.0)
    if not with_entropy:
        return TokenLogprobs(logp, None)
    with torch.set_grad_enabled(torch.is_grad_enabled() and with_entropy != "no_grad"):
        entropy = token_entropy(logits).masked_fill(~response_mask, 0.0)
    return TokenLogprobs(logp, entropy)


def response_values(
    scorer, prompt_ids: Tensor, prompt_mask: Tensor, response_ids: Tensor, response_mask: Tensor
) -> Tensor:
    """V(s_t) for every token of a reply: the critic's score at the position just before token t.

    Shapes and errors as in `response_logprobs`. -> (B, T) in units of reward, 0 where masked, differentiable.
    Source: V(s_t) of Schulman et al. 2015 (arXiv:1506.02438); s_t is the prompt and the reply before token t.
    """
    steps = response_ids.shape[1]
    if steps == 0:
        return torch.zeros(response_ids.shape, device=response_ids.device)
    values = scorer.token_scores(*_states(prompt_ids, prompt_mask, response_ids, response_mask))
    return values[:, -steps:].masked_fill(~response_mask, 0.0)


def response_value_outputs(
    scorer, prompt_ids: Tensor, prompt_mask: Tensor, response_ids: Tensor, response_mask: Tensor
) -> Tensor:
    """What the critic's head says of every state of `response_values`: -> (B, T, n), at masked positions anything.

    Shapes and errors as in `response_logprobs`. Of a head of bins these are logits; `scorer.scores` makes them values.
    Source: as `response_values`.
    """
    steps = response_ids.shape[1]
    outputs = scorer.token_outputs(*_states(prompt_ids, prompt_mask, response_ids, response_mask))
    return outputs[:, outputs.shape[1] - steps :]


def _states(prompt_ids, prompt_mask, response_ids, response_mask) -> tuple[Tensor, Tensor]:
    """Ids and mask (B, P + T - 1): their last T positions are the states s_1..s_T. The last token is none."""
    if not bool(prompt_mask[:, -1].all()):
        raise ValueError("a prompt ends in a masked column: pad on the left, give each at least one token")
    ids = torch.cat([prompt_ids, response_ids[:, :-1]], dim=1)
    return ids, torch.cat([prompt_mask, response_mask[:, :-1]], dim=1)


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
