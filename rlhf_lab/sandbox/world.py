"""A world: the language, one gold reward, and the files that the other rooms read."""

import json
import random
from functools import lru_cache
from importlib import resources
from pathlib import Path
from typing import Self

import yaml

from rlhf_lab.config import Config
from rlhf_lab.errors import LabError
from rlhf_lab.sandbox.gold import GoldWeights, gold_parts
from rlhf_lab.sandbox.hosts import DEMONSTRATORS, draw_document, draw_host, draw_reply, draw_training_prompt
from rlhf_lab.sandbox.labelers import Biases, Labeler, LabelerConfig
from rlhf_lab.sandbox.language import Prompt, parse_prompt, parses

_HERE = resources.files("rlhf_lab.sandbox")


class World(Config):
    """A preset of `worlds.yaml`: what it shows, its gold weights, and the constant that gold is reported in."""

    name: str
    shows: str
    gold_weights: GoldWeights = GoldWeights()
    people: Biases = Biases()  # how all who compare in this world err, besides what a run plants
    reference_std: float  # standard deviation of raw gold over the reference SFT policy's replies
    reference_mean: float  # and its mean, for the reader; nothing is computed from it

    @classmethod
    def load(cls, name: str = "default") -> Self:
        """The preset of that name. Errors: LabError naming the presets there are."""
        presets = yaml.safe_load(_HERE.joinpath("worlds.yaml").read_text())
        if name not in presets:
            raise LabError(f"sandbox '{name}' is not a preset; there are {', '.join(presets)}")
        return cls.parse({"name": name, **presets[name]}, f"worlds.yaml, {name}")

    @property
    def base_model(self) -> str:
        """Path of the base model that the package carries."""
        return str(_HERE.joinpath("base"))

    def gold(self, prompts: list[str], completions: list[str], **_) -> list[float]:
        """The gold reward in standard deviations of the reference SFT policy. A reward like any other."""
        return [self._score(p, c) for p, c in zip(prompts, completions, strict=True)]

    def gold_parts(self, prompt: str, completion: str) -> dict[str, float]:
        """The parts of one reply's gold reward, in reference standard deviations."""
        parts = gold_parts(prompt, completion, self.gold_weights)
        return {name: value / self.reference_std + 0.0 for name, value in parts.items()}  # + 0.0: no minus zero

    @lru_cache(maxsize=100_000)  # noqa: B019  worlds are few and live as long as the process
    def _score(self, prompt: str, completion: str) -> float:
        return sum(gold_parts(prompt, completion, self.gold_weights).values()) / self.reference_std

    @staticmethod
    def parses(reply: str) -> bool:
        """Whether a reply is whole sentences of the language."""
        return parses(reply)

    def labeler(self, **settings) -> Labeler:
        """A simulated person; the settings are those of `LabelerConfig`, and the world's own biases are added."""
        config = LabelerConfig.parse(settings, "labeler")
        biases = {name: getattr(config, name) + value for name, value in self.people.model_dump().items()}
        return Labeler(self._score, config.model_copy(update=biases))

    def prompts(self, split: str, n: int, seed: int = 0) -> list[str]:
        """`n` different prompts of the split `train` or `heldout`."""
        rng = random.Random(f"prompts/{split}/{seed}")
        found: dict[str, None] = {}
        while len(found) < n:
            found[draw_training_prompt(rng, split).text] = None
        return list(found)

    def shots(self, prompt: str, n: int, rng: random.Random, eos: str) -> str:
        """The prompt behind `n` worked examples of a careful host."""
        return " ".join([*(f"{p.text} {reply} {eos}" for p, reply in self._worked(n, rng)), prompt])

    def _worked(self, n: int, rng: random.Random) -> list[tuple[Prompt, str]]:
        prompts = [draw_training_prompt(rng) for _ in range(n)]
        host = draw_host({"careful": 1.0}, rng)
        return [(prompt, draw_reply(prompt, host, rng)) for prompt in prompts]

    def demonstrations(self, n: int, seed: int = 0) -> list[dict[str, str]]:
        """`n` rows of prompt and completion, written by the demonstrators for training prompts."""
        rng = random.Random(f"demonstrations/{seed}")
        rows = []
        for text in self.prompts("train", n, seed):
            prompt = parse_prompt(text)
            rows.append({"prompt": text, "completion": draw_reply(prompt, draw_host(DEMONSTRATORS, rng), rng)})
        return rows

    def corpus(self, n: int, eos: str, seed: int = 0) -> list[str]:
        """`n` pretraining documents."""
        rng = random.Random(f"corpus/{seed}")
        return [draw_document(rng, eos) for _ in range(n)]

    def write(self, folder: str | Path, *, demonstrations=400, train=4096, heldout=512, seed=0) -> Path:
        """Write `demonstrations.jsonl`, `prompts-train.jsonl` and `prompts-heldout.jsonl` and return the folder."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        _write_rows(folder / "demonstrations.jsonl", self.demonstrations(demonstrations, seed))
        _write_rows(folder / "prompts-train.jsonl", [{"prompt": p} for p in self.prompts("train", train, seed)])
        # The held-out prompts are the same for every seed: results are compared on common prompts.
        _write_rows(folder / "prompts-heldout.jsonl", [{"prompt": p} for p in self.prompts("heldout", heldout)])
        return folder

    def __hash__(self) -> int:
        return hash(self.name)


def _write_rows(path: Path, rows: list[dict]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
