"""Policies, reward models, critics and their adapters: loading, forward passes, generation, precision, saving."""

from rlhf_lab.models.adapters import AdapterPolicy, LoraConfig, SharedBase, merge_adapter
from rlhf_lab.models.forward import TokenLogprobs, response_logprobs, response_value_outputs, response_values
from rlhf_lab.models.generation import Generation, generate
from rlhf_lab.models.loading import load_policy, load_tokenizer
from rlhf_lab.models.precision import autocast, resolve_precision
from rlhf_lab.models.saving import save_policy
from rlhf_lab.models.scorer import Scorer, load_scorer, shared_scorer

__all__ = [
    "AdapterPolicy",
    "Generation",
    "LoraConfig",
    "Scorer",
    "SharedBase",
    "TokenLogprobs",
    "autocast",
    "generate",
    "load_policy",
    "load_scorer",
    "load_tokenizer",
    "merge_adapter",
    "resolve_precision",
    "response_logprobs",
    "response_value_outputs",
    "response_values",
    "save_policy",
    "shared_scorer",
]
