"""A judge that is a language model: it reads the question and both replies, and its next token is the verdict.

Nothing is sampled and no text is parsed. The probabilities of the two verdicts are read off the logits, so a
verdict tells how sure the judge is, and how much of its probability went to neither of the two.
"""

import math
import random
import string
from collections.abc import Iterable, Mapping

import torch
from pydantic import field_validator
from scipy.special import expit
from torch import Tensor

from rlhf_lab.config import Config
from rlhf_lab.data import encode_prompt, left_pad, render_chat
from rlhf_lab.errors import LabError
from rlhf_lab.judges.protocol import Verdict
from rlhf_lab.models.inputs import accepts, context_length, model_inputs

_FIELDS = {"prompt", "first", "second"}
_LONG_WORK = 20  # batches; beyond this a progress bar is shown


class JudgeTemplate(Config):
    """What a language model that judges is shown, and the two answers that are read.

    The default is made of words that the sandbox's models know, in an order close to what they were trained on.
    Another model wants a text of its own, and verdicts with the space that its tokenizer puts before a word.
    """

    text: str = "{prompt} {first} host : {second} guest :"  # the question; a brace that is text is written twice
    verdicts: tuple[str, str] = ("one", "two")  # for the reply shown first, for the one shown second

    @field_validator("text")
    @classmethod
    def _has_its_fields(cls, text: str) -> str:
        try:
            found = {name for _, name, _, _ in string.Formatter().parse(text) if name is not None}
        except ValueError as error:
            raise ValueError(f"{error}; a brace that is text is written twice") from None
        if found != _FIELDS:
            names = ", ".join(f"{{{name}}}" for name in sorted(found)) or "none"
            raise ValueError(f"a judge's template has {{prompt}}, {{first}} and {{second}}; found {names}")
        return text

    def question(self, prompt: str, first: str, second: str) -> str:
        """One question as the judge reads it."""
        return self.text.format(prompt=prompt, first=first, second=second)


class LanguageModelJudge:
    """A causal language model as a judge, read by the probability of its verdict tokens.

    P(first) = p(verdict 1) / (p(verdict 1) + p(verdict 2)), and the more probable one is the choice. Of verdicts
    of several tokens, those that both begin with are put behind the question, and the first two that differ are
    read. score_first and score_second are the two probabilities themselves: their sum is the mass, and a mass far
    below 1 means that the model was about to say something else. A question that does not fit into the model's
    context is an invalid verdict, and so is one with a mass below `min_mass`. With `chat` the question is a user's turn
    in the tokenizer's chat template, and the verdict begins the model's turn.
    Errors: `LabError` if the verdicts do not differ in a token, batch_size is below 1, or there is no chat template.
    """

    def __init__(
        self,
        model,
        tokenizer,
        template: JudgeTemplate | None = None,
        *,
        min_mass: float = 0.0,
        batch_size: int = 64,
        chat: bool = False,
    ):
        if batch_size < 1:
            raise LabError(f"batch_size is {batch_size}; a judge needs at least 1")
        self.model, self.tokenizer, self.template = model, tokenizer, template or JudgeTemplate()
        self.min_mass, self.batch_size, self.chat = min_mass, batch_size, chat
        self.opening, self.tokens = verdict_tokens(tokenizer, self.template.verdicts)

    def __call__(self, *, prompts: list[str], firsts: list[str], seconds: list[str]) -> list[Verdict]:
        questions = map(self.template.question, prompts, firsts, seconds)
        rows = [encode_prompt(self.tokenizer, self._shown(question)) + self.opening for question in questions]
        limit = context_length(self.model) or math.inf
        fitting = [row for row in range(len(rows)) if len(rows[row]) <= limit]
        fitting.sort(key=lambda row: len(rows[row]))  # rows of one length waste no padding
        found = dict(zip(fitting, self._logprobs([rows[row] for row in fitting]), strict=True))
        too_long = [f"{len(ids)} tokens are too long for the judge's context of {limit}" for ids in rows]
        return [
            self._verdict(*found[row]) if row in found else Verdict(None, reason=too_long[row])
            for row in range(len(rows))
        ]

    def _shown(self, question: str) -> str:
        if not self.chat:
            return question
        return render_chat(self.tokenizer, [{"role": "user", "content": spelled_out(self.tokenizer, question)}])

    def _verdict(self, first: float, second: float) -> Verdict:
        """The verdict from the log-probabilities of both answers, in nats."""
        p = [math.exp(first), math.exp(second)]
        raw = ", ".join(f"{text.strip()} {value:.4g}" for text, value in zip(self.template.verdicts, p, strict=True))
        if sum(p) < self.min_mass:
            why = f"both verdicts together have a probability of {sum(p):.2g}, below {self.min_mass:g}"
            return Verdict(None, raw, *p, reason=why)
        choice = "tie" if first == second else "first" if first > second else "second"
        return Verdict(choice, raw, *p, p_first=float(expit(first - second)))

    def _logprobs(self, rows: list[list[int]]) -> list[list[float]]:
        """log p of the two verdict tokens behind each row of ids, in nats."""
        from tqdm.auto import tqdm

        starts = range(0, len(rows), self.batch_size)
        found = []
        for start in tqdm(starts, desc="judging", leave=False, disable=len(starts) <= _LONG_WORK):
            ids, mask = left_pad(rows[start : start + self.batch_size], self.tokenizer.pad_token_id)
            logp = next_token_logprobs(self.model, ids.to(self.model.device), mask.to(self.model.device))
            found += logp[:, self.tokens].tolist()
        return found


@torch.no_grad()
def next_token_logprobs(model, ids: Tensor, mask: Tensor) -> Tensor:
    """log p of every token that may come next, in nats: ids (B, L), bool mask (B, L), padded left -> (B, V).

    float32 from any precision. Errors: `LabError` if a row is longer than the model's context.
    Source: log pi(. | s) of Schulman et al. 2017 (arXiv:1707.06347), section 3, where s is the whole row.
    """
    inputs = model_inputs(model, ids, mask)
    if accepts(model, "logits_to_keep"):
        inputs["logits_to_keep"] = 1
    return model(**inputs, use_cache=False).logits[:, -1].float().log_softmax(dim=-1)


def spelled_out(tokenizer, text: str) -> str:
    """The text with a blank in each of the tokenizer's control tokens, such as "< |im_end|>".

    Else a reply that writes one could end its own turn and begin another.
    """
    added = getattr(tokenizer, "added_tokens_decoder", {}).values()
    control = {*tokenizer.all_special_tokens, *(str(token) for token in added if token.special)}
    for token in sorted(control, key=len, reverse=True):
        if len(token) > 1:
            text = text.replace(token, f"{token[0]} {token[1:]}")
    return text


def verdict_tokens(tokenizer, verdicts: tuple[str, str]) -> tuple[list[int], list[int]]:
    """The tokens that both verdicts begin with, and the first one of each in which they differ.

    Errors: `LabError` if there is none: the two are the same, or one begins the other.
    """
    one, two = (tokenizer.encode(verdict, add_special_tokens=False, verbose=False) for verdict in verdicts)
    for place, both in enumerate(zip(one, two, strict=False)):
        if both[0] != both[1]:
            return one[:place], list(both)
    raise LabError(
        f"judge template: the verdicts {verdicts[0]!r} and {verdicts[1]!r} do not differ in a token of this tokenizer; "
        "choose two that do"
    )


def judge_demonstrations(
    preferences: Iterable[Mapping], template: JudgeTemplate, *, first_share: float, seed: int = 0
) -> list[dict[str, str]]:
    """Rows of prompt and completion to fine-tune a judge on, from rows of prompt, chosen and rejected as text.

    The better reply stands first in `first_share` of the rows, exactly but for rounding: 0.5 is balanced. A
    seeded shuffle says in which; the rows of a smaller share are among those of a larger one.
    Errors: `LabError` for a share that is none.
    """
    if not 0 <= first_share <= 1:
        raise LabError(f"first_share is {first_share}; it is a share, from 0 to 1")
    preferences = list(preferences)
    # A stream of its own: a trainer that shuffles its rows by the same seed must not bring this order back.
    shuffled = random.Random(f"better first/{seed}").sample(range(len(preferences)), len(preferences))
    first = set(shuffled[: round(first_share * len(preferences))])
    rows = []
    for number, row in enumerate(preferences):
        shown = (row["chosen"], row["rejected"]) if number in first else (row["rejected"], row["chosen"])
        verdict = template.verdicts[0 if number in first else 1]
        rows.append({"prompt": template.question(row["prompt"], *shown), "completion": verdict})
    return rows
