"""15_ppo_details: PPO with one detail switched. What no setting can break is broken here, around the library."""

import copy
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from statistics import fmean
from typing import Any

import torch
from torch import nn

from rlhf_lab import models
from rlhf_lab.errors import LabError
from rlhf_lab.maths import masked_whiten
from rlhf_lab.models import Scorer
from rlhf_lab.models.loading import disable_dropout
from rlhf_lab.rewards import Reward
from rlhf_lab.training import ppo
from rlhf_lab.workbench.stages.ppo_details import DETAILS, PPODetailsStage
from rlhf_lab.workbench.studies.one_reward import OneReward
from rlhf_lab.workbench.studies.units import Figures

LISTS = {"details"}
"""What only lists the units."""
DROPOUT = 0.1
OTHER_SEED = 1000  # added to the seed of PPO alone


def units_of(cfg: PPODetailsStage) -> dict[str, dict[str, Any]]:
    """Unit -> what is its own: its changes of PPO's settings, or the name of what it breaks."""
    broken = {"dropout": {"p": DROPOUT}, "again": {"seed": OTHER_SEED}}
    own = {name: DETAILS[name].changes or {"detail": name, **broken.get(name, {})} for name in cfg.details}
    return {"baseline": {}} | own


def unit(name: str, ground: OneReward) -> Figures:
    """PPO with a detail switched ("baseline": none), measured at its end as all others are.

    Besides gold, score, KL (nats per reply), EOS rate and words of the end: how PPO's steps were on the average, and
    `ratio_off`, how far the mean ratio of an update was from 1 at most.
    """
    detail = DETAILS.get(name)
    changes = {"seed": ground.cfg.seed + OTHER_SEED} if name == "again" else detail.changes if detail else {}
    settings = ground.settings(**changes)
    scorer = _scorer(name, ground)
    critic = models.load_scorer(ground.sft_path, head="zero") if name == "critic_zero" else scorer
    reward = ground.reward_of(scorer)
    state = ground.start(settings, reward=without_eos(reward) if name == "eos_unread" else reward, critic=critic)
    if name == "dropout":
        set_dropout(state.policy, DROPOUT)
    stats = []
    with padded_whitening() if name == "padded_whitening" else nullcontext():
        for update in ppo.ppo_updates(state):
            ground.run.progress(update.number, settings.updates, name)
            stats.append(update.stats)
    disable_dropout(state.policy)
    measure = ground.measure()
    measure(state.policy, settings.updates)
    ended = measure.results()
    steps = {
        what: fmean(getattr(s, what) for s in stats) for what in ("approx_kl", "clip_fraction", "explained_variance")
    }
    steps["ratio_off"] = max(abs(s.ratio - 1) for s in stats)
    return {what: ended[what] for what in ("gold", "gold_sft", "score", "kl", "eos_rate", "words")} | steps


def _scorer(name: str, ground: OneReward) -> Scorer:
    """The reward model that pays. All units are measured by the right one."""
    if name == "reversed":
        return ground.learned_scorer(reverse=True)
    if name == "score_raw":
        raw = copy.deepcopy(ground.scorer)
        raw.shift, raw.gain = 0.0, 1.0
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
def padded_whitening() -> Iterator[None]:
    """Inside, advantages are whitened over every position, with the zeros behind shorter replies, as without masks."""
    right = ppo.estimate_advantages

    def wrong(rollout, config, *, scale: float = 1.0) -> tuple[torch.Tensor, torch.Tensor]:
        advantages, returns = right(rollout, config.model_copy(update={"whiten": "off"}), scale=scale)
        everywhere = torch.ones_like(rollout.response_mask)
        return masked_whiten(advantages, everywhere).masked_fill(~rollout.response_mask, 0.0), returns

    ppo.estimate_advantages = wrong
    try:
        yield
    finally:
        ppo.estimate_advantages = right
