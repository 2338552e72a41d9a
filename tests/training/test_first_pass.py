"""The pass that reads a rollout serves as the first optimizer step's, where that step is on all of it."""

import pytest
import torch
from tiny import figures_of, make_config, make_policy, make_scorer, same, start, weights_of

from rlhf_lab.training import ppo
from rlhf_lab.training.ppo import ppo_updates
from rlhf_lab.training.ppo_step import one_pass
from rlhf_lab.training.processes import ALONE


def learned(config, architecture: str):
    """Stats, rollout and weights of each update; how often policy and critic were read with a gradient, and at all."""
    torch.manual_seed(0)
    policy, critic = make_policy(architecture), make_scorer(architecture) if config.needs_critic else None
    calls = []
    for model in (policy, critic and critic.model):
        if model is not None:
            trunk = model.base_model.get_input_embeddings()  # a hook on the trunk would change which way it goes
            trunk.register_forward_hook(lambda *_: calls.append(torch.is_grad_enabled()))
    found = [
        (figures_of(update.stats), update.rollout, weights_of(policy, critic) if critic else weights_of(policy))
        for update in ppo_updates(start(config, policy=policy, critic=critic))
    ]
    return found, sum(calls), len(calls)


@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
@pytest.mark.parametrize("changes", [{}, {"temperature": 0.7, "kl_in": "loss", "kl_kind": "k3", "whiten": "minibatch"}])
def test_it_learns_the_same_with_a_pass_less(architecture, changes, monkeypatch):
    config = make_config(updates=2, batch_size=6, minibatches=1, epochs=3, lr=1e-2, **changes)
    ours, passes, reads = learned(config, architecture)
    monkeypatch.setattr(ppo, "one_pass", lambda *_: False)
    plain, same_passes, more_reads = learned(config, architecture)
    assert passes == same_passes == 2 * 2 * 3  # two updates, two models, three epochs
    assert more_reads == reads + 2 * 2
    for (stats, rollout, moved), (wanted, other, to) in zip(ours, plain, strict=True):
        assert stats == pytest.approx(wanted, rel=1e-3, abs=1e-5)
        assert torch.equal(rollout.response_ids, other.response_ids)
        assert not rollout.old_logp.requires_grad and not rollout.values.requires_grad
        for one, another in zip(moved, to, strict=True):
            assert torch.allclose(one, another, atol=2e-5)
    assert not same(ours[0][2], weights_of(make_policy(architecture), make_scorer(architecture)))


def test_without_a_critic():
    found, passes, _ = learned(make_config(advantage="reinforce++", minibatches=1, updates=1), "llama")
    assert passes == 2 and found[0][0]["ratio"] == pytest.approx(1, abs=0.5)


@pytest.mark.parametrize(
    "changes", [{"minibatches": 2}, {"micro_batch_size": 4}, {"entropy_coef": 0.1}, {"value_loss": "hl_gauss"}]
)
def test_where_it_does_not_serve(changes):
    assert one_pass(make_config(minibatches=1), ALONE)
    assert not one_pass(make_config(**({"minibatches": 1} | changes)), ALONE)


def test_while_the_critic_learns_alone_nothing_is_kept(monkeypatch):
    kept = []
    plain = ppo.rollout
    monkeypatch.setattr(ppo, "rollout", lambda *a, first, **k: kept.append(first) or plain(*a, first=first, **k))
    list(ppo_updates(start(make_config(minibatches=1, critic_warmup=1, updates=2))))
    assert kept[0] is None and kept[1] is not None


@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
def test_in_bfloat16_every_weight_learns(architecture):
    """Sampling casts the weights without a gradient, and autocast would hand these casts on."""
    config = make_config(updates=1, batch_size=6, minibatches=1, epochs=1, lr=1e-2, precision="bf16")
    assert one_pass(config, ALONE)
    policy, critic = make_policy(architecture), make_scorer(architecture)
    before = weights_of(policy, critic)
    next(ppo_updates(start(config, policy=policy, critic=critic)))
    names = [name for model in (policy, critic) for name, _ in model.named_parameters()]
    for name, was, now in zip(names, before, weights_of(policy, critic), strict=True):
        assert not torch.equal(was, now), name
