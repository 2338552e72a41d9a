"""05_algorithms: every method from one SFT model, paid by one reward, at one budget of replies.

The budget is counted in replies sampled and scored. PPO and its relatives spend it on updates, DPO and KTO on pairs
that the reward ranks, RAFT on its rounds, best-of-n on the held-out prompts themselves.
"""

import copy
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple

import torch

from rlhf_lab import data, models
from rlhf_lab.data import encode_reply
from rlhf_lab.errors import LabError
from rlhf_lab.maths import best_of_n_curve, best_of_n_kl
from rlhf_lab.rewards import Reward
from rlhf_lab.sandbox.world import World
from rlhf_lab.training import preference_tuning
from rlhf_lab.training.best_of_n import Pool, sample_pool, score_pool
from rlhf_lab.training.ppo import ppo_start, ppo_updates
from rlhf_lab.training.rejection_sampling import raft_rounds, raft_start
from rlhf_lab.training.sft import quiet
from rlhf_lab.workbench import artefacts, roles
from rlhf_lab.workbench.evaluation import Measure
from rlhf_lab.workbench.runs import Run
from rlhf_lab.workbench.stages import AlgorithmsStage, settle_precision


class Ground(NamedTuple):
    """What all methods share."""

    cfg: AlgorithmsStage
    world: World | None
    sft_path: str
    tokenizer: object
    reward: Reward
    reward_name: str  # as `cfg.reward`, with `auto` settled
    train: list[str]  # prompts to learn from
    measure: Measure  # of the SFT model, on the held-out prompts


class Spent(NamedTuple):
    """What a method has used up to a measurement, measuring not included."""

    replies: int = 0  # sampled
    tokens: int = 0  # sampled, EOS included
    reward_calls: int = 0  # replies scored
    seconds: float = 0.0  # sampling, scoring and learning


class Outcome(NamedTuple):
    """What a method has come to: one row for each measurement, the first of the SFT model, the last of the end."""

    curve: list[dict[str, float]]

    @property
    def figures(self) -> dict[str, float]:
        """The last measurement, with the gains over the SFT model."""
        first, last = self.curve[0], self.curve[-1]
        gains = {f"{name}_gain": last[name] - first[name] for name in ("gold", "score") if name in last}
        return gains | last


def common_ground(cfg: AlgorithmsStage, run: Run) -> Ground:
    """Load what all methods share, and measure the SFT model. Errors: `LabError` on fewer prompts than are needed."""
    world, files = artefacts.sandbox_files(cfg, run)
    train, held_out = artefacts.prompt_split(cfg, files)
    path = artefacts.checkpoint(cfg.policy, "sft", cfg)
    name = cfg.reward
    if name != "gold" and ":" not in name:
        name = artefacts.checkpoint(name, "reward_model", cfg)  # once: `auto` could name another run later
    tokenizer = models.load_tokenizer(path)
    train, held_out = data.to_text(train, tokenizer), data.to_text(held_out, tokenizer)
    reference = models.load_policy(path, trainable=False)
    cfg = settle_precision(cfg, reference)
    reward = roles.reward(cfg.model_copy(update={"reward": name}), world, tokenizer, None)
    needed = max(cfg.batch_size, cfg.replies // 2)
    if len(train) < needed:
        raise LabError(f"prompts: {len(train)} to learn from, but 'replies' takes {needed}; give more, or lower it")
    settings = cfg.online_settings("ppo", name)
    measure = Measure(settings, tokenizer, held_out.select_columns("prompt"), reward, world, baseline=reference)
    preference_tuning.load_trl()
    return Ground(cfg, world, path, tokenizer, reward, name, list(train["prompt"]), measure)


def learn(method: str, ground: Ground, run: Run) -> Outcome:
    """Run one method to the end of its budget."""
    how = {"dpo": _preferences, "kto": _preferences, "best_of_n": _best_of_n, "raft": _raft}.get(method, _online)
    return how(method, ground, Watch(method, ground, run))


class Watch:
    """Measures a policy while it learns, and counts what the learning costs."""

    def __init__(self, method: str, ground: Ground, run: Run):
        self.method, self.ground, self.run = method, ground, run
        self.measure = copy.copy(ground.measure)
        self.measure.points = {0: ground.measure.baseline}
        self.spent = Spent()
        self.curve = [self._row()]

    @contextmanager
    def clock(self) -> Iterator[None]:
        """Counts the seconds inside."""
        began = time.perf_counter()
        yield
        self.spent = self.spent._replace(seconds=self.spent.seconds + time.perf_counter() - began)

    def spend(self, replies: int, tokens: int) -> None:
        """Count replies that were sampled and scored."""
        spent = self.spent
        self.spent = spent._replace(
            replies=spent.replies + replies,
            tokens=spent.tokens + tokens,
            reward_calls=spent.reward_calls + replies,
        )
        self.tell(self.spent.replies, self.ground.cfg.replies)

    def tell(self, done: int, total: int) -> None:
        """Show how far this method is."""
        self.run.progress(done, total, self.method)

    def look(self, policy) -> None:
        """Measure the policy as it is now."""
        self.measure(policy, self.spent.replies)
        self.curve.append(self._row())

    def _row(self) -> dict[str, float]:
        point = self.measure.last
        row = {"score": point.proxy, "kl": point.kl, "eos_rate": float(point.answers["finished"].mean())}
        row["words"] = float(point.answers["words"].mean())
        if "gold" in point.answers:
            row["gold"] = float(point.answers["gold"].mean())
        return row | self.spent._asdict()


def _online(method: str, ground: Ground, watch: Watch) -> Outcome:
    """PPO and its relatives: `replies` in updates of `batch_size`, each from the policy of the one before."""
    settings = ground.cfg.online_settings(method, ground.reward_name)
    policy = models.load_policy(ground.sft_path)
    critic = roles.critic(settings, ground.sft_path, policy)
    state = ppo_start(
        settings,
        policy=policy,
        reference=ground.measure.reference,
        critic=critic,
        reward=ground.reward,
        tokenizer=ground.tokenizer,
        prompts=ground.train,
    )
    stops = {round(settings.updates * part / ground.cfg.measurements) for part in range(1, ground.cfg.measurements + 1)}
    updates = ppo_updates(state)
    for number in range(1, settings.updates + 1):
        with watch.clock():
            update = next(updates)
        watch.spend(len(update.rollout.scores), int(update.rollout.response_mask.sum()))
        if number in stops:
            watch.look(policy)
    return Outcome(watch.curve)


def _preferences(method: str, ground: Ground, watch: Watch) -> Outcome:
    """DPO and KTO: pairs of the SFT model's replies, and the reward says which one is better."""
    cfg = ground.cfg
    policy = models.load_policy(ground.sft_path)
    with watch.clock():
        pool = _pool(ground, policy, _some(ground.train, cfg.replies // 2, cfg.seed), 2)
        scores = _penalised(ground, pool, score_pool(ground.reward, pool))
    watch.spend(scores.numel(), tokens_of_pool(pool, ground.tokenizer))
    rows = ranked_pairs(pool, scores)
    shared = {"seed": cfg.seed, "precision": cfg.precision}
    if method == "dpo":
        settings = cfg.dpo.model_copy(update=shared)
        start, rows = preference_tuning.dpo_trainer, rows
    else:
        settings = cfg.kto.model_copy(update=shared)
        start, rows = preference_tuning.kto_trainer, preference_tuning.labelled_replies(rows)
    on_log = lambda figures: watch.tell(figures["global_step"], figures["max_steps"])
    reference = models.load_policy(ground.sft_path, trainable=False)
    trainer = start(settings, policy, ground.tokenizer, rows, reference=reference, on_log=on_log)
    with watch.clock():
        quiet(trainer.train)
    watch.look(policy)
    return Outcome(watch.curve)


def ranked_pairs(pool: Pool, scores: torch.Tensor) -> list[dict]:
    """A pool of two replies to each prompt as rankings, without the prompts that got the same reply twice."""
    rows = []
    for prompt, replies, finished, pair in zip(pool.prompts, pool.replies, pool.finished, scores.tolist(), strict=True):
        if replies[0] != replies[1]:
            ranks = [sum(other > score for other in pair) for score in pair]
            rows.append({"prompt": prompt, "completions": replies, "ranks": ranks, "finished": finished})
    return rows


def _raft(method: str, ground: Ground, watch: Watch) -> Outcome:
    """RAFT: the budget in rounds, each of k replies to as many prompts as it pays for."""
    cfg = ground.cfg
    settings = cfg.raft.model_copy(
        update={
            "prompts": cfg.replies // (cfg.raft.rounds * cfg.raft.k),
            "max_new_tokens": cfg.max_new_tokens,
            "seed": cfg.seed,
            "sft": cfg.raft.sft.model_copy(update={"precision": cfg.precision}),
        }
    )
    policy = models.load_policy(ground.sft_path)
    state = raft_start(settings, policy=policy, reward=ground.reward, tokenizer=ground.tokenizer, prompts=ground.train)
    rounds = raft_rounds(state)
    for _ in range(settings.rounds):
        with watch.clock():
            done = next(rounds)
        watch.spend(done.scores.numel(), tokens_of_pool(done.pool, ground.tokenizer))
        watch.look(policy)
    return Outcome(watch.curve)


def _best_of_n(method: str, ground: Ground, watch: Watch) -> Outcome:
    """The best of n of the SFT model's replies to each held-out prompt, for n up to what the budget pays for.

    Estimated without bias from a pool of 2 n; charged are the n that one choice takes. The KL is the bound on it.
    """
    cfg, measure = ground.cfg, watch.measure
    policy = models.load_policy(ground.sft_path, trainable=False)
    prompts = list(measure.prompts)
    n = cfg.replies // len(prompts)
    with watch.clock():
        pool = _pool(ground, policy, prompts, 2 * n)
        raw = score_pool(ground.reward, pool)
    scores = _penalised(ground, pool, raw)
    values = {
        "score": raw,
        "eos_rate": torch.tensor(pool.finished, dtype=torch.float64),
        "words": torch.tensor([[len(reply.split()) for reply in row] for row in pool.replies], dtype=torch.float64),
    }
    if ground.world is not None:
        values["gold"] = score_pool(ground.world.gold, pool)
    ns = sorted({*(2**power for power in range(n.bit_length()) if 2**power <= n), n})
    coin = torch.rand(scores.shape, generator=torch.Generator().manual_seed(cfg.seed))
    means = {
        name: best_of_n_curve(scores, value, ns, tie_breaker=coin).value.mean(0).tolist()
        for name, value in values.items()
    }
    tokens, seconds = tokens_of_pool(pool, ground.tokenizer), watch.spent.seconds
    for column, size in enumerate(ns):
        share = size / (2 * n)
        spent = Spent(size * len(prompts), round(tokens * share), size * len(prompts), seconds * share)
        row = {name: column_means[column] for name, column_means in means.items()}
        watch.curve.append(row | {"kl": best_of_n_kl(size)} | spent._asdict())
    return Outcome(watch.curve)


def _pool(ground: Ground, policy, prompts: Sequence[str], size: int) -> Pool:
    cfg = ground.cfg
    return sample_pool(
        policy,
        ground.tokenizer,
        prompts,
        size=size,
        max_new_tokens=cfg.max_new_tokens,
        temperature=cfg.online.temperature,
        seed=cfg.seed + 7,
    )


def _penalised(ground: Ground, pool: Pool, scores: torch.Tensor) -> torch.Tensor:
    """(B, N) scores as PPO counts them: less the penalty where a reply was cut short."""
    unfinished = ~torch.tensor(pool.finished)
    return scores - ground.cfg.online.missing_eos_penalty * unfinished


def _some(prompts: Sequence[str], n: int, seed: int) -> list[str]:
    order = torch.randperm(len(prompts), generator=torch.Generator().manual_seed(seed))
    return [prompts[i] for i in order[:n].tolist()]


def tokens_of_pool(pool: Pool, tokenizer) -> int:
    """Tokens that were sampled for a pool, EOS included, by encoding its replies again."""
    rows = zip(pool.replies, pool.finished, strict=True)
    return sum(
        len(encode_reply(tokenizer, reply, finished=end))
        for replies, ends in rows
        for reply, end in zip(replies, ends, strict=True)
    )
