"""How time and memory of a PPO update grow, and how well `rlhf-lab plan` foretells them.

    python benchmarks/growth.py            # the whole grid, appended to benchmarks/results/growth.jsonl, and growth.png
    python benchmarks/growth.py --few      # the ends of each axis alone
    python benchmarks/growth.py --draw     # table and figure of the lines that are there

Four whole models of random weights (policy, reference, critic, reward model), replies of fixed length, one epoch, one
optimizer step. Each point is measured in a process of its own: the fastest update after the first, and the largest
resident memory. The constants of the prediction are measured anew at the start, on other and smaller updates.
"""

import argparse
import json
import math
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import transformers
from matplotlib.ticker import LogLocator, StrMethodFormatter

from rlhf_lab.workbench.costs.cases import Case, begun
from rlhf_lab.workbench.costs.constants import Constants
from rlhf_lab.workbench.costs.memory import Memory, kept, transient
from rlhf_lab.workbench.costs.probe import measure_constants
from rlhf_lab.workbench.costs.weighing import TEXTS
from rlhf_lab.workbench.costs.work import update_work
from rlhf_lab.workbench.memory import peak_memory
from rlhf_lab.workbench.run_directory import processor
from rlhf_lab.workbench.style import BLUE, INK, ORANGE, empty_figure, styled

RESULTS = Path(__file__).resolve().parent / "results"
BASE = Case(width=256, layers=4, vocabulary=2048, replies=32, prompt=32, reply=48)
AXES = {
    "replies": (8, 16, 32, 64, 128),
    "reply": (16, 32, 64, 128),
    "width": (64, 128, 256, 512, 768),
    "vocabulary": (130, 2048, 8192, 20000, 50257),
}
OTHERS = [
    Case(128, 2, 130, 128, 27, 40, feed_forward=344),  # the sandbox's own model
    Case(384, 6, 20000, 16, 64, 32, micro=4),
    Case(768, 2, 50257, 8, 16, 16, micro=2),
]
UPDATES = 3


class Point(NamedTuple):
    """An axis, or "" for a case apart, and what was measured there."""

    axis: str
    case: Case


def main() -> None:
    """Measure what is asked for, and tell."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--precision", choices=("fp32", "bf16"), default="fp32")
    parser.add_argument("--few", action="store_true", help="the ends of each axis alone")
    parser.add_argument("--draw", action="store_true", help="measure nothing")
    parser.add_argument("--out", type=Path, default=RESULTS / "growth.jsonl")
    parser.add_argument("--case", help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.case:
        print(json.dumps(measured(Case(*json.loads(asked.case)), asked.precision)))
        return
    if not asked.draw:
        measure_all(points(few=asked.few), asked.precision, asked.out)
    lines = [json.loads(line) for line in asked.out.read_text().splitlines()]
    lines = [line for line in lines if line["run"] == lines[-1]["run"]]
    print("\n".join([*table(lines), "", *exponents(lines)]))
    figure(lines).savefig(asked.out.with_suffix(".png"), dpi=150)


def points(*, few: bool) -> list[Point]:
    """The grid: one size changes at a time."""
    found = [
        Point(axis, BASE._replace(**{axis: value}))
        for axis, values in AXES.items()
        for value in ((values[0], values[-1]) if few else values)
    ]
    return found + [Point("", case) for case in (OTHERS[:1] if few else OTHERS)]


def measure_all(asked: list[Point], precision: str, out: Path) -> None:
    """Each point in a process of its own, a line as soon as it is there."""
    constants = measure_constants(precision, told=lambda line: print(line, file=sys.stderr, flush=True))
    conditions = {
        "processor": processor(),
        "threads": constants.threads,
        "precision": precision,
        "versions": {"torch": torch.__version__, "transformers": transformers.__version__},
        "constants": constants.model_dump(include={"seconds", "bytes", "libraries"}),
    }
    out.parent.mkdir(exist_ok=True)
    past = out.read_text().splitlines() if out.exists() else []
    run = 1 + (json.loads(past[-1])["run"] if past else 0)
    for axis, case in asked:
        command = [sys.executable, __file__, "--precision", precision, "--case", json.dumps(case)]
        done = subprocess.run(command, check=True, capture_output=True, text=True)
        line = {"run": run, "axis": axis, "case": case._asdict(), **json.loads(done.stdout.splitlines()[-1])}
        line |= {"predicted": predicted(case, constants), **conditions}
        with out.open("a") as file:
            file.write(json.dumps(line) + "\n")
        print(told(line), file=sys.stderr, flush=True)


def measured(case: Case, precision: str) -> dict:
    """In this process: seconds of an update's parts, and bytes before the models were made and at the peak."""
    begun(TEXTS, precision)  # what libraries set up at first use is not the update's
    before = peak_memory()["peak_memory_mb"]
    _, seconds = begun(case, precision, updates=UPDATES)
    best = min(seconds[1:], key=lambda one: sum(one.values()))
    return {"seconds": best, "before_mb": before, "peak_mb": peak_memory()["peak_memory_mb"]}


def predicted(case: Case, constants: Constants) -> dict:
    """What the model of costs says of a case."""
    roles, update = case.roles(), case.update
    memory = Memory(constants.libraries, kept(roles), transient(roles, update, constants.bytes))
    seconds = constants.times(update_work(roles, update))
    return {"seconds": seconds, "growth_mb": (memory.peak - memory.libraries) / 1e6, "peak_mb": memory.peak / 1e6}


def errors(line: dict) -> tuple[float, float, float]:
    """Relative errors of a line's predictions: of the time, of the peak, and of what it grew by from before."""
    time = sum(line["predicted"]["seconds"].values()) / sum(line["seconds"].values())
    grown = line["peak_mb"] - line["before_mb"]
    return time - 1, line["predicted"]["peak_mb"] / line["peak_mb"] - 1, line["predicted"]["growth_mb"] / grown - 1


def told(line: dict) -> str:
    """A line in words."""
    value = line["case"].get(line["axis"], "")
    time, peak, grown = errors(line)
    parts = " ".join(f"{name} {took:.3f}" for name, took in line["seconds"].items())
    more = " ".join(f"{line['predicted']['seconds'][name] / took - 1:+.0%}" for name, took in line["seconds"].items())
    name = f"{line['axis']} {value}" if line["axis"] else " ".join(map(str, line["case"].values()))
    return f"{name:32} {parts}  ({more}; {time:+.0%})  {line['peak_mb']:,.0f} MB ({peak:+.0%}; growth {grown:+.0%})"


def table(lines: list[dict]) -> list[str]:
    """Every point, and the largest errors."""
    worst = [max(abs(errors(line)[part]) for line in lines) for part in range(3)]
    summary = "largest error: time {:.0%}, peak {:.0%}, growth of the process {:.0%}".format(*worst)
    return ["seconds, errors of the predictions in brackets", *map(told, lines), summary]


def exponents(lines: list[dict]) -> list[str]:
    """The slopes of the logarithms over each axis: all of it, and between its two largest values."""
    found = []
    for axis in AXES:
        mine = sorted((line for line in lines if line["axis"] == axis), key=lambda line: line["case"][axis])
        sizes = [math.log(line["case"][axis]) for line in mine]
        for name, of in (("time", seconds_of), ("memory", grown_of)):
            values = [math.log(of(line)) for line in mine]
            slope, last = np.polyfit(sizes, values, 1)[0], (values[-1] - values[-2]) / (sizes[-1] - sizes[-2])
            found.append(f"{axis:10} {name:6} exponent {slope:.2f}, at its end {last:.2f}")
    return found


def seconds_of(line: dict) -> float:
    """Of an update."""
    return sum(line["seconds"].values())


def grown_of(line: dict) -> float:
    """MB that the process grew by."""
    return line["peak_mb"] - line["before_mb"]


@styled
def figure(lines: list[dict]):
    """Time and memory over each axis, measured and predicted."""
    fig, axes = empty_figure(2, len(AXES), height=4.6)
    for column, axis in enumerate(AXES):
        mine = sorted((line for line in lines if line["axis"] == axis), key=lambda line: line["case"][axis])
        sizes = [line["case"][axis] for line in mine]
        parts = {
            0: (seconds_of, lambda line: sum(line["predicted"]["seconds"].values()), "seconds an update"),
            1: (grown_of, lambda line: line["predicted"]["growth_mb"], "MB beyond the libraries"),
        }
        for row, (of, foretold, label) in parts.items():
            ax = axes[row, column]
            ax.plot(sizes, [foretold(line) for line in mine], color=ORANGE, label="predicted")
            ax.plot(sizes, [of(line) for line in mine], "o", color=BLUE, markersize=4, label="measured")
            ax.set(xscale="log", yscale="log", xlabel=axis if row else "", ylabel="" if column else label)
            ax.set_xticks(sizes, [f"{size / 1000:.0f}k" if size > 2000 else str(size) for size in sizes])
            ax.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
            ax.yaxis.set_major_formatter(StrMethodFormatter("{x:,g}"))
            ax.tick_params(which="minor", bottom=False, left=False, labelbottom=False, labelleft=False)
    axes[0, 0].legend()
    base = ", ".join(f"{name} {value}" for name, value in BASE._asdict().items() if name in (*AXES, "layers", "prompt"))
    fig.suptitle(f"A PPO update as one size grows, from {base}", color=INK)
    return fig


if __name__ == "__main__":
    main()
