"""Attention where torch's own is slow: bfloat16 on a CPU, whose fused kernel takes twice as long as in float32."""

from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import AttentionMaskInterface, sdpa_mask
from transformers.modeling_utils import AttentionInterface

NAME = "rlhf_lab_sdpa"


def attention(module, query, key, value, attention_mask, **options):
    """transformers' `sdpa`, in float32 where a CPU reads several tokens at once in bfloat16.

    query (B, H, Q, D), key and value (B, H or fewer, K, D), mask (B, 1 or H, Q, K), bool or added to the scores.
    -> (B, Q, H, D) in the query's dtype, and None for the weights. A single token keeps its dtype: reading the cache is
    what it costs, and float32 would double that.
    """
    dtype = query.dtype
    if query.device.type == "cpu" and dtype.itemsize == 2 and query.shape[2] > 1:
        query, key, value = query.float(), key.float(), value.float()
        if attention_mask is not None and attention_mask.is_floating_point():
            attention_mask = attention_mask.float()
    output, weights = sdpa_attention_forward(module, query, key, value, attention_mask, **options)
    return output.to(dtype), weights


def use_attention(model) -> None:
    """Let a model use it in place of `sdpa`; a model with another implementation keeps its own."""
    if model.config._attn_implementation == "sdpa" and model._can_set_attn_implementation():
        AttentionInterface.register(NAME, attention)
        AttentionMaskInterface.register(NAME, sdpa_mask)
        model.set_attn_implementation(NAME)
