"""13_ensembles: reward models from the same comparisons, combined in several ways; what is chosen and learned by each.

Source: Coste et al. 2023 (2310.02743). Their members too differ in their heads and in the order of the data alone.
"""

import time
from functools import cached_property
from typing import Any, NamedTuple

import torch

from rlhf_lab import models
from rlhf_lab.maths import best_of_n_curve
from rlhf_lab.models import Scorer
from rlhf_lab.rewards import EnsembleReward, ModelReward, call_reward
from rlhf_lab.rewards.ensemble import combine
from rlhf_lab.training.best_of_n import score_pool
from rlhf_lab.workbench.evaluation import Measure
from rlhf_lab.workbench.reward_runs import member
from rlhf_lab.workbench.runs import Run
from rlhf_lab.workbench.stages import EnsemblesStage
from rlhf_lab.workbench.studies import chain
from rlhf_lab.workbench.studies.ground import Ground
from rlhf_lab.workbench.studies.units import Figures

LISTS = {"flips", "combinations", "uncertainty_coef"}
"""What only lists the units. Each has of it what is its own."""


class Combined(NamedTuple):
    """A unit: how noisy the labels are, and how the members become one score."""

    flip: float
    combination: str  # single: one alone


def combinations(cfg: EnsemblesStage) -> dict[str, Combined]:
    """Unit -> what it is."""
    return {f"flip_{flip:g}_{how}": Combined(flip, how) for flip in cfg.flips for how in cfg.combinations}


def own_settings(cfg: EnsemblesStage) -> dict[str, dict[str, Any]]:
    """Unit -> what is its own."""
    return {
        name: unit._asdict() | ({"coef": cfg.uncertainty_coef} if unit.combination == "uncertainty" else {})
        for name, unit in combinations(cfg).items()
    }


class Members(NamedTuple):
    """The reward models of one level of noise, and their scores of the pool."""

    scorers: list[Scorer]
    scores: torch.Tensor  # (M, B, N)
    flipped: float  # share of the labels that were turned round
    seconds: float  # that training them took


class Shared(Ground):
    """What all units of a seed share, made when it is first asked for; the members once for each level of noise."""

    cfg: EnsemblesStage

    def __init__(self, cfg: EnsemblesStage, run: Run):
        super().__init__(cfg, max(cfg.comparisons * 5 // 4 + 4, cfg.ppo.batch_size * cfg.ppo.updates))
        self.run = run
        self._members: dict[float, Members] = {}

    @cached_property
    def rows(self) -> list[dict[str, Any]]:
        """The comparisons."""
        return self.comparisons(self.labeler(), n=self.cfg.comparisons)

    @cached_property
    def replies(self):
        """The pool."""
        return self.pool(self.cfg.pool_size, prompts=self.cfg.pool_prompts)

    @cached_property
    def gold(self) -> torch.Tensor:
        """(B, N) gold of the pool."""
        return score_pool(self.world.gold, self.replies)

    def members(self, flip: float) -> Members:
        """Reward models from the comparisons with so many labels flipped, of one scale on the SFT model's replies."""
        if flip in self._members:
            return self._members[flip]
        cfg = self.cfg
        clean, rows = (self.relabelled(self.rows, flip=share) for share in (0.0, flip))
        turned = sum(row["ranks"] != old["ranks"] for row, old in zip(rows, clean, strict=True))
        settings = cfg.reward_model.model_copy(update={"seed": cfg.seed, "precision": cfg.precision})
        began = time.perf_counter()
        scorers = [
            chain.train_scorer(
                member(settings, number), self.sft_path, self.tokenizer, rows, self.run,
                f"{flip:.0%} flipped: reward model {number + 1} of {cfg.members}",
            )
            for number in range(cfg.members)
        ]  # fmt: skip
        seconds = time.perf_counter() - began
        chain.normalise(scorers, self.sft, self)
        scores = [score_pool(ModelReward(scorer, self.tokenizer, self.tokenizer), self.replies) for scorer in scorers]
        self._members[flip] = Members(scorers, torch.stack(scores), turned / len(rows), seconds)
        return self._members[flip]


def learn(name: str, shared: Shared, run: Run) -> Figures:
    """One unit: what the best of n gains in gold, and what PPO does, with the members combined so."""
    began, cfg, unit = time.perf_counter(), shared.cfg, combinations(shared.cfg)[name]
    members, coef = shared.members(unit.flip), cfg.uncertainty_coef
    alone = unit.combination == "single"
    used, how = (1, "mean") if alone else (cfg.members, unit.combination)
    found: Figures = {
        "members": used,
        "train_seconds": members.seconds * used / cfg.members,
        "flipped": members.flipped,
        "member_correlation": correlation(members.scores),
    }
    found |= best_of(members.scores, shared.gold, how=unit.combination, coef=coef, seed=cfg.seed)
    every, policy = cfg.ppo.updates // cfg.measurements, models.load_policy(shared.sft_path)
    ppo_began = time.perf_counter()
    measure = chain.optimise(
        name, policy, members.scorers[:used], shared, run, every=every,
        pay=lambda mean: EnsembleReward(mean.members, how, coef),
    )  # fmt: skip
    found["ppo_seconds"] = time.perf_counter() - ppo_began
    found |= along_ppo(measure, chain.ensemble(members.scorers, shared.tokenizer), used, how=how, coef=coef)
    last = measure.results()
    found |= {"ppo": last["gold_gain"]} | {what: last[what] for what in ("kl", "win_rate", "eos_rate")}
    return found | {"seconds": time.perf_counter() - began}


def along_ppo(measure: Measure, everyone: EnsembleReward, used: int, *, how: str, coef: float) -> Figures:
    """At each measurement of PPO: KL, gain in gold, score (the mean of the members used) and what of it was paid.

    disagreement: the standard deviation of the scores of all members, also of those not used, averaged over replies.
    """
    found: Figures = {}
    for update, point in measure.points.items():
        answers = point.answers
        gold, before = answers["gold"].mean(), measure.baseline.answers["gold"].mean()
        replies = {"prompts": answers["prompt"], "completions": answers["reply"], "finished": answers["finished"]}
        call_reward(everyone, **{name: column.tolist() for name, column in replies.items()})
        scores = torch.tensor(everyone.last, dtype=torch.float64)  # (M, B)
        figures = {
            "kl": point.kl,
            "gold": gold - before,
            "score": point.proxy,
            "paid": combine(scores[:used], mode=how, coef=coef).mean(),
            "disagreement": scores.std(0, correction=0).mean(),
        }
        found |= {f"ppo_{what}_at_{update}": float(value) for what, value in figures.items()}
    return found | {f"ppo_{name}": value for name, value in chain.reply_figures(measure).items()}


def correlation(scores: torch.Tensor) -> float:
    """Of two members' scores, on the average of all pairs of members. Scores (M, B, N)."""
    found, m = torch.corrcoef(scores.flatten(1)), len(scores)
    return ((found.sum() - m) / (m * (m - 1))).item()


def best_of(scores: torch.Tensor, gold: torch.Tensor, *, how: str, coef: float, seed: int) -> Figures:
    """The best of 1, 2, 4, ...: gold gained over one reply, and score; and agreement with gold.

    Shapes: scores (M, B, N), gold (B, N).

    single: the mean of what each member gains alone, which is what one may expect of any of them, and what the first
    gains, which is who pays PPO.
    """
    rankers = list(scores) if how == "single" else [combine(scores, mode=how, coef=coef)]
    ns = [2**power for power in range(gold.shape[1].bit_length())]
    coin = torch.rand(gold.shape, generator=torch.Generator().manual_seed(seed))
    curves = [best_of_n_curve(ranker, gold, ns, tie_breaker=coin) for ranker in rankers]
    gain = torch.stack([curve.value.mean(0) for curve in curves])
    gain = gain - gain[:, :1]  # (rankers, n's)
    columns = {"bon": gain.mean(0), "bon_score": torch.stack([curve.score.mean(0) for curve in curves]).mean(0)}
    columns |= {"bon_first": gain[0]} if how == "single" else {}
    found = {
        "accuracy_gold": sum(_agrees(ranker, gold) for ranker in rankers) / len(rankers),
        "score_sd": sum(ranker.std().item() for ranker in rankers) / len(rankers),
        "bon": gain.mean(0)[-1].item(),
    }
    return found | {f"{name}_at_{n}": x for name, xs in columns.items() for n, x in zip(ns, xs.tolist(), strict=True)}


def _agrees(scores: torch.Tensor, gold: torch.Tensor) -> float:
    """Agreement about the first and second of the pool, the third and fourth, and so on."""
    ours, theirs = ((x[:, 0:-1:2] - x[:, 1::2]).flatten().numpy() for x in (scores, gold))
    return chain.agreement(ours, theirs)
