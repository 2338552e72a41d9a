"""Several processes train as one does: real processes by torchrun, over gloo on the loopback."""

import json
import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from process_work import CASES, GAE, SHARDED, TEXTS, adapters, preferences, steps_of, trained, weights
from tiny import make_config, make_policy, make_tokenizer, start

from rlhf_lab.errors import LabError
from rlhf_lab.models import load_policy, load_scorer, save_policy
from rlhf_lab.sandbox.world import World
from rlhf_lab.training.checkpoints import load_training, save_training
from rlhf_lab.training.ppo import ppo_updates
from rlhf_lab.training.processes import Processes, batch_of_one, lost_connection
from rlhf_lab.workbench.launch import main
from rlhf_lab.workbench.records import read_status

HERE = Path(__file__).parent
NEAR = {"rtol": 1e-3, "atol": 2e-5}  # float32, in another order of summation, over some tens of Adam's steps


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def torchrun(*arguments, processes: int = 2, **environment) -> subprocess.CompletedProcess:
    """Start processes on a free port of the loopback, with one thread each."""
    paths = [str(HERE.parents[1]), str(HERE.parent), os.environ.get("PYTHONPATH", "")]
    command = [sys.executable, "-m", "torch.distributed.run", f"--nproc_per_node={processes}"]
    return subprocess.run(
        [*command, "--master_addr=127.0.0.1", f"--master_port={free_port()}", *map(str, arguments)],
        env=os.environ | {"PYTHONPATH": os.pathsep.join(paths), "OMP_NUM_THREADS": "1"} | environment,
        capture_output=True,
        text=True,
        timeout=600,
    )


def work(task: str, folder: Path, *options, **environment) -> None:
    done = torchrun(HERE / "process_work.py", task, folder, *options, **environment)
    assert done.returncode == 0, done.stderr[:3000]


def near(ours, theirs, name="") -> None:
    """Equal to rounding, all the way down."""
    if isinstance(ours, dict):
        assert ours.keys() == theirs.keys(), name
        for key in ours:
            near(ours[key], theirs[key], f"{name}.{key}")
    elif isinstance(ours, list):
        assert len(ours) == len(theirs), name
        for number, pair in enumerate(zip(ours, theirs, strict=True)):
            near(*pair, f"{name}[{number}]")
    else:
        torch.testing.assert_close(torch.as_tensor(ours), torch.as_tensor(theirs), msg=lambda m: f"{name}: {m}", **NEAR)


def identical(ours, theirs) -> bool:
    if isinstance(ours, dict):
        return ours.keys() == theirs.keys() and all(identical(ours[key], theirs[key]) for key in ours)
    if isinstance(ours, list):
        return len(ours) == len(theirs) and all(identical(*pair) for pair in zip(ours, theirs, strict=True))
    return torch.equal(torch.as_tensor(ours), torch.as_tensor(theirs)) or (ours != ours and theirs != theirs)


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    """What each of two processes was left with, and their folder."""
    folder = tmp_path_factory.mktemp("two")
    save_policy(folder / "base", make_policy(), make_tokenizer())
    work("equal", folder)
    return [torch.load(folder / f"process-{rank}.pt") for rank in (0, 1)], folder


@pytest.mark.slow
def test_two_processes_are_alike_bit_for_bit(two):
    first, second = (dict(found) for found in two[0])
    assert set(first) == {*CASES, "adapters", "dpo", "kto", "resumed"}
    for found in (first, second):
        found |= {name: found[name]["weights"] for name in ("dpo", "kto")}  # TRL tells figures to one
    assert identical(first, second)


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_two_processes_train_as_one(two, case):
    """Rollout, every figure and all weights: 7 prompts, minibatches of 4 and 5, micro-batches of 2, ragged rankings."""
    near(two[0][0][case], trained(*steps_of(case, None)), case)


@pytest.mark.slow
@pytest.mark.parametrize("method", ["dpo", "kto"])
def test_trls_methods_train_as_in_one_process(two, method):
    near(two[0][0][method], preferences(method))


@pytest.mark.slow
def test_adapters_train_as_in_one_process(two):
    near(two[0][0]["adapters"], trained(*adapters(two[1], None)))


@pytest.mark.slow
def test_two_processes_resume_bit_for_bit_and_one_goes_on_from_what_they_left(two):
    (first, _), folder = two
    assert identical(first["resumed"]["weights"], first["everything"]["weights"])
    assert identical(first["resumed"]["figures"], first["everything"]["figures"][2:])
    state, steps = steps_of("everything", None)
    assert load_training(folder / "training", state) == 2 * 7 * 2
    near(trained(state, steps)["weights"], first["everything"]["weights"])


@pytest.mark.slow
def test_sharded_weights_train_as_whole_ones(tmp_path):
    """FSDP2: each process keeps half; checkpoints and models are written whole, and are those of one process."""
    early = start(make_config(**GAE), texts=TEXTS)
    next(ppo_updates(early))
    save_training(tmp_path / "early", early, step=early.step)
    work("sharded", tmp_path, ACCELERATE_USE_FSDP="true", FSDP_VERSION="2")
    found = torch.load(tmp_path / "process-0.pt")
    for name, changes in SHARDED.items():
        state = start(make_config(**changes), texts=TEXTS)
        one = trained(state, ppo_updates(state))
        total = sum(w.numel() for w in one["weights"])
        assert 0.45 * total < found[name].pop("local") < 0.6 * total
        near(found[name], one, name)
        again = start(make_config(**changes), texts=TEXTS)
        load_training(tmp_path / name, again)
        assert identical(weights(again), found[name]["weights"])
        assert not (tmp_path / f"{name}-1").exists()
        saved = load_policy(tmp_path / f"{name}-0")
        assert identical(list(saved.state_dict().values()), list(again.policy.state_dict().values()))
        if name == "gae":
            near(found["resumed"]["weights"], one["weights"])
    near(found["rankings"], trained(*steps_of("even rankings", None)))
    written = load_scorer(tmp_path / "scorer")
    assert identical(list(written.parameters()), found["rankings"]["weights"])


def lines(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def timeless(path: Path) -> list[dict]:
    return [{k: v for k, v in row.items() if not k.startswith("time")} for row in lines(path / "metrics.jsonl")]


@pytest.mark.slow
def test_an_interrupt_stops_both_a_death_fails_the_run_and_two_or_one_go_on(tmp_path):
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    options = {"TMPDIR": str(scratch), "WANDB_MODE": "disabled"}
    script = HERE / "process_work.py"
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    assert torchrun(script, "run", tmp_path, whole, "anew", 0, 0, **options).returncode == 0
    assert not list(scratch.glob("rlhf-lab-process-*")), "the other process's own folder is deleted"
    assert [row["episode"] for row in lines(whole / "metrics.jsonl")] == [8, 16, 24, 32, 40, 48]  # one writer
    assert len(lines(whole / "samples.jsonl")) == 6

    stopped = torchrun(script, "run", tmp_path, broken, "anew", 0, 3, **options)
    assert stopped.returncode != 0
    assert read_status(broken).state == "stopped" and read_status(broken).reason == "interrupted"
    assert len(lines(broken / "metrics.jsonl")) == 2  # the third update was whole in both, and not yet seen

    died = torchrun(script, "run", tmp_path, broken, "resume", 5, 0, **options)
    assert died.returncode == 1
    status = read_status(broken)
    assert status.state == "failed" and "of the 2 processes died" in status.reason, status
    assert "last checkpoint resumes" in status.reason

    one = tmp_path / "one"
    shutil.copytree(broken, one)
    assert torchrun(script, "run", tmp_path, broken, "resume", 0, 0, **options).returncode == 0
    assert torchrun(script, "run", tmp_path, one, "resume", 0, 0, processes=1, **options).returncode == 0
    expected = torch.load(whole / "weights.pt")
    assert identical(torch.load(broken / "weights.pt"), expected)
    near(torch.load(one / "weights.pt"), expected)
    for path in (broken, one):
        assert read_status(path).state == "done"
        near(timeless(path), timeless(whole))


@pytest.mark.slow
@pytest.mark.parametrize(("who", "sharded"), [(0, False), (1, True)])
def test_whoever_dies_the_run_goes_on_from_its_last_checkpoint(tmp_path, who, sharded):
    """The main process, which can write nothing then; and one of two that hold half of every weight."""
    options = {"WANDB_MODE": "disabled", "WHO_DIES": str(who)}
    options |= {"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2"} if sharded else {}
    script, whole, broken = HERE / "process_work.py", tmp_path / "whole", tmp_path / "broken"
    assert torchrun(script, "run", tmp_path, whole, "anew", 0, 0, **options).returncode == 0
    assert torchrun(script, "run", tmp_path, broken, "anew", 5, 0, **options).returncode == 1
    assert read_status(broken).state == ("failed" if who else "died")
    assert torchrun(script, "run", tmp_path, broken, "resume", 0, 0, **options).returncode == 0
    assert read_status(broken).state == "done"
    assert identical(torch.load(broken / "weights.pt"), torch.load(whole / "weights.pt"))
    assert identical(timeless(broken), timeless(whole))


class Pretended(Processes):
    """One of several processes whose messages were written down before."""

    def __init__(self, rank: int, count: int):
        super().__init__()
        self.rank, self.count = rank, count


@pytest.mark.parametrize("count", [1, 2, 3, 5])
@pytest.mark.parametrize("rows", [5, 6, 13])
def test_shares_are_all_the_rows_in_order(rows, count):
    shares = [Pretended(rank, count).share(list(range(rows))) for rank in range(count)]
    assert sum(shares, []) == list(range(rows))
    assert max(map(len, shares)) - min(map(len, shares)) <= 1


def test_launched_without_an_accelerator_is_refused(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(LabError, match=r"PPO: 2 processes were launched, but no accelerator"):
        start(make_config())


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({"batch_size": 2, "minibatches": 1}, "batch_size of 2 leaves some of 3"),
        ({"batch_size": 8, "minibatches": 4}, "a minibatch of 2 leaves some of 3"),
        ({"batch_size": 9, "minibatches": 1, "ptx_coef": 1.0, "ptx_batch_size": 2}, "ptx_batch_size of 2"),
    ],
)
def test_fewer_rows_than_processes_are_refused(monkeypatch, changes, line):
    monkeypatch.setattr(Processes, "of", classmethod(lambda cls, accelerator, doing: Pretended(0, 3)))
    with pytest.raises(LabError, match=line):
        start(make_config(**changes), texts=TEXTS)


def test_a_trainers_batch_must_go_evenly_into_the_processes(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "3")
    assert batch_of_one(12, "SFT") == 4
    with pytest.raises(LabError, match="SFT: batch_size 16 does not go evenly into 3 processes"):
        batch_of_one(16, "SFT")


def test_a_chain_of_stages_is_not_launched(monkeypatch, capsys, repo):
    for name in ("RLHF_LAB_HEADLESS", "MPLBACKEND"):
        monkeypatch.setenv(name, os.environ.get(name, ""))  # it sets them
    assert main([str(repo / "experiments/smoke.yaml")]) == 2
    assert "several stages; launch a file of one notebook" in capsys.readouterr().err


def test_a_broken_connection_is_told_in_one_line_and_any_other_error_as_it_is():
    gloo = RuntimeError("[/pytorch/gloo/pair.cc:534] Connection closed by peer [127.0.0.1]:1234\nmore")
    line = str(lost_connection(gloo, "PPO", 2))
    assert line.startswith("PPO: one of the 2 processes died or hangs (Connection closed by peer")
    assert lost_connection(RuntimeError("shapes do not match"), "PPO", 2) is None


FILES = {
    "03_ppo": "updates: 2\neval_every: 1\nsave_every: 1\nbatch_size: 8\nmax_new_tokens: 12\n"
    "reward: {gold: 1.0, yours: 0.5}\ncritic: policy\n",
    "01_sft": "n_demonstrations: 48\nepochs: 1\nmax_new_tokens: 12\n",
}


@pytest.mark.slow
@pytest.mark.parametrize("notebook", FILES)
def test_a_notebooks_code_runs_in_two_processes_as_in_one(tmp_path, notebook):
    """SFT too: its loss is the mean over all tokens, though transformers multiplies the batch by the processes."""
    file = tmp_path / notebook / "two.yaml"
    file.parent.mkdir()
    policy = f"policy: {World.load().base_model}\n" if notebook == "03_ppo" else ""
    file.write_text(f"{FILES[notebook]}{policy}eval_prompts: 8\nprecision: fp32\n")
    for processes in (1, 2):
        arguments = ["-m", "rlhf_lab.workbench.launch", file, "-p", f"run_dir={tmp_path / str(processes)}"]
        done = torchrun(*arguments, processes=processes, WANDB_MODE="disabled", HF_HUB_OFFLINE="1")
        assert done.returncode == 0, done.stderr[:3000]
    ours, theirs = timeless(tmp_path / "2"), timeless(tmp_path / "1")
    assert len(ours) >= 2 and sum("objective/kl" in row for row in ours) in (0, 2)
    near(ours, theirs)
    states = [load_policy(tmp_path / str(n) / "checkpoint").state_dict() for n in (1, 2)]
    near(list(states[0].values()), list(states[1].values()))
    assert read_status(tmp_path / "2").state == "done"


@pytest.mark.slow
@pytest.mark.parametrize("kind", [["--multi_gpu"], ["--use_fsdp", "--fsdp_version=2"]])
def test_accelerate_launch_starts_two_processes_that_train_as_one(tmp_path, kind):
    """On CPUs too: without a card both are processes of torchrun, over gloo."""
    file = tmp_path / "03_ppo" / "two.yaml"
    file.parent.mkdir()
    file.write_text(f"{FILES['03_ppo']}policy: {World.load().base_model}\neval_prompts: 8\nprecision: fp32\n")
    work = ["-m", "rlhf_lab.workbench.launch", file, "-p"]
    one = torchrun(*work, f"run_dir={tmp_path / '1'}", processes=1, WANDB_MODE="disabled")
    assert one.returncode == 0, one.stderr[:3000]
    command = [sys.executable, "-m", "accelerate.commands.launch", *kind, "--num_processes=2", "--num_machines=1"]
    command += ["--mixed_precision=no", "--dynamo_backend=no", f"--main_process_port={free_port()}"]
    environment = os.environ | {"PYTHONPATH": str(HERE.parents[1]), "WANDB_MODE": "disabled", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [*command, *map(str, work), f"run_dir={tmp_path / '2'}"],
        env=environment, capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    assert "processes: 2" in (tmp_path / "2" / "config.yaml").read_text()
    near(timeless(tmp_path / "2"), timeless(tmp_path / "1"))
    states = [load_policy(tmp_path / name / "checkpoint").state_dict() for name in ("1", "2")]
    near(list(states[0].values()), list(states[1].values()))


@pytest.mark.slow
def test_the_example_for_notebook_launcher_runs_in_two_processes(tmp_path):
    page = (HERE.parents[1] / "docs/processes.md").read_text()
    example = page.split("```python\n")[1].split("```")[0]
    settings = {"policy": str(World.load().base_model), "updates": 2, "batch_size": 8, "max_new_tokens": 8}
    settings |= {"run_dir": str(tmp_path / "run"), "precision": "fp32"}
    call = f"notebook_launcher(train, ({settings},), num_processes=2, use_port='{free_port()}')"
    code = f"from accelerate import notebook_launcher\n{example}\n{call}\n"
    environment = os.environ | {"PYTHONPATH": str(HERE.parents[1]), "WANDB_MODE": "disabled", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=300, cwd=tmp_path
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert [row["episode"] for row in lines(tmp_path / "run/metrics.jsonl")] == [8, 16]
    assert "processes: 2" in (tmp_path / "run/config.yaml").read_text()
    assert (tmp_path / "run/checkpoint/model.safetensors").is_file()
