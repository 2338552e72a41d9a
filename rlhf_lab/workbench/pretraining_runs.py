"""What 00_pretrain learns from and what it reports: the sandbox's text, or any text of one's own."""

import math
from typing import Any, NamedTuple

import pandas as pd

from rlhf_lab.data import load_texts
from rlhf_lab.errors import LabError
from rlhf_lab.sandbox.tokenizer import EOS, build_tokenizer
from rlhf_lab.sandbox.world import World
from rlhf_lab.training.byte_pairs import bytes_in, train_tokenizer
from rlhf_lab.training.pretraining import PretrainState, in_pieces, mean_loss
from rlhf_lab.workbench import evaluation

SHARE = 10  # of one's own text a tenth is held out, and at most `eval_prompts` pieces
OPENING = 32  # tokens of a held-out piece that the model is asked to continue


class Material(NamedTuple):
    """What is learned from and measured on."""

    tokenizer: Any
    documents: list[Any]  # text of the sandbox, or token ids of one's own
    held_out: list[list[int]]  # of one's own; the sandbox has prompts instead
    prompts: list[str]  # held-out ones, or openings of held-out pieces
    examples: list[str]  # to look at


def material(cfg, world: World | None) -> Material:
    """The sandbox's documents, or the pieces of one's own text with a tokenizer trained on it.

    The last tenth of the pieces is held out. Errors: `LabError` where there is no sandbox, or too little text.
    """
    if cfg.text != "sandbox":
        return _own(cfg)
    if world is None:
        raise LabError(
            "text is 'sandbox' but the parameter 'sandbox' is empty; give a file, a folder or a hub id for text"
        )
    texts = world.corpus(cfg.documents, EOS, seed=cfg.seed)
    return Material(build_tokenizer(), texts, [], world.prompts("heldout", cfg.eval_prompts), texts[:3])


def _own(cfg) -> Material:
    texts = load_texts(cfg.text, columns=cfg.columns, limit=cfg.documents, on_bad=cfg.on_bad)["text"][:]
    tokenizer = train_tokenizer(texts, cfg.vocab_size)
    pieces = in_pieces(tokenizer, texts, cfg.context)
    if len(pieces) < 2:
        raise LabError(f"{cfg.text}: is only one piece of {cfg.context} tokens; give more text, or lower 'context'")
    cut = len(pieces) - min(cfg.eval_prompts, max(1, len(pieces) // SHARE))
    length = min(OPENING, cfg.context // 2)
    openings = [tokenizer.decode(ids[: min(length, len(ids) - 1)]) for ids in pieces[cut:]]
    return Material(tokenizer, pieces[:cut], pieces[cut:], openings, [text[:1000] for text in texts[:3]])


class PretrainReport(NamedTuple):
    """What the model has learned."""

    table: pd.DataFrame
    answers: pd.DataFrame  # to held-out prompts, or how it goes on with held-out openings
    results: dict[str, float]


def report(cfg, state: PretrainState, found: Material, world: World | None) -> PretrainReport:
    """In the sandbox gold behind worked examples; else the loss on what was held out, before and after.

    Bits per byte do not depend on the tokenizer.
    """
    if not found.held_out:
        shots = evaluation.shots_report(
            state.model, found.tokenizer, world, found.prompts, shots=(0, 1, 3), seed=cfg.seed
        )
        return PretrainReport(shots.table, shots.answers[0], shots.results)
    loss = mean_loss(state.model, found.tokenizer, found.held_out, batch_tokens=cfg.batch_tokens)
    predicted = sum(len(ids) - 1 for ids in found.held_out)
    size = sum(bytes_in(found.tokenizer, ids[1:]) for ids in found.held_out)
    results = {"heldout_loss": loss, "bits_per_byte": loss * predicted / math.log(2) / max(1, size)}
    rows = {**results, "perplexity": math.exp(loss), "loss of a coin for each token": math.log(len(found.tokenizer))}
    answers = evaluation.answer(
        state.model, found.tokenizer, found.prompts[:20], max_new_tokens=min(40, cfg.context // 2), seed=cfg.seed
    )
    return PretrainReport(pd.DataFrame({"value": rows}).round(3), answers, results)
