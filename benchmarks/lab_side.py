"""The lab's PPO on the files of `shapes.py`.

python lab_side.py FOLDER SHAPE UPDATES PRECISION LORA_RANK
"""

import json
import sys
import time
from pathlib import Path

import torch
from shapes import SHAPES
from side import matrix_rate, peak_gb, report

from rlhf_lab.models import LoraConfig, SharedBase, load_policy, load_scorer, load_tokenizer, resolve_precision
from rlhf_lab.models.generation import Generation
from rlhf_lab.rewards import ModelReward
from rlhf_lab.training import rollouts
from rlhf_lab.training.ppo import PPOConfig, ppo_start, ppo_updates

folder, shape = Path(sys.argv[1]), SHAPES[sys.argv[2]]
updates, precision, rank = int(sys.argv[3]), sys.argv[4], int(sys.argv[5])
given = folder / "replies.json"  # the same replies for both sides, where the driver asks for them

tokenizer = load_tokenizer(folder / "policy")
if rank:
    lora = LoraConfig(rank=rank, alpha=2 * rank)
    base = SharedBase(str(folder / "policy"))
    policy, reference = base.policy(lora), base.reference()
    critic = base.scorer(lora, name="critic")
    reward = base.scorer(lora, name="reward", head="new").requires_grad_(False)
else:
    policy, reference = load_policy(folder / "policy"), load_policy(folder / "policy", trainable=False)
    critic, reward = load_scorer(folder / "value"), load_scorer(folder / "reward", trainable=False)
precision = resolve_precision(precision, policy)
config = PPOConfig(
    updates=updates,
    batch_size=shape.episodes,
    epochs=shape.epochs,
    minibatches=1,
    micro_batch_size=shape.micro_batch,
    max_new_tokens=shape.response,
    missing_eos_penalty=0,
    kl_coef=0.05,
    lr=3e-6,
    critic_lr=3e-6,
    decay="off",
    adam_eps=1e-8,
    max_grad_norm=1e9,  # TRL's PPO does not clip
    precision=precision,
)
prompts = json.loads((folder / "prompts.json").read_text())
if given.exists():
    prompts = prompts[: shape.episodes]
    shown = json.loads(given.read_text())

    def replay(model, prompt_ids, prompt_mask, **_):
        """The given reply to each prompt."""
        ids = torch.tensor([shown[" ".join(f"t{t}" for t in prompt)] for prompt in prompt_ids.tolist()])
        ended = ids == tokenizer.eos_token_id
        mask = ended.long().cumsum(1) - ended.long() == 0
        return Generation(ids, mask, ended.any(1))

    rollouts.generate = replay
state = ppo_start(
    config,
    policy=policy,
    reference=reference,
    critic=critic,
    reward=ModelReward(reward, tokenizer, tokenizer, precision=precision),
    tokenizer=tokenizer,
    prompts=prompts,
)
tokens = shape.episodes * (shape.prompt + shape.response)
dtype = torch.bfloat16 if precision == "bf16" else torch.float32
kinds = {"float32": torch.float32, "bfloat16": torch.bfloat16}
rates = {name: matrix_rate(shape.hidden, shape.feed_forward, tokens, kind) for name, kind in kinds.items()}
before = matrix_rate(shape.hidden, shape.feed_forward, tokens, dtype)
seconds, parts, start = [], [], time.perf_counter()
for update in ppo_updates(state):
    seconds.append(time.perf_counter() - start)
    parts.append(update.seconds | {"tokens": int(update.rollout.response_mask.sum())})
    start = time.perf_counter()
after = matrix_rate(shape.hidden, shape.feed_forward, tokens, dtype)
stats = update.stats
if given.exists():
    torch.save({"policy": policy.state_dict(), "value": critic.model.state_dict()}, folder / "lab.pt")
report(
    seconds=seconds,
    parts=parts,
    rate=(before + after) / 2,
    rates=rates,
    peak_gb=peak_gb(),
    precision=precision,
    logged={
        "loss/policy_avg": stats.policy_loss,
        "loss/value_avg": stats.value_loss,
        "policy/approxkl_avg": stats.approx_kl,
        "policy/entropy_avg": stats.entropy,
        "objective/scores": float(update.rollout.scores.mean()),
    },
)
