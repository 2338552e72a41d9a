"""08_human_feedback: what all arms share, and what comes of labels in files; the loop is in human_feedback_loop.

In every round the reward models learn from all labels so far and PPO begins anew at the SFT model, as in the iterated
online training of Bai et al. 2022 (2204.05862), section 4.5. So the arms differ in their labels and in nothing else.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd

from rlhf_lab import data, models
from rlhf_lab.errors import LabError
from rlhf_lab.sandbox.labelers import Labeler
from rlhf_lab.sandbox.world import World
from rlhf_lab.training.best_of_n import Pool, sample_pool, score_pool
from rlhf_lab.workbench import artefacts
from rlhf_lab.workbench.labelling import LabelFile, answer_table, export_preferences
from rlhf_lab.workbench.records import read_jsonl
from rlhf_lab.workbench.runs import Run
from rlhf_lab.workbench.stages import HumanFeedbackStage
from rlhf_lab.workbench.studies import chain
from rlhf_lab.workbench.studies.finished_lines import fingerprint
from rlhf_lab.workbench.studies.rounds import Learned, lead, learned_figures, own_pairs
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


def round_figures(ground: Ground, files: Sequence[LabelFile], rows: Sequence[dict], learned: Learned) -> Figures:
    """What a round has come to: its labels so far, the reward models against gold and labeler, and the policy."""
    answers = [answer for file in files for answer in answer_table(file)["answer"]]
    figures = {"labels": len(answers), "ties": answers.count("tie") / len(answers)}
    if ground.world is not None:
        figures["accuracy"] = chain.agreement(lead(learned.reward, ground.duel), ground.verdicts)
    return figures | learned_figures(ground, rows, learned, own_pairs(ground, learned.policy))
