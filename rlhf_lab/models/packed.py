"""A whole forward pass of a Llama-like model on real tokens alone, up to the hidden states that are asked for.

Norms, projections and feed-forward layers see the tokens of all rows one behind the other, without padding; attention
sees them row by row. The last layer is computed only where its output is wanted: of prompts it needs the keys and
values. What is computed is what the model computes, from its own layers, adapters in them included. Other models, and
those whose forward was changed, go through their own forward.
"""

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F
from transformers.models.llama.modeling_llama import LlamaModel
from transformers.models.mistral.modeling_mistral import MistralModel
from transformers.models.qwen2.modeling_qwen2 import Qwen2Model
from transformers.models.qwen3.modeling_qwen3 import Qwen3Model

from rlhf_lab.models.attention import NAME
from rlhf_lab.models.hidden import alike, changed
from rlhf_lab.models.llama_step import rms_norm

KINDS = (LlamaModel, MistralModel, Qwen2Model, Qwen3Model)
_PARTS = ("input_layernorm", "self_attn", "post_attention_layernorm", "mlp")


def qualifies(trunk) -> bool:
    """Whether `hidden_states` computes what this trunk of a model would."""
    if type(trunk) not in KINDS:
        return False
    config, rope = trunk.config, trunk.rotary_emb.rope_type
    if config.hidden_act != "silu" or config._attn_implementation not in ("sdpa", NAME):
        return False
    if "dynamic" in rope or rope == "longrope" or _slides(trunk):  # these look at how long the longest row is
        return False
    if getattr(trunk, "gradient_checkpointing", False):
        return False
    layers = list(trunk.layers)
    own = [trunk.norm, *layers, *(getattr(layer, name) for layer in layers for name in _PARTS)]
    if hasattr(layers[0].self_attn, "q_norm"):
        own += [norm for layer in layers for norm in (layer.self_attn.q_norm, layer.self_attn.k_norm)]
    if any(type(module).__module__ != type(trunk).__module__ for module in own):  # an adapter's own, say
        return False
    if any(layer.self_attn.training and layer.self_attn.attention_dropout for layer in layers):
        return False
    return not any(changed(module) for module in (trunk, *own, *(layer.mlp.act_fn for layer in layers)))


def _slides(trunk) -> bool:
    """Whether a layer looks back at some tokens only."""
    config = trunk.config
    if isinstance(trunk, MistralModel):
        return config.sliding_window is not None
    return any(kind != "full_attention" for kind in getattr(config, "layer_types", None) or [])


class _Group(NamedTuple):
    """Rows of like length, whose tokens lie one behind the other and attend together."""

    tokens: slice  # where they are among all tokens
    asked: slice  # where those asked for are among all that are
    slots: Tensor | None  # (n,) places of the tokens in rows of equal width; None: as they lie, without padding
    slots_asked: Tensor  # (m,)
    shape: tuple[int, int]  # rows and their width


def hidden_states(trunk, ids: Tensor, mask: Tensor, wanted: Tensor) -> Tensor:
    """Hidden states after the final norm at wanted positions: (B, L) ids, (B, L) bool, (B, L) bool -> (W, H).

    Rows are padded on either side or both; a wanted position is a real one. In the order of `wanted.nonzero()`.
    """
    lengths, many = mask.sum(dim=1).tolist(), wanted.sum(dim=1).tolist()
    found = alike(lengths, within=0.75)
    order = torch.tensor([row for rows in found for row in rows], device=ids.device)
    number = (wanted.flatten().cumsum(0) - 1).view(wanted.shape)[order]  # of each wanted position in what is returned
    ids, mask, wanted = ids[order], mask[order], wanted[order]
    places = (mask.long().cumsum(dim=1) - 1)[mask]  # (N,) each token's position in its row
    asked = wanted[mask].nonzero().squeeze(1)  # (W,) where in the tokens
    groups = _groups(found, lengths, many, places, asked)
    hidden = trunk.embed_tokens(ids[mask])
    cos, sin = (table[0, :, None] for table in trunk.rotary_emb(hidden[None], places[None]))
    half = cos.shape[-1] // 2
    turn = cos, torch.cat([-sin[..., :half], sin[..., half:]], dim=-1)
    for depth, layer in enumerate(trunk.layers):
        last = asked if depth == len(trunk.layers) - 1 else None
        read = _lowered(rms_norm(layer.input_layernorm, hidden))
        hidden = _rows(hidden, last) + _attend(layer.self_attn, read, turn, groups, last)
        read, mlp = _lowered(rms_norm(layer.post_attention_layernorm, hidden)), layer.mlp
        hidden = hidden + mlp.down_proj(F.silu(mlp.gate_proj(read)) * mlp.up_proj(read))
    return rms_norm(trunk.norm, hidden).index_select(0, number[wanted].argsort())


def _groups(found: list[list[int]], lengths: list[int], many: list[int], places: Tensor, asked: Tensor) -> list[_Group]:
    """The groups of rows, whose tokens follow one another in this order. many: tokens asked for in each row."""
    groups, first, before = [], 0, 0
    for rows in found:
        real = [lengths[row] for row in rows]
        width, n, m = max(real), sum(real), sum(many[row] for row in rows)
        slots = torch.repeat_interleave(torch.tensor(real, device=places.device), output_size=n) * width
        slots = slots + places[first : first + n]
        wanted = slots[asked[before : before + m] - first]
        tokens, padded = slice(first, first + n), n < len(rows) * width
        groups.append(_Group(tokens, slice(before, before + m), slots if padded else None, wanted, (len(rows), width)))
        first, before = first + n, before + m
    return groups


def _attend(attention, read: Tensor, turn, groups: list[_Group], last: Tensor | None) -> Tensor:
    """(N, H) -> (N, H), or (W, H) of the `last` tokens asked for."""
    width = attention.head_dim
    query = attention.q_proj(_rows(read, last)).unflatten(-1, (-1, width))
    key, value = (project(read).unflatten(-1, (-1, width)) for project in (attention.k_proj, attention.v_proj))
    if hasattr(attention, "q_norm"):
        query, key = rms_norm(attention.q_norm, query), rms_norm(attention.k_norm, key)
    query, key = _turned(query, *(_rows(part, last) for part in turn)), _turned(key, *turn)
    dtype = value.dtype
    kind = torch.float32 if value.device.type == "cpu" and dtype.itemsize == 2 else dtype  # see attention.py
    query, key, value = query.to(kind), key.to(kind), value.to(kind)
    many = query.shape[1] // key.shape[1]
    if many > 1:
        key, value = key.repeat_interleave(many, dim=1), value.repeat_interleave(many, dim=1)
    found = []
    for group in groups:
        ask, slots = (group.tokens, group.slots) if last is None else (group.asked, group.slots_asked)
        rows = _by_row(query[ask], slots, group.shape)
        seen = [_by_row(part[group.tokens], group.slots, group.shape) for part in (key, value)]
        with torch.autocast(query.device.type, enabled=False):
            # real tokens come first in their row, so a causal mask hides the padding behind them
            said = F.scaled_dot_product_attention(rows, *seen, is_causal=True, scale=attention.scaling)
        found.append(_rows(said.transpose(1, 2).flatten(0, 1).flatten(1), slots))
    return attention.o_proj(torch.cat(found).to(dtype))


def _lowered(x: Tensor) -> Tensor:
    """In autocast's precision where it is on: once, not in every product that reads it."""
    kind = x.device.type
    return x.to(torch.get_autocast_dtype(kind)) if torch.is_autocast_enabled(kind) else x


def _rows(x: Tensor, rows: Tensor | None) -> Tensor:
    return x if rows is None else x.index_select(0, rows)


def _by_row(x: Tensor, slots: Tensor | None, shape: tuple[int, int]) -> Tensor:
    """(N, heads, D) -> (B, heads, L, D), the tokens of each row first."""
    if slots is not None:
        x = x.new_zeros(shape[0] * shape[1], *x.shape[1:]).index_copy(0, slots, x)
    return x.unflatten(0, shape).transpose(1, 2)


def _turned(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    return x * cos + x.roll(x.shape[-1] // 2, -1) * sin
