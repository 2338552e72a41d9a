"""A forward over real tokens alone gives what each row gives by itself, whatever the padding, masks and adapters."""

import copy

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import functional as F
from transformers import AutoModelForCausalLM, LlamaForCausalLM
from transformers.modeling_outputs import CausalLMOutput

from rlhf_lab.maths import logprobs as logprobs_module
from rlhf_lab.maths import token_entropy, token_logprobs
from rlhf_lab.models import LoraConfig, Scorer, SharedBase, load_policy, packed, response_logprobs, response_values
from rlhf_lab.models.hidden import alike, hidden_states, like_length

from .test_fast_paths import LIKE_LLAMA, tiny
from .tiny_models import CONTEXT, VOCABULARY

# three rows, padded on the left, on the right and on both sides, and what is asked of them
MASK = torch.tensor([[0, 0, 0, 1, 1, 1, 1, 1], [1, 1, 1, 1, 1, 1, 0, 0], [0, 1, 1, 1, 1, 1, 1, 0]]).bool()
WANTED = torch.tensor([[0, 0, 0, 0, 0, 1, 1, 1], [0, 1, 0, 0, 0, 1, 0, 0], [0, 0, 0, 0, 1, 0, 1, 0]]).bool()
IDS = torch.randint(3, VOCABULARY, MASK.shape, generator=torch.Generator().manual_seed(3))


def row_by_row(trunk, ids, mask, wanted):
    """Each row without padding, through the model's own forward."""
    rows = zip(ids, mask, wanted, strict=True)
    return torch.cat([trunk(one[real][None], use_cache=False).last_hidden_state[0, w[real]] for one, real, w in rows])


def with_gradients(trunk, forward, *read):
    for weight in trunk.parameters():
        weight.requires_grad_(True).grad = None
    found = forward(trunk, *read)
    (found * torch.linspace(-1, 2, found.numel()).view_as(found)).sum().backward()
    return found.detach(), {name: weight.grad for name, weight in trunk.named_parameters()}


@pytest.fixture
def went(monkeypatch):
    """How often the way of real tokens alone was taken."""
    calls, plain = [], packed.hidden_states
    monkeypatch.setattr(packed, "hidden_states", lambda *read: calls.append(1) or plain(*read))
    return calls


ROPES = {
    "plain": {"rope_type": "default"},
    "linear": {"rope_type": "linear", "factor": 2.0},
    "llama3": {"rope_type": "llama3", "factor": 4.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
               "original_max_position_embeddings": 16},
    "yarn": {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16},
}  # fmt: skip


def both_ways(trunk, ids, mask, wanted):
    """The same states and gradients, here and row by row."""
    found, ours = with_gradients(trunk, hidden_states, ids, mask, wanted)
    expected, theirs = with_gradients(trunk, row_by_row, ids, mask, wanted)
    assert torch.allclose(found, expected, atol=1e-5)
    for name, gradient in theirs.items():
        assert torch.allclose(ours[name], gradient, atol=1e-5 * gradient.abs().max().item() + 1e-7), name


@pytest.mark.parametrize("rope", ROPES)
@pytest.mark.parametrize("architecture", LIKE_LLAMA)
def test_hidden_states_and_gradients_are_those_of_each_row_alone(architecture, rope, went):
    trunk = tiny(architecture, rope_parameters=ROPES[rope] | {"rope_theta": 10.0}).base_model
    both_ways(trunk, IDS, MASK, WANTED)
    assert went


@pytest.mark.parametrize(
    "changes", [{"attention_bias": True, "mlp_bias": True}, {"head_dim": 12}, {"num_key_value_heads": 1}]
)
def test_biases_wide_heads_and_a_single_head_of_keys(changes, went):
    both_ways(tiny("llama", **changes).base_model, IDS, MASK, WANTED)
    both_ways(tiny("llama", **changes).base_model, IDS[1:2], MASK[1:2], WANTED[1:2])
    assert len(went) == 2


@pytest.mark.parametrize("architecture", LIKE_LLAMA)
def test_rows_of_many_lengths_attend_in_groups(architecture, went, monkeypatch):
    cut = []
    monkeypatch.setattr(packed, "alike", lambda n, within: cut.append(alike(n, within=within, least=0)) or cut[-1])
    lengths = torch.tensor([12, 3, 12, 5, 1, 4])
    mask = torch.arange(12) >= 12 - lengths[:, None]
    ids = torch.randint(3, VOCABULARY, mask.shape, generator=torch.Generator().manual_seed(5))
    wanted = mask & (torch.arange(12) >= torch.tensor([9, 10, 5, 9, 12, 11])[:, None])  # nothing in the row of one
    both_ways(tiny(architecture).base_model, ids, mask, wanted)
    assert [len(group) for group in cut[0]] == [2, 2, 1, 1]
    assert went


@pytest.mark.parametrize("architecture", LIKE_LLAMA)
def test_rows_without_padding_and_rows_of_one_token(architecture, went):
    trunk = tiny(architecture).base_model
    whole = torch.ones_like(MASK)
    single = torch.zeros_like(MASK).index_fill(1, torch.tensor([4]), True)
    for mask in (whole, single):
        assert torch.allclose(hidden_states(trunk, IDS, mask, mask), row_by_row(trunk, IDS, mask, mask), atol=1e-5)
    nothing = hidden_states(trunk, IDS, whole, torch.zeros_like(whole))
    assert nothing.shape == (0, trunk.config.hidden_size)
    assert len(went) == 3


@pytest.mark.parametrize("architecture", ["llama", "qwen3"])
def test_in_bfloat16_it_is_as_near_as_the_models_own(architecture, went):
    trunk = tiny(architecture).base_model
    exact = row_by_row(trunk, IDS, MASK, WANTED)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        ours, theirs = hidden_states(trunk, IDS, MASK, WANTED), row_by_row(trunk, IDS, MASK, WANTED)
    assert went
    assert (ours - exact).abs().mean() <= 1.2 * (theirs - exact).abs().mean()


def hooked(module):
    module.register_forward_hook(lambda *_: None)
    return module


def test_a_trunk_that_does_more_goes_its_own_way(went, capsys, monkeypatch):
    monkeypatch.setattr("rlhf_lab.models.inputs._told", set())
    dropping = tiny("llama", attention_dropout=0.2)
    patched, watched, layered, normed, steered, headed = (tiny("llama") for _ in range(6))
    patched.base_model.forward = tiny("llama").base_model.forward
    hooked(watched.base_model.layers[1].mlp)
    hooked(layered.base_model.layers[0])
    hooked(normed.base_model.norm)
    hooked(steered.base_model.layers[0].mlp.act_fn)
    headed.base_model.layers[1].input_layernorm = torch.nn.RMSNorm(32).requires_grad_(False)  # not the model's own kind
    qwen = tiny("qwen3")
    hooked(qwen.base_model.layers[0].self_attn.k_norm)
    saving = tiny("llama")
    saving.gradient_checkpointing_enable()
    others = [tiny("gpt2"), tiny("gemma2"), tiny("mistral", sliding_window=3), tiny("llama", hidden_act="gelu")]
    longest = {"rope_type": "longrope", "rope_theta": 10.0, "short_factor": [1.0] * 4, "long_factor": [2.0] * 4,
               "original_max_position_embeddings": 4, "factor": 2.0}  # fmt: skip
    others.append(tiny("llama", rope_parameters=longest))
    for model in (dropping.train(), patched, watched, layered, normed, steered, headed, qwen, saving, *others[:-1]):
        assert not packed.qualifies(model.base_model)
        model.eval()
        wanted = row_by_row(model.base_model, IDS, MASK, WANTED)
        if model is not dropping:
            assert torch.allclose(hidden_states(model.base_model, IDS, MASK, WANTED), wanted, atol=1e-5)
    assert not packed.qualifies(others[-1].base_model)  # here a row depends on the longest beside it, in any way
    assert not went
    assert packed.qualifies(dropping.base_model)  # which drops nothing now
    told = capsys.readouterr().out.splitlines()
    assert (
        told.count("reading: LlamaModel goes through its own forward; only plain models like Llama spare padding") == 1
    )


def test_a_changed_head_is_asked_as_it_is(llama_dir, batch, went):
    """What a hook or a patch does to the logits of a language model reaches its log-probabilities."""
    policy = load_policy(llama_dir)
    assert response_logprobs(policy, *batch.tensors).logp.any()
    assert went
    policy.register_forward_hook(lambda module, args, output: CausalLMOutput(logits=output.logits * 0))
    found = response_logprobs(policy, *batch.tensors, with_entropy=True)
    uniform = torch.log(torch.tensor(float(VOCABULARY)))
    assert torch.allclose(found.logp[batch.response_mask], -uniform)
    assert len(went) == 1


def test_a_model_that_does_more_behind_its_head_goes_its_own_way(llama_dir, batch, went):
    class Capped(LlamaForCausalLM):
        def forward(self, *args, **kwargs):
            output = super().forward(*args, **kwargs)
            output.logits = output.logits * 0
            return output

    found = response_logprobs(Capped.from_pretrained(llama_dir).eval(), *batch.tensors)
    assert torch.allclose(found.logp[batch.response_mask], -torch.log(torch.tensor(float(VOCABULARY))))
    assert not went


@pytest.mark.parametrize("kind", ["lora", "prompt", "norms"])
def test_adapters_of_peft_are_read_as_peft_reads_them(llama_dir, batch, kind, went):
    import peft

    settings = {
        "lora": peft.LoraConfig(task_type="CAUSAL_LM", r=2, target_modules="all-linear", init_lora_weights=False),
        "prompt": peft.PrefixTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=2),
        "norms": peft.LNTuningConfig(task_type="CAUSAL_LM", target_modules=["input_layernorm"]),
    }
    torch.manual_seed(0)
    model = peft.get_peft_model(load_policy(llama_dir), settings[kind]).eval()
    for name, weight in model.named_parameters():
        if "ln_tuning" in name:
            torch.nn.init.normal_(weight, mean=1, std=0.3)
    prompt, reply = batch.prompts[1], batch.replies[1]
    one = [
        torch.tensor([prompt]),
        torch.ones(1, len(prompt)).bool(),
        torch.tensor([reply]),
        torch.ones(1, len(reply)).bool(),
    ]
    found = response_logprobs(model, *one)
    logits = model(input_ids=torch.tensor([prompt + reply])).logits[0, -len(reply) - 1 : -1]
    wanted = logits.log_softmax(-1).gather(-1, torch.tensor(reply)[:, None])[:, 0]
    assert torch.allclose(found.logp[0], wanted, atol=1e-4)
    assert bool(went) == (kind == "lora")


def test_each_role_on_a_shared_base_reads_with_its_own_adapters(llama_dir, batch, went):
    base = SharedBase(str(llama_dir))
    lora = LoraConfig(rank=2, alpha=4)
    policy, reference, critic = base.policy(lora), base.reference(), base.scorer(lora, name="critic")
    torch.manual_seed(0)
    for model in (policy, critic):
        for weight in model.parameters():
            if weight.requires_grad:
                torch.nn.init.normal_(weight, std=0.3)
    said = {
        "policy": response_logprobs(policy, *batch.tensors).logp,
        "reference": response_logprobs(reference, *batch.tensors).logp,
        "critic": response_values(critic, *batch.tensors),
    }
    assert len(went) == 3
    plain = AutoModelForCausalLM.from_pretrained(llama_dir).eval()
    for row, (prompt, reply) in enumerate(zip(batch.prompts, batch.replies, strict=True)):
        ids = torch.tensor([prompt + reply])
        at = slice(len(prompt) - 1, -1)
        logp = plain(ids).logits[0, at].log_softmax(-1).gather(-1, torch.tensor(reply)[:, None])[:, 0]
        assert torch.allclose(said["reference"][row, : len(reply)], logp, atol=1e-4)
        with torch.no_grad():
            model_logits = policy(input_ids=ids).logits[0, at]
        logp = model_logits.log_softmax(-1).gather(-1, torch.tensor(reply)[:, None])[:, 0]
        assert torch.allclose(said["policy"][row, : len(reply)], logp, atol=1e-4)
        assert not torch.allclose(said["policy"][row, : len(reply)], said["reference"][row, : len(reply)], atol=1e-2)
        critic.shared.activate("critic")
        hidden = critic.model.base_model(ids, use_cache=False).last_hidden_state[0, at]
        assert torch.allclose(said["critic"][row, : len(reply)], critic.own_head(hidden)[:, 0], atol=1e-4)


@pytest.mark.parametrize("architecture", [*LIKE_LLAMA, "gpt2", "gpt_neox", "gemma2"])
def test_scores_are_those_of_each_row_alone(architecture, went):
    """At every token and at the last one, whichever way a model goes."""
    model = tiny(architecture)
    scorer = Scorer(model_with_head(model))
    rows = [row[real] for row, real in zip(IDS, MASK, strict=True)]
    alone = [scorer.model.score(scorer.model.base_model(row[None]).last_hidden_state)[0, :, 0] for row in rows]
    found = scorer.token_scores(IDS, MASK)
    some = scorer.token_scores(IDS, MASK, WANTED)
    assert torch.allclose(found[MASK], torch.cat(alone), atol=1e-5)
    assert not found[~MASK].any()
    assert torch.allclose(some[WANTED], found[WANTED], atol=1e-5)
    assert not some[~WANTED].any()
    assert torch.allclose(scorer.sequence_scores(IDS, MASK), torch.stack([row[-1] for row in alone]), atol=1e-5)
    assert bool(went) == (architecture in LIKE_LLAMA)


def model_with_head(policy):
    from transformers import AutoModelForSequenceClassification

    config = copy.deepcopy(policy.config)
    config.num_labels, config.pad_token_id = 1, 2
    torch.manual_seed(1)
    model = AutoModelForSequenceClassification.from_config(config).eval()
    model.base_model.load_state_dict(policy.base_model.state_dict())
    return model.requires_grad_(False)


def test_logits_in_pieces_are_those_in_one(monkeypatch):
    torch.manual_seed(0)
    logits, tokens = torch.randn(2, 7, 11), torch.randint(11, (2, 7))
    slope = torch.randn(2, 7)
    found = []
    for piece in (11 * 3 + 5, 2**18):  # three positions at a time, and all
        monkeypatch.setattr(logprobs_module, "_PIECE", piece)
        leaf = logits.clone().requires_grad_()
        logp = token_logprobs(leaf, tokens)
        (logp * slope).sum().backward()
        found.append((logp.detach(), leaf.grad, token_entropy(logits)))
    wanted = logits.clone().requires_grad_()
    plain = -F.cross_entropy(wanted.flatten(0, 1), tokens.flatten(), reduction="none").view(2, 7)
    (plain * slope).sum().backward()
    entropy = torch.distributions.Categorical(logits=logits).entropy()
    for logp, gradient, spread in found:
        assert torch.allclose(logp, plain, atol=1e-6)
        assert torch.allclose(gradient, wanted.grad, atol=1e-6)
        assert torch.allclose(spread, entropy, atol=1e-6)


def test_the_longest_row_fills_the_context(went):
    trunk = tiny("llama").base_model
    ids = torch.randint(3, VOCABULARY, (2, CONTEXT), generator=torch.Generator().manual_seed(4))
    mask = torch.ones_like(ids, dtype=torch.bool)
    mask[1, :40] = False
    assert torch.allclose(hidden_states(trunk, ids, mask, mask), row_by_row(trunk, ids, mask, mask), atol=1e-5)
    assert went


@given(st.lists(st.integers(1, 60), max_size=30), st.floats(0, 1), st.integers(0, 100))
def test_groups_are_a_partition_of_rows_of_like_length(lengths, within, least):
    groups = alike(lengths, within=within, least=least)
    assert sorted(row for group in groups for row in group) == list(range(len(lengths)))
    assert all(groups)
    for number, group in enumerate(groups):
        found = [lengths[row] for row in group]
        assert found == sorted(found, reverse=True)
        for place, length in enumerate(found):  # whoever is too short came in where the group was too small
            assert length >= within * found[0] or place * found[0] < least
        if number:  # a group was begun for a reason
            before = [lengths[row] for row in groups[number - 1]]
            assert found[0] < within * before[0] and len(before) * before[0] >= least


def test_groups_by_hand():
    assert alike([10, 8, 4, 10, 7], within=0.75, least=0) == [[0, 3, 1], [4], [2]]
    assert alike([10, 8, 4, 10, 7], within=0.75, least=40) == [[0, 3, 1, 4], [2]]
    assert alike([]) == []


@pytest.mark.parametrize("architecture", ["gpt2", "bloom", "gemma2"])
def test_a_model_that_reads_padding_reads_rows_of_like_length_together(architecture, monkeypatch):
    trunk = tiny(architecture).base_model
    monkeypatch.setattr("rlhf_lab.models.hidden.alike", lambda lengths: alike(lengths, least=0))
    assert len(like_length(trunk, MASK)) == 2  # 5, and 6 with 6
    found, ours = with_gradients(trunk, hidden_states, IDS, MASK, WANTED)
    wanted, theirs = with_gradients(trunk, row_by_row, IDS, MASK, WANTED)
    assert torch.allclose(found, wanted, atol=1e-5)
    for name, gradient in theirs.items():
        assert torch.allclose(ours[name], gradient, atol=1e-5 * gradient.abs().max().item() + 1e-7), name
