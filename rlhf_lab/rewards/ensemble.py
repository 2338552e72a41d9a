"""Several reward models as one reward: where they disagree, none of them has seen enough."""

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, get_args

import torch

from rlhf_lab.errors import LabError
from rlhf_lab.models.shards import writes_models
from rlhf_lab.rewards.model_reward import ModelReward, same_vocabulary
from rlhf_lab.rewards.protocol import call_reward

Mode = Literal["mean", "worst", "uncertainty"]
LIST = "ensemble.json"  # beside member 0, which is a reward model like any other


class EnsembleReward:
    """The scores of several reward models as one: their mean, the worst, or the mean less `coef` times their variance.

    `last` holds the members' scores of the last call, one list per member.
    Source: Coste et al. 2023 (2310.02743), section 3: worst is their WCO, uncertainty their UWO, whose variance divides
    by the number of members.
    """

    def __init__(self, members: Sequence[ModelReward], mode: Mode = "mean", coef: float = 0.5):
        if not members:
            raise LabError("ensemble: no reward models given; give at least one")
        if mode not in get_args(Mode):
            raise LabError(f"reward_mode is {mode!r}; choose 'mean', 'worst' or 'uncertainty'")
        if not 0 <= coef < float("inf"):
            raise LabError(f"uncertainty_coef is {coef}; give 0 or more")
        for number, member in enumerate(members):
            if not same_vocabulary(member.tokenizer, members[0].tokenizer):
                raise LabError(
                    f"ensemble: member {number} has another tokenizer than member 0; train them from one model"
                )
        self.members, self.mode, self.coef = list(members), mode, coef
        self.last: list[list[float]] = []

    def __call__(self, *, prompts: Sequence[str], completions: Sequence[str], **columns: Any) -> list[float]:
        """One score per completion. Arguments and errors as those of `ModelReward`."""
        self.last = [
            call_reward(member, prompts=prompts, completions=completions, **columns) for member in self.members
        ]
        return combine(torch.tensor(self.last, dtype=torch.double), mode=self.mode, coef=self.coef).tolist()


def combine(scores: torch.Tensor, *, mode: Mode, coef: float = 0.5) -> torch.Tensor:
    """(M, N) scores of M members -> (N,). mean; worst: the least; uncertainty: mean - coef * variance (by M)."""
    if mode == "worst":
        return scores.amin(0)
    mean = scores.mean(0)
    return mean - coef * scores.var(0, correction=0) if mode == "uncertainty" else mean


def disagreement(gaps: torch.Tensor) -> torch.Tensor:
    """(M, N) gaps first - second of M members, in logits, on N pairs -> (N,) variance (by M) of P(first is preferred).

    0 where all are of one mind, at most 1/4. A gap of an ensemble whose scores were scaled is to be scaled back before.
    Source: Christiano et al. 2017 (1706.03741), section 2.2.4: the pairs with the highest are asked about.
    """
    return torch.sigmoid(gaps).var(0, correction=0)


def member_folders(checkpoint) -> list:
    """The directories of an ensemble's members; a path or hub id of one model alone.

    Errors: `LabError` if the list of members cannot be read or names a directory that is not there.
    """
    folder = Path(os.path.expanduser(str(checkpoint)))
    if not (folder / LIST).is_file():
        return [checkpoint]
    try:
        names = json.loads((folder / LIST).read_text(encoding="utf-8"))["members"]
        found = [folder / name for name in names]
    except (OSError, ValueError, TypeError, KeyError):
        raise LabError(
            f"reward {folder / LIST}: cannot be read; it lists the members as {{'members': ['.', ...]}}"
        ) from None
    if missing := [path for path in found if not (path / "config.json").is_file()]:
        raise LabError(
            f"reward {folder / LIST}: names {missing[0].name}, which holds no model; copy the whole directory"
        )
    return found


def save_ensemble(scorers: Sequence, directory, tokenizer) -> None:
    """Save reward models as one directory: member 0 as the model itself, the others under it, and the list of them.

    A reader that knows nothing of ensembles reads member 0. The list comes last, so that it never names a member that
    is not there. One model is saved as ever.
    """
    folder = Path(directory)
    names = [".", *(f"member-{number}" for number in range(1, len(scorers)))]
    for scorer, name in zip(scorers, names, strict=True):
        scorer.save(folder / name, tokenizer)
    if len(scorers) > 1 and writes_models():
        fresh = folder / f".{LIST}.new"
        fresh.write_text(json.dumps({"members": names}) + "\n", encoding="utf-8")
        fresh.replace(folder / LIST)
