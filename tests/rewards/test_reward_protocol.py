"""What a reward is called with, and what it may answer."""

import math

import numpy as np
import pytest
import torch

from rlhf_lab.errors import LabError
from rlhf_lab.rewards import WeightedReward, call_reward

TWO = {"prompts": ["p", "q"], "completions": ["yes please", "no"]}
ALL = TWO | {
    "completion_ids": [[4, 1], [5]],
    "prompt_ids": [[2], [3]],
    "finished": [True, False],
    "level": [7, 8],
}


def test_a_reward_gets_only_what_it_names():
    def only_completions(completions):
        return [float(len(text)) for text in completions]

    def keyword_only(*, finished, level=None):
        return [end + number for end, number in zip(finished, level, strict=True)]

    assert call_reward(only_completions, **ALL) == [10.0, 2.0]
    assert call_reward(keyword_only, **ALL) == [8.0, 8.0]


def test_a_reward_with_kwargs_gets_everything_that_is_there():
    seen = {}

    def curious(prompts, **kwargs):
        seen.update(kwargs, prompts=prompts)
        return [0.0, 0.0]

    call_reward(curious, **ALL)
    assert seen == ALL
    seen.clear()
    call_reward(curious, **TWO)
    assert seen == TWO  # what is absent is not passed as None


def test_defaults_hold_where_nothing_is_offered():
    def cautious(completions, finished=None, margin=0.5):
        return [margin if finished is None else 0.0 for _ in completions]

    assert call_reward(cautious, **TWO) == [0.5, 0.5]


def test_methods_and_callable_objects():
    class Judge:
        def __call__(self, completions):
            return [1.0 for _ in completions]

        def method(self, prompts):
            return [2.0 for _ in prompts]

    assert call_reward(Judge(), **ALL) == [1.0, 1.0]
    assert call_reward(Judge().method, **ALL) == [2.0, 2.0]


def test_functions_written_for_trl_plug_in():
    from trl.rewards import get_soft_overlong_punishment

    lengths = {
        "completions": ["a", "b", "c"],
        "prompts": ["p"] * 3,
        "completion_ids": [[3] * 5, [3] * 9, [3] * 11],
    }
    # its documented curve at maximum 10 and cache 4: 0 up to 6 tokens, (6 - length)/4 up to 10, then -1
    punish = get_soft_overlong_punishment(max_completion_len=10, soft_punish_cache=4)
    assert call_reward(punish, **lengths, finished=[True] * 3) == [0.0, -0.75, -1.0]

    def in_trls_style(prompts, completions, completion_ids, level, trainer_state=None, **kwargs):
        return [float("please" in text) for text in completions]

    assert call_reward(in_trls_style, **ALL) == [1.0, 0.0]


@pytest.mark.parametrize(
    "answer", [[1, 0], (True, False), np.array([1.0, 0.0]), torch.tensor([1.0, 0.0]), [np.float32(1), 0]]
)
def test_any_sequence_of_numbers_will_do(answer):
    found = call_reward(lambda completions: answer, **TWO)
    assert found == [1.0, 0.0]
    assert [type(value) for value in found] == [float, float]


@pytest.mark.parametrize("value", [math.nan, math.inf, None, "1.0", "good", [1.0]])
def test_an_answer_that_is_no_number_names_reward_and_row(value):
    def broken(completions):
        return [0.0, value]

    with pytest.raises(LabError, match="reward 'broken': completion 1 ") as caught:
        call_reward(broken, **TWO)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("answer", [[1.0], [1.0, 2.0, 3.0], [], 1.0, None])
def test_an_answer_of_the_wrong_length_names_the_reward(answer):
    def broken(completions):
        return answer

    with pytest.raises(LabError, match="reward 'broken': must return 2 numbers"):
        call_reward(broken, **TWO)


def test_a_reward_that_asks_for_what_is_not_there():
    def needs(completions, solution, finished):
        return [0.0, 0.0]

    with pytest.raises(LabError, match="reward 'needs': asks for solution, finished"):
        call_reward(needs, **TWO)


def test_what_a_reward_raises_comes_through():
    def breaks(completions):
        raise ZeroDivisionError("mine")

    with pytest.raises(ZeroDivisionError, match="mine"):
        call_reward(breaks, **TWO)


def test_no_completions():
    assert call_reward(lambda completions: [], prompts=[], completions=[]) == []


def polite(completions):
    return [float("please" in text) for text in completions]


def length(completion_ids, **kwargs):
    return [float(len(ids)) for ids in completion_ids]


def test_weighted_sum_and_its_parts():
    """Politeness 1, 0 at weight 2, length 2, 1 at weight -0.5: 2 - 1 = 1 and 0 - 0.5 = -0.5."""
    reward = WeightedReward({"polite": (polite, 2.0), "length": (length, -0.5), "watched": (length, 0)})
    assert call_reward(reward, **ALL) == [1.0, -0.5]
    assert reward.last == {"polite": [1.0, 0.0], "length": [2.0, 1.0], "watched": [2.0, 1.0]}
    assert reward.parts(**(ALL | {"completions": ["no", "please"]}))["polite"] == [0.0, 1.0]
    assert reward.last["polite"] == [0.0, 1.0]


def test_weighted_rewards_nest():
    inner = WeightedReward({"polite": (polite, 3.0)})
    assert call_reward(WeightedReward({"inner": (inner, 2.0)}), **ALL) == [6.0, 0.0]


def test_weighted_errors():
    with pytest.raises(LabError, match="no rewards"):
        WeightedReward({})
    for weight in (math.nan, math.inf, "2"):
        with pytest.raises(LabError, match="weight of 'polite'"):
            WeightedReward({"polite": (polite, weight)})
    with pytest.raises(LabError, match="'text' is 'polite', which cannot be called"):
        WeightedReward({"text": ("polite", 1.0)})
    with pytest.raises(LabError, match="reward 'length': must return 3 numbers"):
        WeightedReward({"a": (length, 1.0), "b": (polite, 1.0)})(**(ALL | {"completions": ["one too many"] * 3}))
