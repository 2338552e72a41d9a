"""10_overoptimisation: best-of-n and PPO against reward models of several sizes of data, in several worlds.

A unit is one way of optimising against one reward model in one world, such as default/bon_125 and default/ppo_125.
"""

import math
import time
from collections.abc import Sequence
from functools import cache, cached_property
from statistics import fmean
from typing import Any

import numpy as np
import torch

from rlhf_lab import models
from rlhf_lab.maths import best_of_n_curve, best_of_n_kl, tied_best_of_n_kl
from rlhf_lab.models import Scorer
from rlhf_lab.rewards import ModelReward
from rlhf_lab.training.best_of_n import Pool, score_pool
from rlhf_lab.workbench.runs import Run
from rlhf_lab.workbench.stages import OverOptimisationStage
from rlhf_lab.workbench.studies import chain, ground
from rlhf_lab.workbench.studies.ground import Ground
from rlhf_lab.workbench.studies.units import Figures

LISTS = {"comparisons", "best_of_n", "ppo_against", "ppo", "measure_every"}


def unit_names(cfg: OverOptimisationStage) -> list[str]:
    """The units of these settings, world by world, best-of-n first."""
    worlds = dict.fromkeys([*cfg.best_of_n, *cfg.ppo_against])
    each = {"bon": cfg.best_of_n, "ppo": cfg.ppo_against}
    return [f"{world}/{way}_{size}" for world in worlds for way in each for size in each[way].get(world, ())]


def parts(unit: str) -> tuple[str, str, int]:
    """World, way (bon or ppo) and comparisons of a unit, by its name."""
    world, _, rest = unit.partition("/")
    way, _, size = rest.partition("_")
    return world, way, int(size)


class Finished(ground.Finished):
    """The finished units of these settings, SFT model and seed."""

    def __init__(self, common: Ground, run: Run):
        cfg = common.cfg
        own: dict[str, dict[str, Any]] = {}
        for unit in unit_names(cfg):
            _, way, size = parts(unit)
            own[unit] = {"epochs": cfg.comparisons[size]}
            own[unit] |= cfg.model_dump(mode="json", include={"ppo", "measure_every"}) if way == "ppo" else {}
        super().__init__(common, run, own, lists=LISTS)


class Proxies:
    """What the units of a seed share: a pool of the SFT model's replies, and the reward models. Made when asked for."""

    def __init__(self, common: Ground, run: Run):
        self.ground, self.run, self.cfg = common, run, common.cfg
        self.world = cache(common.in_world)
        self.comparisons = cache(self._comparisons)
        self.scorer = cache(self._scorer)

    @cached_property
    def pool(self) -> Pool:
        """Many replies to each held-out prompt. All worlds have the same: they differ in gold alone."""
        return self.ground.pool(self.cfg.pool_size)

    def _comparisons(self, world: str, split: str, n: int) -> list[dict[str, Any]]:
        here = self.world(world)
        return here.comparisons(here.labeler(), split=split, n=n)

    def learned_from(self, world: str, size: int) -> list[dict[str, Any]]:
        """The first comparisons of those of the largest reward model; fewer where too many replies were equal."""
        return self.comparisons(world, "train", max(self.cfg.comparisons))[:size]

    def _scorer(self, world: str, size: int) -> Scorer:
        """The reward model of that many comparisons, its scores in standard deviations over the SFT model's replies."""
        cfg, common = self.cfg, self.ground
        rows = self.learned_from(world, size)
        own = {"epochs": cfg.comparisons[size], "seed": cfg.seed, "precision": cfg.precision}
        torch.manual_seed(cfg.seed)  # of the new head, whatever was made before it
        what = f"{world}, reward model of {size} comparisons"
        settings = cfg.reward_model.model_copy(update=own)
        scorer = chain.train_scorer(settings, common.sft_path, common.tokenizer, rows, self.run, what)
        chain.normalise([scorer], common.sft, common)
        return scorer


def unit(name: str, proxies: Proxies) -> Figures:
    """Optimise against one reward model, by best-of-n or by PPO: score, gold and KL at every place, and the peak."""
    world, way, size = parts(name)
    began = time.perf_counter()
    scorer = proxies.scorer(world, size)
    figures = {
        "comparisons": float(len(proxies.learned_from(world, size))),
        "reward_gain": scorer.gain,
        "reward_shift": scorer.shift,
    }
    figures |= _best_of_n(proxies, world, size) if way == "bon" else _ppo(name, proxies, world, size)
    return figures | {"seconds": time.perf_counter() - began}


def _best_of_n(proxies: Proxies, world: str, size: int) -> Figures:
    cfg, common, pool = proxies.cfg, proxies.ground, proxies.pool
    scorer = proxies.scorer(world, size)
    ns = [2**power for power in range(cfg.pool_size.bit_length())]
    proxies.run.progress(0, 1, f"{world}, best of n against {size} comparisons")
    scores = score_pool(ModelReward(scorer, common.tokenizer, common.tokenizer), pool)
    gold = score_pool(proxies.world(world).world.gold, pool)
    words = torch.tensor([[float(len(reply.split())) for reply in row] for row in pool.replies])
    coin = torch.rand(scores.shape, generator=torch.Generator().manual_seed(cfg.seed))
    found = best_of_n_curve(scores, gold, ns, tie_breaker=coin)
    held_out = proxies.comparisons(world, "heldout", cfg.n_heldout)
    figures = chain.accuracies(scorer, proxies.world(world), held_out) | {"duplicates": pool.duplicates}
    figures |= curve_figures(ns, [best_of_n_kl(n) for n in ns], found.score.mean(0), found.value)
    means = {
        "tied_kl": tied_best_of_n_kl(scores, ns).mean(0),
        "words": best_of_n_curve(scores, words, ns, tie_breaker=coin).value.mean(0),
    }
    return figures | _at(ns, means)


def _ppo(name: str, proxies: Proxies, world: str, size: int) -> Figures:
    cfg, here = proxies.cfg, proxies.world(world)
    policy = models.load_policy(here.sft_path)
    measure = chain.optimise(name, policy, [proxies.scorer(world, size)], here, proxies.run, every=cfg.measure_every)
    points = measure.points
    gold = torch.tensor(np.array([point.answers["gold"] for point in points.values()]).T)
    kl, score = [point.kl for point in points.values()], [point.proxy for point in points.values()]
    return chain.reply_figures(measure) | curve_figures(list(points), kl, torch.tensor(score), gold)


def curve_figures(places: Sequence[int], kl: Sequence[float], score: torch.Tensor, gold: torch.Tensor) -> Figures:
    """A curve as figures: gains over its first place, and where gold peaks.

    Each half of the prompts chooses the peak, and the other half measures the gain there and the fall from it to the
    last place: the highest of several noisy numbers is too high. The peak is the mean of the two ways.

    places: n, or updates. kl: nats per reply at each. score: (places,) means. gold: (prompts, places).
    """
    gain, half = gold - gold[:, :1], len(gold) // 2
    first, second = gain[:half].mean(0), gain[half:].mean(0)
    peaks = [(int(chooses.argmax()), measures) for chooses, measures in ((first, second), (second, first))]
    figures = {
        "peak_distance": fmean(math.sqrt(max(kl[place], 0.0)) for place, _ in peaks),
        "peak_gain": fmean(measures[place].item() for place, measures in peaks),
        "final_less_peak": fmean((measures[-1] - measures[place]).item() for place, measures in peaks),
        "final_gain": gain.mean(0)[-1].item(),
        "final_score": (score[-1] - score[0]).item(),
        "final_kl": float(kl[-1]),
    }
    columns = {"score": score - score[0], "gold": gain.mean(0), "gold_first": first, "gold_second": second}
    return figures | _at(places, {"kl": torch.tensor(kl, dtype=torch.float64)} | columns)


def _at(places: Sequence[int], columns: dict[str, torch.Tensor]) -> Figures:
    """Columns (places,) as figures, such as gold_at_8."""
    return {
        f"{name}_at_{place}": value
        for name, values in columns.items()
        for place, value in zip(places, values.tolist(), strict=True)
    }
