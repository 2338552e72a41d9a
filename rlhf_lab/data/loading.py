"""Data sets of the five kinds from files, directories and the hub, checked before anything is returned."""

from collections.abc import Mapping
from pathlib import Path
from typing import Literal

import pyarrow
from datasets import Dataset

from rlhf_lab.data import formats
from rlhf_lab.data.cells import give_types, with_lists
from rlhf_lab.data.columns import check_columns, check_map, renamed
from rlhf_lab.data.reading import PLAIN, SUFFIXES, open_source
from rlhf_lab.data.validation import (
    Place,
    Problems,
    Row,
    RowProblem,
    kind,
    names,
    one_line,
)
from rlhf_lab.errors import LabError

OnBad = Literal["raise", "drop"]
Given = str | Path | Dataset


def load_prompts(
    source: Given,
    *,
    columns: Mapping[str, str] | None = None,
    split: str = "train",
    limit: int | None = None,
    on_bad: OnBad = "raise",
) -> Dataset:
    """Prompts: column `prompt`, and the source's other columns as they are.

    Also reads `messages` (what comes before the last assistant turn) and preferences without a prompt.

    source   a .jsonl, .json, .csv or .parquet file (.gz after it for the text ones), a directory of such
             files or one written by `save_to_disk`, a hub id ("owner/name" or "owner/name:configuration"),
             or a `datasets.Dataset`; "[split]", "[:rows]" or "[split:rows]" behind it: that split, its first rows
    columns  our name -> the source's name, for columns that are called otherwise, or a place inside of one
             ("answers.rank"), or a text with such places in braces
    split    which split of a hub data set or directory; a single file is one split, whatever this says
    limit    at most so many rows, the first good ones; what comes after is neither read nor checked
    on_bad   "raise": a row that cannot be used is an error; "drop": it is left out, and a line says how many

    Errors: `LabError` in one line that names file, row (by line in JSON Lines and CSV) and column.
    """
    return _load("prompts", source, columns, split, limit, on_bad)


def load_demonstrations(
    source: Given,
    *,
    columns: Mapping[str, str] | None = None,
    split: str = "train",
    limit: int | None = None,
    on_bad: OnBad = "raise",
) -> Dataset:
    """Demonstrations: columns `prompt` and `completion`, from these or from `messages`.

    Of preferences and rankings the best reply is the completion. Arguments and errors as in `load_prompts`.
    """
    return _load("demonstrations", source, columns, split, limit, on_bad)


def load_preferences(
    source: Given,
    *,
    columns: Mapping[str, str] | None = None,
    split: str = "train",
    limit: int | None = None,
    on_bad: OnBad = "raise",
) -> Dataset:
    """Preferences: columns `prompt`, `chosen`, `rejected`; or whole dialogues, which are split.

    Columns `margin` (a number) and `source` (text) are kept where there are any.
    Arguments and errors as in `load_prompts`.
    """
    return _load("preferences", source, columns, split, limit, on_bad)


def load_rankings(
    source: Given,
    *,
    columns: Mapping[str, str] | None = None,
    split: str = "train",
    limit: int | None = None,
    on_bad: OnBad = "raise",
) -> Dataset:
    """Rankings: columns `prompt`, `completions` (list), `ranks` (list: 0 is the best, equal ranks are a tie).

    Ranks that begin at 1 are lowered by 1. Instead of ranks there may be `choice`, the number of the best, from 0.
    Columns `finished` (list of true/false: the completion ended by EOS), `margin` (a number) and `source` (text) are
    kept where there are any.
    In CSV the lists are written as JSON. Arguments and errors as in `load_prompts`.
    """
    return _load("rankings", source, columns, split, limit, on_bad)


def load_ratings(
    source: Given,
    *,
    columns: Mapping[str, str] | None = None,
    split: str = "train",
    limit: int | None = None,
    on_bad: OnBad = "raise",
) -> Dataset:
    """Rated replies: columns `prompt`, `completion`, `rating` (a finite number); or `messages` and `rating`.

    A column `finished` (true/false: the completion ended by EOS) is kept where there is one.
    Arguments and errors as in `load_prompts`.
    """
    return _load("ratings", source, columns, split, limit, on_bad)


def load_texts(
    source: Given,
    *,
    columns: Mapping[str, str] | None = None,
    split: str = "train",
    limit: int | None = None,
    on_bad: OnBad = "raise",
) -> Dataset:
    """Texts to pretrain on: column `text`. Also reads .txt and .md files, each of which is one text.

    Arguments and errors as in `load_prompts`.
    """
    return _load("texts", source, columns, split, limit, on_bad)


def _load(
    what: str,
    source: Given,
    columns: Mapping[str, str] | None,
    split: str,
    limit: int | None,
    on_bad: str,
) -> Dataset:
    columns = check_map(columns, formats.our_names(what))
    if on_bad not in ("raise", "drop"):
        raise LabError(f"on_bad is {on_bad!r}; give 'raise' or 'drop'")
    if limit is not None and (isinstance(limit, bool) or not isinstance(limit, int) or limit < 1):
        raise LabError(f"limit is {limit!r}; give a whole number from 1, or None for all rows")
    parts = open_source(source, split, SUFFIXES + PLAIN if what == "texts" else SUFFIXES)
    rows, places, problems = _rows(what, parts, columns, limit)
    name = str(source) if isinstance(source, str | Path) else parts[0].name
    if problems and on_bad == "raise":
        raise problems.error()
    if problems:
        print(problems.summary(len(rows) + len(problems)))
    if not rows:
        left = "no row is left" if problems else "no rows"
        raise LabError(f"{name}: {left}; give a data set with {what} in it")
    kept = {name for row in rows for name in row} - {"prompt"} if what == "prompts" else set()
    if any(part.is_csv for part in parts):
        give_types(rows, kept)
    return _table(rows, places, kept)


def _rows(what: str, parts: list, columns: dict, limit: int | None) -> tuple[list[Row], list[Place], Problems]:
    """The rows of the kind asked for, where each came from, and what could not be used."""
    convert = formats.CONVERT[what]
    rows, places, problems = [], [], Problems(columns)
    for part in parts:
        seen = False
        for number, row in part.rows:
            place = Place(part.name, part.unit, number)
            try:
                if isinstance(row, RowProblem):
                    raise row
                if not seen:
                    check_columns(formats.FORMATS[what], list(row), columns, part.name)
                    seen = True
                row = renamed(row, columns)
                row = convert(with_lists(row, formats.our_names(what)) if part.is_csv else row)
                if rows and type(row.get("prompt")) is not type(rows[0].get("prompt")):
                    sort = "text" if isinstance(row["prompt"], str) else "messages"
                    raise RowProblem(f"is {sort}, unlike the rows before", "prompt")
            except RowProblem as problem:
                problems.add(place, problem)
                continue
            rows.append(row)
            places.append(place)
            if len(rows) == limit:
                return rows, places, problems
    return rows, places, problems


def _table(rows: list[Row], places: list[Place], kept: set[str]) -> Dataset:
    """The rows as a data set; a column that some rows lack is null there. `kept` are not checked yet."""
    table = {name: [row.get(name) for row in rows] for name in dict.fromkeys(n for row in rows for n in row)}
    for name in sorted(kept):
        try:
            pyarrow.array(table[name])
        except (ValueError, TypeError, OverflowError, pyarrow.ArrowException) as error:
            raise _unlike(name, table[name], places, error) from None
    try:
        return Dataset.from_dict(table)
    except (ValueError, TypeError, OverflowError, pyarrow.ArrowException) as error:  # a column's name, mostly
        raise LabError(f"{places[0].file}: cannot be a table: {one_line(error)}; mend it") from None


def _unlike(name: str, values: list, places: list[Place], error: Exception) -> LabError:
    """The first row whose value cannot stand in a column with the rows before it."""
    sorts = [kind(value) for value in values]
    first = next(sort for sort in sorts if sort != "null")
    for place, sort in zip(places, sorts, strict=True):
        if sort not in (first, "null"):
            return LabError(f"{place}, column {names([name])}: is {sort} where the rows before have {first}; mend it")
    return LabError(f"{places[0].file}, column {names([name])}: cannot be a column: {one_line(error)}; mend it")
