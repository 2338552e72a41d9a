"""The box for one's own prompt: the callbacks a browser would call, and the table when nobody watches."""

import pytest

from rlhf_lab.errors import LabError
from rlhf_lab.workbench.widgets import as_html, ask, prompt_box

MODELS = {"base": lambda prompt: prompt.upper(), "SFT": lambda prompt: prompt + "!"}


def score(prompt, reply):
    return len(reply) - len(prompt)


def gold_parts(prompt, reply):
    return {"helpful": 0.5, "concise": -float(len(reply))}


def test_every_model_answers_with_score_and_gold_by_part():
    assert ask("hi", MODELS, score, gold_parts) == [
        {"model": "base", "reply": "HI", "score": "0.00", "helpful": "0.50", "concise": "-2.00"},
        {"model": "SFT", "reply": "hi!", "score": "1.00", "helpful": "0.50", "concise": "-3.00"},
    ]


def test_a_model_that_fails_says_so_and_the_others_answer():
    def broken(prompt):
        raise ValueError("too\nlong")

    rows = ask("hi", {"broken": broken, **MODELS}, score)
    assert rows[0] == {"model": "broken", "reply": "[ValueError: too long]"}
    assert rows[1]["reply"] == "HI"


def test_html_in_names_prompts_and_replies_is_escaped():
    rows = ask("<script>alert(1)</script>", {"<b>": lambda prompt: prompt}, gold_parts=lambda *_: {"<i>": 1})
    html = as_html(rows)
    assert "<script>" not in html
    assert "<b>" not in html
    assert "<i>" not in html
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in html


@pytest.fixture
def box(monkeypatch):
    monkeypatch.setenv("RLHF_LAB_HEADLESS", "0")
    asked = []
    models = {"echo": lambda prompt: asked.append(prompt) or prompt[::-1]}
    made = prompt_box(models, score, examples=["first one", "second"])
    field, controls, output = made.children
    button, picker = controls.children
    return asked, field, button, picker, output


def test_enter_the_button_and_an_example_each_ask_once(box):
    asked, field, button, picker, output = box
    assert field.value == "first one"
    button.click()
    assert asked == ["first one"]
    assert "eno tsrif" in output.value
    field.value = "mine"  # Enter, or leaving the field
    button.click()  # for this button
    assert asked == ["first one", "mine"]
    picker.value = "second"
    assert asked[2:] == ["second"]
    assert "dnoces" in output.value
    assert not button.disabled
    field.value = "  "
    assert output.value == "Write a prompt first."
    assert len(asked) == 3


def test_when_nobody_watches_the_first_example_is_shown(monkeypatch, capsys):
    monkeypatch.setenv("RLHF_LAB_HEADLESS", "1")
    assert prompt_box(MODELS, score, examples=["hi", "ho"]) is None
    assert capsys.readouterr().out.splitlines() == [
        "prompt: hi",
        "base: HI  (score 0.00)",
        "SFT: hi!  (score 1.00)",
    ]
    assert prompt_box(MODELS) is None
    assert capsys.readouterr().out == ""
    with pytest.raises(LabError, match="at least one model"):
        prompt_box({})
