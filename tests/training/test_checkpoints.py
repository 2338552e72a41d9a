"""Stop and resume: a resumed run equals one that was never stopped, bit for bit; what is torn is refused."""

import random
import subprocess
import sys
import textwrap

import numpy as np
import pytest
import torch
from tiny import PROMPTS, count_words, make_config, make_policy, make_scorer, make_tokenizer, start

from rlhf_lab.errors import LabError
from rlhf_lab.training.checkpoints import load_checkpoint, load_training, save_training
from rlhf_lab.training.methods import METHODS
from rlhf_lab.training.metrics import ppo_metrics
from rlhf_lab.training.ppo import _update, ppo_updates
from rlhf_lab.training.pretraining import PretrainConfig, pretrain_start, pretrain_steps
from rlhf_lab.training.rejection_sampling import RAFTConfig, raft_rounds, raft_start
from rlhf_lab.training.reward_model import RewardModelConfig, reward_model_start, reward_model_steps

EVERYTHING = {
    "updates": 5,
    "kl_control": "ziegler",
    "kl_horizon": 100,
    "score_scaling": "running",
    "ema": 0.9,
    "warmup": 2,
    "ptx_coef": 0.5,
    "ptx_batch_size": 2,
    "samples_per_prompt": 2,
    "temperature": 0.8,
}
TEXTS = ["w2 w3 w4", "w5 w6 w7 w8", "w3 w9"]


def ppo(method: str = "ppo", **changes):
    settings = EVERYTHING | METHODS[method]
    fixed = {"kl_control": "fixed"} if settings["kl_in"] == "loss" else {}
    return start(make_config(**(settings | fixed | changes)), texts=TEXTS)


def reward_model(**changes):
    rows = [{"prompt": p, "completions": ["w3 w4", "w5", "w6 w7"], "ranks": [0, 1, 2]} for p in PROMPTS]
    config = RewardModelConfig(**({"epochs": 2, "batch_size": 4, "precision": "fp32"} | changes))
    return reward_model_start(config, make_scorer(), make_tokenizer(), rows)


def pretraining(**changes):
    config = {"steps": 8, "hidden_size": 16, "layers": 1, "heads": 2, "feed_forward": 24, "batch_tokens": 12}
    return pretrain_start(PretrainConfig(**(config | changes)), make_tokenizer(), TEXTS * 3)


STEPS = {ppo: ppo_updates, reward_model: reward_model_steps, pretraining: pretrain_steps}


def figures(state, result):
    return ppo_metrics(result, state.config) if hasattr(result, "rollout") else result._asdict()


def timeless(rows):
    return [{name: value for name, value in row.items() if not name.startswith("time/")} for row in rows]


@pytest.mark.parametrize("make", STEPS, ids=lambda make: make.__name__)
def test_resumed_equals_uninterrupted_bit_for_bit(make, tmp_path):
    whole, rows = make(), []
    for result in STEPS[make](whole):
        rows.append(figures(whole, result))
    first, again = make(), []
    for result in STEPS[make](first):
        again.append(figures(first, result))
        if len(again) == 2:
            break
    save_training(tmp_path, first, step=first.step)
    torch.manual_seed(99)  # another process would have other streams
    random.seed(99)
    np.random.seed(99)  # noqa: NPY002
    second = make()
    assert load_training(tmp_path, second) == first.step
    for result in STEPS[make](second):
        again.append(figures(second, result))
    assert timeless(again) == timeless(rows)
    parameters = [[p for g in state.optimizer.param_groups for p in g["params"]] for state in (whole, second)]
    assert all(torch.equal(a, b) for a, b in zip(*parameters, strict=True))
    if make is ppo:
        assert second.kl_coef == whole.kl_coef != whole.config.kl_coef
        assert all(torch.equal(a, b) for a, b in zip(second.average, whole.average, strict=True))
    assert torch.equal(torch.get_rng_state(), _rng_after(make, whole))


def _rng_after(make, whole):
    """The stream at the end of an uninterrupted run, made once more."""
    state = make()
    for _ in STEPS[make](state):
        pass
    return torch.get_rng_state()


@pytest.mark.parametrize("method", ["rloo", "grpo", "reinforce++"])
def test_the_relatives_resume_too(method, tmp_path):
    whole = ppo(method)
    rows = [figures(whole, update) for update in ppo_updates(whole)]
    first = ppo(method)
    next(ppo_updates(first))
    save_training(tmp_path, first, step=first.step)
    second = ppo(method)
    load_training(tmp_path, second)
    assert timeless(figures(second, update) for update in ppo_updates(second)) == timeless(rows[1:])


def raft():
    sft = {"epochs": 1, "lr": 0.05, "precision": "fp32", "batch_size": 2}
    config = RAFTConfig(rounds=3, prompts=3, k=3, max_new_tokens=4, sft=sft)
    texts = {"policy": make_policy(), "tokenizer": make_tokenizer(), "prompts": PROMPTS}
    return raft_start(config, reward=count_words, **texts)


def test_raft_resumes_behind_its_last_round(tmp_path):
    whole = raft()
    winners = [done.winners for done in raft_rounds(whole)]
    first = raft()
    next(raft_rounds(first))
    save_training(tmp_path, first, step=first.step)
    second = raft()
    assert load_training(tmp_path, second) == 1
    assert [done.winners for done in raft_rounds(second)] == winners[1:]
    ours, theirs = (dict(state.policy.named_parameters()) for state in (second, whole))
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_a_checkpoint_taken_while_sampling_is_that_of_the_last_whole_update(tmp_path):
    whole = ppo()
    rows = [figures(whole, update) for update in ppo_updates(whole)]
    state = ppo()
    calls = []

    def saving(prompts, completions, **columns):
        calls.append(1)
        if len(calls) == 3:
            save_training(tmp_path, state, step=state.step)
            raise KeyboardInterrupt
        return count_words(completions)

    state.reward = saving
    with pytest.raises(KeyboardInterrupt):
        list(ppo_updates(state))
    second = ppo()
    load_training(tmp_path, second)
    assert second.number == 2
    assert timeless(figures(second, update) for update in ppo_updates(second)) == timeless(rows[2:])


def test_an_update_that_was_done_and_not_yet_seen_is_seen_after_resuming(tmp_path):
    whole = ppo()
    rows = [figures(whole, update) for update in ppo_updates(whole)]
    state = ppo()
    next(ppo_updates(state))
    _update(state)  # as when Ctrl-C comes during the step
    assert state.step == 8 * 2  # one update has been seen
    save_training(tmp_path, state, step=state.step)
    second = ppo()
    load_training(tmp_path, second)
    assert timeless(figures(second, update) for update in ppo_updates(second)) == timeless(rows[1:])


def test_the_newest_few_and_the_best_are_kept(tmp_path):
    state = start(make_config(updates=4))
    for number, _ in enumerate(ppo_updates(state), 1):
        save_training(tmp_path, state, step=state.step, keep=2, best=number == 1)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["best", "step-000000024", "step-000000032"]
    old = start(make_config(updates=4))
    assert load_checkpoint(tmp_path / "best", old) == 8


def saved(tmp_path, **changes):
    state = start(make_config(**changes))
    next(ppo_updates(state))
    return save_training(tmp_path, state, step=state.step)


@pytest.mark.parametrize("name", ["weights.safetensors", "state.pt"])
@pytest.mark.parametrize("damage", ["cut", "empty", "gone", "nonsense"])
def test_a_torn_checkpoint_is_refused_in_one_line(tmp_path, name, damage):
    file = saved(tmp_path) / name
    data = file.read_bytes()
    if damage == "gone":
        file.unlink()
    else:
        file.write_bytes({"cut": data[: len(data) // 2], "empty": b"", "nonsense": b"\x00\x01nonsense" * 50}[damage])
    with pytest.raises(LabError, match=r"checkpoint .*step-000000008: cannot be read .*delete it") as caught:
        load_training(tmp_path, start(make_config()))
    assert "\n" not in str(caught.value)


def test_a_pickle_that_runs_code_is_refused(tmp_path):
    import pickle

    class Evil:
        def __reduce__(self):
            return (print, ("ran",))

    (saved(tmp_path) / "state.pt").write_bytes(pickle.dumps(Evil()))
    with pytest.raises(LabError, match="cannot be read"):
        load_training(tmp_path, start(make_config()))


@pytest.mark.parametrize(
    ("other", "message"),
    [
        (lambda: start(make_config(lr=0.5)), "was made with lr 0.001, not 0.5"),
        (lambda: start(make_config(), prompts=PROMPTS[::-1]), "learned from other data"),
        (lambda: start(make_config(), policy=make_policy("gpt2")), "weights of another model"),
        (reward_model, "not a RewardModelState"),
    ],
)
def test_a_foreign_checkpoint_is_refused_by_name(tmp_path, other, message):
    saved(tmp_path)
    with pytest.raises(LabError, match=message):
        load_training(tmp_path, other())


def test_without_a_checkpoint_it_starts_anew(tmp_path):
    assert load_training(tmp_path / "none", start(make_config())) == 0


KILLED = """
    import os, random, signal, sys, time
    from pathlib import Path
    sys.path.insert(0, {tests!r})
    import torch
    torch.set_num_threads(1)
    from tiny import make_config, start
    from rlhf_lab.training.checkpoints import load_training, save_training

    state, folder, rng, seen = start(make_config(updates=1)), Path(sys.argv[1]), random.Random(0), []
    for _ in range(25):
        said, says = os.pipe()
        child = os.fork()  # quicker than a start of torch
        if child == 0:
            step = load_training(folder, state)
            while True:
                step += 1
                save_training(folder, state, step=step, best=step % 3 == 0)
                os.write(says, b".")
        os.read(said, 1)  # one is saved, however slow the machine is
        time.sleep(rng.random() * 0.1)
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        seen.append(load_training(folder, state))  # an error, and the test with it, if what is left is torn
    print(*seen)
"""


def test_kill_at_any_moment_leaves_a_checkpoint_that_loads(tmp_path, request):
    """`kill -9` at 25 random moments of a process that does nothing but save. Each one goes on from what was left."""
    code = textwrap.dedent(KILLED.format(tests=str(request.config.rootpath / "tests")))
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "training")], capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr[-500:]
    seen = [int(word) for word in done.stdout.split()]
    assert len(seen) == 25 and seen == sorted(seen) and seen[-1] >= 25
