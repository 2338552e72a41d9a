"""The reference of every metric, from the glossary that the report and the notebooks use."""

import itertools
from collections.abc import Iterator

from rlhf_lab.workbench.glossary import GLOSSARY, Metric

FAMILIES = {
    "objective": "What PPO maximises",
    "policy": "The policy",
    "loss": "The losses",
    "val": "The critic",
    "completions": "The replies",
    "gold": "Gold, in the sandbox",
    "train": "SFT, reward model, DPO and KTO: on the batch",
    "eval": "The same on held-out data",
    "judge": "Judges",
    "time": "Time",
    "": "Counting",
}


def page() -> str:
    """The page's Markdown: a section for each family, a heading for each metric."""
    parts = []
    for family, names in itertools.groupby(sorted(GLOSSARY, key=_rank), key=_family):
        parts += [f"## {FAMILIES.get(family, family)}", *(line for name in names for line in _entry(name))]
    return "\n\n".join(parts)


def _family(name: str) -> str:
    return name.partition("/")[0] if "/" in name else ""


def _rank(name: str) -> tuple[int, int]:
    families, names = list(FAMILIES), list(GLOSSARY)
    family = _family(name)
    return families.index(family) if family in families else len(families), names.index(name)


def _entry(name: str) -> Iterator[str]:
    metric: Metric = GLOSSARY[name]
    yield f"### {name}"
    facts = [f"`{metric.formula}`", "no unit" if metric.unit == "1" else metric.unit]
    if metric.healthy:
        low, high = metric.healthy
        facts.append(f"healthy: **{low:g} to {high:g}**")
    lines = [" · ".join(facts), metric.words, *([f"*Otherwise*: {metric.otherwise}"] if metric.otherwise else [])]
    yield "\\\n".join(lines)
