"""What a user can get wrong: each case by its name, and the one line that says what, where, and what to do.

Files and models of other kinds of damage have tests of their own: tests/data/test_data_errors.py,
tests/models/test_model_loading.py, tests/workbench/test_pipeline.py, tests/notebooks/test_bad_input.py.
"""

import gzip
import json
import shutil
import struct
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
import transformers
from datasets import Dataset
from tiny import make_config, make_policy, make_scorer, make_tokenizer, start

from rlhf_lab import data
from rlhf_lab.cli import main
from rlhf_lab.data import load_demonstrations, load_preferences, load_prompts, load_rankings
from rlhf_lab.errors import LabError
from rlhf_lab.judges.readers.replay import read_verdicts
from rlhf_lab.models import load_policy, load_scorer, load_tokenizer
from rlhf_lab.rewards import load_reward
from rlhf_lab.sandbox.world import World
from rlhf_lab.training.ppo import ppo_updates
from rlhf_lab.training.pretraining import PretrainConfig, pretrain_start
from rlhf_lab.training.reward_model import reward_model_start
from rlhf_lab.training.sft import SFTConfig, sft_trainer
from rlhf_lab.workbench.artefacts import checkpoint, prompt_split
from rlhf_lab.workbench.evaluation import answer
from rlhf_lab.workbench.experiments.validate import validate
from rlhf_lab.workbench.records import mark_queued, read_metrics, read_status
from rlhf_lab.workbench.reference import summarise
from rlhf_lab.workbench.runs import Run
from rlhf_lab.workbench.session import unwatch
from rlhf_lab.workbench.stages import STAGES, RewardModelStage
from rlhf_lab.workbench.tracking import TrackingConfig

BASE = Path(World.load().base_model)


class Case(NamedTuple):
    """`fails` gets an empty folder, which is the working directory, and does what goes wrong."""

    fails: Callable[[Path], object]
    words: tuple[str, ...]  # of the line, in this order


CASES: dict[str, Case] = {}


def case(name: str, *words: str) -> Callable:
    """The decorated function does what goes wrong."""

    def add(fails):
        assert name not in CASES
        CASES[name] = Case(fails, words)
        return fails

    return add


def write(path: Path, content: str | bytes | list[dict]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    if isinstance(content, list):
        content = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in content)
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("WANDB_MODE", "disabled")
    for name in ("RLHF_LAB_RUNS", "RLHF_LAB_TRUST_REMOTE_CODE"):
        monkeypatch.delenv(name, raising=False)


# --- experiment files and settings, through the command


def validates(folder: Path, content: str | bytes, *words: str, stem: str = "03_ppo") -> None:
    """Raises what `rlhf-lab validate` tells."""
    file = write(folder / "experiments" / stem / "case.yaml", content)
    validate(file, list(words))


def flat(name: str, content: str | bytes, *words: str, stem: str = "03_ppo", options: tuple[str, ...] = ()) -> None:
    """A case of one experiment file."""
    case(name, "case.yaml", *words)(lambda folder: validates(folder, content, *options, stem=stem))


flat("a negative seed", "seed: -1", "'seed' is -1", "greater than or equal to 0")
flat("a seed beyond numpy's", "seed: 4294967296", "'seed' is 4294967296", "less than")
flat("yes for a number", "updates: yes", "'updates' is True", "a number is expected, not true or false")
flat("a number with a comma", "lr: 0,001", "'lr' is", "0,001", "valid number")
flat("a number that is none", "lr: .nan", "'lr' is nan", "finite number")
flat("an infinite learning rate", "kl_coef: .inf", "'kl_coef' is inf", "finite number")
flat("half an update", "updates: 2.5", "'updates' is 2.5", "valid integer")
flat("nothing behind the colon", "lr:", "'lr' is None", "valid number")
flat("a choice that is none", "whiten: always", "'whiten' is 'always'", "'rollout', 'minibatch' or 'off'")
flat("a clip of nothing", "clip: 0", "'clip' is 0", "greater than 0")
flat("more threads than any machine has", "threads: 100000", "'threads' is 100000", "less than or equal to 1024")
flat("a policy for bad rows that is none", "on_bad: ignore", "'on_bad' is 'ignore'", "'raise' or 'drop'")
flat("text for a mapping", "columns: question", "'columns' is 'question'", "dictionary")
flat("a wrong key of a mapping inside", "tracking: {projekt: x}", "unknown parameter 'tracking.projekt'")
flat("a wrong mode of tracking", "tracking: {mode: cloud}", "'tracking.mode' is 'cloud'", "'online', 'offline'")
flat("one ranked reply", "k: 1", "'k' is 1", "greater than or equal to 2", stem="02_reward_model")
flat("a key with a line break in it", '"lr\\nx": 1', "unknown parameter 'lr x'", "did you mean 'lr'?")
flat("a parameter of another notebook", "n_demonstrations: 3", "unknown parameter 'n_demonstrations'")
flat("a tab for indentation", "tracking:\n\tproject: x", "line 2", "not valid YAML")
flat("a file of bytes", b"\xff\xfe\x00", "cannot be read", "utf-8")
flat("a date that does not exist", "seed: 2024-02-45", "not valid YAML", "day is out of range")
flat("a Python object in YAML", "lr: !!python/object/apply:os.getcwd []", "line 1", "not valid YAML", "constructor")
flat("a list that holds itself", "columns: &x [*x]", "holds itself", "write it out")
flat("a list thousands deep", "columns: " + "[" * 5000, "not valid YAML", "deep")
flat("a key that is a number", "3: lr", "expected 'key: value' lines")
flat("an experiment that leaves the folder", "experiment: ../../etc", "'../../etc' cannot name an experiment")


flat(
    "a labeler who errs more than always",
    "labeler: {flip: 2}",
    "'labeler.flip' is 2",
    "less than or equal to 1",
    stem="02_reward_model",
)


@case("a world that is none", "sandbox 'defualt' is not a preset", "default")
def _(folder):
    World.load("defualt")


@case("heads that do not divide the width", "hidden_size=128 is no multiple of heads=3", "change one")
def _(folder):
    pretrain_start(PretrainConfig(heads=3), make_tokenizer(), ["w2 w3"])


@case("an override without a value", "-p lr", "expected key=value")
def _(folder):
    validates(folder, "lr: 1", "lr")


@case("an override below a number", "-p lr.peak=1", "'lr' has no keys below it")
def _(folder):
    validates(folder, "lr: 1", "lr.peak=1")


@case("an override of a key that no stage has", "-p learning_rate=1", "no stage of", "'learning_rate'")
def _(folder):
    validates(folder, "lr: 1", "learning_rate=1")


@case("an experiment file that is a folder", "experiments", "cannot be read", "directory")
def _(folder):
    (folder / "experiments").mkdir()
    validate("experiments")


@case("a file name with a null character", "cannot be read", "null")
def _(folder):
    validate("experi\0ments.yaml")


def chain(folder: Path, **run_dirs: str) -> None:
    """A chain file of PPO stages with these directories."""
    settings = {name: f"{{run_dir: {path}, policy: ./nowhere}}" for name, path in run_dirs.items()}
    stages = [f"- {{name: {name}, notebook: 03_ppo, parameters: {found}}}" for name, found in settings.items()]
    write(folder / "chain.yaml", "\n".join(["experiment: e", "stages:", *stages]))


@case("two stages with one run_dir", "stage b", "run_dir", "an earlier stage's", "give each its own")
def _(folder):
    chain(folder, a="one", b="one")
    tells(main(["run", "chain.yaml"]))


@case("a run_dir that holds a run, before any stage starts", "stage b", "one holds a run already", "give a new one")
def _(folder):
    mark_queued(folder / "one")
    chain(folder, a="new", b="one")
    tells(main(["run", "chain.yaml"]))


@case("results recorded of nothing", "nowhere.jsonl", "no recorded results", "rlhf-lab run")
def _(folder):
    summarise("nowhere.jsonl")


class Told(LabError):
    """What the command printed, for the cases that go through it."""


def tells(code: int) -> None:
    assert code == 2
    raise Told("printed")


# --- data

PAIR = {"prompt": "p", "chosen": "a", "rejected": "b"}


@case(
    "one broken row in a hundred", "big.jsonl, line 50: broken JSON", "200 such rows: 50, 150", "and 190 more", "on_bad"
)
def _(folder):
    lines = ['{"prompt": "torn' if n % 100 == 49 else json.dumps({"prompt": f"p{n}"}) for n in range(20000)]
    load_prompts(write(folder / "big.jsonl", "\n".join(lines)))


@case("rows of several problems", "a.jsonl, line 2: not a JSON object", "rows with other problems: 2", "on_bad='drop'")
def _(folder):
    load_prompts(write(folder / "a.jsonl", b'{"prompt": "x"}\n3\n{"prompt": "\xe9"}\n{"prompt": 1}\n'))


@case("chosen equal to rejected", "a.jsonl, line 2, columns 'chosen', 'rejected': are equal", "mend the file")
def _(folder):
    load_preferences(write(folder / "a.jsonl", [PAIR, {**PAIR, "rejected": "a"}]))


@case("an empty reply equal to an empty reply", "are equal, so neither is preferred")
def _(folder):
    load_preferences(write(folder / "a.jsonl", [{"prompt": "p", "chosen": "", "rejected": ""}]))


@case("the same prompt in both splits", "1 of 2 held-out rows", "row 2, 'p'", "take them out", "on_bad='drop'")
def _(folder):
    train = load_prompts(write(folder / "train.jsonl", [{"prompt": "o"}, {"prompt": "p"}]))
    data.unseen(load_prompts(write(folder / "test.jsonl", [{"prompt": "q"}, {"prompt": "p "}])), train)


@case("the same file for both splits", "3 of 3 held-out rows", "no row is left to measure on")
def _(folder):
    rows = load_prompts(write(folder / "a.jsonl", [{"prompt": p} for p in "abc"]))
    data.unseen(rows, rows, on_bad="drop")


@case("one prompt to learn from and to measure on", "one prompt cannot be both", "two or more different ones")
def _(folder):
    data.hold_out(load_prompts(write(folder / "a.jsonl", [{"prompt": "p"}] * 9)), 3)


@case("nothing but broken rows", "a.jsonl: no row is left")
def _(folder):
    load_prompts(write(folder / "a.jsonl", "{\n{\n"), on_bad="drop")


@case("a number of thousands of digits", "a.jsonl, line 1: JSON beyond reason", "thousands of digits")
def _(folder):
    load_prompts(write(folder / "a.jsonl", f'{{"prompt": {"9" * 5000}}}'))


@case("a file name with a line break", "no such file or directory", "check the path")
def _(folder):
    load_prompts("one\ntwo.jsonl")


@case("the home of nobody", "~nobody-of-this-name/a.jsonl: no such file or directory")
def _(folder):
    load_prompts("~nobody-of-this-name/a.jsonl")


@case("demonstrations by another name", "no column 'completion'", "the columns are 'prompt', 'reply'")
def _(folder):
    load_demonstrations(write(folder / "a.jsonl", [{"prompt": "p", "reply": "r"}]))


@case("ranks that skip the best", "column 'ranks'", "another number than 0", "best completion")
def _(folder):
    load_rankings(write(folder / "a.jsonl", [{"prompt": "p", "completions": ["a", "b"], "ranks": [2, 3]}]))


@case("a spreadsheet", "a.xlsx: unknown file type '.xlsx'", ".jsonl")
def _(folder):
    load_prompts(write(folder / "a.xlsx", b"PK"))


@case("a gzip that was cut off", "a.jsonl.gz: cannot be read", "check the file")
def _(folder):
    packed = gzip.compress(b'{"prompt": "x"}\n' * 1000)
    load_prompts(write(folder / "a.jsonl.gz", packed[: len(packed) // 2]))


@case("a parquet that was cut off", "a.parquet: cannot be read", "check the file")
def _(folder):
    Dataset.from_dict({"prompt": ["x"] * 100}).to_parquet(folder / "whole.parquet")
    load_prompts(write(folder / "a.parquet", (folder / "whole.parquet").read_bytes()[:-20]))


@case("recorded verdicts with a broken row", "v.jsonl, line 2: broken JSON", "mend or delete it")
def _(folder):
    read_verdicts(write(folder / "v.jsonl", '{"order": 0, "verdict": "a"}\n{"order": 0,\n'))


# --- dialogues and models of different sizes


@case("a reply longer than the context", "demonstrations, row 2", "the reply 61", "a reply is never cut", "context")
def _(folder):
    rows = [{"prompt": "w2", "completion": "w3"}, {"prompt": "w2", "completion": " ".join(["w3"] * 60)}]
    sft_trainer(SFTConfig(epochs=1), make_policy(), make_tokenizer(), rows)


@case("a prompt longer than the context", "58 tokens are too long for the model's context of 48", "shorten")
def _(folder):
    answer(make_policy(), make_tokenizer(), [" ".join(["w2"] * 50)], max_new_tokens=8)


@case("more new tokens than the context has", "tokens are too long for the model's context of 48", "shorten")
def _(folder):
    answer(make_policy(), make_tokenizer(), ["w2"], max_new_tokens=10**6)


@case("a prompt without a token", "has no tokens in this tokenizer", "give another prompt")
def _(folder):
    answer(make_policy(), make_tokenizer(), [" "], max_new_tokens=2)


@case("replies that all tie", "no comparisons", "two replies of unequal rank")
def _(folder):
    rows = [{"prompt": "w2", "completions": ["w3", "w4"], "ranks": [0, 0]}]
    reward_model_start(RewardModelStage(), make_scorer(), make_tokenizer(), rows)


@case("messages for a tokenizer without a template", "row 1", "no chat template", "tokenizer.chat_template")
def _(folder):
    chat = [{"role": "user", "content": "hi"}]
    data.to_text(load_prompts(write(folder / "a.jsonl", [{"prompt": chat}])), make_tokenizer())


# --- models on disk


def copy_of_base(folder: Path) -> Path:
    shutil.copytree(BASE, folder / "model")
    return folder / "model"


@case("a pickle beside a config", "pickled weights only", "save them as safetensors")
def _(folder):
    model = copy_of_base(folder)
    (model / "model.safetensors").unlink()
    torch.save({}, model / "checkpoint.pt")
    load_policy(model)


@case("a pickle by its name", "weights.pt: pickled weights can run code", "save them as safetensors")
def _(folder):
    torch.save({}, folder / "weights.pt")
    load_policy(folder / "weights.pt")


@case("a pickle that would run code", "pickled weights only", "save them as safetensors")
def _(folder):
    model = copy_of_base(folder)
    (model / "model.safetensors").unlink()
    write(model / "pytorch_model.bin", b"cposix\nsystem\n(S'touch ran'\ntR.")
    try:
        load_scorer(model)
    finally:
        assert not (folder / "ran").exists()


def damaged(name: str, change: Callable[[bytes], bytes]) -> None:
    """A case of weights that are no longer what they were."""

    @case(
        name, "model: could not be loaded as a causal language model", "give a directory with config.json and model.sa"
    )
    def _(folder):
        weights = copy_of_base(folder) / "model.safetensors"
        weights.write_bytes(change(weights.read_bytes()))
        load_policy(folder / "model")


damaged("a truncated safetensors file", lambda whole: whole[: len(whole) // 2])
damaged("an empty safetensors file", lambda whole: b"")
damaged("a pickle under the name of safetensors", lambda whole: b"\x80\x04" + whole)
damaged("a safetensors header that lies", lambda whole: struct.pack("<Q", 2**62) + whole[8:])


def with_config(name: str, *words: str, **changes) -> None:
    """A case of a config.json with other values."""

    @case(name, "model", *words)
    def _(folder):
        file = copy_of_base(folder) / "config.json"
        file.write_text(json.dumps(json.loads(file.read_text()) | changes))
        load_policy(folder / "model")


with_config("a config of another size", "could not be loaded", hidden_size=64)
with_config("a config of no known kind", "could not be loaded", "llamma", model_type="llamma")
with_config("a config with words for numbers", "could not be loaded", num_hidden_layers="two")
with_config("a config with no heads", "could not be loaded", num_attention_heads=0)
CODE = {"model_type": "mine", "auto_map": {"AutoConfig": "mine.Mine", "AutoModelForCausalLM": "mine.Mine"}}
with_config("a model that brings code of its own", "brings code of its own", "RLHF_LAB_TRUST_REMOTE_CODE=1", **CODE)


@case("a config that is a list", "could not be loaded", "give a directory")
def _(folder):
    write(copy_of_base(folder) / "config.json", "[]")
    load_policy(folder / "model")


@case("a shard that is missing", "could not be loaded", "give a directory")
def _(folder):
    weights = copy_of_base(folder) / "model.safetensors"
    weights.rename(weights.with_name("model-00001-of-00002.safetensors"))
    index = {"metadata": {}, "weight_map": {"lm_head.weight": "model-00002-of-00002.safetensors"}}
    write(weights.with_name("model.safetensors.index.json"), json.dumps(index))
    load_policy(folder / "model")


@case("a tokenizer that was cut off", "no tokenizer could be loaded", "give a directory")
def _(folder):
    file = copy_of_base(folder) / "tokenizer.json"
    file.write_bytes(file.read_bytes()[:200])
    load_tokenizer(folder / "model")


@case("a tokenizer without an end", "has no EOS token", "set its 'eos_token'")
def _(folder):
    tokenizer = make_tokenizer()
    tokenizer.eos_token = None
    tokenizer.save_pretrained(folder / "tokenizer")
    load_tokenizer(folder / "tokenizer")


@case("a run that is not finished as a model", "holds no model", "config.json is missing")
def _(folder):
    mark_queued(folder / "runs" / "e" / "sft" / "1")
    load_policy(checkpoint(str(folder / "runs" / "e" / "sft" / "1"), "sft", STAGES["03_ppo"]()))


# --- rewards


@case("a reward file with a mistake in it", "mine.py, line 2", "could not be loaded", "SyntaxError")
def _(folder):
    write(folder / "mine.py", "x = 1\ndef f(:\n")
    load_reward("mine.py:f")


@case("a reward for fewer replies than there are", "reward 'f'", "8 numbers, one per completion, not 1")
def _(folder):
    write(folder / "mine.py", "def f(completions, **_):\n    return [1.0]\n")
    next(ppo_updates(start(make_config(), reward=load_reward("mine.py:f"))))


@case("a reward that is not a number", "reward 'f'", "completion 0 got nan", "return a finite number")
def _(folder):
    write(folder / "mine.py", "def f(completions, **_):\n    return [float('nan')] * len(completions)\n")
    next(ppo_updates(start(make_config(), reward=load_reward("mine.py:f"))))


# --- runs on disk


def run_in(folder: Path, **options) -> Run:
    run = Run.start("ppo", TrackingConfig(mode="disabled"), **options)
    unwatch(run)  # its end is no concern of these cases
    return run


@case("two runs into one directory", "one", "belongs to a run that is still alive", "give another directory")
def _(folder):
    run_in(folder, run_dir="one")
    run_in(folder, run_dir="one")


@case("a run's folder deleted under it", "metrics.jsonl cannot be written", "deleted or moved", "start a new run")
def _(folder):
    run = run_in(folder)
    shutil.rmtree(run.path)
    run.log({"a": 1.0}, step=1)


@case("a checkpoint for a run whose folder is gone", "is gone", "deleted or moved", "start a new run")
def _(folder):
    run = run_in(folder)
    shutil.rmtree(run.path)
    try:
        run.file("checkpoint/model")
    finally:
        assert not run.path.exists()


@case("results for a run whose folder is gone", "results.json cannot be written", "deleted or moved")
def _(folder):
    run = run_in(folder)
    shutil.rmtree(run.path)
    run.finish({"a": 1})


@case("a status of bytes", "status.json is broken", "not the JSON of a run's status")
def _(folder):
    read_status(write(folder / "run" / "status.json", b"\xff\xfe").parent)


@case("a status that is a list", "status.json is broken")
def _(folder):
    read_status(write(folder / "run" / "status.json", "[]").parent)


@case("metrics with a line edited by hand", "metrics.jsonl, line 2 is broken", "mend or delete it")
def _(folder):
    run = run_in(folder)
    for step in (1, 2, 3):
        run.log({"a": 1.0}, step=step)
    file = run.path / "metrics.jsonl"
    lines = file.read_text().split("\n")
    file.write_text("\n".join([lines[0], lines[1][:9], *lines[2:]]))
    read_metrics(run.path)


@case("runs below a file", "cannot be written", "not a directory", "RLHF_LAB_RUNS")
def _(folder):
    write(folder / "runs", "a file")
    run_in(folder)


@case("a run_dir that is a file", "run_dir", "is a file", "give a directory")
def _(folder):
    run_in(folder, run_dir=write(folder / "file", ""))


@case("a run_dir in the home of nobody", "~nobody-of-this-name/run cannot be a path", "give another")
def _(folder):
    run_in(folder, run_dir="~nobody-of-this-name/run")


@case("a name of three hundred letters", "cannot be written", "name too long", "choose a shorter name")
def _(folder):
    run_in(folder, experiment="x" * 300)


@case("an experiment with a line break", "experiment 'a\\nb' cannot name a folder", "use letters")
def _(folder):
    run_in(folder, experiment="a\nb")


@case("a metric that is text", "metric 'loss' is 'low'", "a metric is one number")
def _(folder):
    run_in(folder).log({"loss": "low"}, step=1)


@case("a log after the end", "has ended (done)", "start a new one")
def _(folder):
    run = run_in(folder)
    run.finish()
    run.log({"a": 1.0}, step=2)


@pytest.mark.parametrize("name", CASES)
def test_the_one_line(name, tmp_path, capsys):
    with pytest.raises(LabError) as caught:
        CASES[name].fails(tmp_path)
    out, err = capsys.readouterr()
    if isinstance(caught.value, Told):
        (line,) = [line for line in err.splitlines() if line.startswith("rlhf-lab:")]
        assert len(err.splitlines()) == 1
    else:
        line = str(caught.value)
        assert caught.value.exit_code == 2
    assert len(line.splitlines()) == 1
    assert "Traceback" not in line + out + err
    assert 10 < len(line) < 1000
    place = 0
    for word in CASES[name].words:
        assert word in line[place:], line
        place = line.index(word, place) + len(word)
    halves = [path for path in tmp_path.rglob("*") if path.name.endswith(".tmp") or ".new-" in path.name]
    assert not halves


def test_there_are_sixty():
    assert len(CASES) >= 60


def test_the_command_prints_the_line_and_exits_with_2(tmp_path, capsys):
    file = write(tmp_path / "experiments" / "03_ppo" / "case.yaml", "seed: -1\nupates: 3\n")
    for command in ("validate", "run"):
        assert main([command, str(file)]) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert line.startswith(f"rlhf-lab: {file}, stage ppo: ")
        assert "'seed' is -1" in line and "did you mean 'updates'?" in line
    assert not (tmp_path / "runs").exists()


# --- what is no mistake


def test_code_of_a_models_own_runs_when_it_is_asked_for(tmp_path, monkeypatch):
    """The model's file defines a Llama under another name: it loads, and only with the user's word."""
    model = copy_of_base(tmp_path)
    code = """
from transformers import LlamaConfig, LlamaForCausalLM
class Config(LlamaConfig):
    model_type = "mine"
class Mine(LlamaForCausalLM):
    config_class = Config
"""
    write(model / "mine.py", code)
    config = json.loads((model / "config.json").read_text())
    config |= {"model_type": "mine", "auto_map": {"AutoConfig": "mine.Config", "AutoModelForCausalLM": "mine.Mine"}}
    (model / "config.json").write_text(json.dumps(config))
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    monkeypatch.setattr(transformers.dynamic_module_utils, "HF_MODULES_CACHE", str(tmp_path / "modules"))
    with pytest.raises(LabError, match="brings code of its own"):
        load_policy(model)
    monkeypatch.setenv("RLHF_LAB_TRUST_REMOTE_CODE", "1")
    mine, plain = load_policy(model), load_policy(BASE)
    assert type(mine).__name__ == "Mine"
    assert torch.equal(mine.lm_head.weight, plain.lm_head.weight)


def test_an_empty_reply_is_a_reply(tmp_path):
    """A reply of no words is its EOS: learned from, compared, and read."""
    tokenizer = make_tokenizer()
    rows = load_preferences(write(tmp_path / "a.jsonl", [{"prompt": "w2", "chosen": "w3", "rejected": ""}]))
    pair = data.encode_pair(tokenizer, rows[0]["prompt"], rows[0]["rejected"])
    assert pair.reply_ids == [tokenizer.eos_token_id]
    state = reward_model_start(
        RewardModelStage(precision="fp32"), make_scorer(), tokenizer, data.preferences_to_rankings(rows)
    )
    assert len(state.data.replies[0]) == 2


def test_prompts_of_ones_own_are_split_before_anything_is_learned(tmp_path, capsys):
    """One file serves for both: a part is held back, and broken rows go where the user says so."""
    file = write(tmp_path / "a.jsonl", "".join(f'{{"q": "p{n % 20}", "n": {n}}}\n' for n in range(40)) + "torn\n")
    settings = {"prompts": str(file), "columns": {"prompt": "q"}, "eval_prompts": 3}
    with pytest.raises(LabError, match="line 41: broken JSON"):
        prompt_split(STAGES["03_ppo"].parse(settings), {})
    train, heldout = prompt_split(STAGES["03_ppo"].parse({**settings, "on_bad": "drop"}), {})
    assert "dropped 1 of 41 rows" in capsys.readouterr().out
    assert (len(train), len(heldout)) == (34, 3)  # every prompt stands twice
    assert not set(train["prompt"]) & set(heldout["prompt"])
    assert set(train.column_names) == {"prompt", "n"}


def test_the_sandboxs_two_files_share_no_prompt(tmp_path):
    folder = World.load().write(tmp_path, demonstrations=50, train=400, heldout=200)
    train, held = (load_prompts(folder / f"prompts-{split}.jsonl") for split in ("train", "heldout"))
    demonstrations = load_demonstrations(folder / "demonstrations.jsonl")
    assert data.unseen(data.unseen(held, train), demonstrations) is held
