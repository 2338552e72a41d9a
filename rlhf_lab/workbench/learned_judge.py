"""What 04_judge_bias needs to make a judge of its own: its settings, its comparisons, and what it reports."""

import json
from typing import Annotated, Literal

import pandas as pd
from pydantic import Field

from rlhf_lab import data
from rlhf_lab.config import Config
from rlhf_lab.judges.backends.language_model import JudgeTemplate
from rlhf_lab.sandbox.labelers import LabelerConfig
from rlhf_lab.training.sft import SFTConfig


class LearnedJudgeConfig(Config):
    """A small language model, fine-tuned to name the better of two replies, once for each of `first_shares`."""

    model: str = "sandbox"  # what is fine-tuned: a path, a hub id, or the sandbox's base model
    preferences: str = "sandbox"  # a file or hub id with prompt, chosen, rejected
    columns: dict[str, str] = {}
    n_prompts: int = Field(1000, ge=1)  # comparisons; in the sandbox the best and the worst reply to each prompt
    k: int = Field(4, ge=2)  # sampled replies that the labeler ranks for each prompt
    labeler: LabelerConfig = LabelerConfig()  # who ranks in the sandbox; its seed is added to the run's
    first_shares: list[Annotated[float, Field(ge=0, le=1)]] = [0.5, 0.8]  # how often the better one stands first
    template: JudgeTemplate = JudgeTemplate()  # what it reads, and its two answers
    epochs: float = Field(3.0, gt=0)  # passes over the comparisons
    batch_size: int = Field(16, ge=1)  # comparisons in an optimizer step
    lr: float = Field(7e-4, gt=0)  # AdamW peak, decayed by a cosine
    max_length: int = Field(256, ge=2)  # tokens of question and verdict; the question is cut from the left
    precision: Literal["auto", "fp32", "bf16"] = "fp32"

    def sft(self, seed: int) -> SFTConfig:
        """The settings of the fine-tuning."""
        names = ("epochs", "batch_size", "lr", "max_length", "precision")
        return SFTConfig(seed=seed, lr_schedule="cosine", **{name: getattr(self, name) for name in names})


def judge_preferences(cfg, run, world, policy, tokenizer, held_out) -> list[dict[str, str]]:
    """Rows of prompt, chosen and rejected to learn judging from; none of their prompts is among those held out.

    In the sandbox the policy answers training prompts, and a labeler ranks the replies. Without the sandbox and
    without preferences of one's own there are none, and a line says so.
    """
    from rlhf_lab.training.comparisons import sample_rankings

    learned = cfg.learned
    if learned is None:
        return []
    if learned.preferences != "sandbox":
        how = {"columns": learned.columns, "limit": learned.n_prompts, "on_bad": cfg.on_bad}
        rows = data.to_text(data.load_preferences(learned.preferences, **how), tokenizer).to_list()
        kept = [row for row in rows if row["prompt"] not in set(held_out)]
        if len(kept) < len(rows):
            print(f"{learned.preferences}: {len(rows) - len(kept)} comparisons left out, their prompts are held out")
        return kept
    if world is None:
        print("no judge is trained: give learned.preferences and learned.model, or a sandbox")
        return []
    labeler = world.labeler(**{**learned.labeler.model_dump(), "seed": learned.labeler.seed + cfg.seed})
    rankings = sample_rankings(
        policy,
        tokenizer,
        world.prompts("train", learned.n_prompts, cfg.seed + 2),
        labeler.rank,
        k=learned.k,
        max_new_tokens=cfg.max_new_tokens,
        seed=cfg.seed + 3,
    )
    rows = [_best_against_worst(row) for row in rankings]
    lines = "".join(json.dumps(row) + "\n" for row in rows)
    (run.file("data") / "judge_preferences.jsonl").write_text(lines, encoding="utf-8")
    return rows


def _best_against_worst(row: dict) -> dict[str, str]:
    replies = [reply for _, reply in sorted(zip(row["ranks"], row["completions"], strict=True))]
    return {"prompt": row["prompt"], "chosen": replies[0], "rejected": replies[-1]}


def mass(verdicts: pd.DataFrame) -> pd.Series:
    """How much probability a language model gave to its two verdicts together, by judge: near 1 where it answers."""
    return (verdicts["score_a"] + verdicts["score_b"]).groupby(verdicts["judge"], sort=False).mean()


def learned_results(summary: pd.DataFrame, verdicts: pd.DataFrame, names: dict[str, float]) -> dict[str, float]:
    """What is recorded of the learned judges. names: judge -> share of its training pairs with the better one first."""
    found = summary.set_index(["judge", "statistic"])["value"]
    results = {}
    for name, share in names.items():
        for statistic in ("accuracy", "consistency", "first_share", "excess_length"):
            results[f"learned_{share:g}_{statistic}"] = float(found[(name, statistic)])
        results[f"learned_{share:g}_mass"] = float(mass(verdicts)[name])
    return results
