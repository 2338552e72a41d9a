"""One forward pass over prompts and replies: log-probabilities of the reply's tokens, and values before them.

Prompts are padded on the left, replies on the right, so that replies begin in the same column in every row.
Padding never reaches the numbers: positions count real tokens, attention skips the rest, and the ids under
padding are replaced, so that any padding id will do, even one the model has no embedding for.
"""

from typing import Literal, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import pad

from rlhf_lab.maths.logprobs import token_entropy, token_logprobs
from rlhf_lab.models.hidden import hidden_states, like_length, spread, trunk_and_head
from rlhf_lab.models.inputs import accepts, model_inputs


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
    ids, mask = _states(prompt_ids, prompt_mask, response_ids, response_mask)
    if (parts := trunk_and_head(model)) is not None:
        trunk, head = parts
        logits = head(hidden_states(trunk, ids, mask, _before(response_mask, prompt_ids.shape[1])))[None]
        found = _read_logits(logits, response_ids[response_mask][None], temperature, with_entropy)
        return TokenLogprobs(*(part if part is None else spread(part[0], response_mask) for part in found))
    groups = like_length(model, mask)
    parts = []
    for rows in groups:
        start = int((~prompt_mask[rows]).all(dim=0).sum())  # the columns in which no row has a token
        width = max(1, int(response_mask[rows].sum(dim=1).max()))
        read = slice(start, prompt_ids.shape[1] + width - 1)
        logits = _logits(model, ids[rows, read], mask[rows, read], width)
        real = response_mask[rows, :width]
        found = _read_logits(logits, response_ids[rows, :width].masked_fill(~real, 0), temperature, with_entropy)
        parts.append(
            [part if part is None else pad(part.masked_fill(~real, 0.0), (0, steps - width)) for part in found]
        )
    order = torch.cat(groups).argsort()
    return TokenLogprobs(*(None if same[0] is None else torch.cat(same)[order] for same in zip(*parts, strict=True)))


def _logits(model, ids: Tensor, mask: Tensor, last: int) -> Tensor:
    """(B, L) -> (B, last, V) at the last positions, by the model's own forward."""
    options = {"logits_to_keep": last} if accepts(model, "logits_to_keep") else {}
    return model(**model_inputs(model, ids, mask), **options, use_cache=False).logits[:, -last:]


def _read_logits(logits: Tensor, tokens: Tensor, temperature: float, with_entropy) -> TokenLogprobs:
    if temperature != 1:
        logits = logits.float() / temperature
    logp = token_logprobs(logits, tokens)
    if not with_entropy:
        return TokenLogprobs(logp, None)
    with torch.set_grad_enabled(torch.is_grad_enabled() and with_entropy != "no_grad"):
        return TokenLogprobs(logp, token_entropy(logits))


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
    states = _states(prompt_ids, prompt_mask, response_ids, response_mask)
    return scorer.token_scores(*states, _before(response_mask, prompt_ids.shape[1]))[:, -steps:]


def response_value_outputs(
    scorer, prompt_ids: Tensor, prompt_mask: Tensor, response_ids: Tensor, response_mask: Tensor
) -> Tensor:
    """What the critic's head says of every state of `response_values`: -> (B, T, n), at masked positions anything.

    Shapes and errors as in `response_logprobs`. Of a head of bins these are logits; `scorer.scores` makes them values.
    Source: as `response_values`.
    """
    steps = response_ids.shape[1]
    states = _states(prompt_ids, prompt_mask, response_ids, response_mask)
    outputs = scorer.token_outputs(*states, _before(response_mask, prompt_ids.shape[1]))
    return outputs[:, outputs.shape[1] - steps :]


def _states(prompt_ids, prompt_mask, response_ids, response_mask) -> tuple[Tensor, Tensor]:
    """Ids and mask (B, P + T - 1): their last T positions are the states s_1..s_T. The last token is none."""
    if not bool(prompt_mask[:, -1].all()):
        raise ValueError("a prompt ends in a masked column: pad on the left, give each at least one token")
    ids = torch.cat([prompt_ids, response_ids[:, :-1]], dim=1)
    return ids, torch.cat([prompt_mask, response_mask[:, 1:]], dim=1)  # nobody reads what comes last


def _before(response_mask: Tensor, prompt: int) -> Tensor:
    """(B, T) bool -> (B, P + T - 1) bool: the positions whose next token is a real one of the reply."""
    return pad(response_mask, (prompt - 1, 0))
