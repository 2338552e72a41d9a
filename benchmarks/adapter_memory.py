"""Memory of one PPO update by role, in each way in which the four models can share.

    python benchmarks/adapter_memory.py

Four models; the critic on the policy's trunk; policy, reference and critic on one base beside a reward model of its
own; all four on one base. Weights, gradients and moments are counted from the tensors, each once, in the order
reference, policy, critic, reward model: the base counts as the reference, which is the policy without its adapter.
Resident is what the process grew by from just before the models were loaded: at the end of the update, and at its
peak, which adds the activations of a micro-batch. Each case runs in a process of its own, in which freed tensors go
back to the system at once.
"""

import argparse
import gc
import json
import os
import subprocess
import sys
import tempfile
import threading
import time

import psutil
import torch
import transformers

from rlhf_lab.models import LoraConfig, SharedBase, load_policy, load_scorer, load_tokenizer, save_policy, shared_scorer
from rlhf_lab.rewards import ModelReward
from rlhf_lab.sandbox.world import World
from rlhf_lab.training.ppo import PPOConfig, ppo_start, ppo_updates

LORA = LoraConfig(rank=8, alpha=16)
LLAMA = {"hidden_size": 256, "intermediate_size": 704, "num_hidden_layers": 6, "num_attention_heads": 8}
CONFIG = PPOConfig(
    updates=1, batch_size=32, minibatches=2, micro_batch_size=4, epochs=1, max_new_tokens=20, precision="fp32"
)


def main() -> None:
    """Run all cases and print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--case", nargs=2, metavar=("PATH", "ROLES"), help="one case in this process, as JSON")
    asked = parser.parse_args()
    if asked.case:
        print(json.dumps(measure(*asked.case)))
        return
    names = (
        "reference",
        "policy",
        "critic",
        "reward",
        "weights",
        "gradients",
        "moments",
        "together",
        "resident",
        "at peak",
    )
    print(f"| model | roles | {' | '.join(names)} |")
    print("| --- | --- |" + " ---: |" * len(names))
    own_pages = os.environ | {"MALLOC_MMAP_THRESHOLD_": "65536"}  # glibc would keep what is freed
    with tempfile.TemporaryDirectory() as folder:
        for name, path in {"sandbox": World.load("default").base_model, "Llama shape": write_llama(folder)}.items():
            for roles in MODES:
                command = [sys.executable, __file__, "--case", str(path), roles]
                done = subprocess.run(command, check=True, capture_output=True, text=True, env=own_pages)
                found = json.loads(done.stdout.splitlines()[-1])  # the lab may say something before
                by_kind = [sum(kind) for kind in zip(*found["roles"], strict=True)]
                sizes = [*map(sum, found["roles"]), *by_kind, sum(by_kind), found["resident"], found["peak"]]
                cells = " | ".join(f"{size / 2**20:.2f}" for size in sizes)
                print(f"| {name}, {found['parameters']:,} parameters | {roles} | {cells} |", flush=True)


def write_llama(folder: str) -> str:
    """A Llama of about five million random weights, with the sandbox's tokenizer."""
    tokenizer = load_tokenizer(World.load("default").base_model)
    torch.manual_seed(0)
    config = transformers.LlamaConfig(vocab_size=len(tokenizer), max_position_embeddings=256, **LLAMA)
    save_policy(f"{folder}/llama", transformers.LlamaForCausalLM(config), tokenizer)
    return f"{folder}/llama"


def separate(path: str):
    """Policy, reference, critic and reward model, each a model of its own, trained whole."""
    policy, reference = load_policy(path), load_policy(path, trainable=False)
    return policy, reference, load_scorer(path, head="zero"), load_scorer(path, head="new", trainable=False)


def trunk(path: str):
    """As separate ones, but the critic is a head on the policy's trunk."""
    policy, reference = load_policy(path), load_policy(path, trainable=False)
    return policy, reference, shared_scorer(path, policy), load_scorer(path, head="new", trainable=False)


def own_reward(path: str):
    """Policy and critic as adapters on one base, which is the reference, beside a whole reward model."""
    base = SharedBase(path)
    reward = load_scorer(path, head="new", trainable=False)
    return base.policy(LORA), base.reference(), base.scorer(LORA, name="critic"), reward


def shared(path: str):
    """The four as adapters and heads on one base."""
    base = SharedBase(path)
    reward = base.scorer(LORA, name="reward", head="new").requires_grad_(False)
    return base.policy(LORA), base.reference(), base.scorer(LORA, name="critic"), reward


MODES = {
    "four models": separate,
    "critic on the policy's trunk": trunk,
    "adapters, reward model apart": own_reward,
    "adapters, all on one base": shared,
}


def measure(path: str, roles: str) -> dict:
    """Bytes after and during one PPO update."""
    tokenizer, prompts = load_tokenizer(path), World.load("default").prompts("train", CONFIG.batch_size, 0)
    load_policy(path), load_scorer(path)  # what libraries load at first use is not the models'
    with Peak() as peak:
        models = MODES[roles](path)
        policy, reference, critic, reward = models
        state = ppo_start(
            CONFIG,
            policy=policy,
            reference=reference,
            critic=critic,
            reward=ModelReward(reward, tokenizer, tokenizer),
            tokenizer=tokenizer,
            prompts=prompts,
        )
        list(ppo_updates(state))
        resident = peak.look()
    kept, seen = [], set()
    for model in (reference, policy, critic, reward):
        own = {p.data_ptr(): p for p in model.parameters() if p.data_ptr() not in seen}
        seen |= set(own)
        gradients = [p.grad for p in own.values() if p.grad is not None]
        moments = [value for p in own.values() for value in state.optimizer.state.get(p, {}).values()]
        kept.append([size(own.values()), size(gradients), size(moments)])
    return {
        "parameters": sum(p.numel() for p in reference.parameters()),
        "roles": kept,
        "resident": resident,
        "peak": peak.grown,
    }


def size(tensors) -> int:
    """Bytes of tensors."""
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


class Peak:
    """How many bytes the process grows by, at its peak, looked at every millisecond."""

    def __enter__(self):
        self.process, self.grown, self.done = psutil.Process(), 0, threading.Event()
        self.before = self.process.memory_info().rss
        self.watcher = threading.Thread(target=self._watch, daemon=True)
        self.watcher.start()
        return self

    def __exit__(self, *_):
        self.done.set()
        self.watcher.join()

    def look(self) -> int:
        """Bytes grown by so far."""
        gc.collect()
        return self.process.memory_info().rss - self.before

    def _watch(self) -> None:
        while not self.done.is_set():
            self.grown = max(self.grown, self.process.memory_info().rss - self.before)
            time.sleep(0.001)


if __name__ == "__main__":
    main()
