"""Pretraining: a language model learns to predict the next token of plain text, from scratch."""

import math
from collections.abc import Iterator, Sequence
from typing import Any, Literal, NamedTuple

import torch
from pydantic import Field

from rlhf_lab.config import Config
from rlhf_lab.data import right_pad
from rlhf_lab.errors import LabError, RunFailed
from rlhf_lab.models import autocast, resolve_precision
from rlhf_lab.models.attention import use_attention
from rlhf_lab.models.device import device
from rlhf_lab.training.interrupts import interrupts_held
from rlhf_lab.training.processes import Processes


class PretrainConfig(Config):
    """Sizes of the model and of its training. The loss is the mean negative log-likelihood per token, in nats."""

    hidden_size: int = Field(128, ge=1)  # width of the model
    layers: int = Field(2, ge=1)  # transformer blocks
    heads: int = Field(4, ge=1)  # of attention in each layer; hidden_size is a multiple
    feed_forward: int = Field(344, ge=1)  # width of its feed-forward layers
    context: int = Field(256, ge=2)  # longest sequence that the model will ever read, in tokens
    steps: int = Field(2000, ge=1)  # optimizer steps
    batch_tokens: int = Field(4096, ge=2)  # tokens in a step, padding included; documents of like length go together
    lr: float = Field(3e-3, gt=0)  # peak, after a linear warm-up, decaying linearly to 0
    warmup_steps: int = Field(50, ge=1)  # first steps, with a rising lr
    precision: Literal["auto", "fp32", "bf16"] = "fp32"  # of the matrix products; the committed base model is of fp32
    seed: int = 0


class PretrainStats(NamedTuple):
    """What one step measured: loss in nats per token, the learning rate, the tokens it read."""

    loss: float
    lr: float
    tokens: int


class PretrainState:
    """A model in training, with its optimiser and data order."""

    def __init__(self, model, tokenizer, optimizer, documents: list[list[int]], config: PretrainConfig, processes):
        self.model, self.tokenizer, self.optimizer = model, tokenizer, optimizer
        self.documents, self.config, self.step = documents, config, 0
        self.processes: Processes = processes
        self.generator = torch.Generator().manual_seed(config.seed)
        self.batches: list[list[int]] = []

    def material(self) -> list[list[int]]:
        """What it learns from."""
        return self.documents

    def progress(self) -> dict[str, Any]:
        """Where it stands."""
        return {"step": self.step, "batches": self.batches, "generator": self.generator.get_state()}

    def restore(self, progress: dict[str, Any]) -> None:
        """Take up what `progress` gave."""
        self.step, self.batches = progress["step"], progress["batches"]
        self.generator.set_state(progress["generator"])


def pretrain_start(
    config: PretrainConfig, tokenizer, texts: Sequence[str] | Sequence[list[int]], *, accelerator=None
) -> PretrainState:
    """A Llama-shaped model with random weights, and the tokenised documents it will learn from.

    texts: the documents as text, or as the token ids that `in_pieces` makes of them.
    accelerator: accelerate's `Accelerator`, in each of several processes that train together.
    Errors: `LabError` if there is no text, or a document has no token to predict or is longer than the context.
    """
    from transformers import LlamaConfig, LlamaForCausalLM

    processes = Processes.of(accelerator, "pretraining")
    if processes.sharded:
        raise LabError("pretraining: the lab's own base models are small and are not sharded; launch without FSDP")

    if not texts:
        raise LabError("pretraining text: no documents; give at least one")
    if config.hidden_size % config.heads:
        raise LabError(f"hidden_size={config.hidden_size} is no multiple of heads={config.heads}; change one of them")
    told = isinstance(texts[0], str)
    documents = tokenizer(list(texts), add_special_tokens=False)["input_ids"] if told else list(texts)
    lengths = [len(document) for document in documents]
    if min(lengths) < 2:
        raise LabError(
            f"pretraining text: document {lengths.index(min(lengths)) + 1} has {min(lengths)} tokens; "
            "it takes two to predict one, so leave it out"
        )
    longest = max(range(len(documents)), key=lambda i: len(documents[i]))
    if len(documents[longest]) > config.context:
        raise LabError(
            f"pretraining text: document {longest + 1} has {len(documents[longest])} tokens, the context is "
            f"{config.context}; cut the document or raise 'context'"
        )
    torch.manual_seed(config.seed)
    shape = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=config.hidden_size,
        intermediate_size=config.feed_forward,
        num_hidden_layers=config.layers,
        num_attention_heads=config.heads,
        max_position_embeddings=config.context,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    model = LlamaForCausalLM(shape).float().to(device())
    use_attention(model)
    optimizer = torch.optim.AdamW(model.parameters(), lr=config.lr, betas=(0.9, 0.98), weight_decay=0.01)
    return PretrainState(model, tokenizer, optimizer, documents, config, processes)


def in_pieces(tokenizer, texts: Sequence[str], context: int) -> list[list[int]]:
    """Token ids of the texts, each ended by EOS, the long ones cut into pieces of at most `context` tokens.

    An EOS written in a text ends a document too. A last piece of one token, which predicts nothing, is left out.
    """
    documents = [part for text in texts for part in text.split(tokenizer.eos_token) if part.strip()]
    pieces = []
    for ids in tokenizer(documents, add_special_tokens=False, verbose=False)["input_ids"]:
        ids = [*ids, tokenizer.eos_token_id]
        pieces += [ids[start : start + context] for start in range(0, len(ids), context)]
    return [piece for piece in pieces if len(piece) > 1]


@torch.no_grad()
def mean_loss(model, tokenizer, documents: Sequence[list[int]], *, batch_tokens: int = 4096) -> float:
    """The loss on documents that are not learned from: a mean over all tokens but each one's first, in nats.

    documents: token ids, at least one of them with two. Errors: `LabError` without any.
    """
    if not documents:
        raise LabError("pretraining text: nothing is held out to measure on; give more text")
    total = 0.0
    for rows in _batches(list(documents), batch_tokens, torch.Generator()):
        ids, mask = (t.to(model.device) for t in right_pad([documents[i] for i in rows], tokenizer.pad_token_id))
        logits = model(input_ids=ids).logits[:, :-1]
        losses = torch.nn.functional.cross_entropy(
            logits[mask[:, 1:]].float(), ids[:, 1:][mask[:, 1:]], reduction="sum"
        )
        total += losses.item()
    return total / _predicted(list(documents))


def pretrain_steps(state: PretrainState) -> Iterator[PretrainStats]:
    """Train to `config.steps`, yielding after each step. Interrupted, it goes on from `state.step`."""
    model = state.model
    model.train()
    while state.step < state.config.steps:
        with state.processes.step():
            stats = _take_step(state)
        yield stats
    model.eval()


def _take_step(state: PretrainState) -> PretrainStats:
    config, model, processes = state.config, state.model, state.processes
    if not state.batches:
        state.batches = _batches(state.documents, config.batch_tokens, state.generator)
    rows = [state.documents[i] for i in state.batches[-1]]
    lr = config.lr * min((state.step + 1) / config.warmup_steps, 1 - state.step / config.steps)
    for group in state.optimizer.param_groups:
        group["lr"] = lr
    state.optimizer.zero_grad()
    figure, ours = 0.0, processes.share(rows)
    if ours:  # a batch of one long document leaves nothing for the other processes
        ids, mask = (t.to(model.device) for t in right_pad(ours, state.tokenizer.pad_token_id))
        # Right padding comes after every real token, so causal attention alone keeps it out.
        with autocast(resolve_precision(config.precision, model), model):
            logits = model(input_ids=ids).logits[:, :-1]
        loss = torch.nn.functional.cross_entropy(logits[mask[:, 1:]].float(), ids[:, 1:][mask[:, 1:]])
        loss = loss * (_predicted(ours) / _predicted(rows))  # a mean over tokens
        figure = loss.item()
        processes.backward(loss)
    figure = processes.sum({"loss": figure})["loss"]
    if not math.isfinite(figure):
        raise RunFailed(f"pretraining step {state.step}: the loss is {figure}; lower 'lr'")
    processes.sum_gradients(model.parameters())
    with interrupts_held():
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        state.optimizer.step()
        state.step += 1
        state.batches.pop()
    return PretrainStats(figure, lr, sum(map(len, rows)))


def _predicted(documents: list[list[int]]) -> int:
    return sum(len(document) - 1 for document in documents)


def _batches(documents: list[list[int]], batch_tokens: int, generator: torch.Generator) -> list[list[int]]:
    """One epoch of batches in random order, each of documents of about the same length: little padding, same work."""
    shuffled = torch.randperm(len(documents), generator=generator).tolist()
    batches: list[list[int]] = [[]]
    for i in sorted(shuffled, key=lambda i: len(documents[i])):
        if batches[-1] and (len(batches[-1]) + 1) * len(documents[i]) > batch_tokens:
            batches.append([])
        batches[-1].append(i)
    return [batches[i] for i in torch.randperm(len(batches), generator=generator)]
