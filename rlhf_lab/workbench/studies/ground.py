"""What the units of a study share: a world with a gold reward, the SFT model, and comparisons of its replies."""

import copy
from collections.abc import Mapping
from functools import cached_property
from typing import Any, Self

from rlhf_lab import models
from rlhf_lab.errors import LabError
from rlhf_lab.sandbox.labelers import Labeler
from rlhf_lab.sandbox.world import World
from rlhf_lab.training.best_of_n import Pool, sample_pool
from rlhf_lab.training.comparisons import sample_rankings
from rlhf_lab.workbench import artefacts
from rlhf_lab.workbench.runs import Run
from rlhf_lab.workbench.stages import STAGES
from rlhf_lab.workbench.stages.study import StudyStage
from rlhf_lab.workbench.studies.finished_lines import origin, short_hash
from rlhf_lab.workbench.studies.units import FinishedUnits

_NO_MATTER = {"experiment", "run_dir", "results", "resume", "seed", "threads", "tracking"}


class Ground:
    """The common ground of one seed. What takes time is made when it is first asked for: a finished study asks nothing.

    n_train: prompts to learn from. Errors: `LabError` without a world: nothing else has a known gold reward.
    """

    def __init__(self, cfg: StudyStage, n_train: int):
        if not cfg.sandbox:
            raise LabError("study: 'sandbox' is empty, but only an embedded world has a known gold reward")
        self.cfg, self.n_train = cfg, n_train
        self.world = World.load(cfg.sandbox)
        self.models = origin(cfg.policy, lambda: self.sft_path)

    def in_world(self, name: str) -> Self:
        """The same ground under another gold reward: worlds differ in nothing else, so that the SFT model is the same.

        Errors: `LabError` naming the worlds there are.
        """
        other = copy.copy(self)  # with the path to the SFT model, if it has been made
        other.world = World.load(name)
        return other

    @cached_property
    def sft_path(self) -> str:
        """Where the SFT model is."""
        return artefacts.checkpoint(self.cfg.policy, "sft", self.cfg)

    @cached_property
    def tokenizer(self):
        """The SFT model's tokenizer."""
        return models.load_tokenizer(self.sft_path)

    @cached_property
    def sft(self):
        """The SFT model, frozen."""
        return models.load_policy(self.sft_path, trainable=False)

    @cached_property
    def train(self) -> list[str]:
        """The prompts of PPO and of the comparisons."""
        return self.world.prompts("train", self.n_train, self.cfg.seed + 1)

    @cached_property
    def held_out(self) -> list[str]:
        """The prompts on which gold is measured."""
        return self.world.prompts("heldout", self.cfg.eval_prompts)

    def labeler(self, **changes: Any) -> Labeler:
        """The simulated labeler of this seed, with some of its settings changed."""
        cfg = self.cfg
        return self.world.labeler(**{**cfg.labeler.model_dump(), **changes, "seed": cfg.labeler.seed + cfg.seed})

    def comparisons(self, labeler: Labeler, *, split: str = "train", n: int, k: int = 2) -> list[dict[str, Any]]:
        """At most `n` prompts with `k` replies of the SFT model, ranked. The first of more are those of fewer.

        A prompt that got the same reply twice is left out; a quarter more are asked to make up for it.
        """
        number = self.cfg.seed + 1
        prompts = self.train if split == "train" else self.world.prompts(split, n * 5 // 4 + 4, number)
        sampling = {"k": k, "max_new_tokens": self.cfg.max_new_tokens, "seed": number + len(split)}
        rows = sample_rankings(self.sft, self.tokenizer, prompts[: n * 5 // 4 + 4], labeler.rank, **sampling)
        return rows[:n]

    def relabelled(self, rows: list[dict[str, Any]], **changes: Any) -> list[dict[str, Any]]:
        """The same replies, ranked by the labeler with some of its settings changed."""
        labeler = self.labeler(**changes)
        return [row | {"ranks": labeler.rank(row["prompt"], row["completions"])} for row in rows]

    def pool(self, size: int, *, prompts: int | None = None) -> Pool:
        """`size` replies of the SFT model to each held-out prompt, or to the first so many of them."""
        sampling = {"size": size, "max_new_tokens": self.cfg.max_new_tokens, "seed": self.cfg.seed + 3}
        return sample_pool(self.sft, self.tokenizer, self.held_out[:prompts], **sampling)

    @cached_property
    def duel(self) -> Pool:
        """Two replies of the SFT model to each held-out prompt, to measure the reward models on."""
        sampling = {"size": 2, "max_new_tokens": self.cfg.max_new_tokens, "seed": self.cfg.seed + 300}
        return sample_pool(self.sft, self.tokenizer, self.held_out, **sampling)


class Finished(FinishedUnits):
    """The finished units of a study, in `cfg.results` or a file of the run's own.

    own: what a unit has of its own settings, by its name. What only lists the units is told by `lists`, so that
    more of them leave the finished ones as they are.
    """

    def __init__(self, ground: Ground, run: Run, own: Mapping[str, Mapping[str, Any]], *, lists: set[str]):
        def hashes(cfg: StudyStage, unit: str) -> tuple[str, str]:
            values = cfg.model_dump(mode="json", exclude=_NO_MATTER | lists) | {"policy": ""}
            return short_hash(values), short_hash(own[unit])

        study = next((stem[3:] for stem, model in STAGES.items() if model is type(ground.cfg)), "")
        super().__init__(ground.cfg, run, ground.models, hashes, study=study, units=own)
