"""A local Hugging Face model as the backend of a judge: it answers in generated text."""

import hashlib
import json
import math
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import torch

from rlhf_lab.data import encode_prompt, left_pad, render_chat, render_reply
from rlhf_lab.errors import LabError
from rlhf_lab.judges.backends.completions import Completion, Request
from rlhf_lab.judges.backends.language_model import next_token_logprobs, spelled_out
from rlhf_lab.models import generate
from rlhf_lab.models.inputs import context_length

# Of a model's config: where its files lie and who wrote them, and what the weights themselves tell.
_NO_PART = ("_name_or_path", "transformers_version", "architectures", "dtype", "torch_dtype")


class _Row(NamedTuple):
    number: int
    request: Request
    ids: list[int]


class LocalModel:
    """A causal language model that writes its answers. A `Backend`.

    What it is asked goes through the tokenizer's chat template if it has one (`chat=None`), else it is plain text. At
    temperature 0 an answer is the likeliest token at every step; above, it is drawn by random numbers of the request's
    own (seed, messages, order, repeat), whatever else is in the batch. Batches differ in the last bits of their
    floats, which decides only where two tokens are as good as equal.

    An answer ends at an EOS, at any that the model's generation config names, or where the chat template ends a turn;
    one that is cut off says so in `reason`. A question that leaves no room for max_new_tokens in the model's context
    has no answer. top_tokens: how many of the likeliest first tokens are told with log-probabilities, at temperature 1;
    they cost another pass over the question.
    Errors: `LabError` for settings that cannot be, and with chat=True without a chat template.
    """

    def __init__(
        self,
        model,
        tokenizer,
        *,
        max_new_tokens: int = 512,
        temperature: float = 0.0,
        top_p: float = 1.0,
        seed: int = 0,
        chat: bool | None = None,
        top_tokens: int = 0,
        batch_size: int = 16,
    ):
        if max_new_tokens < 1 or temperature < 0 or not 0 < top_p <= 1 or top_tokens < 0 or batch_size < 1:
            raise LabError(
                "a local judge needs max_new_tokens and batch_size of 1 or more, temperature and top_tokens of 0 or "
                "more, and a top_p above 0 and up to 1"
            )
        self.model, self.tokenizer = model, tokenizer
        self.chat = bool(tokenizer.chat_template) if chat is None else chat
        self.settings = {
            "max_new_tokens": max_new_tokens,
            "temperature": temperature,
            "top_p": top_p,
            "seed": seed,
            "top_tokens": top_tokens,
        }
        self.batch_size = batch_size
        self.ends = _ends(model, tokenizer, self.chat)
        self._weights: tuple[object, str] = (None, "")

    @property
    def identity(self) -> Mapping[str, object]:
        """The weights and the tokenizer by their content, and the settings. The batch size is no part of it."""
        # A fingerprint reads every weight: it is made again only when torch counts a change in one of them.
        state = _state(self.model)
        if state != self._weights[0]:
            self._weights = (state, fingerprint(self.model))
        about = {"backend": "local", "model": type(self.model).__name__, "weights": self._weights[1]}
        return {**about, "tokenizer": _tokenizer_fingerprint(self.tokenizer), "chat": self.chat, **self.settings}

    def complete(self, requests: Sequence[Request]) -> Iterator[tuple[int, Completion]]:
        """The answers, batch by batch, shortest questions first."""
        limit, longest = context_length(self.model) or math.inf, self.settings["max_new_tokens"]
        rows = [_Row(number, request, self._ids(request)) for number, request in enumerate(requests)]
        fitting = []
        for row in rows:
            if len(row.ids) + longest <= limit:
                fitting.append(row)
                continue
            why = f"{len(row.ids)} tokens and {longest} for the answer are too many for the model's context of {limit}"
            yield row.number, Completion(None, why)
        fitting.sort(key=lambda row: len(row.ids))  # rows of one length waste no padding
        for start in range(0, len(fitting), self.batch_size):
            yield from self._answer(fitting[start : start + self.batch_size])

    def _ids(self, request: Request) -> list[int]:
        """A question as the model reads it."""
        turns = [(role, spelled_out(self.tokenizer, content)) for role, content in request.messages]
        if not self.chat:
            return encode_prompt(self.tokenizer, "\n\n".join(content for _, content in turns) + "\n\n")
        try:
            text = render_chat(self.tokenizer, [{"role": role, "content": content} for role, content in turns])
        except LabError:
            if turns[0][0] != "system" or len(turns) < 2:
                raise
            # Some templates refuse a system turn (Gemma's): it is then said by the user.
            (_, system), (role, content), *rest = turns
            merged = [(role, f"{system}\n\n{content}"), *rest]
            text = render_chat(self.tokenizer, [{"role": role, "content": content} for role, content in merged])
        return encode_prompt(self.tokenizer, text)

    def _answer(self, rows: list[_Row]) -> Iterator[tuple[int, Completion]]:
        started, longest = time.perf_counter(), self.settings["max_new_tokens"]
        padded = left_pad([row.ids for row in rows], self.tokenizer.pad_token_id)
        ids, mask = (tensor.to(self.model.device) for tensor in padded)
        first_tokens = self._first_tokens(ids, mask)
        drawn = generate(
            self.model,
            ids,
            mask,
            max_new_tokens=longest,
            temperature=self.settings["temperature"],
            top_p=self.settings["top_p"],
            eos_id=self.ends,
            pad_id=self.tokenizer.pad_token_id,
            draws=torch.stack([self._draws(row.request) for row in rows]),
        )
        answers = [row[real].tolist() for row, real in zip(drawn.response_ids, drawn.response_mask, strict=True)]
        seconds = (time.perf_counter() - started) / len(rows)
        for row, answer, finished, first in zip(rows, answers, drawn.finished.tolist(), first_tokens, strict=True):
            text = self.tokenizer.decode(answer[:-1] if finished else answer, skip_special_tokens=True)
            reason = "" if finished else f"cut off after max_new_tokens ({longest})"
            yield row.number, Completion(text, reason, len(row.ids), len(answer), first, seconds)

    def _draws(self, request: Request) -> torch.Tensor:
        """The random numbers of one answer: (max_new_tokens,) float64 in [0, 1)."""
        named = json.dumps([self.settings["seed"], request.messages, request.order, request.repeat])
        digest = hashlib.blake2b(named.encode(), digest_size=8).digest()
        generator = torch.Generator().manual_seed(int.from_bytes(digest, "big", signed=True))
        return torch.rand(self.settings["max_new_tokens"], generator=generator, dtype=torch.float64)

    def _first_tokens(self, ids: torch.Tensor, mask: torch.Tensor) -> list[dict[str, float] | None]:
        """The likeliest first tokens of each answer and their log-probabilities, in nats."""
        if not self.settings["top_tokens"]:
            return [None] * len(ids)
        logp = next_token_logprobs(self.model, ids, mask)
        top = logp.topk(min(self.settings["top_tokens"], logp.shape[-1]), dim=-1)
        found: list[dict[str, float] | None] = []
        for values, tokens in zip(top.values.tolist(), top.indices.tolist(), strict=True):
            told: dict[str, float] = {}
            for token, value in zip(tokens, values, strict=True):
                text = self.tokenizer.decode([token])  # tokens that read alike are one
                told[text] = value if text not in told else math.log(math.exp(told[text]) + math.exp(value))
            found.append(told)
        return found


def fingerprint(model) -> str:
    """32 hex digits that any change of a weight, its name, shape or type, or of the model's config changes."""
    digest = hashlib.blake2b(digest_size=16)
    config = model.config.to_dict() if hasattr(model.config, "to_dict") else vars(model.config)
    config = {name: value for name, value in config.items() if name not in _NO_PART}
    digest.update(json.dumps(config, sort_keys=True, default=str).encode())
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()


def _state(model) -> tuple:
    """What torch knows of each weight without reading it: where it lies, and how often it was written to."""
    tensors = model.state_dict(keep_vars=True).values()
    return tuple((tensor.data_ptr(), 0 if tensor.is_inference() else tensor._version) for tensor in tensors)


def _tokenizer_fingerprint(tokenizer) -> str:
    core = getattr(tokenizer, "backend_tokenizer", None)
    words = core.to_str() if core is not None else json.dumps(tokenizer.get_vocab(), sort_keys=True)
    whole = json.dumps([words, tokenizer.chat_template, tokenizer.special_tokens_map], sort_keys=True, default=str)
    return hashlib.blake2b(whole.encode(errors="replace"), digest_size=16).hexdigest()


def _ends(model, tokenizer, chat: bool) -> list[int]:
    """The tokens that end an answer."""
    named = getattr(getattr(model, "generation_config", None), "eos_token_id", None)
    ends = [tokenizer.eos_token_id, *(named if isinstance(named, list | tuple) else [named])]
    if chat:
        ends += _turn_end(tokenizer)
    return sorted({token for token in ends if token is not None})


def _turn_end(tokenizer) -> list[int]:
    """The control token that the chat template puts behind a reply, if it is another one than the EOS."""
    asked, reply = {"role": "user", "content": "question"}, {"role": "assistant", "content": "answer"}
    render_chat(tokenizer, [asked])  # says what is wrong with the template, if anything is
    try:
        behind = render_reply(tokenizer, [asked], [reply]).rpartition("answer")[2].strip()
    except LabError:  # some write the question otherwise once it is answered
        return []
    first = tokenizer.encode(behind, add_special_tokens=False)[:1]
    # A turn may also end in ordinary words, whose first token says nothing.
    return first if first and not tokenizer.decode(first, skip_special_tokens=True) else []
