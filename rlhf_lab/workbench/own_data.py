"""What a stage takes of data that were not made for it: a part to measure on, and the rows that fit into the model."""

from pathlib import Path

from rlhf_lab import data
from rlhf_lab.errors import LabError
from rlhf_lab.models.inputs import context_length
from rlhf_lab.workbench.artefacts import source


def demonstration_split(cfg, files: dict[str, Path]) -> data.Split:
    """Demonstrations to learn from, and the prompts to answer before and after; no prompt is in both.

    prompts `split`: some of the demonstrations' own are held back, `eval_prompts` or a fifth if that is fewer.
    """
    where = source(cfg.demonstrations, files, "demonstrations")
    demos = data.load_demonstrations(where, columns=cfg.columns, limit=cfg.n_demonstrations, on_bad=cfg.on_bad)
    if cfg.prompts == "split":
        return data.hold_out(demos, cfg.eval_prompts)
    where = source(cfg.prompts, files, "heldout")
    held_out = data.load_prompts(where, limit=cfg.eval_prompts, on_bad=cfg.on_bad)
    return data.Split(demos, data.unseen(held_out, demos, on_bad=cfg.on_bad))


def demonstrations_that_fit(cfg, policy, tokenizer, rows):
    """The rows whose reply and at least a token of the prompt fit into `max_length`; with `on_bad: drop` no others.

    A prompt is cut, a reply never. Errors: `LabError` naming the first row that does not fit, or when none is left.
    """
    most = room(cfg, policy) - 1
    bad = [n for n, reply in enumerate(rows["completion"]) if len(data.encode_reply(tokenizer, reply)) > most]
    return without(cfg, rows, bad, f"a reply that leaves no room for a prompt in {most + 1} tokens")


def prompts_that_fit(cfg, policy, tokenizer, rows):
    """The rows whose prompt and a reply of `max_new_tokens` fit into `max_length`; with `on_bad: drop` no others.

    Errors: `LabError` naming the first row that does not fit, or when none is left.
    """
    most = room(cfg, policy) - cfg.max_new_tokens
    bad = [n for n, length in enumerate(lengths(tokenizer, rows["prompt"])) if length > most]
    what = f"a prompt that leaves no room for a reply of {cfg.max_new_tokens} in {room(cfg, policy)} tokens"
    return without(cfg, rows, bad, what)


def room(cfg, policy) -> int:
    """How many tokens prompt and reply may have: `max_length` (0: any), and never more than the model's context."""
    return min(cfg.max_length or 2**31, context_length(policy) or 2**31)


def lengths(tokenizer, prompts) -> list[int]:
    """The number of tokens of each prompt."""
    return [len(ids) for ids in tokenizer(list(prompts), verbose=False)["input_ids"]]


def without(cfg, rows, bad: list[int], what: str):
    """The rows but the bad ones. Errors: `LabError` saying what is bad, unless `on_bad: drop`, or when none is left."""
    if not bad:
        return rows
    told = f"{len(bad)} of {len(rows)} rows have {what}"
    if cfg.on_bad != "drop":
        raise LabError(f"{told}, the first is row {bad[0] + 1}; raise 'max_length', or leave them out: on_bad='drop'")
    if len(bad) == len(rows):
        raise LabError(f"{told}, so none is left; raise 'max_length'")
    print(f"dropped {told.replace(' have', ', which have')}")
    return rows.select(sorted(set(range(len(rows))) - set(bad)))
