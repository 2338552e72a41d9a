"""What the studies of PPO share: one reward model of each seed, and PPO against it with something changed."""

import copy
from functools import cached_property
from typing import Any

import torch

from rlhf_lab import models
from rlhf_lab.models import Scorer
from rlhf_lab.rewards import ModelReward, Reward
from rlhf_lab.training.ppo import PPOConfig, ppo_start
from rlhf_lab.training.ppo_state import PPOState
from rlhf_lab.workbench.evaluation import Measure
from rlhf_lab.workbench.runs import Run
from rlhf_lab.workbench.studies import chain
from rlhf_lab.workbench.studies.ground import Ground


class OneReward(Ground):
    """A ground with one reward model, by which all units are measured.

    cfg: a `StudyStage` with `comparisons` and `ppo`.
    """

    def __init__(self, cfg, run: Run):
        super().__init__(cfg, max(cfg.comparisons * 5 // 4 + 4, cfg.ppo.batch_size * cfg.ppo.updates))
        self.run = run

    @cached_property
    def rows(self) -> list[dict[str, Any]]:
        """The comparisons."""
        return self.comparisons(self.labeler(), n=self.cfg.comparisons)

    @cached_property
    def scorer(self) -> Scorer:
        """The reward model, its scores of mean 0 and deviation 1 on the SFT model's replies."""
        return self.learned_scorer()

    def learned_scorer(self, *, head: str = "new", **changes: Any) -> Scorer:
        """A reward model from the comparisons, brought to the same scale; `changes` are of how it learns."""
        cfg = self.cfg
        settings = cfg.reward_model.model_copy(update={"seed": cfg.seed, "precision": cfg.precision} | changes)
        torch.manual_seed(cfg.seed)  # the head is drawn from this stream
        what = (self.run, "reward model")
        scorer = chain.train_scorer(settings, self.sft_path, self.tokenizer, self.rows, *what, head=head)
        chain.normalise([scorer], self.sft, self)
        return scorer.requires_grad_(False)

    def reward_of(self, scorer: Scorer) -> ModelReward:
        """A reward model as a reward."""
        return ModelReward(scorer, self.tokenizer, self.tokenizer)

    def settings(self, **changes: Any) -> PPOConfig:
        """PPO's settings, with some changed. Errors: pydantic's, where they do not fit one another."""
        cfg = self.cfg
        common = {"seed": cfg.seed, "precision": cfg.precision, "max_new_tokens": cfg.max_new_tokens}
        return PPOConfig(**(cfg.ppo.model_dump() | common | changes))

    @cached_property
    def before(self) -> Measure:
        """The SFT model, measured."""
        from datasets import Dataset

        held_out = Dataset.from_dict({"prompt": self.held_out})
        reward = self.reward_of(self.scorer)
        return Measure(self.settings(), self.tokenizer, held_out, reward, self.world, baseline=self.sft)

    def measure(self) -> Measure:
        """A measure that has measured the SFT model and nothing else. The settings of a unit do not change it."""
        measure = copy.copy(self.before)
        measure.points = dict(self.before.points)
        return measure

    def start(self, settings: PPOConfig, *, reward: Reward | None = None, critic: Scorer | None = None) -> PPOState:
        """PPO from the SFT model; without others it is paid by the reward model, and the critic starts as a copy."""
        critic = critic or self.scorer
        return ppo_start(
            settings,
            policy=models.load_policy(self.sft_path),
            reference=self.sft,
            critic=copy.deepcopy(critic).requires_grad_(True).train(),
            reward=reward or self.reward_of(self.scorer),
            tokenizer=self.tokenizer,
            prompts=self.train,
        )
