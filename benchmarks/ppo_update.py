"""A whole PPO update, the lab's beside that of TRL 1.12.0 (the last with a PPO trainer), on the same work.

    python benchmarks/ppo_update.py                         # 5.2M parameters a model, replies of fixed length, fp32
    python benchmarks/ppo_update.py --precision auto        # the lab in its default precision
    python benchmarks/ppo_update.py --ends                  # replies that end at half the maximum on average
    python benchmarks/ppo_update.py --shape gpt2            # 190M parameters a model
    python benchmarks/ppo_update.py --shape gpt2 --lora 8   # roles as adapters
    python benchmarks/ppo_update.py --check                 # no timing: the same replies give the same weights

Each side runs in processes of its own, by turns; TRL in an environment that is made for it. The first update of a
process warms up and is not counted. One JSON line a comparison is appended to benchmarks/results/ppo_update.jsonl.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import venv
from pathlib import Path
from typing import NamedTuple

import shapes
import torch
import transformers

from rlhf_lab.workbench.run_directory import hardware

HERE = Path(__file__).resolve().parent
VERSIONS = ["trl==1.12.0", "transformers==5.23.0", "torch==2.13.0", "peft==0.21.2"]


def main() -> None:
    """Compare, and print and record what came out."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=shapes.SHAPES, default="small")
    parser.add_argument("--ends", action="store_true")
    parser.add_argument("--precision", choices=("fp32", "bf16", "auto"), default="fp32", help="the lab's")
    parser.add_argument("--trl-precision", choices=("fp32", "bf16"), default="fp32", help="TRL's")
    parser.add_argument("--lora", type=int, default=0, metavar="RANK")
    parser.add_argument("--runs", type=int, default=3, help="processes of each side")
    parser.add_argument("--updates", type=int, default=3, help="in each process, the first uncounted")
    parser.add_argument("--check", action="store_true")
    parser.add_argument("--trl", type=Path, default=HERE / ".trl", help="where TRL's environment is made")
    asked = parser.parse_args()
    pythons = {"trl": trl_python(asked.trl), "lab": sys.executable}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        shapes.write(shapes.SHAPES[asked.shape], folder, ends=asked.ends)
        if asked.check:
            check(folder, asked, pythons)
            return
        found: dict[str, list[dict]] = {"trl": [], "lab": []}
        for run in range(asked.runs):
            for side, python in pythons.items():
                precision = asked.trl_precision if side == "trl" else asked.precision
                found[side].append(one(side, python, folder, asked, asked.updates, precision))
                told = statistics.median(found[side][-1]["seconds"][1:])
                print(f"run {run + 1} of {asked.runs}, {side}: {told:.2f} s an update", file=sys.stderr, flush=True)
    line = summary(found, asked)
    results = HERE / "results"
    results.mkdir(exist_ok=True)
    with open(results / "ppo_update.jsonl", "a") as out:
        out.write(json.dumps(line) + "\n")
    print(json.dumps(line, indent=1))


def trl_python(folder: Path) -> str:
    """The interpreter of an environment with TRL 1.12.0, made where it is missing."""
    python = folder / "bin" / "python"
    if not (folder / "made").exists():
        print(f"making TRL's environment in {folder}", file=sys.stderr)
        venv.create(folder, with_pip=True, clear=True)
        subprocess.run([python, "-m", "pip", "install", "--quiet", *VERSIONS], check=True)
        (folder / "made").touch()
    return str(python)


def one(side: str, python: str, folder: Path, asked, updates: int, precision: str) -> dict:
    """What a process of one side reports."""
    command = [
        python,
        str(HERE / f"{side}_side.py"),
        str(folder),
        asked.shape,
        str(updates),
        precision,
        str(asked.lora),
    ]
    quiet = {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_VERBOSITY": "error"}
    quiet["GOMP_SPINCOUNT"] = "20000"  # threads wait awake for some 20 microseconds: best for both on a quiet machine
    threads = {"OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", str(os.cpu_count()))}
    done = subprocess.run(command, env=os.environ | quiet | threads, capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"{side} failed:\n{done.stderr[-3000:]}")
    return json.loads(done.stdout.strip().splitlines()[-1])


class Work(NamedTuple):
    """Floating-point operations of the matrix products of an update of ours, on real tokens only.

    Attention's own products are left out: they are under 2% at these lengths.
    """

    rollout: float
    score: float
    train: float


def work(shape: shapes.Shape, response: float, *, kept: bool, frozen: bool) -> Work:
    """Of an update with so many response tokens in all.

    The last layer is computed where it is asked for: at replies, and by the reward model at the last token only.
    kept: scoring's pass is the first of training. frozen: the base has no gradient, so that a backward pass costs one
    forward pass, else two.
    """
    layer, keys = shape.blocks / shape.layers, 2 * shape.hidden**2
    read = shape.episodes * (shape.prompt - 1) + response  # nobody reads what comes last

    def trunk(wanted: float) -> float:
        return 2 * (((shape.layers - 1) * layer + keys) * read + (layer - keys) * wanted)

    words = 2 * shape.head * response
    learners = 2 * trunk(response) + words
    passes = shape.epochs * (2 if frozen else 3) - kept
    return Work(
        2 * shape.blocks * read + words, learners + trunk(response) + words + trunk(shape.episodes), passes * learners
    )


def summary(found: dict[str, list[dict]], asked) -> dict:
    """Medians, ranges and ratios, with the bound that the matrix rate of the same processes sets."""
    shape = shapes.SHAPES[asked.shape]
    per_second = {
        side: [shape.episodes / statistics.median(run["seconds"][1:]) for run in runs] for side, runs in found.items()
    }
    tokens = statistics.mean(part["tokens"] for run in found["lab"] for part in run["parts"][1:])
    rate = statistics.median(run["rate"] for run in found["lab"])
    parts = [part for run in found["lab"] for part in run["parts"][1:]]
    seconds = {name: statistics.median(part[name] for part in parts) for name in Work._fields}
    needed = work(shape, tokens, kept=not shape.micro_batch, frozen=asked.lora > 0)
    ratios = [ours / theirs for ours, theirs in zip(per_second["lab"], per_second["trl"], strict=True)]
    kinds = {name: statistics.median(run["rates"][name] for run in found["lab"]) for name in ("float32", "bfloat16")}
    return {
        "shape": asked.shape,
        "replies": "ending" if asked.ends else "fixed",
        "lora": asked.lora,
        "precision": found["lab"][0]["precision"],
        "trl_precision": asked.trl_precision,
        "response_tokens": tokens / shape.episodes,
        "ratio": statistics.median(ratios),
        "ratios": ratios,
        **{f"{side}_episodes_per_second": figures for side, figures in per_second.items()},
        **{f"{side}_peak_gb": max(run["peak_gb"] for run in runs) for side, runs in found.items()},
        "bound_episodes_per_second": shape.episodes * rate / sum(needed),
        "matrix_gflops": {name: value / 1e9 for name, value in kinds.items()},
        "trl_matrix_gflops": statistics.median(run["rate"] for run in found["trl"]) / 1e9,
        "of_matrix_rate": {name: flops / seconds[name] / rate for name, flops in needed._asdict().items()},
        "seconds": seconds,
        "runs": asked.runs,
        "updates": asked.updates - 1,
        "machine": hardware(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "commit": commit(),
    }


def commit() -> str:
    """The commit that is checked out, and whether files differ from it."""
    command = ["git", "describe", "--always", "--abbrev=40", "--dirty", "--match", "no-tag"]
    return subprocess.run(command, cwd=HERE, capture_output=True, text=True).stdout.strip()


def check(folder: Path, asked, pythons: dict[str, str]) -> None:
    """Both sides learn once from the same replies: how far apart are the weights, and how far did they move?"""
    shape = shapes.SHAPES[asked.shape]
    prompts = json.loads((folder / "prompts.json").read_text())[: shape.episodes]
    torch.manual_seed(1)
    replies = torch.randint(2, shape.vocabulary, (shape.episodes, shape.response))
    if asked.ends:
        for row, length in enumerate(torch.randint(1, shape.response, (shape.episodes,)).tolist()):
            replies[row, length - 1], replies[row, length:] = shapes.EOS, shapes.PAD
    (folder / "replies.json").write_text(json.dumps(dict(zip(prompts, replies.tolist(), strict=True))))
    for side, python in pythons.items():
        print(side, json.dumps(one(side, python, folder, asked, 1, "fp32")["logged"]))
    found = {side: torch.load(folder / f"{side}.pt") for side in pythons}
    for role in ("policy", "value"):
        started = transformers.AutoModel.from_pretrained(folder / role).state_dict()  # the trunk: heads differ in name
        moved, apart = [], []
        for name, weight in found["lab"][role].items():
            if (before := started.get(name.removeprefix("model."))) is not None:
                moved.append((weight - before).abs().flatten())
                apart.append((weight - found["trl"][role][name]).abs().flatten())
        moved, apart = torch.cat(moved), torch.cat(apart)
        print(f"{role}: weights moved by {moved.mean():.2e} on average, the two sides end {apart.mean():.2e} apart")


if __name__ == "__main__":
    main()
