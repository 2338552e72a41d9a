"""Where the time of `make run` goes: its stages' cells under Python's profiler, in this process, one thread.

    python benchmarks/profile_run.py [EXPERIMENT]

A stage's notebook is run cell by cell with the experiment's parameters into a folder of its own, so nothing is skipped
that an earlier run made. Seconds are those spent in a function itself, by what it is for.
"""

import argparse
import cProfile
import json
import os
import pstats
import sys
import tempfile
import time
from pathlib import Path

HERE = Path(__file__).resolve().parent
KINDS = {  # what a function's file or name holds -> what it is for; the first that fits
    "backward passes": ("run_backward",),
    "matrix products": ("_nn.linear", "torch.matmul", "torch.bmm", "addmm"),
    "attention": ("scaled_dot_product", "flash_attn"),
    "optimizer steps": ("_fused_adam", "optim/", "_foreach", "clip_grad"),
    "other tensor operations": ("torch._C", "TensorBase", "torch._ops", "built-in method torch", "torch.cat"),
    "importing": ("importlib", "marshal", "_imp.", "exec_module", "builtins.compile", "dynamic_import"),
    "plots and tables": ("matplotlib", "seaborn", "pandas", "PIL", "IPython", "ft2font"),
    "tokenising": ("tokenizers", "tokenization"),
    "the sandbox's language and gold": ("rlhf_lab/sandbox",),
    "data sets and Trainer": ("datasets/", "accelerate/", "trainer", "trl/", "pyarrow"),
    "models in Python": ("transformers/", "torch/nn", "rlhf_lab/models"),
    "the lab's own code": ("rlhf_lab/",),
}


def main() -> None:
    """Profile every stage and print a table of seconds."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("experiment", nargs="?", default=str(HERE.parent / "experiments" / "quickstart.yaml"))
    asked = parser.parse_args()
    os.environ.setdefault("MPLBACKEND", "Agg")
    os.environ.setdefault("WANDB_MODE", "disabled")
    with tempfile.TemporaryDirectory() as folder:
        os.environ["RLHF_LAB_RUNS"] = folder
        tables = {}
        made: dict[str, Path] = {}
        for stage in _stages(asked.experiment):
            tables[stage.name], made[stage.name] = profiled(stage, made, Path(folder))
    kinds = [kind for kind in [*KINDS, "the rest"] if any(kind in table for table in tables.values())]
    print("| seconds | " + " | ".join(tables) + " |")
    print("| --- |" + " ---: |" * len(tables))
    for kind in kinds:
        print(f"| {kind} | " + " | ".join(f"{table.get(kind, 0):.1f}" for table in tables.values()) + " |")
    print("| together | " + " | ".join(f"{sum(table.values()):.1f}" for table in tables.values()) + " |")


def _stages(experiment: str) -> list:
    from rlhf_lab.workbench.experiments.validate import validate

    return list(validate(experiment).points[0].stages)


def profiled(stage, made: dict[str, Path], folder: Path) -> tuple[dict[str, float], Path]:
    """Seconds by kind of one stage, and the directory of its run."""
    run_dir = folder / "quickstart" / stage.name
    parameters = stage.resolved(made) | {"run_dir": str(run_dir), "threads": 1}
    cells = json.loads(Path(stage.notebook).read_text())["cells"]
    code = ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]
    tags = [cell["metadata"].get("tags", []) for cell in cells if cell["cell_type"] == "code"]
    space = {"__name__": "__main__", "display": lambda *_, **__: None}
    sys.modules["__main__"].__dict__.update(display=space["display"])
    profile, began = cProfile.Profile(), time.perf_counter()
    for source, tag in zip(code, tags, strict=True):
        compiled = compile(source, f"{Path(stage.notebook).name}", "exec")
        profile.enable()
        exec(compiled, space)
        profile.disable()
        if "parameters" in tag:
            space.update(parameters)
    print(f"{stage.name}: {time.perf_counter() - began:.0f} s", file=sys.stderr)
    return _by_kind(profile), run_dir


def _by_kind(profile: cProfile.Profile) -> dict[str, float]:
    found: dict[str, float] = {}
    for (file, _, name), (_, _, own, _, _) in pstats.Stats(profile).stats.items():
        where = f"{file}:{name}"
        kind = next((kind for kind, words in KINDS.items() if any(word in where for word in words)), "the rest")
        found[kind] = found.get(kind, 0.0) + own
    return found


if __name__ == "__main__":
    main()
