"""A model leaves the lab: a directory that plain transformers loads, with a card that says where it comes from."""

import contextlib
import json
import shutil
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from rlhf_lab.errors import LabError
from rlhf_lab.workbench.experiments.record import shown
from rlhf_lab.workbench.records import read_json, read_status
from rlhf_lab.workbench.writing import user_path

DATA = ("sandbox", "model", "demonstrations", "preferences", "ratings", "heldout", "prompts", "pretraining", "columns")
MADE_FROM = ("model", "policy", "reward", "critic", "labeler")
LEFT_OUT = {*DATA, *MADE_FROM, "experiment", "run_dir", "resume", "threads", "tracking", "save_every", "seed"}


class Exported(NamedTuple):
    """What was written. kind: policy, reward model, policy adapter or reward adapter."""

    path: Path
    kind: str


def export(run: str, out: str | Path, *, apart: bool = False) -> Exported:
    """Write the model of a run, or a model directory, to `out`: weights, tokenizer and README.md, the model card.

    A policy becomes a causal language model, a reward model a sequence classifier, an adapter is merged with its base.
    apart: the adapter stays one, in `out`/adapter, and a base that is no hub id goes beside it, into `out`/base.
    Plain transformers knows no `reward_gain`: it is multiplied into the head. It knows no shift either, which moves
    all scores alike; a head with a bias takes it, for one without the card names it.
    Errors: `LabError` if there is no model, `out` is in use, or `apart` is asked of a model that is no adapter; or if
    `out` cannot be written, which leaves nothing there.
    """
    from rlhf_lab.models.adapter_files import adapter_base, holds_head

    source, run_dir = _source(run)
    target = user_path(out)
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise LabError(f"{out}: is in use; give a new directory, nothing is overwritten")
    if source.resolve() in (target.resolve(), *target.resolve().parents):
        raise LabError(f"{out}: lies in the model's own directory; give another")
    adapter = adapter_base(source) is not None
    if apart and not adapter:
        raise LabError(f"{run}: is a whole model and no adapter; leave --apart out")
    scores = holds_head(source) if adapter else _is_classifier(source)
    fresh = target.with_name(f".{target.name}.new")
    shutil.rmtree(fresh, ignore_errors=True)
    try:
        write = _adapter_apart if apart else _reward_model if scores else _policy
        facts = write(source, fresh)
        kind = ("reward" if scores else "policy") + " adapter" if apart else "reward model" if scores else "policy"
        (fresh / "README.md").write_text(_card(target.name, kind, facts, run_dir), encoding="utf-8")
        if target.exists():
            target.rmdir()
        fresh.rename(target)
    except LabError as error:
        raise LabError(str(error).replace(str(fresh), str(out))) from None
    except OSError as error:
        copied = isinstance(error, shutil.Error)  # one entry for each file, of which the last part says why
        why = error.args[0][0][-1].partition(": '")[0] if copied else error.strerror or error
        raise LabError(f"{out}: cannot be written ({why}); free some space or choose another place") from None
    finally:
        shutil.rmtree(fresh, ignore_errors=True)
    return Exported(target, kind)


def _source(run: str) -> tuple[Path, Path | None]:
    """The model directory that a name stands for, and the run that it belongs to."""
    from rlhf_lab.workbench.experiments.keeping import find_run

    given = user_path(run)
    if any((given / name).is_file() for name in ("config.json", "adapter_config.json")):
        return given, given.parent if (given.parent / "status.json").is_file() else None
    run_dir = find_run(run)
    if not (run_dir / "checkpoint").is_dir():
        state = read_status(run_dir).state
        raise LabError(f"{shown(run_dir)}: this run ({state}) has left no model; export one of 00 to 03")
    return run_dir / "checkpoint", run_dir


def _is_classifier(source: Path) -> bool:
    from rlhf_lab.models.scorer import stored_head

    return stored_head(source)[0] is not None


def _policy(source: Path, out: Path) -> dict[str, Any]:
    from rlhf_lab.models import load_policy, load_tokenizer, save_policy

    tokenizer = load_tokenizer(source)
    save_policy(out, load_policy(source, trainable=False), tokenizer)
    return {}


def _reward_model(source: Path, out: Path) -> dict[str, Any]:
    import torch

    from rlhf_lab.models import load_scorer, load_tokenizer

    scorer, tokenizer = load_scorer(source, trainable=False), load_tokenizer(source)
    bins = scorer.bins
    if bins is None:
        gain, shift = scorer.gain, scorer.gain * scorer.shift
        with torch.no_grad():
            scorer.head.weight.mul_(gain)
            if scorer.head.bias is not None:
                scorer.head.bias.mul_(gain).sub_(shift)
                shift = 0.0
        scorer.gain, scorer.shift = 1.0, shift
    scorer.save(out, tokenizer)
    return {"tail": _tail(tokenizer), "shift": scorer.shift, "gain": scorer.gain, "bins": bins}


def _adapter_apart(source: Path, out: Path) -> dict[str, Any]:
    from rlhf_lab.models import load_policy, load_tokenizer, save_policy
    from rlhf_lab.models.adapter_files import CONFIG, adapter_base

    tokenizer = load_tokenizer(source)
    shutil.copytree(source, out / "adapter")
    base = str(adapter_base(source))
    if Path(base).is_dir():
        save_policy(out / "base", load_policy(base, trainable=False), tokenizer)
        base = "base"
        settings = read_json(out / "adapter" / CONFIG) | {"base_model_name_or_path": base}
        (out / "adapter" / CONFIG).write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")
    config = read_json(source / "config.json")
    scale = {name: config.get(f"reward_{name}", default) for name, default in (("shift", 0.0), ("gain", 1.0))}
    return {"tail": _tail(tokenizer), "base": base, "bins": config.get("reward_bins")} | scale


def _tail(tokenizer) -> int:
    """How many tokens the tokenizer puts behind a text."""
    from rlhf_lab.data import encode_prompt

    return len(tokenizer.encode("a")) - len(encode_prompt(tokenizer, "a"))


# --- the card


def _card(name: str, kind: str, facts: dict[str, Any], run_dir: Path | None) -> str:
    from huggingface_hub import ModelCardData

    config = _run_config(run_dir)
    settings, results = config.get("config", {}), read_json(run_dir / "results.json") if run_dir else {}
    head = ModelCardData(
        library_name="peft" if "adapter" in kind else "transformers",
        pipeline_tag="text-classification" if "reward" in kind else "text-generation",
        tags=["rlhf", "rlhf_lab", kind.replace(" ", "-")],
        base_model=facts["base"] if facts.get("base", "base") != "base" else None,
    )
    parts = [
        f"---\n{head.to_yaml()}\n---",
        f"# {name}",
        f"A {kind} made with rlhf_lab" + (f" by its stage `{config.get('stage', '')}`." if config else "."),
        "## Use",
        _use(name, kind, facts),
        "## Data",
        _table(_data(settings) | _reward_data(settings, run_dir)) or "Not recorded.",
        "## Made from",
        _table({key: settings[key] for key in MADE_FROM if settings.get(key)}) or "Not recorded.",
        "## Results",
        _table(_flat(results)) or "Not recorded.",
        "## Settings",
        _table({key: value for key, value in settings.items() if key not in LEFT_OUT}) or "Not recorded.",
        "## The run it came from",
        _table(_provenance(config, run_dir)) or "This directory belongs to no run.",
    ]
    return "\n\n".join(parts) + "\n"


def _run_config(run_dir: Path | None) -> dict[str, Any]:
    try:
        found = yaml.safe_load((run_dir / "config.yaml").read_text(encoding="utf-8")) if run_dir else {}
    except (OSError, yaml.YAMLError):
        return {}
    return found if isinstance(found, dict) else {}


def _data(settings: dict[str, Any]) -> dict[str, Any]:
    return {key: settings[key] for key in DATA if settings.get(key)}


def _reward_data(settings: dict[str, Any], run_dir: Path | None) -> dict[str, Any]:
    """What the reward models of a PPO run learned from, as far as their runs are still there."""
    from rlhf_lab.workbench.lineage import taken_by

    if not settings.get("reward"):
        return {}
    found: dict[str, Any] = {}
    with contextlib.suppress(LabError):  # a record that cannot be read is as good as none
        for each in taken_by(run_dir, {"reward": settings["reward"]}):
            if each.metadata.get("stage") == "reward_model":
                theirs = _data(_run_config(each.path.parent).get("config", {}))
                found |= {f"{key}, reward model {each.path.parent.name}": value for key, value in theirs.items()}
    return found


def _provenance(config: dict[str, Any], run_dir: Path | None) -> dict[str, Any]:
    if run_dir is None:
        return {}
    git = config.get("git") or {}
    commit = f"{git.get('commit', '')}{' with changes' if git.get('dirty') else ''}"
    facts = {"run": "/".join(run_dir.parts[-3:]), "started": config.get("started"), "seed": config.get("seed")}
    return facts | {"commit": commit} | (config.get("versions") or {})


def _use(name: str, kind: str, facts: dict[str, Any]) -> str:
    scores, where = "reward" in kind, f'"{name}"'
    auto = "AutoModelForSequenceClassification" if scores else "AutoModelForCausalLM"
    imports, load = [f"from transformers import AutoTokenizer, {auto}"], [f"model = {auto}.from_pretrained({where})"]
    if "adapter" in kind:
        imports = ["from peft import PeftModel", *imports]
        base = f'"{name}/base"' if facts["base"] == "base" else repr(facts["base"])
        outputs = f", num_labels={len(facts['bins'] or [0])}" if scores else ""
        where = f'"{name}/adapter"'
        load = [
            f"base = {auto}.from_pretrained({base}{outputs})",
            f"model = PeftModel.from_pretrained(base, {where})",
        ]
    load += [f"tokenizer = AutoTokenizer.from_pretrained({where})", 'prompt = "..."']
    if not scores:
        sample = ['inputs = tokenizer(prompt, return_tensors="pt")']
        sample += ["print(tokenizer.decode(model.generate(**inputs, do_sample=True, max_new_tokens=40)[0]))"]
        return _code([*imports, "", *load, *sample])
    tail = "[:-1]" if facts["tail"] else ""  # an end of text that this tokenizer puts behind every text
    read = [
        'reply = "..."',
        f"ids = tokenizer(prompt).input_ids{tail} + tokenizer(reply, add_special_tokens=False).input_ids",
        "logits = model(input_ids=torch.tensor([[*ids, tokenizer.eos_token_id]])).logits[0]",
        *_score_lines(facts),
    ]
    words = "It reads a reply at its end of text: leave `eos_token_id` out for a reply that was cut off."
    return _code(["import torch", *imports, "", *load, *read]) + f"\n\n{words}"


def _score_lines(facts: dict[str, Any]) -> list[str]:
    lines, value = [], "logits[0]"
    if facts["bins"] is not None:
        lines, value = [f"bins = torch.tensor({facts['bins']!r})"], "logits.softmax(0) @ bins"
    if (facts["gain"], facts["shift"]) != (1.0, 0.0):
        value = f"{facts['gain']!r} * ({value} - {facts['shift']!r})"
    return [*lines, f"score = {value}"]


def _code(lines: list[str]) -> str:
    return "\n".join(["```python", *lines, "```"])


def _table(values: dict[str, Any]) -> str:
    def cell(value: Any) -> str:
        text = f"{value:.4g}" if isinstance(value, float) else value if isinstance(value, str) else json.dumps(value)
        return text.replace("|", "\\|").replace("\n", " ")

    rows = [f"| {key} | {cell(value)} |" for key, value in values.items() if value is not None]
    return "\n".join(["| | |", "| --- | --- |", *rows]) if rows else ""


def _flat(values: dict[str, Any], before: str = "") -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in values.items():
        found |= _flat(value, f"{before}{key}.") if isinstance(value, dict) else {f"{before}{key}": value}
    return found
