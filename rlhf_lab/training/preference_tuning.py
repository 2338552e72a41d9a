"""DPO and KTO on preferences, by TRL. The only module that imports TRL's trainers for them.

Prompts and replies become token ids here: TRL would tokenise them together, and end every reply by EOS, also one that
was cut short. The reference is always given: left to itself, TRL reads the checkpoint that the model was once loaded
from, which is another model than the one that was fine-tuned in memory since.
"""

import copy
import math
import tempfile
import warnings
from collections.abc import Callable, Iterable, Mapping
from contextlib import contextmanager
from itertools import combinations
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from pydantic import Field

from rlhf_lab.config import Config
from rlhf_lab.data import cut_prompt, encode_pair, encode_prompt, encode_reply
from rlhf_lab.errors import LabError
from rlhf_lab.training.processes import batch_of_one
from rlhf_lab.training.sft import NAMES, report, restore_forward, saving


class PreferenceConfig(Config):
    """What both methods share. The implicit reward of a reply is beta * (logp - ref_logp), in nats times beta."""

    beta: float = Field(0.1, gt=0)  # the strength of the KL to the reference that the optimum has
    epochs: float = Field(1.0, gt=0)  # passes over the data
    lr: float = Field(3e-4, gt=0)  # AdamW peak
    lr_schedule: Literal["linear", "cosine", "constant"] = "linear"  # behind the warm-up
    warmup_ratio: float = Field(0.1, ge=0, le=1)
    weight_decay: float = Field(0.0, ge=0)
    max_grad_norm: float = Field(1.0, gt=0)
    max_length: int = Field(256, ge=2)  # tokens of prompt and reply; the prompt is cut from the left
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    seed: int = 0


class DPOConfig(PreferenceConfig):
    """The settings of DPO (Rafailov et al. 2023, 2305.18290, eq. 7)."""

    batch_size: int = Field(32, ge=1)  # pairs in an optimizer step
    # Above 0 the loss is the unbiased estimate of what it would be without such pairs (Chowdhury et al. 2024,
    # 2403.00409, rDPO).
    flip: float = Field(0.0, ge=0, lt=0.5)  # share of pairs taken to be the wrong way round; above 0 it is rDPO


class KTOConfig(PreferenceConfig):
    """The settings of KTO (Ethayarajh et al. 2024, 2402.01306, eq. 7)."""

    batch_size: int = Field(64, ge=2)  # replies in an optimizer step; the KL is estimated from mismatched ones in it
    desirable_weight: float = Field(1.0, gt=0)  # of the loss of desirable replies
    undesirable_weight: float = Field(1.0, gt=0)  # of that of the others


class Pair(NamedTuple):
    """Two replies to one prompt, and which of them ended by EOS."""

    row: int  # of the data it comes from, from 1
    prompt: str
    chosen: str
    rejected: str
    finished: tuple[bool, bool]


def preference_pairs(preferences: Iterable[Mapping[str, Any]]) -> list[Pair]:
    """Pairs from columns prompt, chosen, rejected, or from rankings: prompt, completions, ranks, perhaps finished.

    A ranking gives each two of its replies that differ in rank and text. Errors: `LabError` if no pair is left.
    """
    pairs = []
    for number, row in enumerate(preferences, 1):
        if "completions" not in row:
            pairs.append(Pair(number, row["prompt"], row["chosen"], row["rejected"], (True, True)))
            continue
        ended = row.get("finished") or [True] * len(row["completions"])
        for two in combinations(zip(row["ranks"], row["completions"], ended, strict=True), 2):
            (high, best, best_ended), (low, worst, worst_ended) = sorted(two, key=lambda reply: reply[0])
            if high != low and best != worst:
                pairs.append(Pair(number, row["prompt"], best, worst, (best_ended, worst_ended)))
    if not pairs:
        raise LabError("preferences: no two replies to a prompt differ in rank; give at least one pair that does")
    return pairs


def labelled_replies(preferences: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """KTO's rows from preferences or rankings: prompt, completion, label (True = desirable), finished."""
    rows = []
    for pair in preference_pairs(preferences):
        for text, label, ended in zip((pair.chosen, pair.rejected), (True, False), pair.finished, strict=True):
            rows.append({"prompt": pair.prompt, "completion": text, "label": label, "finished": ended})
    return rows


def dpo_rows(pairs: Iterable[Pair], tokenizer, max_length: int) -> list[dict[str, list[int]]]:
    """Token ids `prompt_ids`, `chosen_ids`, `rejected_ids`; a finished reply ends in exactly one EOS.

    Both replies follow the same prompt, cut to leave room for the longer one. Errors: `LabError` naming the row.
    """
    rows = []
    for pair in pairs:
        try:
            prompt = encode_prompt(tokenizer, pair.prompt)
            chosen, rejected = (
                encode_reply(tokenizer, text, finished=ended)
                for text, ended in zip((pair.chosen, pair.rejected), pair.finished, strict=True)
            )
            longer = max(chosen, rejected, key=len)
            prompt, _ = cut_prompt(prompt, longer, max_length=max_length, bos_id=tokenizer.bos_token_id)
        except LabError as error:
            raise LabError(f"preferences, row {pair.row}: {error}") from None
        rows.append({"prompt_ids": prompt, "chosen_ids": chosen, "rejected_ids": rejected})
    return rows


def kto_rows(replies: Iterable[Mapping[str, Any]], tokenizer, config: KTOConfig, max_length: int) -> list[dict]:
    """Token ids `prompt_ids`, `completion_ids`, `KL_completion_ids`, and `label`, in the order they are trained in.

    The KL is estimated from mismatched pairs: each prompt gets the reply of the row before it in its batch.
    Errors: `LabError` naming the row whose reply does not fit.
    """
    rows = []
    for number, row in enumerate(replies, 1):
        finished = bool(row.get("finished", True))
        try:
            prompt, reply = encode_pair(
                tokenizer, row["prompt"], row["completion"], finished=finished, max_length=max_length
            )
        except LabError as error:
            raise LabError(f"labelled replies, row {number}: {error}") from None
        rows.append({"prompt_ids": prompt, "completion_ids": reply, "label": bool(row["label"])})
    order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(config.seed))
    for batch in order.split(config.batch_size):
        for i, before in zip(batch.tolist(), batch.roll(1).tolist(), strict=True):
            rows[i]["KL_completion_ids"] = rows[before]["completion_ids"]
    return [rows[i] for i in order]


def dpo_trainer(
    config: DPOConfig,
    model,
    tokenizer,
    preferences: Iterable[Mapping[str, Any]],
    *,
    reference=None,
    on_log: Callable[[dict], None] | None = None,
    folder: Path | None = None,
    save_every: int = 0,
):
    """A TRL `DPOTrainer` for preferences or rankings (see `preference_pairs`); give it to `sft.train`, once.

    folder: where it keeps checkpoints to resume from, the last two, every `save_every` steps; 0 = only when stopped.
    reference: the frozen policy that the KL is to; None takes a copy of `model` as it is now.
    `on_log` gets TRL's figures under the lab's names: `train/loss`, `train/accuracy` and `train/gap` of the implicit
    rewards, these themselves, `lr`, `policy/grad_norm`, `global_step`, `max_steps`.
    Errors: `LabError` if there is no pair, or a reply does not fit; `train()` raises `RunFailed` on a loss that is not
    finite.
    """
    from trl import DPOConfig as TRLConfig
    from trl import DPOTrainer

    rows = dpo_rows(preference_pairs(preferences), tokenizer, _longest(config, model))
    # TRL's plain loss takes no notice of `label_smoothing`; its robust one is the same at 0.
    own = {"loss_type": ["robust"], "label_smoothing": config.flip}
    return _trainer(
        DPOTrainer, TRLConfig, own, "DPO", config, model, tokenizer, rows, reference, on_log, folder, save_every
    )


def kto_trainer(
    config: KTOConfig,
    model,
    tokenizer,
    replies: Iterable[Mapping[str, Any]],
    *,
    reference=None,
    on_log: Callable[[dict], None] | None = None,
    folder: Path | None = None,
    save_every: int = 0,
):
    """A TRL `KTOTrainer` for columns prompt, completion and label (True = desirable), and perhaps finished.

    `labelled_replies` makes them from preferences. The rest is as in `dpo_trainer`.
    Errors: `LabError` if one of the two labels is missing, or a reply does not fit.
    """
    from trl import KTOConfig as TRLConfig
    from trl import KTOTrainer

    replies = list(replies)
    for label, name in ((True, "desirable"), (False, "undesirable")):
        if not any(bool(row["label"]) is label for row in replies):
            raise LabError(
                f"KTO: no reply is {name} (label {str(label).lower()}); give replies with both labels, or preferences"
            )
    rows = kto_rows(replies, tokenizer, config, _longest(config, model))
    own = {"desirable_weight": config.desirable_weight, "undesirable_weight": config.undesirable_weight}
    return _trainer(
        KTOTrainer, TRLConfig, own, "KTO", config, model, tokenizer, rows, reference, on_log, folder, save_every
    )


def load_trl() -> None:
    """Import TRL's trainers now. It takes seconds, which a method that is timed should not be charged for."""
    from trl import DPOTrainer, KTOTrainer  # noqa: F401


def _longest(config: PreferenceConfig, model) -> int:
    from rlhf_lab.models.inputs import context_length

    return min(config.max_length, context_length(model) or config.max_length)


def _on_token_ids(kind):
    """TRL's trainer for data that are token ids already."""

    class Trainer(kind):
        def _prepare_dataset(self, dataset, *args):
            return dataset

        def train(self, *args, **kwargs):
            with _no_renaming():
                return super().train(*args, **kwargs)

    return Trainer


@contextmanager
def _no_renaming():
    """Silence transformers on a new name for what TRL still calls by the old one."""
    with warnings.catch_warnings():
        warnings.filterwarnings(
            "ignore", message="`(is_)?gradient_checkpointing` is deprecated", category=FutureWarning
        )
        yield


def _trainer(
    kind, arguments, own: dict, name: str, config, model, tokenizer, rows, reference, on_log, folder, save_every
):
    from datasets import Dataset
    from transformers.trainer_callback import PrinterCallback

    if reference is model:
        raise LabError(f"{name}: the reference is the model itself, so nothing would hold it; give another, or None")
    if reference is None:
        reference = copy.deepcopy(model)
        vars(reference).pop("forward", None)  # a forward patched onto the model would read the model's weights
    reference.eval().requires_grad_(False)
    names = NAMES | {
        "rewards/accuracies": "train/accuracy",
        "rewards/margins": "train/gap",
        "rewards/chosen": "train/reward_chosen",
        "rewards/rejected": "train/reward_rejected",
        "kl": "train/kl",
    }
    callbacks = [report(on_log, name, names), restore_forward(model, reference)]
    with tempfile.TemporaryDirectory() as nowhere, _no_renaming():  # the trainer wants a folder in any case
        trainer = _on_token_ids(kind)(
            model=model,
            ref_model=reference,
            args=arguments(**_arguments(config, model, len(rows)), **saving(folder, save_every, nowhere), **own),
            train_dataset=Dataset.from_list(rows),
            processing_class=tokenizer,
            callbacks=callbacks,
        )
    trainer.remove_callback(PrinterCallback)
    return trainer


def _arguments(config: PreferenceConfig, model, rows: int) -> dict[str, Any]:
    from rlhf_lab.models import resolve_precision

    steps = math.ceil(rows / config.batch_size) * config.epochs
    return {
        "beta": config.beta,
        "num_train_epochs": config.epochs,
        "per_device_train_batch_size": batch_of_one(config.batch_size, "DPO or KTO"),
        "learning_rate": config.lr,
        "lr_scheduler_type": config.lr_schedule,
        "warmup_steps": int(steps * config.warmup_ratio),
        "weight_decay": config.weight_decay,
        "max_grad_norm": config.max_grad_norm,
        "max_length": None,  # cut already
        "logging_steps": max(1, int(steps // 40)),
        "logging_nan_inf_filter": False,
        "report_to": "none",
        "disable_tqdm": True,
        "seed": config.seed,
        "use_cpu": model.device.type == "cpu",
        "bf16": resolve_precision(config.precision, model) == "bf16",
        "gradient_checkpointing": False,
        "dataloader_pin_memory": False,
    }
