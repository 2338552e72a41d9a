"""Sampling replies from a policy.

Left out on purpose: beams, penalties, top-k, and the model's own generation config. What is sampled is
softmax(logits / temperature), cut by top-p when asked, so that `response_logprobs` knows its probability.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from rlhf_lab.errors import RunFailed
from rlhf_lab.models.inputs import accepts, model_inputs, tell_once


class Generation(NamedTuple):
    """Sampled replies.

    response_ids: (B, T) long, padded on the right with `pad_id`; T is the longest reply of the batch
    response_mask: (B, T) bool, True up to and including the first EOS
    finished: (B,) bool, the reply ended by EOS
    """

    response_ids: Tensor
    response_mask: Tensor
    finished: Tensor

    @property
    def lengths(self) -> Tensor:
        """Tokens of each reply, its EOS included: (B,) long."""
        return self.response_mask.sum(dim=1)


@torch.no_grad()
def generate(
    model,
    prompt_ids: Tensor,
    prompt_mask: Tensor,
    *,
    max_new_tokens: int,
    temperature: float = 1.0,
    top_p: float = 1.0,
    eos_id: int | Sequence[int],
    pad_id: int,
    generator: torch.Generator | None = None,
    draws: Tensor | None = None,
    agree: Callable[[int], int] | None = None,
) -> Generation:
    """Sample one reply for each prompt, with the model's key-value cache.

    prompt_ids, prompt_mask (B, P): padded on the left, at least one real token a row. -> Generation.
    `temperature=0` takes the most likely token. A sampled `pad_id` that is not `eos_id` is an ordinary token.
    All random numbers are drawn at the start, one for each row and step, so that what a row says does not
    depend on when the others end and leave the batch; or they are given as `draws` (B, max_new_tokens), float64 in
    [0, 1). Any of several `eos_id` ends a reply. Nothing is larger than one step's logits, (B, V).
    agree: processes that share the weights must take as many passes: from one's own replies that go on to everyone's.
    Errors: ValueError for a prompt that does not end in a real token; `LabError` if prompt and reply exceed
    the model's context; `RunFailed` if the logits are not finite.
    Source: top-p is the smallest set of tokens that reaches p (Holtzman et al. 2019, arXiv:1904.09751).
    """
    if not bool(prompt_mask[:, -1].all()):
        raise ValueError("a prompt ends in a masked column: pad on the left, give each at least one token")
    if max_new_tokens < 1 or temperature < 0 or not 0 < top_p <= 1:
        raise ValueError("generate wants max_new_tokens >= 1, temperature >= 0 and 0 < top_p <= 1")
    batch, device = len(prompt_ids), prompt_ids.device
    ids = prompt_ids.new_full((batch, max_new_tokens), pad_id)
    length = torch.zeros(batch, dtype=torch.long, device=device)
    finished = torch.zeros(batch, dtype=torch.bool, device=device)
    draws = (uniforms(batch, max_new_tokens, generator) if draws is None else draws).to(device)
    ends = torch.as_tensor(eos_id, device=device)
    training = model.training
    model.eval()
    try:
        decoder = _Decoder(model, prompt_ids, prompt_mask, max_new_tokens)
        rows = torch.arange(batch, device=device)  # which replies the decoder's rows belong to
        for step in range(max_new_tokens):
            token = pick_tokens(decoder.logits, draws[rows, step], temperature=temperature, top_p=top_p)
            running = ~finished[rows]
            ids[rows, step] = torch.where(running, token, pad_id)
            length[rows] += running
            running &= ~torch.isin(token, ends)
            finished[rows] = ~running
            left = int(running.sum())
            going = left if agree is None else agree(left)
            if going == 0 or step == max_new_tokens - 1:
                break
            if 2 * left <= len(rows) and len(rows) > 1:  # half of the work would be wasted
                keep = running.nonzero().squeeze(1) if left else rows.new_zeros(1)
                rows, token = rows[keep], token[keep]
                decoder.keep(keep)
            decoder.advance(token)
    finally:
        model.train(training)
    width = int(length.max())
    mask = torch.arange(width, device=device) < length[:, None]
    return Generation(ids[:, :width], mask, finished)


def pick_tokens(logits: Tensor, draws: Tensor, *, temperature: float, top_p: float) -> Tensor:
    """One token a row by inverting the cumulative distribution at a uniform draw from [0, 1).

    logits (B, V) float32, draws (B,) float64 -> (B,) long. `temperature=0`: the most likely token.
    In float64, because in float32 the tail of a large vocabulary would round away.
    """
    if temperature == 0:
        return logits.argmax(dim=-1)
    probabilities = torch.softmax(logits / temperature, dim=-1).double()
    if top_p < 1:
        ordered, order = probabilities.sort(dim=-1, descending=True)
        reached = ordered.cumsum(dim=-1) - ordered >= top_p  # the tokens before already hold p
        probabilities = probabilities.masked_fill(reached.scatter(-1, order, reached), 0.0)
    cumulative = probabilities.cumsum(dim=-1)
    target = draws[:, None] * cumulative[:, -1:]
    token = torch.searchsorted(cumulative, target, right=True).squeeze(-1)
    return token.clamp(max=logits.shape[-1] - 1)


class _Decoder:
    """A batch of sequences that grow by one token at a time; `logits` (B, V) float32 are the next token's."""

    def __init__(self, model, prompt_ids: Tensor, prompt_mask: Tensor, max_new_tokens: int):
        from rlhf_lab.models import llama_step  # here and not above: transformers takes seconds to import
        from rlhf_lab.models.cache import roomy_cache

        self.model = model
        inputs = model_inputs(model, prompt_ids, prompt_mask, room=max_new_tokens)
        self.mask = inputs["attention_mask"]
        self.options = {"logits_to_keep": 1} if accepts(model, "logits_to_keep") else {}
        self.takes_positions = "position_ids" in inputs
        room = prompt_ids.shape[1] + max_new_tokens
        self.cache = roomy_cache(model.config, room)
        self._forward(inputs)
        self.step = None
        if llama_step.qualifies(model, self.cache):
            self.step = llama_step.LlamaStep(model, self.cache, self.mask, room)
        else:
            kind = type(model).__name__
            tell_once(f"sampling: {kind} goes through its own forward; the short way is for whole models like Llama")

    def advance(self, token: Tensor) -> None:
        """Append a token (B,) to every row."""
        if self.step is not None:
            self._look_at(self.step(token))
            return
        self.mask = torch.cat([self.mask, torch.ones_like(self.mask[:, :1])], dim=1)
        inputs = {"input_ids": token[:, None], "attention_mask": self.mask}
        if self.takes_positions:
            inputs["position_ids"] = self.mask.sum(dim=1, keepdim=True) - 1
        self._forward(inputs)

    def keep(self, rows: Tensor) -> None:
        """Go on with these rows only."""
        self.mask = self.mask[rows]
        if self.step is not None:
            self.step.keep(rows)
        self.cache.reorder_cache(rows)  # an index_select, which may also drop rows

    def _forward(self, inputs: dict[str, Tensor]) -> None:
        output = self.model(**inputs, **self.options, past_key_values=self.cache, use_cache=True)
        self.cache = output.past_key_values
        self._look_at(output.logits[:, -1])

    def _look_at(self, logits: Tensor) -> None:
        self.logits = logits.float()
        if not bool(self.logits.amax(dim=-1).isfinite().all()):
            raise RunFailed("sampling: the policy's logits are not finite, its weights diverged; lower 'lr'")


def uniforms(batch: int, steps: int, generator: torch.Generator | None) -> Tensor:
    """(B, T) float64 in [0, 1), all drawn at once, on the generator's device."""
    device = generator.device if generator is not None else "cpu"
    return torch.rand(batch, steps, generator=generator, device=device, dtype=torch.float64)
