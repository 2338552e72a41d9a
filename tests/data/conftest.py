"""Small tokenizers made on the spot, and files written by other code than ours."""

import csv
import gzip
import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

CORPUS = [
    "The sky is blue.",
    "The sky is blue and the sea is blue.",
    "Human: hello",
    "Assistant: hello there",
] * 8


def with_opening(core: Tokenizer, template: str) -> None:
    """Let the tokenizer put special tokens around a text, as `template` says."""
    special = [(name, core.token_to_id(name)) for name in ("<s>", "</s>")]
    core.post_processor = processors.TemplateProcessing(single=template, special_tokens=special)


@pytest.fixture
def words():
    """Word-level: <s> 0, </s> 1, <pad> 2, ?  3, a 4, b 5, c 6, d 7; puts <s> before and </s> after a text."""
    vocabulary = {word: i for i, word in enumerate(["<s>", "</s>", "<pad>", "?", "a", "b", "c", "d"])}
    core = Tokenizer(models.WordLevel(vocabulary, unk_token="?"))
    core.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    with_opening(core, "<s> $A </s>")
    return PreTrainedTokenizerFast(
        tokenizer_object=core, bos_token="<s>", eos_token="</s>", pad_token="<pad>", unk_token="?"
    )


@pytest.fixture(scope="session")
def make_bytes():
    """Byte-level BPE. `opening` is the tokenizer's way with texts: "$A", "<s> $A"; `pad` may be the EOS."""

    def make(opening="$A", pad="<pad>"):
        core = Tokenizer(models.BPE())
        core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        core.decoder = decoders.ByteLevel()
        trainer = trainers.BpeTrainer(
            vocab_size=320,
            special_tokens=["<s>", "</s>", "<pad>"],
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        )
        core.train_from_iterator(CORPUS, trainer)
        with_opening(core, opening)
        return PreTrainedTokenizerFast(
            tokenizer_object=core,
            bos_token="<s>",
            eos_token="</s>",
            pad_token=pad,
            clean_up_tokenization_spaces=False,
        )

    return make


@pytest.fixture
def write(tmp_path):
    """Write rows (or raw text) into a file of the type that its name says, and return the path."""

    def as_cell(value):
        if isinstance(value, list):
            return json.dumps(value)
        return "" if value is None else value

    def make(name, rows):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if isinstance(rows, str | bytes):
            path.write_bytes(rows.encode() if isinstance(rows, str) else rows)
        elif name.endswith(".parquet"):
            pq.write_table(pa.Table.from_pylist(rows), path)
        elif name.endswith(".csv"):
            with path.open("w", newline="", encoding="utf-8") as file:
                writer = csv.DictWriter(file, rows[0].keys())
                writer.writeheader()
                writer.writerows({key: as_cell(value) for key, value in row.items()} for row in rows)
        elif name.endswith(".json"):
            path.write_text(json.dumps(rows, indent=1), encoding="utf-8")
        else:
            opener = gzip.open if name.endswith(".gz") else open
            with opener(path, "wt", encoding="utf-8") as file:
                file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        return path

    return make
