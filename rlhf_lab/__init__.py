"""A workbench for research on reinforcement learning from human feedback.

Names are loaded when first used, so that `import rlhf_lab` stays light: it loads neither transformers nor trl.
"""

import importlib

__version__ = "0.1.0"

_HOME = {}


def __getattr__(name: str):
    if name not in _HOME:
        raise AttributeError(f"module 'rlhf_lab' has no attribute '{name}'")
    return getattr(importlib.import_module(_HOME[name]), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOME])
