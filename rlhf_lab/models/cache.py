"""The keys and values of a reply that grows, in memory that is taken once.

transformers' own cache makes all of it anew for every token. Layers of a kind of their own (sliding windows, states)
keep transformers' cache.
"""

import torch
from torch import Tensor
from transformers import DynamicCache, PreTrainedConfig
from transformers.cache_utils import DynamicLayer


class RoomyLayer(DynamicLayer):
    """A layer's keys and values (B, H, n, D): the first n of `room` places."""

    is_croppable = False

    def __init__(self, room: int):
        super().__init__()
        self.room, self.filled = room, 0

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        self.dtype, self.device = key_states.dtype, key_states.device
        self._keys, self._values = (_with_room(states, self.room) for states in (key_states, value_states))
        self.is_initialized = True

    def update(self, key_states: Tensor, value_states: Tensor, *args, **kwargs) -> tuple[Tensor, Tensor]:
        """Append states (B, H, m, D); all of them so far."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        end = self.filled + key_states.shape[2]
        self._keys[:, :, self.filled : end] = key_states
        self._values[:, :, self.filled : end] = value_states
        self.filled = end
        self.keys, self.values = self._keys[:, :, :end], self._values[:, :, :end]
        return self.keys, self.values

    def get_seq_length(self) -> int:
        """Tokens so far."""
        return self.filled

    def reorder_cache(self, beam_idx: Tensor) -> None:
        """Go on with these rows."""
        self._keys, self._values = self._keys.index_select(0, beam_idx), self._values.index_select(0, beam_idx)


def roomy_cache(config, room: int) -> DynamicCache | None:
    """An empty cache for `room` tokens a row, by a model's config; None if that is not transformers'."""
    if not isinstance(config, PreTrainedConfig):
        return None
    cache = DynamicCache(config=config)
    cache.layers = [RoomyLayer(room) if type(layer) is DynamicLayer else layer for layer in cache.layers]
    return cache


def _with_room(states: Tensor, room: int) -> Tensor:
    batch, heads, _, width = states.shape
    return torch.empty(batch, heads, room, width, dtype=states.dtype, device=states.device)
