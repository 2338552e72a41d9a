"""A forward over real tokens alone gives what each row gives by itself, whatever the padding, masks and adapters."""

import copy

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import functional as F
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, LlamaForCausalLM
from transformers.modeling_outputs import CausalLMOutput

from rlhf_lab.maths import logprobs as logprobs_module
from rlhf_lab.maths import token_entropy, token_logprobs
from rlhf_lab.models import LoraConfig, Scorer, SharedBase, load_policy, packed, response_logprobs, response_values
from rlhf_lab.models.hidden import alike, hidden_states

from .test_fast_paths import LIKE_LLAMA, LONGROPE, ROPES, stirred, tiny
from .tiny_models import CONTEXT, ENCODERS, OWN_WAY, VOCABULARY, build_config

# three rows, padded on the left, on the right and on both sides, and what is asked of them
MASK = torch.tensor([[0, 0, 0, 1, 1, 1, 1, 1], [1, 1, 1, 1, 1, 1, 0, 0], [0, 1, 1, 1, 1, 1, 1, 0]]).bool()
WANTED = torch.tensor([[0, 0, 0, 0, 0, 1, 1, 1], [0, 1, 0, 0, 0, 1, 0, 0], [0, 0, 0, 0, 1, 0, 1, 0]]).bool()
IDS = torch.randint(3, VOCABULARY, MASK.shape, generator=torch.Generator().manual_seed(3))

# six rows of many lengths: on the left, on the right, on both sides; of the row of one token nothing is asked
LENGTHS = torch.tensor([11, 3, 12, 5, 1, 4])
BEGINS = torch.tensor([1, 9, 0, 3, 0, 0])[:, None]
MANY = (torch.arange(12) >= BEGINS) & (torch.arange(12) < BEGINS + LENGTHS[:, None])
MANY_WANTED = MANY & (torch.arange(12) >= torch.tensor([9, 10, 5, 4, 12, 1])[:, None]) & (torch.arange(12) != 10)
MANY_IDS = torch.randint(3, VOCABULARY, MANY.shape, generator=torch.Generator().manual_seed(5))

OTHER_WAYS = {name: {} for name in OWN_WAY} | {
    "mistral": {"sliding_window": 3},
    "qwen2": {"use_sliding_window": True, "sliding_window": 3, "max_window_layers": 1},
    "llama": {"hidden_act": "gelu"},
}
"""Architectures that go through their own forward, and what makes a model like Llama do so."""


def row_by_row(trunk, ids, mask, wanted):
    """Each row without padding, through the model's own forward."""
    rows = zip(ids, mask, wanted, strict=True)
    return torch.cat([trunk(one[real][None], use_cache=False).last_hidden_state[0, w[real]] for one, real, w in rows])


def with_gradients(model, forward, *read):
    for weight in model.parameters():
        weight.requires_grad_(True).grad = None
    found = forward(model, *read)
    (found * torch.linspace(-1, 2, found.numel()).view_as(found)).sum().backward()
    return found.detach(), {name: weight.grad for name, weight in model.named_parameters()}


def agree(model, here, there, *read):
    """The same numbers and gradients in two ways."""
    found, ours = with_gradients(model, here, *read)
    expected, theirs = with_gradients(model, there, *read)
    assert torch.allclose(found, expected, atol=1e-5)
    # that of the keys' bias is 0 but for rounding, which is as large as the largest gradient makes it
    rounding = 1e-6 * max(gradient.abs().max().item() for gradient in theirs.values() if gradient is not None)
    for name, gradient in theirs.items():
        assert (ours[name] is None) == (gradient is None), name
        if gradient is not None:
            assert torch.allclose(ours[name], gradient, atol=1e-5 * gradient.abs().max().item() + rounding), name


def both_ways(trunk, ids, mask, wanted):
    """The same states and gradients, here and row by row."""
    agree(trunk, hidden_states, row_by_row, ids, mask, wanted)


@pytest.fixture
def went(monkeypatch):
    """How often the way of real tokens alone was taken."""
    calls, plain = [], packed.hidden_states
    monkeypatch.setattr(packed, "hidden_states", lambda *read: calls.append(1) or plain(*read))
    return calls


@pytest.fixture
def groups(monkeypatch):
    """The groups that rows are read in, which a difference in length makes however few tokens there are."""
    cut = []
    few = lambda lengths, within=0.9: cut.append(alike(lengths, within=within, least=1)) or cut[-1]
    for module in ("hidden", "packed"):
        monkeypatch.setattr(f"rlhf_lab.models.{module}.alike", few)
    return cut


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
def test_rows_of_many_lengths_attend_in_groups(architecture, went, groups):
    both_ways(tiny(architecture).base_model, MANY_IDS, MANY, MANY_WANTED)
    assert [len(group) for group in groups[0]] == [2, 2, 1, 1]
    assert went


@pytest.mark.parametrize("architecture", OTHER_WAYS)
def test_a_model_that_reads_padding_reads_rows_of_like_length_together(architecture, went, groups):
    both_ways(tiny(architecture, **OTHER_WAYS[architecture]).base_model, MANY_IDS, MANY, MANY_WANTED)
    assert [len(group) for group in groups[0]] == [2, 1, 1, 1, 1]
    assert not went


def pairs(*lengths: tuple[int, int]):
    """Prompts and replies of so many tokens, as `response_logprobs` takes them."""
    prompts, replies = torch.tensor(lengths).T[:, :, None]
    prompt_mask = torch.arange(prompts.max()) >= prompts.max() - prompts
    reply_mask = torch.arange(replies.max()) < replies
    generator = torch.Generator().manual_seed(6)
    prompt_ids, reply_ids = (
        torch.randint(3, VOCABULARY, mask.shape, generator=generator) for mask in (prompt_mask, reply_mask)
    )
    return prompt_ids, prompt_mask, reply_ids, reply_mask


PAIRS = pairs((9, 3), (2, 4), (11, 1), (3, 0), (1, 5), (4, 8))  # of 11, 5, 11, 3, 5 and 11 tokens that are read


def each_pair(prompt_ids, prompt_mask, reply_ids, reply_mask):
    """Prompt and reply of every row without padding, and the columns that its reply is read in."""
    for row in range(len(prompt_ids)):
        prompt, reply = prompt_ids[row][prompt_mask[row]], reply_ids[row][reply_mask[row]]
        yield torch.cat([prompt, reply])[None], reply, slice(len(prompt) - 1, len(prompt) + len(reply) - 1)


def logprobs_of_each(model, *read):
    """Log-probabilities and entropies of every reply's tokens, one row at a time by the model's own forward."""
    found = []
    for ids, reply, at in each_pair(*read):
        logp = (model(ids, use_cache=False).logits[0, at] / 0.7).log_softmax(-1)
        found.append(torch.stack([logp.gather(-1, reply[:, None])[:, 0], -(logp.exp() * logp).sum(-1)]))
    return torch.cat(found, dim=1)


def logprobs_here(model, *read):
    found = response_logprobs(model, *read, temperature=0.7, with_entropy=True)
    assert not found.logp[~read[3]].any() and not found.entropy[~read[3]].any()
    return torch.stack([found.logp[read[3]], found.entropy[read[3]]])


@pytest.mark.parametrize("architecture", [*LIKE_LLAMA, *OWN_WAY])
def test_logprobs_and_entropies_from_several_groups_are_those_of_each_row(architecture, went, groups):
    agree(tiny(architecture), logprobs_here, logprobs_of_each, *PAIRS)
    assert [len(group) for group in groups[0]] == [3, 2, 1]
    assert bool(went) == (architecture in LIKE_LLAMA)


def values_of_each(scorer, *read):
    """Values of every reply's states, one row at a time by the trunk's own forward."""
    model = scorer.model
    rows = [model.base_model(ids, use_cache=False).last_hidden_state[0, at] for ids, _, at in each_pair(*read)]
    return model.score(torch.cat(rows))[:, 0]


@pytest.mark.parametrize("architecture", [*LIKE_LLAMA, *OWN_WAY])
def test_values_from_several_groups_are_those_of_each_row(architecture, went, groups):
    scorer = Scorer(model_with_head(tiny(architecture)))
    agree(scorer, lambda *read: response_values(*read)[PAIRS[3]], values_of_each, *PAIRS)
    assert [len(group) for group in groups[0]] == [3, 2, 1]
    assert bool(went) == (architecture in LIKE_LLAMA)


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
    others.append(tiny("llama", rope_parameters=LONGROPE))
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


@pytest.mark.parametrize("architecture", [*LIKE_LLAMA, *OWN_WAY])
def test_scores_are_those_of_each_row_alone(architecture, went, groups):
    """At every token, at some, and at the last one, whichever way a model goes."""
    scorer = Scorer(model_with_head(tiny(architecture)))

    def alone(scorer, ids, mask):
        model, rows = scorer.model, [row[real] for row, real in zip(ids, mask, strict=True)]
        return [model.score(model.base_model(row[None], use_cache=False).last_hidden_state)[0, :, 0] for row in rows]

    everywhere = lambda *read: Scorer.token_scores(*read)[MANY]
    agree(scorer, everywhere, lambda *read: torch.cat(alone(*read)), MANY_IDS, MANY)
    last = lambda *read: torch.stack([row[-1] for row in alone(*read)])
    agree(scorer, Scorer.sequence_scores, last, MANY_IDS, MANY)
    with torch.no_grad():
        found, some = scorer.token_scores(MANY_IDS, MANY), scorer.token_scores(MANY_IDS, MANY, MANY_WANTED)
    assert not found[~MANY].any()
    assert torch.allclose(some, found * MANY_WANTED, atol=1e-5)
    assert all(len(cut) > 1 for cut in groups) and len(groups) == 4
    assert bool(went) == (architecture in LIKE_LLAMA)


@pytest.mark.parametrize("architecture", ENCODERS)
def test_an_encoder_scores_rows_of_like_length_together(architecture, groups):
    torch.manual_seed(0)
    model = AutoModelForSequenceClassification.from_config(build_config(architecture, num_labels=1)).eval()
    scorer = Scorer(stirred(model), causal=False)

    def alone(scorer, ids, mask):
        return torch.cat([scorer.model(row[real][None]).logits[0] for row, real in zip(ids, mask, strict=True)])

    agree(scorer, Scorer.sequence_scores, alone, MANY_IDS, MANY)
    assert [len(group) for group in groups[0]] == [2, 1, 1, 1, 1]


def model_with_head(policy):
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
