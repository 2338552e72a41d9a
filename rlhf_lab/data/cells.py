"""CSV cells to values. Every cell is text; lists are written in it as JSON."""

import json
from typing import Any

from rlhf_lab.data.validation import Row, kind

LISTS = ("completions", "ranks", "finished", "messages")
WORDS = {"True": True, "False": False}  # as pandas writes them


def with_lists(row: Row, ours: list[str]) -> Row:
    """The row with the lists in our columns read. Text stays text, even if it is all digits."""
    row = dict(row)
    for name in ours:
        if row.get(name, "").startswith("["):
            found = _value(row[name])
            if isinstance(found, list) and (name in LISTS or _are_messages(found)):
                row[name] = found
    return row


def _are_messages(found: list) -> bool:
    return bool(found) and all(isinstance(one, dict) and "role" in one for one in found)


def give_types(rows: list[Row], columns: set[str]) -> None:
    """Make numbers, true/false or lists of these columns where every cell that is not empty is one."""
    for name in columns:
        values = [_value(row[name]) if row.get(name) else None for row in rows]
        sorts = {kind(value) for value in values if value is not None}
        if len(sorts) == 1 and sorts != {"text"}:
            for row, value in zip(rows, values, strict=True):
                row[name] = value


def _value(cell: Any) -> Any:
    if not isinstance(cell, str):
        return cell
    try:
        value = WORDS[cell] if cell in WORDS else json.loads(cell, parse_constant=str)
    except (ValueError, RecursionError):  # no JSON, or a number of thousands of digits
        return cell
    too_long = isinstance(value, int) and value.bit_length() > 63  # an identifier, and no column for Arrow
    return cell if too_long else value
