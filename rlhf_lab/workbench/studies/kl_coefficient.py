"""11_kl_coefficient: PPO against one reward model, with the KL held in several ways, measured as it goes."""

import time
from typing import Any

import torch

from rlhf_lab.maths import kl_estimate
from rlhf_lab.training.ppo import ppo_updates
from rlhf_lab.workbench.stages import KLCoefficientStage
from rlhf_lab.workbench.studies import chain
from rlhf_lab.workbench.studies.one_reward import OneReward
from rlhf_lab.workbench.studies.units import Figures

LISTS = {"coefficients", "targets", "k3"}
"""What only lists the units."""
_AT_END = ("gold", "gold_chooses", "gold_tests", "score", "kl", "kl_coef", "eos_rate", "words")
OTHER_SEED = 50
"""What again_0 adds to the seed of PPO's random numbers."""


def units_of(cfg: KLCoefficientStage) -> dict[str, dict[str, Any]]:
    """Unit -> the settings of PPO that are its own. again_0 is kl_0 with other random numbers."""
    fixed = {f"kl_{coef:g}": {"kl_coef": coef} for coef in cfg.coefficients} | {"again_0": {"kl_coef": 0.0}}
    adaptive = {f"ziegler_{target:g}": {"kl_control": "ziegler", "kl_target": target} for target in cfg.targets}
    return fixed | adaptive | {f"k3_{coef:g}": {"kl_kind": "k3", "kl_coef": coef} for coef in cfg.k3}


def unit(name: str, ground: OneReward) -> Figures:
    """PPO with a unit's settings: gold, score, KL (nats per reply) and its coefficient as it goes, and where it ends.

    kl_0, on which the others are laid, is measured after every update, and tells of the reward model.
    gold_chooses and gold_tests are of the first and the second half of the held-out prompts.
    """
    cfg, began = ground.cfg, time.perf_counter()
    measure, every = ground.measure(), 1 if name == "kl_0" else cfg.ppo.updates // cfg.measurements
    seed = cfg.seed + (OTHER_SEED if name == "again_0" else 0)
    state = ground.start(ground.settings(seed=seed, **units_of(cfg)[name]))
    coefficients = {0: state.kl_coef}
    for update in ppo_updates(state):
        ground.run.progress(update.number, cfg.ppo.updates, name)
        if update.number % every == 0:
            measure(state.policy, update.number)
            coefficients[update.number] = state.kl_coef
    figures, half = chain.reply_figures(measure), len(ground.held_out) // 2
    for at, point in measure.points.items():
        gold = point.answers["gold"].to_numpy()
        measured = {
            "gold": gold.mean(),
            "gold_chooses": gold[:half].mean(),
            "gold_tests": gold[half:].mean(),
            "score": point.proxy,
            "kl": point.kl,
            "kl_coef": coefficients[at],
        }
        figures |= {f"{what}_at_{at}": float(value) for what, value in measured.items()}
    last = {what: figures[f"{what}_at_{cfg.ppo.updates}"] for what in _AT_END}
    told = _reward_model(ground) if name == "kl_0" else {}
    return figures | last | told | {"gold_sft": figures["gold_at_0"], "seconds": time.perf_counter() - began}


def _reward_model(ground: OneReward) -> Figures:
    """The reward model of a seed: what it learned from, how right it is, and what its scores were scaled by."""
    scorer, held_out = ground.scorer, ground.comparisons(ground.labeler(), split="heldout", n=ground.cfg.n_heldout)
    scale = {"reward_gain": scorer.gain, "reward_shift": scorer.shift}
    return chain.accuracies(scorer, ground, held_out) | scale | {"comparisons": float(len(ground.rows))}


def pulls(probabilities: torch.Tensor, reference: torch.Tensor) -> dict[str, torch.Tensor]:
    """Where a penalty in the reward pushes each logit, exactly: minus E[grad log pi * estimate], summed over tokens.

    Shapes: probabilities and reference (V,), above 0 -> for k1, k2, k3 and, to compare, the two directions of the KL:
    (V,) each. Units: nats per logit. Source: the policy gradient theorem; the estimate is a constant to it.
    """
    logits = probabilities.log().requires_grad_(True)
    logp, ref_logp = logits.log_softmax(0), reference.log()
    p = logp.exp()
    losses = {
        kind: (p.detach() * logp * kl_estimate(logp, ref_logp, kind=kind).detach()).sum() for kind in ("k1", "k2", "k3")
    }
    losses |= {
        "KL(pi, ref)": (p * (logp - ref_logp)).sum(),
        "KL(ref, pi)": (reference * (ref_logp - logp)).sum(),
    }
    return {name: -torch.autograd.grad(loss, logits, retain_graph=True)[0] for name, loss in losses.items()}
