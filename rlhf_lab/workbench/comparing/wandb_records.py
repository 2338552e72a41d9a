"""What is in a .wandb file: the part of a run that one directory holds.

The file is a log as LevelDB keeps one: blocks of 32 KiB, in them pieces with a checksum, and every entry, of one piece
or several, is a protobuf message. wandb does not document the layout; it is the same in 0.15 and 0.31, and the tests
hold what is read here against `wandb leet inspect`.
"""

import json
import struct
import sys
import zlib
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from rlhf_lab.errors import LabError

IDENT = struct.Struct("<4sHB")  # ":W&B", a magic number, the version of the layout
MAGIC, LAYOUT = 0xBEE1, 0
PIECE = struct.Struct("<IHB")  # checksum of kind and body, length of the body, kind
FULL, FIRST, MIDDLE, LAST = 1, 2, 3, 4
BLOCK = 32768
WANDB_STEP = "_step"

Row = dict[str, Any]


class Part(NamedTuple):
    """What one directory holds of a run."""

    folder: Path
    run: Any  # the protobuf message with the labels
    config: dict[str, Any]
    summary: dict[str, Any]
    rows: list[Row]  # each history entry, flat: nested names joined by "."
    steps: list[str]  # what define_metric named as steps, the one for all metrics first
    exit_code: int | None
    written: float  # when, in seconds since 1970


def read_part(file: Path) -> Part:
    """A .wandb file, as far as it can be read: a killed or living run has a torn end, which is no damage.

    What is broken in its middle, or of a kind not known here, is left out and told in one line.
    Errors: `LabError` when it is not such a file, or nothing in it can be read.
    """
    records = _records(file)
    config: dict[str, Any] = {}
    summary: dict[str, Any] = {}
    rows, steps, exit_code, run = [], Counter(), None, None
    for record in records:
        kind = record.WhichOneof("record_type")
        if kind == "run":
            run = record.run
            _update(config, run.config)
            _update(summary, run.summary)
        elif kind in ("config", "summary"):
            _update(config if kind == "config" else summary, getattr(record, kind))
        elif kind == "history":
            rows.append(_row(record.history))
        elif kind == "metric" and record.metric.step_metric:
            steps[(record.metric.glob_name == "*", record.metric.step_metric)] += 1
        elif kind == "exit":
            exit_code = record.exit.exit_code
    if run is None:  # its record is damaged
        run = type(records[0])().run
        run.run_id = file.stem.removeprefix("run-")
    by_use = sorted(steps, key=lambda step: (step[0], steps[step]), reverse=True)
    return Part(file.parent, run, config, summary, rows, [x for _, x in by_use], exit_code, file.stat().st_mtime)


def warn(line: str) -> None:
    """Tell in one line what could not be read."""
    print(f"wandb files: {line}", file=sys.stderr, flush=True)


# --- what records say


def _items(items: Iterable[Any]) -> Iterator[tuple[list[str], Any]]:
    """The path and the value of each item. wandb 0.15 keeps nested values whole, 0.31 one item for each leaf."""
    for item in items:
        try:
            value = json.loads(item.value_json)
        except ValueError:
            continue
        path = _path(item)
        if path[0] != "_wandb":
            yield path, value


def _path(item: Any) -> list[str]:
    return list(item.nested_key) or [item.key]


def _update(known: dict[str, Any], change: Any) -> None:
    for path, value in _items(change.update):
        inner = known
        for key in path[:-1]:
            if not isinstance(inner.get(key), dict):
                inner[key] = {}
            inner = inner[key]
        inner[path[-1]] = value
    for path in map(_path, change.remove):
        inner = known
        for key in path[:-1]:
            inner = inner.get(key) or {}
        inner.pop(path[-1], None)


def _row(history: Any) -> Row:
    row: Row = {WANDB_STEP: history.step.num}
    for path, value in _items(history.item):
        row.update(_leaves(".".join(path), value))
    return row


def _leaves(name: str, value: Any) -> Iterator[tuple[str, Any]]:
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from _leaves(f"{name}.{key}", inner)
    else:
        yield name, value


# --- the log


def _records(file: Path) -> list[Any]:
    try:
        from google.protobuf.message import DecodeError
        from wandb.proto.wandb_internal_pb2 import Record
    except ImportError as error:
        raise LabError(f"{file} needs wandb to be read ({error}): pip install wandb -c constraints.txt") from None
    entries, damaged = _entries(_content(file))
    records = []
    for entry in entries:
        try:
            record = Record.FromString(entry)
        except DecodeError:
            record = None
        if record is None or record.WhichOneof("record_type") is None:
            damaged += 1
        else:
            records.append(record)
    version = next((_version(record) for record in records if _version(record)), "")
    by = f" (wandb {version})" if version else ""
    if not any(record.WhichOneof("record_type") in ("run", "history") for record in records):
        raise LabError(
            f"{file}{by}: no run can be read in it; try `wandb sync` or `wandb leet inspect` of that version"
        )
    if damaged:
        warn(f"{file}{by}: left out {damaged} broken or unknown records; the rest is read")
    return records


def _content(file: Path) -> bytes:
    try:
        data = file.read_bytes()
    except OSError as error:
        raise LabError(f"{file} cannot be read ({(error.strerror or str(error)).lower()})") from None
    if not data:
        raise LabError(f"{file} is empty: its run was killed before it wrote anything; delete its directory")
    if len(data) < IDENT.size or data[:4] != b":W&B":
        raise LabError(f"{file} is no wandb file: it does not begin with ':W&B'; give an offline-run-* directory")
    _, magic, layout = IDENT.unpack_from(data)
    if (magic, layout) != (MAGIC, LAYOUT):
        raise LabError(
            f"{file} is laid out as version {layout} of wandb's files, and only {LAYOUT} is known here; "
            f"`wandb sync` it with the wandb that wrote it"
        )
    return data


def _entries(data: bytes) -> tuple[list[bytes], int]:
    """The whole entries, and the number of places where something broken was passed over."""
    entries: list[bytes] = []
    parts: list[bytes] = []  # of an entry that began
    damaged = 0
    for kind, body, after_damage in _pieces(data):
        if after_damage:
            damaged += 1
            parts = []
        if kind in (FULL, FIRST):
            parts = [body]
        elif parts:
            parts.append(body)
        if kind in (FULL, LAST) and parts:
            entries.append(b"".join(parts))
            parts = []
    return entries, damaged


def _pieces(data: bytes) -> Iterator[tuple[int, bytes, bool]]:
    """Kind and body of every sound piece, and whether something broken lies before it.

    After damage each next byte is tried for the start of a piece: the checksum tells a true one.
    """
    position, damage = IDENT.size, False
    while position + PIECE.size <= len(data):
        left = BLOCK - position % BLOCK
        if left < PIECE.size:  # no piece begins so near the end of a block
            position += left
            continue
        checksum, length, kind = PIECE.unpack_from(data, position)
        start = position + PIECE.size
        if FULL <= kind <= LAST and start + length <= min(len(data), position + left):
            body = data[start : start + length]
            if zlib.crc32(body, zlib.crc32(bytes([kind]))) == checksum:
                yield kind, body, damage
                position, damage = start + length, False
                continue
        position, damage = position + 1, True


def _version(record: Any) -> str:
    """Such as "0.31.0"; the header has it, and in older files the run."""
    if record.HasField("header"):
        return record.header.version_info.producer.partition("+")[0]
    return record.run.telemetry.cli_version if record.HasField("run") else ""
