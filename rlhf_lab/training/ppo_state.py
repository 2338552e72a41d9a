"""Where a PPO run stands: everything it needs to take the next update, and to be taken up again."""

from collections.abc import Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch

from rlhf_lab.data import right_pad
from rlhf_lab.errors import LabError
from rlhf_lab.models.shards import like
from rlhf_lab.rewards import Reward
from rlhf_lab.training.credit import RunningMoments
from rlhf_lab.training.ppo_config import PPOConfig
from rlhf_lab.training.ppo_step import PPOStats
from rlhf_lab.training.processes import Processes
from rlhf_lab.training.rollouts import Rollout


class PPOUpdate(NamedTuple):
    """One finished update: what was sampled, what was learned, and at what cost."""

    rollout: Rollout
    stats: PPOStats
    number: int  # 1 for the first
    episode: int  # replies sampled so far
    lr: float
    kl_coef: float
    score_scale: float  # what the scores were divided by
    seconds: dict[str, float]  # rollout, score, train


class PPOState:
    """Everything a run needs to take the next update. Whole updates only: an interrupted one leaves no trace."""

    def __init__(
        self, config, policy, reference, critic, reward, tokenizer, prompts, columns, texts, optimizer, processes
    ):
        self.config: PPOConfig = config
        self.processes: Processes = processes
        self.policy, self.reference, self.critic = policy, reference, critic
        self.reward: Reward = reward
        self.tokenizer = tokenizer
        self.prompts: list[str] = prompts
        self.columns: dict[str, list] = columns
        self.texts: list[list[int]] = texts  # token ids of pretraining texts, for PPO-ptx
        self.optimizer: torch.optim.Optimizer = optimizer
        self.number = 0  # whole updates done
        self.kl_coef = config.kl_coef
        self.scores = RunningMoments()
        self.average = [p.detach().clone() for p in policy.parameters()] if config.ema else []
        self.unseen: PPOUpdate | None = None  # done, but an interrupt came before it could be yielded
        self.before: dict[str, Any] | None = None  # the streams before an update that is being sampled
        self.order: list[int] = []  # prompts still to come in this pass over the data
        self.generator = torch.Generator(device=policy.device).manual_seed(config.seed)
        self.shuffler = torch.Generator().manual_seed(config.seed)

    def next_texts(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Pretraining texts drawn at random: ids and mask (N, L), padded on the right."""
        rows = torch.randint(len(self.texts), (self.config.ptx_batch_size,)).tolist()
        ids, mask = right_pad([self.texts[i] for i in rows], self.tokenizer.pad_token_id)
        return ids.to(self.policy.device), mask.to(self.policy.device)

    def streams(self) -> dict[str, Any]:
        """The order of the prompts still to come, and the random streams that sampling uses."""
        return {
            "order": list(self.order),
            "shuffler": self.shuffler.get_state(),
            "generator": self.generator.get_state(),
            "torch": torch.get_rng_state(),
        }

    def rewind(self, streams: dict[str, Any]) -> None:
        """Go back to what `streams` gave. Errors: `LabError` where they are of another kind of device."""
        if streams["generator"].shape != self.generator.get_state().shape:
            raise LabError("PPO: this run began on another kind of device; resume it there, or begin a new one")
        self.order = list(streams["order"])
        self.shuffler.set_state(streams["shuffler"])
        self.generator.set_state(streams["generator"])
        torch.set_rng_state(streams["torch"])

    @property
    def step(self) -> int:
        """Replies sampled in the updates that have been yielded."""
        seen = self.number - (self.unseen is not None)
        return seen * self.config.batch_size * self.config.samples_per_prompt

    def material(self) -> list[Any]:
        """What it learns from."""
        return [self.prompts, self.columns, self.texts]

    def progress(self) -> dict[str, Any]:
        """Where it stands: at the last whole update, also while the next one is being sampled."""
        pending = self.unseen
        return {
            "number": self.number,
            "kl_coef": self.kl_coef,
            "scores": [self.scores.count, self.scores.mean, self.scores.squares],
            "average": [p.clone() for p in self.average],
            "streams": self.before or self.streams(),
            "unseen": pending
            and pending._asdict() | {"rollout": pending.rollout._asdict(), "stats": pending.stats._asdict()},
        }

    def restore(self, progress: dict[str, Any]) -> None:
        """Take up what `progress` gave."""
        self.number, self.kl_coef = progress["number"], progress["kl_coef"]
        self.scores = RunningMoments(*progress["scores"])
        self.average = [like(new, old) for new, old in zip(progress["average"], self.average, strict=True)]
        self.rewind(progress["streams"])
        pending = progress["unseen"]
        self.unseen = pending and PPOUpdate(
            **pending | {"rollout": Rollout(**pending["rollout"]), "stats": PPOStats(**pending["stats"])}
        )

    @contextmanager
    def averaged_weights(self):
        """The policy with the average of its weights, until the block ends. Without `ema` it stays as it is."""
        if not self.average:
            yield self.policy
            return
        own = [p.detach().clone() for p in self.policy.parameters()]
        _assign(self.policy, self.average)
        try:
            yield self.policy
        finally:
            _assign(self.policy, own)

    def next_prompts(self) -> tuple[list[str], dict[str, list]]:
        """The next batch of prompts; every prompt comes once before any comes again."""
        while len(self.order) < self.config.batch_size:
            self.order += torch.randperm(len(self.prompts), generator=self.shuffler).tolist()
        rows, self.order = self.order[: self.config.batch_size], self.order[self.config.batch_size :]
        return [self.prompts[i] for i in rows], {name: [v[i] for i in rows] for name, v in self.columns.items()}


@torch.no_grad()
def _assign(model, weights: Sequence[torch.Tensor]) -> None:
    for parameter, weight in zip(model.parameters(), weights, strict=True):
        parameter.copy_(weight)
