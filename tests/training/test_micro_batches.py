"""Micro-batches hold rows of like length, and whatever way rows are grouped, the numbers are those of all at once."""

import pytest
import torch
from tiny import PROMPTS, figures_of, make_config, make_policy, make_scorer, same, sample, weights_of

from rlhf_lab.models import forward, hidden, packed
from rlhf_lab.training.ppo import estimate_advantages, ppo_step
from rlhf_lab.training.rollouts import micro_batches


def test_micro_batches_by_hand():
    mask = torch.arange(5) < torch.tensor([2, 5, 1, 4, 3, 5])[:, None]
    rows = torch.tensor([0, 1, 2, 3, 5])
    assert [part.tolist() for part in micro_batches(mask, rows, 2)] == [[1, 5], [3, 0], [2]]
    assert [part.tolist() for part in micro_batches(mask, rows, 0)] == [[1, 5, 3, 0, 2]]


@pytest.fixture
def grouped(monkeypatch):
    """A way to say how rows are grouped: each length for itself, or all at once."""

    def let(finely: bool) -> list:
        asked = []

        def groups(model, mask):
            lengths = mask.sum(dim=1)
            kinds = lengths.unique() if finely else [None]
            asked.append(len(kinds))
            return [(lengths == k).nonzero()[:, 0] if finely else torch.arange(len(mask)) for k in kinds]

        def rows(lengths, **_):
            kinds = sorted(set(lengths), reverse=True) if finely else [None]
            asked.append(len(kinds))
            return [[row for row, length in enumerate(lengths) if kind in (None, length)] for kind in kinds]

        for module in (forward, hidden):
            monkeypatch.setattr(module, "like_length", groups)
        monkeypatch.setattr(packed, "alike", rows)
        return asked

    return let


@pytest.mark.parametrize("most", [0, 5])
@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
def test_a_rollout_in_groups_is_that_of_all_rows_at_once(architecture, most, grouped):
    found = []
    for finely, size in ((True, most), (False, 0)):
        asked = grouped(finely)
        config = make_config(batch_size=12, max_new_tokens=9, temperature=0.7, micro_batch_size=size)
        torch.manual_seed(5)
        found.append(sample(make_policy(architecture), make_scorer(architecture), config, prompts=PROMPTS[:12]))
        assert (max(asked) > 2) == finely
    for name, one, other in zip(found[0]._fields, *found, strict=True):
        assert torch.allclose(one.float(), other.float(), atol=1e-5), name


@pytest.mark.parametrize(
    "changes",
    [{}, {"reduction": "sequence", "kl_in": "loss", "kl_kind": "k3"}, {"entropy_coef": 0.01, "micro_batch_size": 2}],
)
@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
def test_a_step_in_groups_is_that_of_all_rows_at_once(architecture, changes, grouped):
    config = make_config(batch_size=12, max_new_tokens=9, epochs=2, minibatches=2, **changes)
    torch.manual_seed(5)
    batch = sample(make_policy(architecture), make_scorer(architecture), config, prompts=PROMPTS[:12])
    found = []
    for finely in (True, False):
        asked = grouped(finely)
        policy, critic = make_policy(architecture), make_scorer(architecture)
        optimizer = torch.optim.SGD([*policy.parameters(), *critic.parameters()], lr=0.05)
        how = config if finely else config.model_copy(update={"micro_batch_size": 0})
        torch.manual_seed(0)
        stats = ppo_step(policy, critic, optimizer, batch, *estimate_advantages(batch, config), how)
        assert (max(asked) > 1) == finely
        found.append((figures_of(stats), weights_of(policy, critic)))
    (ours, moved), (theirs, wanted) = found
    assert ours == pytest.approx(theirs, rel=1e-4, abs=1e-6)
    assert not same(moved, weights_of(make_policy(architecture), make_scorer(architecture)))
    for one, other in zip(moved, wanted, strict=True):
        assert torch.allclose(one, other, atol=2e-5)
