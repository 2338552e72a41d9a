"""Files of a run, written whole or not at all, and never with a key in them.

Whole files are written under a temporary name and renamed into place. Lines of a .jsonl file are appended in one
write each, behind whole lines only. What cannot be written is told in one line that says what to do.
"""

import contextlib
import errno
import json
import math
import os
from collections.abc import Mapping
from io import RawIOBase
from pathlib import Path
from typing import Any

from rlhf_lab.errors import LabError
from rlhf_lab.workbench.secrets import redact

try:
    import fcntl
except ImportError:  # Windows: two processes that append to one file are not kept apart there
    fcntl = None


def cannot_write(path: Path, error: OSError) -> LabError:
    """What to tell the user when a file of a run cannot be written."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        todo = "free some space, or name a place on another disk; for runs set RLHF_LAB_RUNS"
    elif error.errno in (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EEXIST):
        todo = "name a place that you may write to; for runs set RLHF_LAB_RUNS or run_dir"
    elif error.errno == errno.EISDIR:
        todo = "name a file"
    elif error.errno == errno.ENAMETOOLONG:
        todo = "choose a shorter name"
    elif error.errno == errno.ENOENT:
        todo = "the folder was deleted or moved; start a new run"
    else:
        todo = "check the folder, or set RLHF_LAB_RUNS to another"
    return LabError(f"{path} cannot be written ({(error.strerror or str(error)).lower()}): {todo}")


def make_folder(path: Path) -> Path:
    """Make a folder and those above it, and return it. Errors: `LabError` where that cannot be."""
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise cannot_write(path, error) from None
    return path


def plain(value: Any) -> Any:
    """The value as JSON can hold it: tensors and arrays as numbers or lists, NaN and infinities as None; no keys."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, str):
        return redact(value)
    if value is None or isinstance(value, int):
        return value
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple | set):
        return [plain(item) for item in value]
    if hasattr(value, "tolist"):
        return plain(value.tolist())
    return str(value)


def write_text(path: Path, text: str) -> None:
    """Write a whole file of text, as `write_bytes` does."""
    write_bytes(path, redact(text).encode("utf-8", "backslashreplace"))


def write_bytes(path: Path, data: bytes) -> None:
    """Write a whole file so that a reader sees the old one or the new one, never half of one.

    What is no file of its own, such as /dev/stdout, is written into and not replaced.
    Errors: `LabError` when it cannot be written; the old one then stands, and nothing is left beside it.
    """
    apart = not (path.is_symlink() or path.is_char_device() or path.is_fifo())
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp") if apart else path
    try:
        temporary.write_bytes(data)
        if apart:
            os.replace(temporary, path)
    except OSError as error:
        raise cannot_write(path, error) from None
    finally:
        if apart:
            with contextlib.suppress(OSError):
                temporary.unlink(missing_ok=True)


def write_json(path: Path, value: Any) -> None:
    """Write `value` as one JSON file, whole."""
    write_text(path, json.dumps(plain(value), indent=2, ensure_ascii=False) + "\n")


def append_line(path: Path, row: Mapping[str, Any]) -> None:
    """Append one row to a .jsonl file, whole or not at all. A torn last line, which no reader counts, is cut off first.

    Errors: `LabError` when it cannot be written.
    """
    line = json.dumps(plain(row), ensure_ascii=False, allow_nan=False) + "\n"
    try:
        with path.open("a+b", buffering=0) as file:
            if fcntl is not None:
                with contextlib.suppress(OSError):  # a file system without locks
                    fcntl.flock(file, fcntl.LOCK_EX)  # a line that another process is writing looks torn
            _mend_end(file)
            _append_whole(file, line.encode("utf-8", "backslashreplace"))
    except OSError as error:
        raise cannot_write(path, error) from None


def _mend_end(file: RawIOBase) -> None:
    """Cut off a last line that is torn; end one that lacks its newline alone."""
    if file.seek(0, os.SEEK_END) == 0:
        return
    file.seek(-1, os.SEEK_END)
    if file.read(1) == b"\n":
        return
    file.seek(0)
    content = file.readall()
    start = content.rfind(b"\n") + 1
    if content[start : start + 1] in (b"{", b"\0") and not _is_row(content[start:]):  # NUL: after a power cut
        file.truncate(start)
    else:  # a row, or what is not ours, which readers will name
        _append_whole(file, b"\n")


def _is_row(line: bytes) -> bool:
    try:
        return isinstance(json.loads(line), dict)
    except (ValueError, RecursionError):  # also the UnicodeDecodeError of a character torn in two
        return False


def _append_whole(file: RawIOBase, data: bytes) -> None:
    """Half a line would be a broken one in the middle, once there is space again and the run goes on."""
    size = file.seek(0, os.SEEK_END)
    try:
        while data:  # a disk that is nearly full takes a part
            data = data[file.write(data) :]
    except BaseException:
        file.truncate(size)
        raise


def user_path(given: str | Path) -> Path:
    """A path that a user gave, absolute, "~" spelt out. Errors: `LabError` when it can be none."""
    try:
        if "\0" in str(given):
            raise ValueError("it holds a null character")
        return Path(given).expanduser().absolute()
    except (RuntimeError, ValueError, OSError) as error:  # no such user; the working directory is gone
        raise LabError(f"{given} cannot be a path: {error}; give another") from None
