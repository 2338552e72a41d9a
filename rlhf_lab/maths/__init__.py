"""The mathematics of RLHF as pure functions of tensors. Imports torch and nothing else."""

from rlhf_lab.maths.advantages import (
    discounted_returns,
    gae,
    grpo_advantages,
    rloo_advantages,
    shaped_rewards,
)
from rlhf_lab.maths.best_of_n import BestOfN, best_of_n_curve, tied_best_of_n_kl
from rlhf_lab.maths.gold_curve import GoldCurve, fit_gold_curve
from rlhf_lab.maths.kl import adaptive_kl, best_of_n_kl, kl_estimate, ppo_paper_kl, ziegler_paper_kl
from rlhf_lab.maths.length import LengthGain, length_gain
from rlhf_lab.maths.logprobs import token_entropy, token_logprobs
from rlhf_lab.maths.losses import (
    PolicyLoss,
    PreferenceLoss,
    ValueLoss,
    best_of_k_loss,
    plackett_luce_loss,
    policy_loss,
    preference_loss,
    ranking_loss,
    reduce_tokens,
    value_loss,
)
from rlhf_lab.maths.masking import masked_mean, masked_var, masked_whiten
from rlhf_lab.maths.value_distribution import (
    distribution_loss,
    expected_value,
    hl_gauss_loss,
    hl_gauss_targets,
    two_hot_targets,
)

__all__ = [
    "BestOfN",
    "GoldCurve",
    "LengthGain",
    "PolicyLoss",
    "PreferenceLoss",
    "ValueLoss",
    "adaptive_kl",
    "best_of_k_loss",
    "best_of_n_curve",
    "best_of_n_kl",
    "discounted_returns",
    "distribution_loss",
    "expected_value",
    "fit_gold_curve",
    "gae",
    "grpo_advantages",
    "hl_gauss_loss",
    "hl_gauss_targets",
    "kl_estimate",
    "length_gain",
    "masked_mean",
    "masked_var",
    "masked_whiten",
    "plackett_luce_loss",
    "policy_loss",
    "ppo_paper_kl",
    "preference_loss",
    "ranking_loss",
    "reduce_tokens",
    "rloo_advantages",
    "shaped_rewards",
    "tied_best_of_n_kl",
    "token_entropy",
    "token_logprobs",
    "two_hot_targets",
    "value_loss",
    "ziegler_paper_kl",
]
