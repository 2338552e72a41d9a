"""Supervised fine-tuning on demonstrations, by TRL. The only module that imports TRL's SFT trainer."""

import contextlib
import io
import json
import math
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Literal

from pydantic import Field

from rlhf_lab.config import Config
from rlhf_lab.data import encode_pair
from rlhf_lab.errors import LabError, RunFailed
from rlhf_lab.training.interrupts import interrupts_noted
from rlhf_lab.training.memory import give_back
from rlhf_lab.training.processes import batch_of_one, launched_processes, lost_connection

NAMES = {"loss": "train/loss", "learning_rate": "lr", "eval_loss": "eval/loss", "grad_norm": "policy/grad_norm"}


class SFTConfig(Config):
    """The settings of supervised fine-tuning. The loss is nats per token of the replies alone, EOS included."""

    epochs: float = Field(3.0, gt=0)  # passes over the demonstrations
    batch_size: int = Field(16, ge=1)  # demonstrations in an optimizer step
    lr: float = Field(1e-3, gt=0)  # AdamW peak
    lr_schedule: Literal["linear", "cosine", "constant"] = "linear"  # behind the warm-up
    warmup_ratio: float = Field(0.05, ge=0, le=1)  # share of the steps with a rising lr
    weight_decay: float = Field(0.0, ge=0)  # AdamW's
    max_length: int = Field(256, ge=2)  # tokens of prompt and reply; the prompt is cut from the left
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    seed: int = 0


def completion_only_rows(demonstrations, tokenizer, max_length: int) -> list[dict[str, list[int]]]:
    """Rows of `input_ids` and `labels`: the prompt's labels are -100, the reply's end in exactly one EOS.

    The split is made before TRL sees the data, so neither a merge across the boundary nor a pad token equal to EOS can
    move it. Errors: `LabError` naming the row whose reply does not fit.
    """
    rows = []
    for number, row in enumerate(demonstrations, 1):
        try:
            prompt, reply = encode_pair(tokenizer, row["prompt"], row["completion"], max_length=max_length)
        except LabError as error:
            raise LabError(f"demonstrations, row {number}: {error}") from None
        rows.append({"input_ids": prompt + reply, "labels": [-100] * len(prompt) + reply})
    return rows


def sft_trainer(
    config: SFTConfig,
    model,
    tokenizer,
    demonstrations,
    *,
    heldout=None,
    on_log: Callable[[dict], None] | None = None,
    folder: Path | None = None,
    save_every: int = 0,
):
    """A TRL `SFTTrainer` for columns prompt and completion; give it to `train`, once.

    folder: where it keeps checkpoints to resume from, the last two, every `save_every` steps; 0 = only when stopped.

    `on_log` gets TRL's figures every few steps under the lab's names: `train/loss`, `lr`, `policy/grad_norm`,
    `global_step`, `max_steps`, and `eval/loss` when `heldout` is given. Errors: `LabError` if there is nothing to
    train on; `train()` raises `RunFailed` on a loss that is not finite.
    """
    from datasets import Dataset
    from transformers.trainer_callback import PrinterCallback
    from trl import SFTTrainer

    from rlhf_lab.models.inputs import context_length

    if hasattr(model, "get_base_model"):  # an adapter on a shared base: trainers want a model of transformers
        model = model.get_base_model()
    if len(demonstrations) == 0:
        raise LabError("SFT: no demonstrations; give at least one")
    longest = min(config.max_length, context_length(model) or config.max_length)
    rows = completion_only_rows(demonstrations, tokenizer, longest)
    held = completion_only_rows(heldout, tokenizer, longest) if heldout is not None else None
    callbacks = [report(on_log, "SFT", NAMES), restore_forward(model)]
    with tempfile.TemporaryDirectory() as nowhere:  # the trainer wants a folder, also to write nothing into it
        trainer = SFTTrainer(
            model=model,
            args=_arguments(config, model, len(rows), saving(folder, save_every, nowhere), evaluate=bool(held)),
            train_dataset=Dataset.from_list(rows),
            eval_dataset=Dataset.from_list(held) if held else None,
            processing_class=tokenizer,
            callbacks=callbacks,
        )
    trainer.remove_callback(PrinterCallback)
    return trainer


def train(trainer, checkpoint: Path | None = None) -> None:
    """Train to the end, from a checkpoint where one is given.

    Ctrl-C and SIGTERM wait for the end of a step; a trainer that keeps checkpoints then saves one before it stops.
    Errors: `RunFailed` on a loss that is not finite; `LabError` if the checkpoint cannot be read.
    """
    if checkpoint is not None and not (checkpoint / "model.safetensors").is_file():
        raise LabError(f"checkpoint {checkpoint}: has no model.safetensors; delete it to go on from an older one")
    held: list[tuple] = []
    trainer.add_callback(_stop_when(held))
    with interrupts_noted(held):
        try:
            quiet(trainer.train, resume_from_checkpoint=str(checkpoint) if checkpoint else None)
        except RuntimeError as error:
            count = launched_processes()
            if count > 1 and (lost := lost_connection(error, "training", count)):
                raise lost from error
            raise


def last_checkpoint(folder: Path) -> Path | None:
    """The newest whole checkpoint that a trainer kept in `folder`: the state is what it writes last."""
    found = []
    for path in folder.glob("checkpoint-*"):
        with contextlib.suppress(OSError, ValueError):
            found.append((json.loads((path / "trainer_state.json").read_text())["global_step"], path))
    return max(found)[1] if found else None


def saving(folder: Path | None, save_every: int, nowhere: str) -> dict:
    """What a trainer is told of its checkpoints. nowhere: the folder that it wants where it is to keep none."""
    if folder is None:
        return {"output_dir": nowhere, "save_strategy": "no"}
    every = save_every or 10**9
    return {"output_dir": str(folder), "save_strategy": "steps", "save_steps": every, "save_total_limit": 2}


def _told_any(held: list) -> bool:
    """Whether any of the processes was told to stop: they stop together."""
    if launched_processes() == 1:
        return bool(held)
    from accelerate.utils import gather_object

    return any(gather_object([bool(held)]))


def _stop_when(held: list):
    from transformers import TrainerCallback

    class Stop(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            if _told_any(held):
                control.should_training_stop, control.should_save = True, args.save_strategy != "no"

    return Stop()


def _arguments(config: SFTConfig, model, rows: int, saving: dict, *, evaluate: bool):
    from trl import SFTConfig as TRLConfig

    from rlhf_lab.models import resolve_precision

    steps = math.ceil(rows / config.batch_size) * config.epochs
    with warnings.catch_warnings():  # transformers renames an argument that TRL's config still has by its old name
        warnings.filterwarnings("ignore", message="`gradient_checkpointing` is deprecated", category=FutureWarning)
        return TRLConfig(
            num_train_epochs=config.epochs,
            per_device_train_batch_size=batch_of_one(config.batch_size, "SFT"),
            per_device_eval_batch_size=64,
            learning_rate=config.lr,
            lr_scheduler_type=config.lr_schedule,
            warmup_steps=int(steps * config.warmup_ratio),
            weight_decay=config.weight_decay,
            max_length=config.max_length,
            logging_steps=max(1, int(steps // 40)),
            logging_nan_inf_filter=False,  # the filter replaces a loss that is no number by the mean of those before
            eval_strategy="epoch" if evaluate else "no",
            **saving,
            report_to="none",
            disable_tqdm=True,
            seed=config.seed,
            use_cpu=model.device.type == "cpu",
            bf16=resolve_precision(config.precision, model) == "bf16",
            gradient_checkpointing=False,
            dataloader_pin_memory=False,
            dataset_kwargs={"skip_prepare_dataset": True},
        )


def report(on_log: Callable[[dict], None] | None, method: str, names: dict[str, str]):
    """A callback that renames TRL's figures (theirs -> ours) and stops on a loss that is not finite."""
    from transformers import TrainerCallback

    class Report(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            give_back()

        def on_log(self, args, state, control, logs=None, **kwargs):
            logs = logs or {}
            for name in ("loss", "grad_norm", "eval_loss", "train_loss"):  # the last is the mean of all steps
                if not math.isfinite(logs.get(name, 0.0)):
                    raise RunFailed(f"{method} step {state.global_step}: {name} is {logs[name]}; lower 'lr'")
            figures = {names[k]: float(v) for k, v in logs.items() if k in names}
            if figures and on_log is not None:
                on_log({**figures, "global_step": state.global_step, "max_steps": state.max_steps})

    return Report()


def restore_forward(*models):
    """A callback that gives the models their own forward back.

    TRL and accelerate replace it on the instance by a closure over this very model: a copy made for a frozen reference
    would go on computing with the weights of the original.
    """
    from transformers import TrainerCallback

    own = [vars(model).get("forward") for model in models]

    class Restore(TrainerCallback):
        def on_train_end(self, args, state, control, **kwargs):
            for model, forward in zip(models, own, strict=True):
                vars(model).pop("forward", None)
                if forward is not None:
                    model.forward = forward

    return Restore()


def quiet(function: Callable, *args, **kwargs):
    """Call a function without the lines that trainers print."""
    with contextlib.redirect_stdout(io.StringIO()):
        return function(*args, **kwargs)
