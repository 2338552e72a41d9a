"""06_synthetic_feedback: what all chains of one seed share: replies to compare, self-play, and a plain SFT model."""

import time
from collections.abc import Sequence
from typing import NamedTuple

from rlhf_lab import models
from rlhf_lab.errors import LabError
from rlhf_lab.judges.feedback import Row
from rlhf_lab.sandbox.world import World
from rlhf_lab.training.best_of_n import Pool, sample_pool
from rlhf_lab.training.sft import quiet, sft_trainer
from rlhf_lab.workbench.runs import Run
from rlhf_lab.workbench.stages import SyntheticFeedbackStage
from rlhf_lab.workbench.studies.synthetic_responders import Cast, cast


class Ground(NamedTuple):
    """What all chains of one seed share."""

    cfg: SyntheticFeedbackStage
    cast: Cast
    student: str  # the base model that learns, as reward model and as policy
    train: list[str]  # prompts of the comparisons and of PPO
    held_out: list[str]
    answers: dict[str, list[Row]]  # responder -> its replies to prompts to learn from, best to worst by the rule
    held_answers: dict[str, list[Row]]
    self_play: Pool  # of the best responder, under prompts without the examples
    plain: object  # SFT on the first reply of the self-play: what is left of stage 2 without a reward model
    duel: Pool  # two replies of the plain SFT model to each held-out prompt
    started: float  # seconds that all this took

    @property
    def world(self) -> World:
        return self.cast.world

    @property
    def tokenizer(self):
        return self.cast.tokenizer


def common_ground(cfg: SyntheticFeedbackStage, run: Run) -> Ground:
    """Sample and train what all chains share. Errors: `LabError` without a sandbox: nothing else has a known gold."""
    if not cfg.sandbox:
        raise LabError("synthetic feedback: 'sandbox' is empty, but only an embedded world has a known gold reward")
    began, world = time.perf_counter(), World.load(cfg.sandbox)
    responders = cast(cfg, world)
    needed = max(cfg.n_prompts, cfg.n_self_play, cfg.ppo.batch_size)
    train = world.prompts("train", max(needed, cfg.ppo.batch_size * cfg.ppo.updates), cfg.seed + 1)
    held_out = world.prompts("heldout", cfg.eval_prompts)
    student = world.base_model if cfg.student == "sandbox" else cfg.student
    answers, held_answers = {}, {}
    for number, who in enumerate(cfg.responders):
        answers[who.name] = responders.answer(who, train[: cfg.n_prompts], cfg.seed + 100 + number)
        held_answers[who.name] = responders.answer(who, held_out, cfg.seed + 200 + number)
        run.progress(number + 1, len(cfg.responders) + 2, "replies to compare")
    pool = _self_play(cfg, responders, train[: cfg.n_self_play])
    run.progress(len(cfg.responders) + 1, len(cfg.responders) + 2, "SFT on plain self-play")
    first = [{"prompt": p, "completion": r[0]} for p, r, e in zip(*pool, strict=True) if e[0]]
    plain = fine_tune(cfg, student, responders.tokenizer, first)
    sampling = {"max_new_tokens": cfg.max_new_tokens, "seed": cfg.seed + 300}
    duel = sample_pool(plain, responders.tokenizer, held_out, size=2, **sampling)
    seconds = time.perf_counter() - began
    return Ground(cfg, responders, student, train, held_out, answers, held_answers, pool, plain, duel, seconds)


def _self_play(cfg: SyntheticFeedbackStage, responders: Cast, prompts: list[str]) -> Pool:
    best = cfg.responders[0]
    shown = responders.behind(prompts, best, cfg.seed + 400)
    sampling = {"max_new_tokens": cfg.max_new_tokens, "seed": cfg.seed + 400}
    pool = sample_pool(responders.policies[best.size], responders.tokenizer, shown, size=cfg.best_of, **sampling)
    return pool._replace(prompts=prompts)


def fine_tune(cfg: SyntheticFeedbackStage, path: str, tokenizer, rows: Sequence[Row]):
    """SFT of the model at `path` on rows of prompt and completion -> the policy."""
    policy = models.load_policy(path)
    settings = cfg.sft.model_copy(update={"seed": cfg.seed, "precision": cfg.precision})
    quiet(sft_trainer(settings, policy, tokenizer, list(rows)).train)
    return policy.eval()
