"""Where models are loaded to: the CPU, or what RLHF_LAB_DEVICE names. Everything else follows the models."""

import os

import torch

from rlhf_lab.errors import LabError

VARIABLE = "RLHF_LAB_DEVICE"  # in the environment: an experiment file does not know the machine it runs on


def device() -> torch.device:
    """The device of RLHF_LAB_DEVICE, such as cuda or cuda:1; the CPU where it is not set.

    In each of several launched processes `cuda` is the card that accelerate has given it.
    Errors: `LabError` for what is no device, or not there.
    """
    name = os.environ.get(VARIABLE) or "cpu"
    try:
        torch.empty(0, device=name)
    except (RuntimeError, AssertionError):  # torch without CUDA asserts
        raise LabError(f"{VARIABLE}={name}: torch finds no such device here; unset it to compute on the CPU") from None
    return torch.device(name)
