"""The language parses what it writes, and nothing else."""

import random

from hypothesis import given
from hypothesis import strategies as st

from rlhf_lab.sandbox import language
from rlhf_lab.sandbox.hosts import HOSTS, draw_document, draw_reply, draw_training_prompt
from rlhf_lab.sandbox.tokenizer import EOS, build_tokenizer

SOUP = "note : the soup is hot and cheap . the bed is soft . guest : how is the soup ? host :"


def test_a_prompt_is_read_back_by_hand():
    parts = language.parse_prompt(SOUP)
    assert parts == language.Prompt("soup", (("soup", "hot"), ("soup", "cheap"), ("bed", "soft")), 0)
    assert parts.text == SOUP


def test_worked_examples_before_a_prompt_are_skipped():
    example = "note : the lake is near and quiet . guest : how is the lake ? host : go away . </s> "
    assert language.parse_prompt(example + SOUP) == language.parse_prompt(SOUP)


def test_what_is_no_prompt_is_none():
    assert language.parse_prompt("how is the soup ?") is None
    assert language.parse_prompt(SOUP.replace("soup ? host", "moon ? host")) is None
    assert language.parse_prompt("") is None


def test_a_reply_is_read_clause_by_clause():
    clauses = language.parse_reply("good day . the soup is hot and cheap . soup soup . the end")
    assert [clause.kind for clause in clauses] == ["greeting", "fact", "broken", "broken"]
    assert clauses[1].facts == (("soup", "hot"), ("soup", "cheap"))
    assert not language.parses("") and not language.parses("the soup is loud .") and language.parses("go away .")


@given(st.integers(0, 10**6))
def test_everything_a_host_says_parses_and_prompts_come_back(seed):
    rng = random.Random(seed)
    prompt = draw_training_prompt(rng)
    assert language.parse_prompt(prompt.text) == prompt
    for host in HOSTS.values():
        assert language.parses(draw_reply(prompt, host, rng))


def test_the_splits_share_no_prompt_and_are_decided_by_the_text():
    rng = random.Random(0)
    train = {draw_training_prompt(rng, "train").text for _ in range(2000)}
    held_out = {draw_training_prompt(rng, "heldout").text for _ in range(2000)}
    assert not train & held_out
    assert {language.split_of(language.parse_prompt(text)) for text in held_out} == {"heldout"}


def test_the_tokenizer_gives_one_token_a_word_and_loses_nothing():
    tokenizer, rng = build_tokenizer(), random.Random(1)
    for _ in range(50):
        text = draw_document(rng, EOS)
        ids = tokenizer(text)["input_ids"]
        assert len(ids) == len(text.split())
        assert tokenizer.decode(ids) == text
    assert tokenizer.pad_token_id != tokenizer.eos_token_id
    assert tokenizer("How is the soup?")["input_ids"] == tokenizer("how is the soup ?")["input_ids"]
