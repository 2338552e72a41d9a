"""Rows of like length go through the models together, and the numbers are those of all rows at once."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tiny import PROMPTS, figures_of, make_config, make_policy, make_scorer, same, sample, weights_of

from rlhf_lab.training import ppo_step as step_module
from rlhf_lab.training import rollouts
from rlhf_lab.training.lengths import alike
from rlhf_lab.training.ppo import estimate_advantages, ppo_step


@given(st.lists(st.integers(1, 60), max_size=30), st.floats(0, 1), st.integers(0, 100), st.integers(0, 6))
def test_groups_are_a_partition_of_rows_of_like_length(lengths, within, least, most):
    groups = alike(lengths, within=within, least=least, most=most)
    assert sorted(row for group in groups for row in group) == list(range(len(lengths)))
    assert all(groups)
    for number, group in enumerate(groups):
        found = [lengths[row] for row in group]
        assert found == sorted(found, reverse=True)
        assert most == 0 or len(group) <= most
        for place, length in enumerate(found):  # whoever is too short came in where the group was too small
            assert length >= within * found[0] or place * found[0] < least
        if number:  # a group was begun for a reason
            before = [lengths[row] for row in groups[number - 1]]
            full = most and len(before) == most
            assert full or (found[0] < within * before[0] and len(before) * before[0] >= least)


def test_groups_by_hand():
    assert alike([10, 8, 4, 10, 7], within=0.75) == [[0, 3, 1], [4], [2]]
    assert alike([10, 8, 4, 10, 7], within=0.75, least=40) == [[0, 3, 1, 4], [2]]
    assert alike([10, 8, 4, 10, 7], within=0.75, most=2) == [[0, 3], [1, 4], [2]]
    assert alike([]) == []


@pytest.fixture
def finely(monkeypatch):
    """Groups as fine as can be, whatever a call costs."""
    asked = []

    def fine(lengths, *, within, least, most):
        asked.append(groups := alike(lengths, within=1.0, most=most))
        return groups

    monkeypatch.setattr(rollouts, "alike", fine)
    return asked


def batch_of_many_lengths(config, policy, critic):
    torch.manual_seed(5)
    return sample(policy, critic, config, prompts=PROMPTS[: config.batch_size])


@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
def test_a_rollout_in_groups_is_that_of_all_rows_at_once(architecture, finely, monkeypatch):
    config = make_config(batch_size=12, max_new_tokens=9, temperature=0.7)
    policy, critic = make_policy(architecture), make_scorer(architecture)
    ours = batch_of_many_lengths(config, policy, critic)
    assert len(finely[0]) > 3
    monkeypatch.setattr(rollouts, "alike", lambda lengths, **_: [list(range(len(lengths)))])
    whole = batch_of_many_lengths(config, policy, critic)
    for name, one, other in zip(ours._fields, ours, whole, strict=True):
        assert torch.allclose(one.float(), other.float(), atol=1e-5), name


@pytest.mark.parametrize(
    "changes",
    [{}, {"reduction": "sequence", "kl_in": "loss", "kl_kind": "k3"}, {"entropy_coef": 0.01, "micro_batch_size": 2}],
)
@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
def test_a_step_in_groups_is_that_of_all_rows_at_once(architecture, changes, finely, monkeypatch):
    config = make_config(batch_size=12, max_new_tokens=9, epochs=2, minibatches=2, **changes)
    policy, critic = make_policy(architecture), make_scorer(architecture)
    batch = batch_of_many_lengths(config, policy, critic)
    found = []
    for number in range(2):
        policy, critic = make_policy(architecture), make_scorer(architecture)
        optimizer = torch.optim.SGD([*policy.parameters(), *critic.parameters()], lr=0.05)
        if number:
            at_once = config.model_copy(update={"micro_batch_size": 0})
            monkeypatch.setattr(step_module, "like_length", lambda prompts, replies, rows, **_: [rows])
        torch.manual_seed(0)
        stats = ppo_step(
            policy, critic, optimizer, batch, *estimate_advantages(batch, config), at_once if number else config
        )
        found.append((figures_of(stats), weights_of(policy, critic)))
    assert max(len(groups) for groups in finely[1:]) > 2
    (ours, moved), (theirs, wanted) = found
    assert ours == pytest.approx(theirs, rel=1e-4, abs=1e-6)
    assert not same(moved, weights_of(make_policy(architecture), make_scorer(architecture)))
    for one, other in zip(moved, wanted, strict=True):
        assert torch.allclose(one, other, atol=2e-5)
