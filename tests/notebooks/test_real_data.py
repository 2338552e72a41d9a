"""The README's way to real models and data: no sandbox, a GPT-2 and files of one's own, through the same notebooks."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml

ROOT = Path(__file__).resolve().parents[2]
SENTENCES = ["the sky is blue", "rain falls in spring", "a cat sleeps all day", "tea is warm", "we walk to the sea"]


def write(path: Path, rows: list[dict]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def run_lab(folder: Path, file: Path) -> None:
    """Run an experiment file from a folder, with its runs below it, and expect it to end well."""
    environment = {**os.environ, "RLHF_LAB_RUNS": str(folder / "runs"), "WANDB_MODE": "disabled"}
    done = subprocess.run(
        [sys.executable, "-m", "rlhf_lab", "run", str(file)],
        cwd=folder, env=environment, capture_output=True, text=True, timeout=600,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]


@pytest.fixture
def gpt2(tmp_path) -> str:
    """A GPT-2 with a byte-level tokenizer made on the spot; its padding token is its EOS, as in the real one."""
    from tokenizers import ByteLevelBPETokenizer
    from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

    bpe = ByteLevelBPETokenizer()
    bpe.train_from_iterator(SENTENCES * 20, vocab_size=300, special_tokens=["<|endoftext|>"])
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=bpe._tokenizer, eos_token="<|endoftext|>")
    torch.manual_seed(0)
    config = GPT2Config(vocab_size=len(tokenizer), n_positions=64, n_embd=32, n_layer=2, n_head=2, eos_token_id=0)
    GPT2LMHeadModel(config).save_pretrained(tmp_path / "gpt2")
    tokenizer.save_pretrained(tmp_path / "gpt2")
    return str(tmp_path / "gpt2")


@pytest.fixture
def encoder(tmp_path) -> str:
    """A BERT, which reads in both directions, with a vocabulary of the sentences' words."""
    from tokenizers import BertWordPieceTokenizer
    from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

    pieces = BertWordPieceTokenizer()
    pieces.train_from_iterator(SENTENCES * 20, vocab_size=200)
    names = {"cls_token": "[CLS]", "sep_token": "[SEP]", "pad_token": "[PAD]", "unk_token": "[UNK]"}
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=pieces._tokenizer, **names)
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 48}
    config = BertConfig(vocab_size=len(tokenizer), max_position_embeddings=64, **sizes)
    BertModel(config).save_pretrained(tmp_path / "encoder")
    tokenizer.save_pretrained(tmp_path / "encoder")
    return str(tmp_path / "encoder")


@pytest.mark.slow
def test_the_chain_on_ones_own_model_and_files(tmp_path, gpt2, encoder):
    prompts = [f"{a}, so" for a in SENTENCES]
    demos = [{"prompt": p, "completion": f" {s}"} for p in prompts for s in SENTENCES]
    pairs = [{"question": p, "chosen": f" {s}", "rejected": f" {s} and {s}"} for p in prompts for s in SENTENCES]
    chat = [
        {
            "prompt": [{"role": "user", "content": p}],
            "chosen": [{"role": "assistant", "content": "yes"}],
            "rejected": [{"role": "assistant", "content": "no"}],
        }
        for p in prompts
    ]
    files = {
        "demonstrations": write(tmp_path / "demos.jsonl", demos),
        "preferences": write(tmp_path / "pairs.jsonl", pairs),
        "prompts": write(tmp_path / "prompts.jsonl", [{"prompt": p, "source": "mine"} for p in prompts]),
        "heldout_prompts": write(tmp_path / "heldout.jsonl", [{"prompt": p.upper()} for p in prompts]),
        "heldout_pairs": write(
            tmp_path / "heldout-pairs.jsonl",
            [
                {"question": row["question"].upper(), "chosen": row["chosen"], "rejected": row["rejected"]}
                for row in pairs
            ],
        ),
    }
    write(tmp_path / "chat.jsonl", chat)
    (tmp_path / "mine.py").write_text(
        "def short(completions, source, **_):\n"
        "    assert set(source) == {'mine'}\n"
        "    return [-float(len(c)) for c in completions]\n"
    )
    common = {"sandbox": "", "eval_prompts": 4, "max_new_tokens": 6, "threads": 1}
    ppo = {"policy": "{sft}", "prompts": files["prompts"], "updates": 1, "eval_every": 1, "batch_size": 4}
    stages = [
        ("sft", "01_sft", {
            "model": gpt2, "demonstrations": files["demonstrations"], "prompts": files["heldout_prompts"],
        }),
        ("reward_model", "02_reward_model", {
            "policy": "{sft}", "preferences": files["preferences"], "heldout": files["heldout_pairs"],
            "columns": {"prompt": "question"}, "demonstrations": files["demonstrations"],
        }),
        ("encoder", "02_reward_model", {
            "policy": "", "model": encoder, "preferences": files["preferences"], "heldout": "split", "n_heldout": 5,
            "columns": {"prompt": "question"}, "demonstrations": "", "normalise": "off", "reversed_too": False,
        }),
        ("ppo", "03_ppo", {**ppo, "reward": "{reward_model}"}),
        ("ppo_function", "03_ppo", {**ppo, "reward": f"{tmp_path / 'mine.py'}:short", "critic": "policy"}),
        ("judge_bias", "04_judge_bias", {
            "policy_a": "{ppo}", "policy_b": "{sft}", "reward": "{reward_model}", "prompts": files["prompts"],
        }),
    ]  # fmt: skip
    chain = {
        "experiment": "mine",
        "stages": [{"name": n, "notebook": b, "parameters": {**common, **p}} for n, b, p in stages],
    }
    (tmp_path / "experiments").mkdir()
    (tmp_path / "notebooks").symlink_to(ROOT / "notebooks")
    file = tmp_path / "experiments" / "mine.yaml"
    file.write_text(yaml.safe_dump(chain, sort_keys=False))
    run_lab(tmp_path, file)
    results = json.loads((tmp_path / "runs" / "mine" / "results.json").read_text())["results"]
    assert results["reward_model"]["comparisons"] == 25
    assert results["encoder"]["comparisons"] == 5  # an opening's pairs stay together: one of five openings
    assert results["encoder"]["accuracy_of_length"] == 1.0  # the shorter reply is always the better one here
    assert "accuracy_reversed" not in results["encoder"]
    assert "gold" not in results["ppo"]
    assert results["ppo_function"]["score"] <= 0


@pytest.mark.slow
def test_judge_bias_reads_recorded_verdicts_of_real_judges(tmp_path, shared):
    """LLMBar's verdicts, both orders in one row. ChatGPT with the plain prompt is published below chance, at 32.0%."""
    from rlhf_lab.sandbox.world import World

    recorded = {
        "path": str(shared / "data" / "llmbar" / "verdicts.csv.gz"),
        "columns": {
            "judge": ["evaluator", "strategy"], "pair_id": ["subset", "idx"], "gold": "label",
            "verdict_0": "w0", "verdict_1": "w1", "chars_a": "len1", "chars_b": "len2",
        },
        "labels": {"1": "a", "2": "b"},
    }  # fmt: skip
    base = World.load().base_model
    parameters = {"policy_a": base, "policy_b": base, "reward": "gold", "eval_prompts": 24}
    parameters |= {"learned": None, "recorded": recorded}
    file = tmp_path / "experiments" / "04_judge_bias" / "llmbar.yaml"
    file.parent.mkdir(parents=True)
    (tmp_path / "notebooks").symlink_to(ROOT / "notebooks")
    file.write_text(yaml.safe_dump({"threads": 1, **parameters}))
    run_lab(tmp_path, file)
    (notebook,) = (tmp_path / "runs").glob("*/*/*/notebook.ipynb")
    shown = json.dumps(json.loads(notebook.read_text())["cells"])
    assert "ChatGPT / Vanilla_NoRules" in shown
    assert "GPT-4 / Metrics_Reference" in shown
