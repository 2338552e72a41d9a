"""Write a model directory whole or not at all: never a half-written checkpoint, even if the run is killed."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError

from rlhf_lab.errors import LabError
from rlhf_lab.models.loading import first_line, quiet
from rlhf_lab.models.shards import save_options, writes_models


def save_policy(directory, model, tokenizer) -> None:
    """Save a causal language model and its tokenizer as a directory that plain transformers reads.

    Safetensors only. A model already there is replaced once the new one is complete. Of several processes one writes.
    Errors: `LabError` if something that is no model is in the way, or the disk does not take it.
    """
    options = save_options(model)
    if not writes_models():
        return
    with whole_directory(directory) as folder, quiet():
        model.save_pretrained(folder, **options)
        tokenizer.save_pretrained(folder)


@contextmanager
def whole_directory(directory) -> Iterator[Path]:
    """A new directory to write a model into, which takes its place when the block ends without an error.

    Everything is on the disk before the rename. If the process dies between moving the old directory away and
    the new one into place, both are there as hidden siblings (`.name.old-*`, `.name.new-*`), each complete.
    """
    target = Path(directory).expanduser().absolute()
    if target.is_file() or (target.is_dir() and any(target.iterdir()) and not (target / "config.json").exists()):
        raise LabError(f"{directory}: is in the way and is no model directory; choose another, or remove it")
    fresh = target.with_name(f".{target.name}.new-{os.getpid()}")
    old = target.with_name(f".{target.name}.old-{os.getpid()}")
    shutil.rmtree(fresh, ignore_errors=True)
    try:
        fresh.mkdir(parents=True)
        yield fresh
        for path in [*fresh.rglob("*"), fresh]:
            _sync(path)
        if target.exists():
            target.rename(old)
        fresh.rename(target)
        _sync(target.parent)
    except BaseException as error:
        if old.exists() and not target.exists():
            old.rename(target)
        shutil.rmtree(fresh, ignore_errors=True)
        if isinstance(error, OSError | SafetensorError):  # the disk is full, or may not be written to
            before = "; the one saved there before still stands" if target.exists() else ""
            what = f"{directory}: the model cannot be written ({first_line(error)}){before}"
            raise LabError(f"{what}; free some space or choose another place") from error
        raise
    shutil.rmtree(old, ignore_errors=True)


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
