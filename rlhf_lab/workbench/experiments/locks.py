"""One process at a time runs a job. The lock goes with the process, however that ends."""

import contextlib
import hashlib
from collections.abc import Iterator
from pathlib import Path

from rlhf_lab.errors import LabError
from rlhf_lab.workbench.writing import cannot_write, make_folder

try:
    import fcntl
except ImportError:  # Windows: two runners of one experiment are not kept apart there
    fcntl = None


class Held(LabError):
    """Another process, or thread, holds the lock."""


@contextlib.contextmanager
def locked(root: Path, *names: str) -> Iterator[None]:
    """Hold what `names` name, below `root`. Errors: `Held` at once while another holds it."""
    name = hashlib.sha256("\0".join(names).encode()).hexdigest()[:24]
    with held(make_folder(root / ".locks") / name):
        yield


@contextlib.contextmanager
def held(path: Path, *, shared: bool = False) -> Iterator[None]:
    """Hold the lock that is this file. shared: beside others that share it.

    Errors: `Held` at once while another holds it.
    """
    if fcntl is None:
        yield
        return
    try:
        file = path.open("a+")  # NFS shares no lock on a file that cannot be read
    except OSError as error:
        raise cannot_write(path, error) from None
    with file:
        try:
            fcntl.flock(file, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
        except BlockingIOError:
            raise Held("another process is running it; wait for that, or stop it") from None
        except OSError:  # a file system without locks
            pass
        yield
