"""What every test may ask for."""

import os
import signal
from pathlib import Path

import pytest
from needed import require

# A shell starts background jobs with Ctrl-C ignored, and children inherit that: tests that send it would wait for ever.
if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="session")
def repo() -> Path:
    """The root of the repository."""
    return ROOT


@pytest.fixture
def shared() -> Path:
    """The folder of recorded data that some tests recompute published numbers from."""
    folder = Path(os.environ.get("RLHF_LAB_SHARED", ROOT.parent / "shared"))
    require("shared", folder.is_dir(), f"no recorded data at {folder}; set RLHF_LAB_SHARED")
    return folder


def pytest_collection_modifyitems(items):
    """The notebooks' tests first: they take longest, and one process would end long after the other."""
    items.sort(key=lambda item: "notebooks" not in item.path.parts)
