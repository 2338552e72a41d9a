"""What 02_reward_model does around the training: ratings, the scale of the scores, the members of an ensemble."""

import json
from pathlib import Path
from typing import NamedTuple

import torch

from rlhf_lab import data
from rlhf_lab.errors import LabError
from rlhf_lab.sandbox.world import World
from rlhf_lab.training.reward_model import normalise_to_reference, shift_to_demonstrations
from rlhf_lab.training.rollouts import sample_replies
from rlhf_lab.workbench.artefacts import load_rankings, source
from rlhf_lab.workbench.runs import Run


def sandbox_ratings(cfg, run: Run, world: World | None, files: dict[str, Path]) -> dict[str, Path]:
    """Let the simulated labeler rate the replies that were sampled to be ranked: 1 to 5. {} where none are wanted."""
    if world is None or not cfg.rated or cfg.ratings != "sandbox":
        return {}
    if "comparisons" not in files:
        raise LabError(
            "ratings is 'sandbox', whose replies are those of the comparisons; leave preferences at 'sandbox'"
        )
    labeler = world.labeler(**{**cfg.labeler.model_dump(), "seed": cfg.labeler.seed + cfg.seed})
    ranked = [json.loads(line) for line in files["comparisons"].read_text(encoding="utf-8").splitlines()]
    rows = [
        {"prompt": row["prompt"], "completion": text, "finished": ended}
        for row in ranked
        for text, ended in zip(row["completions"], row["finished"], strict=True)
    ]
    ratings = labeler.rate([row["prompt"] for row in rows], [row["completion"] for row in rows])
    path = run.file("data") / "ratings.jsonl"
    lines = [json.dumps(row | {"rating": rating}) + "\n" for row, rating in zip(rows, ratings, strict=True)]
    path.write_text("".join(lines), encoding="utf-8")
    return {"ratings": path}


def training_rows(cfg, files: dict[str, Path], tokenizer):
    """What the reward model learns from, as text: rankings, or rated replies where the loss wants these."""
    if not cfg.rated:
        return load_rankings(
            cfg.preferences, files, "comparisons", cfg.columns, cfg.n_prompts, tokenizer, on_bad=cfg.on_bad
        )
    where = source(cfg.ratings, files, "ratings")
    if cfg.ratings == "sandbox":
        return data.load_ratings(where)
    rows = data.load_ratings(where, columns=cfg.columns, limit=cfg.n_prompts, on_bad=cfg.on_bad)
    return data.to_text(rows, tokenizer)


class Sample(NamedTuple):
    """Replies of the reference policy, to set the scale of the scores by."""

    prompts: list[str]
    completions: list[str]
    finished: list[bool]


def reference_sample(cfg, policy, tokenizer, rows) -> Sample | None:
    """A reply to each of the first `reference_replies` prompts of the data; None where they set no scale."""
    if cfg.normalise != "reference":
        return None
    prompts = list(dict.fromkeys(rows["prompt"]))[: cfg.reference_replies]
    replies, finished = sample_replies(
        policy, tokenizer, prompts, max_new_tokens=cfg.max_new_tokens, temperature=1.0, seed=cfg.seed + 2
    )
    return Sample(prompts, list(replies), list(finished))


def normalise_before(cfg, scorer, tokenizer, sample: Sample | None) -> None:
    """Ziegler's first normalisation, of a fresh head. Ratings bring a scale of their own, so they go without."""
    if sample is not None and not cfg.rated:
        _to_reference(cfg, scorer, tokenizer, sample)


def normalise(cfg, scorer, tokenizer, demonstrations, sample: Sample | None) -> None:
    """After training: demonstrations to 0 on average, or the reference's replies to 0 with deviation 1, or nothing."""
    if cfg.normalise == "demonstrations":
        shift_to_demonstrations(scorer, tokenizer, demonstrations, max_length=cfg.max_length)
    if sample is not None:
        _to_reference(cfg, scorer, tokenizer, sample)


def _to_reference(cfg, scorer, tokenizer, sample: Sample) -> None:
    texts = {"finished": sample.finished, "max_length": cfg.max_length}
    normalise_to_reference(scorer, tokenizer, sample.prompts, sample.completions, **texts)


def member(cfg, number: int):
    """The settings of a further member of the ensemble: another seed for the order of the data and for the head."""
    seed = (cfg.seed + 10_000 * number) % 2**32
    torch.manual_seed(seed)
    return cfg.model_copy(update={"seed": seed})
