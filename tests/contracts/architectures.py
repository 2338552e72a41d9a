"""Small models of several architectures, each with a tokenizer of its own sort, and a small world of texts for them."""

from functools import cache
from pathlib import Path
from typing import NamedTuple

import torch
import transformers
from models.tiny_models import build_config
from tokenizers import Tokenizer, decoders, normalizers, pre_tokenizers, processors, trainers
from tokenizers import models as cores

COLOURS = {"sky": "blue", "grass": "green", "sun": "yellow", "snow": "white", "coal": "black", "rose": "red"}
PROMPTS = [f"{opening} {thing} is" for opening in ("The", "Every day the") for thing in COLOURS]
DEMONSTRATIONS = [{"prompt": f"The {thing} is", "completion": f" {colour} ."} for thing, colour in COLOURS.items()]
CORPUS = [row["prompt"] + row["completion"] for row in DEMONSTRATIONS] + PROMPTS + ["say what you see", "Be brief ."]

CHATML = (  # as Qwen's: a system turn is put in where there is none
    "{% if messages[0]['role'] != 'system' %}<|system|>Be brief .{{ eos_token }}\n{% endif %}"
    "{% for m in messages %}<|{{ m['role'] }}|>{{ m['content'] }}{{ eos_token }}\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
NO_SYSTEM = (  # as Gemma's: the template writes the BOS and refuses a system turn
    "{{ bos_token }}{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}"
    "{% endif %}"
    "{% for m in messages %}[{{ m['role'] }}] {{ m['content'] }}{{ eos_token if m['role'] == 'assistant' }}{% endfor %}"
    "{% if add_generation_prompt %}[assistant]{% endif %}"
)


class Case(NamedTuple):
    """A policy's architecture and the ways of its tokenizer."""

    architecture: str
    tokenizer: str  # bytes, unigram or wordpiece
    bos: bool = False  # put before a text
    pad: str | None = None  # None: missing
    side: str = "right"
    template: str | None = None


POLICIES = [
    Case("llama", "unigram", bos=True),
    Case("gpt2", "bytes"),
    Case("gpt_neox", "bytes", pad="</s>", side="left"),
    Case("qwen3", "bytes", pad="<pad>", side="left", template=CHATML),
    Case("gemma3", "unigram", bos=True, pad="<pad>", side="left", template=NO_SYSTEM),
    Case("gemma2", "wordpiece", bos=True, pad="<pad>"),
]
ENCODERS = [Case("bert", "wordpiece"), Case("roberta", "bytes", bos=True, pad="<pad>"), Case("distilbert", "wordpiece")]


def make_tokenizer(kind: str, *, bos: bool = False, pad: str | None = None, side: str = "right", template=None):
    """A tokenizer trained on the corpus. `bos`: <s> before every text; `pad`: the padding token, None for none."""
    core = Tokenizer.from_str(_trained(kind))
    if bos:
        core.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    made = transformers.PreTrainedTokenizerFast(
        tokenizer_object=core,
        bos_token="<s>",
        eos_token="</s>",
        pad_token=pad,
        unk_token=None if kind == "bytes" else "<unk>",
        padding_side=side,
        clean_up_tokenization_spaces=False,
    )
    made.chat_template = template
    return made


def make_bert_tokenizer():
    """As BERT's: [CLS] before and [SEP] after a text, and neither BOS nor EOS."""
    core = Tokenizer(cores.WordPiece(unk_token="[UNK]"))
    core.normalizer = normalizers.BertNormalizer(lowercase=True)
    core.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    core.decoder = decoders.WordPiece()
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]
    core.train_from_iterator(
        CORPUS, trainers.WordPieceTrainer(vocab_size=120, special_tokens=special, show_progress=False)
    )
    core.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    names = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
    return transformers.PreTrainedTokenizerFast(tokenizer_object=core, clean_up_tokenization_spaces=False, **names)


@cache  # training twice need not give the same vocabulary
def _trained(kind: str) -> str:
    special = ["<s>", "</s>", "<pad>", "<unk>"]
    if kind == "bytes":
        core = Tokenizer(cores.BPE())
        core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        core.decoder = decoders.ByteLevel()
        alphabet = pre_tokenizers.ByteLevel.alphabet()
        options = {"vocab_size": 300, "initial_alphabet": alphabet, "special_tokens": special}
        trainer = trainers.BpeTrainer(show_progress=False, **options)
    elif kind == "unigram":
        core = Tokenizer(cores.Unigram())
        core.pre_tokenizer, core.decoder = pre_tokenizers.Metaspace(), decoders.Metaspace()
        trainer = trainers.UnigramTrainer(
            vocab_size=120, special_tokens=special, unk_token="<unk>", show_progress=False
        )
    else:
        core = Tokenizer(cores.WordPiece(unk_token="<unk>"))
        core.pre_tokenizer, core.decoder = pre_tokenizers.BertPreTokenizer(), decoders.WordPiece(cleanup=False)
        trainer = trainers.WordPieceTrainer(vocab_size=120, special_tokens=special, show_progress=False)
    core.train_from_iterator(CORPUS, trainer)
    return core.to_str()


def save_model(folder: Path, case: Case, auto=transformers.AutoModelForCausalLM, *, seed: int = 0, **changes) -> Path:
    """A model of random weights with its tokenizer, as plain transformers saves them. Its config asks for dropout."""
    if case.architecture in ("bert", "distilbert"):
        tokenizer = make_bert_tokenizer()
    else:
        tokenizer = make_tokenizer(case.tokenizer, bos=case.bos, pad=case.pad, side=case.side, template=case.template)
    special = {name: getattr(tokenizer, name) for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
    options = {"vocab_size": len(tokenizer), "max_position_embeddings": 64, **special, **changes}
    torch.manual_seed(seed)
    auto.from_config(build_config(case.architecture, **options)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def ids_of(case: Case) -> str:
    """What pytest calls a case."""
    return case.architecture


def plain_scores(folder, rows: list[list[int]]) -> list[float]:
    """Row by row without padding through transformers' own sequence classifier, which then reads the last token."""
    model = transformers.AutoModelForSequenceClassification.from_pretrained(folder).eval()
    model.config.pad_token_id = None
    with torch.no_grad():
        return [model(input_ids=torch.tensor([row])).logits.item() for row in rows]
