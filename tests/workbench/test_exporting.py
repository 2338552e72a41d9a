"""Exported models, loaded by plain transformers with the code on their cards, against the lab's own figures."""

import contextlib
import json
import re
import shutil
import subprocess
import sys

import pytest
import torch
import transformers
import yaml
from tiny import make_policy, make_scorer, make_tokenizer

from rlhf_lab.config import Config
from rlhf_lab.errors import LabError
from rlhf_lab.models import LoraConfig, load_scorer, response_logprobs, save_policy
from rlhf_lab.models.adapters import SharedBase
from rlhf_lab.training.reward_scale import score_replies
from rlhf_lab.workbench.experiments.taken import note_taken
from rlhf_lab.workbench.exporting import export
from rlhf_lab.workbench.runs import Run
from rlhf_lab.workbench.tracking import TrackingConfig

PROMPT, REPLY = "w2 w3", "w4 w5 w6"


class Settings(Config):
    """Of a run that trained a model."""

    policy: str = "runs/demo/sft/x"
    preferences: str = "pairs.jsonl"
    prompts: str = ""
    reward: str | dict[str, float] = ""
    critic: str = ""
    lr: float = 0.003


@pytest.fixture
def tokenizer():
    return make_tokenizer()


@pytest.fixture
def finished(tmp_path, monkeypatch):
    """A finished run of a stage; the caller writes its checkpoint first. takes: the reward model of `auto`."""
    monkeypatch.setenv("RLHF_LAB_RUNS", str(tmp_path / "runs"))

    def finished(stage, write, results, takes=None, **settings):
        config = Settings(**settings)
        run = Run.start(stage, config, experiment="demo", seed=7, tracking=TrackingConfig(mode="disabled"))
        if takes is not None:
            note_taken("auto", "reward_model", ["demo", None], 7, takes)
        write(run.file("checkpoint"))
        run.finish(results)
        return run.path

    return finished


def card_code(folder) -> str:
    """The code on a model's card, for one prompt and reply."""
    code = re.search(r"```python\n(.*?)```", (folder / "README.md").read_text(), re.DOTALL)[1]
    return code.replace('prompt = "..."', f"prompt = {PROMPT!r}").replace('reply = "..."', f"reply = {REPLY!r}")


def run_card(folder) -> dict:
    """What the card's own code makes, beside the directory, with transformers alone."""
    code, found = card_code(folder), {}
    assert "rlhf_lab" not in code
    with contextlib.chdir(folder.parent):
        exec(code, found)
    return found


def make_model(kind: str, folder, tokenizer):
    """A policy, a reward model, or an adapter of either that does something, saved in `folder`/model."""
    if kind == "policy":
        model = make_policy(seed=5)
    elif kind == "reward model":
        model = make_scorer(seed=3)
    else:
        save_policy(folder / "base", make_policy(seed=5), tokenizer)
        base, lora = SharedBase(folder / "base"), LoraConfig(rank=2)
        model = base.policy(lora) if kind == "policy adapter" else base.scorer(lora, head="new")
        with torch.no_grad():
            for weight in model.parameters():
                if weight.requires_grad:
                    weight.normal_(std=0.3)
    if "reward" in kind:
        model.shift, model.gain = -0.5, 2.0
        model.save(folder / "model", tokenizer)
    else:
        save_policy(folder / "model", model, tokenizer)
    return model


def figure_of(kind: str, model, tokenizer) -> float:
    """The lab's own score of the reply, or its log-probability in nats."""
    if "reward" in kind:
        return score_replies(model, tokenizer, [PROMPT], [REPLY]).item()
    ids = tokenizer(PROMPT + " " + REPLY, return_tensors="pt").input_ids
    mask = torch.ones_like(ids, dtype=torch.bool)
    return response_logprobs(model, ids[:, :2], mask[:, :2], ids[:, 2:], mask[:, 2:]).logp.sum().item()


WITHOUT_US = "import sys\nsys.modules['rlhf_lab'] = None\n{code}\n{figure}\nprint('@', figure.item())"
LOGPROB = f"""
import torch
ids = tokenizer({PROMPT + " " + REPLY!r}, return_tensors="pt").input_ids
figure = model(ids).logits[0].log_softmax(-1)[range(1, 4), ids[0, 2:]].sum()"""


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["policy", "reward model", "policy adapter", "reward adapter"])
def test_an_exported_model_needs_no_lab(tokenizer, tmp_path, kind):
    ours = figure_of(kind, make_model(kind, tmp_path, tokenizer), tokenizer)
    done = export(str(tmp_path / "model"), tmp_path / "out", apart="adapter" in kind)
    assert done.kind == kind
    for folder in ("model", "base"):  # what was exported stands alone
        shutil.rmtree(tmp_path / folder, ignore_errors=True)
    code = WITHOUT_US.format(code=card_code(done.path), figure="figure = score" if "reward" in kind else LOGPROB)
    result = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert float(result.stdout.rpartition("@")[2]) == pytest.approx(ours, rel=1e-4)


@pytest.mark.slow
def test_the_command_exports_a_run_and_overwrites_nothing(finished, tokenizer, tmp_path):
    scorer = make_scorer(seed=3)
    path = finished("reward_model", lambda folder: scorer.save(folder, tokenizer), {})  # in $RLHF_LAB_RUNS
    command = [sys.executable, "-m", "rlhf_lab", "export", "/".join(path.parts[-2:]), "judge"]
    first, again = (subprocess.run(command, cwd=tmp_path, capture_output=True, text=True) for _ in range(2))
    assert (first.returncode, first.stdout) == (0, "judge: reward model\n"), first.stderr
    ours = score_replies(scorer, tokenizer, [PROMPT], [REPLY]).item()
    assert run_card(tmp_path / "judge")["score"].item() == pytest.approx(ours, rel=1e-5)
    assert again.returncode == 2 and again.stderr.count("\n") == 1 and "judge: is in use" in again.stderr


def test_the_card_of_a_reward_model_gives_the_labs_score(finished, tokenizer, tmp_path):
    scorer = make_scorer(seed=3)
    scorer.shift, scorer.gain = 0.75, 2.5

    path = finished("reward_model", lambda folder: scorer.save(folder, tokenizer), {"accuracy": 0.71})
    done = export(str(path), tmp_path / "out" / "judge")
    assert (done.kind, done.path) == ("reward model", tmp_path / "out" / "judge")
    ours = score_replies(scorer, tokenizer, [PROMPT], [REPLY]).item()
    assert run_card(done.path)["score"].item() == pytest.approx(ours, rel=1e-5)
    assert score_replies(load_scorer(done.path), tokenizer, [PROMPT], [REPLY]).item() == pytest.approx(ours, rel=1e-5)
    text = (done.path / "README.md").read_text()
    head = yaml.safe_load(text.split("---")[1])
    assert head["pipeline_tag"] == "text-classification" and "rlhf" in head["tags"]
    for fact in (
        "| preferences | pairs.jsonl |",
        "| accuracy | 0.71 |",
        "| lr | 0.003 |",
        "| seed | 7 |",
        "demo/reward",
    ):
        assert fact in text, fact
    assert f"| torch | {torch.__version__} |" in text


def test_a_head_of_bins_keeps_its_meaning(tmp_path, tokenizer):
    bins = [-1.0, 0.0, 2.0]
    make_scorer(seed=3).save(tmp_path / "trunk", tokenizer)
    scorer = load_scorer(tmp_path / "trunk", head="new", bins=bins)
    scorer.shift, scorer.gain = 0.25, 3.0
    scorer.save(tmp_path / "model", tokenizer)
    done = export(str(tmp_path / "model"), tmp_path / "out")
    ours = score_replies(scorer, tokenizer, [PROMPT], [REPLY]).item()
    assert run_card(done.path)["score"].item() == pytest.approx(ours, rel=1e-5)


def test_a_policy_is_a_causal_language_model_with_the_same_weights(finished, tokenizer, tmp_path):
    policy = make_policy(seed=5)
    path = finished("ppo", lambda folder: save_policy(folder, policy, tokenizer), {"gold": {"mean": 1.5}})
    done = export("/".join(path.parts[-2:]), tmp_path / "policy")  # by the end of its path, as `rlhf-lab status` has it
    assert done.kind == "policy" and "| gold.mean | 1.5 |" in (done.path / "README.md").read_text()
    plain = transformers.AutoModelForCausalLM.from_pretrained(done.path)
    for name, weight in policy.state_dict().items():
        assert torch.equal(weight, plain.state_dict()[name]), name
    assert type(run_card(done.path)["model"]) is transformers.LlamaForCausalLM


def test_the_card_of_a_ppo_run_names_what_its_reward_model_learned_from(finished, tokenizer, tmp_path):
    save = lambda folder: make_scorer().save(folder, tokenizer)
    one, two = (finished("reward_model", save, {}, preferences=name) for name in ("one.jsonl", "two.jsonl"))

    def data(name, **settings) -> str:
        weights = lambda folder: save_policy(folder, make_policy(), tokenizer)
        path = finished("ppo", weights, {}, prompts="mine.jsonl", preferences="", **settings)
        text = (export(str(path), tmp_path / name).path / "README.md").read_text()
        assert "| prompts | mine.jsonl |" in text
        return text.partition("## Data")[2].partition("## Made from")[0]

    line = "| preferences, reward model {} | {}.jsonl |"
    both = data("both", reward={str(one): 1.0, f"{two}/checkpoint": 0.5, "gold": 1.0})
    assert line.format(one.name, "one") in both and line.format(two.name, "two") in both
    shutil.rmtree(one)
    auto = data("auto", reward="auto", takes=two)  # as the run noted what it took
    assert line.format(two.name, "two") in auto and "one.jsonl" not in auto
    assert "reward model" not in data("gone", reward=str(one)) + data("gold", reward="gold", critic=str(two))


@pytest.mark.parametrize("apart", [False, True])
def test_an_adapter_leaves_merged_or_apart(tmp_path, tokenizer, apart):
    save_policy(tmp_path / "base", make_policy(seed=5), tokenizer)
    adapter = SharedBase(tmp_path / "base").policy(LoraConfig(rank=2))
    with torch.no_grad():
        for weight in adapter.parameters():
            weight.normal_(std=0.3)
    save_policy(tmp_path / "adapter", adapter, tokenizer)
    done = export(str(tmp_path / "adapter"), tmp_path / "out", apart=apart)
    assert done.kind == ("policy adapter" if apart else "policy")
    if apart:
        settings = json.loads((done.path / "adapter" / "adapter_config.json").read_text())
        assert str(tmp_path) not in json.dumps(settings)
    ids = tokenizer(PROMPT + " " + REPLY, return_tensors="pt").input_ids
    mask = torch.ones_like(ids, dtype=torch.bool)
    ours = response_logprobs(adapter, ids[:, :2], mask[:, :2], ids[:, 2:], mask[:, 2:]).logp[0]
    found = run_card(done.path)
    with torch.no_grad():
        logp = found["model"](found["tokenizer"](PROMPT + " " + REPLY, return_tensors="pt").input_ids).logits[0]
    theirs = logp.log_softmax(-1)[range(1, 4), ids[0, 2:]]
    torch.testing.assert_close(theirs, ours, atol=1e-4, rtol=1e-4)


def test_a_reward_adapter_apart_brings_its_head(tmp_path, tokenizer):
    save_policy(tmp_path / "base", make_policy(seed=5), tokenizer)
    scorer = SharedBase(tmp_path / "base").scorer(LoraConfig(rank=2), head="new")
    scorer.shift, scorer.gain = -0.5, 2.0
    scorer.save(tmp_path / "adapter", tokenizer)
    ours = score_replies(scorer, tokenizer, [PROMPT], [REPLY]).item()
    done = export(str(tmp_path / "adapter"), tmp_path / "out", apart=True)
    assert run_card(done.path)["score"].item() == pytest.approx(ours, rel=1e-4)
    merged = export(str(tmp_path / "adapter"), tmp_path / "whole")
    assert run_card(merged.path)["score"].item() == pytest.approx(ours, rel=1e-4)


def test_what_cannot_be_exported_is_told_in_one_line(finished, tokenizer, tmp_path):
    scorer = make_scorer()
    path = finished("reward_model", lambda folder: scorer.save(folder, tokenizer), {})
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").write_text("x")
    with pytest.raises(LabError, match="is in use; give a new directory"):
        export(str(path), tmp_path / "full")
    with pytest.raises(LabError, match="is a whole model and no adapter"):
        export(str(path), tmp_path / "new", apart=True)
    with pytest.raises(LabError, match="lies in the model's own directory"):
        export(str(path), path / "checkpoint" / "out")
    with pytest.raises(LabError, match="no such run"):
        export("nothing/here", tmp_path / "new")
    bare = finished("judge_bias", lambda folder: None, {})
    with pytest.raises(LabError, match="has left no model"):
        export(str(bare), tmp_path / "new")
    assert not (tmp_path / "new").exists() and (tmp_path / "full" / "file").read_text() == "x"
