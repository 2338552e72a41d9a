"""Verdicts that were recorded elsewhere, read into the same two tables as live ones.

The file has one row per verdict, or one row per pair with the verdicts of both orders, or of several judges, side by
side; or there is a file for each order. A map of columns says which of them is which of ours. What cannot be read as a
verdict stays in the table as invalid, verbatim.
"""

import csv
import gzip
import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from pydantic import field_validator

from rlhf_lab.config import Config
from rlhf_lab.errors import LabError
from rlhf_lab.judges.readers.columns import (
    ANSWER,
    WORDS,
    check_verdicts,
    human_labels,
    majority_label,
    our_columns,
    read_rows,
    translate,
)
from rlhf_lab.judges.readers.orders import in_step
from rlhf_lab.judges.table import COST_COLUMNS, PAIR_COLUMNS, VERDICT_COLUMNS, exchange, make_pairs, verdict_table

Columns = str | Sequence[str]


class Replay(NamedTuple):
    verdicts: pd.DataFrame
    pairs: pd.DataFrame


class ReplayConfig(Config):
    """Where recorded verdicts are and how to read them: the arguments of `read_verdicts`."""

    path: str  # .csv, .json or .jsonl, these also with .gz, or .parquet
    swapped: str = ""  # a second file of the same pairs, judged in the other order; "" = none
    columns: dict[str, str | list[str]] = {}  # our column name -> theirs, or several to join
    labels: dict[str, str] = {}  # their word for a verdict -> a, b or tie; of what is shown: first, second or tie
    gold_labels: dict[str, str] = {}  # the same for gold and humans; {} = labels
    annotators: dict[str, str | list[str]] = {}  # judges side by side: name -> its column, or two, of orders 0 and 1
    humans: list[str] = []  # columns of human labels; their mean vote is gold unless a column is
    judge: str = "judge"  # the judge's name, where no column has it
    keep: list[str] = []  # further columns, for the table of pairs

    @field_validator("labels", "gold_labels", mode="before")
    @classmethod
    def _words_are_text(cls, value: Any) -> Any:
        """YAML reads a label such as 1 or yes as a number or a switch."""
        return {str(word): meaning for word, meaning in value.items()} if isinstance(value, Mapping) else value

    @field_validator("annotators", mode="before")
    @classmethod
    def _by_their_column(cls, value: Any) -> Any:
        """A list of columns: each judge is called as its column."""
        return {str(name): name for name in value} if isinstance(value, list | tuple) else value


def read_verdicts(
    path: str | Path,
    *,
    swapped: str | Path = "",
    columns: Mapping[str, Columns] | None = None,
    labels: Mapping[Any, str] | None = None,
    gold_labels: Mapping[Any, str] | None = None,
    annotators: Mapping[str, Columns] | Sequence[str] = (),
    humans: Sequence[str] = (),
    judge: str = "judge",
    keep: Sequence[str] = (),
) -> Replay:
    """Read recorded verdicts and their pairs from .csv, .json, .jsonl (these also with .gz) or .parquet.

    swapped      a second file of the same form and pairs, judged in the other order. If it lists the replies
                 exchanged, its words and numbers are about them as listed; without texts they are about the replies
                 as the first file names them
    columns      our name -> the file's column, or several to join by " / ", as for a judge named by its
                 model and its prompt. Ours are VERDICT_COLUMNS, COST_COLUMNS (of one verdict a row) and
                 PAIR_COLUMNS. With both orders in one row, `verdict_0` and `verdict_1` are the verdicts of orders 0
                 and 1, and likewise shown_verdict, raw_text, score_a, score_b, p_a and reason. A column that has our
                 name needs no entry. Without a verdict the higher score is one, or p_a above 1/2
    labels       the file's word or number for a verdict -> "a", "b" or "tie"; for shown_verdict "first", "second"
                 or "tie". Our own words need no entry; case and outer blanks do not matter. Any other word is
                 an invalid verdict
    gold_labels  the same for gold and humans; if empty, `labels` serve
    annotators   several judges side by side: name -> its column of verdicts, or two, of orders 0 and 1; or a list
                 of columns, whose names are the judges'
    humans       columns of human labels. The table of pairs keeps them; their mean vote is gold unless a column is
    judge        the judge's name, where no column has it
    keep         further columns of the file that the table of pairs should have

    Without a pair_id each row is a pair of its own. Without the replies, lengths are what columns say.
    Errors: LabError in one line that names the file, the row (as the file counts it) and the column.
    """
    if not isinstance(annotators, Mapping):
        annotators = {name: name for name in annotators}
    form = _Form(
        dict(columns or {}),
        {str(word): meaning for word, meaning in (labels or {}).items()},
        {str(word): meaning for word, meaning in (gold_labels or labels or {}).items()},
        {name: [theirs] if isinstance(theirs, str) else list(theirs) for name, theirs in annotators.items()},
        list(humans),
        judge,
        list(keep),
    )
    if not swapped:
        return _read_file(Path(path), form, None)
    first, second = (_read_file(Path(file), form, 0) for file in (path, swapped))
    files = (str(path), str(swapped))
    return Replay(*in_step(first, second, lambda: _read_file(Path(swapped), form, 1), files=files))


def write_verdicts(verdicts: pd.DataFrame, pairs: pd.DataFrame, path: str | Path) -> None:
    """Write both tables into one .csv or .jsonl file, also with .gz, that `read_verdicts(path)` reads back.

    Pairs without a verdict are not in it. Name further columns to `read_verdicts` in `keep`.
    """
    path, text = Path(path), io.StringIO(newline="")
    unrecorded = [name for name in pairs if pairs[name].isna().all()]
    about = pairs.drop(columns=list({"prompt", *unrecorded}))
    told = verdicts.drop(columns=["valid", *(["prompt"] if "prompt" in unrecorded else [])])
    table = told.merge(about, on="pair_id", how="left")
    rows = [{name: None if pd.isna(cell) else cell for name, cell in row.items()} for row in table.to_dict("records")]
    kind = Path(path.stem).suffix if path.suffix == ".gz" else path.suffix
    if kind == ".csv":
        writer = csv.DictWriter(text, list(table), quoting=csv.QUOTE_ALL)
        writer.writeheader()
        writer.writerows(rows)
    elif kind == ".jsonl":
        text.writelines(json.dumps(row) + "\n" for row in rows)
    else:
        raise LabError(f"{path}: verdicts are written as .csv or .jsonl, or .gz after it")
    data = text.getvalue().encode()
    path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)


class _Form(NamedTuple):
    """How to read a file: the arguments of `read_verdicts`, filled in."""

    columns: dict[str, Columns]
    labels: dict[str, str]
    gold_labels: dict[str, str]
    annotators: dict[str, list[str]]
    humans: list[str]
    judge: str
    keep: list[str]


def _read_file(path: Path, form: _Form, order: int | None) -> Replay:
    """One file. order: of verdicts that are of no order by themselves."""
    places, rows = read_rows(path)
    for name, theirs in form.annotators.items():
        if len(theirs) > 2:
            raise LabError(f"annotators: '{name}' has {len(theirs)} columns; give one, or two for orders 0 and 1")
    further = [*form.humans, *form.keep, *(column for theirs in form.annotators.values() for column in theirs)]
    ours = our_columns(rows, form.columns, dict.fromkeys(further), str(path))
    if not form.annotators:
        check_verdicts(ours, order=order, source=str(path), theirs=rows[0])
    if "pair_id" not in ours:
        ours["pair_id"] = [str(number) for number in range(len(ours))]
    if "judge" not in ours:
        ours["judge"] = form.judge
    return Replay(_verdicts(ours, form, places, order), _pairs(ours, form, places))


def _verdicts(ours: pd.DataFrame, form: _Form, places: list[str], order: int | None) -> pd.DataFrame:
    """The verdict table of rows that hold one verdict each, or several: of two orders, of several judges."""
    asked = [name for name in ours if name in (*VERDICT_COLUMNS, *COST_COLUMNS)]
    about = ours[[name for name in asked if name not in (*ANSWER, *COST_COLUMNS)]]  # what cost how much is not known
    parts = []
    for number in (0, 1):
        here = {f"{name}_{number}": name for name in ANSWER if f"{name}_{number}" in ours}
        if {*WORDS, "score_a", "p_a"} & set(here.values()):
            parts.append(about.join(ours[list(here)].rename(columns=here)).assign(order=number))
    kind = "shown_verdict" if {"first", "second"} & set(form.labels.values()) else "verdict"
    for name, theirs in form.annotators.items():
        for number, column in enumerate(theirs):
            part = about.assign(judge=name).assign(**{kind: ours[column]})
            known = number if len(theirs) > 1 else order or 0
            parts.append(part if "order" in part and len(theirs) == 1 else part.assign(order=known))
    parts = parts or [ours[asked] if "order" in asked else ours[asked].assign(order=order)]
    said = {str(word) for part in parts for name in WORDS if name in part for word in part[name] if word}
    verdicts = pd.concat([_told(part.copy(), ours, form.labels, places) for part in parts], ignore_index=True)
    if said and not verdicts["valid"].any():
        seen = ", ".join(repr(word[:40]) for word in sorted(said)[:5])
        raise LabError(f"{places[0]}: no verdict from here on is understood ({seen}); say in labels what they mean")
    return verdicts


def _told(part: pd.DataFrame, ours: pd.DataFrame, labels: dict[str, str], places: list[str]) -> pd.DataFrame:
    """The verdict table of rows of one verdict each, with the words translated and kept as raw text."""
    words = [name for name in WORDS if name in part]
    for column in words:
        verbatim = [word or "" for word in part[column]]
        part[column] = pd.Series(translate(verbatim, labels, WORDS[column], column), index=part.index, dtype=object)
        if "raw_text" not in part:
            part["raw_text"] = verbatim
        if "reason" not in part:
            part["reason"] = [f"unknown verdict {word[:60]!r}" if word else "no verdict" for word in verbatim]
    if not words:
        part["verdict"] = _implied(part)
    if "first" not in part and {"reply_a", "reply_b"} <= set(ours):
        order = pd.to_numeric(part["order"], errors="coerce")
        part["first"], part["second"] = exchange(ours["reply_a"], ours["reply_b"], order)
    return verdict_table(part, source=places)


def _implied(part: pd.DataFrame) -> pd.Series:
    """The verdicts that scores, or else probabilities, imply; None where they are no numbers."""
    read = {name: pd.to_numeric(part[name], errors="coerce") for name in ("score_a", "score_b", "p_a") if name in part}
    if {"score_a", "score_b"} <= set(read):
        lead = read["score_a"] - read["score_b"]
    else:
        lead = read.get("p_a", pd.Series(np.nan, index=part.index)) - 0.5
    words = np.select([lead > 0, lead < 0, lead == 0], ["a", "b", "tie"], default="").tolist()
    return pd.Series([word or None for word in words], index=part.index, dtype=object)


def _pairs(ours: pd.DataFrame, form: _Form, places: list[str]) -> pd.DataFrame:
    """The table of pairs, one row of each pair, after checking that its rows agree."""
    names = [name for name in ours if name in PAIR_COLUMNS or name in form.keep or name in form.humans]
    about = ours[names].copy()
    labelled = [*(["gold"] if "gold" in about else []), *form.humans]
    if labelled:
        about[labelled] = human_labels(ours, labelled, form.gold_labels, places)
    if form.humans and "gold" not in about:
        about["gold"] = pd.Series(majority_label(about[form.humans]), index=about.index, dtype=object)
    of_pair = about["pair_id"].map(about.reset_index().groupby("pair_id")["index"].first())
    for name in [name for name in names if name != "prompt"]:  # some record the judge's whole prompt as that
        here, before = about[name], about[name].loc[of_pair].set_axis(about.index)
        differs = ((here != before) & ~(here.isna() & before.isna())).to_numpy()
        if differs.any():
            row = int(differs.argmax())
            pair = about["pair_id"][row]
            other = f"but {before[row]!r} in an earlier row of pair '{pair}'"
            raise LabError(f"{places[row]}: column '{name}' is {here[row]!r}, {other}")
    unique = ~about["pair_id"].duplicated()
    return make_pairs(about[unique], source=[places[row] for row in about.index[unique]])
