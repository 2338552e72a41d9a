"""15_ppo_details: PPO with one detail switched. What no setting can break is broken here, around the library."""

import copy
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from statistics import fmean
from typing import Any

import torch
from torch import nn

from rlhf_lab import models
from rlhf_lab.data import right_pad
from rlhf_lab.errors import LabError
from rlhf_lab.maths import masked_whiten, policy_loss
from rlhf_lab.models import Scorer, response_logprobs
from rlhf_lab.models.loading import disable_dropout
from rlhf_lab.rewards import Reward
from rlhf_lab.training import ppo
from rlhf_lab.training.ppo_state import PPOState, PPOUpdate
from rlhf_lab.training.rollouts import rollout
from rlhf_lab.workbench.evaluation import Measure
from rlhf_lab.workbench.stages.ppo_details import DETAILS, PPODetailsStage
from rlhf_lab.workbench.studies.one_reward import OneReward
from rlhf_lab.workbench.studies.rounds import right_share
from rlhf_lab.workbench.studies.units import Figures

LISTS = {"details"}
"""What only lists the units."""
DROPOUT = 0.1
OTHER_SEEDS = {"again": 1000, "again_2": 2000, "again_3": 3000}
"""Added to the seed of PPO alone."""


def units_of(cfg: PPODetailsStage) -> dict[str, dict[str, Any]]:
    """Unit -> what is its own: its changes of PPO's or the reward model's settings, or the name of what it breaks."""
    broken = {"dropout": {"p": DROPOUT}} | {name: {"seed": added} for name, added in OTHER_SEEDS.items()}
    own = {"baseline": {}}
    for name in cfg.details:
        changes, learns = DETAILS[name].changes, DETAILS[name].learns
        own[name] = changes or ({"learns": learns} if learns else {"detail": name, **broken.get(name, {})})
    return own


def unit(name: str, ground: OneReward) -> Figures:
    """PPO with a detail switched ("baseline": none), measured as all others are: gold, score, KL (nats per reply).

    At the end, and after a quarter and half of the updates (gold_at_5). score_ahead: what was gained in score less what
    was gained in gold. accuracy_gold is that of the reward model that pays, reading as it is made to read here.
    """
    began, cfg = time.perf_counter(), ground.cfg
    changes = DETAILS[name].changes if name in DETAILS else {}
    settings = ground.settings(**{"seed": cfg.seed + OTHER_SEEDS.get(name, 0)} | changes)
    scorer, pairs = _scorer(name, ground), ground.duel
    critic = models.load_scorer(ground.sft_path, head="zero") if name == "critic_zero" else scorer
    reward = pays = ground.reward_of(scorer)
    if name == "eos_unread":
        pays, pairs = without_eos(reward), pairs._replace(finished=[[False] * 2 for _ in pairs.prompts])
    if name == "score_everywhere":
        pays = mean_score(scorer, ground.tokenizer.pad_token_id)
    state = ground.start(settings, reward=pays, critic=critic)
    if name == "prompts_again":
        state.prompts = state.prompts[: len(state.prompts) // 4]
    rate = DROPOUT if name == "dropout" else 0.0
    if rate:
        set_dropout(state.policy, rate)
    figures = {"accuracy_gold": right_share(reward, ground.world, pairs)} | first_figures(state)
    measure, updates = _measure(ground, settings), []
    breaks = {"padded_whitening": padded_whitening, "eos_masked": eos_masked}
    with breaks.get(name, nullcontext)():
        for update in ppo.ppo_updates(state):
            ground.run.progress(update.number, settings.updates, name)
            updates.append(update)
            if update.number in (settings.updates // 4, settings.updates // 2, settings.updates):
                disable_dropout(state.policy)
                measure(state.policy, update.number)
                if rate:
                    set_dropout(state.policy, rate)
    figures |= ended_figures(measure) | step_figures(updates)
    return figures | {"seconds": time.perf_counter() - began}


def _measure(ground: OneReward, settings: ppo.PPOConfig) -> Measure:
    """The common measure, or one of replies as short as these, which has measured the SFT model's."""
    measure = ground.measure()
    if settings.max_new_tokens != measure.cfg.max_new_tokens:
        measure.cfg = measure.cfg.model_copy(update={"max_new_tokens": settings.max_new_tokens})
        measure(ground.sft, 0)
    return measure


# ---- Figures


@torch.no_grad()
def first_figures(state: PPOState) -> Figures:
    """How far the policy's two readings of its first rollout are apart before it has learned: 0, or dropout is on.

    The run's random numbers stay as they were.
    """
    before, cfg = state.streams(), state.config
    prompts, _ = state.next_prompts()
    unpaid = lambda prompts: [0.0] * len(prompts)
    batch = rollout(state.policy, state.reference, None, unpaid, state.tokenizer, prompts, cfg, state.generator)
    read = (batch.prompt_ids, batch.prompt_mask, batch.response_ids, batch.response_mask)
    logp = response_logprobs(state.policy, *read, temperature=cfg.temperature).logp
    state.rewind(before)
    found = policy_loss(logp, batch.old_logp, torch.zeros_like(logp), batch.response_mask, clip=cfg.clip)
    return {"first_kl": found.approx_kl.item(), "first_ratio_off": abs(found.ratio.item() - 1)}


def ended_figures(measure: Measure) -> Figures:
    """What was measured on the held-out prompts."""
    figures: Figures = {}
    for at, point in list(measure.points.items())[1:-1]:
        measured = {"gold": point.answers["gold"].mean(), "score": point.proxy, "kl": point.kl}
        figures |= {f"{what}_at_{at}": float(value) for what, value in measured.items()}
    ended, answers = measure.results(), measure.baseline.answers
    gained = {what: ended[what] - ended[before] for what, before in (("gold", "gold_sft"), ("score", "score_before"))}
    figures |= {what: ended[what] for what in ("gold", "gold_sft", "score", "kl", "eos_rate", "words", "win_rate")}
    figures |= {"words_sft": float(answers["words"].mean()), "eos_sft": float(answers["finished"].mean())}
    return figures | {"score_ahead": gained["score"] - gained["gold"]}


def step_figures(updates: Sequence[PPOUpdate]) -> Figures:
    """How PPO's steps were: means over the updates, unless the name says otherwise.

    ratio_off: how far the mean ratio of an update was from 1 at most. unfinished: share of sampled replies without EOS.
    optimizer_steps: all of them. score_scale: the last.
    """
    stats = [update.stats for update in updates]
    averaged = ("approx_kl", "clip_fraction", "value_clip_fraction", "explained_variance")
    norms = ("policy_grad_norm", "value_grad_norm")
    figures = {what: fmean(getattr(s, what) for s in stats) for what in averaged + norms}
    figures |= {f"{what}_max": max(getattr(s, what) for s in stats) for what in norms}
    figures |= {f"{what}_last": getattr(stats[-1], what) for what in ("entropy", "explained_variance")}
    return figures | {
        "ratio_off": max(abs(s.ratio - 1) for s in stats),
        "unfinished": fmean((~update.rollout.finished).float().mean().item() for update in updates),
        "optimizer_steps": sum(s.optimizer_steps for s in stats),
        "score_scale": updates[-1].score_scale,
    }


# ---- What is broken


def _scorer(name: str, ground: OneReward) -> Scorer:
    """The reward model that pays. All units are measured by the right one."""
    if name == "reversed":
        return ground.learned_scorer(reverse=True)
    if name in DETAILS and DETAILS[name].learns:
        return ground.learned_scorer(**DETAILS[name].learns)
    if name == "reward_head_zero":
        return ground.learned_scorer(head="zero")
    if name in ("score_no_zero", "score_raw"):
        raw = copy.deepcopy(ground.scorer)
        raw.shift = 0.0
        raw.gain = raw.gain if name == "score_no_zero" else 1.0
        return raw
    return ground.scorer


def without_eos(reward: Reward) -> Reward:
    """A reward that reads replies that ended as if they had not: what is left when text is decoded and read again."""

    def read(*, completion_ids, finished, **rest) -> list[float]:
        ids = [
            reply[:-1] if end and len(reply) > 1 else reply for reply, end in zip(completion_ids, finished, strict=True)
        ]
        return reward(completion_ids=ids, finished=[False] * len(ids), **rest)

    return read


def mean_score(scorer: Scorer, pad_id: int) -> Reward:
    """A reward that is the mean of the scores at all tokens of a reply: only that of the last has learned anything."""

    @torch.no_grad()
    def read(*, prompt_ids, completion_ids, **_) -> list[float]:
        rows = [[*prompt, *reply] for prompt, reply in zip(prompt_ids, completion_ids, strict=True)]
        ids, mask = (tensor.to(scorer.device) for tensor in right_pad(rows, pad_id))
        begins = torch.tensor([len(prompt) for prompt in prompt_ids], device=ids.device)
        replies = mask & (torch.arange(ids.shape[1], device=ids.device) >= begins[:, None])
        return (scorer.token_scores(ids, mask, replies).sum(1) / replies.sum(1)).tolist()

    return read


def set_dropout(model: nn.Module, p: float) -> None:
    """Have a model that trains drop out with probability `p`, wherever it can: the opposite of `disable_dropout`.

    Errors: `LabError` for a model that has no dropout to set.
    """
    places = 0
    for module in model.modules():
        names = ["p"] if isinstance(module, nn.Dropout) else [n for n, v in vars(module).items() if _is_rate(n, v)]
        for name in names:
            setattr(module, name, p)
        places += len(names)
    if not places:
        raise LabError(f"ppo_details: {type(model).__name__} has no dropout to set; leave 'dropout' out of 'details'")


def _is_rate(name: str, value: Any) -> bool:
    return "drop" in name and isinstance(value, int | float) and not isinstance(value, bool)


@contextmanager
def _replaced(name: str, wrong: Callable[..., Any]) -> Iterator[None]:
    """Inside, PPO's loop calls another function in place of the one of that name."""
    right = getattr(ppo, name)
    setattr(ppo, name, wrong)
    try:
        yield
    finally:
        setattr(ppo, name, right)


def eos_masked() -> AbstractContextManager[None]:
    """Inside, PPO's step takes the EOS for padding, as where one token is both and masks are made of ids."""
    right = ppo.ppo_step

    def wrong(policy, critic, optimizer, batch, *rest, **more):
        mask = batch.response_mask
        last = torch.arange(mask.shape[1], device=mask.device) == mask.sum(1, keepdim=True) - 1
        hidden = last & batch.finished[:, None] & (mask.sum(1, keepdim=True) > 1)  # a reply of its EOS alone keeps it
        return right(policy, critic, optimizer, batch._replace(response_mask=mask & ~hidden), *rest, **more)

    return _replaced("ppo_step", wrong)


def padded_whitening() -> AbstractContextManager[None]:
    """Inside, advantages are whitened over every position, with the zeros behind shorter replies, as without masks."""
    right = ppo.estimate_advantages

    def wrong(rollout, config, *, scale: float = 1.0) -> tuple[torch.Tensor, torch.Tensor]:
        advantages, returns = right(rollout, config.model_copy(update={"whiten": "off"}), scale=scale)
        everywhere = torch.ones_like(rollout.response_mask)
        return masked_whiten(advantages, everywhere).masked_fill(~rollout.response_mask, 0.0), returns

    return _replaced("estimate_advantages", wrong)
