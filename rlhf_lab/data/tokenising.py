"""Text to token ids, with the border between prompt and reply exact.

Prompt and reply are tokenised apart and then put one behind the other, so that no token belongs to both.
Joint tokenising can merge the last letters of a prompt with the first of a reply, and then a mask on the
reply is wrong.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

from datasets import Dataset

from rlhf_lab.data.validation import Message, one_line
from rlhf_lab.errors import LabError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


class Encoded(NamedTuple):
    """Token ids of a prompt and of the reply that follows it."""

    prompt_ids: list[int]
    reply_ids: list[int]


def encode_prompt(tokenizer: "PreTrainedTokenizerBase", prompt: str) -> list[int]:
    """Token ids of a prompt, begun as the tokenizer begins a text (a BOS, if that is its way), and not ended.

    A BOS that is already in the text, as a chat template writes it, is not put there again; an EOS that the
    tokenizer puts after a text is left off, since a reply follows.
    Errors: `LabError` when the text has no tokens, since a model then has nothing to continue.
    """
    plain = tokenizer.encode(prompt, add_special_tokens=False, verbose=False)
    if not plain:
        raise LabError(f"the prompt {prompt[:40]!r} has no tokens in this tokenizer; give another prompt")
    full = tokenizer.encode(prompt, verbose=False)
    extra = range(len(full) - len(plain) + 1)
    start = next((i for i in extra if full[i : i + len(plain)] == plain), 0)
    opening = full[:start]
    return plain if plain[: len(opening)] == opening else opening + plain


def encode_reply(tokenizer: "PreTrainedTokenizerBase", completion: str, *, finished: bool = True) -> list[int]:
    """Token ids of a reply, with nothing before it, and one EOS behind it if and only if it is `finished`.

    The text may already end with the EOS, once or more often.
    Errors: `LabError` when the tokenizer has no EOS.
    """
    eos, eos_id = tokenizer.eos_token, tokenizer.eos_token_id
    if not eos or eos_id is None:
        raise LabError("the tokenizer has no EOS token, so no reply can end; set tokenizer.eos_token")
    while completion.endswith(eos):
        completion = completion.removesuffix(eos)
    ids = tokenizer.encode(completion, add_special_tokens=False, verbose=False)
    while ids and ids[-1] == eos_id:  # "</s> " ends with an EOS as well, once the tokenizer drops the space
        ids.pop()
    return [*ids, eos_id] if finished else ids


def encode_pair(
    tokenizer: "PreTrainedTokenizerBase",
    prompt: str,
    completion: str,
    *,
    finished: bool = True,
    max_length: int | None = None,
) -> Encoded:
    """Prompt and reply in at most `max_length` tokens: the prompt is cut from the left, its BOS kept.

    Errors: `LabError` with the lengths when the reply leaves no room for a token of the prompt.
    """
    prompt_ids = encode_prompt(tokenizer, prompt)
    reply_ids = encode_reply(tokenizer, completion, finished=finished)
    return cut_prompt(prompt_ids, reply_ids, max_length=max_length, bos_id=tokenizer.bos_token_id)


def cut_prompt(
    prompt_ids: list[int], reply_ids: list[int], *, max_length: int | None, bos_id: int | None = None
) -> Encoded:
    """Prompt and reply in at most `max_length` tokens: the prompt is cut from the left, its BOS kept.

    Errors: `LabError` with the lengths when the reply leaves no room for a token of the prompt.
    """
    if max_length is None or len(prompt_ids) + len(reply_ids) <= max_length:
        return Encoded(prompt_ids, reply_ids)
    room = max_length - len(reply_ids)
    if room < 1:
        lengths = f"the prompt has {len(prompt_ids)} tokens and the reply {len(reply_ids)}"
        too_short = f"max_length {max_length} is too short (the model's context bounds it)"
        raise LabError(f"{lengths}: a reply is never cut, and {too_short}; raise it")
    bos = prompt_ids[:1] if prompt_ids[0] == bos_id else []
    kept = room - len(bos)
    return Encoded(bos + prompt_ids[len(prompt_ids) - kept :], reply_ids)


def render_chat(tokenizer: "PreTrainedTokenizerBase", messages: list[Message]) -> str:
    """The messages of a prompt as text by the tokenizer's chat template, up to where the assistant begins.

    Errors: `LabError` when the tokenizer has no template, or its template refuses the messages.
    """
    return _apply(tokenizer, messages, add_generation_prompt=True)


def render_reply(tokenizer: "PreTrainedTokenizerBase", prompt: list[Message], reply: list[Message]) -> str:
    """What the chat template writes behind `render_chat(tokenizer, prompt)` when the reply follows.

    An EOS at its end is left off, with the line break a template may write behind it: `encode_reply` puts it.
    Errors: `LabError` as in `render_chat`, or when the template writes the prompt otherwise once a reply
    follows.
    """
    opening = render_chat(tokenizer, prompt)
    whole = _apply(tokenizer, [*prompt, *reply], add_generation_prompt=False)
    if not whole.startswith(opening):
        what = "the chat template writes the prompt differently when a reply follows"
        raise LabError(f"{what}, so the reply has no exact start; set tokenizer.chat_template to one that does not")
    text = whole[len(opening) :]
    body, eos = text.rstrip(), tokenizer.eos_token
    return body.removesuffix(eos) if eos and body.endswith(eos) else text


def _apply(tokenizer: "PreTrainedTokenizerBase", messages: list[Message], *, add_generation_prompt: bool) -> str:
    from jinja2 import TemplateError  # comes with transformers, and is slow to load

    if not tokenizer.chat_template:
        name = tokenizer.name_or_path or "this tokenizer"
        what = "has no chat template, and the prompt is a list of messages"
        raise LabError(f"{name}: {what}; set tokenizer.chat_template, or give prompts and replies as text")
    try:
        return tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=add_generation_prompt)
    except TemplateError as error:
        raise LabError(f"the chat template refuses the messages: {one_line(error)}; mend them or it") from None


def to_text(dataset: Dataset, tokenizer: "PreTrainedTokenizerBase") -> Dataset:
    """A data set of conversations as one of texts, by the tokenizer's chat template; texts stay as they are.

    Renders `prompt`, and `completion`, `chosen`, `rejected` or `completions` where there are any.
    Errors: `LabError` that names the row (from 1).
    """
    if len(dataset) == 0 or isinstance(dataset[0]["prompt"], str):
        return dataset
    rendered = {name: list(dataset[name]) for name in dataset.column_names}
    for number, row in enumerate(dataset, 1):
        for name, value in _row_as_text(tokenizer, row, number).items():
            rendered[name][number - 1] = value
    return Dataset.from_dict(rendered)


def _row_as_text(tokenizer: "PreTrainedTokenizerBase", row: dict[str, Any], number: int) -> dict[str, Any]:
    render: Callable = lambda reply: render_reply(tokenizer, row["prompt"], reply)
    try:
        text = {"prompt": render_chat(tokenizer, row["prompt"])}
        for name in ("completion", "chosen", "rejected"):
            if isinstance(row.get(name), list):
                text[name] = render(row[name])
        if isinstance(row.get("completions"), list):
            text["completions"] = [render(reply) for reply in row["completions"]]
    except LabError as error:
        raise LabError(f"row {number}: {error}") from None
    return text
