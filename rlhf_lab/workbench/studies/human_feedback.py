"""08_human_feedback: rounds of labelling and learning. What a round consists of; the loop is in human_feedback_loop.

In every round the reward models learn from all labels so far and PPO begins anew at the SFT model, as in the iterated
online training of Bai et al. 2022 (2204.05862), section 4.5. So the arms differ in their labels and in nothing else.
"""

import random
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
import torch

from rlhf_lab import data, models
from rlhf_lab.errors import LabError
from rlhf_lab.rewards import EnsembleReward
from rlhf_lab.rewards.ensemble import disagreement
from rlhf_lab.sandbox.labelers import Labeler
from rlhf_lab.sandbox.world import World
from rlhf_lab.training.best_of_n import Pool, sample_pool, score_pool
from rlhf_lab.workbench import artefacts
from rlhf_lab.workbench.evaluation import Measure
from rlhf_lab.workbench.labelling import Item, Items, LabelFile, answer_table, export_preferences, pair_items
from rlhf_lab.workbench.records import read_jsonl
from rlhf_lab.workbench.reward_runs import member
from rlhf_lab.workbench.runs import Run
from rlhf_lab.workbench.stages import HumanFeedbackStage
from rlhf_lab.workbench.studies import chain
from rlhf_lab.workbench.studies.finished_lines import fingerprint
from rlhf_lab.workbench.studies.units import Figures


class Ground(NamedTuple):
    """What all arms share."""

    cfg: HumanFeedbackStage
    world: World | None
    sft_path: str
    models: str  # a fingerprint of the SFT model's weights
    sft: object  # that model, frozen
    tokenizer: object
    train: list[str]  # prompts of the pairs, a part of them for each round, and of PPO
    held_out: list[str]
    labeler: Labeler | None  # the simulated one, with the biases that the run plants
    duel: Pool  # two replies of the SFT model to each held-out prompt
    verdicts: np.ndarray | None  # what an unbiased simulated labeler says of them: 1 the first, -1 the second, 0 equal


class Learned(NamedTuple):
    """What a round's labels come to."""

    scorers: list  # the reward models
    reward: EnsembleReward  # their mean, in standard deviations over the SFT model's replies
    policy: object
    measure: Measure


def common_ground(cfg: HumanFeedbackStage, run: Run) -> Ground:
    """Load what all arms share. Errors: `LabError` on fewer prompts than the rounds take."""
    world, files = artefacts.sandbox_files(cfg, run)
    train, held_out = artefacts.prompt_split(cfg, files)
    path = artefacts.checkpoint(cfg.policy, "sft", cfg)
    tokenizer = models.load_tokenizer(path)
    train, held_out = (list(data.to_text(rows, tokenizer)["prompt"]) for rows in (train, held_out))
    needed = max(cfg.rounds * cfg.pool, cfg.ppo.batch_size)
    if len(train) < needed:
        raise LabError(f"prompts: {len(train)} to learn from, but the rounds take {needed}; lower 'pool' or 'rounds'")
    sft = models.load_policy(path, trainable=False)
    duel = sample_pool(sft, tokenizer, held_out, size=2, max_new_tokens=cfg.max_new_tokens, seed=cfg.seed + 300)
    labeler = verdicts = None
    if world is not None:
        who = {**cfg.labeler.model_dump(), "seed": cfg.labeler.seed + cfg.seed}
        labeler = world.labeler(**who)
        verdicts = _verdicts(world.labeler(**{key: who[key] for key in ("temperature", "flip", "seed")}), duel)
    return Ground(cfg, world, path, fingerprint(path), sft, tokenizer, train, held_out, labeler, duel, verdicts)


def _verdicts(labeler: Labeler, pool: Pool) -> np.ndarray:
    pairs = zip(pool.prompts, pool.replies, strict=True)
    return np.array([0 if a == b else 1 - 2 * labeler.prefers(prompt, a, b) for prompt, (a, b) in pairs])


def held_out_pairs(ground: Ground) -> pd.DataFrame:
    """What the reward models are tested on: two replies of the SFT model, their gold, and which the labeler prefers."""
    table = pd.DataFrame({"prompt": ground.duel.prompts})
    first, second = ([row[side] for row in ground.duel.replies] for side in (0, 1))
    table = table.assign(first=first, second=second)
    if ground.world is None:
        return table
    gold = score_pool(ground.world.gold, ground.duel)
    preferred = pd.Series(ground.verdicts).map({1: "first", -1: "second", 0: "equal"})
    return table.assign(gold_first=gold[:, 0], gold_second=gold[:, 1], preferred=preferred)


# ---- Which pairs are labelled


def candidates(ground: Ground, policy, number: int, name: str) -> Items:
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


def training_rows(files: Sequence[LabelFile], path: Path) -> list[dict]:
    """The labels that decide, as rows of prompt, chosen, rejected and finished. `path` gets them in TRL's format."""
    export_preferences(files, path)
    ended = {
        (file.path.name, item.id, reply): end
        for file in files
        for item in file.items.items
        for reply, end in zip(item.replies, item.about["finished"], strict=True)
    }
    return [
        row | {"finished": [ended[row["labels"], row["item"], row[side]] for side in ("chosen", "rejected")]}
        for row in read_jsonl(path)
    ]


def learn(ground: Ground, rows: Sequence[dict], run: Run, name: str) -> Learned:
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


def round_figures(ground: Ground, files: Sequence[LabelFile], rows: Sequence[dict], learned: Learned) -> Figures:
    """What a round has come to: its labels so far, the reward models against gold and labeler, and the policy."""
    cfg, world = ground.cfg, ground.world
    answers = [answer for file in files for answer in answer_table(file)["answer"]]
    sampling = {"max_new_tokens": cfg.max_new_tokens, "seed": cfg.seed + 400}
    own = sample_pool(learned.policy, ground.tokenizer, ground.held_out, size=2, **sampling)
    figures = {"labels": len(answers), "pairs": len(rows), "ties": answers.count("tie") / len(answers)}
    figures |= {"duplicates": float(np.mean([a == b for a, b in own.replies]))}
    if world is not None:
        ours, gold = ([_lead(ranker, pool) for pool in (ground.duel, own)] for ranker in (learned.reward, world.gold))
        figures |= {
            "label_accuracy": _agrees(world, rows),
            "accuracy": chain.agreement(ours[0], ground.verdicts),
            "accuracy_gold": chain.agreement(ours[0], gold[0]),
            "accuracy_policy": chain.agreement(ours[1], gold[1]),
        }
    return figures | learned.measure.results()


def _lead(ranker, pool: Pool) -> np.ndarray:
    """How far a pool's first replies lead."""
    scores = score_pool(ranker, pool)
    return (scores[:, 0] - scores[:, 1]).numpy()


def _agrees(world: World, rows: Sequence[dict]) -> float:
    prompts = [row["prompt"] for row in rows]
    better, worse = (np.array(world.gold(prompts, [row[side] for row in rows])) for side in ("chosen", "rejected"))
    return chain.agreement(np.ones(len(rows)), better - worse)
