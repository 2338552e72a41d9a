"""Hidden states of a trunk, a model without its head, where they are asked for: no work on padding that can be spared.

Models like Llama read real tokens alone (`packed.py`). Others go through their own forward, rows of like length
together: padding costs as much as text.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from rlhf_lab.models.inputs import model_inputs, tell_once
from rlhf_lab.models.shards import in_shards

_OWN_WAY = "reading: {} goes through its own forward; only plain models like Llama spare padding"


def hidden_states(trunk, ids: Tensor, mask: Tensor, wanted: Tensor) -> Tensor:
    """The last hidden states at wanted positions.

    ids (B, L), mask (B, L) bool, padded on either side, wanted (B, L) bool, real ones only -> (W, H), in the order of
    `wanted.nonzero()`; differentiable. Errors as in `model_inputs`.
    """
    if reads_packed(trunk):
        from rlhf_lab.models import packed  # here and not above: transformers takes seconds to import

        return packed.hidden_states(trunk, model_inputs(trunk, ids, mask)["input_ids"], mask, wanted)
    number = (wanted.flatten().cumsum(0) - 1).view(wanted.shape)  # of each wanted position in the order of the result
    found, order = [], []
    for rows in like_length(trunk, mask):
        real, asked = mask[rows], wanted[rows]
        used = real.any(dim=0)
        inputs = model_inputs(trunk, ids[rows][:, used], real[:, used])
        found.append(trunk(**inputs, use_cache=False).last_hidden_state[asked[:, used]])
        order.append(number[rows][asked])
    return torch.cat(found)[torch.cat(order).argsort()]


def reads_packed(trunk) -> bool:
    """Whether a trunk reads real tokens alone. That it does not is told once."""
    from rlhf_lab.models import packed

    if packed.qualifies(trunk):
        return True
    tell_once(_OWN_WAY.format(type(trunk).__name__))
    return False


def trunk_and_head(model):
    """Both of a language model whose head can be applied to some hidden states of its trunk alone; else None."""
    from rlhf_lab.models.llama_step import KINDS

    inner = model
    if hasattr(model, "get_base_model"):  # adapters lie in the layers, but for those that PEFT applies from outside
        settings = getattr(model, "active_peft_config", None)
        outside = settings and (settings.is_prompt_learning or getattr(settings, "alora_invocation_tokens", None))
        if outside or changed(model):
            return None
        inner = model.get_base_model()
    if type(inner) not in KINDS or changed(inner):  # others may do more behind the head
        tell_once(_OWN_WAY.format(type(inner).__name__))
        return None
    return (inner.model, inner.lm_head) if reads_packed(inner.model) else None


def changed(module) -> bool:
    """Whether a module's forward was patched, or something looks at it or alters it."""
    hooks = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
    return "forward" in vars(module) or any(getattr(module, name) for name in hooks)


def like_length(model, mask: Tensor) -> list[Tensor]:
    """Groups of the rows of a mask (B, L) to be read together. In shards: all, as every process must call as often."""
    if in_shards(model):
        return [torch.arange(len(mask), device=mask.device)]
    return [torch.tensor(group, device=mask.device) for group in alike(mask.sum(dim=1).tolist())]


def alike(lengths: Sequence[int], *, within: float = 0.9, least: int = 1024) -> list[list[int]]:
    """The indices of the lengths, longest first, in groups whose shortest is at least `within` of their longest.

    least: tokens below which a group takes in shorter rows too; a call has a cost of its own.
    """
    groups: list[list[int]] = []
    for i in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        group = groups[-1] if groups else []
        longest = lengths[group[0]] if group else 0
        if not group or (lengths[i] < within * longest and len(group) * longest >= least):
            groups.append([])
        groups[-1].append(i)
    return groups


def spread(flat: Tensor, mask: Tensor) -> Tensor:
    """(W, ...) -> (B, L, ...): what belongs to the W real places of a mask (B, L), 0 elsewhere. Differentiable."""
    return flat.new_zeros(*mask.shape, *flat.shape[1:]).index_put((mask,), flat)
