"""Rejection sampling, as RAFT has it: sample many replies, keep the best by the reward, fine-tune on them, repeat."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import torch
from pydantic import Field

from rlhf_lab.config import Config
from rlhf_lab.errors import LabError
from rlhf_lab.rewards import Reward
from rlhf_lab.training.best_of_n import Pool, sample_pool, score_pool
from rlhf_lab.training.sft import SFTConfig, quiet, sft_trainer


class RAFTConfig(Config):
    """The settings of RAFT (Dong et al. 2023, 2304.06767, algorithm 1)."""

    rounds: int = Field(4, ge=1)  # of sampling and SFT, each from the policy of the one before
    prompts: int = Field(96, ge=1)  # prompts answered in each round
    k: int = Field(8, ge=2)  # replies to each prompt, of which the best is learned from
    max_new_tokens: int = Field(40, ge=1)
    temperature: float = Field(1.0, gt=0)  # divides the logits in sampling
    sft: SFTConfig = SFTConfig(epochs=2, lr=3e-4, lr_schedule="constant", warmup_ratio=0)  # of each round
    seed: int = 0


class RAFTRound(NamedTuple):
    """One finished round."""

    number: int  # 1 for the first
    pool: Pool  # everything that was sampled
    scores: torch.Tensor  # (prompts, k) as the reward gave them
    winners: list[dict[str, str]]  # prompt and completion: what was learned from
    loss: float  # mean SFT loss of the round, nats per token of the winners


class RAFTState:
    """A policy in training, and where the training stands: `step` whole rounds are done. `save_training` keeps it."""

    optimizer = None  # SFT makes a new one in every round

    def __init__(self, config: RAFTConfig, policy, reward: Reward, tokenizer, prompts: list[str]):
        self.config, self.policy, self.reward, self.tokenizer = config, policy, reward, tokenizer
        self.prompts, self.step = prompts, 0
        self.order: list[int] = []
        self.shuffler = torch.Generator().manual_seed(config.seed)

    def next_prompts(self) -> list[str]:
        """The next round's prompts; every prompt comes once before any comes again."""
        while len(self.order) < self.config.prompts:
            self.order += torch.randperm(len(self.prompts), generator=self.shuffler).tolist()
        rows, self.order = self.order[: self.config.prompts], self.order[self.config.prompts :]
        return [self.prompts[i] for i in rows]

    def material(self) -> list[str]:
        return self.prompts

    def progress(self) -> dict[str, Any]:
        return {"step": self.step, "order": self.order, "shuffler": self.shuffler.get_state()}

    def restore(self, progress: dict[str, Any]) -> None:
        self.step, self.order = progress["step"], list(progress["order"])
        self.shuffler.set_state(progress["shuffler"])


def raft_start(config: RAFTConfig, *, policy, reward: Reward, tokenizer, prompts: Sequence[str]) -> RAFTState:
    """Get ready to train `policy`. Errors: `LabError` if there are fewer prompts than one round needs."""
    if len(prompts) < config.prompts:
        raise LabError(
            f"RAFT: {len(prompts)} prompts are fewer than prompts={config.prompts} of a round; "
            "give more prompts or lower 'prompts'"
        )
    return RAFTState(config, policy, reward, tokenizer, list(prompts))


def raft_rounds(state: RAFTState, *, on_log: Callable[[dict], None] | None = None) -> Iterator[RAFTRound]:
    """Train to `config.rounds`, yielding after each whole round. `on_log` gets the figures of SFT.

    Each round starts from the policy that the last one left, and learns from its own samples alone.
    Errors: `LabError` if no reply of a round ended by EOS, for a reply cut short is no example of one.
    """
    config = state.config
    while state.step < config.rounds:
        seed = config.seed + 1000 * (state.step + 1)  # other replies in every round
        pool = sample_pool(
            state.policy,
            state.tokenizer,
            state.next_prompts(),
            size=config.k,
            max_new_tokens=config.max_new_tokens,
            temperature=config.temperature,
            seed=seed,
        )
        scores = score_pool(state.reward, pool)
        winners = best_finished(pool, scores, seed=seed)
        settings = config.sft.model_copy(update={"seed": seed})
        trainer = sft_trainer(settings, state.policy, state.tokenizer, winners, on_log=on_log)
        result = quiet(trainer.train)
        state.step += 1
        yield RAFTRound(state.step, pool, scores, winners, result.training_loss)


def best_finished(pool: Pool, scores: torch.Tensor, *, seed: int = 0) -> list[dict[str, str]]:
    """The reply that scores highest among those that ended by EOS, as a row of prompt and completion.

    A prompt without a finished reply gives none; a seeded coin decides between equals. Shapes: scores (B, N).
    Errors: `LabError` if no reply at all is finished.
    """
    coin = torch.rand(scores.shape, generator=torch.Generator().manual_seed(seed))
    winners = []
    for row, (prompt, replies, finished) in enumerate(zip(pool.prompts, pool.replies, pool.finished, strict=True)):
        able = [i for i, end in enumerate(finished) if end]
        if able:
            best = max(able, key=lambda i, row=row: (scores[row, i].item(), coin[row, i].item()))
            winners.append({"prompt": prompt, "completion": replies[best]})
    if not winners:
        raise LabError("RAFT: no reply ended by EOS, so there is nothing to learn from; raise 'max_new_tokens'")
    return winners
