"""Rounds of labelling and learning: which pairs are asked about, what is learned from the labels, and what came of it.

`ground` is what all arms of a study share: cfg (with seed, pool, labels, members, max_new_tokens, precision,
eval_prompts, reward_model and ppo), world (None without a sandbox), sft_path, models, tokenizer, and the prompts train
and held_out, with two replies of the SFT model to each of the latter, duel.
"""

import random
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch

from rlhf_lab import models
from rlhf_lab.errors import LabError
from rlhf_lab.rewards import EnsembleReward, Reward
from rlhf_lab.rewards.ensemble import disagreement
from rlhf_lab.sandbox.world import World
from rlhf_lab.training.best_of_n import Pool, sample_pool, score_pool
from rlhf_lab.workbench.evaluation import Measure
from rlhf_lab.workbench.labelling import Item, Items, pair_items
from rlhf_lab.workbench.reward_runs import member
from rlhf_lab.workbench.runs import Run
from rlhf_lab.workbench.studies import chain
from rlhf_lab.workbench.studies.units import Figures


class Learned(NamedTuple):
    """What a round's labels come to."""

    scorers: list  # the reward models
    reward: EnsembleReward  # their mean, in standard deviations over the SFT model's replies
    policy: object
    measure: Measure


# ---- Which pairs are labelled


def candidates(ground: Any, policy, number: int, name: str) -> Items:
    """Two replies of a policy to each of a round's prompts; a line says how many pairs cannot be compared.

    name: who the policy is; annotators do not see it. Prompts are new in every round, and the same for all arms.
    Errors: `LabError` where fewer than `labels` are left.
    """
    cfg = ground.cfg
    prompts = ground.train[(number - 1) * cfg.pool : number * cfg.pool]
    sampling = {"max_new_tokens": cfg.max_new_tokens, "seed": cfg.seed + 1000 * number}
    pool = sample_pool(policy, ground.tokenizer, prompts, size=2, **sampling)
    rows = [
        {"prompt": prompt, "reply_a": a, "reply_b": b, "model_a": name, "model_b": name}
        | {"finished": finished, "models": ground.models}
        for prompt, (a, b), finished in zip(*pool, strict=True)
    ]
    items = pair_items(rows, on_bad="drop")
    if len(items.items) < cfg.labels:
        raise LabError(
            f"round {number}: {len(items.items)} of {cfg.pool} pairs of replies differ, but 'labels' is {cfg.labels}; "
            "raise 'pool', or lower 'labels'"
        )
    return items


def chosen(items: Items, n: int, *, seed: str, doubt: Sequence[float] | None = None) -> Items:
    """`n` of the items, in their order: the ones of the greatest doubt, else at random. A coin decides between equals.

    doubt: one number for each item, such as `disagreement`; None chooses uniformly.
    """
    order = list(range(len(items.items)))
    random.Random(seed).shuffle(order)
    if doubt is not None:
        order.sort(key=lambda place: -doubt[place])  # stable, so that the coin stands behind it
    return Items(items.kind, tuple(items.items[place] for place in sorted(order[:n])))


def doubts(learned: Learned, items: Items) -> list[float]:
    """How far the reward models disagree about each pair. Each one's scores in the logits that it was trained in."""
    scores = score_pool_of_members(learned.reward, as_pool(items.items))
    gains = torch.tensor([scorer.gain for scorer in learned.scorers], dtype=torch.float64)
    return disagreement((scores[:, :, 0] - scores[:, :, 1]) / gains[:, None]).tolist()


def score_pool_of_members(reward: EnsembleReward, pool: Pool) -> torch.Tensor:
    """(M, B, N) scores of the members."""
    return torch.stack([score_pool(member, pool) for member in reward.members])


def as_pool(items: Sequence[Item]) -> Pool:
    """The replies of pairs."""
    return Pool(
        [item.prompt for item in items],
        [list(item.replies) for item in items],
        [list(item.about["finished"]) for item in items],
    )


# ---- What is learned from them


def learn(ground: Any, rows: Sequence[dict], run: Run, name: str) -> Learned:
    """Reward models from rows of chosen and rejected replies, and PPO from the SFT model against their mean."""
    cfg = ground.cfg
    settings = cfg.reward_model.model_copy(update={"seed": cfg.seed, "precision": cfg.precision})
    scorers = [
        chain.train_scorer(
            member(settings, number), ground.sft_path, ground.tokenizer, chain.rankings_of(rows), run,
            f"{name}: reward model {number + 1} of {cfg.members}",
        )
        for number in range(cfg.members)
    ]  # fmt: skip
    policy = models.load_policy(ground.sft_path)
    measure = chain.optimise(name, policy, scorers, ground, run)
    return Learned(scorers, measure.reward, policy, measure)


def own_pairs(ground: Any, policy) -> Pool:
    """Two replies of a policy to each held-out prompt."""
    sampling = {"max_new_tokens": ground.cfg.max_new_tokens, "seed": ground.cfg.seed + 400}
    return sample_pool(policy, ground.tokenizer, ground.held_out, size=2, **sampling)


def learned_figures(ground: Any, rows: Sequence[dict], learned: Learned, own: Pool) -> Figures:
    """What labels have come to: their own worth, the reward models against gold, and the policy.

    own: the policy's `own_pairs`.
    """
    figures = {"pairs": len(rows), "duplicates": float(np.mean([a == b for a, b in own.replies]))}
    if ground.world is not None:
        figures["label_accuracy"] = _agrees(ground.world, rows)
        pools = {"accuracy_gold": ground.duel, "accuracy_policy": own}
        figures |= {key: right_share(learned.reward, ground.world, pool) for key, pool in pools.items()}
    return figures | learned.measure.results()


def right_share(ranker: Reward, world: World, pool: Pool) -> float:
    """How often a reward prefers the one of a pool's first two replies that gold prefers."""
    return chain.agreement(lead(ranker, pool), lead(world.gold, pool))


def lead(ranker: Reward, pool: Pool) -> np.ndarray:
    """How far a pool's first replies lead."""
    scores = score_pool(ranker, pool)
    return (scores[:, 0] - scores[:, 1]).numpy()


def _agrees(world: World, rows: Sequence[dict]) -> float:
    prompts = [row["prompt"] for row in rows]
    better, worse = (np.array(world.gold(prompts, [row[side] for row in rows])) for side in ("chosen", "rejected"))
    return chain.agreement(np.ones(len(rows)), better - worse)
