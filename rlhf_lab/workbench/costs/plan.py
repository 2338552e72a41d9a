"""`rlhf-lab plan`: what an experiment will need, as text."""

import sys
from collections.abc import Sequence
from pathlib import Path

import psutil

from rlhf_lab.errors import LabError
from rlhf_lab.models import resolve_precision
from rlhf_lab.models.device import VARIABLE, device
from rlhf_lab.workbench.costs.constants import CHECKED, Constants, keep_constants, read_constants
from rlhf_lab.workbench.costs.stage_costs import PLANNED, Asked, Cost, cost_of
from rlhf_lab.workbench.experiments.jobs import Job, jobs_of
from rlhf_lab.workbench.experiments.validate import validate
from rlhf_lab.workbench.report.figures import aligned, duration


def measured_constants(precision: str, *, anew: bool = False) -> Constants:
    """Those kept of this machine, else, or `anew`, measured now and kept. Says what it does on stderr."""
    if device().type != "cpu":
        raise LabError(f"plan: it measures and foretells CPUs only; run it without {VARIABLE}")
    known = None if anew else read_constants(precision)
    if known is not None:
        return known
    from rlhf_lab.workbench.costs.probe import measure_constants

    line = lambda text: print(f"\r{text}", end="", file=sys.stderr, flush=True)
    constants = measure_constants(precision, told=line)
    line(" " * 60 + "\r")
    keep_constants(constants)
    return constants


def plan_in_words(
    file: str | Path,
    overrides: Sequence[str] = (),
    *,
    prompt: float | None = None,
    reply: float | None = None,
    anew: bool = False,
) -> str:
    """Tokens, TFLOPs, time and memory of every stage of an experiment file, and what that assumes. Runs none of them.

    prompt, reply: mean tokens, where the longest are not meant. anew: measure this machine again.
    Errors: as `validate`; `LabError` for a missing model.
    """
    if any(given is not None and given < 1 for given in (prompt, reply)):
        raise LabError("plan: --prompt-tokens and --reply-tokens must be 1 or more")
    plan = validate(file, overrides)
    jobs, _ = jobs_of(plan)
    found: dict[Job, Cost | None] = {}
    used: dict[str, Constants] = {}
    for job in jobs:
        cfg = job.stage.config.parse(job.stage.parameters, f"{file}, stage {job.stage.name}")
        if not isinstance(cfg, PLANNED):
            found[job] = None
            continue
        precision = resolve_precision(getattr(cfg, "precision", "fp32"))
        if precision not in used:
            used[precision] = measured_constants(precision, anew=anew)
        earlier = {name: found[other].leaves for name, other in job.inputs.items() if found[other]}
        try:
            found[job] = cost_of(cfg, Asked(used[precision], earlier, prompt, reply))
        except LabError as error:
            raise LabError(f"{file}, stage {job.stage.name}: {error}") from None
    return "\n".join(_told(plan.experiment, found, list(used.values())))


def _told(name: str, found: dict[Job, Cost | None], used: list[Constants]) -> list[str]:
    known = {job: cost for job, cost in found.items() if cost is not None}
    if not known:
        return [f"{name}: no stage that trains is a stage of the pipeline; nothing to plan"]
    measured = "; ".join(f"{c.machine}, {c.precision}, threads {c.threads}, torch {c.torch}" for c in used)
    lines = [f"{name}, by constants measured on {measured}", ""]
    header = ("stage", "tokens", "TFLOPs", "time", "peak memory")
    rows = [(job.title, *_figures([cost])) for job, cost in known.items()]
    if len(rows) > 1:
        rows.append(("together", *_figures(list(known.values()))))
    lines += aligned([header, *rows], right=(1, 2, 3, 4))
    lines += _memory_lines({job.stage.name: cost for job, cost in known.items()})  # the last of a sweep's
    lines += ["", *_remarks({job.stage.name: cost for job, cost in known.items()})]
    if left := sorted({job.stage.name for job, cost in found.items() if cost is None}):
        lines.append(f"not planned: {', '.join(left)}")
    return lines + _warnings(known)


def _figures(costs: list[Cost]) -> tuple[str, ...]:
    """Tokens, TFLOPs, time and memory of stages that run one after the other."""
    tokens, flops, seconds = (sum(getattr(cost, part) for cost in costs) for part in ("tokens", "flops", "seconds"))
    return f"{tokens:,.0f}", f"{flops / 1e12:,.2f}", duration(seconds), _mb(max(cost.memory.peak for cost in costs))


def _memory_lines(stages: dict[str, Cost]) -> list[str]:
    rows = [("memory", "", "weights", "gradients", "moments")]
    for stage, cost in stages.items():
        rows += [(stage, role, *map(_mb, part)) for role, part in cost.memory.kept.items()]
    parts = [("besides", "activations", "logits", "scoring", "KV cache", "optimizer step", "libraries")]
    parts += [(stage, *map(_mb, cost.memory.transient), _mb(cost.memory.libraries)) for stage, cost in stages.items()]
    return ["", *aligned(rows, right=(2, 3, 4)), "", *aligned(parts, right=range(1, 7))]


def _remarks(stages: dict[str, Cost]) -> list[str]:
    lines = [f"assumed, {stage}: {cost.assumed}" for stage, cost in stages.items()]
    lines.append("'besides' is not all there at once: the peak is what each role keeps and the worst moment's")
    if others := [stage for stage, cost in stages.items() if not cost.compared]:
        lines.append(
            f"compared with PPO in fp32 with four whole models alone, and so not compared: {', '.join(others)}"
        )
    return lines


def _warnings(known: dict[Job, Cost]) -> list[str]:
    lines, whole = [], psutil.virtual_memory().total
    for job, cost in known.items():
        if cost.memory.peak > whole:
            todo = "lower 'micro_batch_size' or 'batch_size', or set 'lora'"
            lines.append(f"WARNING: {job.title} needs {_mb(cost.memory.peak)}, this machine has {_mb(whole)}: {todo}")
    outside = {f"{job.stage.name}: {', '.join(cost.beyond)}" for job, cost in known.items() if cost.beyond}
    if outside:
        lines.append(f"EXTRAPOLATES beyond what was measured: {'; '.join(sorted(outside))}")
    else:
        lines.append(f"inside of what was measured: {', '.join(CHECKED)}")
    return lines


def _mb(size: float) -> str:
    return f"{size / 1e6:,.1f} MB"
