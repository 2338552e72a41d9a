"""12_reward_models: reward models that differ in one thing each, all measured on the same pool and comparisons."""

import time
from collections.abc import Sequence
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
import torch
from scipy.optimize import minimize_scalar
from scipy.stats import rankdata

from rlhf_lab import models
from rlhf_lab.errors import LabError
from rlhf_lab.maths import best_of_n_curve
from rlhf_lab.rewards import ModelReward, Reward, call_reward
from rlhf_lab.rewards.model_reward import same_vocabulary
from rlhf_lab.training.best_of_n import score_pool
from rlhf_lab.training.reward_model import evaluate_reward_model
from rlhf_lab.workbench import artefacts
from rlhf_lab.workbench.plots import calibration_table
from rlhf_lab.workbench.runs import Run
from rlhf_lab.workbench.stages import RewardModelsStage
from rlhf_lab.workbench.studies.chain import agreement, train_scorer
from rlhf_lab.workbench.studies.finished_lines import origin
from rlhf_lab.workbench.studies.ground import Ground
from rlhf_lab.workbench.studies.units import Figures

GOLD = "gold"
"""The unit without training: gold itself as the ranker, the most that can be had."""
BINS = 10
LISTS = {"comparisons", "fixed", "epochs", "trunks", "flips", "k", "losses"}
"""What only lists the units. Each has of it what is its own."""


class Learner(NamedTuple):
    """What a unit's reward model learns from, by what loss, and where it starts."""

    prompts: int  # with k ranked replies each
    epochs: int
    k: int = 2
    flip: float | None = None  # None = as the study's labeler
    loss: str = "pairwise"
    trunk: str = ""  # "" = the SFT model


def learners(cfg: RewardModelsStage) -> dict[str, Learner]:
    """Unit -> what it learns. All but the sizes of data are the reference, data_<fixed>, with one thing changed."""
    found = {f"data_{n}": Learner(n, epochs) for n, epochs in cfg.comparisons.items()}
    first = found[f"data_{cfg.fixed}"]
    found |= {f"epochs_{epochs}": first._replace(epochs=epochs) for epochs in cfg.epochs}
    found |= {f"trunk_{name}": first._replace(trunk=name) for name in cfg.trunks}
    found |= {f"flip_{flip:g}": first._replace(flip=flip) for flip in cfg.flips}
    for loss in cfg.losses:
        ranked = first._replace(k=cfg.k, loss=loss)
        found[f"equal_replies_{loss}"] = ranked._replace(prompts=2 * cfg.fixed // cfg.k)
        found[f"equal_pairs_{loss}"] = ranked._replace(prompts=cfg.fixed // cfg.pairs_of_k)
    return found


def sampled(cfg: RewardModelsStage) -> dict[int, int]:
    """k -> how many prompts get so many replies, of which a unit has the first."""
    return {2: max(cfg.comparisons), cfg.k: 2 * cfg.fixed // cfg.k}


class Shared(Ground):
    """What all units of a seed share. Each thing is made when it is first asked for.

    Errors: `LabError` where the tokens of a model that units start from are not the SFT model's.
    """

    cfg: RewardModelsStage

    def __init__(self, cfg: RewardModelsStage):
        super().__init__(cfg, max(sampled(cfg).values()) * 5 // 4 + 4)
        self._sampled: dict[int, list[dict[str, Any]]] = {}
        self._trunks: dict[str, str] = {}

    def rankings(self, who: Learner) -> list[dict[str, Any]]:
        """What a unit learns from. Two units with as many replies have the same ones, and the same labels but flips."""
        if who.k not in self._sampled:
            self._sampled[who.k] = self.comparisons(self.labeler(), n=sampled(self.cfg)[who.k], k=who.k)
        rows = self._sampled[who.k][: who.prompts]
        return rows if who.flip is None else self.relabelled(rows, flip=who.flip)

    def trunk(self, name: str) -> str:
        """The path of what a reward model starts from, "" = the SFT model. Base models are made once for all seeds."""
        if name not in self._trunks:
            self._trunks[name] = self._found(name) if name else self.sft_path
        return self._trunks[name]

    def origins(self) -> dict[str, str]:
        """Trunk -> what it is known by."""
        known = {"": self.models}
        for name, value in self.cfg.trunks.items():
            path = self.world.base_model if value == "sandbox" else ""  # which is there
            known[name] = origin(value, lambda name=name, path=path: path or self.trunk(name))
        return known

    def _found(self, name: str) -> str:
        value, once = self.cfg.trunks[name], self.cfg.model_copy(update={"seed": 0})
        path = self.world.base_model if value == "sandbox" else artefacts.checkpoint(value, "pretrain", once)
        if not same_vocabulary(models.load_tokenizer(path), self.tokenizer):
            raise LabError(
                f"trunks: {name} ({path}) has another tokenizer than the SFT model; give a model that shares it"
            )
        return path

    @cached_property
    def held_out_pairs(self) -> list[dict[str, Any]]:
        """Comparisons by the labeler, on held-out prompts."""
        return self.comparisons(self.labeler(), split="heldout", n=self.cfg.n_heldout)

    @cached_property
    def replies(self):
        """The pool."""
        return self.pool(self.cfg.pool_size)

    @cached_property
    def gold(self) -> torch.Tensor:
        """(B, N) gold of the pool."""
        return score_pool(self.world.gold, self.replies)

    @cached_property
    def words(self) -> torch.Tensor:
        """(B, N) words of the pool's replies."""
        return torch.tensor([[len(reply.split()) for reply in row] for row in self.replies.replies])


def own_settings(shared: Shared) -> dict[str, dict[str, Any]]:
    """Unit -> what is its own; of a trunk that is where it comes from."""
    origins = shared.origins()
    own = {
        name: who._asdict() | {"trunk": origins[who.trunk], "of": sampled(shared.cfg)[who.k]}
        for name, who in learners(shared.cfg).items()
    }
    return {GOLD: {}, **own}


def learn(name: str, shared: Shared, run: Run) -> Figures:
    """One unit: train its reward model and measure it. Equal shapes have equal heads, equal rows an equal order."""
    began = time.perf_counter()
    found = measure(_as_labelled(shared), shared) if name == GOLD else _trained(name, shared, run)
    return found | {"seconds": time.perf_counter() - began}


def _trained(name: str, shared: Shared, run: Run) -> Figures:
    cfg, who = shared.cfg, learners(shared.cfg)[name]
    batch = max(2 * cfg.reward_model.batch_size // who.k, 1)  # as many replies in a step
    changes = {"seed": cfg.seed, "precision": cfg.precision}
    changes |= {"loss": who.loss, "batch_size": batch, "epochs": who.epochs}
    rankings = shared.rankings(who)
    torch.manual_seed(cfg.seed)
    settings = cfg.reward_model.model_copy(update=changes)
    scorer = train_scorer(settings, shared.trunk(who.trunk), shared.tokenizer, rankings, run, name)
    learned = evaluate_reward_model(scorer, shared.tokenizer, rankings)
    told = {
        "prompts": len(rankings),
        "replies": len(rankings) * who.k,
        "pairs": learned.comparisons,
        "epochs": who.epochs,
        "steps": who.epochs * -(-len(rankings) // batch),
        "weights": sum(weight.numel() for weight in scorer.parameters()),
        "accuracy_train": learned.accuracy,
    }
    return told | measure(ModelReward(scorer, shared.tokenizer, shared.tokenizer), shared)


def _as_labelled(shared: Shared) -> Reward:
    """Gold in the labeler's own logits."""
    temperature = max(shared.cfg.labeler.temperature, 1e-6)
    return lambda prompts, completions, **_: [g / temperature for g in shared.world.gold(prompts, completions)]


# ---- Measuring


def measure(reward: Reward, shared: Shared) -> Figures:
    """A reward on the held-out comparisons, and on the pool."""
    rows = shared.held_out_pairs
    lead, truth = leads(reward, rows), leads(shared.world.gold, rows)
    scores = score_pool(reward, shared.replies)
    gains = best_of(scores, shared.gold, shared.words, seed=shared.cfg.seed)
    return {
        "accuracy": agreement(lead, np.ones(len(rows))),
        "accuracy_gold": agreement(lead, truth),
        "gain": gains[f"gain_at_{shared.cfg.n}"],
        "score_sd": float(scores.std()),
        "rank_correlation": rank_correlation(scores, shared.gold),
        **calibration(lead),
        **gains,
    }


def leads(reward: Reward, rows: Sequence[dict[str, Any]]) -> np.ndarray:
    """(rows,) by how much the reward of the reply that was labelled the better one exceeds the other's."""
    sides = []
    for rank in (0, 1):
        places = [row["ranks"].index(rank) for row in rows]
        columns = {
            "prompts": [row["prompt"] for row in rows],
            "completions": [row["completions"][i] for row, i in zip(rows, places, strict=True)],
            "finished": [row["finished"][i] for row, i in zip(rows, places, strict=True)],
        }
        sides.append(np.array(call_reward(reward, **columns)))
    return sides[0] - sides[1]


def calibration(lead: np.ndarray) -> Figures:
    """How far a model's probabilities are the labelers', from its leads (logits) of the replies that were preferred.

    The probability that it gives the reply it prefers itself lies in 1/2 to 1, and is compared in bins with how often
    the labeler preferred that one too. ece: the mean distance, weighted by the bins' sizes. slope: what to multiply the
    logits with so that they fit best; below 1 they are too sure, above 1 not sure enough, 0 and less worth nothing.
    Source: Guo et al. 2017 (1706.04599), eq. 3 and section 4.2 (its temperature is 1/slope).
    """
    said = 1 / (1 + np.exp(-np.abs(lead)))
    right = 0.5 + 0.5 * np.sign(lead)
    bins = calibration_table(said, right, BINS)
    figures = {"ece": float(np.average((bins["share"] - bins["said"]).abs(), weights=bins["n"]))}
    figures |= {"confidence": float(said.mean()), "slope": _slope(lead)}
    for row in bins.itertuples():
        place = int(row.middle * BINS)
        figures |= {f"{name}_bin_{place}": float(getattr(row, name)) for name in ("said", "share", "n")}
    return figures


def _slope(lead: np.ndarray) -> float:
    """The factor of the logits that makes the outcomes likeliest, searched in units in which they are about 1."""
    unit = float(np.abs(lead).mean()) or 1.0
    found = minimize_scalar(lambda a: np.logaddexp(0, -a * lead / unit).sum(), bounds=(-20, 20), method="bounded")
    return float(found.x) / unit


def rank_correlation(scores: torch.Tensor, gold: torch.Tensor) -> float:
    """Of the ranks that replies have within their prompt (ties share theirs), over all prompts. Both (B, N)."""
    ours, theirs = (rankdata(x.numpy(), axis=1).ravel() for x in (scores, gold))
    return float(np.corrcoef(ours, theirs)[0, 1])


def best_of(scores: torch.Tensor, gold: torch.Tensor, words: torch.Tensor, *, seed: int) -> Figures:
    """Gold gained over one reply by the best of 2, 4, 8, ..., and its words. All (B, N); a coin decides ties."""
    ns = [2**power for power in range(scores.shape[1].bit_length())]
    coin = torch.rand(scores.shape, generator=torch.Generator().manual_seed(seed))
    value, length = (best_of_n_curve(scores, x, ns, tie_breaker=coin).value.mean(0) for x in (gold, words))
    gains = {f"gain_at_{n}": gain for n, gain in zip(ns[1:], (value - value[0])[1:].tolist(), strict=True)}
    return gains | {f"words_at_{n}": mean for n, mean in zip(ns, length.tolist(), strict=True)}
