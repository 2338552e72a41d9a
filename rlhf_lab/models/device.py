"""Where models are loaded to: the CPU, or what RLHF_LAB_DEVICE names, such as cuda. All else follows the models."""

import os

import torch

from rlhf_lab.errors import LabError

VARIABLE = "RLHF_LAB_DEVICE"  # in the environment: an experiment file does not know the machine it runs on


def named() -> str:
    """What RLHF_LAB_DEVICE says: `cpu` where it is not set. Asks no driver."""
    return os.environ.get(VARIABLE) or "cpu"


def device() -> torch.device:
    """The device of RLHF_LAB_DEVICE; the CPU where it is not set.

    In each of several launched processes `cuda` is the card that accelerate has given it.
    Errors: `LabError` for what is no device or not there, for a card by its number, and for one process that sees
    several cards: transformers' trainers take all they see.
    """
    name = named()
    try:
        torch.empty(0, device=name)
    except (RuntimeError, AssertionError):  # torch without CUDA asserts
        raise LabError(f"{VARIABLE}={name}: torch finds no such device here; unset it to compute on the CPU") from None
    alone = os.environ.get("WORLD_SIZE", "1") == "1"
    if ":" in name or (name == "cuda" and alone and torch.cuda.device_count() > 1):
        kind = name.split(":")[0]
        raise LabError(f"{VARIABLE}={name}: choose one card by CUDA_VISIBLE_DEVICES=0 and {VARIABLE}={kind}")
    return torch.device(name)
