"""A box to try one's own prompt: every model's reply side by side, with its score and its gold by part."""

import importlib.util
import time
from collections.abc import Callable, Mapping, Sequence
from html import escape
from typing import Any

from rlhf_lab.errors import LabError
from rlhf_lab.workbench.records import one_line
from rlhf_lab.workbench.session import headless, shell

Reply = Callable[[str], str]
Score = Callable[[str, str], float]
GoldParts = Callable[[str, str], Mapping[str, float]]


def prompt_box(
    models: Mapping[str, Reply],
    score: Score | None = None,
    gold_parts: GoldParts | None = None,
    examples: Sequence[str] = (),
) -> Any:
    """A text field and a button that ask every model, to be the last line of a cell.

    models: name -> (prompt -> reply). score: (prompt, reply) -> the reward model's score.
    gold_parts: (prompt, reply) -> part of gold -> value. examples: prompts to pick from.
    When headless, or without ipywidgets, the table for the first example is shown and nothing returned.
    """
    if not models:
        raise LabError("prompt_box: give at least one model, as name -> function from prompt to reply")
    if headless() or importlib.util.find_spec("ipywidgets") is None:
        if examples:
            _show(ask(examples[0], models, score, gold_parts), examples[0])
        return None
    return _box(lambda prompt: as_html(ask(prompt, models, score, gold_parts)), list(examples))


def ask(
    prompt: str, models: Mapping[str, Reply], score: Score | None = None, gold_parts: GoldParts | None = None
) -> list[dict[str, str]]:
    """One row for each model: its name, its reply, its score and gold by part, all as text.

    A model that fails on this prompt gets a row that says why, and the others still answer.
    """
    rows = []
    for name, reply_to in models.items():
        row = {"model": name}
        try:
            row["reply"] = str(reply_to(prompt))
            if score is not None:
                row["score"] = f"{float(score(prompt, row['reply'])):.2f}"
            if gold_parts is not None:
                row |= {part: f"{float(value):.2f}" for part, value in gold_parts(prompt, row["reply"]).items()}
        except Exception as error:  # whatever a user's function raises must not break the box
            row["reply"] = row.get("reply", "") + f"[{type(error).__name__}: {one_line(str(error), 200)}]"
        rows.append(row)
    return rows


def as_html(rows: Sequence[Mapping[str, str]]) -> str:
    """The rows of `ask` as a table. Everything in it is escaped."""
    columns = list(dict.fromkeys(key for row in rows for key in row))
    head = "".join(f"<th style='text-align:left;padding:2px 10px'>{escape(name)}</th>" for name in columns)
    lines = []
    for row in rows:
        cells = "".join(
            f"<td style='text-align:left;vertical-align:top;padding:2px 10px;white-space:pre-wrap'>"
            f"{escape(row.get(name, ''))}</td>"
            for name in columns
        )
        lines.append(f"<tr>{cells}</tr>")
    return f"<table><thead><tr>{head}</tr></thead><tbody>{''.join(lines)}</tbody></table>"


def as_text(rows: Sequence[Mapping[str, str]]) -> str:
    """The rows of `ask` as lines of text."""
    lines = []
    for row in rows:
        figures = ", ".join(f"{key} {value}" for key, value in row.items() if key not in ("model", "reply"))
        lines.append(f"{row['model']}: {row['reply']}" + (f"  ({figures})" if figures else ""))
    return "\n".join(lines)


def _show(rows: list[dict[str, str]], prompt: str) -> None:
    if shell() is None:
        print(f"prompt: {prompt}\n{as_text(rows)}")
        return
    from IPython.display import HTML, display

    display(HTML(f"<p><b>prompt</b> {escape(prompt)}</p>{as_html(rows)}"))


def _box(answer: Callable[[str], str], examples: list[str]) -> Any:
    import ipywidgets as widgets

    wide = widgets.Layout(width="auto")  # with 100% its margins would stick out on the right
    field = widgets.Text(value=examples[0] if examples else "", placeholder="your prompt", layout=wide)
    field.continuous_update = False  # tell of a change at Enter, not at every key
    button = widgets.Button(description="Ask", button_style="primary", icon="comment")
    picker = widgets.Dropdown(options=[("examples", "")] + [(one_line(text, 80), text) for text in examples])
    output = widgets.HTML(layout=wide)
    last = {"prompt": "", "at": 0.0}

    def reply(_: Any) -> None:
        prompt = field.value.strip()
        if not prompt:
            output.value = "Write a prompt first."
            return
        # a click on the button also leaves the field, which has asked just before it
        if prompt == last["prompt"] and time.monotonic() - last["at"] < 0.3:
            return
        button.disabled, button.description = True, "Thinking"
        try:
            output.value = answer(prompt)
        finally:
            button.disabled, button.description = False, "Ask"
            last.update(prompt=prompt, at=time.monotonic())

    def picked(change: Any) -> None:
        if change["new"]:
            field.value = change["new"]

    button.on_click(reply)
    picker.observe(picked, "value")
    field.observe(reply, "value")
    controls = [button, picker] if examples else [button]
    return widgets.VBox([field, widgets.HBox(controls), output], layout=wide)
