"""Memory that was freed goes back to the system."""

import subprocess
import sys

import pytest

from rlhf_lab.training import memory

HOLES = """
import sys, torch
from rlhf_lab.training import memory

memory.EVERY_S = float(sys.argv[1])


def resident():
    return int(open("/proc/self/statm").read().split()[1]) * 4096


memory.give_back()
parts = [torch.ones(25_000) for _ in range(4000)]  # 400 MB, in pieces that lie in the heap
del parts[1::2], parts[::10]  # holes, and something behind each
before = resident()
memory.give_back()
print(before - resident())
"""


@pytest.mark.skipif(memory._trim() is None, reason="no glibc")
@pytest.mark.parametrize(("every", "given"), [(0.0, True), (1000.0, False)])
def test_holes_in_the_heap_are_given_back_but_not_too_often(every, given):
    done = subprocess.run([sys.executable, "-c", HOLES, str(every)], capture_output=True, text=True, check=True)
    assert (int(done.stdout) > 150e6) == given
