"""What is quicker computes what the plain way computes: every architecture, padding, masks, rows that leave."""

import copy

import pytest
import torch
from torch.nn import functional as F
from transformers import AutoModel, AutoModelForCausalLM, DynamicCache, MistralConfig
from transformers.cache_utils import DynamicLayer

from rlhf_lab.models import LoraConfig, SharedBase, generate, load_policy, load_tokenizer, save_policy
from rlhf_lab.models.attention import NAME, attention, use_attention
from rlhf_lab.models.cache import RoomyLayer, roomy_cache
from rlhf_lab.models.generation import pick_tokens, uniforms
from rlhf_lab.models.inputs import positions
from rlhf_lab.models.llama_step import LlamaStep, qualifies

from .tiny_models import ENCODERS, OWN_WAY, PAD, VOCABULARY, build_config

LIKE_LLAMA = ("llama", "qwen2", "qwen3", "mistral")
ROPES = {
    "plain": {"rope_type": "default"},
    "linear": {"rope_type": "linear", "factor": 2.0},
    "llama3": {"rope_type": "llama3", "factor": 4.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
               "original_max_position_embeddings": 16},
    "yarn": {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16},
}  # fmt: skip
LONGROPE = {"rope_type": "longrope", "rope_theta": 10.0, "short_factor": [1.0] * 4, "long_factor": [2.0] * 4,
            "original_max_position_embeddings": 4, "factor": 2.0}  # fmt: skip
VARIANTS = {name: {"rope_parameters": rope | {"rope_theta": 10.0}} for name, rope in ROPES.items()} | {
    "wide heads": {"head_dim": 12},
    "one head of keys": {"num_key_value_heads": 1},
    "biases": {"attention_bias": True, "mlp_bias": True},  # where a kind knows them
}


def tiny(architecture: str, **changes):
    torch.manual_seed(0)
    if architecture == "mistral":
        options = build_config("llama").to_dict()
        kept = ("vocab_size", "max_position_embeddings", "initializer_range", "hidden_size", "intermediate_size")
        kept += ("num_hidden_layers", "num_attention_heads", "num_key_value_heads")
        config = MistralConfig(**{name: options[name] for name in kept} | {"sliding_window": None} | changes)
    else:
        config = build_config(architecture, **{"attention_dropout": 0.0} | changes)
    return stirred(AutoModelForCausalLM.from_config(config).eval())


def stirred(model):
    """Norms of ones and biases of zeros would hide a mistake."""
    for name, weight in model.named_parameters():
        if weight.dim() == 1:
            torch.nn.init.normal_(weight, mean=float("norm" in name), std=0.3)
    return model.requires_grad_(False)


def padded(*lengths: int):
    ids = torch.randint(3, VOCABULARY, (len(lengths), max(lengths)), generator=torch.Generator().manual_seed(1))
    return ids, torch.arange(max(lengths)) >= max(lengths) - torch.tensor(lengths)[:, None]


def plain_logits(model, rows: list[list[int]]) -> torch.Tensor:
    """The next token's logits of each row alone, without padding and without a cache."""
    return torch.stack([model(torch.tensor([row]), use_cache=False).logits[0, -1] for row in rows])


def steps(model, *lengths: int):
    """Four times one token more to every row -> each time the logits and the rows that they are of.

    After the second, half of the rows leave the batch.
    """
    ids, mask = padded(*lengths)
    room = max(lengths) + 4
    cache = roomy_cache(model.config, room)
    read = {"attention_mask": mask.long(), "position_ids": positions(mask)}
    model(ids, **read, past_key_values=cache, use_cache=True)
    assert qualifies(model, cache)
    step = LlamaStep(model, cache, mask.long(), room)
    rows = [row[keep].tolist() for row, keep in zip(ids, mask, strict=True)]
    drawn = torch.randint(3, VOCABULARY, (len(rows), 4), generator=torch.Generator().manual_seed(2))
    for number, token in enumerate(drawn.T):
        if number == 2:
            left = torch.arange(len(rows)).flip(0)[::2]
            step.keep(left)
            cache.reorder_cache(left)
            rows = rows[::-2]
        token = token[: len(rows)]
        rows = [[*row, int(one)] for row, one in zip(rows, token, strict=True)]
        yield step(token), rows


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("architecture", LIKE_LLAMA)
def test_a_llama_step_gives_the_logits_of_the_whole_row(architecture, variant):
    model = tiny(architecture, **VARIANTS[variant])
    for logits, rows in steps(model, 3, 7, 1, 5):
        assert torch.allclose(logits, plain_logits(model, rows), atol=2e-5)


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("architecture", LIKE_LLAMA)
def test_a_llama_step_in_bfloat16_is_as_near_as_the_models_own(architecture, variant):
    """Its logits, and the tokens that are said by them, against whole rows under the same autocast."""
    model = tiny(architecture, **VARIANTS[variant])
    use_attention(model)  # as a policy that was loaded has
    ids, mask = padded(3, 8, 5)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = list(steps(model, 3, 7, 1, 5, 9, 2, 6, 4))
        theirs = torch.cat([plain_logits(model, rows) for _, rows in found]).float()
        said = generate(model, ids, mask, max_new_tokens=9, temperature=0, eos_id=-1, pad_id=PAD).response_ids
        whole = [torch.cat([row[keep], reply]) for row, keep, reply in zip(ids, mask, said, strict=True)]
        rated = torch.cat([model(row[None], use_cache=False).logits[0, -10:-1] for row in whole]).float()
    ours, exact = (
        torch.cat(part).float() for part in zip(*((o, plain_logits(model, r)) for o, r in found), strict=True)
    )
    assert (ours - exact).abs().mean() <= 1.5 * (theirs - exact).abs().mean()
    assert (ours - theirs).abs().max() <= 0.2 * exact.std()  # of 8 bits each, in two layers
    short = rated.amax(-1) - rated.gather(-1, said.flatten()[:, None])[:, 0]
    assert short.max() <= 0.2 * exact.std()  # what is said is the likeliest, or as good as that


@pytest.mark.parametrize("temperature", [0, 1])
def test_where_the_longest_row_decides_how_far_keys_turn_the_model_samples_its_own_way(temperature):
    """The prompts are short for longrope, the replies long: keys of both kinds lie in the cache."""
    model = tiny("llama", rope_parameters=LONGROPE | {"original_max_position_embeddings": 9})
    ids, mask = padded(3, 5, 4)
    draws = uniforms(3, 9, torch.Generator().manual_seed(3))
    cache, seen, token, said = DynamicCache(config=model.config), mask.long(), ids, []
    for step in range(9):
        read = {"attention_mask": seen, "position_ids": positions(seen)[:, -token.shape[1] :]}
        logits = model(token, **read, past_key_values=cache, use_cache=True).logits[:, -1]
        token = pick_tokens(logits, draws[:, step], temperature=temperature, top_p=1.0)[:, None]
        seen = F.pad(seen, (0, 1), value=1)
        said.append(token)
    options = {"max_new_tokens": 9, "temperature": temperature, "eos_id": -1, "pad_id": PAD}
    assert torch.equal(generate(model, ids, mask, draws=draws, **options).response_ids, torch.cat(said, dim=1))


@pytest.mark.parametrize("architecture", [*LIKE_LLAMA, *OWN_WAY])
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
    turning = [tiny("llama", rope_parameters=rope) for rope in (LONGROPE, {"rope_type": "dynamic", "factor": 2.0})]
    for other in (hooked, patched, inside, *turning, tiny("gpt2"), tiny("llama", hidden_act="gelu")):
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


def in_float32(query, *rest, **more) -> bool:
    """Stands where torch's attention does: whether it would be computed in float32."""
    return query.dtype == torch.float32 and not torch.is_autocast_enabled("cpu")


def watched(monkeypatch) -> list[bool]:
    found, plain = [], F.scaled_dot_product_attention
    monkeypatch.setattr(
        F, "scaled_dot_product_attention", lambda *a, **more: found.append(in_float32(*a)) or plain(*a, **more)
    )
    return found


def test_in_bfloat16_several_tokens_are_read_in_float32_and_one_is_not(monkeypatch):
    found = watched(monkeypatch)
    key = torch.randn(1, 2, 5, 8).bfloat16()
    for query in (key.repeat_interleave(2, 1), key.repeat_interleave(2, 1)[:, :, :1]):
        attention(Asking(), query, key, key, None)
    assert found == [True, False]


@pytest.mark.parametrize("architecture", ["llama", "qwen3", "gpt2", "gpt_neox", "bert", "roberta"])
def test_under_autocast_every_layer_attends_in_float32(architecture, monkeypatch):
    config = build_config(architecture)
    model = (AutoModel if architecture in ENCODERS else AutoModelForCausalLM).from_config(config).eval()
    use_attention(model)
    found, (ids, mask) = watched(monkeypatch), padded(3, 8, 5)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        model(ids, attention_mask=mask)
    assert found == [True] * config.num_hidden_layers


def test_a_saved_model_knows_nothing_of_our_attention(policy_dir, tmp_path):
    policy = load_policy(policy_dir)
    assert policy.config._attn_implementation in (NAME, "eager")
    save_policy(tmp_path / "saved", policy, load_tokenizer(policy_dir))
    assert NAME not in (tmp_path / "saved" / "config.json").read_text()
