"""The parameters of 15_ppo_details, and the details themselves."""

from typing import Any, Literal, NamedTuple, Self

from pydantic import Field, model_validator

from rlhf_lab.training.ppo import PPOConfig
from rlhf_lab.training.reward_model import RewardModelConfig
from rlhf_lab.workbench.stages.base import refuse_other_losses, refuse_shared
from rlhf_lab.workbench.stages.study import StudyStage

_SHORT = {"max_new_tokens": 16}  # the SFT model's median reply is longer


class Detail(NamedTuple):
    """One thing that is switched, and where it is talked about."""

    said: str
    source: str  # a number is that of the N+ details (2403.17031), docs/nplus.md
    changes: dict[str, Any] = {}  # of PPO's settings; none: made from outside, by studies/ppo_details.py
    learns: dict[str, Any] = {}  # changes of the reward model's settings
    kind: Literal["chance", "setting", "mistake"] = "setting"
    against: str = ""  # the unit it differs from in one thing; "" = the baseline


DETAILS = {
    "again": Detail("nothing but PPO's random numbers", "what chance alone does", kind="chance"),
    "again_2": Detail("the same, with others", "what chance alone does", kind="chance"),
    "again_3": Detail("the same, with others", "what chance alone does", kind="chance"),
    "no_kl": Detail("no KL penalty", "InstructGPT", {"kl_coef": 0.0}),
    "k3_reward": Detail("k3 in the reward instead of k1", "11_kl_coefficient", {"kl_kind": "k3"}),
    "k3_loss": Detail("k3 in the loss, beside whitened advantages", "GRPO", {"kl_in": "loss", "kl_kind": "k3"}),
    "temperature_0.7": Detail("sampled at temperature 0.7, measured at 1", "20", {"temperature": 0.7}),
    "no_eos_penalty": Detail("nothing for a missing EOS", "23", {"missing_eos_penalty": 0.0}),
    "eos_trick": Detail("without an EOS the score is -1", "23", {"missing_eos": "replace"}),
    "short": Detail("16 tokens at most: what the next two are compared with", "23", _SHORT),
    "short_no_eos_penalty": Detail(
        "16 tokens, nothing for a missing EOS", "23", _SHORT | {"missing_eos_penalty": 0.0}, against="short"
    ),
    "short_eos_trick": Detail(
        "16 tokens, without an EOS the score is -1", "23", _SHORT | {"missing_eos": "replace"}, against="short"
    ),
    "score_running": Detail("scores over their running deviation", "Secrets of RLHF I", {"score_scaling": "running"}),
    "whiten_rewards": Detail("rewards whitened, keeping their mean", "24", {"whiten_rewards": True}),
    "no_whitening": Detail("advantages not whitened", "25", {"whiten": "off"}),
    "whiten_minibatch": Detail("advantages whitened by minibatch", "25", {"whiten": "minibatch"}),
    "gamma_0.95": Detail("discount 0.95", "20", {"gamma": 0.95}),
    "lambda_1": Detail("GAE by returns alone", "20", {"lam": 1.0}),
    "lambda_0": Detail("GAE by the critic alone", "20", {"lam": 0.0}),
    "no_clip": Detail("the ratio not clipped", "20", {"clip": 1e6}),
    "sequence_mean": Detail("every reply weighs the same", "GRPO", {"reduction": "sequence"}),
    "no_value_clip": Detail("the value not clipped", "20", {"value_clip": None}),
    "one_epoch": Detail("one pass over a rollout", "20", {"epochs": 1}),
    "four_epochs": Detail("four passes over a rollout", "20", {"epochs": 4}),
    "one_minibatch": Detail("one optimizer step in a pass", "20", {"minibatches": 1}),
    "no_decay": Detail("a constant learning rate", "20", {"decay": "off"}),
    "bf16": Detail("matrix products in bfloat16", "8", {"precision": "bf16"}),
    "adam_eps_1e-8": Detail("Adam's epsilon as torch has it", "20, and the N list", {"adam_eps": 1e-8}),
    "no_grad_clip": Detail("gradients not clipped", "PPO's usual code", {"max_grad_norm": 1e6}),
    "critic_zero": Detail("the critic from the SFT model, head 0", "22"),
    "reward_one_epoch": Detail("the reward model sees its comparisons once", "10", learns={"epochs": 1}),
    "reward_head_zero": Detail("the reward model's head starts at 0", "11"),
    "prompts_again": Detail("a quarter of the prompts, each of them four times", "21"),
    "score_no_zero": Detail("the SFT model's replies do not score 0 on average", "15", kind="mistake"),
    "score_raw": Detail("nor have scores a unit: as the comparisons leave them", "15, and its unit", kind="mistake"),
    "eos_unread": Detail("the reward model reads replies without their EOS", "12", kind="mistake"),
    "score_everywhere": Detail("the mean score over a reply's tokens, not the last", "13", kind="mistake"),
    "eos_masked": Detail("the EOS taken for padding: no loss of policy or critic there", "3", kind="mistake"),
    "padded_whitening": Detail("advantages whitened over the padding, too", "25", kind="mistake"),
    "dropout": Detail("dropout of 0.1 while it trains: of attention, Llama has no other", "7", kind="mistake"),
    "reversed": Detail("a reward model from reversed labels", "a text with the loss's sign wrong", kind="mistake"),
}
"""Name -> what it switches, against the settings of the lab."""


class PPODetailsStage(StudyStage):
    """15_ppo_details: PPO with one detail switched at a time."""

    comparisons: int = Field(500, ge=1)  # that the reward model learns from
    details: list[str] = list(DETAILS)  # what to switch; DETAILS says what they are
    reward_model: RewardModelConfig = RewardModelConfig(epochs=2)  # the baseline's; seed, precision: the study's
    ppo: PPOConfig = PPOConfig(updates=20, batch_size=64)  # the baseline: the lab's own settings, in a short run

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if unknown := [name for name in self.details if name not in DETAILS]:
            raise ValueError(f"details: there is no {unknown[0]!r}; choose from {', '.join(DETAILS)}")
        if len({*self.details}) < len(self.details):
            raise ValueError("'details' names one twice")
        for name in self.details:
            if (against := DETAILS[name].against) and against not in self.details:
                raise ValueError(f"details: {name!r} is compared with {against!r}, which is not among them")
        refuse_other_losses(self)
        refuse_shared(self, ("reward_model", "ppo"), "units")
        return self
