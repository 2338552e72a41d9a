"""What is quicker computes what the plain way computes: every architecture, padding, masks, rows that leave."""

import copy

import pytest
import torch
from torch.nn import functional as F
from transformers import AutoModelForCausalLM, DynamicCache, MistralConfig
from transformers.cache_utils import DynamicLayer

from rlhf_lab.models import LoraConfig, SharedBase, generate, load_policy, load_tokenizer, save_policy
from rlhf_lab.models.attention import NAME, attention
from rlhf_lab.models.cache import RoomyLayer, roomy_cache
from rlhf_lab.models.llama_step import LlamaStep, qualifies

from .tiny_models import PAD, VOCABULARY, build_config

LIKE_LLAMA = ("llama", "qwen2", "qwen3", "mistral")


def tiny(architecture: str, **changes):
    torch.manual_seed(0)
    if architecture == "mistral":
        options = build_config("llama").to_dict()
        kept = ("vocab_size", "max_position_embeddings", "initializer_range", "hidden_size", "intermediate_size")
        kept += ("num_hidden_layers", "num_attention_heads", "num_key_value_heads")
        config = MistralConfig(**{name: options[name] for name in kept} | {"sliding_window": None} | changes)
    else:
        config = build_config(architecture, **{"attention_dropout": 0.0} | changes)
    model = AutoModelForCausalLM.from_config(config).eval()
    for name, weight in model.named_parameters():  # norms of ones and biases of zeros would hide a mistake
        if weight.dim() == 1:
            torch.nn.init.normal_(weight, mean=float("norm" in name), std=0.3)
    return model.requires_grad_(False)


def padded(*lengths: int):
    ids = torch.randint(3, VOCABULARY, (len(lengths), max(lengths)), generator=torch.Generator().manual_seed(1))
    return ids, torch.arange(max(lengths)) >= max(lengths) - torch.tensor(lengths)[:, None]


def plain_logits(model, rows: list[list[int]]) -> torch.Tensor:
    """The next token's logits of each row alone, without padding and without a cache."""
    return torch.stack([model(torch.tensor([row]), use_cache=False).logits[0, -1] for row in rows])


@pytest.mark.parametrize("architecture", LIKE_LLAMA)
@pytest.mark.parametrize("scaled", [False, True])
def test_a_llama_step_gives_the_logits_of_the_whole_row(architecture, scaled):
    rope = {"rope_type": "linear", "factor": 2.0} if scaled else {"rope_type": "default"}
    model = tiny(architecture, rope_parameters=rope | {"rope_theta": 10.0})
    ids, mask = padded(3, 7, 1, 5)
    cache = roomy_cache(model.config, 12)
    positions = (mask.long().cumsum(1) - 1).clamp(min=0)
    model(ids, attention_mask=mask.long(), position_ids=positions, past_key_values=cache, use_cache=True)
    assert qualifies(model, cache)
    step = LlamaStep(model, cache, mask.long(), 12)
    rows = [row[keep].tolist() for row, keep in zip(ids, mask, strict=True)]
    for number, token in enumerate(torch.randint(3, VOCABULARY, (4, 4), generator=torch.Generator().manual_seed(2)).T):
        if number == 2:  # two rows leave the batch
            left = torch.tensor([3, 0])
            step.keep(left)
            cache.reorder_cache(left)
            rows = [rows[3], rows[0]]
        token = token[: len(rows)]
        rows = [[*row, int(one)] for row, one in zip(rows, token, strict=True)]
        assert torch.allclose(step(token), plain_logits(model, rows), atol=2e-5)


def test_a_llama_step_in_bfloat16_is_as_near_as_the_models_own():
    model = tiny("llama")
    ids, mask = padded(6, 6)
    caches = roomy_cache(model.config, 8), DynamicCache(config=model.config)
    token = torch.tensor([5, 9])
    with torch.autocast("cpu", dtype=torch.bfloat16):
        for cache in caches:
            model(ids, past_key_values=cache, use_cache=True)
        ours = LlamaStep(model, caches[0], mask.long(), 8)(token).float()
        theirs = model(token[:, None], past_key_values=caches[1], use_cache=True).logits[:, -1].float()
    exact = plain_logits(model, [[*row, int(one)] for row, one in zip(ids.tolist(), token, strict=True)])
    assert (ours - exact).abs().max() <= 2 * (theirs - exact).abs().max()


@pytest.mark.parametrize("architecture", [*LIKE_LLAMA, "gpt2", "gpt_neox", "bloom", "gemma", "gemma2", "gemma3"])
def test_replies_are_those_of_the_plain_way(architecture):
    """The most likely tokens, one row at a time, each found by reading the whole row anew."""
    model = tiny(architecture)
    ids, mask = padded(3, 8, 5)
    rows = [row[keep].tolist() for row, keep in zip(ids, mask, strict=True)]
    for _ in range(9):
        rows = [[*row, int(best)] for row, best in zip(rows, plain_logits(model, rows).argmax(-1), strict=True)]
    found = generate(model, ids, mask, max_new_tokens=9, temperature=0, eos_id=-1, pad_id=PAD)
    assert found.response_ids.tolist() == [row[-9:] for row in rows]


def test_what_a_llama_step_does_not_compute_goes_the_models_own_way(llama_dir, capsys, monkeypatch):
    monkeypatch.setattr("rlhf_lab.models.inputs._told", set())
    llama = tiny("llama")
    cache = roomy_cache(llama.config, 4)
    hooked = copy.deepcopy(llama)
    hooked.model.layers[0].mlp.register_forward_hook(lambda *_: None)
    patched = copy.deepcopy(llama)
    patched.forward = llama.forward
    inside = copy.deepcopy(llama)
    inside.model.layers[1].mlp.forward = llama.model.layers[1].mlp.forward
    sliding = tiny("mistral", sliding_window=3)
    for other in (hooked, patched, inside, tiny("gpt2"), tiny("llama", hidden_act="gelu")):
        assert not qualifies(other, cache)
    assert not qualifies(sliding, roomy_cache(sliding.config, 4))
    assert qualifies(llama, cache)
    shared = SharedBase(str(llama_dir)).policy(LoraConfig(rank=2, alpha=4))
    ids, mask = padded(3, 4)
    for _ in range(2):
        generate(shared, ids, mask, max_new_tokens=3, eos_id=-1, pad_id=PAD)
    assert capsys.readouterr().out.count("goes through its own forward") == 1


def test_a_cache_with_room_holds_what_transformers_holds():
    ours, theirs = RoomyLayer(9), DynamicLayer()
    for tokens in (4, 1, 3):
        keys, values = torch.randn(2, 3, tokens, 5), torch.randn(2, 3, tokens, 7)
        for one, other in zip(ours.update(keys, values), theirs.update(keys, values), strict=True):
            assert torch.equal(one, other)
        assert ours.get_seq_length() == theirs.get_seq_length()
        assert ours.get_mask_sizes(1) == theirs.get_mask_sizes(1)
        for layer in (ours, theirs):
            layer.reorder_cache(torch.tensor([1, 1]))


class Asking(torch.nn.Module):
    """What transformers' attention functions read of a module."""

    num_key_value_groups, is_causal, training = 2, True, False


@pytest.mark.parametrize("kind", ["none", "bool", "added"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_attention_is_that_of_the_formula(kind, dtype):
    torch.manual_seed(0)
    query, (key, value) = torch.randn(2, 4, 6, 8), torch.randn(2, 2, 2, 6, 8)
    seen = torch.ones(6, 6, dtype=torch.bool).tril().expand(2, 1, 6, 6).clone()
    seen[0, :, 2:, 1] = kind == "none"  # and one key that no later token may see
    added = torch.zeros(2, 1, 6, 6).masked_fill(~seen, float("-inf"))
    mask = {"none": None, "bool": seen, "added": added.to(dtype)}[kind]
    asked = [part.to(dtype) for part in (query, key, value)]
    found, _ = attention(Asking(), *asked, mask, scaling=0.3)
    query, key, value = (part.float() for part in asked)
    key, value = key.repeat_interleave(2, 1), value.repeat_interleave(2, 1)
    wanted = ((query @ key.transpose(2, 3) * 0.3 + added).softmax(-1) @ value).transpose(1, 2)
    assert found.dtype == dtype
    assert torch.allclose(found.float(), wanted.to(dtype).float(), atol=1e-6 if dtype == torch.float32 else 1e-2)


def test_in_bfloat16_several_tokens_are_read_in_float32_and_one_is_not(monkeypatch):
    kinds = []
    plain = F.scaled_dot_product_attention
    monkeypatch.setattr(
        F, "scaled_dot_product_attention", lambda q, *rest, **more: kinds.append(q.dtype) or plain(q, *rest, **more)
    )
    key = torch.randn(1, 2, 5, 8).bfloat16()
    for query in (key.repeat_interleave(2, 1), key.repeat_interleave(2, 1)[:, :, :1]):
        attention(Asking(), query, key, key, None)
    assert kinds == [torch.float32, torch.bfloat16]


def test_a_saved_model_knows_nothing_of_our_attention(policy_dir, tmp_path):
    policy = load_policy(policy_dir)
    assert policy.config._attn_implementation in (NAME, "eager")
    save_policy(tmp_path / "saved", policy, load_tokenizer(policy_dir))
    assert NAME not in (tmp_path / "saved" / "config.json").read_text()
