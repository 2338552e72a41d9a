"""Sampling alone, beside transformers' `generate`: the same model, prompts and numbers of tokens, by turns.

    python benchmarks/generation.py [--runs 7]

The sandbox model twice: replies of a fixed length, and replies that end where the model ends them (transformers then
computes all rows until the last one has ended). The bound is the larger of two times: to multiply, at the matrix rate
of this process, and to read every weight and the cache once a token, at the rate at which it reads memory.
"""

import argparse
import json
import statistics
import sys
import tempfile
import time
from pathlib import Path

import shapes
import torch
import transformers
from ppo_update import HERE, commit
from side import matrix_rate

from rlhf_lab.data import encode_prompt, left_pad
from rlhf_lab.models import generate, load_policy, load_tokenizer
from rlhf_lab.sandbox.world import World
from rlhf_lab.workbench.run_directory import hardware


def main() -> None:
    """Measure every case, print a line each, and append it to benchmarks/results/generation.jsonl."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=7)
    asked = parser.parse_args()
    (HERE / "results").mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        for name, case in cases(Path(folder)):
            line = measured(name, *case, runs=asked.runs)
            with open(HERE / "results" / "generation.jsonl", "a") as out:
                out.write(json.dumps(line) + "\n")
            print(json.dumps(line), flush=True)


def cases(folder: Path):
    """Name -> model, prompts (ids and mask), tokens at most, and the id of EOS (-1: replies never end)."""
    world = World.load("default")
    tokenizer, policy = load_tokenizer(world.base_model), load_policy(world.base_model, trainable=False)
    rows = [encode_prompt(tokenizer, prompt) for prompt in world.prompts("train", 64, 0)]
    prompts = left_pad(rows, tokenizer.pad_token_id)
    yield "sandbox, fixed", (policy, *prompts, 40, -1)
    yield "sandbox, own ends", (policy, *prompts, 40, tokenizer.eos_token_id)
    for name, shape in shapes.SHAPES.items():
        shapes.write(shape, folder / name, ends=False)
        policy = load_policy(folder / name / "policy", trainable=False)
        ids = torch.randint(2, shape.vocabulary, (shape.episodes, shape.prompt))
        yield f"{name}, fixed", (policy, ids, torch.ones_like(ids).bool(), shape.response, -1)


def measured(name: str, policy, ids, mask, longest: int, eos: int, *, runs: int) -> dict:
    """Seconds of both by turns, and the bound."""
    pad = 0
    found: dict[str, list[float]] = {"lab": [], "transformers": []}
    lengths = torch.zeros(0)
    for run in range(runs + 1):
        start = time.perf_counter()
        generator = torch.Generator().manual_seed(run)
        out = generate(policy, ids, mask, max_new_tokens=longest, eos_id=eos, pad_id=pad, generator=generator)
        middle = time.perf_counter()
        torch.manual_seed(run)
        policy.generate(
            input_ids=ids,
            attention_mask=mask.long(),
            max_new_tokens=longest,
            do_sample=True,
            top_k=0,
            top_p=1.0,
            eos_token_id=eos if eos >= 0 else None,
            pad_token_id=pad,
        )
        if run:  # the first one warms up
            found["lab"].append(middle - start)
            found["transformers"].append(time.perf_counter() - middle)
            lengths = torch.cat([lengths, out.lengths.float()])
    ratios = [theirs / ours for ours, theirs in zip(found["lab"], found["transformers"], strict=True)]
    return {
        "case": name,
        "ratio": statistics.median(ratios),
        "ratios": [min(ratios), max(ratios)],
        "seconds": {side: statistics.median(seconds) for side, seconds in found.items()},
        "mean_tokens": float(lengths.mean()),
        **bound(policy, ids, float(lengths.mean()), statistics.median(found["lab"])),
        "runs": runs,
        "threads": torch.get_num_threads(),
        "machine": hardware(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "commit": commit(),
    }


def bound(policy, ids: torch.Tensor, tokens: float, seconds: float) -> dict:
    """The least seconds for as many tokens a row, and the share of that in what it took."""
    config, batch = policy.config, len(ids)
    weights = sum(p.numel() for name, p in policy.named_parameters() if "embed" not in name)
    if config.tie_word_embeddings:
        weights += config.vocab_size * config.hidden_size
    rate = matrix_rate(config.hidden_size, config.intermediate_size, batch, torch.float32)
    multiply = 2 * weights * batch * (tokens + ids.shape[1]) / rate
    cache = 2 * config.num_hidden_layers * batch * config.hidden_size * 4
    read = (tokens * 4 * weights + cache * tokens * (ids.shape[1] + tokens / 2)) / copy_rate()
    return {
        "bound_seconds": max(multiply, read),
        "bound_by": "arithmetic" if multiply > read else "memory",
        "of_bound": max(multiply, read) / seconds,
    }


def copy_rate() -> float:
    """Bytes read a second, while 256 MB are summed: median of 7."""
    numbers = torch.ones(64 * 2**20)
    seconds = []
    for _ in range(8):
        start = time.perf_counter()
        numbers.sum()
        seconds.append(time.perf_counter() - start)
    return numbers.numel() * 4 / statistics.median(seconds[1:])


if __name__ == "__main__":
    sys.exit(main())
