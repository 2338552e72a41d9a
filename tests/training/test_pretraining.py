"""Pretraining: the loss by hand, what a batch holds, and that it learns."""

import math

import pytest
import torch
from tiny import EOS, make_tokenizer, same, weights_of

from rlhf_lab.errors import LabError, RunFailed
from rlhf_lab.training.pretraining import PretrainConfig, pretrain_start, pretrain_steps

# Counting up by one or by two, so that two words tell the next.
CORPUS = [
    " ".join(f"w{2 + (start + pace * place) % 12}" for place in range(length)) + " </s>"
    for start in range(12)
    for pace in (1, 2)
    for length in (3, 5, 8)
]


def make_settings(**changes) -> PretrainConfig:
    small = {"hidden_size": 16, "layers": 1, "heads": 2, "feed_forward": 24, "context": 16, "steps": 8}
    return PretrainConfig(**(small | {"batch_tokens": 64, "warmup_steps": 2} | changes))


def test_the_loss_falls():
    # After its first word, nothing about a document of five is left to chance.
    texts = [text for text in CORPUS if len(text.split()) == 6][::2]
    state = pretrain_start(make_settings(steps=100, lr=2e-2), make_tokenizer(), texts)
    losses = [stats.loss for stats in pretrain_steps(state)]
    assert losses[0] == pytest.approx(math.log(14), abs=0.3)  # it begins by knowing nothing of 14 tokens
    assert sum(losses[-10:]) / 10 < 0.2
    assert not state.model.training


@pytest.mark.parametrize("pad", ["<pad>", "</s>"])
def test_the_loss_by_hand(pad):
    """-log p of every token but the first, one document at a time without padding, over their number."""
    documents = ["w2 w3 </s>", "w4 w5 w6 w7 </s>"]
    state = pretrain_start(make_settings(batch_tokens=100), make_tokenizer(pad=pad), documents)
    total, tokens = 0.0, 0
    for text in documents:
        ids = torch.tensor([make_tokenizer().encode(text)])
        assert ids[0, -1] == EOS
        with torch.no_grad():
            logp = state.model(input_ids=ids).logits[0, :-1].log_softmax(-1)
        total -= logp.gather(1, ids[0, 1:, None]).sum().item()
        tokens += ids.shape[1] - 1
    stats = next(pretrain_steps(state))
    assert stats.loss == pytest.approx(total / tokens, rel=1e-5)
    assert stats.tokens == 8


def test_in_bfloat16_it_learns_the_same_to_its_eight_bits():
    exact, lowered = (pretrain_start(make_settings(precision=p), make_tokenizer(), CORPUS) for p in ("fp32", "bf16"))
    losses = [[stats.loss for stats in pretrain_steps(state)] for state in (exact, lowered)]
    assert losses[0] != losses[1] == pytest.approx(losses[0], rel=0.02)
    assert all(weight.dtype == torch.float32 for weight in lowered.model.parameters())


def test_an_epoch_holds_each_document_once():
    state = pretrain_start(make_settings(batch_tokens=20), make_tokenizer(), CORPUS)
    epochs = []
    while len(epochs) < 2:
        next(pretrain_steps(state))
        if not state.batches:
            epochs.append(state.step)
        state.config = state.config.model_copy(update={"steps": state.step + 2})
    assert epochs[1] == 2 * epochs[0]

    state = pretrain_start(make_settings(batch_tokens=20, steps=epochs[0]), make_tokenizer(), CORPUS)
    seen = []
    embed = state.model.get_input_embeddings()
    embed.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    read = sum(stats.tokens for stats in pretrain_steps(state))
    tokenizer = make_tokenizer()
    assert read == sum(len(tokenizer.encode(text)) for text in CORPUS)
    rows = [tokenizer.decode([t for t in row if t != tokenizer.pad_token_id]) for ids in seen for row in ids.tolist()]
    assert sorted(rows) == sorted(CORPUS)
    assert all(ids.numel() <= 20 for ids in seen)  # padding included
    assert [len(ids) for ids in seen] != sorted(len(ids) for ids in seen)  # in random order


def test_rates():
    state = pretrain_start(make_settings(steps=8, warmup_steps=2, lr=0.8), make_tokenizer(), CORPUS)
    rates = [stats.lr for stats in pretrain_steps(state)]
    assert rates == pytest.approx([0.4, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2, 0.1])


def test_closed_and_called_again_it_goes_on():
    ends = []
    for pauses in (0, 5):
        state = pretrain_start(make_settings(), make_tokenizer(), CORPUS)
        for _ in range(pauses):
            next(pretrain_steps(state))
        list(pretrain_steps(state))
        assert state.step == 8
        ends.append(weights_of(state.model))
    assert same(*ends)
    other = pretrain_start(make_settings(seed=1), make_tokenizer(), CORPUS)
    list(pretrain_steps(other))
    assert not same(weights_of(other.model), ends[0])


def test_the_model_has_the_shape_that_was_asked_for():
    model = pretrain_start(make_settings(), make_tokenizer(), CORPUS).model
    # embeddings 14 x 16 (shared with the output), attention 4 x 16 x 16, feed-forward 3 x 16 x 24, three norms of 16
    assert sum(p.numel() for p in model.parameters()) == 14 * 16 + 4 * 16 * 16 + 3 * 16 * 24 + 3 * 16
    assert model.config.eos_token_id == EOS
    assert model.config.max_position_embeddings == 16


def test_no_documents():
    with pytest.raises(LabError, match=r"^pretraining text: no documents; give at least one"):
        pretrain_start(make_settings(), make_tokenizer(), [])


def test_a_document_beyond_the_context():
    with pytest.raises(LabError, match=r"^pretraining text: document 2 has 17 tokens, the context is 16; .*'context'$"):
        pretrain_start(make_settings(), make_tokenizer(), ["w2 w3", "w2 " * 17])


@pytest.mark.parametrize(("text", "tokens"), [("", 0), ("w2", 1)])
def test_a_document_with_nothing_to_predict(text, tokens):
    with pytest.raises(LabError, match=rf"^pretraining text: document 2 has {tokens} tokens; .*leave it out"):
        pretrain_start(make_settings(), make_tokenizer(), ["w2 w3", text])


def test_a_loss_that_is_no_number_fails():
    state = pretrain_start(make_settings(), make_tokenizer(), CORPUS)
    with torch.no_grad():
        state.model.get_input_embeddings().weight[EOS, 0] = math.nan
    with pytest.raises(RunFailed, match=r"^pretraining step 0: the loss is nan; lower 'lr'"):
        next(pretrain_steps(state))


@pytest.mark.parametrize("key", ["steps", "warmup_steps", "layers", "heads", "lr", "batch_tokens"])
def test_settings_out_of_range(key):
    with pytest.raises(LabError, match=f"parameter '{key}' is 0"):
        PretrainConfig.parse({key: 0})
