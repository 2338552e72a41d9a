"""Where rows come from: a file, a directory of files, a data set in memory, or the hub.

Everything here reads row by row and only reads. A row is a dict with the source's own column names, or the
`RowProblem` of a line that is none; its number is the line it starts on in JSON Lines and CSV, and its count
from 1 elsewhere.
"""

import csv
import gzip
import itertools
import json
import logging
import re
import sys
import zlib
from codecs import BOM_UTF8
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TextIO

import datasets
import pyarrow
import pyarrow.parquet

from rlhf_lab.data.validation import Row, RowProblem, names, one_line
from rlhf_lab.errors import LabError

SUFFIXES = (".jsonl", ".json", ".csv", ".parquet")
PLAIN = (".txt", ".md")  # only where a text is wanted: such a file is one
SPLITS = ("train", "test", "validation", "valid", "val", "dev", "eval", "heldout")
Rows = Iterator[tuple[int, Row | RowProblem]]
HUB_ID = re.compile(r"\w[\w.-]*(/\w[\w.-]*)?(:[\w.-]+)?")  # owner/name:configuration
PART = re.compile(r"(.+)\[([\w.-]*)(?::([1-9]\d*))?\]")  # source[split], source[:rows], source[split:rows]


class Source(NamedTuple):
    """A run of rows: its name, what its rows are counted as, the rows, and whether all cells are text."""

    name: str
    unit: str
    rows: Rows
    is_csv: bool = False

    def good_rows(self) -> Iterator[tuple[int, Row]]:
        """The rows, none of which may be broken. Errors: `LabError` naming the first that is."""
        for number, row in self.rows:
            if isinstance(row, RowProblem):
                raise LabError(f"{self.name}, {self.unit} {number}: {row}; mend or delete it")
            yield number, row


def open_source(source: str | Path | datasets.Dataset, split: str, suffixes: Sequence[str] = SUFFIXES) -> list[Source]:
    """The files behind a path, or the one data set behind anything else. Errors: `LabError`."""
    if isinstance(source, datasets.Dataset):
        return [Source("the given data set", "row", enumerate(source, 1))]
    if not isinstance(source, str | Path) or not str(source).strip():
        raise LabError(f"the data source is {source!r}; give a file, a directory, a hub id or a Dataset")
    path = _expanded(source)
    if isinstance(source, str) and not path.exists() and (part := PART.fullmatch(source)):
        found = open_source(part[1], part[2] or split, suffixes)
        return _first_rows(found, int(part[3])) if part[3] else found
    if path.is_dir():
        if (path / "state.json").is_file() or (path / "dataset_dict.json").is_file():
            return [_saved(path, split)]
        return [_file(file, suffixes) for file in _files(path, split, suffixes)]
    if path.exists():
        return [_file(path, suffixes)]
    if isinstance(source, Path) or file_type(path, suffixes) or not HUB_ID.fullmatch(source):
        raise LabError(f"{source}: no such file or directory; check the path, relative to {Path.cwd()}")
    return [_hub(source, split)]


def _expanded(source: str | Path) -> Path:
    try:
        return Path(source).expanduser()
    except RuntimeError:  # "~name" of nobody here
        return Path(source)


def _first_rows(parts: list[Source], count: int) -> list[Source]:
    """The same sources, which give no more than `count` rows in all."""
    left = itertools.count(count, -1)

    def rows(part: Source) -> Rows:
        for numbered in part.rows:
            if next(left) <= 0:
                return
            yield numbered

    return [part._replace(rows=rows(part)) for part in parts]


def column_names(source: str | Path | datasets.Dataset, split: str = "train") -> list[str]:
    """The source's own names of the first whole row's columns. Errors: `LabError` as in loading."""
    for part in open_source(source, split):
        for _, row in part.rows:
            if not isinstance(row, RowProblem):
                return list(row)
    return []


def file_type(path: Path, suffixes: Sequence[str] = SUFFIXES) -> str:
    """The suffix that says how to read a file, without .gz; empty for one that cannot be read."""
    suffix = Path(path.stem).suffix if path.suffix == ".gz" else path.suffix
    return suffix.lower() if suffix.lower() in suffixes else ""


def _files(folder: Path, split: str, suffixes: Sequence[str]) -> list[Path]:
    """The data files of a folder, by name. Files named after splits are told apart by `split`."""
    files = sorted(file for file in folder.iterdir() if file.is_file() and file_type(file, suffixes))
    if not files:
        raise LabError(f"{folder}: no file in this directory ends in {', '.join(suffixes)}; give one that has some")
    if len(types := {file_type(file, suffixes) for file in files}) > 1:
        raise LabError(f"{folder}: holds files of several types ({', '.join(sorted(types))}); name one file instead")
    chosen = [file for file in files if _is_of(file, split)]
    if chosen:
        return chosen
    if split == "train" and not any(_is_of(file, other) for file in files for other in SPLITS):
        return files
    listed = names(file.name for file in files[:10])
    raise LabError(f"{folder}: no file of split '{split}'; its files are {listed}; give split= or one file")


def _is_of(file: Path, split: str) -> bool:
    return re.match(rf"{re.escape(split)}([-_.]|$)", file.name) is not None


def _file(path: Path, suffixes: Sequence[str]) -> Source:
    readers = {".jsonl": _json_rows, ".json": _json_rows, ".csv": _csv_rows, ".parquet": _parquet_rows}
    kind = file_type(path, suffixes)
    if not kind:
        raise LabError(f"{path}: unknown file type '{path.suffix}'; give {', '.join(suffixes)}, or .gz after it")
    unit = "line" if kind in (".jsonl", ".csv") else "row"
    return Source(str(path), unit, _guarded(readers.get(kind, _plain_row)(path), path), kind == ".csv")


def _guarded(rows: Rows, path: Path) -> Rows:
    try:
        yield from rows
    except UnicodeDecodeError:
        raise LabError(f"{path}, line {_undecodable(path)}: not UTF-8; save the file as UTF-8") from None
    except (OSError, EOFError, zlib.error, pyarrow.ArrowException) as error:
        raise LabError(f"{path}: cannot be read: {one_line(error)}; check the file") from None


def _undecodable(path: Path) -> int:
    """The first line that is not UTF-8."""
    with _opener(path)(path, "rb") as file:
        for number, line in enumerate(file, 1):
            try:
                line.decode()
            except UnicodeDecodeError:
                return number
    return 1


def _opener(path: Path) -> Callable:
    return gzip.open if path.suffix == ".gz" else open


def _opened(path: Path, newline: str | None = None) -> TextIO:
    """The file as text; a byte order mark is left out."""
    return _opener(path)(path, "rt", encoding="utf-8-sig", newline=newline)


def _json_rows(path: Path) -> Rows:
    """JSON Lines, or one JSON list of objects: a .json file may hold either."""
    with _opener(path)(path, "rb") as file:  # as bytes: one line that is no UTF-8 spoils no other
        listed = file_type(path) == ".json" and file.read(4096).removeprefix(BOM_UTF8).lstrip().startswith(b"[")
        file.seek(0)
        if listed:
            for number, value in enumerate(_json_list(path, file.read()), 1):
                yield number, _row(value)
            return
        for number, line in enumerate(file, 1):
            if number == 1:
                line = line.removeprefix(BOM_UTF8)
            if line.strip():
                yield number, _json_line(line)


def _json_list(path: Path, content: bytes) -> list:
    try:
        return _json(content)
    except RowProblem as problem:  # it runs through the whole file
        raise LabError(f"{path}: {problem}; mend the file") from None


def _json_line(line: bytes) -> Row | RowProblem:
    try:
        return _row(_json(line.rstrip()))
    except RowProblem as problem:
        return problem


def _json(content: bytes) -> Any:
    try:
        return json.loads(content.decode("utf-8-sig"))
    except UnicodeDecodeError:
        raise RowProblem("not UTF-8; save the file as UTF-8") from None
    except json.JSONDecodeError as error:
        at = f"line {error.lineno}, character {error.colno}" if error.lineno > 1 else f"character {error.colno}"
        raise RowProblem("broken JSON", detail=f" at {at} ({error.msg})") from None
    except (ValueError, RecursionError):
        raise RowProblem("JSON beyond reason: a number of thousands of digits, or lists a thousand deep") from None


def _row(value: Any) -> Row | RowProblem:
    return value if isinstance(value, dict) else RowProblem('not a JSON object like {"column": value, ...}')


def _csv_rows(path: Path) -> Rows:
    """Rows of text cells. A cell may run over several lines: the number is that of the first."""
    csv.field_size_limit(min(sys.maxsize, 2**31 - 1))  # Python's own limit is shorter than a long dialogue
    with _opened(path, newline="") as file:
        reader = csv.reader(file, strict=True)
        header, line = None, 1
        try:
            for cells in reader:
                if header is None and cells:
                    header = cells
                    if len(set(header)) < len(header):
                        raise LabError(f"{path}, line {line}: two columns have the same name; rename one")
                elif cells:
                    yield line, _csv_row(header, cells)
                line = reader.line_num + 1
        except csv.Error as error:
            raise LabError(f"{path}, line {line}: broken CSV ({error}); mend the quotes") from None


def _csv_row(header: list[str], cells: list[str]) -> Row | RowProblem:
    if len(cells) == len(header):
        return dict(zip(header, cells, strict=True))
    counts = f"{len(cells)} cells under a header of {len(header)}"
    return RowProblem(f"{counts}; quote cells that hold commas or line breaks")


def _plain_row(path: Path) -> Rows:
    with _opened(path) as file:
        yield 1, {"text": file.read()}


def _parquet_rows(path: Path) -> Rows:
    number = 0
    with pyarrow.parquet.ParquetFile(path) as file:
        for batch in file.iter_batches(batch_size=1024):
            for row in batch.to_pylist():
                number += 1
                yield number, row


def _saved(path: Path, split: str) -> Source:
    """A folder written by `Dataset.save_to_disk`."""
    data = _or_error(lambda: datasets.load_from_disk(str(path)), str(path), "cannot be read")
    if isinstance(data, datasets.DatasetDict):
        if split not in data:
            raise LabError(f"{path}: no split '{split}'; it has {names(data)}; give split=")
        data = data[split]
    return Source(str(path), "row", enumerate(data, 1))


def _hub(source: str, split: str) -> Source:
    """A data set of the hub; a copy in the local cache serves without network."""
    name, _, configuration = source.partition(":")
    log = logging.getLogger("huggingface_hub")
    level = log.level
    log.setLevel(logging.ERROR)  # without network it tells of each of its retries
    try:
        what = "no such file or directory here, and not to be had from the hub"
        load = lambda: datasets.load_dataset(name, configuration or None, split=split)
        data = _or_error(load, source, what)
    finally:
        log.setLevel(level)
    return Source(f"{source} ({split})", "row", enumerate(data, 1))


def _or_error(load: Callable, source: str, what: str) -> Any:
    try:
        return load()
    except Exception as error:  # `datasets` raises a great many kinds, all of them about the source
        told = one_line(error) or type(error).__name__
        raise LabError(f"{source}: {what} ({told}); check the name and the network, or give a local path") from None
