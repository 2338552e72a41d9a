"""The models of a PPO run by their roles: the reference, the reward, the critic, and the texts of PPO-ptx.

With adapters they are roles of the policy's own base, as far as their files are adapters of it.
"""

from collections.abc import Callable

from rlhf_lab import data
from rlhf_lab.errors import LabError
from rlhf_lab.models import AdapterPolicy, load_policy, load_scorer, load_tokenizer, shared_scorer
from rlhf_lab.rewards import ModelReward, WeightedReward, load_reward
from rlhf_lab.rewards.ensemble import member_folders
from rlhf_lab.rewards.model_reward import same_vocabulary
from rlhf_lab.sandbox.world import World
from rlhf_lab.workbench.artefacts import checkpoint


def reference(path: str, policy):
    """The frozen reference: the policy's base with its adapter off, or the SFT model loaded again."""
    return policy.shared.reference() if isinstance(policy, AdapterPolicy) else load_policy(path, trainable=False)


def reward(cfg, world: World | None, tokenizer, yours: Callable, policy=None):
    """The reward that a run names: `auto`, `gold`, `yours`, `file.py:function`, or a reward model's run or path.

    Several with their weights are one reward, their weighted sum. An adapter of the policy's base is put on that.
    Reward models run in `cfg.precision`, or in fp32 where a stage has none.
    """
    mode, named = getattr(cfg, "reward_mode", "mean"), [cfg.reward] if isinstance(cfg.reward, str) else cfg.reward
    if mode != "mean" and all(name in ("gold", "yours") or ":" in name for name in named):
        raise LabError(f"reward_mode is '{mode}' but no reward is an ensemble of reward models; leave it at 'mean'")
    if isinstance(cfg.reward, str):
        return _named_reward(cfg.reward, cfg, world, tokenizer, yours, policy)
    parts = {name: _named_reward(name, cfg, world, tokenizer, yours, policy) for name in cfg.reward}
    return WeightedReward({name: (part, cfg.reward[name]) for name, part in parts.items()})


def _named_reward(name: str, cfg, world: World | None, tokenizer, yours: Callable, policy):
    mode = getattr(cfg, "reward_mode", "mean")
    if name == "gold":
        if world is None:
            raise LabError("reward is 'gold' but there is no sandbox; name a reward model or a function")
        return world.gold
    if name == "yours":
        return yours
    if ":" in name:
        return load_reward(name, policy_tokenizer=tokenizer)
    where = checkpoint(name, "reward_model", cfg)
    precision = getattr(cfg, "precision", "fp32")
    alone = len(member_folders(where)) == 1 and mode == "mean"
    if alone and (shared := shared_reward(where, tokenizer, policy, precision)):
        return shared
    how = {"mode": mode, "coef": getattr(cfg, "uncertainty_coef", 0.5), "precision": precision}
    return load_reward(where, policy_tokenizer=tokenizer, **how)


def critic(cfg, policy_path: str, policy):
    """The critic of a run: from the reward model, from the policy with a head of zeros, on its trunk, or from a path.

    None where the method has none. A reward model that cannot read the policy's tokens gives way to the policy, and
    that is said. Errors: `LabError` if a path was asked for and cannot.
    """
    if not cfg.needs_critic:
        return None
    if getattr(cfg, "lora", None) is not None:
        return adapter_critic(cfg, policy, _critic_path(cfg))
    if cfg.critic == "shared":
        return shared_scorer(policy_path, policy, bins=cfg.critic_bins)
    if cfg.critic == "policy":
        return load_scorer(policy_path, head="zero", bins=cfg.critic_bins)
    head = {"head": "zero", "bins": cfg.critic_bins} if cfg.critic_bins else {"head": "keep"}  # bins want a new head
    if cfg.critic != "reward":
        found = load_scorer(cfg.critic, **head)
        if why := _no_critic(found, cfg.critic, policy_path):
            raise LabError(f"critic {cfg.critic}: {why}; choose 'reward', 'shared' or 'policy'")
        return found
    where = _critic_path(cfg)
    why = f"'{cfg.reward if isinstance(cfg.reward, str) else ', '.join(cfg.reward)}' is no model"
    if where is not None:
        found = load_scorer(where, **head)
        why = _no_critic(found, where, policy_path)
        if not why:
            return found
    print(f"critic: the reward model {why}, so the critic starts from the policy")
    return load_scorer(policy_path, head="zero", bins=cfg.critic_bins)


def _critic_path(cfg) -> str | None:
    """The model that the critic starts from; None where that is the policy, or the reward is no model."""
    if cfg.critic != "reward":
        return cfg.critic if cfg.critic != "policy" else None
    named = [cfg.reward] if isinstance(cfg.reward, str) else list(cfg.reward)
    model = next((name for name in named if name not in ("gold", "yours") and ":" not in name), None)
    return checkpoint(model, "reward_model", cfg) if model is not None else None


def _no_critic(scorer, path: str, policy_path: str) -> str:
    """Why a scorer cannot read the states of this policy, or ""."""
    if not scorer.causal:
        return "is an encoder"
    alike = same_vocabulary(load_tokenizer(path), load_tokenizer(policy_path))
    return "" if alike else "has another tokenizer"


def pretraining_texts(cfg, world: World | None, tokenizer) -> list[str] | None:
    """The texts of PPO-ptx, or None without it. Errors: `LabError` where there is no sandbox and no file."""
    if not cfg.ptx_coef:
        return None
    if cfg.pretraining != "sandbox":
        return list(data.load_prompts(cfg.pretraining, columns={"prompt": "text"})["prompt"])
    if world is None:
        raise LabError("pretraining is 'sandbox' but the parameter 'sandbox' is empty; give a path or hub id")
    return world.corpus(2000, tokenizer.eos_token, cfg.seed)


def shared_reward(where: str, tokenizer, policy, precision: str = "fp32") -> ModelReward | None:
    """A reward model that is an adapter of the policy's own base, on that base; None for any other."""
    if ":" in where or not isinstance(policy, AdapterPolicy) or not policy.shared.carries(where):
        return None
    scorer = policy.shared.load_scorer(where, name="reward", trainable=False)
    return ModelReward(scorer, load_tokenizer(where), tokenizer, precision=precision)


def adapter_critic(cfg, policy: AdapterPolicy, where: str | None):
    """A critic on the policy's base: from the reward model's adapter at `where`, else a new one with a head of zeros.

    Errors: `LabError` for a critic at a path that is no adapter of this base.
    """
    shared = policy.shared
    if where is not None and shared.carries(where) and cfg.critic_bins is None:
        return shared.load_scorer(where, name="critic")
    why = "is no adapter of the policy's base"
    if where is not None and shared.carries(where):
        why = "gives one number, and value_loss 'hl_gauss' wants a head of bins"
    if cfg.critic not in ("policy", "reward"):
        raise LabError(f"critic {cfg.critic}: {why}; choose 'reward' or 'policy'")
    if cfg.critic == "reward":
        print(f"critic: the reward model {why}, so the critic starts from the policy")
    return shared.scorer(cfg.lora, name="critic", head="zero", bins=cfg.critic_bins)
