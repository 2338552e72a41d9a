"""The settings of PPO and its relatives, in the order in which an update uses them."""

from typing import Literal, Self

from pydantic import Field, model_validator

from rlhf_lab.config import Config

Advantage = Literal["gae", "rloo", "grpo", "dr_grpo", "reinforce++"]
GROUPED = ("rloo", "grpo", "dr_grpo")
"""Estimators that compare several replies to one prompt, and need no critic."""


class RolloutConfig(Config):
    """What is sampled."""

    updates: int = Field(60, ge=1)  # rollouts, each followed by `epochs` passes over it
    batch_size: int = Field(128, ge=1)  # prompts in a rollout
    samples_per_prompt: int = Field(1, ge=1)  # replies to each prompt
    max_new_tokens: int = Field(40, ge=1)  # tokens of the longest reply
    temperature: float = Field(1.0, gt=0)  # divides the logits of policy and reference alike


class ScoreConfig(Config):
    """From the reward's answer to the score of a reply: scaled, clipped, and then the missing EOS."""

    score_scaling: Literal["off", "running"] = "off"  # running: divided by the standard deviation of all scores so far
    score_clip: float | None = Field(None, gt=0)  # largest size of a scaled score
    missing_eos: Literal["penalty", "replace"] = "penalty"  # the penalty is taken off, or its negative is the score
    missing_eos_penalty: float = Field(1.0, ge=0)  # reward


class KLConfig(Config):
    """Where the KL to the reference enters, and how its coefficient moves.

    kl_control moves it after every update, unless it is fixed: ziegler by at most 0.2 * replies / kl_horizon of it, as
    the code of Ziegler et al. does; ziegler_paper by at most 2%, as their text has it (1909.08593, section 2.2);
    ppo_paper halves or doubles it where the KL is beyond 1.5 times off (1707.06347, section 4).
    """

    kl_coef: float = Field(0.05, ge=0)  # nats to reward; the first one where a controller moves it
    kl_in: Literal["reward", "loss"] = "reward"  # taken off the reward, or added to the loss
    kl_kind: Literal["k1", "k2", "k3"] = "k1"  # in the reward only k1 regularises; as a loss only k2 and k3 do
    kl_control: Literal["fixed", "ziegler", "ziegler_paper", "ppo_paper"] = "fixed"  # what moves kl_coef: see above
    kl_target: float = Field(6.0, gt=0)  # nats per reply
    kl_horizon: float = Field(10_000, gt=0)  # replies; only for `ziegler`


class AdvantageConfig(Config):
    """From scores to advantages."""

    advantage: Advantage = "gae"  # the estimator; which method has which: methods.py
    gamma: float = Field(1.0, ge=0, le=1)  # discount per token
    lam: float = Field(0.95, ge=0, le=1)  # of GAE: 0 relies on the critic, 1 on the returns
    whiten_rewards: bool = False  # per token, over the rollout, keeping the mean
    whiten: Literal["rollout", "minibatch", "off"] = "rollout"  # the scope over which advantages are whitened


class PolicyLossConfig(Config):
    """The policy's loss."""

    clip: float = Field(0.2, gt=0)  # how far the ratio may leave 1
    clip_high: float | None = Field(None, gt=0)  # width above 1, where it differs
    dual_clip: float | None = Field(None, gt=1)  # bound on the loss at negative advantages
    reduction: Literal["token", "sequence", "max_tokens"] = "token"  # max_tokens: the sum over max_new_tokens
    entropy_coef: float = Field(0.0, ge=0)  # of the entropy bonus, per nat
    ptx_coef: float = Field(0.0, ge=0)  # of the pretraining loss, nats per token; InstructGPT's gamma
    ptx_batch_size: int = Field(16, ge=1)  # pretraining texts in an optimizer step


class CriticConfig(Config):
    """The critic's loss."""

    value_loss: Literal["mse", "hl_gauss"] = "mse"  # hl_gauss: cross-entropy over bins; value_clip is for mse alone
    value_bins: int = Field(51, ge=2)  # bins of hl_gauss, from -value_range to value_range
    value_range: float = Field(10.0, gt=0)  # reward; returns beyond it count as it
    value_clip: float | None = Field(0.2, gt=0)  # how far a value may move from the old one
    value_coef: float = Field(0.1, ge=0)  # weight of the critic's loss
    critic_lr: float = Field(5e-4, ge=0)  # Adam
    critic_warmup: int = Field(0, ge=0)  # first updates that teach the critic alone


class OptimizerConfig(Config):
    """How the losses become steps."""

    epochs: int = Field(2, ge=1)  # passes over a rollout
    minibatches: int = Field(2, ge=1)  # optimizer steps in one epoch
    micro_batch_size: int = Field(0, ge=0)  # replies in one forward; 0 = the whole minibatch
    lr: float = Field(5e-4, ge=0)  # Adam
    warmup: int = Field(0, ge=0)  # updates of linear warm-up
    decay: Literal["linear", "cosine", "off"] = "linear"  # to 0 at the end of the run; cosine to a tenth
    adam_eps: float = Field(1e-5, gt=0)  # Adam's epsilon, in its denominator; of policy and critic
    max_grad_norm: float = Field(1.0, gt=0)  # longer gradients are shortened to it
    target_kl: float | None = Field(None, gt=0)  # stop the epochs of an update beyond this approximate KL
    ema: float | None = Field(None, gt=0, lt=1)  # decay per update of an average of the policy's weights
    precision: Literal["auto", "fp32", "bf16"] = "auto"  # of the matrix products; auto: bf16 where it is faster
    seed: int = 0  # of everything random


class PPOConfig(OptimizerConfig, CriticConfig, PolicyLossConfig, AdvantageConfig, KLConfig, ScoreConfig, RolloutConfig):
    """The settings of PPO. Defaults suit the sandbox; papers' values stand in experiments/03_ppo."""

    @model_validator(mode="after")
    def _makes_sense(self) -> Self:
        if self.advantage in GROUPED and self.samples_per_prompt < 2:
            raise ValueError(f"advantage '{self.advantage}' compares replies to one prompt: samples_per_prompt >= 2")
        if self.kl_in == "loss" and self.kl_kind == "k1":
            raise ValueError("kl_kind 'k1' as a loss has a gradient of mean 0 and holds nothing: use k2 or k3")
        if self.kl_in == "loss" and self.kl_control != "fixed":
            raise ValueError("kl_control moves the penalty in the reward: with kl_in 'loss' it must be 'fixed'")
        if self.advantage == "gae" and self.critic_warmup >= self.updates:
            raise ValueError(f"critic_warmup {self.critic_warmup} leaves none of {self.updates} updates to the policy")
        return self

    @property
    def critic_bins(self) -> list[float] | None:
        """The bins that the critic's head must have, for `load_scorer`; None for a head of one output."""
        if self.value_loss == "mse" or not self.needs_critic:
            return None
        step = 2 * self.value_range / (self.value_bins - 1)
        return [-self.value_range + number * step for number in range(self.value_bins)]

    @property
    def needs_critic(self) -> bool:
        """Whether the advantages come from a critic."""
        return self.advantage == "gae"
