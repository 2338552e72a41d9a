"""An adapter on the disk: its small weights and the path of the base they belong to, as PEFT writes and reads them.

The base may be an adapter in its turn: a reward model's adapter on an SFT adapter on a base model. Reading merges from
the bottom up, so that whoever loads such a directory gets a plain model.
"""

import json
import os
import warnings
from pathlib import Path

from torch import Tensor

from rlhf_lab.errors import LabError

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"


def adapter_base(path) -> str | None:
    """The base model that an adapter directory names; None for a path that is no adapter directory.

    Errors: `LabError` if the adapter is damaged, or its base is gone.
    """
    folder = Path(os.path.expanduser(path))
    if not (folder / CONFIG).is_file():
        return None
    base = _settings(path, folder).get("base_model_name_or_path")
    where = f"its 'base_model_name_or_path' in {folder / CONFIG}"
    if not isinstance(base, str) or not base:
        raise LabError(f"{path}: the adapter does not say which model it belongs to; write that as {where}")
    if not (folder / WEIGHTS).is_file():
        raise LabError(f"{path}: the adapter's weights are missing ({WEIGHTS}); copy the whole directory again")
    if os.path.isabs(base) and not os.path.isdir(base):
        raise LabError(f"{path}: the adapter's base model {base} is gone; put it back, or correct {where}")
    if same_place(base, folder):
        raise LabError(f"{path}: the adapter names itself as its base model; correct {where}")
    return base


def holds_head(path) -> bool:
    """Whether an adapter directory is a reward model's or a critic's, and so brings a score head of its own."""
    return _settings(path, Path(os.path.expanduser(path))).get("task_type") == "SEQ_CLS"


def same_place(one, other) -> bool:
    """Whether two paths are the same directory; two hub ids, whether they are equal."""
    ends = [os.path.realpath(os.path.expanduser(path)) if os.path.isdir(path) else str(path) for path in (one, other)]
    return ends[0] == ends[1]


def merge_into(model, path):
    """Add an adapter's weights to those of its base, which is changed, and return it as a plain model.

    W + (alpha / rank) B A for every adapted layer; a head in the files takes the place of the model's.
    Source: Hu et al. 2021 (LoRA, arXiv:2106.09685), section 4.1. Errors: `LabError` if the adapter does not fit.
    """
    from peft import PeftConfig, PeftModel

    folder = os.path.expanduser(path)
    try:
        config = PeftConfig.from_pretrained(folder)
        config.task_type = None  # else PEFT wants the very class that the adapter was trained with
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that GPT-2's layers are transposed, and the like
            warnings.filterwarnings("error", message="Found missing adapter keys")  # they would stay at 0
            return PeftModel.from_pretrained(model, folder, config=config).merge_and_unload(safe_merge=True)
    except Exception as error:  # damaged files raise a great many kinds
        raise LabError(f"{path}: the adapter does not fit its base model ({_short(error)}); give another") from error


def read_adapter(path) -> tuple[dict, dict[str, Tensor]]:
    """The settings of an adapter directory, and its tensors by the names of the layers in the whole model.

    Errors: `LabError` if it cannot be read, or is of a kind that only merging knows how to handle.
    """
    from safetensors.torch import load_file

    folder = Path(os.path.expanduser(path))
    settings = _settings(path, folder)
    odd = [name for name in ("use_dora", "use_rslora", "rank_pattern", "alpha_pattern") if settings.get(name)]
    if settings.get("peft_type") != "LORA" or odd:
        raise LabError(f"{path}: not a plain LoRA adapter ({', '.join(odd) or settings.get('peft_type')}); merge it")
    try:
        tensors = load_file(folder / WEIGHTS)
    except Exception as error:
        raise LabError(f"{path}: {WEIGHTS} cannot be read ({_short(error)}); copy the directory again") from error
    return settings, {name.removeprefix("base_model.model."): tensor for name, tensor in tensors.items()}


def write_adapter(folder, settings: dict, tensors: dict[str, Tensor], model_config) -> None:
    """Write an adapter as PEFT does, and the config of the whole model beside it.

    settings: arguments of PEFT's `LoraConfig`. tensors: by the names of the layers in the whole model.
    """
    from peft import LoraConfig
    from safetensors.torch import save_file

    LoraConfig(**settings, inference_mode=True).save_pretrained(folder)
    named = {f"base_model.model.{name}": tensor.detach().contiguous() for name, tensor in tensors.items()}
    save_file(named, Path(folder) / WEIGHTS, metadata={"format": "pt"})
    model_config.save_pretrained(folder)


def _settings(path, folder: Path) -> dict:
    try:
        return dict(json.loads((folder / CONFIG).read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError) as error:
        raise LabError(f"{path}: {CONFIG} cannot be read ({_short(error)}); copy the directory again") from error


def _short(error: Exception) -> str:
    """An error's text in one line of moderate length."""
    return " ".join(str(error).split())[:160] or type(error).__name__
