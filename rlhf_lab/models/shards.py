"""Models of several processes: which one writes them, and weights of which each keeps a part (FSDP2)."""

from typing import Any

import torch


def whole(value: Any) -> Any:
    """A tensor in shards in one piece on the CPU, also in dicts and lists; all else as it is. Every process calls."""
    if isinstance(value, dict):
        return {name: whole(part) for name, part in value.items()}
    if type(value) in (list, tuple):
        return type(value)(whole(part) for part in value)
    return value.full_tensor().cpu() if hasattr(value, "full_tensor") else value


def like(value: torch.Tensor, model: torch.Tensor) -> torch.Tensor:
    """A whole tensor in shards like those of `model`, or whole where that is, on its device."""
    if not hasattr(model, "full_tensor"):
        return value.to(model.device)
    from torch.distributed.tensor import distribute_tensor

    return distribute_tensor(value.to(model.device), model.device_mesh, model.placements)


def writes_models() -> bool:
    """Whether this process writes models: of several that train together only the first does, as in transformers."""
    distributed = torch.distributed
    return not (distributed.is_available() and distributed.is_initialized() and distributed.get_rank())


def in_shards(model) -> bool:
    """Whether the processes share this model's weights: all must then take as many passes through it."""
    return any(hasattr(weight, "full_tensor") for weight in model.parameters())


def save_options(model) -> dict[str, Any]:
    """What `save_pretrained` must be told: nothing, or the weights in one piece where they are in shards."""
    return {"state_dict": whole(model.state_dict())} if in_shards(model) else {}
