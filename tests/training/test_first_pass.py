"""The pass that reads a rollout serves as the first optimizer step's, where that step is on all of it."""

import pytest
import torch
from tiny import PROMPTS, figures_of, make_config, make_policy, make_scorer, make_tokenizer, start, weights_of

from rlhf_lab.models import LoraConfig, SharedBase, save_policy, shared_scorer
from rlhf_lab.training import ppo
from rlhf_lab.training.ppo import ppo_updates
from rlhf_lab.training.ppo_step import one_pass
from rlhf_lab.training.processes import ALONE


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Where the policy of each architecture lies."""
    made = {name: tmp_path_factory.mktemp(name) for name in ("llama", "gpt2")}
    for name, folder in made.items():
        save_policy(folder, make_policy(name), make_tokenizer())
    return made


def own_models(architecture, _):
    return {"policy": make_policy(architecture), "critic": make_scorer(architecture)}


def shared_trunk(architecture, folder):
    policy = make_policy(architecture)
    critic = shared_scorer(folder, policy)
    torch.nn.init.normal_(critic.head.weight, generator=torch.Generator().manual_seed(1))
    assert critic.model.base_model is policy.base_model
    return {"policy": policy, "critic": critic}


def adapters(_, folder):
    """Policy, critic and reference on one base; as if they had learned before."""
    base, generator = SharedBase(folder), torch.Generator().manual_seed(1)
    roles = {"policy": base.policy(LoraConfig(rank=2, alpha=4)), "critic": base.scorer(LoraConfig(rank=2, alpha=4))}
    for role in roles.values():
        for weight in role.parameters():  # B and the head are 0 at first
            torch.nn.init.normal_(weight, std=0.2, generator=generator)
    return roles | {"reference": base.reference()}


def trunk_of(model):
    inner = model.get_base_model() if hasattr(model, "get_base_model") else getattr(model, "model", model)
    return inner.base_model


def learned(config, models: dict, **material):
    """Stats, rollout and weights of each update; how often the trunks were read with a gradient, and at all."""
    torch.manual_seed(0)
    policy, critic = models["policy"], models["critic"]
    calls = []
    for embeddings in {trunk_of(model).get_input_embeddings() for model in (policy, critic) if model is not None}:
        # a hook on the trunk would change which way it goes
        embeddings.register_forward_hook(lambda *_: calls.append(torch.is_grad_enabled()))
    found = [
        (figures_of(update.stats), update.rollout, weights_of(policy, critic))
        for update in ppo_updates(start(config, **models, **material))
    ]
    return found, sum(calls), len(calls)


OBJECTIVES = {
    "plain": {},
    "kl in the loss": {"temperature": 0.7, "kl_in": "loss", "kl_kind": "k3", "whiten": "minibatch"},
    "ptx": {"ptx_coef": 0.5, "ptx_batch_size": 4},
}


@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
@pytest.mark.parametrize("make", [own_models, shared_trunk, adapters])
@pytest.mark.parametrize("objective", OBJECTIVES)
def test_it_learns_the_same_with_a_pass_less(architecture, make, objective, folders, monkeypatch):
    config = make_config(updates=2, batch_size=6, minibatches=1, epochs=3, lr=1e-2, **OBJECTIVES[objective])
    assert one_pass(config, ALONE)
    texts = {"texts": PROMPTS[:5]} if objective == "ptx" else {}
    ours, passes, reads = learned(config, models := make(architecture, folders[architecture]), **texts)
    before = weights_of(*(make(architecture, folders[architecture])[name] for name in ("policy", "critic")))
    monkeypatch.setattr(ppo, "one_pass", lambda *_: False)
    plain, same_passes, more_reads = learned(config, make(architecture, folders[architecture]), **texts)
    assert passes == same_passes == 2 * 3 * (2 + len(texts))  # updates, epochs, models and texts
    assert more_reads == reads + 2 * 2
    for (stats, rollout, moved), (wanted, other, to) in zip(ours, plain, strict=True):
        assert stats == pytest.approx(wanted, rel=1e-3, abs=1e-5)
        assert torch.equal(rollout.response_ids, other.response_ids)
        assert not rollout.old_logp.requires_grad and not rollout.values.requires_grad
        for one, another in zip(moved, to, strict=True):
            assert torch.allclose(one, another, atol=2e-5)
    names = [name for role in ("policy", "critic") for name, _ in models[role].named_parameters()]
    for name, was, now in zip(names, before, ours[0][2], strict=True):
        assert not torch.equal(was, now), name


def test_without_a_critic():
    config = make_config(advantage="reinforce++", minibatches=1, updates=1)
    found, passes, _ = learned(config, {"policy": make_policy(), "critic": None})
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
@pytest.mark.parametrize("make", [own_models, shared_trunk, adapters])
def test_in_bfloat16_every_weight_learns(architecture, make, folders):
    """Sampling casts the weights without a gradient, and autocast would hand these casts on."""
    config = make_config(updates=1, batch_size=6, minibatches=1, epochs=1, lr=1e-2, precision="bf16")
    assert one_pass(config, ALONE)
    models = make(architecture, folders[architecture])
    policy, critic = models["policy"], models["critic"]
    before = weights_of(policy, critic)
    next(ppo_updates(start(config, **models)))
    names = [name for model in (policy, critic) for name, _ in model.named_parameters()]
    for name, was, now in zip(names, before, weights_of(policy, critic), strict=True):
        assert not torch.equal(was, now), name
