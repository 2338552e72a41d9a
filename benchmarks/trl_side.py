"""TRL's PPO on the files of `shapes.py`. Runs in an environment of its own, with TRL 1.12.0.

python trl_side.py FOLDER SHAPE UPDATES PRECISION LORA_RANK
"""

import json
import os
import sys
import time
from pathlib import Path

os.environ["TRL_EXPERIMENTAL_SILENCE"] = "1"
import torch
from datasets import Dataset
from shapes import SHAPES
from side import matrix_rate, peak_gb, report
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    TrainerCallback,
)
from trl.experimental.ppo import PPOConfig, PPOTrainer, ppo_trainer

folder, shape = Path(sys.argv[1]), SHAPES[sys.argv[2]]
updates, precision, rank = int(sys.argv[3]), sys.argv[4], int(sys.argv[5])
given = folder / "replies.json"  # the same replies for both sides, where the driver asks for them

tokenizer = AutoTokenizer.from_pretrained(folder / "policy", padding_side="left")
policy = AutoModelForCausalLM.from_pretrained(folder / "policy")
value = AutoModelForSequenceClassification.from_pretrained(folder / "value")
reward = AutoModelForSequenceClassification.from_pretrained(folder / "reward")
reference, options = None, {}
if rank:
    from peft import LoraConfig, get_peft_model

    lora = {"r": rank, "lora_alpha": 2 * rank, "target_modules": "all-linear"}
    options["peft_config"] = LoraConfig(task_type="CAUSAL_LM", **lora)
    value = get_peft_model(value, LoraConfig(task_type="SEQ_CLS", **lora))
else:
    reference = AutoModelForCausalLM.from_pretrained(folder / "policy")

prompts = json.loads((folder / "prompts.json").read_text())
rows = [{"input_ids": tokenizer(text)["input_ids"]} for text in prompts]
if given.exists():
    rows = rows[: shape.episodes]
    shown = json.loads(given.read_text())

    def replay(model, queries, batch_size, pad_id, config):
        """The given reply to each query, and the policy's logits of it."""
        replies = torch.tensor([shown[" ".join(f"t{t}" for t in query)] for query in queries.tolist()])
        whole = torch.cat([queries, replies], dim=1)
        logits = ppo_trainer.forward(model, whole, pad_id).logits[:, queries.shape[1] - 1 : -1]
        return whole, logits

    ppo_trainer.batch_generation = replay

ends = []


class Clock(TrainerCallback):
    """Notes when each update is over."""

    def on_train_begin(self, args, state, control, **_):
        ends.append(time.perf_counter())

    def on_step_end(self, args, state, control, **_):
        ends.append(time.perf_counter())


trainer = PPOTrainer(
    PPOConfig(
        output_dir=str(folder / "trl"),
        report_to="none",
        save_strategy="no",
        num_sample_generations=0,
        disable_tqdm=True,
        use_cpu=True,
        bf16=precision == "bf16",
        seed=0,
        per_device_train_batch_size=shape.episodes,
        gradient_accumulation_steps=1,
        local_rollout_forward_batch_size=shape.episodes,
        num_mini_batches=1,
        num_ppo_epochs=shape.epochs,
        total_episodes=updates * shape.episodes,
        response_length=shape.response,
        temperature=1.0,
        stop_token="eos",
        missing_eos_penalty=None,
        kl_coef=0.05,
        learning_rate=3e-6,
        lr_scheduler_type="constant",
    ),
    tokenizer,
    model=policy,
    ref_model=reference,
    reward_model=reward,
    value_model=value,
    train_dataset=Dataset.from_list(rows),
    eval_dataset=Dataset.from_list(rows[: shape.episodes]),
    callbacks=[Clock()],
    **options,
)
tokens = shape.episodes * (shape.prompt + shape.response)
dtype = torch.bfloat16 if precision == "bf16" else torch.float32
before = matrix_rate(shape.hidden, shape.feed_forward, tokens, dtype)
trainer.train()
after = matrix_rate(shape.hidden, shape.feed_forward, tokens, dtype)
logged = trainer.state.log_history[-1] if trainer.state.log_history else {}
if given.exists():
    torch.save({"policy": policy.state_dict(), "value": value.state_dict()}, folder / "trl.pt")
report(
    seconds=[end - start for start, end in zip(ends, ends[1:], strict=False)],
    rate=(before + after) / 2,
    peak_gb=peak_gb(),
    precision=precision,
    logged={name: value for name, value in logged.items() if name.startswith(("loss", "objective", "policy", "val"))},
)
