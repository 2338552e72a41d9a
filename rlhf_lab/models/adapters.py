"""LoRA: policy, reference, critic and reward model as small adapters and heads on one shared base.

The base is in memory once and never changes. A role is the base with its own adapter switched on, and looks to
everything else like the model it stands for. The switch is thrown before each forward pass and stays; the graph of a
pass holds the weights it was made with, so a backward may come after the switch. Only recomputation in the backward
(gradient checkpointing) would go through the wrong adapter, and is refused.
"""

import copy
import os
import warnings
from collections.abc import Sequence
from typing import Annotated, Literal

import torch
from pydantic import BeforeValidator, Field
from torch import Tensor, nn

from rlhf_lab.config import Config
from rlhf_lab.errors import LabError
from rlhf_lab.models.adapter_files import adapter_base, holds_head, read_adapter, same_place, write_adapter
from rlhf_lab.models.loading import load_policy, load_tokenizer, quiet, trusts_remote_code
from rlhf_lab.models.saving import save_policy
from rlhf_lab.models.scorer import Scorer, learned_head, load_scorer, set_head, stored_head


class LoraConfig(Config):
    """W + (alpha / rank) B A, where only A and B learn (Hu et al. 2021, arXiv:2106.09685)."""

    rank: int = Field(8, ge=1)  # rows of A, columns of B
    alpha: int = Field(16, ge=1)  # the adapter's output is multiplied by alpha / rank
    targets: Literal["all-linear"] | list[str] = "all-linear"  # or names of layers, such as q_proj
    dropout: float = Field(0.0, ge=0, lt=1)  # in front of the adapter, in SFT only


Lora = Annotated[LoraConfig | None, BeforeValidator(lambda value: None if value == {} else value)]
"""A parameter: {} trains the whole model, anything else an adapter."""


class SharedBase:
    """One frozen language model, and the roles that share it."""

    def __init__(self, path):
        """path: directory or hub id of the base; itself perhaps an adapter, which is then merged into its own base."""
        self.path = os.path.abspath(os.path.expanduser(path)) if os.path.isdir(os.path.expanduser(path)) else str(path)
        self.model = load_policy(path, trainable=False)
        self.prefix = self.model.base_model_prefix
        self.trunk = getattr(self.model, self.prefix)
        linear = _linear_kinds()
        self.linear = [name for name, module in self.trunk.named_modules() if isinstance(module, linear)]
        self.layers: dict[str, nn.Module] = {}  # adapted ones, by their names in the trunk
        self.settings: dict[str, LoraConfig] = {}  # role -> its adapter
        self._active: str | None = "unknown"

    def policy(self, lora: LoraConfig, *, name: str = "policy") -> "AdapterPolicy":
        """A policy that starts as the base: B is 0 at first."""
        self._add(name, lora)
        return AdapterPolicy(self, name)

    def reference(self) -> "Reference":
        """The base itself, with every adapter off, frozen."""
        return Reference(self)

    def scorer(
        self, lora: LoraConfig, *, name: str = "critic", head: str = "zero", bins: Sequence[float] | None = None
    ) -> "AdapterScorer":
        """A critic or reward model: an adapter that starts at nothing, and a head made as `load_scorer` makes it.

        Errors: `LabError` for dropout, which would make equal replies score unequally.
        """
        if lora.dropout:
            raise LabError(f"{name}: lora dropout is {lora.dropout}, and its scores would be random; set it to 0")
        bins = [float(centre) for centre in bins] if bins is not None else None
        model = self._classifier(len(bins) if bins else 1)
        self._add(name, lora)
        scorer = AdapterScorer(self, name, model)
        set_head(scorer, head, bins=bins)
        return scorer

    def load_policy(self, directory, *, name: str = "policy", trainable: bool = True) -> "AdapterPolicy":
        """A saved policy adapter of this base, to go on with. Errors: `LabError` if it is another base's or kind."""
        settings, tensors = self._read(directory, head=False)
        policy = self.policy(settings, name=name)
        self._fill(name, tensors, directory)
        return policy.requires_grad_(trainable).train(trainable)

    def load_scorer(self, directory, *, name: str, trainable: bool = True) -> "AdapterScorer":
        """A saved critic or reward adapter of this base, with its head and what was stored with that.

        Errors: `LabError` if it is another base's, or a policy's.
        """
        settings, tensors = self._read(directory, head=True)
        scorer = self.scorer(settings, name=name, bins=stored_head(directory)[1])
        head = {key: tensors.pop(f"{scorer.head_name}.{key}", None) for key, _ in scorer.head.named_parameters()}
        self._fill(name, tensors, directory)
        if any(tensor is None for tensor in head.values()):
            raise LabError(f"{directory}: the adapter's score head is missing; copy the directory again")
        scorer.head.load_state_dict(head)
        learned_head(scorer, directory)
        return scorer.requires_grad_(trainable).train(trainable)

    def carries(self, directory) -> bool:
        """Whether a path is a saved adapter of this very base."""
        base = adapter_base(directory)
        return base is not None and same_place(base, self.path)

    def activate(self, role: str | None) -> None:
        """Switch on this role's adapter and no other; None: the base alone.

        Errors: `LabError` under gradient checkpointing, whose second forward would go through whatever is on by then.
        """
        if torch.is_grad_enabled() and any(getattr(m, "gradient_checkpointing", False) for m in self.trunk.modules()):
            raise LabError("adapters on a shared base cannot be recomputed; switch gradient checkpointing off")
        if self._active == role:
            return
        self._active = "unknown"  # in case an interrupt comes
        flags = [(p, p.requires_grad) for layer in self.layers.values() for p in layer.parameters()]
        try:
            for layer in self.layers.values():
                layer.set_adapter([role] if role else [])
        finally:  # PEFT freezes what it switches off, and gradients of an earlier forward would be lost
            for parameter, flag in flags:
                parameter.requires_grad_(flag)
        self._active = role

    def modules_of(self, role: str) -> nn.ModuleDict:
        """A, B and dropout of a role in every layer it adapts."""
        return nn.ModuleDict(
            {
                name.replace(".", "/"): nn.ModuleList(
                    [layer.lora_A[role], layer.lora_B[role], layer.lora_dropout[role]]
                )
                for name, layer in self.layers.items()
                if role in layer.lora_A
            }
        )

    def tensors_of(self, role: str) -> dict[str, Tensor]:
        """A role's weights, by the names of the layers in the whole model."""
        return {
            f"{self.prefix}.{name}.{part}.weight": getattr(layer, part)[role].weight
            for name, layer in self.layers.items()
            for part in ("lora_A", "lora_B")
            if role in layer.lora_A
        }

    def write(self, folder, role: str, model_config, head: dict[str, Tensor] | None = None) -> None:
        """Write a role's adapter; `head`: the score head's tensors, for a critic or reward model."""
        lora = self.settings[role]
        settings = {
            "base_model_name_or_path": self.path,
            "task_type": "SEQ_CLS" if head else "CAUSAL_LM",
            "modules_to_save": sorted({name.rsplit(".", 1)[0] for name in head}) if head else None,
            **_peft_settings(lora, self._targets(lora)),
        }
        write_adapter(folder, settings, self.tensors_of(role) | (head or {}), model_config)

    def _add(self, role: str, lora: LoraConfig) -> None:
        from peft import LoraConfig as PeftLora
        from peft import inject_adapter_in_model
        from peft.tuners.lora import LoraLayer

        if role in self.settings:
            raise LabError(f"adapters: this base has a role '{role}' already; give the new one another name")
        config = PeftLora(**_peft_settings(lora, self._targets(lora)))
        with warnings.catch_warnings():  # that there are several adapters, that GPT-2's layers are transposed
            warnings.simplefilter("ignore")
            inject_adapter_in_model(config, self.trunk, adapter_name=role)
        self.layers = {name: module for name, module in self.trunk.named_modules() if isinstance(module, LoraLayer)}
        self.settings[role], self._active = lora, "unknown"
        self.modules_of(role).requires_grad_(True).train()

    def _classifier(self, outputs: int):
        """The classifier of this architecture on the shared trunk; its head is not filled in yet.

        Errors: `LabError` if the architecture has none on the same trunk.
        """
        from transformers import AutoModelForSequenceClassification

        config = copy.deepcopy(self.model.config)
        config.num_labels = outputs
        try:
            with torch.device("meta"), quiet():  # shapes without memory
                model = AutoModelForSequenceClassification.from_config(config, trust_remote_code=trusts_remote_code())
        except ValueError:
            model = None
        if model is None or type(model.base_model) is not type(self.trunk):
            name = type(self.model).__name__
            raise LabError(f"{self.path}: {name} has no classifier on its trunk; train without 'lora'")
        model.config.architectures = [type(model).__name__]
        setattr(model, self.prefix, self.trunk)
        Scorer(model).head.to_empty(device=self.model.device)
        return model

    def _targets(self, lora: LoraConfig) -> list[str]:
        """The names in the trunk of the layers to adapt. Errors: `LabError` for a name that no linear layer has."""
        if lora.targets == "all-linear":
            return self.linear
        found = {target: [n for n in self.linear if f".{n}".endswith(f".{target}")] for target in lora.targets}
        if missing := [target for target, names in found.items() if not names]:
            known = sorted({name.rsplit(".", 1)[-1] for name in self.linear})
            raise LabError(f"lora.targets: no linear layer is called {missing[0]!r}; there are {', '.join(known)}")
        if not found:
            raise LabError("lora.targets is empty; name at least one layer, or 'all-linear'")
        return sorted({name for names in found.values() for name in names})

    def _read(self, directory, *, head: bool) -> tuple[LoraConfig, dict[str, Tensor]]:
        if not self.carries(directory):
            raise LabError(f"{directory}: is no adapter of {self.path}; give one that was trained on it")
        if holds_head(directory) != head:
            kinds = ("a policy's adapter", "a reward model's or critic's adapter")
            raise LabError(f"{directory}: holds {kinds[not head]}, not {kinds[head]}")
        settings, tensors = read_adapter(directory)
        targets = sorted({n.removeprefix(f"{self.prefix}.").split(".lora_")[0] for n in tensors if ".lora_" in n})
        lora = {"rank": settings["r"], "alpha": settings["lora_alpha"], "targets": targets}
        return LoraConfig.parse(lora, source=str(directory)), tensors

    @torch.no_grad()
    def _fill(self, role: str, tensors: dict[str, Tensor], directory) -> None:
        ours = self.tensors_of(role)
        if ours.keys() != tensors.keys() or any(ours[name].shape != tensors[name].shape for name in ours):
            name = min(ours.keys() ^ tensors.keys(), default="of another shape")
            raise LabError(f"{directory}: the adapter does not fit its base model ({name}); copy the directory again")
        for name, tensor in ours.items():
            tensor.copy_(tensors[name])


class AdapterPolicy(nn.Module):
    """The shared base with a policy's adapter on. Its parameters are the adapter's alone."""

    def __init__(self, shared: SharedBase, name: str):
        super().__init__()
        self.shared, self.name = shared, name
        self.adapter = shared.modules_of(name)

    @property
    def config(self):
        return self.shared.model.config

    @property
    def device(self) -> torch.device:
        return self.shared.model.device

    def get_base_model(self):
        """The language model with this adapter on, for trainers that want a model of transformers."""
        self.shared.activate(self.name)
        return self.shared.model

    def forward(self, *args, **kwargs):
        return self.get_base_model()(*args, **kwargs)

    def save_pretrained(self, folder) -> None:
        """Write the adapter and the base's path, as PEFT does."""
        self.shared.write(folder, self.name, self.config)


class Reference(nn.Module):
    """The shared base with every adapter off. Its parameters are the base's, and frozen."""

    def __init__(self, shared: SharedBase):
        super().__init__()
        self.shared = shared
        named = shared.model.named_parameters()
        self.base = nn.ParameterList([weight for name, weight in named if ".lora_" not in name])
        self.eval()

    config, device = AdapterPolicy.config, AdapterPolicy.device

    def get_base_model(self):
        """The language model with every adapter off."""
        self.shared.activate(None)
        return self.shared.model

    def forward(self, *args, **kwargs):
        return self.get_base_model()(*args, **kwargs)


class AdapterScorer(Scorer):
    """A reward model or critic: an adapter and a head on the shared trunk. Its parameters are these two alone."""

    def __init__(self, shared: SharedBase, name: str, model):
        nn.Module.__init__(self)
        vars(self)["model"] = model  # no part of this module: the trunk belongs to every role
        self.shared, self.name = shared, name
        self.new_head, self.causal = True, True
        self.adapter = shared.modules_of(name)
        self.own_head = self.head

    def _hidden(self, ids: Tensor, mask: Tensor, wanted: Tensor) -> Tensor:
        self.shared.activate(self.name)
        return super()._hidden(ids, mask, wanted)

    def _write(self, folder, options: dict) -> None:
        head = {f"{self.head_name}.{name}": weight for name, weight in self.own_head.named_parameters()}
        self.shared.write(folder, self.name, self.config, head)


def merge_adapter(directory, out) -> None:
    """Write the plain model that an adapter and its base make together, with its tokenizer, to `out`.

    Errors: `LabError` if `directory` is no adapter, does not fit its base, or `out` is in use.
    """
    if adapter_base(directory) is None:
        raise LabError(f"{directory}: is no adapter (it has no adapter_config.json), so there is nothing to merge")
    tokenizer = load_tokenizer(directory)
    if holds_head(directory):
        load_scorer(directory).save(out, tokenizer)
    else:
        save_policy(out, load_policy(directory), tokenizer)


def _peft_settings(lora: LoraConfig, targets: list[str]) -> dict:
    return {"r": lora.rank, "lora_alpha": lora.alpha, "lora_dropout": lora.dropout, "target_modules": targets}


def _linear_kinds() -> tuple[type, ...]:
    from transformers.pytorch_utils import Conv1D  # GPT-2's own kind

    return nn.Linear, Conv1D
