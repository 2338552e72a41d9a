"""What the studies of feedback share: a reward model from comparisons, PPO against it, and how far two agree.

`ground` is what all chains of a study share; asked of it are cfg (with seed, precision, max_new_tokens, eval_prompts,
reward_model and ppo), tokenizer, world (None without a sandbox), and the prompts train and held_out.
"""

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from rlhf_lab import models
from rlhf_lab.models import Scorer
from rlhf_lab.rewards import EnsembleReward, ModelReward, Reward
from rlhf_lab.training import reward_model as rm
from rlhf_lab.training.best_of_n import Pool, score_pool
from rlhf_lab.training.ppo import PPOState, PPOUpdate, ppo_start, ppo_updates
from rlhf_lab.training.rollouts import sample_replies
from rlhf_lab.workbench.evaluation import Measure, win_rate
from rlhf_lab.workbench.runs import Run

GOLD_PARTS = ("helpful", "honest", "harmless", "concise", "manner")


def rankings_of(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Rows of prompt, chosen, rejected and finished (of these two) as rankings."""
    return [
        {"prompt": r["prompt"], "completions": [r["chosen"], r["rejected"]], "ranks": [0, 1], "finished": r["finished"]}
        for r in rows
    ]


def train_scorer(
    settings: rm.RewardModelConfig, path: str, tokenizer, rankings, run: Run, what: str, *, head: str = "new"
) -> Scorer:
    """A reward model with a new head on the model at `path`, from rankings. The head is drawn from torch's stream."""
    scorer = models.load_scorer(path, head=head)
    state = rm.reward_model_start(settings, scorer, tokenizer, rankings)
    for stats in rm.reward_model_steps(state):
        run.progress(state.step, state.steps, f"{what}, loss {stats.loss:.2f}")
    return scorer.eval()


def optimise(
    name: str,
    policy,
    scorers: Sequence[Scorer],
    ground,
    run: Run,
    *,
    every: int = 0,
    pay: Callable[[Reward], Reward] = lambda reward: reward,
    updates: Callable[[PPOState], Iterator[PPOUpdate]] = ppo_updates,
) -> Measure:
    """PPO from an SFT model, which it changes, against the mean of reward models -> measured before and after.

    every: measured after so many updates too. pay: makes of that mean what the policy is paid by; it is measured by the
    mean itself. updates: PPO's loop.

    Each reward model is brought to unit scale on that SFT model's replies, and the critic starts as the first.
    """
    from datasets import Dataset

    cfg, tokenizer = ground.cfg, ground.tokenizer
    settings = cfg.ppo.model_copy(
        update={"seed": cfg.seed, "precision": cfg.precision, "max_new_tokens": cfg.max_new_tokens}
    )
    normalise(scorers, policy, ground)
    critic, reward = copy.deepcopy(scorers[0]).requires_grad_(True), ensemble(scorers, tokenizer)
    state = ppo_start(
        settings, policy=policy, critic=critic, reward=pay(reward), tokenizer=tokenizer, prompts=ground.train
    )
    held_out = Dataset.from_dict({"prompt": ground.held_out})
    measure = Measure(settings, tokenizer, held_out, reward, ground.world, baseline=state.reference)
    for update in updates(state):
        run.progress(update.number, settings.updates, f"{name}: PPO")
        if update.number == settings.updates or (every and update.number % every == 0):
            measure(policy, update.number)
    return measure


def normalise(scorers: Sequence[Scorer], policy, ground) -> None:
    """Bring each reward model to mean 0 and deviation 1 on an SFT model's replies to some of PPO's prompts."""
    cfg, tokenizer = ground.cfg, ground.tokenizer
    prompts = ground.train[: cfg.eval_prompts]
    replies, finished = sample_replies(
        policy, tokenizer, prompts, max_new_tokens=cfg.max_new_tokens, seed=cfg.seed + 600
    )
    for scorer in scorers:
        rm.normalise_to_reference(scorer, tokenizer, prompts, replies, finished=finished)


def accuracies(scorer: Scorer, ground, rows: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """A reward model on held-out comparisons: how often it agrees with the labels, and with gold."""
    pool = Pool(*([row[name] for row in rows] for name in ("prompt", "completions", "finished")))
    rankers = ModelReward(scorer, ground.tokenizer, ground.tokenizer), ground.world.gold
    lead, truth = (-score_pool(ranker, pool).diff(dim=1).squeeze(1).numpy() for ranker in rankers)
    ranks = np.array([row["ranks"] for row in rows])
    return {
        "accuracy": agreement(lead, ranks[:, 1] - ranks[:, 0]),
        "accuracy_gold": agreement(lead, truth),
    }


def reply_figures(measure: Measure) -> dict[str, float]:
    """How a policy answers at each measurement: words, EOS rate and win rate; and the parts of gold, first and last."""
    before = measure.baseline.answers
    figures = {}
    for at, point in measure.points.items():
        found = point.answers
        figures |= {
            f"words_at_{at}": float(found["words"].mean()),
            f"eos_rate_at_{at}": float(found["finished"].mean()),
            f"win_rate_at_{at}": win_rate(found["gold"], before["gold"]),
        }
    for when, answers in (("first", before), ("last", measure.last.answers)):
        figures |= {f"{part}_{when}": float(answers[part].mean()) for part in GOLD_PARTS}
    return figures


def ensemble(scorers: Sequence[Scorer], tokenizer) -> EnsembleReward:
    """Reward models on the policy's tokenizer as one reward, their mean. They learn no more."""
    return EnsembleReward([ModelReward(scorer.requires_grad_(False), tokenizer, tokenizer) for scorer in scorers])


def agreement(ours: np.ndarray, theirs: np.ndarray) -> float:
    """Share of equal signs, where theirs is not 0; ours of 0 counts 1/2. NaN where all of theirs are 0."""
    known = theirs != 0
    return float((0.5 + 0.5 * np.sign(ours[known]) * np.sign(theirs[known])).mean()) if known.any() else float("nan")
