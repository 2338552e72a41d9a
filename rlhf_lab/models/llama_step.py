"""One more token for every row of a Llama-like model, without what transformers does around it.

A small model spends most of a step in Python and in masks that are made anew. What is computed is the same, from the
model's own weights; models of other kinds, with adapters, hooks or a patched forward go through their own forward.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import LlamaForCausalLM, MistralForCausalLM, Qwen2ForCausalLM, Qwen3ForCausalLM

from rlhf_lab.models.attention import NAME
from rlhf_lab.models.cache import RoomyLayer
from rlhf_lab.models.hidden import changed

_SDPA = ("sdpa", NAME)
KINDS = (LlamaForCausalLM, MistralForCausalLM, Qwen2ForCausalLM, Qwen3ForCausalLM)


def qualifies(model, cache) -> bool:
    """Whether `LlamaStep` computes what the model would."""
    if type(model) not in KINDS or model.config.hidden_act != "silu":
        return False
    if cache is None or any(type(layer) is not RoomyLayer for layer in cache.layers):
        return False
    rope = model.model.rotary_emb.rope_type
    if "dynamic" in rope or rope == "longrope" or model.config._attn_implementation not in _SDPA:
        return False  # these turn by how long the longest row is; one table over all the room would not
    return all(_is_plain(module) for module in model.modules())


def _is_plain(module: nn.Module) -> bool:
    linear = not isinstance(module, nn.Linear) or type(module) is nn.Linear  # an adapter's layer is another kind
    weights = [weight for weight in module._parameters.values() if weight is not None]
    return linear and not changed(module) and all(type(weight) is nn.Parameter for weight in weights)


class LlamaStep:
    """The rows of a batch behind their prompts. The cache was filled with these by the model itself."""

    def __init__(self, model, cache, mask: Tensor, room: int):
        """mask (B, P): the prompts' real tokens; room: tokens that a row may come to."""
        self.model, self.cache, config = model, cache, model.config
        self.heads, self.groups = config.num_attention_heads, config.num_key_value_heads
        self.width = model.model.layers[0].self_attn.head_dim
        places = torch.arange(room, device=mask.device)[None]
        some = model.model.embed_tokens.weight[:1, None]  # only its kind is asked for
        cos, sin = model.model.rotary_emb(some, places)
        half = self.width // 2
        self.cos, self.sin = cos[0], torch.cat([-sin[0, :, :half], sin[0, :, half:]], dim=-1)
        self.position = mask.sum(dim=1)
        hidden = torch.zeros(len(mask), 1, 1, room, device=mask.device)
        self.bias = hidden.masked_fill_(F.pad(mask == 0, (0, room - mask.shape[1]))[:, None, None], float("-inf"))

    def keep(self, rows: Tensor) -> None:
        """Go on with these rows only; the cache is the caller's to cut."""
        self.position, self.bias = self.position[rows], self.bias[rows]

    def __call__(self, token: Tensor) -> Tensor:
        """Append a token (B,) to every row -> (B, V) logits of the next."""
        inner = self.model.model
        cos, sin = self.cos[self.position][:, None], self.sin[self.position][:, None]
        hidden = inner.embed_tokens.weight[token]
        for layer, kept in zip(inner.layers, self.cache.layers, strict=True):
            hidden = hidden + self._attend(layer.self_attn, rms_norm(layer.input_layernorm, hidden), cos, sin, kept)
            read, mlp = rms_norm(layer.post_attention_layernorm, hidden), layer.mlp
            hidden = hidden + _linear(mlp.down_proj, F.silu(_linear(mlp.gate_proj, read)) * _linear(mlp.up_proj, read))
        self.position = self.position + 1
        return _linear(self.model.lm_head, rms_norm(inner.norm, hidden))

    def _attend(self, attention, hidden: Tensor, cos: Tensor, sin: Tensor, kept: RoomyLayer) -> Tensor:
        """(B, H) -> (B, H): every head over the keys of its group."""
        batch = len(hidden)
        query, key = (_linear(p, hidden).view(batch, -1, self.width) for p in (attention.q_proj, attention.k_proj))
        if hasattr(attention, "q_norm"):
            query, key = rms_norm(attention.q_norm, query), rms_norm(attention.k_norm, key)
        query, key = (x * cos + x.roll(self.width // 2, -1) * sin for x in (query, key))
        value = _linear(attention.v_proj, hidden).view(batch, self.groups, 1, self.width)
        keys, values = kept.update(key[:, :, None], value)
        query = query.view(batch, self.groups, self.heads // self.groups, self.width) * attention.scaling
        scores = torch.matmul(query.to(keys.dtype), keys.transpose(2, 3)) + self.bias[..., : keys.shape[2]]
        read = torch.matmul(scores.softmax(dim=-1).to(values.dtype), values)
        return _linear(attention.o_proj, read.view(batch, self.heads * self.width))


def _linear(module: nn.Linear, x: Tensor) -> Tensor:
    return F.linear(x, module.weight, module.bias)


def rms_norm(module, x: Tensor) -> Tensor:
    """The norm of a Llama-like model's module over the last axis, in the dtype of its weight."""
    return F.rms_norm(x.to(module.weight.dtype), x.shape[-1:], module.weight, module.variance_epsilon)
