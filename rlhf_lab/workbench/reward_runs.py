"""What 02_reward_model does around the training: ratings, the scale of the scores, the members of an ensemble."""

import json
from pathlib import Path
from typing import Any, NamedTuple

import torch

from rlhf_lab import data
from rlhf_lab.errors import LabError
from rlhf_lab.models import load_policy, load_tokenizer
from rlhf_lab.sandbox.world import World
from rlhf_lab.training.reward_model import normalise_to_reference, shift_to_demonstrations
from rlhf_lab.training.rollouts import sample_replies
from rlhf_lab.workbench import own_data
from rlhf_lab.workbench.artefacts import checkpoint, load_rankings, source
from rlhf_lab.workbench.runs import Run


class Beginning(NamedTuple):
    """What a reward model starts from, and the policy that answers prompts where one is needed."""

    path: str
    tokenizer: Any
    policy: Any  # None where nothing is sampled
    policy_tokenizer: Any


def beginning(cfg) -> Beginning:
    """The model named by `model`, or the policy itself."""
    policy_path = checkpoint(cfg.policy, "sft", cfg) if cfg.policy and (cfg.needs_policy or not cfg.model) else None
    path = cfg.model or policy_path
    tokenizer = load_tokenizer(path)
    if not cfg.needs_policy:
        return Beginning(path, tokenizer, None, None)
    own = load_tokenizer(policy_path) if cfg.model else tokenizer
    return Beginning(path, tokenizer, load_policy(policy_path, trainable=False), own)


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


def held_out_split(cfg, files: dict[str, Path], labelled, tokenizer) -> data.Split:
    """What is learned from and what is measured on: no prompt is in both, and for `split` no opening either."""
    if cfg.heldout == "split":
        return data.hold_out_openings(labelled, cfg.n_heldout, seed=cfg.seed)
    held_out = load_rankings(
        cfg.heldout, files, "heldout_comparisons", cfg.columns, cfg.n_heldout, tokenizer, on_bad=cfg.on_bad
    )
    return data.Split(labelled, data.unseen(held_out, labelled, on_bad=cfg.on_bad))


def demonstrations(cfg, files: dict[str, Path], tokenizer):
    """Replies whose mean score is to be 0, as text; None where there are none."""
    if not cfg.demonstrations:
        return None
    rows = data.load_demonstrations(source(cfg.demonstrations, files, "demonstrations"), on_bad=cfg.on_bad)
    return data.to_text(rows, tokenizer)


def that_fit(cfg, scorer, tokenizer, rows):
    """The rows all of whose replies fit into what the model reads; with `on_bad: drop` the others are left out.

    A reply is never cut. Errors: `LabError` naming the first row that does not fit, or when none is left.
    """
    room = scorer.limit(cfg.max_length)
    if room is None:
        return rows
    texts = rows["completions"] if "completions" in rows.column_names else [[text] for text in rows["completion"]]
    longest = [max(len(data.encode_reply(tokenizer, text)) for text in replies) for replies in texts]
    bad = [number for number, length in enumerate(longest) if length >= room]
    return own_data.without(cfg, rows, bad, f"a reply that leaves no room for a prompt in {room} tokens")


class Sample(NamedTuple):
    """Replies of the reference policy, to set the scale of the scores by."""

    prompts: list[str]
    completions: list[str]
    finished: list[bool]


def reference_sample(cfg, policy, tokenizer, rows) -> Sample | None:
    """A reply to each of the first `reference_replies` prompts of the data; None where they set no scale.

    A prompt that leaves no room for a reply is passed over. Errors: `LabError` if all are such.
    """
    if cfg.normalise != "reference":
        return None
    prompts = list(dict.fromkeys(rows["prompt"]))
    most = own_data.room(cfg, policy) - cfg.max_new_tokens
    prompts = [
        text for text, length in zip(prompts, own_data.lengths(tokenizer, prompts), strict=True) if length <= most
    ]
    prompts = prompts[: cfg.reference_replies]
    if not prompts:
        raise LabError(f"no prompt leaves room for a reply of {cfg.max_new_tokens} tokens; raise 'max_length'")
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
