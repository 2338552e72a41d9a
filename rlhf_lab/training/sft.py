"""Supervised fine-tuning on demonstrations, by TRL. The only module that imports TRL's SFT trainer."""

import contextlib
import io
import math
import tempfile
from collections.abc import Callable
from typing import Literal

from pydantic import Field

from rlhf_lab.config import Config
from rlhf_lab.data import encode_pair
from rlhf_lab.errors import LabError, RunFailed


class SFTConfig(Config):
    """The settings of supervised fine-tuning. The loss is nats per token of the replies alone, EOS included."""

    epochs: float = Field(3.0, gt=0)
    batch_size: int = Field(16, ge=1)  # demonstrations in an optimizer step
    lr: float = Field(1e-3, gt=0)  # AdamW peak
    lr_schedule: Literal["linear", "cosine", "constant"] = "linear"
    warmup_ratio: float = Field(0.05, ge=0, le=1)
    weight_decay: float = Field(0.0, ge=0)
    max_length: int = Field(256, ge=2)  # tokens of prompt and reply; the prompt is cut from the left
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    seed: int = 0


def completion_only_rows(demonstrations, tokenizer, max_length: int) -> list[dict[str, list[int]]]:
    """Rows of `input_ids` and `labels`: the prompt's labels are -100, the reply's end in exactly one EOS.

    The split is made before TRL sees the data, so neither a merge across the boundary nor a pad token equal to EOS can
    move it. Errors: `LabError` naming the row whose reply does not fit.
    """
    rows = []
    for row in demonstrations:
        prompt, reply = encode_pair(tokenizer, row["prompt"], row["completion"], max_length=max_length)
        rows.append({"input_ids": prompt + reply, "labels": [-100] * len(prompt) + reply})
    return rows


def sft_trainer(
    config: SFTConfig, model, tokenizer, demonstrations, *, heldout=None, on_log: Callable[[dict], None] | None = None
):
    """A TRL `SFTTrainer` for columns prompt and completion; call its `train()`.

    `on_log` gets TRL's figures every few steps under the lab's names: `train/loss`, `lr`, `global_step`, `max_steps`, and
    `eval/loss` when `heldout` is given. Errors: `LabError` if there is nothing to train on.
    """
    from datasets import Dataset
    from trl import SFTConfig as TRLConfig
    from trl import SFTTrainer

    from rlhf_lab.models import resolve_precision

    if len(demonstrations) == 0:
        raise LabError("SFT: no demonstrations; give at least one")
    rows = completion_only_rows(demonstrations, tokenizer, config.max_length)
    held = completion_only_rows(heldout, tokenizer, config.max_length) if heldout is not None else None
    steps = math.ceil(len(rows) / config.batch_size) * config.epochs
    arguments = TRLConfig(
        output_dir=tempfile.mkdtemp(prefix="rlhf_lab-sft-"),  # nothing is written: the notebook saves the model
        num_train_epochs=config.epochs,
        per_device_train_batch_size=config.batch_size,
        per_device_eval_batch_size=64,
        learning_rate=config.lr,
        lr_scheduler_type=config.lr_schedule,
        warmup_steps=int(steps * config.warmup_ratio),
        weight_decay=config.weight_decay,
        max_length=config.max_length,
        logging_steps=max(1, int(steps // 40)),
        eval_strategy="epoch" if held else "no",
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        seed=config.seed,
        use_cpu=model.device.type == "cpu",
        bf16=resolve_precision(config.precision, model) == "bf16",
        gradient_checkpointing=False,
        dataloader_pin_memory=False,
        dataset_kwargs={"skip_prepare_dataset": True},
    )
    trainer = SFTTrainer(
        model=model,
        args=arguments,
        train_dataset=Dataset.from_list(rows),
        eval_dataset=Dataset.from_list(held) if held else None,
        processing_class=tokenizer,
        callbacks=[_report(on_log)],
    )
    from transformers.trainer_callback import PrinterCallback

    trainer.remove_callback(PrinterCallback)
    return trainer


def _report(on_log: Callable[[dict], None] | None):
    """A callback that renames TRL's figures and stops on a loss that is not finite."""
    from transformers import TrainerCallback

    names = {"loss": "train/loss", "learning_rate": "lr", "eval_loss": "eval/loss", "grad_norm": "policy/grad_norm"}

    class Report(TrainerCallback):
        def on_log(self, args, state, control, logs=None, **kwargs):
            figures = {names[k]: float(v) for k, v in (logs or {}).items() if k in names}
            if any(math.isnan(figures.get(name, 0.0)) for name in ("train/loss", "policy/grad_norm")):
                raise RunFailed(f"SFT step {state.global_step}: the loss is not a number; lower 'lr'")
            if figures and on_log is not None:
                on_log({**figures, "global_step": state.global_step, "max_steps": state.max_steps})

    return Report()


def quiet(function: Callable, *args, **kwargs):
    """Call a function without the lines that trainers print."""
    with contextlib.redirect_stdout(io.StringIO()):
        return function(*args, **kwargs)
