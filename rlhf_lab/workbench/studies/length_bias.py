"""14_length_bias: a reward model from labelers of one taste, PPO against it with a remedy, and what of it is length."""

import copy
import random
import time
from collections.abc import Iterator
from functools import cached_property

import numpy as np
import pandas as pd
import torch

from rlhf_lab import models
from rlhf_lab.errors import LabError
from rlhf_lab.judges import SimulatedJudge, SimulatedJudgeConfig, length_controlled_win_rate, make_pairs
from rlhf_lab.judges.feedback import Row, label
from rlhf_lab.maths import length_gain
from rlhf_lab.models import Scorer
from rlhf_lab.rewards import Reward, WeightedReward, call_reward
from rlhf_lab.training.best_of_n import score_pool
from rlhf_lab.training.ppo import PPOState, PPOUpdate, estimate_advantages, ppo_step
from rlhf_lab.training.rollouts import rollout
from rlhf_lab.workbench.evaluation import Measure
from rlhf_lab.workbench.reward_runs import member
from rlhf_lab.workbench.runs import Run
from rlhf_lab.workbench.stages import LengthBiasStage
from rlhf_lab.workbench.stages.length_bias import Taste
from rlhf_lab.workbench.studies import chain
from rlhf_lab.workbench.studies.ground import Ground
from rlhf_lab.workbench.studies.units import Figures

DATA = ("balanced", "fewer", "like_length")  # the remedies that change what is learned from
WIDTHS = (1, 2, 8)  # words, of the bins besides those of `bin_width`


class LengthGround(Ground):
    """The common ground, with the pairs to label, and the reward models that several units share."""

    def __init__(self, cfg: LengthBiasStage):
        super().__init__(cfg, max(cfg.candidates * 5 // 4 + 4, cfg.ppo.batch_size, cfg.eval_prompts))
        self.learned: dict[tuple[str, str], tuple[Scorer, Figures]] = {}  # by labeler and data

    @cached_property
    def pairs(self) -> pd.DataFrame:
        """Two replies of the SFT model to each of so many prompts as there are `candidates`."""
        rows = self.comparisons(self.labeler(), n=self.cfg.candidates)
        ends = [{f"finished_{side}": row["finished"][place] for place, side in enumerate("ab")} for row in rows]
        return make_pairs(
            {"prompt": row["prompt"], "reply_a": row["completions"][0], "reply_b": row["completions"][1]} | end
            for row, end in zip(rows, ends, strict=True)
        )

    def judge(self, taste: Taste) -> SimulatedJudge:
        """Who labels: the labeler, or the people of the world, with this taste besides."""
        errs = self.labeler(length_bias=self.cfg.labeler.length_bias + taste.length_bias).config
        settings = {"position": errs.position_bias, "length": errs.length_bias, "temperature": errs.temperature}
        return SimulatedJudge(SimulatedJudgeConfig(**settings, flip=errs.flip, seed=errs.seed), self.world.gold)


def unit(name: str, ground: LengthGround, run: Run) -> Figures:
    """A labeler's labels under a remedy: reward model, PPO, and where the gain comes from."""
    began, cfg, own = time.perf_counter(), ground.cfg, ground.cfg.units[name]
    taste, remedy = Taste(**own["labeler"]), own["remedy"]
    there = ground.in_world(taste.world or cfg.sandbox)
    judge = there.judge(taste)
    key = str(own["labeler"]), remedy if remedy in DATA else "none"
    if key not in ground.learned:
        ground.learned[key] = learned(name, ground, judge, key[1], run)
    scorer, figures = ground.learned[key]
    measure = chain.optimise(
        name,
        models.load_policy(ground.sft_path),
        [copy.deepcopy(scorer)],
        there,
        run,
        **({"pay": lambda reward: penalised(reward, cfg.penalty)} if remedy == "penalty" else {}),
        **({"updates": lambda state: short_updates(state, cfg.longest)} if remedy == "omit" else {}),
    )
    figures = figures | measure.results() | chain.reply_figures(measure) | gain_figures(measure, cfg.bin_width)
    figures |= utility_figures(figures, judge) | win_figures(measure, judge)
    return figures | {"seconds": time.perf_counter() - began}


# ---- Labels and reward model


def learned(name: str, ground: LengthGround, judge: SimulatedJudge, data: str, run: Run) -> tuple[Scorer, Figures]:
    """A reward model from a judge's labels, and what labels and model have to do with length."""
    cfg = ground.cfg
    rows = labelled(ground.pairs, judge, data, cfg.comparisons, cfg.seed)
    settings = cfg.reward_model.model_copy(update={"seed": cfg.seed, "precision": cfg.precision})
    scorer = chain.train_scorer(
        member(settings, 0), ground.sft_path, ground.tokenizer, chain.rankings_of(rows), run, f"{name}: reward model"
    )
    return scorer, label_figures(rows, judge.gold) | scorer_figures(ground, scorer, judge.gold)


def labelled(pairs: pd.DataFrame, judge: SimulatedJudge, data: str, n: int, seed: int) -> list[Row]:
    """`n` labels as rows of prompt, chosen, rejected and finished; `balanced` throws some of them away.

    like_length: the pairs of least difference in words are labelled, in place of the first. fewer: of the labels, drawn
    at random, as many are kept as balanced keeps.
    """
    if data == "like_length":
        apart = (pairs["words_a"] - pairs["words_b"]).abs()
        pairs = pairs.loc[apart.sort_values(kind="stable").index[:n].sort_values()]
    pairs = pairs.iloc[:n]
    rows = label(judge, pairs, seed=seed).rows
    if data in ("balanced", "fewer"):
        balanced = label(judge, pairs, remedy="length_balance", seed=seed).rows
        drawn = random.Random(f"fewer/{seed}").sample(range(len(rows)), len(balanced))
        rows = balanced if data == "balanced" else [rows[place] for place in sorted(drawn)]
    if not rows:
        raise LabError(f"{data}: none of {len(pairs)} labels is left to learn from; raise 'comparisons'")
    return rows


def label_figures(rows: list[Row], gold: Reward) -> Figures:
    """How many labels there are, how many are right, and how many are for the longer reply where lengths differ."""
    prompts = [row["prompt"] for row in rows]
    better, worse = (np.array(gold(prompts, [row[side] for row in rows])) for side in ("chosen", "rejected"))
    more = np.array([len(row["chosen"].split()) - len(row["rejected"].split()) for row in rows])
    return {
        "pairs": len(rows),
        "label_accuracy": chain.agreement(np.ones(len(rows)), better - worse),
        "label_longer": chain.agreement(np.ones(len(rows)), more) if more.any() else 0.5,
    }


def scorer_figures(ground: LengthGround, scorer: Scorer, world_gold: Reward) -> Figures:
    """A reward model on two replies of the SFT model to each held-out prompt: against gold, and against their words."""
    duel, reward = ground.duel, chain.ensemble([scorer], ground.tokenizer)
    score, gold = (score_pool(ranker, duel).numpy() for ranker in (reward, world_gold))
    words = np.array([[len(reply.split()) for reply in replies] for replies in duel.replies], dtype=float)
    return {
        "accuracy_gold": chain.agreement(score[:, 0] - score[:, 1], gold[:, 0] - gold[:, 1]),
        "score_by_words": float(np.corrcoef(score.ravel(), words.ravel())[0, 1]),
        "gold_by_words": float(np.corrcoef(gold.ravel(), words.ravel())[0, 1]),
    }


# ---- Remedies in PPO


def penalised(reward: Reward, each: float) -> WeightedReward:
    """A reward less `each` for every word."""

    def words(completions: list[str], **_) -> list[float]:
        return [float(len(text.split())) for text in completions]

    return WeightedReward({"reward": (reward, 1.0), "words": (words, -each)})


def short_updates(state: PPOState, longest: int) -> Iterator[PPOUpdate]:
    """PPO's updates from the replies of at most `longest` tokens, their EOS included; the rate falls linearly to 0.

    Errors: `LabError` if too few replies of a rollout are that short.
    """
    cfg = state.config
    for number in range(cfg.updates):
        left = 1 - number / cfg.updates
        for group in state.optimizer.param_groups:
            group["lr"] = group["peak"] * left
        prompts, columns = state.next_prompts()
        batch = rollout(
            state.policy, state.reference, state.critic, state.reward, state.tokenizer, prompts, cfg, state.generator,
            columns,
        )  # fmt: skip
        short = batch.response_mask.sum(1) <= longest
        if short.sum() < cfg.minibatches:
            raise LabError(
                f"omit: {short.sum()} of {len(short)} replies have at most {longest} tokens; raise 'longest'"
            )
        batch = batch.take(short.nonzero().flatten())
        stats = ppo_step(state.policy, state.critic, state.optimizer, batch, *estimate_advantages(batch, cfg), cfg)
        episode = (number + 1) * cfg.batch_size * cfg.samples_per_prompt
        yield PPOUpdate(batch, stats, number + 1, episode, cfg.lr * left, cfg.kl_coef, 1.0, {})


# ---- What came of it


def gain_figures(measure: Measure, width: int) -> Figures:
    """The gain in score and in gold over the SFT model, what of each is within bins of like length, and the lengths.

    score_within and covered are for bins of `width`, score_within_8 and so on for those of `WIDTHS`.
    """
    first, last = measure.baseline.answers, measure.last.answers
    words = [torch.tensor(answers["words"].to_numpy()) for answers in (first, last)]
    scores = [torch.tensor(_scores(measure.reward, answers)) for answers in (first, last)]
    gold = [torch.tensor(answers["gold"].to_numpy()) for answers in (first, last)]
    figures: Figures = {}
    for behind, each in {"": width, **{f"_{other}": other for other in WIDTHS}}.items():
        score, true = (length_gain(*values, *words, width=each) for values in (scores, gold))
        figures |= {f"score_within{behind}": score.within.item(), f"gold_within{behind}": true.within.item()}
        figures[f"covered{behind}"] = score.covered.item()
    for behind, answers in {"": last, "_sft": first}.items():
        figures[f"words_sd{behind}"] = float(answers["words"].std())
        figures[f"words_q90{behind}"] = float(answers["words"].quantile(0.9))
    return figures | {"score_gain": score.total.item(), "words_sft": float(first["words"].mean())}


def utility_figures(figures: Figures, judge: SimulatedJudge) -> Figures:
    """What who labelled has gained, in the logits that they compare by, and what of it they gained by words alone."""
    by_words = judge.config.length * (figures["words"] - figures["words_sft"])
    gold = figures["gold_gain"] / max(judge.config.temperature, 1e-9)
    return {"utility_gain": gold + by_words, "utility_words": by_words}


def _scores(reward: Reward, answers: pd.DataFrame) -> list[float]:
    columns = {"prompts": "prompt", "completions": "reply", "finished": "finished"}
    return call_reward(reward, **{name: answers[column].tolist() for name, column in columns.items()})


def win_figures(measure: Measure, judge: SimulatedJudge) -> Figures:
    """PPO's win rate over the SFT model, raw and controlled for length: by who labelled, and by one without a bias.

    The probabilities themselves are averaged, each reply standing first in half of the questions. win_by_length: what
    the regression gives to length, in logits at tanh(difference in words / its deviation, words_apart_sd) = 1.
    """
    ours, theirs = (point.answers for point in (measure.last, measure.baseline))
    table = pd.DataFrame({"model_a": "ppo", "model_b": "sft", "prompt_id": ours["prompt"]})
    table = table.assign(words_a=ours["words"], words_b=theirs["words"])
    fair = SimulatedJudge(judge.config.model_copy(update={"length": 0.0, "position": 0.0}), judge.gold)
    figures = {"words_apart_sd": float(np.std(ours["words"] - theirs["words"]))}
    for name, who in {"win": judge, "win_fair": fair}.items():
        p = _wins(who, ours, theirs)
        battles = table.assign(p_a=p, outcome=np.where(p > 0.5, "a", "b"))
        found = length_controlled_win_rate(battles, "ppo", "sft", unit="words", by="probability", rounds=0)
        figures |= {name: found.win_rate.value, f"{name}_controlled": found.controlled.value}
        figures[f"{name}_by_length"] = float(found.terms.set_index("term")["value"].get("length", 0.0))
    return figures


def _wins(judge: SimulatedJudge, ours: pd.DataFrame, theirs: pd.DataFrame) -> np.ndarray:
    prompts, replies = ours["prompt"].tolist(), [answers["reply"].tolist() for answers in (ours, theirs)]
    return (judge.p_first(prompts, *replies) + 1 - judge.p_first(prompts, *replies[::-1])) / 2
