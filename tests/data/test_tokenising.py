"""Borders, BOS and EOS with tokenizers made on the spot."""

import pytest
from datasets import Dataset
from hypothesis import given, settings
from hypothesis import strategies as st
from trl import apply_chat_template

from rlhf_lab.data import (
    encode_pair,
    encode_prompt,
    encode_reply,
    left_pad,
    render_chat,
    render_reply,
    right_pad,
    to_text,
)
from rlhf_lab.errors import LabError

CHATML = (
    "{% for m in messages %}<|{{ m['role'] }}|>{{ m['content'] }}{{ eos_token }}\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)

BOS, EOS = 0, 1
A, B, C, D = 4, 5, 6, 7
USER = [{"role": "user", "content": "hi"}]
BOT = [{"role": "assistant", "content": "hello"}]


# by hand, word by word


def test_prompts_begin_with_one_bos_and_do_not_end(words):
    assert words.encode("a b") == [BOS, A, B, EOS]  # the tokenizer's own way
    assert encode_prompt(words, "a b") == [BOS, A, B]
    assert encode_prompt(words, "<s> a b") == [BOS, A, B]


def test_replies_end_with_one_eos_and_do_not_begin(words):
    for text in ("a b", "a b</s>", "a b </s>", "a b</s> ", "a b</s></s>"):
        assert encode_reply(words, text) == [A, B, EOS]
        assert encode_reply(words, text, finished=False) == [A, B]


def test_an_empty_reply_is_its_eos(words):
    assert encode_reply(words, "") == [EOS]
    assert encode_reply(words, "", finished=False) == []


def test_pairs_by_hand(words):
    assert encode_pair(words, "a b", "c d") == ([BOS, A, B], [C, D, EOS])
    assert encode_pair(words, "a b", "c d", finished=False) == ([BOS, A, B], [C, D])


@pytest.mark.parametrize(
    ("max_length", "prompt_ids"),
    [(7, [BOS, A, B, C]), (6, [BOS, B, C]), (5, [BOS, C]), (4, [BOS])],
)
def test_a_long_prompt_is_cut_from_the_left_behind_its_bos(max_length, prompt_ids, words):
    assert encode_pair(words, "a b c", "c d", max_length=max_length) == (prompt_ids, [C, D, EOS])


def test_a_long_prompt_without_bos_is_cut_from_the_left(make_bytes):
    tokenizer = make_bytes()
    whole = tokenizer.encode("The sea", add_special_tokens=False)
    pair = encode_pair(tokenizer, "The sea", "x", max_length=4)
    assert pair.prompt_ids == whole[-2:]


def test_a_reply_that_does_not_fit_is_named_with_its_length(words):
    for max_length in (2, 3):
        with pytest.raises(LabError) as caught:
            encode_pair(words, "a b c", "c d", max_length=max_length)
        line = str(caught.value)
        assert "the prompt has 4 tokens and the reply 3" in line
        assert f"max_length {max_length} is too short" in line
        assert "\n" not in line


def test_a_prompt_without_tokens_is_refused(words):
    with pytest.raises(LabError, match="the prompt '   ' has no tokens"):
        encode_prompt(words, "   ")


def test_a_tokenizer_without_eos_is_refused(words):
    words.eos_token = None
    with pytest.raises(LabError, match="no EOS token"):
        encode_reply(words, "a")


# bytes


@pytest.mark.parametrize(
    ("opening", "start"),
    [("$A", []), ("<s> $A", [0]), ("$A </s>", []), ("<s> $A </s>", [0]), ("<s> </s> $A", [0, 1])],
)
def test_the_tokenizers_own_opening_is_kept_and_its_ending_is_not(opening, start, make_bytes):
    tokenizer = make_bytes(opening)
    text = "The sky"
    plain = tokenizer.encode(text, add_special_tokens=False)
    assert encode_prompt(tokenizer, text) == start + plain
    assert encode_reply(tokenizer, text) == [*plain, 1]


def test_no_token_stands_on_the_border(make_bytes):
    """Tokenised in one, " blue" is one token, and half of the prompt's last word would count as reply."""
    tokenizer = make_bytes()
    together = tokenizer.encode("The sky is blue.", add_special_tokens=False)
    assert " blue" in [tokenizer.decode([token]) for token in together]
    prompt_ids, reply_ids = encode_pair(tokenizer, "The sky is bl", "ue.")
    assert tokenizer.decode(prompt_ids) == "The sky is bl"
    assert tokenizer.decode(reply_ids) == "ue.</s>"


@pytest.mark.parametrize("text", ["שלום עולם", "مرحبا", "👩‍👩‍👧 🙂", "e\u0301té", "日本語", " \n\tx ", "a\u2028b\x00c"])
def test_any_script_comes_back(text, make_bytes):
    tokenizer = make_bytes("<s> $A")
    prompt_ids, reply_ids = encode_pair(tokenizer, text, text)
    assert tokenizer.decode(prompt_ids, skip_special_tokens=True) == text
    assert tokenizer.decode(reply_ids, skip_special_tokens=True) == text


def test_pad_equal_to_eos_keeps_the_eos_in_the_mask(make_bytes):
    tokenizer = make_bytes(pad="</s>")
    assert tokenizer.pad_token_id == tokenizer.eos_token_id
    rows = [encode_reply(tokenizer, text) for text in ("The sky is blue.", "x")]
    ids, mask = right_pad(rows, tokenizer.pad_token_id)
    assert mask.sum(1).tolist() == [len(row) for row in rows]
    assert ids[1][mask[1]].tolist()[-1] == tokenizer.eos_token_id


@pytest.fixture(scope="module")
def padded_with_eos(make_bytes):
    return make_bytes("<s> $A", pad="</s>")


texts = st.text(min_size=1, max_size=30).filter(lambda text: "<" not in text)


@settings(deadline=None, max_examples=60)
@given(pairs=st.lists(st.tuples(texts, texts, st.booleans()), min_size=1, max_size=4))
def test_encoded_and_padded_texts_come_back(padded_with_eos, pairs):
    """Decoding is the oracle: what was put in comes out on each side of the border."""
    encoded = [encode_pair(padded_with_eos, prompt, reply, finished=finished) for prompt, reply, finished in pairs]
    for side, pad in ((0, left_pad), (1, right_pad)):
        rows = [pair[side] for pair in encoded]
        ids, mask = pad(rows, padded_with_eos.pad_token_id)
        assert mask.sum(1).tolist() == [len(row) for row in rows]
        for row, kept, pair in zip(ids, mask, pairs, strict=True):
            expected = "<s>" + pair[0] if side == 0 else pair[1] + "</s>" * pair[2]
            assert padded_with_eos.decode(row[kept].tolist()) == expected


@settings(deadline=None, max_examples=60)
@given(prompt=texts, reply=texts, max_length=st.integers(1, 60))
def test_cut_pairs_fit_and_keep_bos_reply_and_the_end_of_the_prompt(padded_with_eos, prompt, reply, max_length):
    whole = encode_pair(padded_with_eos, prompt, reply)
    if len(whole.reply_ids) >= max_length:
        with pytest.raises(LabError):
            encode_pair(padded_with_eos, prompt, reply, max_length=max_length)
        return
    cut = encode_pair(padded_with_eos, prompt, reply, max_length=max_length)
    total = len(whole.prompt_ids) + len(whole.reply_ids)
    assert len(cut.prompt_ids) + len(cut.reply_ids) == min(total, max_length)
    assert cut.reply_ids == whole.reply_ids
    assert cut.prompt_ids[0] == padded_with_eos.bos_token_id
    kept = len(cut.prompt_ids) - 1
    assert cut.prompt_ids[1:] == whole.prompt_ids[len(whole.prompt_ids) - kept :]


# chat


def test_a_prompt_is_rendered_up_to_where_the_assistant_begins(make_bytes):
    tokenizer = make_bytes()
    tokenizer.chat_template = CHATML
    assert render_chat(tokenizer, USER) == "<|user|>hi</s>\n<|assistant|>"
    assert render_reply(tokenizer, USER, BOT) == "hello"


def test_a_rendered_reply_ends_in_one_eos(make_bytes):
    """The template writes the EOS and a line break; nothing may stand behind the EOS."""
    tokenizer = make_bytes()
    tokenizer.chat_template = CHATML
    ids = encode_reply(tokenizer, render_reply(tokenizer, USER, BOT))
    assert tokenizer.decode(ids) == "hello</s>"


def test_rendering_agrees_with_trl_up_to_the_eos(make_bytes):
    tokenizer = make_bytes()
    tokenizer.chat_template = CHATML
    theirs = apply_chat_template({"prompt": USER, "completion": BOT}, tokenizer)
    assert render_chat(tokenizer, USER) == theirs["prompt"]
    assert render_reply(tokenizer, USER, BOT) + "</s>\n" == theirs["completion"]


@pytest.mark.parametrize("opening", ["$A", "<s> $A"])
def test_a_bos_written_by_the_template_is_not_doubled(opening, make_bytes):
    tokenizer = make_bytes(opening)
    tokenizer.chat_template = "{{ bos_token }}" + CHATML
    ids = encode_prompt(tokenizer, render_chat(tokenizer, USER))
    assert ids[0] == tokenizer.bos_token_id
    assert ids.count(tokenizer.bos_token_id) == 1


def test_another_end_of_turn_than_the_eos_stays_in_the_reply(make_bytes):
    tokenizer = make_bytes()
    tokenizer.chat_template = CHATML.replace("{{ eos_token }}", "<|end|>")
    assert render_reply(tokenizer, USER, BOT) == "hello<|end|>\n"


def test_to_text_renders_every_column_of_every_kind(make_bytes):
    tokenizer = make_bytes()
    tokenizer.chat_template = CHATML
    opening = "<|user|>hi</s>\n<|assistant|>"
    no = [{"role": "assistant", "content": "no"}]
    rows = {"prompt": [USER], "completion": [BOT]}
    assert to_text(Dataset.from_dict(rows), tokenizer).to_list() == [{"prompt": opening, "completion": "hello"}]
    rows = {"prompt": [USER], "chosen": [BOT], "rejected": [no]}
    expected = {"prompt": opening, "chosen": "hello", "rejected": "no"}
    assert to_text(Dataset.from_dict(rows), tokenizer).to_list() == [expected]
    rows = {"prompt": [USER], "completions": [[BOT, no]], "ranks": [[0, 1]]}
    expected = {"prompt": opening, "completions": ["hello", "no"], "ranks": [0, 1]}
    assert to_text(Dataset.from_dict(rows), tokenizer).to_list() == [expected]
    rows = {"prompt": [USER], "id": [3]}
    assert to_text(Dataset.from_dict(rows), tokenizer).to_list() == [{"prompt": opening, "id": 3}]


def test_texts_need_no_template(words):
    texts = Dataset.from_dict({"prompt": ["a"], "completion": ["b"]})
    assert to_text(texts, words) is texts


def test_a_tokenizer_without_a_template_is_named_with_the_row(words):
    with pytest.raises(LabError, match="row 1: .*has no chat template.*set tokenizer.chat_template"):
        to_text(Dataset.from_dict({"prompt": [USER]}), words)


def test_a_template_that_refuses_the_messages(words):
    words.chat_template = (
        "{% for m in messages %}{% if m['role'] == 'system' %}{{ raise_exception('no system role') }}"
        "{% endif %}{{ m['content'] }}{% endfor %}"
    )
    system = [{"role": "system", "content": "x"}, *USER]
    with pytest.raises(LabError, match="row 2: the chat template refuses the messages: no system role"):
        to_text(Dataset.from_dict({"prompt": [USER, system]}), words)


def test_a_template_that_rewrites_the_prompt_is_refused(words):
    """A generation prompt that opens a thought which the finished dialogue does not show."""
    words.chat_template = CHATML.replace("<|assistant|>{% endif %}", "<|assistant|><think>{% endif %}")
    with pytest.raises(LabError, match="writes the prompt differently when a reply follows"):
        render_reply(words, USER, BOT)
