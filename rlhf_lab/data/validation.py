"""What a cell of a data set may hold, and how what it may not hold is told.

A check returns the value it was given, or raises `RowProblem`. The loader knows the file and the row, gathers
the problems in `Problems`, and turns them into one line.
"""

import math
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from rlhf_lab.errors import LabError

Row = dict[str, Any]
Message = dict[str, str]

SHOWN = 10  # rows named in one error; the rest are counted


class Place(NamedTuple):
    """Where a row came from: file, "line" or "row", and its number from 1."""

    file: str
    unit: str
    number: int

    def __str__(self) -> str:
        return f"{self.file}, {self.unit} {self.number}"


class RowProblem(Exception):
    """One row that cannot be used: what is wrong, and in which columns (our names); none where no row could be read.

    `detail` is told of the first row only: rows of the same `what` are counted together.
    """

    def __init__(self, what: str, *columns: str, detail: str = ""):
        super().__init__(what + detail)
        self.what = what
        self.columns = columns
        self.detail = detail


def one_line(text: object, limit: int = 200) -> str:
    """The text on one line, cut to `limit` characters."""
    line = " ".join(str(text).split())
    return line if len(line) <= limit else line[: limit - 3] + "..."


def names(columns: Iterable[str]) -> str:
    """Column names as an error shows them: 'a', 'b'."""
    return ", ".join(f"'{column}'" for column in columns)


def kind(value: Any) -> str:
    """What a value is, in the reader's words rather than Python's."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "true/false"
    if isinstance(value, int | float):
        return "a number"
    return {str: "text", list: "a list", dict: "an object"}.get(type(value), type(value).__name__)


def cell(row: Row, column: str) -> Any:
    """The value of a column that must be there."""
    if column not in row:
        raise RowProblem("is missing", column)
    return row[column]


def text(value: Any, column: str, what: str = "is") -> str:
    """A string that can be written as UTF-8. `what` begins the complaint: "is", "item 2 is"."""
    if not isinstance(value, str):
        raise RowProblem(f"{what} {kind(value)} where text is expected", column)
    try:
        value.encode()
    except UnicodeEncodeError:
        raise RowProblem("holds a broken character (half of a surrogate pair)", column) from None
    return value


def messages(value: Any, column: str) -> list[Message]:
    """A list of {"role", "content"} with text in both; other keys of a message are left out."""
    if not isinstance(value, list):
        raise RowProblem(f"is {kind(value)} where a list of messages is expected", column)
    clean = []
    for message in value:
        if not isinstance(message, dict) or not {"role", "content"} <= message.keys():
            raise RowProblem("holds a message that is not an object with 'role' and 'content'", column)
        role = text(message["role"], column, "holds a message whose role is")
        content = text(message["content"], column, "holds a message whose content is")
        clean.append({"role": role, "content": content})
    return clean


def prompt(value: Any, column: str = "prompt") -> str | list[Message]:
    """Text, or messages of which the last is not the assistant's; neither may be empty."""
    if not isinstance(value, list):
        if not text(value, column).strip():
            raise RowProblem("is empty", column)
        return value
    value = messages(value, column)
    if not value or not value[-1]["content"].strip():
        raise RowProblem("is empty", column)
    if value[-1]["role"] == "assistant":
        raise RowProblem("ends with an assistant message, which belongs to the reply", column)
    return value


def reply(value: Any, column: str, like: str | list[Message], what: str = "is") -> str | list[Message]:
    """The answer to the prompt `like` and of its sort: text, or messages that are all the assistant's.

    A text may be empty (real data has replies of no words); a list of messages may not.
    """
    if isinstance(like, str):
        return text(value, column, what)
    value = messages(value, column)
    strangers = [message["role"] for message in value if message["role"] != "assistant"]
    if not value or strangers:
        held = f"a message by '{one_line(strangers[0], 20)}'" if strangers else "no message"
        raise RowProblem(f"holds {held} where only the assistant's are expected", column)
    return value


def ranks(value: Any, count: int, column: str = "ranks") -> list[int]:
    """One whole number per completion, 0 for the best; the best may also be 1."""
    if not isinstance(value, list):
        raise RowProblem(f"is {kind(value)} where a list of whole numbers is expected (in CSV as JSON)", column)
    if len(value) != count:
        raise RowProblem(f"has {len(value)} entries for {count} completions", column)
    if any(isinstance(rank, bool) or not isinstance(rank, int | float) or rank % 1 for rank in value):
        raise RowProblem("holds something other than whole numbers", column)
    if min(value) not in (0, 1):
        raise RowProblem("starts at another number than 0 or 1, which is the best completion's rank", column)
    return [int(rank - min(value)) for rank in value]


def choice(value: Any, count: int, column: str = "choice") -> int:
    """The number of the best of `count` completions, from 0; in CSV it is written as text."""
    if isinstance(value, str) and value.isdecimal():
        value = int(value)
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < count:
        raise RowProblem(f"is not the number of one of the {count} completions, from 0", column)
    return value


def flags(value: Any, count: int, column: str = "finished") -> list[bool]:
    """One true/false per completion."""
    if not isinstance(value, list) or any(not isinstance(one, bool) for one in value):
        raise RowProblem("is not a list of true/false (in CSV as JSON)", column)
    if len(value) != count:
        raise RowProblem(f"has {len(value)} entries for {count} completions", column)
    return value


def number(value: Any, column: str) -> float:
    """A finite number; in CSV it is written as text."""
    try:
        found = math.nan if isinstance(value, bool) else float(value)
    except (TypeError, ValueError, OverflowError):
        found = math.nan
    if not math.isfinite(found):
        raise RowProblem(f"is {kind(value)} where a finite number is expected", column, detail=f", not {value!r:.40}")
    return found


class Problems:
    """The rows of one data set that cannot be used, raised or dropped together at the end."""

    def __init__(self, columns: Mapping[str, str]):
        # The reader looks in the file, so columns are told by the file's names; a text made of several by ours.
        self._theirs = {ours: theirs for ours, theirs in columns.items() if "{" not in theirs}
        self._found: list[tuple[Place, str]] = []
        self._detail = ""  # of the first

    def __len__(self) -> int:
        return len(self._found)

    def add(self, place: Place, problem: RowProblem) -> None:
        columns = [self._theirs.get(column, column) for column in problem.columns]
        label = {0: "", 1: f"column {names(columns)}: "}.get(len(columns), f"columns {names(columns)}: ")
        if not self._found:
            self._detail = problem.detail
        self._found.append((place, label + problem.what))

    def error(self) -> LabError:
        """The first problem, and the rows that share it."""
        first, what = self._found[0]
        same = [place for place, other in self._found if other == what]
        line = f"{first}, {what}" if what.startswith("column") else f"{first}: {what}{self._detail}"
        if len(same) > 1:
            line += f"; {len(same)} such rows: {_numbers(same, first.file)}"
        if others := len(self._found) - len(same):
            line += f"; rows with other problems: {others}"
        return LabError(f"{line}; mend the file, or leave such rows out with on_bad='drop'")

    def summary(self, read: int) -> str:
        """The line printed when the rows are dropped; `read` counts the rows looked at."""
        reasons: dict[str, list[Place]] = {}
        for place, what in self._found:
            reasons.setdefault(what, []).append(place)
        told = "; ".join(f"{what} ({_named(places)})" for what, places in reasons.items())
        return f"dropped {len(self)} of {read} rows: {told}"


def _named(places: list[Place]) -> str:
    first = f"{len(places)}, first at {places[0]}"
    return first if len(places) == 1 else f"{first}, then {_numbers(places[1:], places[0].file)}"


def _numbers(places: list[Place], file: str) -> str:
    shown = [str(p.number) if p.file == file else f"{p.file}:{p.number}" for p in places[:SHOWN]]
    rest = len(places) - len(shown)
    return ", ".join(shown) + (f" and {rest} more" if rest else "")
