"""Measuring a policy on the same held-out prompts, before and after: replies, gold by part, win rate."""

import random
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd
import torch

from rlhf_lab.maths import kl_estimate
from rlhf_lab.rewards import call_reward
from rlhf_lab.training.rollouts import decode_replies, rollout, sample_replies


def win_rate(ours: Sequence[float], theirs: Sequence[float]) -> float:
    """Share of prompts on which our value is higher; a tie counts one half."""
    ours, theirs = np.asarray(ours, dtype=float), np.asarray(theirs, dtype=float)
    return float(((ours > theirs) + 0.5 * (ours == theirs)).mean())


def answer(policy, tokenizer, prompts: Sequence[str], *, max_new_tokens: int, temperature=1.0, seed=0) -> pd.DataFrame:
    """One sampled reply to each prompt: columns prompt, reply, finished, words."""
    replies, finished = sample_replies(
        policy, tokenizer, prompts, max_new_tokens=max_new_tokens, temperature=temperature, seed=seed
    )
    return pd.DataFrame(
        {
            "prompt": prompts,
            "reply": replies,
            "finished": finished,
            "words": [len(r.split()) for r in replies],
        }
    )


def with_gold(answers: pd.DataFrame, world) -> pd.DataFrame:
    """The answers with a column `gold` and one for each of its parts, in reference standard deviations.

    Without a world there is no gold, and the answers come back as they are.
    """
    if world is None:
        return answers
    parts = [world.gold_parts(p, r) for p, r in zip(answers["prompt"], answers["reply"], strict=True)]
    gold = world.gold(prompts=answers["prompt"].tolist(), completions=answers["reply"].tolist())
    return answers.assign(gold=gold, **pd.DataFrame(parts, index=answers.index).to_dict("series"))


def by_part(named: dict[str, pd.DataFrame]) -> pd.DataFrame:
    """Mean gold by part, one row per model: where a difference comes from."""
    columns = ["gold", "helpful", "honest", "harmless", "concise", "manner", "words", "finished"]
    known = [column for column in columns if column in next(iter(named.values()))]
    return pd.DataFrame({name: answers[known].mean() for name, answers in named.items()}).T.round(2)


def side_by_side(named: dict[str, pd.DataFrame], n: int = 6) -> pd.DataFrame:
    """The first `n` prompts and every model's reply, with gold where it is known."""
    first = next(iter(named.values()))
    table = pd.DataFrame({"prompt": first["prompt"]})
    for name, answers in named.items():
        table[name] = answers["reply"]
        if "gold" in answers:
            table[f"{name}, gold"] = answers["gold"].round(2)
    return table.head(n)


def repliers(policies: dict[str, object], tokenizer, max_new_tokens: int) -> dict[str, Callable[[str], str]]:
    """Name -> a function from a prompt to a sampled reply, for the box of one's own prompts."""

    def replier(policy) -> Callable[[str], str]:
        return lambda prompt: sample_replies(policy, tokenizer, [prompt], max_new_tokens=max_new_tokens)[0][0]

    return {name: replier(policy) for name, policy in policies.items()}


class ShotsReport(NamedTuple):
    """What a base model does behind worked examples."""

    table: pd.DataFrame  # one row per number of examples: gold, parsed, finished, words
    answers: dict[int, pd.DataFrame]
    results: dict[str, float]


def shots_report(policy, tokenizer, world, prompts: Sequence[str], *, shots: Sequence[int], seed=0) -> ShotsReport:
    """Gold and form of the replies behind 0, 1, 3, ... worked examples by a careful host."""
    answers = {}
    for n in shots:
        rng = random.Random(seed)
        behind = [world.shots(prompt, n, rng, tokenizer.eos_token) for prompt in prompts]
        answers[n] = with_gold(answer(policy, tokenizer, behind, max_new_tokens=40, seed=seed), world)
    rows = {
        n: {
            "gold": table["gold"].mean(),
            "parsed": np.mean([world.parses(reply) for reply in table["reply"]]),
            "finished": table["finished"].mean(),
            "words": table["words"].mean(),
        }
        for n, table in answers.items()
    }
    table = pd.DataFrame(rows).T.rename_axis("worked examples").round(3)
    results = {f"gold_{n}_shots": float(row["gold"]) for n, row in rows.items()}
    return ShotsReport(table, answers, results | {"parsed": float(rows[shots[0]]["parsed"])})


class Measure:
    """Measures a policy on the held-out prompts as it trains, against where it started; same random numbers."""

    class Point(NamedTuple):
        """One measurement."""

        answers: pd.DataFrame
        proxy: float
        kl: float

    def __init__(self, cfg, tokenizer, held_out, reward, world, *, baseline):
        """held_out: a data set with `prompt` and whatever further columns the reward asks for."""
        self.cfg, self.tokenizer, self.reward, self.world = cfg, tokenizer, reward, world
        self.columns = held_out.to_dict()
        self.prompts = self.columns.pop("prompt")
        self.reference = baseline
        self.points: dict[int, Measure.Point] = {}
        self.past: dict[int, dict[str, float]] = {}  # of an earlier part of a run that was resumed
        self(baseline, 0)

    @property
    def baseline(self) -> "Measure.Point":
        """The measurement before training."""
        return self.points[0]

    @property
    def last(self) -> "Measure.Point":
        """The newest measurement."""
        return self.points[max(self.points)]

    def __call__(self, policy, update: int) -> dict[str, float]:
        """Measure now; the figures for the run's log."""
        generator = torch.Generator(device=policy.device).manual_seed(self.cfg.seed + 1)
        once = self.cfg.model_copy(update={"samples_per_prompt": 1})
        batch = rollout(
            policy,
            self.reference,
            None,
            self.reward,
            self.tokenizer,
            self.prompts,
            once,
            generator,
            self.columns,
        )
        replies = decode_replies(self.tokenizer, batch.response_ids, batch.response_mask)
        answers = pd.DataFrame({"prompt": self.prompts, "reply": replies})
        answers = answers.assign(finished=batch.finished.cpu().numpy(), words=answers["reply"].str.split().str.len())
        kl = kl_estimate(batch.old_logp, batch.ref_logp, kind="k1").sum(1).mean().item()
        self.points[update] = Measure.Point(with_gold(answers, self.world), batch.scores.mean().item(), kl)
        return self._figures(update)

    def _figures(self, update: int) -> dict[str, float]:
        point = self.points[update]
        figures = {"heldout/score": point.proxy, "heldout/kl": point.kl}
        if self.world is None:
            return figures
        gold, start = point.answers["gold"], self.baseline.answers["gold"]
        return figures | {"gold/mean": float(gold.mean()), "gold/win_rate": win_rate(gold, start)}

    def take_up(self, policy, history: list[dict], updates: int, replies: int) -> None:
        """Go on with a run that has done `updates` of `replies` each and logged `history`: measure where it stands."""
        names = ("heldout/score", "heldout/kl", "gold/mean", "gold/win_rate")
        for row in history:
            if "heldout/score" in row:
                self.past[row["episode"] // replies] = {name: row[name] for name in names if name in row}
        if updates:
            self(policy, updates)

    def history(self) -> pd.DataFrame:
        """One row per measurement: update, KL, proxy, and gold where it is known."""
        rows = self.past | {update: self._figures(update) for update in self.points}
        return pd.DataFrame([{"update": update, **rows[update]} for update in sorted(rows)])

    def results(self) -> dict[str, float]:
        """What the run reports."""
        first, last = self.baseline, self.last
        results = {
            "kl": last.kl,
            "score": last.proxy,
            "score_before": first.proxy,
            "eos_rate": float(last.answers["finished"].mean()),
            "words": float(last.answers["words"].mean()),
        }
        if self.world is None:
            return results
        before, after = first.answers["gold"], last.answers["gold"]
        gold = {
            "gold_gain": float((after - before).mean()),
            "win_rate": win_rate(after, before),
            "gold": float(after.mean()),
            "gold_sft": float(before.mean()),
        }
        return gold | results


def gold_results(**named: pd.DataFrame) -> dict[str, float]:
    """What a run reports of several models' answers: gold first, then EOS rate and length of each."""
    with_gold = {name: answers["gold"] for name, answers in named.items() if "gold" in answers}
    results = {f"gold_{name}": float(gold.mean()) for name, gold in with_gold.items()}
    for name, answers in named.items():
        results[f"eos_rate_{name}"] = float(answers["finished"].mean())
        results[f"words_{name}"] = float(answers["words"].mean())
    return results | {f"gold_{name}_std": float(gold.std()) for name, gold in with_gold.items()}


def scorer(reward) -> Callable[[str, str], float]:
    """A reward as a function of one prompt and one reply."""
    return lambda prompt, reply: call_reward(reward, prompts=[prompt], completions=[reply], finished=[True])[0]
