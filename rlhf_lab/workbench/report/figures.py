"""Results as people read them: a label, a number with sensible digits, its interval, its unit.

A result is a number, a text, or a number with an interval: {"value": .., "low": .., "high": ..} (or "mean"
for "value"), a triple (mean, low, high), or three entries "x", "x_low" and "x_high". A key may carry its unit in
brackets: "gold_after [sd]".
"""

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

_CAPITALS = {"sft": "SFT", "ppo": "PPO", "kl": "KL", "eos": "EOS", "rlhf": "RLHF", "rm": "RM", "llm": "LLM"}
_UNITS = {r"gold(?!.*(win|rate|accuracy))": "sd", r"kl\b": "nats"}  # by the key's beginning
_BRACKETS = re.compile(r"^(.*?)\s*[\[(]([^\])]*)[\])]$")


class Figure(NamedTuple):
    """One result, all text. `interval` and `unit` may be empty."""

    key: str
    label: str
    value: str
    interval: str = ""
    unit: str = ""


def figures(results: Mapping[str, Any], prefix: str = "") -> list[Figure]:
    """The results as figures, in their order. A mapping inside becomes one figure for each of its entries."""
    found: list[Figure] = []
    ends = {f"{key}_{end}" for key in results for end in ("low", "high") if _has_ends(results, key)}
    for key, value in results.items():
        name = f"{prefix}{key}"
        if key in ends:
            continue
        if isinstance(value, Mapping) and not _bounds(value):
            found += figures(value, f"{name}/")
            continue
        label, unit = _label(name)
        if isinstance(value, Mapping):
            unit = str(value.get("unit", unit))
        middle, low, high = _triple(value)
        if _has_ends(results, key):
            low, high = results[f"{key}_low"], results[f"{key}_high"]
        interval = ""
        if low is not None and high is not None:
            places = _decimals(middle) if isinstance(middle, float) else None
            interval = f"[{number(low, places)}, {number(high, places)}]"
        found.append(Figure(name, label, number(middle), interval, unit))
    return found


def plain_numbers(results: Mapping[str, Any], prefix: str = "") -> dict[str, float]:
    """The numbers among the results, without their intervals; one inside a mapping is called `mapping/entry`."""
    found: dict[str, float] = {}
    ends = {f"{key}_{end}" for key in results for end in ("low", "high") if _has_ends(results, key)}
    for key, value in results.items():
        if isinstance(value, Mapping) and not _bounds(value):
            found |= plain_numbers(value, f"{prefix}{key}/")
        elif key not in ends and isinstance(middle := _triple(value)[0], int | float) and not isinstance(middle, bool):
            found[f"{prefix}{key}"] = float(middle)
    return found


def number(value: Any, decimals: int | None = None) -> str:
    """A value as text, a float to about three significant digits or with so many `decimals`."""
    if value is None:
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, float):
        return _decimal(value, decimals)
    if isinstance(value, str):
        return " ".join(value.split())
    if isinstance(value, Sequence):
        return ", ".join(number(item) for item in value)
    return str(value)


def duration(seconds: float | None) -> str:
    """A time span: 0:07, 4:30, 1:02:03."""
    if seconds is None or not math.isfinite(seconds):
        return "?"
    minutes, rest = divmod(max(0, round(seconds)), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


def aligned(rows: Iterable[Sequence[str]], right: Sequence[int] = ()) -> list[str]:
    """Rows of text as lines with aligned columns, those numbered in `right` to the right."""
    rows = [list(row) for row in rows]
    widths = [max(len(cell) for cell in column) for column in zip(*rows, strict=True)]
    lines = []
    for row in rows:
        cells = [
            cell.rjust(width) if index in right else cell.ljust(width)
            for index, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        lines.append("  ".join(cells).rstrip())
    return lines


def _decimal(value: float, decimals: int | None) -> str:
    if not math.isfinite(value):
        return str(value)
    if decimals is None and (abs(value) >= 1e6 or 0 < abs(value) < 5e-4):
        return f"{value:.2e}"
    return f"{value:,.{_decimals(value) if decimals is None else decimals}f}"


def _decimals(value: float) -> int:
    size = abs(value)
    return 0 if size >= 1000 else 1 if size >= 100 else 2 if size >= 1 else 3


def _label(key: str) -> tuple[str, str]:
    match = _BRACKETS.match(key)
    text, unit = (match[1], match[2]) if match else (key, "")
    name = text.rsplit("/", 1)[-1].replace("_", " ")
    unit = unit or next((unit for start, unit in _UNITS.items() if re.match(start, name)), "")
    label = text.replace("/", ", ").replace("_", " ").strip()
    return re.sub(r"[A-Za-z]+", lambda word: _CAPITALS.get(word[0].lower(), word[0]), label), unit


def _has_ends(results: Mapping[str, Any], key: str) -> bool:
    return all(isinstance(results.get(f"{key}_{end}"), (int, float)) for end in ("low", "high"))


def _bounds(value: Mapping[str, Any]) -> bool:
    return "value" in value or {"mean", "low", "high"} <= set(value)


def _triple(value: Any) -> tuple[Any, Any, Any]:
    if isinstance(value, Mapping):
        return value.get("value", value.get("mean")), value.get("low"), value.get("high")
    if isinstance(value, (list, tuple)) and len(value) == 3:
        middle, low, high = value
        if isinstance(middle, float) and low is None and high is None:  # one value has no interval
            return middle, None, None
        if all(isinstance(item, (int, float)) for item in value) and low <= middle <= high:
            return middle, low, high
    return value, None, None
