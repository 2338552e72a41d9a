"""16_feedback_loops: rounds of labels by one source, of one arm's pairs, and what each round comes to.

As in 08_human_feedback every round learns from all labels so far and begins PPO anew at the SFT model, and the first
round is the same in all arms. What differs between sources is who labels: their random draws are the same.
"""

import copy
import random
import time
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from rlhf_lab.sandbox.labelers import Labeler
from rlhf_lab.training.best_of_n import Pool
from rlhf_lab.workbench.labelling import Item, Items
from rlhf_lab.workbench.runs import Run
from rlhf_lab.workbench.stages import FeedbackLoopsStage
from rlhf_lab.workbench.stages.feedback_loops import Source
from rlhf_lab.workbench.studies import chain
from rlhf_lab.workbench.studies.ground import Ground
from rlhf_lab.workbench.studies.rounds import (
    Learned,
    candidates,
    chosen,
    doubts,
    learn,
    learned_figures,
    own_pairs,
    right_share,
)
from rlhf_lab.workbench.studies.units import Figures


class Asked(NamedTuple):
    """The pairs that are asked about in a round."""

    items: Items
    figures: Figures  # how far the reward models of the round before disagree about them


class Round(NamedTuple):
    """What has come of the rounds so far."""

    rows: list[dict]  # the labels
    learned: Learned
    own: Pool  # two replies of the policy to each held-out prompt
    figures: Figures


class LoopGround(Ground):
    """The common ground, with the first rounds that several units share."""

    def __init__(self, cfg: FeedbackLoopsStage):
        super().__init__(cfg, max(cfg.rounds * cfg.pool, cfg.ppo.batch_size * cfg.ppo.updates, cfg.eval_prompts))
        self.first: dict[str, Round] = {}  # by source

    def of(self, source: Source) -> "LoopGround":
        """The same ground, with as many labels in a round, and prompts for them, as this source gives."""
        other, cfg = copy.copy(self), self.cfg
        other.cfg = cfg.model_copy(update={"labels": cfg.labels * source.times, "pool": cfg.pool * source.times})
        other.train = self.world.prompts("train", max(self.n_train, cfg.rounds * other.cfg.pool), cfg.seed + 1)
        return other

    def who(self, source: Source) -> Labeler:
        """Who labels."""
        common = self.cfg.labeler
        adds = {name: getattr(common, name) + getattr(source, name) for name in ("length_bias", "position_bias")}
        either = common.flip + source.flip - 2 * common.flip * source.flip  # turned round once, not twice
        return self.labeler(**adds, flip=either)


def unit(name: str, ground: LoopGround, run: Run) -> Figures:
    """All rounds of an arm with one source of labels. Figures of a round have its number behind them.

    accuracy_first is on the pairs of the policy of round 1, which is the same in all arms of a source; accuracy_policy
    is on those of the round's own policy, which is another in each.
    """
    began, own = time.perf_counter(), ground.cfg.units[name]
    arm, source = own["arm"], Source(**own["source"])
    much, labeler, key = ground.of(source), ground.who(source), str(own["source"])
    if key not in ground.first:
        ground.first[key] = one_round([], pairs(much, "offline", 1, None), labeler, ground, run, f"{name}, round 1")
    done = first = ground.first[key]
    found = {f"{figure}_1": value for figure, value in first.figures.items()}
    for number in range(2, ground.cfg.rounds + 1):
        asked = pairs(much, arm, number, done.learned)
        done = one_round(done.rows, asked, labeler, ground, run, f"{name}, round {number}")
        figures = done.figures | {"accuracy_first": right_share(done.learned.reward, ground.world, first.own)}
        found |= {f"{figure}_{number}": value for figure, value in figures.items()}
    labels, at_first = ground.cfg.rounds * much.cfg.labels, first.learned.measure.baseline.answers
    found |= {"words_sft": float(at_first["words"].mean()), "eos_sft": float(at_first["finished"].mean())}
    return found | {"labels": labels, "cost": labels * source.price, "seconds": time.perf_counter() - began}


def pairs(ground: LoopGround, arm: str, number: int, learned: Learned | None) -> Asked:
    """The pairs that an arm asks about in a round: the SFT model's replies, or the policy's of the round before."""
    cfg = ground.cfg
    policy, name = (ground.sft, "SFT") if arm == "offline" else (learned.policy, f"round {number - 1}")
    items = candidates(ground, policy, number, name)
    seed = f"pairs/{cfg.seed}/{number}"
    if learned is None:
        return Asked(chosen(items, cfg.labels, seed=seed), {})
    doubt = doubts(learned, items)
    asked = chosen(items, cfg.labels, seed=seed, doubt=doubt if arm == "active" else None)
    about = {item.prompt: value for item, value in zip(items.items, doubt, strict=True)}
    in_asked = float(np.mean([about[item.prompt] for item in asked.items]))
    return Asked(asked, {"doubt_asked": in_asked, "doubt_pool": float(np.mean(doubt))})


def asked_table(ground: LoopGround) -> pd.DataFrame:
    """The pairs of the first round, how far a leads in gold, and which one each source says is better."""
    items, cfg = pairs(ground, "offline", 1, None).items, ground.cfg
    table = pd.DataFrame({"prompt": [item.prompt for item in items.items]})
    for place, side in enumerate("ab"):
        table[side] = [item.replies[place] for item in items.items]
    gold = [np.array(ground.world.gold(table["prompt"], table[side])) for side in "ab"]
    table["gold of a less b"] = gold[0] - gold[1]
    for name, source in cfg.sources.items():
        chosen_ones = [row["chosen"] for row in labelled(items, ground.who(source), cfg.seed)]
        table[name] = np.where(table["a"] == chosen_ones, "a", "b")
    return table


def one_round(before: list[dict], asked: Asked, labeler: Labeler, ground: LoopGround, run: Run, name: str) -> Round:
    """Label, and learn from these and all earlier labels."""
    new = labelled(asked.items, labeler, ground.cfg.seed)
    rows = before + new
    learned = learn(ground, rows, run, name)
    own = own_pairs(ground, learned.policy)
    figures = learned_figures(ground, rows, learned, own) | asked.figures
    return Round(rows, learned, own, figures | asked_figures(asked.items, new, labeler, ground.cfg.seed))


def labelled(items: Items, labeler: Labeler, seed: int) -> list[dict[str, Any]]:
    """The labels as rows of prompt, chosen, rejected and finished. A seeded coin decides which reply is shown first."""
    rows = []
    for item in items.items:
        order = shown(item, seed)
        won = order[labeler.prefers(item.prompt, *(item.replies[place] for place in order))]
        rows.append(
            {"prompt": item.prompt, "chosen": item.replies[won], "rejected": item.replies[1 - won]}
            | {"finished": [item.about["finished"][side] for side in (won, 1 - won)]}
        )
    return rows


def shown(item: Item, seed: int) -> list[int]:
    """The order in which the two replies are shown."""
    return random.Random(f"shown/{seed}/{item.prompt}").sample((0, 1), 2)


def asked_figures(items: Items, rows: list[dict[str, Any]], labeler: Labeler, seed: int) -> Figures:
    """What the new pairs and their labels are like: how hard they were, and what they say of length.

    gap: how far the replies are apart in gold. expected_accuracy: the probability that a label agrees with gold, where
    gold is not equal. longer: share of labels for the longer reply, where lengths differ.
    """
    gaps, right = [], []
    for item in items.items:
        texts = [item.replies[place] for place in shown(item, seed)]
        gap = labeler.score(item.prompt, texts[0]) - labeler.score(item.prompt, texts[1])
        p_first = labeler.probability(item.prompt, *texts)
        gaps.append(abs(gap))
        right += [p_first if gap > 0 else 1 - p_first] if gap else []
    more = np.array([len(row["chosen"].split()) - len(row["rejected"].split()) for row in rows])
    return {
        "gap": float(np.mean(gaps)),
        "expected_accuracy": float(np.mean(right)) if right else 0.5,
        "longer": chain.agreement(np.ones(len(more)), more) if more.any() else 0.5,
    }
