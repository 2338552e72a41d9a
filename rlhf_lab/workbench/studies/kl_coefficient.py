"""11_kl_coefficient: PPO against one reward model, with the KL held in several ways, measured as it goes."""

from typing import Any

import torch

from rlhf_lab.maths import kl_estimate
from rlhf_lab.training.ppo import ppo_updates
from rlhf_lab.workbench.stages import KLCoefficientStage
from rlhf_lab.workbench.studies.one_reward import OneReward
from rlhf_lab.workbench.studies.units import Figures

LISTS = {"coefficients", "targets", "k3"}
"""What only lists the units."""


def units_of(cfg: KLCoefficientStage) -> dict[str, dict[str, Any]]:
    """Unit -> the settings of PPO that are its own."""
    fixed = {f"kl_{coef:g}": {"kl_coef": coef} for coef in cfg.coefficients}
    adaptive = {f"ziegler_{target:g}": {"kl_control": "ziegler", "kl_target": target} for target in cfg.targets}
    return fixed | adaptive | {f"k3_{coef:g}": {"kl_kind": "k3", "kl_coef": coef} for coef in cfg.k3}


def unit(name: str, ground: OneReward) -> Figures:
    """PPO with a unit's settings: gold, score and KL (nats per reply) as it goes, and where it ends.

    gold_chooses and gold_tests are of the first and the second half of the held-out prompts.
    """
    cfg = ground.cfg
    measure, every = ground.measure(), cfg.ppo.updates // cfg.measurements
    state = ground.start(ground.settings(**units_of(cfg)[name]))
    for update in ppo_updates(state):
        ground.run.progress(update.number, cfg.ppo.updates, name)
        if update.number % every == 0:
            measure(state.policy, update.number)
    figures: Figures = {}
    for at, point in measure.points.items():
        measured = {"gold": point.answers["gold"].mean(), "score": point.proxy, "kl": point.kl}
        figures |= {f"{what}_at_{at}": float(value) for what, value in measured.items()}
    half, last = len(ground.held_out) // 2, measure.last.answers["gold"].to_numpy()
    figures |= {"gold_chooses": float(last[:half].mean()), "gold_tests": float(last[half:].mean())}
    ended = measure.results()
    kept = {what: ended[what] for what in ("gold", "gold_sft", "score", "kl", "eos_rate", "words")}
    return figures | kept | {"kl_coef": state.kl_coef}


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
