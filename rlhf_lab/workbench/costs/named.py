"""What the parameters of a stage name, as far as its cost depends on it: architectures, and lengths of texts."""

import os
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

from rlhf_lab import data
from rlhf_lab.errors import LabError
from rlhf_lab.models import load_tokenizer
from rlhf_lab.models.adapter_files import adapter_base
from rlhf_lab.models.loading import first_line, local_or_hub, quiet, trusts_remote_code
from rlhf_lab.rewards.ensemble import member_folders
from rlhf_lab.sandbox.world import World
from rlhf_lab.workbench.artefacts import HOUSE
from rlhf_lab.workbench.experiments.files import REFERENCE, read_yaml
from rlhf_lab.workbench.records import latest_run

SAMPLE = 200  # texts whose tokens are counted
UNKNOWN = 128  # tokens of a prompt, where nothing can be read and no `max_length` is set


class Model(NamedTuple):
    """A model that a stage starts from or leaves: training changes no architecture.

    config: of transformers; tokenizer: where that lies, "" for one that is not made yet
    members: of an ensemble; adapter: left as one, on its base
    """

    config: Any
    tokenizer: str
    members: int = 1
    adapter: bool = False


class Lengths(NamedTuple):
    """Tokens of a prompt and of a reply that costs are worked out with, and where they are from."""

    prompt: float
    reply: float
    told: str


def named_model(value: str, cfg, earlier: Mapping[str, Model], stage: str) -> Model:
    """The model that a parameter names, or one of its architecture. Reads no weights, runs nothing.

    earlier: what the stages before leave. stage: whose newest run `auto` is; without one it is made from the sandbox's.
    Errors: `LabError` where there is no such model.
    """
    if match := REFERENCE.match(value):
        if match[1] not in earlier:
            raise LabError(f"'{value}': what stage '{match[1]}' leaves is no model")
        return earlier[match[1]]
    if value == "auto":
        found = latest_run(stage, cfg.experiment, seed=cfg.seed) or latest_run(stage, seed=cfg.seed)
        value = str(found) if found else "sandbox"
    elif value.endswith(".yaml"):
        file = next((p for p in (Path(value), HOUSE / "experiments" / value) if p.is_file()), Path(value))
        value = read_yaml(file).get("model", "sandbox")
    if value == "sandbox":
        value = World.load(cfg.sandbox or "default").base_model
    inside = Path(value) / "checkpoint"
    path = str(inside) if inside.is_dir() else value
    members = len(member_folders(path)) if os.path.isdir(path) else 1
    return Model(architecture(path), path, members, adapter_base(path) is not None)


def architecture(path: str):
    """The transformers config at a directory or hub id; an adapter's is its base's. No weights are read.

    Errors: `LabError` where there is none.
    """
    from transformers import AutoConfig

    if (base := adapter_base(path)) is not None:
        return architecture(base)
    source = local_or_hub(path, needs="config.json")
    try:
        with quiet():
            return AutoConfig.from_pretrained(source, trust_remote_code=trusts_remote_code())
    except Exception as error:  # no network, a damaged file
        raise LabError(f"{path}: its config.json cannot be read ({first_line(error)}); give another model") from error


def lengths(cfg, model: Model, *, longest: int, prompt: float | None, reply: float | None, prompts: str) -> Lengths:
    """Tokens of prompts and replies: those given, else the longest of some prompts, and `longest` of a reply.

    prompts: the parameter that names them, `sandbox` or a file; of what is elsewhere only that it fits `max_length`.
    """
    if prompt is not None:
        told = f"prompts of {prompt:g} tokens"
    else:
        columns = tuple(sorted(getattr(cfg, "columns", {}).items()))
        found = _longest_prompt(cfg.sandbox, model.tokenizer, prompts, columns)
        room = (getattr(cfg, "max_length", None) or 0) - longest
        prompt = found or (room if room > 0 else UNKNOWN)
        origin = "the longest of some" if found else "max_length less a reply" if room > 0 else "not known"
        told = f"prompts of {prompt} tokens ({origin}{'' if found else '; --prompt-tokens gives their mean'})"
    if reply is None:
        return Lengths(prompt, longest, f"{told}, replies of {longest} (the longest; --reply-tokens gives their mean)")
    return Lengths(prompt, min(reply, longest), f"{told}, replies of {min(reply, longest):g}")


@cache
def _longest_prompt(sandbox: str, tokenizer: str, prompts: str, columns: tuple) -> int | None:
    if not tokenizer:
        return None
    if prompts == "sandbox":
        texts = World.load(sandbox or "default").prompts("train", SAMPLE)
    elif os.path.isfile(prompts):
        read = load_tokenizer(tokenizer)
        texts = data.to_text(data.load_prompts(prompts, columns=dict(columns), limit=SAMPLE), read)["prompt"]
    else:
        return None
    read = load_tokenizer(tokenizer)
    return max(len(data.encode_prompt(read, text)) for text in texts)
