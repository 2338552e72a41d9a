"""Keys stay out of what a run writes and of what is said of it, wherever an error or a config might carry one."""

import os
import re

_NAME = re.compile(r"(?:KEY|TOKEN|SECRET|PASSWORD|PASSWD)$", re.IGNORECASE)
_SHORTEST = 16  # shorter values are words that a text may hold by chance


def redact(text: str) -> str:
    """The text with the values of WANDB_API_KEY, HF_TOKEN and all variables so named replaced by <the name>."""
    for name, value in os.environ.items():
        if len(value) >= _SHORTEST and value in text and _NAME.search(name):
            text = text.replace(value, f"<{name}>")
    return text
