"""What the tests of several processes do in each of them: torchrun starts this file with a task and a folder."""

import os
import signal
import sys
from pathlib import Path

import torch
from tiny import PROMPTS, count_words, make_config, make_policy, make_scorer, make_tokenizer, start

from rlhf_lab.models import LoraConfig, SharedBase
from rlhf_lab.models.shards import whole
from rlhf_lab.training import sft
from rlhf_lab.training.checkpoints import load_training, save_training
from rlhf_lab.training.metrics import ppo_metrics
from rlhf_lab.training.ppo import ppo_updates
from rlhf_lab.training.preference_tuning import DPOConfig, KTOConfig, dpo_trainer, kto_trainer, labelled_replies
from rlhf_lab.training.pretraining import PretrainConfig, pretrain_start, pretrain_steps
from rlhf_lab.training.processes import launched
from rlhf_lab.training.reward_model import RewardModelConfig, reward_model_start, reward_model_steps
from rlhf_lab.workbench.resuming import Keeper
from rlhf_lab.workbench.runs import Run

TEXTS = ["w2 w3 w4", "w5 w6 w7 w8", "w3 w9"]
ALL = {
    "updates": 4,
    "batch_size": 7,  # does not go evenly into two processes, nor into minibatches
    "samples_per_prompt": 2,
    "minibatches": 3,
    "micro_batch_size": 2,
    "kl_control": "ziegler",
    "kl_horizon": 100,
    "score_scaling": "running",
    "ema": 0.9,
    "ptx_coef": 0.5,
    "ptx_batch_size": 3,
    "temperature": 0.8,
    "entropy_coef": 0.01,
}
PPO = {
    "everything": ALL,
    "sequence": {"reduction": "sequence", "whiten": "minibatch", "critic_warmup": 1, "target_kl": 1e-4},
    "grpo": {"advantage": "grpo", "samples_per_prompt": 3, "kl_in": "loss", "kl_kind": "k3", "batch_size": 5},
    "drawing": {"batch_size": 7, "updates": 2},
    "reinforce++": {"advantage": "reinforce++", "batch_size": 3, "minibatches": 1},
}
RANKED = [
    {"prompt": p, "completions": ["w3 w4", "w5", "w6 w7", "w8 w9 w2"][: 2 + n % 3], "ranks": [0, 1, 1, 2][: 2 + n % 3]}
    for n, p in enumerate(PROMPTS[:13])
]
RATED = [{"prompt": p, "completion": f"w{2 + n % 9} w4", "rating": n % 5 + 1} for n, p in enumerate(PROMPTS[:13])]


def steps_of(name: str, accelerator):
    """A state and the steps of its training, of a case's name."""
    if name in PPO:
        config = make_config(**PPO[name])
        options = {"reward": one_that_draws} if name == "drawing" else {}
        state = start(config, texts=TEXTS if config.ptx_coef else None, accelerator=accelerator, **options)
        return state, ppo_updates(state)
    if name == "pretraining":
        config = {"steps": 8, "hidden_size": 16, "layers": 1, "heads": 2, "feed_forward": 24, "batch_tokens": 8}
        state = pretrain_start(PretrainConfig(**config), make_tokenizer(), TEXTS * 3, accelerator=accelerator)
        return state, pretrain_steps(state)
    loss = {"loss": name} if name in ("regression", "bins") else {}
    config = RewardModelConfig(epochs=2, batch_size=4, precision="fp32", **loss)
    rows = RATED if loss else RANKED
    rows = rows[:12] if name == "even rankings" else rows
    state = reward_model_start(config, make_scorer(), make_tokenizer(), rows, accelerator=accelerator)
    return state, reward_model_steps(state)


CASES = [*PPO, "rankings", "regression", "pretraining"]


def one_that_draws(completions: list[str], **_) -> list[float]:
    """A reward that takes torch's random numbers in one process and not in another."""
    torch.rand(int(os.environ.get("RANK", 0)))
    return count_words(completions)


def adapters(folder: Path, accelerator):
    """PPO with policy and critic as adapters on the base in `folder`."""
    torch.manual_seed(5)
    shared = SharedBase(folder / "base")
    lora = LoraConfig(rank=2, alpha=4)
    config = make_config(updates=2)
    models = {"policy": shared.policy(lora), "reference": shared.reference(), "critic": shared.scorer(lora)}
    state = start(config, **models, accelerator=accelerator)
    return state, ppo_updates(state)


def preferences(name: str) -> dict:
    """DPO or KTO by TRL, which shares out the batches itself."""
    rows = [{"prompt": p, "chosen": "w3 w4 w5"[: 2 + 3 * (n % 3)], "rejected": "w6 w7"} for n, p in enumerate(PROMPTS)]
    kind, method = (DPOConfig, dpo_trainer) if name == "dpo" else (KTOConfig, kto_trainer)
    policy, logs = make_policy(), []
    data = rows if name == "dpo" else labelled_replies(rows)
    config = kind(batch_size=8, lr=3e-3, beta=2.0, precision="fp32")
    sft.train(method(config, policy, make_tokenizer(), data, on_log=logs.append))
    return {"figures": logs, "weights": [p.detach().clone() for p in policy.parameters()]}


def seen(state, result) -> dict[str, float]:
    """The figures of a step, without times."""
    figures = ppo_metrics(result, state.config) if hasattr(result, "rollout") else result._asdict()
    return {name: float(value) for name, value in figures.items() if not name.startswith("time/")}


def weights(state) -> list[torch.Tensor]:
    return [p.detach().clone() for group in state.optimizer.param_groups for p in group["params"]]


def trained(state, steps) -> dict:
    """What a training leaves: the figures of its steps, its weights, and PPO's last rollout."""
    results = list(steps)
    left = {"figures": [seen(state, result) for result in results], "weights": weights(state)}
    return left | ({"rollout": results[-1].rollout._asdict()} if hasattr(results[-1], "rollout") else {})


def equal_to_one_process(folder: Path, accelerator) -> None:
    """Train all cases; and one of them in two parts, of which the second goes on from a checkpoint."""
    found = {name: trained(*steps_of(name, accelerator)) for name in CASES}
    found["adapters"] = trained(*adapters(folder, accelerator))
    found |= {name: preferences(name) for name in ("dpo", "kto")}
    first, steps = steps_of("everything", accelerator)
    next(steps), next(steps)
    save_training(folder / "training", first, step=first.step)
    accelerator.wait_for_everyone()
    again, steps = steps_of("everything", accelerator)
    load_training(folder / "training", again)
    found["resumed"] = trained(again, steps)
    torch.save(found, folder / f"process-{accelerator.process_index}.pt")


def sharded(folder: Path, accelerator) -> None:
    """The same with the weights in shards, where replies end at different times."""
    from rlhf_lab.models import save_policy

    found = {}
    for name, changes in SHARDED.items():
        state = start(make_config(**changes), texts=TEXTS, accelerator=accelerator)
        local = sum(p.to_local().numel() for p in weights(state))
        left = trained(state, ppo_updates(state))
        found[name] = left | {"weights": whole(left["weights"]), "local": local}
        save_training(folder / name, state, step=state.step)
        save_policy(folder / f"{name}-{accelerator.process_index}", state.policy, make_tokenizer())
    state, steps = steps_of("even rankings", accelerator)
    left = trained(state, steps)
    found["rankings"] = left | {"weights": whole(left["weights"])}
    state.scorer.save(folder / "scorer", make_tokenizer())
    accelerator.wait_for_everyone()
    state = start(make_config(**SHARDED["gae"] | {"updates": 3}), texts=TEXTS, accelerator=accelerator)
    load_training(folder / "early", state)
    found["resumed"] = {"weights": whole(trained(state, ppo_updates(state))["weights"])}
    torch.save(found, folder / f"process-{accelerator.process_index}.pt")


GAE = {"updates": 3, "batch_size": 8, "micro_batch_size": 2, "ema": 0.9, "ptx_coef": 0.5, "ptx_batch_size": 2}
SHARDED = {"gae": GAE, "grpo": {"advantage": "grpo", "samples_per_prompt": 4, "batch_size": 2}}


def a_run(folder: Path, accelerator) -> None:
    """A run as a notebook has it.

    Options: its directory, whether to resume, the update after which process WHO_DIES (1) dies, the one in which 0 is
    interrupted.
    """
    run_dir, resume, dies, interrupted = sys.argv[3], sys.argv[4] == "resume", int(sys.argv[5]), int(sys.argv[6])
    settings = make_config(updates=6, kl_control="ziegler")
    calls = []

    def reward(completions: list[str], **_) -> list[float]:
        calls.append(1)
        if len(calls) == interrupted and accelerator.process_index == 0:
            os.kill(os.getpid(), signal.SIGINT)
        return count_words(completions)

    who = int(os.environ.get("WHO_DIES", "1"))
    state = start(settings, reward=reward, accelerator=accelerator)
    with Run.start("ppo", settings, run_dir=run_dir, resume=resume, accelerator=accelerator) as run:
        keeper = Keeper(Kept(resume), run, state)
        for update in ppo_updates(state):
            run.log({k: v for k, v in seen(state, update).items() if k != "episode"}, step=update.episode)
            run.log_samples([{"reply": update.number}], step=update.episode)
            keeper()
            if update.number == dies and accelerator is not None and accelerator.process_index == who:
                os.kill(os.getpid(), signal.SIGKILL)
        torch.save(whole(weights(state)), run.file("weights.pt"))
        run.finish({})


class Kept:
    """What a keeper asks of the settings."""

    save_every = 2

    def __init__(self, resume: bool):
        self.resume = resume


if __name__ == "__main__":
    accelerator = launched()
    {"equal": equal_to_one_process, "sharded": sharded, "run": a_run}[sys.argv[1]](Path(sys.argv[2]), accelerator)
