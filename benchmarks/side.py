"""What both sides of a comparison report: seconds of each update, memory, and what the processor could do then."""

import json
import resource
import statistics
import time

import torch


def matrix_rate(hidden: int, feed_forward: int, tokens: int, dtype: torch.dtype) -> float:
    """FLOP/s of the largest matrix product of a layer, (tokens, hidden) x (hidden, feed_forward): median of 9 runs."""
    left, right = torch.randn(tokens, hidden).to(dtype), torch.randn(feed_forward, hidden).to(dtype)
    seconds = []
    for _ in range(12):
        start = time.perf_counter()
        left @ right.T
        seconds.append(time.perf_counter() - start)
    return 2 * tokens * hidden * feed_forward / statistics.median(seconds[3:])


def peak_gb() -> float:
    """The largest resident memory of this process so far, in GB (10^9 bytes)."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9


def report(**figures) -> None:
    """The last line of the output, which the driver reads."""
    print("\n" + json.dumps(figures), flush=True)
