"""What some tests need and not every machine has."""

import os

import pytest


def require(name: str, present: bool, reason: str) -> None:
    """Skip with a reason when something a test needs is absent; fail instead where RLHF_LAB_REQUIRE names it."""
    if present:
        return
    if name in os.environ.get("RLHF_LAB_REQUIRE", "").split(","):
        pytest.fail(f"{reason} (RLHF_LAB_REQUIRE names '{name}')")
    pytest.skip(reason)
