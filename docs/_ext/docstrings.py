"""The package's docstrings are plain text. Here they become what Sphinx reads, without losing a shape or a star.

What they have besides sentences: `code` in single backticks, lines that begin with a label ("Shapes: ...", "lr: ..."),
columns ("name   what it is"), indented formulas and code, and doctests.
"""

import re
from collections.abc import Iterator
from typing import get_origin

from _ext.fields import declared_fields

_NAMES = r"[\w.*/]+(?:, ?[\w.*/]+)*"
COLUMN = re.compile(rf"^( *)({_NAMES}) {{2,}}(\S.*)$")
LABEL = re.compile(r"^(\w+(?:(?:, | and )\w+)*): (?=\S)")
SPECIAL = re.compile(r"([\\*_|`])")


def to_rest(text: str) -> list[str]:
    """The lines of a docstring as reStructuredText."""
    lines: list[str] = []
    for block in re.split(r"\n[ \t]*\n", text.strip("\n")):
        lines += [*_block(block.splitlines()), ""]
    return lines


def _block(block: list[str]) -> list[str]:
    if block[0].lstrip().startswith(">>>"):
        return block
    if any("  # " in line for line in block):
        return _literal(block)
    out: list[str] = []
    for kind, part in _parts(block):
        if kind == "literal":
            out += _literal(part)
        elif kind == "column":
            name, words = part[0], " ".join(part[1:])
            out += [f"- ``{name}``: {_inline(words)}", ""]
        else:
            text = " ".join(part)
            label = LABEL.match(text)
            head, rest = (f"**{_escaped(label[1])}**: ", text[label.end() :]) if label else ("", text)
            out += [head + _inline(rest), ""]
    return out


def _parts(block: list[str]) -> Iterator[tuple[str, list[str]]]:
    """Runs of lines that belong together: text, column (name, words...), literal."""
    kind, part, column_at = "", [], 0
    for line in block:
        column = COLUMN.match(line)
        at = len(line) - len(line.lstrip())
        if not column and kind == "column" and 0 < at == column_at:  # a name too long for its column
            column = re.match(r"( *)(\S+) (.*)", line)
        if column:
            new, content, starts, column_at = "column", [column[2], column[3]], True, at
        elif line[:1] == " ":
            new = "column" if kind == "column" else "literal"
            content, starts = [line.strip() if new == "column" else line], kind != new
        else:
            begins = kind != "text" or (LABEL.match(line) and part[-1][-1:] in ".:;!?")  # else the middle of a sentence
            new, content, starts = "text", [line.strip()], bool(begins)
        if starts and part:
            yield kind, part
            part = []
        kind, part = new, part + content
    if part:
        yield kind, part


def _literal(lines: list[str]) -> list[str]:
    indent = min(len(line) - len(line.lstrip()) for line in lines if line.strip())
    return ["::", "", *("    " + line[indent:] for line in lines), ""]


def _inline(text: str) -> str:
    """Code between backticks stays as it is, in all other text marks lose their meaning."""
    parts = re.split(r"`([^`]+)`", text)
    out = _escaped(parts[0])
    for code, after in zip(parts[1::2], parts[2::2], strict=True):
        before = "\\ " if out[-1:].isalnum() else ""
        out += f"{before}``{code.strip()}``" + ("\\ " if after[:1].isalnum() else "") + _escaped(after)
    return out


def _escaped(text: str) -> str:
    return SPECIAL.sub(r"\\\1", text)


def _process(app, what: str, name: str, thing: object, options: object, lines: list[str]) -> None:
    text = "\n".join(lines)
    lines[:] = to_rest(text) if text.strip() else []
    if what == "class" and (fields := declared_fields(thing)):
        for field in fields:
            words = f": {_inline(field.words)}" if field.words else ""
            lines += [f"- ``{field.name}`` (``{field.annotation}``){words}"]
        lines += [""]


def _skip(app, what: str, name: str, thing: object, skip: bool, options: object) -> bool | None:
    """Leave out what says nothing: a named tuple's "Alias for field number 0", and how a union is spelled."""
    says_nothing = type(thing).__name__ == "_tuplegetter" or get_origin(thing) is not None
    return True if says_nothing or name in ("model_config", "model_post_init") else None


def setup(app) -> dict:
    app.connect("autodoc-process-docstring", _process)
    app.connect("autodoc-skip-member", _skip)
    return {"parallel_read_safe": True}
