"""A reward model as a reward: it reads each reply exactly as it was trained to."""

from collections.abc import Sequence
from typing import Any

import torch

from rlhf_lab.data import cut_prompt, encode_pair, encode_prompt, right_pad
from rlhf_lab.errors import LabError
from rlhf_lab.models import Scorer, autocast, resolve_precision

_LONG_WORK = 20  # batches; beyond this a progress bar is shown


class ModelReward:
    """Scores from a reward model, its shift subtracted; one per completion, in their order.

    Where policy and reward model share a vocabulary, the sampled ids are read as they are: decoding and
    encoding again could give other tokens. Otherwise the text is encoded by the reward model's own tokenizer,
    with its own EOS behind a reply if and only if that reply finished. Either way the score is read at the
    last real token, and a prompt that is too long for the model is cut as in its training (`Scorer.limit`).
    `policy_tokenizer=None`: nothing is known of the ids, so the text is read.
    precision: of the matrix products, "fp32" or "bf16", or "auto" (`resolve_precision`); the score is float32.
    """

    def __init__(self, scorer: Scorer, tokenizer, policy_tokenizer=None, batch_size: int = 64, precision: str = "fp32"):
        if batch_size < 1:
            raise LabError(f"batch_size is {batch_size}; a reward model needs at least 1")
        self.scorer, self.tokenizer, self.batch_size = scorer, tokenizer, batch_size
        self.precision = resolve_precision(precision, scorer)
        self.reads_ids = policy_tokenizer is not None and same_vocabulary(tokenizer, policy_tokenizer)
        self.foreign = _specials(policy_tokenizer) - set(tokenizer.get_vocab())
        self.foreign_bos = policy_tokenizer.bos_token if policy_tokenizer is not None else None

    def __call__(
        self,
        *,
        prompts: Sequence[str] | None = None,
        completions: Sequence[str] | None = None,
        prompt_ids: Sequence[Sequence[int]] | None = None,
        completion_ids: Sequence[Sequence[int]] | None = None,
        finished: Sequence[bool] | None = None,
        **_: Any,
    ) -> list[float]:
        """Scores of the completions. Ids come without padding, a reply's EOS included.

        Errors: `LabError` if neither ids that the model can read nor text with `finished` is there, if a prompt holds
        special tokens that only the policy knows, or a reply leaves no room for a token of its prompt.
        """
        limit = self.scorer.limit()
        try:
            if self.reads_ids and prompt_ids is not None and completion_ids is not None:
                pairs = [
                    cut_prompt(list(prompt), list(reply), max_length=limit, bos_id=self.tokenizer.bos_token_id)
                    for prompt, reply in zip(prompt_ids, completion_ids, strict=True)
                ]
            elif prompts is not None and completions is not None and finished is not None:
                pairs = [
                    encode_pair(self.tokenizer, self._own(prompt), text, finished=bool(end), max_length=limit)
                    for prompt, text, end in zip(prompts, completions, finished, strict=True)
                ]
            else:
                raise LabError(
                    "cannot read these replies; give the ids of a policy with its vocabulary, "
                    "or prompts and completions as text with finished (True where the reply ended by EOS)"
                )
        except LabError as error:
            raise LabError(f"reward model: {error}") from None
        return self._score([pair.prompt_ids + pair.reply_ids for pair in pairs])

    def _own(self, prompt: str) -> str:
        """A prompt without the BOS that the policy's chat template wrote; its other special tokens are refused."""
        if self.foreign_bos in self.foreign:
            prompt = prompt.removeprefix(self.foreign_bos)
        if strange := sorted(token for token in self.foreign if token in prompt):
            raise LabError(
                f"the prompt {prompt[:40]!r} holds {strange[0]!r}, a special token of the policy that the reward model "
                "does not have; give prompts as plain text, or a reward model with the policy's tokenizer"
            )
        return prompt

    @torch.no_grad()
    def _score(self, rows: list[list[int]]) -> list[float]:
        from tqdm.auto import tqdm

        texts = sorted(dict.fromkeys(map(tuple, rows)), key=len)  # each once, so that what is equal scores the same
        batches = [texts[start : start + self.batch_size] for start in range(0, len(texts), self.batch_size)]
        scores: dict[tuple[int, ...], float] = {}
        for batch in tqdm(batches, desc="scoring", leave=False, disable=_hidden(len(batches))):
            ids, mask = right_pad(batch, self.tokenizer.pad_token_id)
            with autocast(self.precision, self.scorer):
                found = self.scorer.sequence_scores(ids.to(self.scorer.device), mask.to(self.scorer.device))
            scores |= zip(batch, found.tolist(), strict=True)
        return [scores[tuple(row)] for row in rows]


def _hidden(batches: int) -> bool | None:
    """Whether to show no progress bar: for short work, and (None) in a log that no one watches, as tqdm tells."""
    return True if batches <= _LONG_WORK else None


def same_vocabulary(one, other) -> bool:
    """Whether two tokenizers mean the same tokens by the same ids, begin a prompt alike, and end a reply alike."""
    if one.eos_token_id != other.eos_token_id or one.get_vocab() != other.get_vocab():
        return False
    words = [token for token in sorted(one.get_vocab().values()) if token not in one.all_special_ids]
    some = one.decode(words[:: len(words) // 50 + 1])  # a text of known words, whatever sort of tokenizer this is
    return encode_prompt(one, some) == encode_prompt(other, some)


def _specials(tokenizer) -> set[str]:
    if tokenizer is None:
        return set()
    added = {str(token) for token in tokenizer.added_tokens_decoder.values() if token.special}
    return added | set(tokenizer.all_special_tokens)
