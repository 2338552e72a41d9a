"""Load a policy or a tokenizer from a hub id or a directory, ready for training.

Every model is float32, reads safetensors only, runs no code of its own unless the user asks for that, and has no
dropout: PPO compares two log-probabilities of the same token, and dropout would make them differ before anything was
learned.
"""

import json
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import nn

from rlhf_lab.errors import LabError
from rlhf_lab.models.adapter_files import adapter_base, holds_head, merge_into
from rlhf_lab.models.device import device

_WHAT_TO_GIVE = "give a directory with config.json and model.safetensors, or a hub id"
_PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")
_TRUST = "RLHF_LAB_TRUST_REMOTE_CODE"  # in the environment, so that no experiment file can ask for it


def load_tokenizer(path):
    """The tokenizer at a hub id or directory. If it has no padding token, EOS pads: masks come from lengths.

    One of an encoder has no BOS and EOS; its [CLS] and [SEP], which begin and end a text, are then taken for them.
    Errors: `LabError` if there is none, or if it has no EOS token, without which no reply could end.
    """
    source = local_or_hub(path, needs=None)
    try:
        with quiet(bars=not Path(source).is_dir()):
            tokenizer = _tokenizer_class(source).from_pretrained(source, trust_remote_code=trusts_remote_code())
    except Exception as error:  # damaged files raise a great many kinds
        raise _unloadable(path, "no tokenizer could be loaded", error) from error
    if tokenizer.eos_token_id is None and tokenizer.sep_token_id is not None:
        tokenizer.eos_token = tokenizer.sep_token
        tokenizer.bos_token = tokenizer.bos_token or tokenizer.cls_token
    if tokenizer.eos_token_id is None:
        raise LabError(f"{path}: the tokenizer has no EOS token, so no reply could end; set its 'eos_token'")
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def _tokenizer_class(source: str):
    """AutoTokenizer, but not for a directory whose tokenizer says that tokenizer.json is all there is to it.

    For some architectures (Qwen2) AutoTokenizer overrides even that, and splits text wrongly.
    """
    from transformers import AutoTokenizer, PreTrainedTokenizerFast

    config = Path(source) / "tokenizer_config.json"
    named = json.loads(config.read_text()).get("tokenizer_class") if config.is_file() else None
    return PreTrainedTokenizerFast if named in ("TokenizersBackend", "PreTrainedTokenizerFast") else AutoTokenizer


def load_policy(path, *, trainable: bool = True, lora=None):
    """A causal language model, float32, without dropout, in training mode or, `trainable=False`, frozen.

    Its generation defaults (top_k and the like) are dropped, so that they cannot leak into sampling.
    A directory with an adapter comes merged with its base. lora: a `LoraConfig` trains a new adapter on it instead.
    Errors: `LabError` if the path holds no causal language model, or not all of its weights.
    """
    from transformers import AutoModelForCausalLM, GenerationConfig

    if lora is not None:
        from rlhf_lab.models.adapters import SharedBase  # which is built on this module

        return SharedBase(path).policy(lora)
    if (base := adapter_base(path)) is not None:
        if holds_head(path):
            raise LabError(f"{path}: holds a reward model's adapter, not a policy; give a causal language model")
        return merge_into(load_policy(base), path).requires_grad_(trainable).train(trainable)
    model, info = read_pretrained(AutoModelForCausalLM, path, "a causal language model")
    architecture = (model.config.architectures or ["?"])[0]
    if architecture.endswith("ForSequenceClassification"):
        raise LabError(f"{path}: holds a reward model ({architecture}), not a policy; give a causal language model")
    prepare(model, path, trainable)  # before looking for missing weights: an encoder lacks some, and is better told so
    refuse_missing(path, info["missing_keys"])
    ids = ("bos_token_id", "eos_token_id", "pad_token_id")
    model.generation_config = GenerationConfig(**{name: getattr(model.generation_config, name) for name in ids})
    return model


def prepare(model, path, trainable: bool, *, encoder: bool = False):
    """Make a loaded model fit for RLHF: no dropout, no special padding row, frozen or not; causal, or an `encoder` too.

    It is moved to where models are computed (`device`).
    Errors: `LabError` for a model that reads in both directions, unless `encoder`, and for an encoder-decoder.
    """
    from rlhf_lab.models.attention import use_attention

    if model.config.is_encoder_decoder:
        raise LabError(f"{path}: {type(model).__name__} has an encoder and a decoder; give a causal model")
    disable_dropout(model)
    use_attention(model)
    for module in model.modules():
        # torch gives the row `padding_idx` no gradient: where EOS pads, its embedding would never be trained.
        if isinstance(module, nn.Embedding):
            module.padding_idx = None
    if not encoder and not is_causal(model):
        raise LabError(f"{path}: {type(model).__name__} reads in both directions; give a causal model")
    model.requires_grad_(trainable)
    return model.train(trainable).to(device())


def disable_dropout(model) -> None:
    """Set every dropout probability to 0: in the config, in dropout modules, in numbers that modules keep."""
    _zero_dropout_fields(model.config)
    for module in model.modules():
        if isinstance(module, nn.modules.dropout._DropoutNd):
            module.p = 0.0
        _zero_dropout_fields(module)


def _zero_dropout_fields(owner) -> None:
    for name, value in list(vars(owner).items()):
        if "drop" in name and isinstance(value, int | float) and not isinstance(value, bool):
            setattr(owner, name, 0.0)
        elif name.endswith("_config") and hasattr(value, "to_dict"):  # configs of composed models
            _zero_dropout_fields(value)


@torch.no_grad()
def is_causal(model) -> bool:
    """Whether the first position ignores the second token. The model is asked: configs disagree on names."""
    training = model.training
    model.eval()
    ids = torch.tensor([[0, 1], [0, 2]], device=model.device)
    first = model.base_model(input_ids=ids, attention_mask=torch.ones_like(ids)).last_hidden_state[:, 0].float()
    model.train(training)
    return bool((first[0] - first[1]).norm() <= 1e-5 * first[0].norm())


def read_pretrained(auto_class, path, what: str, **options):
    """Load by one of transformers' Auto classes -> (model, loading info). Errors become a `LabError`."""
    source = local_or_hub(path, needs="config.json")
    try:
        with quiet(bars=not Path(source).is_dir()):
            return auto_class.from_pretrained(
                source,
                dtype=torch.float32,
                use_safetensors=True,
                trust_remote_code=trusts_remote_code(),
                output_loading_info=True,
                **options,
            )
    except Exception as error:  # damaged files raise a great many kinds
        raise _unloadable(path, f"could not be loaded as {what}", error) from error


def trusts_remote_code() -> bool:
    """Whether the user lets models run code of their own, by RLHF_LAB_TRUST_REMOTE_CODE=1 in the environment."""
    return os.environ.get(_TRUST, "") not in ("", "0")


def _unloadable(path, what: str, error: Exception) -> LabError:
    if "trust_remote_code" in str(error) and not trusts_remote_code():
        return LabError(f"{path}: brings code of its own, which is not run; set {_TRUST}=1 if you trust its authors")
    if known := re.match(r"Unrecognized configuration class .*\.(\w+)Config'>", first_line(error)):
        return LabError(f"{path}: {what} (transformers has none of the architecture {known[1]}); give another model")
    return LabError(f"{path}: {what} ({first_line(error)}); {_WHAT_TO_GIVE}")


def refuse_missing(path, missing) -> None:
    """`LabError` if weights were missing from the files: transformers would fill them with random numbers."""
    if missing:
        raise LabError(f"{path}: weights are missing from the files, {min(missing)} first; {_WHAT_TO_GIVE}")


def local_or_hub(path, *, needs: str | None) -> str:
    """The directory as text, or the hub id unchanged. `LabError` for a local path that is no model."""
    try:
        folder = Path(path).expanduser()
    except RuntimeError:  # "~name" of nobody here
        folder = Path(path)
    if folder.is_dir():
        if needs and not (folder / needs).is_file():
            raise LabError(f"{path}: this directory holds no model ({needs} is missing); {_WHAT_TO_GIVE}")
        if needs and _is_pickled(folder):
            raise LabError(f"{path}: holds pickled weights only; save them as safetensors and try again")
        return str(folder)
    if folder.exists() and folder.suffix in _PICKLES:
        raise LabError(f"{path}: pickled weights can run code, so they are not read; save them as safetensors")
    if folder.exists():
        raise LabError(f"{path}: is a file, not a model; {_WHAT_TO_GIVE}")
    # A hub id is 'name' or 'owner/name'; anything else was meant as a path.
    if isinstance(path, Path) or str(path).startswith(("/", ".", "~")) or str(path).count("/") > 1:
        raise LabError(f"{path}: no such directory; {_WHAT_TO_GIVE}")
    return str(path)


def _is_pickled(folder: Path) -> bool:
    names = [file.name for file in folder.iterdir()]
    return any(name.endswith(_PICKLES) for name in names) and not any(name.endswith(".safetensors") for name in names)


@contextmanager
def quiet(*, bars: bool = False) -> Iterator[None]:
    """Silence transformers' loading report, which we check ourselves; `bars=True` keeps progress bars."""
    from transformers.utils import logging

    verbosity, had_bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    if not bars:
        logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if had_bars:
            logging.enable_progress_bar()


def first_line(error: Exception) -> str:
    """The first line of an error's text, for a message of one line."""
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
