"""Runs as variants: those that differ in nothing but the seed are one, and its runs are what it is measured by."""

import difflib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from rlhf_lab.errors import LabError
from rlhf_lab.workbench.comparing.reading import ComparedRun
from rlhf_lab.workbench.comparing.settings import ABSENT, differing, same, told
from rlhf_lab.workbench.writing import user_path

LONGEST = 44  # characters of a name made of settings


@dataclass(frozen=True, eq=False)
class Variant:
    """Runs that are set alike. `units` are those that count: seed (and seeds of inputs, where they vary) -> run."""

    name: str
    stage: str
    settings: dict[str, Any]  # those in which the variants of its stage differ
    runs: tuple[ComparedRun, ...]
    units: dict[tuple, ComparedRun]

    @property
    def seeds(self) -> list[str]:
        """The seeds of its units as text."""
        return ["/".join(map(str, unit)) for unit in self.units]


class Comparison(NamedTuple):
    """Runs side by side. `settings` are the names of those that differ, `notes` what one must know to read it."""

    variants: list[Variant]
    baseline: Variant | None
    settings: list[str]
    notes: list[str]

    @property
    def runs(self) -> list[ComparedRun]:
        """All runs, variant by variant."""
        return [run for variant in self.variants for run in variant.runs]

    @property
    def baseline_name(self) -> str:
        """The baseline's name, "" where there are no runs."""
        return self.baseline.name if self.baseline else ""

    @property
    def stages(self) -> list[str]:
        """The stages that the runs are of."""
        return list(dict.fromkeys(variant.stage for variant in self.variants))


def compare(runs: Sequence[ComparedRun], notes: Sequence[str] = (), *, baseline: str = "") -> Comparison:
    """Put runs side by side, as variants.

    baseline: what the others are compared with: a variant or one of its runs by name, or a part of a name that only
    one has; "" takes the first. Errors: `LabError` where it is none of them, or several.
    """
    notes = list(notes)
    groups = _split_repeated(_alike(runs), unit := _unit_of(runs))
    keys = {stage: differing([g[0].settings for g in groups if g[0].stage == stage]) for stage in _stages(groups)}
    names = _names(groups, keys)
    variants = [
        Variant(
            name,
            group[0].stage,
            {key: group[0].settings.get(key, ABSENT) for key in keys[group[0].stage]},
            tuple(group),
            _counted(group, unit),
        )
        for name, group in zip(names, groups, strict=True)
    ]
    variants = _in_order(variants)
    notes += _words(variants)
    pinned = _pinned(variants, baseline) if variants else None
    return Comparison(variants, pinned, list(dict.fromkeys(key for each in keys.values() for key in each)), notes)


def _alike(runs: Sequence[ComparedRun]) -> list[list[ComparedRun]]:
    groups: dict[tuple, list[ComparedRun]] = {}
    for run in runs:
        groups.setdefault((run.stage, same(run.settings)), []).append(run)
    return list(groups.values())


def _unit_of(runs: Sequence[ComparedRun]) -> Callable[[ComparedRun], tuple]:
    """Seed and those seeds of inputs that do not follow from it; a run without a seed is a unit of its own."""
    seen: dict[str, dict[Any, set]] = {}
    for run in runs:
        for key, value in run.seeds.items():
            seen.setdefault(key, {}).setdefault(run.seed, set()).add(str(value))
    free = [key for key, values in seen.items() if any(len(several) > 1 for several in values.values())]
    return lambda run: (run.name,) if run.seed is None else (run.seed, *(run.seeds.get(key, ABSENT) for key in free))


def _split_repeated(groups: list[list[ComparedRun]], unit: Callable[[ComparedRun], tuple]) -> list[list[ComparedRun]]:
    """Where two experiments ran the same settings with the same seeds they are two variants: something else differs."""
    found = []
    for group in groups:
        experiments: dict[str, list[ComparedRun]] = {}
        for run in group:
            experiments.setdefault(run.experiment, []).append(run)
        units = [unit(run) for own in experiments.values() for run in {unit(run): run for run in own}.values()]
        found += experiments.values() if len(set(units)) < len(units) else [group]
    return found


def _counted(group: list[ComparedRun], unit: Callable[[ComparedRun], tuple]) -> dict[tuple, ComparedRun]:
    """One run for each unit: the newest that is done. Those that are not done count where none is."""
    done = [run for run in group if run.state == "done"] or group
    newest = {unit(run): run for run in sorted(done, key=lambda run: run.started)}
    return dict(sorted(newest.items(), key=lambda item: rank(item[0])))


def _stages(groups: Sequence[Sequence[ComparedRun]]) -> list[str]:
    return list(dict.fromkeys(group[0].stage for group in groups))


def _names(groups: list[list[ComparedRun]], keys: dict[str, list[str]]) -> list[str]:
    """By what differs, where that is short; else by experiment, where that tells them apart; else A, B, C."""
    experiments = ["+".join(dict.fromkeys(run.experiment for run in group)) for group in groups]
    names = [" ".join(f"{key}={told(g[0].settings.get(key, ABSENT))}" for key in keys[g[0].stage]) for g in groups]
    stages = [group[0].stage for group in groups]
    if len(set(stages)) > 1:
        names = [f"{stage} {name}".strip() for stage, name in zip(stages, names, strict=True)]
        experiments = [f"{stage} {name}" for stage, name in zip(stages, experiments, strict=True)]
    if len(set(names)) < len(names):
        names = [f"{name} ({own})".strip() for name, own in zip(names, experiments, strict=True)]
    if all(names) and len(set(names)) == len(names) and max(map(len, names), default=0) <= LONGEST:
        return names
    if len(set(experiments)) == len(experiments) and all(experiments):
        return experiments
    return [chr(ord("A") + index) if index < 26 else f"V{index + 1}" for index in range(len(groups))]


def _in_order(variants: list[Variant]) -> list[Variant]:
    """By the values of what differs, within what was named first."""
    first = {stage: index for index, stage in enumerate(dict.fromkeys(v.stage for v in variants))}
    return sorted(variants, key=lambda v: (first[v.stage], [rank(value) for value in v.settings.values()]))


def rank(value: Any) -> tuple:
    """Numbers by size, before everything else by its text."""
    if isinstance(value, tuple):
        return tuple(rank(item) for item in value)
    number = isinstance(value, int | float) and not isinstance(value, bool)
    return (0, value, "") if number else (1, 0, told(value))


def _pinned(variants: list[Variant], name: str) -> Variant:
    if not name:
        return variants[0]
    path = user_path(name)
    exact = [v for v in variants if name == v.name or any(name == run.name or path == run.path for run in v.runs)]
    part = [v for v in variants if name in v.name or any(name in run.name for run in v.runs)]
    found = exact or part
    names = [v.name for v in variants]
    if len(found) == 1:
        return found[0]
    if found:
        raise LabError(f"baseline {name}: {len(found)} variants are called so, {found[0].name} and {found[1].name}")
    near = difflib.get_close_matches(name, names, n=1)
    hint = f" (did you mean '{near[0]}'?)" if near else ""
    raise LabError(f"baseline {name}: not among what is compared{hint}: {', '.join(names)}")


def _words(variants: list[Variant]) -> list[str]:
    """What the numbers alone do not tell."""
    notes = []
    runs = [run for variant in variants for run in variant.runs]
    counted = [run for variant in variants for run in variant.units.values()]
    unfinished = [run for run in runs if run.state != "done"]
    if unfinished:
        states = ", ".join(f"{run.name} {run.state}" for run in unfinished[:4]) + ", ..." * (len(unfinished) > 4)
        notes.append(f"not done: {states}; such a run counts only in a variant that has no finished one")
    older = [run for run in runs if run not in counted and run.state == "done"]
    if older:
        notes.append(f"{len(older)} older of the same settings and seed as a newer one: in the table, in no mean")
    commits = dict.fromkeys(run.commit for run in counted if run.commit)
    if len(commits) > 1:
        notes.append(f"made by {len(commits)} states of the code: {', '.join(list(commits)[:4])}")
    return notes
