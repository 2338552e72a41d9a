"""The right side of a `columns` map: a column, a place inside of one, or a text that is put together from such places.

    question                      the column of that name
    answers.rank                  inside an object; of a list of objects, a list of what stands there in each
    "Q: {question}\\n\\nA:"         a text, with what the places in braces hold; {{ and }} are braces

A column that is called exactly like that comes first.
"""

import difflib
from collections.abc import Mapping
from string import Formatter
from typing import Any

from rlhf_lab.data.validation import Row, RowProblem, kind, names, one_line
from rlhf_lab.errors import LabError


def check_columns(wanted: list[tuple[str, ...]], available: list[str], columns: Mapping[str, str], file: str) -> None:
    """That one of the `wanted` sets of columns is there once `columns` (our name -> theirs) is applied.

    Errors: `LabError` that lists the columns of the file.
    """
    there = f"the columns are {names(available)}" if available else "it has no columns"
    for ours, theirs in columns.items():
        for name in [theirs] if theirs in available else [root(place, available) for place in places(theirs)]:
            if name not in available:
                close = difflib.get_close_matches(name, available, n=1)
                hint = f" (did you mean '{close[0]}'?)" if close else ""
                said = f"columns={{'{ours}': {one_line(repr(theirs), 60)}}}"
                what = "" if name == theirs else f", '{name}'"
                raise LabError(f"{file}: {said} names a column that is not there{what}; {there}{hint}")
    known = {column for column in available if column not in columns.values()} | set(columns)
    missing = [[column for column in alternative if column not in known] for alternative in wanted]
    if all(missing):
        # Complain about the format that the file comes nearest to; the first where it is near to none.
        nearest = max(range(len(wanted)), key=lambda i: len(wanted[i]) - len(missing[i]))
        lacks = missing[nearest]
        example = ", ".join(f"'{column}': '<its name there>'" for column in lacks)
        raise LabError(f"{file}: no column {names(lacks)}; {there}; name them with columns={{{example}}}")


def check_map(columns: Mapping[str, str] | None, known: list[str]) -> dict[str, str]:
    """The `columns` map with only names of ours on its left side."""
    for ours, theirs in (columns or {}).items():
        if ours not in known:
            close = difflib.get_close_matches(ours, known, n=1)
            hint = f" (did you mean '{close[0]}'?)" if close else ""
            raise LabError(f"columns: '{ours}' is none of our names {names(known)}{hint}; write our name: their name")
        if not isinstance(theirs, str):
            raise LabError(f"columns: '{ours}' is mapped to {kind(theirs)}; give the name of a column as text")
    return dict(columns or {})


def places(theirs: str) -> list[str]:
    """The places that a right side names, in order. Errors: `LabError` for braces that do not match."""
    if "{" not in theirs and "}" not in theirs:
        return [theirs]
    try:
        found = [part[1:] for part in Formatter().parse(theirs) if part[1] is not None]
    except ValueError as error:
        raise LabError(f"columns: {theirs!r} is no text with columns in braces ({error}); {{{{ is a brace") from None
    if not found or any(not name or form or change for name, form, change in found):
        raise LabError(f"columns: {theirs!r} is no text with columns in braces, such as 'Q: {{question}}'")
    return [name for name, _, _ in found]


def root(place: str, available: list[str]) -> str:
    """The column that a place lies in."""
    return place if place in available else place.partition(".")[0]


def renamed(row: Row, columns: Mapping[str, str]) -> Row:
    """The row under our names; other columns keep theirs unless a mapped one takes it.

    Errors: `RowProblem` where a place inside of a column is not there, or no text is where text is put in.
    """
    taken = {*columns, *columns.values()}
    rest = {name: value for name, value in row.items() if name not in taken}
    ours = {ours: _read(row, theirs, ours) for ours, theirs in columns.items() if _has(row, theirs)}
    return {**ours, **rest}


def _has(row: Row, theirs: str) -> bool:
    """Whether there is something to read: a column that a row lacks is left to who needs it."""
    return "{" in theirs or root(theirs, list(row)) in row


def _read(row: Row, theirs: str, ours: str) -> Any:
    if theirs in row or "{" not in theirs:
        return _at(row, theirs, ours)
    parts = []
    for text, place, _, _ in Formatter().parse(theirs):
        parts.append(text)
        if place is not None:
            value = _at(row, place, ours)
            if not isinstance(value, str | int | float) or isinstance(value, bool):
                raise RowProblem(f"'{place}' is {kind(value)} where text is expected", ours)
            parts.append(str(value))
    return "".join(parts)


def _at(row: Row, place: str, ours: str) -> Any:
    return row[place] if place in row else _inside(row, place.split("."), place, ours)


def _inside(value: Any, path: list[str], place: str, ours: str) -> Any:
    """What stands at the end of a path; of a list that is met on it, what stands there in each item."""
    if not path:
        return value
    if isinstance(value, list):
        return [_inside(item, path, place, ours) for item in value]
    if not isinstance(value, dict) or path[0] not in value:
        raise RowProblem(f"'{place}' is missing", ours)
    return _inside(value[path[0]], path[1:], place, ours)
