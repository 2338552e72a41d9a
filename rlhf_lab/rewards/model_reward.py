"""A reward model as a reward: it reads each reply exactly as it was trained to."""

from collections.abc import Sequence
from typing import Any

import torch

from rlhf_lab.data import encode_pair, right_pad
from rlhf_lab.errors import LabError
from rlhf_lab.models import Scorer

_LONG_WORK = 20  # batches; beyond this a progress bar is shown


class ModelReward:
    """Scores from a reward model, its shift subtracted; one per completion, in their order.

    Where policy and reward model share a vocabulary, the sampled ids are read as they are: decoding and
    encoding again could give other tokens. Otherwise the text is encoded by the reward model's own tokenizer,
    with its own EOS behind a reply if and only if that reply finished. Either way the score is read at the
    last real token. `policy_tokenizer=None`: nothing is known of the ids, so the text is read.
    """

    def __init__(self, scorer: Scorer, tokenizer, policy_tokenizer=None, batch_size: int = 64):
        if batch_size < 1:
            raise LabError(f"batch_size is {batch_size}; a reward model needs at least 1")
        self.scorer, self.tokenizer, self.batch_size = scorer, tokenizer, batch_size
        self.reads_ids = policy_tokenizer is not None and same_vocabulary(tokenizer, policy_tokenizer)

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

        Errors: `LabError` if neither ids that the model can read nor text with `finished` is there.
        """
        if self.reads_ids and prompt_ids is not None and completion_ids is not None:
            rows = [[*prompt, *reply] for prompt, reply in zip(prompt_ids, completion_ids, strict=True)]
        elif prompts is not None and completions is not None and finished is not None:
            pairs = zip(prompts, completions, finished, strict=True)
            encoded = [encode_pair(self.tokenizer, prompt, text, finished=bool(end)) for prompt, text, end in pairs]
            rows = [pair.prompt_ids + pair.reply_ids for pair in encoded]
        else:
            raise LabError(
                "reward model: cannot read these replies; give the ids of a policy with its vocabulary, "
                "or prompts and completions as text with finished (True where the reply ended by EOS)"
            )
        return self._score(rows)

    @torch.no_grad()
    def _score(self, rows: list[list[int]]) -> list[float]:
        from tqdm.auto import tqdm

        order = sorted(range(len(rows)), key=lambda row: len(rows[row]))  # rows of one length waste no padding
        batches = [order[start : start + self.batch_size] for start in range(0, len(order), self.batch_size)]
        scores = [0.0] * len(rows)
        for batch in tqdm(batches, desc="scoring", leave=False, disable=len(batches) <= _LONG_WORK):
            ids, mask = right_pad([rows[row] for row in batch], self.tokenizer.pad_token_id)
            found = self.scorer.sequence_scores(ids.to(self.scorer.device), mask.to(self.scorer.device))
            for row, score in zip(batch, found.tolist(), strict=True):
                scores[row] = score
        return scores


def same_vocabulary(one, other) -> bool:
    """Whether two tokenizers mean the same tokens by the same ids, and end a reply by the same one."""
    return one.eos_token_id == other.eos_token_id and one.get_vocab() == other.get_vocab()
