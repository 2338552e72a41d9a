"""Attention where torch's own is slow: bfloat16 on a CPU, whose backward pass takes up to four times what float32 does.

That is so for heads of 16 and 32 numbers, where float32 is right; at 64 numbers a head both take the same time to
within a sixth, forward and backward, as reading alone does at all widths.
"""

import torch
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import AttentionMaskInterface, sdpa_mask
from transformers.modeling_utils import AttentionInterface

NAME = "rlhf_lab_sdpa"


def attention(module, query, key, value, attention_mask, **options):
    """transformers' `sdpa`, in float32 where a CPU reads several tokens at once in bfloat16.

    query (B, H, Q, D), key and value (B, H or fewer, K, D), mask (B, 1 or H, Q, K), bool or added to the scores.
    -> (B, Q, H, D) in the run's dtype, and None for the weights. A single token keeps its dtype: reading the cache is
    what it costs, and float32 would double that.
    """
    lowered = torch.is_autocast_enabled("cpu")  # then a rotation or a cache may have left them in float32
    dtype = torch.get_autocast_dtype("cpu") if lowered else value.dtype
    if value.device.type != "cpu" or dtype.itemsize != 2 or query.shape[2] == 1:
        return sdpa_attention_forward(module, query, key, value, attention_mask, **options)
    if attention_mask is not None and attention_mask.is_floating_point():
        attention_mask = attention_mask.float()
    with torch.autocast("cpu", enabled=False):  # it would take them back to bfloat16
        whole = query.float(), key.float(), value.float()
        output, weights = sdpa_attention_forward(module, *whole, attention_mask, **options)
    return output.to(dtype), weights


def use_attention(model) -> None:
    """Let a model use it in place of `sdpa`; a model with another implementation keeps its own."""
    if model.config._attn_implementation == "sdpa" and model._can_set_attn_implementation():
        AttentionInterface.register(NAME, attention)
        AttentionMaskInterface.register(NAME, sdpa_mask)
        model.set_attn_implementation(NAME)
