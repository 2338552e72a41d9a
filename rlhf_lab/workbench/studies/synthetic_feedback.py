"""06_synthetic_feedback: a reward model from comparisons that no person made, and the policy that comes of it.

ALMoST (Kim et al. 2023) in its three stages, and the same comparisons labelled by a judge instead of the rule.
"""

import copy
import time
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from rlhf_lab import models
from rlhf_lab.errors import LabError
from rlhf_lab.judges import SimulatedJudge, SimulatedJudgeConfig, make_pairs
from rlhf_lab.judges import feedback as labels
from rlhf_lab.judges.feedback import Row
from rlhf_lab.rewards import ModelReward
from rlhf_lab.sandbox.world import World
from rlhf_lab.training.best_of_n import score_pool
from rlhf_lab.training.comparisons import sample_rankings
from rlhf_lab.training.rejection_sampling import best_finished
from rlhf_lab.training.rollouts import sample_replies
from rlhf_lab.workbench.evaluation import win_rate
from rlhf_lab.workbench.runs import Run
from rlhf_lab.workbench.studies import chain
from rlhf_lab.workbench.studies.chain import agreement, rankings_of, train_scorer
from rlhf_lab.workbench.studies.synthetic_ground import Ground, common_ground, fine_tune
from rlhf_lab.workbench.studies.synthetic_responders import axes

__all__ = [
    "CONDITIONS",
    "FILTERS",
    "Ground",
    "almost",
    "axis_figures",
    "common_ground",
    "filter_figures",
    "filtered",
    "judged",
    "label_pairs",
    "labelled_by_gold",
    "start_figures",
]

FILTERS = ("none", "replies", "length", "as_is", "all")


class Condition(NamedTuple):
    """How a judge errs, in which order it is shown the pairs, and what is done about it."""

    errs: str = ""  # position, length or flip: the parameter that says how much; "" = not at all
    shown: labels.Shown = "random"  # a is the reply of the lower-ranked responder
    remedy: labels.Remedy = "none"


CONDITIONS = {
    "fair": Condition(),
    "position_weaker_first": Condition("position", "a_first"),
    "position_stronger_first": Condition("position", "b_first"),
    "position_random": Condition("position"),
    "position_swap": Condition("position", remedy="swap"),
    "length": Condition("length"),
    "length_regression": Condition("length", remedy="length_regression"),
    "length_balance": Condition("length", remedy="length_balance"),
    "noise": Condition("flip"),
    "noise_votes": Condition("flip", remedy="votes"),
}


# ---- Stage 1: comparisons, filters, reward model


def compared(answers: Mapping[str, list[Row]], world: World) -> list[Row]:
    """All pairs by the rule, with `gold` of the chosen and the rejected reply, which only the measuring reads."""
    rows = labels.pairs_by_rule(answers)
    prompts = [row["prompt"] for row in rows]
    better = world.gold(prompts=prompts, completions=[row["chosen"] for row in rows])
    worse = world.gold(prompts=prompts, completions=[row["rejected"] for row in rows])
    return [row | {"gold": (a, b)} for row, a, b in zip(rows, better, worse, strict=True)]


def filtered(ground: Ground, run: Run) -> dict[str, list[Row]]:
    """The pairs by the rule behind each filter alone, behind none, and behind all in turn."""
    rows, reward = compared(ground.answers, ground.world), as_is_reward(ground, run)

    def agreed(kept: list[Row]) -> list[Row]:
        both = [_scores(reward, kept, side) for side in (0, 1)]
        return labels.agreed(kept, *both)

    whole = labels.without_bad_replies(rows, ground.cfg.openings)
    both = labels.long_enough(whole)
    found = (rows, whole, labels.long_enough(rows), agreed(rows), agreed(both))
    return dict(zip(FILTERS, found, strict=True))


def as_is_reward(ground: Ground, run: Run) -> ModelReward:
    """The reward model that was there before: from strangers' votes on the student's own replies, noisy as they are."""
    cfg, tokenizer = ground.cfg, ground.cast.tokenizer
    strangers = ground.world.labeler(**{**cfg.as_is_labeler.model_dump(), "seed": cfg.as_is_labeler.seed + cfg.seed})
    prompts = ground.world.prompts("train", cfg.as_is_pairs, cfg.seed + 2)
    policy = models.load_policy(ground.student, trainable=False)
    sampling = {"max_new_tokens": cfg.max_new_tokens, "seed": cfg.seed + 500}
    rows = sample_rankings(policy, tokenizer, prompts, strangers.rank, k=2, **sampling)
    return ModelReward(_train_scorer(ground, rows, run, "as-is reward model"), tokenizer, tokenizer)


def reward_model(ground: Ground, rows: Sequence[Row], run: Run, name: str):
    """A reward model, on the student's trunk, from rows of prompt, chosen, rejected and finished."""
    return _train_scorer(ground, rankings_of(rows), run, f"{name}: reward model")


def _train_scorer(ground: Ground, rankings: list[Row], run: Run, what: str):
    cfg = ground.cfg
    settings = cfg.reward_model.model_copy(update={"seed": cfg.seed, "precision": cfg.precision})
    return train_scorer(settings, ground.student, ground.tokenizer, rankings, run, what)


def _scores(reward, rows: Sequence[Row], side: int) -> list[float]:
    texts = [row[("chosen", "rejected")[side]] for row in rows]
    ended = [row["finished"][side] for row in rows]
    return reward(prompts=[row["prompt"] for row in rows], completions=texts, finished=ended)


def filter_figures(found: Mapping[str, list[Row]]) -> dict[str, float]:
    """What each filter leaves: pairs; of these the rule's accuracy, and characters that the chosen has more."""
    figures = {f"pairs_{name}": len(rows) for name, rows in found.items()}
    for name, rows in found.items():
        if not rows:
            continue
        better, worse = (np.array([row["gold"][side] for row in rows]) for side in (0, 1))
        figures[f"accuracy_{name}"] = win_rate(better, worse)
        figures[f"longer_{name}"] = float(np.mean([len(row["chosen"]) - len(row["rejected"]) for row in rows]))
    return figures


def labelled_by_gold(rows: Sequence[Row]) -> list[Row]:
    """The same pairs, turned round where gold says so: what the rule's mistakes cost. Equal gold makes no pair."""
    made = []
    for row in rows:
        better, worse = row["gold"]
        turned = {"chosen": row["rejected"], "rejected": row["chosen"], "finished": row["finished"][::-1]}
        if better != worse:
            made.append(row if better > worse else row | turned | {"gold": (worse, better)})
    return made


def _accuracies(scorer, ground: Ground) -> dict[str, float]:
    """How often a reward model agrees with gold: between responders, and between two replies of the plain SFT model.

    The first it may owe to knowing who spoke; the second is what best-of-n and PPO ask of it.
    """
    reward = ModelReward(scorer, ground.cast.tokenizer, ground.cast.tokenizer)
    rows = compared(ground.held_answers, ground.world)
    between = np.array([_scores(reward, rows, side) for side in (0, 1)])
    within = [score_pool(ranker, ground.duel) for ranker in (reward, ground.world.gold)]
    return {
        "accuracy_between": agreement(between[0] - between[1], np.array([r["gold"][0] - r["gold"][1] for r in rows])),
        "accuracy_within": agreement(*((scores[:, 0] - scores[:, 1]).numpy() for scores in within)),
    }


# ---- Stages 2 and 3


def almost(name: str, rows: Sequence[Row], ground: Ground, run: Run) -> dict[str, float]:
    """All three stages from labelled pairs: reward model, SFT on the best of n of the self-play, PPO."""
    if not rows:
        raise LabError(f"{name}: no pair is left to learn from; raise 'n_prompts', or filter less")
    began = time.perf_counter()
    scorer = reward_model(ground, rows, run, name)
    figures = _accuracies(scorer, ground) | {"pairs": len(rows)}
    reward = ModelReward(scorer, ground.cast.tokenizer, ground.cast.tokenizer)
    scores = score_pool(reward, ground.self_play)
    chosen = best_finished(ground.self_play, scores, seed=ground.cfg.seed)
    gold = ground.world.gold(prompts=[r["prompt"] for r in chosen], completions=[r["completion"] for r in chosen])
    figures["gold_demonstrations"] = float(np.mean(gold))
    policy = fine_tune(ground.cfg, ground.student, ground.cast.tokenizer, chosen)
    return figures | optimise(name, policy, scorer, ground, run) | {"seconds": time.perf_counter() - began}


def start_figures(ground: Ground) -> dict[str, float]:
    """Gold before any reward model: of the student, of the best responder, of the self-play, of the plain SFT model."""
    world, tokenizer = ground.world, ground.cast.tokenizer
    student = models.load_policy(ground.student, trainable=False)
    figures = {}
    for name, policy in (("student", student), ("plain_sft", ground.plain)):
        replies = sample_replies(
            policy, tokenizer, ground.held_out, max_new_tokens=ground.cfg.max_new_tokens, seed=ground.cfg.seed + 1
        )[0]
        figures[f"gold_{name}"] = float(np.mean(world.gold(prompts=ground.held_out, completions=replies)))
    figures["gold_self_play"] = score_pool(world.gold, ground.self_play).mean().item()
    return figures | {"seconds": ground.started}


def optimise(name: str, policy, scorer, ground: Ground, run: Run) -> dict[str, float]:
    """PPO from an SFT model, which it changes, against a reward model brought to unit scale on that model's replies."""
    found = chain.optimise(name, policy, [scorer], ground, run).results()
    return {f"ppo_{key}": value for key, value in found.items() if key != "gold_sft"} | {"gold_sft": found["gold_sft"]}


# ---- The same comparisons, labelled by a judge


def pairs_of(ground: Ground):
    """The comparisons as a judge gets them: reply a is that of the lower-ranked responder."""
    made = [
        {"prompt": row["prompt"], "reply_a": row["rejected"], "reply_b": row["chosen"]}
        | {"gold_a": row["gold"][1], "gold_b": row["gold"][0]}
        | {"finished_a": row["finished"][1], "finished_b": row["finished"][0]}
        for row in compared(ground.answers, ground.world)
    ]
    return make_pairs(made)


def label_pairs(name: str, ground: Ground) -> tuple[labels.Labels, dict[str, float]]:
    """The labels of one condition, and what they are worth against gold."""
    cfg, condition, pairs = ground.cfg, CONDITIONS[name], pairs_of(ground)
    planted = {condition.errs: getattr(cfg, condition.errs)} if condition.errs else {}
    judge = SimulatedJudge(
        SimulatedJudgeConfig(temperature=cfg.judge_temperature, seed=cfg.seed, **planted), ground.world.gold
    )
    how = {"shown": condition.shown, "remedy": condition.remedy, "votes": cfg.votes, "seed": cfg.seed}
    found = labels.label(judge, pairs, **how)
    if not found.rows:
        raise LabError(f"{name}: none of {found.pairs} pairs got a label; raise 'n_prompts'")
    prompts = [row["prompt"] for row in found.rows]
    better = ground.world.gold(prompts=prompts, completions=[row["chosen"] for row in found.rows])
    worse = ground.world.gold(prompts=prompts, completions=[row["rejected"] for row in found.rows])
    longer = [len(row["chosen"].split()) - len(row["rejected"].split()) for row in found.rows]
    figures = {"pairs": len(found.rows), "calls": found.calls, "accuracy": win_rate(better, worse)}
    return found, figures | {"longer": float(np.mean(longer))}


def judged(name: str, ground: Ground, run: Run) -> dict[str, float]:
    """A reward model from a judge's labels, and PPO against it from the plain SFT model."""
    began = time.perf_counter()
    found, figures = label_pairs(name, ground)
    scorer = reward_model(ground, found.rows, run, name)
    figures |= _accuracies(scorer, ground)
    figures |= optimise(name, copy.deepcopy(ground.plain), scorer, ground, run)
    return figures | {"seconds": time.perf_counter() - began}


def axis_figures(ground: Ground, run: Run) -> dict[str, float]:
    """Gold of every responder on the held-out prompts, and the rule's accuracy at every step along an axis."""
    cfg = ground.cfg
    tell = lambda done, total: run.progress(done, total, "responders")
    return axes(ground.cast, ground.held_out, cfg.shots, seed=cfg.seed + 700, tell=tell)
