"""16_feedback_loops: rounds of labels by one source, of one arm's pairs, and what each round comes to.

As in 08_human_feedback every round learns from all labels so far and begins PPO anew at the SFT model, and the first
round is the same in all arms. What differs between sources is who labels: their random draws are the same.
"""

import copy
import random
import time
from functools import cached_property
from typing import Any

import numpy as np
import pandas as pd

from rlhf_lab.sandbox.labelers import Labeler
from rlhf_lab.training.best_of_n import Pool, sample_pool
from rlhf_lab.workbench.labelling import Items
from rlhf_lab.workbench.runs import Run
from rlhf_lab.workbench.stages import FeedbackLoopsStage
from rlhf_lab.workbench.stages.feedback_loops import Source
from rlhf_lab.workbench.studies.ground import Ground
from rlhf_lab.workbench.studies.rounds import Learned, candidates, chosen, doubts, learn, learned_figures
from rlhf_lab.workbench.studies.units import Figures


class LoopGround(Ground):
    """The common ground, with what reward models are tested on, and the first rounds that several units share."""

    def __init__(self, cfg: FeedbackLoopsStage):
        super().__init__(cfg, max(cfg.rounds * cfg.pool, cfg.ppo.batch_size * cfg.ppo.updates, cfg.eval_prompts))
        self.first: dict[str, tuple[list[dict], Learned, Figures]] = {}  # by source

    @cached_property
    def duel(self) -> Pool:
        """Two replies of the SFT model to each held-out prompt."""
        sampling = {"size": 2, "max_new_tokens": self.cfg.max_new_tokens, "seed": self.cfg.seed + 300}
        return sample_pool(self.sft, self.tokenizer, self.held_out, **sampling)

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
    """All rounds of an arm with one source of labels. Figures of a round have its number behind them."""
    began, own = time.perf_counter(), ground.cfg.units[name]
    arm, source = own["arm"], Source(**own["source"])
    much, labeler, key = ground.of(source), ground.who(source), str(own["source"])
    if key not in ground.first:
        ground.first[key] = one_round([], pairs(much, "offline", 1, None), labeler, ground, run, f"{name}, round 1")
    rows, learned, figures = ground.first[key]
    found = {f"{figure}_1": value for figure, value in figures.items()}
    for number in range(2, ground.cfg.rounds + 1):
        asked = pairs(much, arm, number, learned)
        rows, learned, figures = one_round(rows, asked, labeler, ground, run, f"{name}, round {number}")
        found |= {f"{figure}_{number}": value for figure, value in figures.items()}
    labels = ground.cfg.rounds * much.cfg.labels
    return found | {"labels": labels, "cost": labels * source.price, "seconds": time.perf_counter() - began}


def pairs(ground: LoopGround, arm: str, number: int, learned: Learned | None) -> Items:
    """The pairs that an arm asks about in a round: the SFT model's replies, or the policy's of the round before."""
    cfg = ground.cfg
    policy, name = (ground.sft, "SFT") if arm == "offline" else (learned.policy, f"round {number - 1}")
    items = candidates(ground, policy, number, name)
    doubt = doubts(learned, items) if arm == "active" else None
    return chosen(items, cfg.labels, seed=f"pairs/{cfg.seed}/{number}", doubt=doubt)


def asked_table(ground: LoopGround) -> pd.DataFrame:
    """The pairs of the first round, how far a leads in gold, and which one each source says is better."""
    items, cfg = pairs(ground, "offline", 1, None), ground.cfg
    table = pd.DataFrame({"prompt": [item.prompt for item in items.items]})
    for place, side in enumerate("ab"):
        table[side] = [item.replies[place] for item in items.items]
    gold = [np.array(ground.world.gold(table["prompt"], table[side])) for side in "ab"]
    table["gold of a less b"] = gold[0] - gold[1]
    for name, source in cfg.sources.items():
        chosen_ones = [row["chosen"] for row in labelled(items, ground.who(source), cfg.seed)]
        table[name] = np.where(table["a"] == chosen_ones, "a", "b")
    return table


def one_round(
    before: list[dict], asked: Items, labeler: Labeler, ground: LoopGround, run: Run, name: str
) -> tuple[list[dict], Learned, Figures]:
    """Label, and learn from these and all earlier labels: the labels so far, what they come to, and its figures."""
    rows = before + labelled(asked, labeler, ground.cfg.seed)
    learned = learn(ground, rows, run, name)
    return rows, learned, learned_figures(ground, rows, learned)


def labelled(items: Items, labeler: Labeler, seed: int) -> list[dict[str, Any]]:
    """The labels as rows of prompt, chosen, rejected and finished. A seeded coin decides which reply is shown first."""
    rows = []
    for item in items.items:
        order = random.Random(f"shown/{seed}/{item.prompt}").sample((0, 1), 2)
        won = order[labeler.prefers(item.prompt, *(item.replies[place] for place in order))]
        rows.append(
            {"prompt": item.prompt, "chosen": item.replies[won], "rejected": item.replies[1 - won]}
            | {"finished": [item.about["finished"][side] for side in (won, 1 - won)]}
        )
    return rows
