"""What the recipes ask for, small: models of the same architectures and tokenizers, data in each set's own format."""

import gzip
import json
from pathlib import Path
from typing import NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq
import torch
import transformers
from tokenizers import Tokenizer, decoders, pre_tokenizers, trainers
from tokenizers import models as cores

END, OPEN, CLOSE = "<|endoftext|>", "<|im_start|>", "<|im_end|>"
ASK = "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
INSTRUCT = (  # puts a system turn in where there is none
    "{% if messages[0].role != 'system' %}<|im_start|>system\nBe kind.<|im_end|>\n{% endif %}"
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}" + ASK
)
THINKING = (  # writes an empty thought in front of the last reply
    "{% for m in messages %}<|im_start|>{{ m.role }}\n"
    "{% if loop.last and m.role == 'assistant' %}<think>\n\n</think>\n\n{% endif %}{{ m.content }}<|im_end|>\n"
    "{% endfor %}" + ASK
)
THINGS = ["tea", "rain", "bread", "a hill", "the sea", "snow", "a lamp", "the moon", "soup", "a map", "wool", "a bell"]


class Kind(NamedTuple):
    """A tokenizer's special tokens and chat template, and the architecture that it comes with."""

    architecture: str
    eos: str = END
    bos: str | None = END
    pad: str | None = None
    template: str | None = None


KINDS = {
    "gpt2": Kind("gpt2"),
    "pythia": Kind("gpt_neox"),
    "qwen2.5-instruct": Kind("qwen2", eos=CLOSE, bos=None, pad=END, template=INSTRUCT),
    "qwen3-base": Kind("qwen3", bos=None, pad=END, template=THINKING),
    "smollm2": Kind("llama"),
}


def make_tokenizer(name: str):
    """Byte-level BPE on the texts of the data below; nothing is put before or after a text."""
    kind = KINDS[name]
    core = Tokenizer(cores.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=500, special_tokens=[END, OPEN, CLOSE], initial_alphabet=alphabet, show_progress=False
    )
    texts = [
        text for pair in pairs(24) for text in (pair["chosen"], post(1)["post"], "SUBREDDIT: r/ TITLE: POST: TL;DR:")
    ]
    core.train_from_iterator(texts, trainer)
    made = transformers.PreTrainedTokenizerFast(
        tokenizer_object=core, eos_token=kind.eos, bos_token=kind.bos, pad_token=kind.pad,
        clean_up_tokenization_spaces=False,
    )  # fmt: skip
    made.chat_template = kind.template
    return made


def save_model(folder: Path, name: str) -> Path:
    """A model of random weights, its vocabulary larger than the tokenizer's as in most of the real ones."""
    tokenizer = make_tokenizer(name)
    heads = {"num_attention_heads": 2}
    if KINDS[name].architecture in ("qwen2", "qwen3", "llama"):  # several heads share keys and values
        heads |= {"num_key_value_heads": 1, "head_dim": 16}
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, **heads}
    if KINDS[name].architecture == "gpt2":
        sizes = {"n_embd": 32, "n_layer": 2, "n_head": 2}
    special = {part: getattr(tokenizer, part) for part in ("bos_token_id", "eos_token_id")}
    shape = {"vocab_size": len(tokenizer) + 12, "max_position_embeddings": 256, **special}
    torch.manual_seed(0)
    config = transformers.AutoConfig.for_model(KINDS[name].architecture, **shape, **sizes)
    transformers.AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


# data: a few rows of each set, written by us in its own columns


def pairs(count: int, start: int = 0) -> list[dict]:
    """Two whole dialogues a row, as HH-RLHF has them; every third row has two turns."""
    rows = []
    for n in range(start, start + count):
        opening = f"\n\nHuman: Tell me of {THINGS[n % 12]}, part {n}.\n\nAssistant:"
        if n % 3 == 0:
            opening += " Which?\n\nHuman: Any.\n\nAssistant:"
        rows.append({"chosen": f"{opening} It is good.", "rejected": f"{opening} I will not say, {n}."})
    return rows


def chats(count: int, start: int = 0) -> list[dict]:
    """As UltraFeedback, binarized."""
    rows = []
    for n in range(start, start + count):
        asked = f"What is {THINGS[n % 12]}, {n}?"
        user = {"content": asked, "role": "user"}
        good, bad = ([user, {"content": said, "role": "assistant"}] for said in ("It is good.", f"No, {n}."))
        scores = {"score_chosen": 8.0, "score_rejected": 4.5}
        rows.append(
            {"prompt": asked, "prompt_id": f"{n:x}", "chosen": good, "rejected": bad, "messages": good, **scores}
        )
    return rows


def rankings(count: int) -> list[dict]:
    """As Nectar: answers with their ranks, 1 for the best, not in order."""
    return [
        {
            "prompt": f"\n\nHuman: Say {n} of {THINGS[n % 12]}.\n\nAssistant: ",
            "answers": [
                {"answer": "So " * rank + "it is.", "model": f"m{rank}", "rank": float(rank)}
                for rank in (3, 1, 7, 2, 5, 4, 6)
            ],
            "turns": 1, "num_responses": 7, "source": ["ours"], "good_natured": True,
        }
        for n in range(count)
    ]  # fmt: skip


def post(n: int) -> dict:
    """As tldr_3_filtered."""
    title = f"On {THINGS[n % 12]}"
    return {
        "id": f"t{n}",
        "subreddit": "lab",
        "title": title,
        "post": f"I saw it {n} times.",
        "summary": f"Saw it {n}.",
    }


def compared(n: int) -> dict:
    """As OpenAI's batch*.json. The second is better where n is odd."""
    told = [
        {"text": f" Saw it, {n}.", "policy": "sup", "note": ""},
        {"text": " I did not look.", "policy": "ref", "note": ""},
    ]
    info = {"id": f"t{n}", "post": f"I saw it {n} times.", "title": f"On {THINGS[n % 12]}", "subreddit": "lab"}
    return {"info": info, "summaries": told, "choice": n % 2, "worker": "w", "batch": "batch3", "split": "train"}


def write_json_lines(path: Path, rows: list[dict]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with (gzip.open if path.suffix == ".gz" else open)(path, "wt", encoding="utf-8") as file:
        file.writelines(json.dumps(row) + "\n" for row in rows)


def write_parquet(path: Path, rows: list[dict]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist(rows), path)


def write_data(folder: Path) -> dict[str, str]:
    """Every set, laid out in files as its publishers do -> the paths by which the recipes' own are replaced."""
    broken = {"chosen": "\n\nHuman: a\n\nAssistant: b", "rejected": "\n\nHuman: c\n\nAssistant: d"}
    write_json_lines(folder / "hh" / "train.jsonl.gz", [broken, *pairs(24)])
    write_json_lines(folder / "hh" / "test.jsonl.gz", [*pairs(1), *pairs(8, start=100)])  # the first was learned from
    for split, rows in {
        "train_sft": chats(12),
        "test_sft": chats(4, 50),
        "train_prefs": chats(16),
        "test_prefs": chats(6, 80),
    }.items():
        write_parquet(folder / "ultra" / f"{split}-00000-of-00001.parquet", rows)
    write_parquet(folder / "nectar" / "rlaif.parquet", rankings(20))
    write_parquet(folder / "posts" / "train-00000-of-00001.parquet", [post(n) for n in range(20)])
    write_json_lines(folder / "compared" / "batch3.json", [compared(n) for n in range(12)])
    news = compared(99) | {"info": {"id": "n", "article": "It rained.", "title": "Rain", "site": "news"}}
    write_json_lines(folder / "compared" / "cnndm0.json", [news])
    return {
        "Anthropic/hh-rlhf": str(folder / "hh"),
        "data/harmless-base-test.jsonl.gz": str(folder / "hh" / "train.jsonl.gz"),
        "HuggingFaceH4/ultrafeedback_binarized": str(folder / "ultra"),
        "berkeley-nest/Nectar": str(folder / "nectar" / "rlaif.parquet"),
        "vwxyzjn/summarize_from_feedback_tldr_3_filtered": str(folder / "posts"),
        "data/summarize_from_feedback/comparisons": str(folder / "compared"),
    }


def overrides(file: Path, paths: dict[str, str], model: str = "") -> list[str]:
    """`-p` settings that put these paths, and the model's, into a recipe and nothing else."""
    import yaml

    found = [f"sft.model={model}"] if model else []
    for stage in yaml.safe_load(file.read_text())["stages"]:
        for key, value in stage["parameters"].items():
            theirs, bracket, part = str(value).partition("[")
            if theirs in paths:
                found.append(f"{stage['name']}.{key}={paths[theirs]}{bracket}{part}")
    return found
