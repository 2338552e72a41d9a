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
from rlhf_lab.rewards import EnsembleReward, ModelReward
from rlhf_lab.rewards.ensemble import combine
from rlhf_lab.training.best_of_n import score_pool
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
        rows = self.relabelled(self.rows, flip=flip)
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
        self._members[flip] = Members(scorers, torch.stack(scores), seconds)
        return self._members[flip]


def learn(name: str, shared: Shared, run: Run) -> Figures:
    """One unit: what the best of n gains in gold, and what PPO does, with the members combined so."""
    cfg, unit = shared.cfg, combinations(shared.cfg)[name]
    members = shared.members(unit.flip)
    alone = unit.combination == "single"
    used = 1 if alone else cfg.members
    found: Figures = {"members": used, "train_seconds": members.seconds * used / cfg.members}
    found |= best_of(members.scores, shared.gold, how=unit.combination, coef=cfg.uncertainty_coef, seed=cfg.seed)
    every, policy = max(cfg.ppo.updates // cfg.measurements, 1), models.load_policy(shared.sft_path)
    began = time.perf_counter()
    how, coef = "mean" if alone else unit.combination, cfg.uncertainty_coef
    measure = chain.optimise(
        name, policy, members.scorers[:used], shared, run, every=every,
        pay=lambda mean: EnsembleReward(mean.members, how, coef),
    )  # fmt: skip
    found["ppo_seconds"] = time.perf_counter() - began
    for row in measure.history().itertuples(index=False):
        update, score, kl, gold = row[:4]
        gain = gold - measure.baseline.answers["gold"].mean()
        found |= {f"ppo_{what}_at_{update}": float(v) for what, v in {"score": score, "kl": kl, "gold": gain}.items()}
    last = measure.results()
    return found | {"ppo": last["gold_gain"]} | {what: last[what] for what in ("kl", "win_rate", "eos_rate")}


def best_of(scores: torch.Tensor, gold: torch.Tensor, *, how: str, coef: float, seed: int) -> Figures:
    """Gold gained over one reply by the best of 2, 4, 8, ..., and accuracy against gold. Scores (M, B, N), gold (B, N).

    single: the mean of what each member gains alone, which is what one may expect of any of them.
    """
    rankers = list(scores) if how == "single" else [combine(scores, mode=how, coef=coef)]
    ns = [2**power for power in range(gold.shape[1].bit_length())]
    coin = torch.rand(gold.shape, generator=torch.Generator().manual_seed(seed))
    curves = torch.stack([best_of_n_curve(s, gold, ns, tie_breaker=coin).value.mean(0) for s in rankers]).mean(0)
    gains = (curves - curves[0]).tolist()
    right = sum(_agrees(ranker, gold) for ranker in rankers) / len(rankers)
    return {"accuracy_gold": right, "bon": gains[-1]} | {f"bon_at_{n}": gain for n, gain in zip(ns, gains, strict=True)}


def _agrees(scores: torch.Tensor, gold: torch.Tensor) -> float:
    """Agreement about the first and second of the pool, the third and fourth, and so on."""
    ours, theirs = ((x[:, 0:-1:2] - x[:, 1::2]).flatten().numpy() for x in (scores, gold))
    return chain.agreement(ours, theirs)
