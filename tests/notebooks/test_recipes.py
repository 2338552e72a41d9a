"""Every recipe through the real notebooks: only the model, the data's paths and the sizes are others."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from recipe_files import make_tokenizer, overrides, save_model, write_data

ROOT = Path(__file__).resolve().parents[2]
RECIPES = ROOT / "experiments" / "recipes"
SIZES = ["threads=1", "eval_prompts=2", "max_new_tokens=6", "n_heldout=4", "reference_replies=4"]
SIZES += ["ppo.updates=1", "ppo.batch_size=4", "max_length=192"]
OWN = ["pretrain.vocab_size=300", "pretrain.context=128", "pretrain.hidden_size=32", "pretrain.layers=1"]
OWN += ["pretrain.feed_forward=48", "pretrain.steps=4", "max_length=128"]


def run_recipe(folder: Path, name: str, model: str, *more: str) -> subprocess.CompletedProcess:
    """Run a recipe from a folder of its own."""
    file = RECIPES / f"{name}.yaml"
    settings = [*overrides(file, write_data(folder / "data"), model), *SIZES, *more]
    command = [sys.executable, "-m", "rlhf_lab", "run", str(file)]
    environment = {**os.environ, "RLHF_LAB_RUNS": str(folder / "runs"), "WANDB_MODE": "disabled"}
    return subprocess.run(
        command + [word for setting in settings for word in ("-p", setting)],
        cwd=folder, env=environment, capture_output=True, text=True, timeout=600,
    )  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "kind", "comparisons"),
    [
        ("gpt2_tldr", "gpt2", 4),
        ("pythia_hh", "pythia", 3),  # the first of four held out is learned from
        ("qwen_ultrafeedback", "qwen2.5-instruct", 4),
        ("qwen_ultrafeedback", "qwen3-base", 4),
        ("smollm_nectar", "smollm2", 4 * 21),  # seven replies are 21 comparisons
        ("own_text", "", 4),
    ],
)
def test_a_recipe_runs_to_its_end(tmp_path, name, kind, comparisons):
    import transformers

    model = str(save_model(tmp_path / "model", kind)) if kind else ""
    done = run_recipe(tmp_path, name, model, *(() if kind else OWN))
    assert done.returncode == 0, done.stderr[-2000:]
    found = json.loads((tmp_path / "runs" / name / "results.json").read_text())
    results, runs = found["results"], {stage: Path(run) for stage, run in found["runs"].items()}
    assert results["reward_model"]["comparisons"] == comparisons
    assert "score" in results["ppo"] and "gold" not in results["ppo"]
    tokenizer = transformers.AutoTokenizer.from_pretrained(runs["ppo"] / "checkpoint")
    assert tokenizer.eos_token == ("<|im_end|>" if kind == "qwen2.5-instruct" else "<|endoftext|>")
    if name == "qwen_ultrafeedback":
        assert (runs["ppo"] / "checkpoint" / "adapter_config.json").is_file()
    else:
        policy = transformers.AutoModelForCausalLM.from_pretrained(runs["ppo"] / "checkpoint")
        assert policy.config.vocab_size >= len(tokenizer)
    if not kind:
        assert results["pretrain"]["heldout_loss"] > 0 and results["pretrain"]["bits_per_byte"] > 0


def save_encoder(folder: Path) -> Path:
    """A model that reads in both directions."""
    import transformers

    sizes = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 48}
    transformers.BertForMaskedLM(transformers.BertConfig(vocab_size=600, **sizes)).save_pretrained(folder)
    make_tokenizer("gpt2").save_pretrained(folder)
    return folder


def save_endless(folder: Path) -> Path:
    """A GPT-2 whose tokenizer has no EOS."""
    import transformers

    core = make_tokenizer("gpt2").backend_tokenizer
    save_model(folder, "gpt2")
    transformers.PreTrainedTokenizerFast(tokenizer_object=core).save_pretrained(folder)
    return folder


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "save", "more", "line"),
    [
        (
            "qwen_ultrafeedback",
            "gpt2",
            [],
            "row 1: .*model: has no chat template, and the prompt is a list of messages",
        ),
        (
            "pythia_hh",
            "pythia",
            ["sft.columns={prompt: question}"],
            "names a column that is not there; the columns are",
        ),
        ("pythia_hh", save_endless, [], "model: the tokenizer has no EOS token, so no reply could end"),
        ("pythia_hh", save_encoder, [], "model: BertLMHeadModel reads in both directions; give a causal model"),
    ],
    ids=["chat data without a template", "a map that names nothing", "no EOS", "an encoder"],
)
def test_what_does_not_go_together_is_one_line(tmp_path, name, save, more, line):
    folder = tmp_path / "model"
    done = run_recipe(tmp_path, name, str(save(folder) if callable(save) else save_model(folder, save)), *more)
    told = [text for text in done.stderr.splitlines() if text.startswith("rlhf-lab:")]
    assert done.returncode == 2 and len(told) == 1 and "Traceback" not in done.stderr
    assert re.search(line, told[0]), told[0]
