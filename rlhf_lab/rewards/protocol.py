"""What a reward is: any callable from prompts and completions to one number each.

It is called by keyword with what it accepts, so that a function written for TRL plugs in unchanged:

    def polite(completions, **kwargs):
        return [float("please" in text) for text in completions]
"""

import inspect
import math
from collections.abc import Callable, Sequence
from typing import Any

from rlhf_lab.errors import LabError

Reward = Callable[..., Sequence[float]]


def call_reward(
    reward: Reward,
    *,
    prompts: Sequence[str],
    completions: Sequence[str],
    completion_ids: Sequence[Sequence[int]] | None = None,
    prompt_ids: Sequence[Sequence[int]] | None = None,
    finished: Sequence[bool] | None = None,
    **columns: Any,
) -> list[float]:
    """Call a reward with those of the arguments that it accepts -> one finite float per completion.

    completion_ids, prompt_ids: token ids without padding, a reply's EOS included. finished: it ended by EOS.
    columns: further columns of the data set, one value per completion each. What is None counts as absent.
    Errors: `LabError` that names the reward, if it asks for what is absent, or its answer has the wrong
    length or a value that is no finite number. What the reward itself raises comes through.
    """
    offered = {"prompts": prompts, "completions": completions}
    optional = {"completion_ids": completion_ids, "prompt_ids": prompt_ids, "finished": finished, **columns}
    offered |= {name: value for name, value in optional.items() if value is not None}
    answer = reward(**_accepted(reward, offered))
    if not hasattr(answer, "__len__") or len(answer) != len(completions):
        got = len(answer) if hasattr(answer, "__len__") else type(answer).__name__
        wanted = f"{len(completions)} numbers, one per completion"
        raise LabError(f"reward '{reward_name(reward)}': must return {wanted}, not {got}")
    return [_number(value, row, reward) for row, value in enumerate(answer)]


def reward_name(reward: Reward) -> str:
    """What to call a reward in messages: its own name, or that of its class."""
    return getattr(reward, "__name__", type(reward).__name__)


def _accepted(reward: Reward, offered: dict[str, Any]) -> dict[str, Any]:
    try:
        parameters = inspect.signature(reward).parameters.values()
    except (TypeError, ValueError):  # a callable that cannot be looked into gets everything
        return offered
    kinds = inspect.Parameter
    if not any(parameter.kind is kinds.VAR_KEYWORD for parameter in parameters):
        names = {parameter.name for parameter in parameters}
        offered = {name: value for name, value in offered.items() if name in names}
    single = (kinds.POSITIONAL_OR_KEYWORD, kinds.KEYWORD_ONLY)
    needed = [p.name for p in parameters if p.kind in single and p.default is kinds.empty]
    if absent := [name for name in needed if name not in offered]:
        raise LabError(
            f"reward '{reward_name(reward)}': asks for {', '.join(absent)}, which is not there; "
            "give it a default, or a data set with that column"
        )
    return offered


def _number(value: Any, row: int, reward: Reward) -> float:
    try:
        number = math.nan if isinstance(value, str) else float(value)
    except (TypeError, ValueError):
        number = math.nan
    if not math.isfinite(number):
        raise LabError(f"reward '{reward_name(reward)}': completion {row} got {value!r}; return a finite number")
    return number
