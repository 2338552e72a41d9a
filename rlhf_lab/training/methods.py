"""The methods by name: what each changes against PPO. All else stays equal, so that they can be compared.

They differ in the estimator of the advantage, in where the KL enters, and in the reduction of the loss.
"""

from typing import Any

METHODS: dict[str, dict[str, Any]] = {
    # Schulman et al. 2017; Ouyang et al. 2022: a critic, GAE, the KL in the reward.
    "ppo": {"advantage": "gae", "kl_in": "reward", "kl_kind": "k1", "reduction": "token", "whiten": "rollout"},
    # Ahmadian et al. 2024 (2402.14740): the other replies are the baseline, the KL is in the reward of the whole reply.
    # The mean over tokens is the sum over each reply, up to a constant, as their loss has it.
    "rloo": {"advantage": "rloo", "kl_in": "reward", "kl_kind": "k1", "reduction": "token", "whiten": "off"},
    # DeepSeekMath 2024 (2402.03300): the group's mean and deviation, k3 in the loss, a mean over each reply first.
    "grpo": {"advantage": "grpo", "kl_in": "loss", "kl_kind": "k3", "reduction": "sequence", "whiten": "off"},
    # Liu et al. 2025 (2503.20783): no deviation, and a constant in place of each reply's length.
    "dr_grpo": {"advantage": "dr_grpo", "kl_in": "loss", "kl_kind": "k3", "reduction": "max_tokens", "whiten": "off"},
    # Hu 2025 (2501.03262): returns of the shaped rewards, whitened over the whole batch.
    "reinforce++": {
        "advantage": "reinforce++",
        "kl_in": "reward",
        "kl_kind": "k1",
        "reduction": "token",
        "whiten": "rollout",
    },
}
