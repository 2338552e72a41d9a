"""Training states on disk, so that a run that ended can go on as if it had not.

A checkpoint is a folder `step-<n>`: `weights.safetensors`, the trained parameters in the optimizer's order, and
`state.pt`, everything else, which is read with `weights_only=True`. It is written under another name and renamed,
so a folder of that name is whole whatever was killed when.
"""

import hashlib
import json
import os
import pickle
import random
import shutil
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from rlhf_lab.config import Config
from rlhf_lab.errors import LabError
from rlhf_lab.models.shards import like, whole
from rlhf_lab.training.processes import ALONE

FORMAT = 1
ANY_TIME = {
    "run_dir",
    "resume",
    "threads",
    "tracking",
    "experiment",
    "save_every",
}  # may change between the parts of a run


class Resumable(Protocol):
    """A training state: PPO's, the reward model's, pretraining's, RAFT's."""

    config: Config
    optimizer: torch.optim.Optimizer | None  # None where nothing of it is left between steps: `policy` is what is kept
    step: int  # the run's own count: replies, or optimizer steps

    def material(self) -> list[Any]:
        """What it learns from; another list is another run."""

    def progress(self) -> dict[str, Any]:
        """Counters, controllers, data order and random streams: plain values and tensors."""

    def restore(self, progress: dict[str, Any]) -> None:
        """Take up what `progress` gave."""


def save_training(folder: Path, state: Resumable, *, step: int, keep: int = 2, best: bool = False) -> Path:
    """Write a checkpoint and delete all but the newest `keep`. Returns its folder.

    step: the run's own count, such as replies. best: keep a copy as `best`, whatever comes after.
    Of several processes the main one writes; with sharded weights all must call this. One or several may go on from it.
    """
    processes = getattr(state, "processes", ALONE)
    target = folder / f"step-{step:09d}"
    if not (processes.main or processes.sharded):
        return target
    weights, contents = {}, _contents(state, step)
    for name, parameter in _parameters(state).items():
        weight = whole(parameter.detach())
        weights |= {name: weight.contiguous().cpu()} if processes.main else {}
    if not processes.main:
        return target
    folder.mkdir(parents=True, exist_ok=True)
    temporary = folder / f".step-{step}.{os.getpid()}.tmp"
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir()
    try:
        save_file(weights, temporary / "weights.safetensors")
        torch.save(contents, temporary / "state.pt")
        for file in temporary.iterdir():
            with file.open("rb") as handle:
                os.fsync(handle.fileno())
        shutil.rmtree(target, ignore_errors=True)
        os.replace(temporary, target)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    if best:
        _keep_best(folder, target)
    for old in _steps(folder)[:-keep]:
        shutil.rmtree(old, ignore_errors=True)
    return target


def load_training(folder: Path, state: Resumable) -> int:
    """Put the newest checkpoint in `folder` into a state that was just started, and return its step; 0 without one.

    The state must have been started with the same settings on the same data.
    Errors: `LabError` naming the checkpoint and what is wrong with it: torn, of another state, settings or data.
    """
    steps = _steps(folder)
    return load_checkpoint(steps[-1], state) if steps else 0


def load_checkpoint(path: Path, state: Resumable) -> int:
    """`load_training` of one checkpoint."""
    try:
        weights = load_file(path / "weights.safetensors")
        contents = _read(path)
    except (OSError, SafetensorError, RuntimeError, pickle.UnpicklingError, EOFError, ValueError, KeyError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0][:200]
        raise LabError(f"checkpoint {path}: cannot be read ({reason}); delete it to go on from an older one") from None
    _check(path, contents, weights, state)
    with torch.no_grad():
        for name, parameter in _parameters(state).items():
            parameter.copy_(like(weights[name], parameter))
    if state.optimizer is not None:
        state.optimizer.load_state_dict(_in_shards(contents["optimizer"], state.optimizer))
    torch.set_rng_state(contents["rng"]["torch"])
    version, words, gauss = contents["rng"]["python"]
    random.setstate((version, tuple(words), gauss))
    name, keys, *rest = contents["rng"]["numpy"]
    np.random.set_state((name, np.array(keys, dtype=np.uint32), *rest))  # noqa: NPY002  libraries below use it
    if torch.cuda.is_initialized():
        torch.cuda.set_rng_state_all(contents["rng"]["cuda"][: torch.cuda.device_count()])
    state.restore(contents["progress"])  # last: what was being sampled has drawn from the streams above
    return contents["step"]


def recorded(folder: Path, setting: str) -> Any:
    """A setting that the newest checkpoint in `folder` was made with; None without a checkpoint."""
    steps = _steps(folder)
    return _read(steps[-1])["config"].get(setting) if steps else None


def _read(path: Path) -> dict[str, Any]:
    """All but the weights, on the CPU: it may have been another machine's card."""
    return torch.load(path / "state.pt", weights_only=True, map_location="cpu")


def _contents(state: Resumable, step: int) -> dict[str, Any]:
    name, keys, *rest = np.random.get_state()  # noqa: NPY002
    version, words, gauss = random.getstate()
    return {
        "format": FORMAT,
        "kind": type(state).__name__,
        "step": step,
        "config": state.config.model_dump(mode="json"),
        "data": _fingerprint(state.material()),
        "optimizer": {} if state.optimizer is None else whole(state.optimizer.state_dict()),
        "progress": whole(state.progress()),
        "rng": {
            "torch": torch.get_rng_state(),
            "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else [],
            "python": [version, list(words), gauss],
            "numpy": [name, keys.tolist(), *rest],
        },
    }


def _check(path: Path, contents: dict[str, Any], weights: dict[str, torch.Tensor], state: Resumable) -> None:
    kind = type(state).__name__
    if contents.get("format") != FORMAT or contents.get("kind") != kind:
        raise LabError(f"checkpoint {path}: holds a {contents.get('kind', 'thing')} of another format, not a {kind}")
    ours, theirs = state.config.model_dump(mode="json"), contents["config"]
    for name in sorted(ours.keys() | theirs.keys()):
        if name not in ANY_TIME and ours.get(name) != theirs.get(name):
            was, now = theirs.get(name), ours.get(name)
            raise LabError(f"checkpoint {path}: was made with {name} {was}, not {now}; set it back, or start a new run")
    if contents["data"] != _fingerprint(state.material()):
        raise LabError(f"checkpoint {path}: learned from other data; give the same, or start a new run")
    shapes = {name: tuple(p.shape) for name, p in _parameters(state).items()}
    if shapes != {name: tuple(w.shape) for name, w in weights.items()}:
        raise LabError(f"checkpoint {path}: holds weights of another model; give the same, or start a new run")


def _parameters(state: Resumable) -> dict[str, torch.Tensor]:
    """The trained parameters in the optimizer's order: frozen ones are where the run took them from."""
    groups = [{"params": state.policy.parameters()}] if state.optimizer is None else state.optimizer.param_groups
    return {f"{i:02d}.{j:05d}": p for i, group in enumerate(groups) for j, p in enumerate(group["params"])}


def _in_shards(saved: dict[str, Any], optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """What an optimizer remembers of each weight, in shards where the weight is; both are in the same order."""
    weights = [p for group in optimizer.param_groups for p in group["params"]]
    numbers = [number for group in saved["param_groups"] for number in group["params"]]
    kept = dict(saved["state"])
    for number, weight in zip(numbers, weights, strict=True):
        if number in kept:
            kept[number] = {
                name: like(value, weight) if torch.is_tensor(value) and value.shape == weight.shape else value
                for name, value in kept[number].items()
            }
    return saved | {"state": kept}


def _fingerprint(data: list[Any]) -> str:
    return hashlib.sha256(json.dumps(data, ensure_ascii=False).encode("utf-8", "surrogatepass")).hexdigest()


def _steps(folder: Path) -> list[Path]:
    return sorted(path for path in folder.glob("step-*") if path.is_dir())


def _keep_best(folder: Path, target: Path) -> None:
    copy = folder / f".best.{os.getpid()}.tmp"
    shutil.rmtree(copy, ignore_errors=True)
    shutil.copytree(target, copy)
    shutil.rmtree(folder / "best", ignore_errors=True)
    os.replace(copy, folder / "best")
