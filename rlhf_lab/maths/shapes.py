"""The check with which every function of this room begins."""

import torch
from torch import Tensor


def check_shapes(caller: str, axes: str, **tensors: Tensor | None) -> None:
    """Stop unless all tensors have one shape, with one axis per letter of `axes` ("" allows any number).

    Tensors that are None are left out; the one called `mask` must be bool. Raises ValueError, one line with
    every shape.
    """
    given = {name: tensor for name, tensor in tensors.items() if tensor is not None}
    shapes = {tuple(tensor.shape) for tensor in given.values()}
    if len(shapes) > 1 or (axes and len(next(iter(shapes))) != len(axes)):
        found = ", ".join(f"{name} {tuple(tensor.shape)}" for name, tensor in given.items())
        wanted = f"shape ({', '.join(axes)})" if axes else "one shape"
        raise ValueError(f"{caller}: wants {wanted}, got {found}")
    if "mask" in given and given["mask"].dtype != torch.bool:
        raise ValueError(f"{caller}: mask must be bool (True = counts), got {given['mask'].dtype}")
