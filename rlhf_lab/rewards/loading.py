"""Find the reward that a run names: a function in a Python file, or a reward model."""

import difflib
import importlib.util
import sys
from pathlib import Path
from types import ModuleType

from rlhf_lab.errors import LabError
from rlhf_lab.models import load_scorer, load_tokenizer
from rlhf_lab.models.loading import first_line
from rlhf_lab.rewards.ensemble import EnsembleReward, Mode, member_folders
from rlhf_lab.rewards.model_reward import ModelReward
from rlhf_lab.rewards.protocol import Reward


def load_reward(
    source,
    *,
    policy_tokenizer=None,
    batch_size: int = 64,
    mode: Mode = "mean",
    coef: float = 0.5,
    precision: str = "fp32",
) -> Reward:
    """The reward that `source` names: "path/to/file.py:function", or a reward model's directory or hub id.

    A directory with an ensemble (`save_ensemble`) becomes one reward by `mode` and `coef`, as in `EnsembleReward`.
    batch_size and precision are a reward model's, as in `ModelReward`.

    A path is relative to the working directory. The file is run as Python code: name only files you trust.
    Errors: `LabError` if there is no such file or function, the file fails, a model has no trained head, or `mode` asks
    for several members where there is one.
    """
    file, colon, name = str(source).rpartition(":")
    if colon and file.endswith(".py"):
        return _function(Path(file).expanduser(), name)
    if str(source).endswith(".py"):
        raise LabError(f"reward {source}: which function? Write it as {source}:name")
    members = [_model(folder, policy_tokenizer, batch_size, precision) for folder in member_folders(source)]
    if len(members) > 1:
        return EnsembleReward(members, mode, coef)
    if mode != "mean":
        raise LabError(
            f"reward_mode is '{mode}' but {source} is one reward model; train several ('members'), or 'mean'"
        )
    return members[0]


def _model(source, policy_tokenizer, batch_size: int, precision: str) -> ModelReward:
    scorer = load_scorer(source, trainable=False)
    if scorer.new_head:
        raise LabError(f"reward {source}: has no score head, so it is no reward model; train one from it first")
    return ModelReward(scorer, load_tokenizer(source), policy_tokenizer, batch_size, precision)


def _function(file: Path, name: str) -> Reward:
    if not file.is_file():
        raise LabError(f"reward {file}:{name}: no file {file} (looked from {Path.cwd()})")
    module = _run(file)
    reward = getattr(module, name, None)
    if reward is None:
        known = [key for key, value in vars(module).items() if callable(value) and not key.startswith("_")]
        close = difflib.get_close_matches(name, known, n=1)
        hint = f" (did you mean '{close[0]}'?)" if close else f"; it has {', '.join(known) or 'none'}"
        raise LabError(f"reward {file}:{name}: no function '{name}' in the file{hint}")
    if not callable(reward):
        raise LabError(f"reward {file}:{name}: is a {type(reward).__name__}, not a function")
    return reward


def _run(file: Path) -> ModuleType:
    module_name = f"rlhf_lab_reward_{file.stem}"
    spec = importlib.util.spec_from_file_location(module_name, file)
    module = importlib.util.module_from_spec(spec)
    sys.modules[module_name] = module  # dataclasses and pickles look their module up
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        line = f", line {error.lineno}" if isinstance(error, SyntaxError) else ""
        raise LabError(
            f"reward {file}{line}: could not be loaded: {type(error).__name__}: {first_line(error)}"
        ) from error
    return module
