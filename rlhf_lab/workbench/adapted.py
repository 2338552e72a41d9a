"""PPO's four roles on one base, where a run trains adapters: what 03_ppo takes from the policy's shared base."""

from rlhf_lab.errors import LabError
from rlhf_lab.models import AdapterPolicy, load_policy, load_tokenizer
from rlhf_lab.rewards import ModelReward


def reference(path: str, policy):
    """The frozen reference: the policy's base with its adapter off, or the SFT model loaded again."""
    return policy.shared.reference() if isinstance(policy, AdapterPolicy) else load_policy(path, trainable=False)


def shared_reward(where: str, tokenizer, policy) -> ModelReward | None:
    """A reward model that is an adapter of the policy's own base, on that base; None for any other."""
    if ":" in where or not isinstance(policy, AdapterPolicy) or not policy.shared.carries(where):
        return None
    scorer = policy.shared.load_scorer(where, name="reward", trainable=False)
    return ModelReward(scorer, load_tokenizer(where), tokenizer)


def adapter_critic(cfg, policy: AdapterPolicy, where: str | None):
    """A critic on the policy's base: from the reward model's adapter at `where`, else a new one with a head of zeros.

    Errors: `LabError` for a critic at a path that is no adapter of this base.
    """
    shared = policy.shared
    if where is not None and shared.carries(where) and cfg.critic_bins is None:
        return shared.load_scorer(where, name="critic")
    if cfg.critic not in ("policy", "reward"):
        raise LabError(f"critic {cfg.critic}: is no adapter of {shared.path}; choose 'reward' or 'policy'")
    if cfg.critic == "reward":
        print("critic: the reward model is no adapter of the policy's base, so the critic starts from the policy")
    return shared.scorer(cfg.lora, name="critic", head="zero", bins=cfg.critic_bins)
