"""Means and intervals over the seeds of recorded results, as pages write them."""

import re

import numpy as np
from scipy import stats


def interval(values: np.ndarray, at_once: int = 1) -> tuple[float, float]:
    """Of the mean of values, one for each seed, at level 1 - 0.05 / at_once."""
    return stats.t.interval(1 - 0.05 / at_once, len(values) - 1, values.mean(), stats.sem(values))


def said(values: np.ndarray, at_once: int = 1, digits: int = 2, *, share: bool = False) -> str:
    """Mean and interval, as they are written. share: without the zero before the point."""
    mean, low, high = (f"{value:.{digits}f}" for value in (values.mean(), *interval(values, at_once)))
    text = f"{mean} [{low}, {high}]"
    return re.sub(r"\b0\.", ".", text) if share else text
