"""Adapters on a shared base against full models, PEFT's own wrapper, and weights multiplied by hand."""

import copy
import json

import peft
import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from rlhf_lab.errors import LabError
from rlhf_lab.models import (
    LoraConfig,
    SharedBase,
    generate,
    load_policy,
    load_scorer,
    merge_adapter,
    response_logprobs,
    response_values,
    save_policy,
)

from .tiny_models import EOS, PAD

LORA = LoraConfig(rank=3, alpha=12)


def stir(role, seed: int = 0, size: float = 0.3) -> None:
    """Give an adapter (and its head) weights that matter: at first B is 0."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for weight in role.parameters():
            weight.copy_(size * torch.randn(weight.shape, generator=generator))


def equal(ours, theirs) -> bool:
    return all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))


def weights(module) -> list[torch.Tensor]:
    return [weight.detach().clone() for weight in module.parameters()]


@pytest.fixture
def adapter_dir(llama_dir, tokenizer, tmp_path):
    """A policy adapter on disk, and the role it was saved from."""
    policy = SharedBase(llama_dir).policy(LORA)
    stir(policy)
    save_policy(tmp_path / "adapter", policy, tokenizer)
    return tmp_path / "adapter", policy


@pytest.fixture
def scorer_dir(llama_dir, tokenizer, tmp_path):
    """A reward adapter on disk, and the role it was saved from."""
    scorer = SharedBase(llama_dir).scorer(LORA, name="reward", head="new")
    stir(scorer, 1)
    scorer.shift = 0.25
    scorer.trained_with(17)
    scorer.save(tmp_path / "reward", tokenizer)
    return tmp_path / "reward", scorer


def test_an_adapter_of_zeros_changes_no_bit(policy_dir, batch):
    shared, full = SharedBase(policy_dir), load_policy(policy_dir)
    policy, reference = shared.policy(LORA), shared.reference()
    expected = response_logprobs(full, *batch.tensors).logp
    assert torch.equal(response_logprobs(policy, *batch.tensors).logp, expected)
    assert torch.equal(response_logprobs(reference, *batch.tensors).logp, expected)

    critic = shared.scorer(LORA)
    assert not response_values(critic, *batch.tensors).any()
    whole = load_scorer(policy_dir, head="new")
    critic.head.load_state_dict(whole.head.state_dict())
    assert torch.equal(response_values(critic, *batch.tensors), response_values(whole, *batch.tensors))
    assert torch.equal(critic.reply_scores(*batch.tensors), whole.reply_scores(*batch.tensors))


def test_a_role_owns_its_adapter_and_nothing_else(llama_dir):
    shared = SharedBase(llama_dir)
    policy, critic = shared.policy(LORA), shared.scorer(LORA)
    # Two layers; q 32x32, k and v 32x16, o 32x32, gate and up 32x48, down 48x32: inputs + outputs times the rank.
    adapter = 2 * 3 * (64 + 48 + 48 + 64 + 80 + 80 + 80)
    assert sum(p.numel() for p in policy.parameters()) == adapter
    assert sum(p.numel() for p in critic.parameters()) == adapter + 32
    assert all(p.requires_grad for role in (policy, critic) for p in role.parameters())
    assert not {id(p) for p in policy.parameters()} & {id(p) for p in critic.parameters()}
    assert not any(p.requires_grad for p in shared.reference().parameters())
    full = load_policy(llama_dir)
    assert sum(p.numel() for p in shared.reference().parameters()) == sum(p.numel() for p in full.parameters())


def test_training_the_policy_leaves_base_reference_and_the_other_roles_alone(llama_dir, batch):
    shared = SharedBase(llama_dir)
    policy, reference = shared.policy(LORA), shared.reference()
    critic, reward = shared.scorer(LORA), shared.scorer(LORA, name="reward", head="new")
    reward.requires_grad_(False)
    before = [weights(role) for role in (reference, critic, reward)]
    plain = response_logprobs(load_policy(llama_dir), *batch.tensors).logp
    optimizer = torch.optim.Adam(policy.parameters(), lr=0.1)
    for _ in range(3):
        optimizer.zero_grad()
        loss = response_logprobs(policy, *batch.tensors).logp.sum()
        response_values(critic, *batch.tensors)  # another role in between
        loss.backward()
        optimizer.step()
    assert not torch.equal(response_logprobs(policy, *batch.tensors).logp, plain)
    assert torch.equal(response_logprobs(reference, *batch.tensors).logp, plain)
    assert all(equal(weights(role), kept) for role, kept in zip((reference, critic, reward), before, strict=True))
    assert [p.requires_grad for p in reward.parameters()] == [False] * len(list(reward.parameters()))


def test_gradients_reach_the_role_whose_loss_it_is_however_often_roles_switch(llama_dir, batch):
    shared = SharedBase(llama_dir)
    policy, critic, reward = shared.policy(LORA), shared.scorer(LORA), shared.scorer(LORA, name="reward")
    for number, role in enumerate((policy, critic, reward)):
        stir(role, number)
    reward.requires_grad_(False)

    def gradients(role, loss):
        """Of a role's own pass with nothing in between."""
        found = torch.autograd.grad(loss(), list(role.parameters()))
        return [gradient.clone() for gradient in found]

    logp = lambda: response_logprobs(policy, *batch.tensors).logp.sum()
    value = lambda: response_values(critic, *batch.tensors).square().sum()
    alone = gradients(policy, logp), gradients(critic, value)

    losses = logp(), value()
    reward.reply_scores(*batch.tensors)
    losses[1].backward()
    assert all(p.grad is None for role in (policy, reward) for p in role.parameters())
    assert equal([p.grad for p in critic.parameters()], alone[1])
    response_logprobs(shared.reference(), *batch.tensors)
    losses[0].backward()
    assert equal([p.grad for p in policy.parameters()], alone[0])
    assert equal([p.grad for p in critic.parameters()], alone[1])
    assert all(p.grad is None for p in [*shared.reference().parameters(), *reward.parameters()])


def test_a_role_says_what_peft_s_own_model_says(llama_dir, batch, adapter_dir):
    folder, policy = adapter_dir
    before = response_logprobs(policy, *batch.tensors).logp
    stir(policy.shared.scorer(LORA, name="critic"))  # another adapter beside it changes nothing
    base = transformers.AutoModelForCausalLM.from_pretrained(llama_dir)
    theirs = peft.PeftModel.from_pretrained(base, folder).eval()
    assert torch.equal(response_logprobs(policy, *batch.tensors).logp, before)
    assert torch.equal(response_logprobs(policy, *batch.tensors).logp, response_logprobs(theirs, *batch.tensors).logp)
    settings = {"max_new_tokens": 6, "eos_id": EOS, "pad_id": PAD}
    ours, other = (
        generate(model, *batch.tensors[:2], **settings, generator=torch.Generator().manual_seed(5))
        for model in (policy, theirs)
    )
    assert torch.equal(ours.response_ids, other.response_ids)


def test_merged_equals_unmerged(llama_dir, tokenizer, batch, adapter_dir, scorer_dir, tmp_path):
    (folder, policy), (reward_folder, reward) = adapter_dir, scorer_dir
    logp = response_logprobs(policy, *batch.tensors).logp
    torch.testing.assert_close(response_logprobs(load_policy(folder), *batch.tensors).logp, logp, atol=2e-5, rtol=0)
    merge_adapter(folder, tmp_path / "merged")
    plain = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "merged")
    torch.testing.assert_close(response_logprobs(plain, *batch.tensors).logp, logp, atol=2e-5, rtol=0)

    assert all(p.requires_grad for p in load_policy(folder).parameters())
    assert not any(p.requires_grad for p in load_policy(folder, trainable=False).parameters())

    # W + (alpha / rank) B A, by hand
    name = "layers.0.mlp.down_proj"
    tensors = load_file(folder / "adapter_model.safetensors")
    a, b = (tensors[f"base_model.model.model.{name}.lora_{part}.weight"] for part in "AB")
    before = load_policy(llama_dir).model.get_submodule(name).weight
    torch.testing.assert_close(plain.model.get_submodule(name).weight, before + 12 / 3 * b @ a)
    assert torch.equal(plain.lm_head.weight, load_policy(llama_dir).lm_head.weight)

    scores = reward.reply_scores(*batch.tensors)
    merge_adapter(reward_folder, tmp_path / "merged-reward")
    for source in (reward_folder, tmp_path / "merged-reward"):
        read = load_scorer(source)
        assert (read.new_head, read.shift, read.limit()) == (False, 0.25, 17)
        torch.testing.assert_close(read.reply_scores(*batch.tensors), scores, atol=2e-5, rtol=0)
        assert all(p.requires_grad for p in read.parameters())
    assert not any(p.requires_grad for p in load_scorer(reward_folder, trainable=False).parameters())


def test_a_saved_role_goes_on_where_it_stood(llama_dir, batch, adapter_dir, scorer_dir):
    (folder, policy), (reward_folder, reward) = adapter_dir, scorer_dir
    shared = SharedBase(llama_dir)
    assert shared.carries(folder) and not shared.carries(llama_dir)
    again = shared.load_policy(folder)
    critic = shared.load_scorer(reward_folder, name="critic")
    frozen = shared.load_scorer(reward_folder, name="reward", trainable=False)
    assert equal(weights(again), weights(policy))
    assert torch.equal(response_logprobs(again, *batch.tensors).logp, response_logprobs(policy, *batch.tensors).logp)
    shared.policy(LORA, name="another")  # whoever comes later neither freezes nor thaws
    for scorer in (critic, frozen):
        assert (scorer.new_head, scorer.shift, scorer.limit()) == (False, 0.25, 17)
        assert torch.equal(scorer.reply_scores(*batch.tensors), reward.reply_scores(*batch.tensors))
    assert all(p.requires_grad for p in [*again.parameters(), *critic.parameters()])
    assert not any(p.requires_grad for p in frozen.parameters())


def test_merge_and_continue(tokenizer, batch, adapter_dir, tmp_path):
    """An adapter on an adapter: the first is merged into the base of the second, on disk too."""
    first, policy = adapter_dir
    second = load_policy(first, lora=LORA)
    torch.testing.assert_close(
        response_logprobs(second, *batch.tensors).logp,
        response_logprobs(policy, *batch.tensors).logp,
        atol=2e-5,
        rtol=0,
    )
    stir(second, 4)
    save_policy(tmp_path / "second", second, tokenizer)
    logp = response_logprobs(second, *batch.tensors).logp
    torch.testing.assert_close(
        response_logprobs(load_policy(tmp_path / "second"), *batch.tensors).logp, logp, atol=5e-5, rtol=0
    )
    reward = load_scorer(first, head="new", lora=LORA)  # PPO's roles on an SFT adapter
    critic = load_scorer(first, head="zero")
    assert not critic.reply_scores(*batch.tensors).any()
    assert reward.new_head and reward.reply_scores(*batch.tensors).any()


def test_a_head_of_bins_is_saved_with_its_centres(llama_dir, tokenizer, batch, tmp_path):
    shared = SharedBase(llama_dir)
    scorer = shared.scorer(LORA, name="reward", head="new", bins=[-1, 0, 2])
    stir(scorer, 6)
    scorer.gain = 3.0
    scorer.save(tmp_path / "bins", tokenizer)
    scores = scorer.reply_scores(*batch.tensors)
    again = shared.load_scorer(tmp_path / "bins", name="again")
    assert (again.bins, again.gain) == ([-1, 0, 2], 3.0)
    assert torch.equal(again.reply_scores(*batch.tensors), scores)
    torch.testing.assert_close(load_scorer(tmp_path / "bins").reply_scores(*batch.tensors), scores, atol=5e-5, rtol=0)


def test_a_copy_of_a_role_stands_on_a_base_of_its_own(llama_dir, batch):
    policy = SharedBase(llama_dir).policy(LORA)
    kept = copy.deepcopy(policy)
    before = response_logprobs(kept, *batch.tensors).logp
    stir(policy)
    assert torch.equal(response_logprobs(kept, *batch.tensors).logp, before)


def test_named_layers_only(llama_dir, batch):
    shared = SharedBase(llama_dir)
    narrow = shared.policy(LoraConfig(rank=2, targets=["q_proj", "layers.1.mlp.up_proj"]))
    assert len(list(narrow.parameters())) == 2 * (2 + 1)
    stir(narrow)
    before = response_logprobs(narrow, *batch.tensors).logp
    stir(shared.scorer(LORA), 2)  # on layers that the policy leaves alone
    assert torch.equal(response_logprobs(narrow, *batch.tensors).logp, before)


def refused(match: str):
    return pytest.raises(LabError, match=match)


def test_settings_that_make_no_sense_are_refused(llama_dir, batch):
    with refused("parameter 'rank' is 0: Input should be greater than or equal to 1"):
        LoraConfig.parse({"rank": 0})
    shared = SharedBase(llama_dir)
    with refused("lora.targets: no linear layer is called 'c_attn'; there are down_proj, gate_proj, k_proj"):
        shared.policy(LoraConfig(targets=["q_proj", "c_attn"]))
    with refused("lora.targets is empty"):
        shared.policy(LoraConfig(targets=[]))
    with refused("critic: lora dropout is 0.1"):
        shared.scorer(LoraConfig(dropout=0.1))
    policy = shared.policy(LORA)
    with refused("has a role 'policy' already"):
        shared.policy(LORA)
    shared.model.gradient_checkpointing_enable()
    with refused("switch gradient checkpointing off"):
        response_logprobs(policy, *batch.tensors)


def test_damaged_and_foreign_directories_are_refused(llama_dir, gpt2_dir, adapter_dir, scorer_dir, tmp_path):
    (folder, _), (reward_folder, _) = adapter_dir, scorer_dir
    shared, settings = SharedBase(llama_dir), json.loads((folder / "adapter_config.json").read_text())
    with refused("holds a reward model's adapter, not a policy"):
        load_policy(reward_folder)
    with refused("holds a policy's adapter, not a reward model's"):
        shared.load_scorer(folder, name="reward")
    with refused("is no adapter of"):
        SharedBase(gpt2_dir).load_policy(folder)
    with refused("is no adapter .it has no adapter_config.json"):
        merge_adapter(llama_dir, tmp_path / "out")

    def with_base(base):
        (folder / "adapter_config.json").write_text(json.dumps(settings | {"base_model_name_or_path": base}))

    with_base(str(tmp_path / "nowhere"))
    for load in (load_policy, load_scorer, SharedBase):
        with refused(f"the adapter's base model {tmp_path}/nowhere is gone; put it back"):
            load(folder)
    with_base(str(folder))
    with refused("names itself as its base model"):
        load_policy(folder)
    with_base(str(gpt2_dir))
    with refused("does not fit its base model"):
        load_policy(folder)
    with_base(str(llama_dir))

    tensors = load_file(folder / "adapter_model.safetensors")
    tensors.pop("base_model.model.model.layers.1.mlp.up_proj.lora_B.weight")
    save_file(tensors, folder / "adapter_model.safetensors", metadata={"format": "pt"})
    with refused("does not fit its base model .*Found missing adapter keys"):
        load_policy(folder)
    with refused("does not fit its base model .model.layers.1.mlp.up_proj.lora_B.weight"):
        shared.load_policy(folder)
    (folder / "adapter_model.safetensors").unlink()
    with refused("weights are missing .adapter_model.safetensors"):
        load_policy(folder)
    (folder / "adapter_config.json").write_text("{")
    with refused("adapter_config.json cannot be read"):
        load_policy(folder)
