"""Supervised fine-tuning: what is learned from, the loss by hand, and what the trainer leaves behind."""

import copy
import math
import tempfile

import pytest
import torch
from datasets import Dataset
from tiny import EOS, make_policy, make_tokenizer, same, weights_of

from rlhf_lab.errors import LabError, RunFailed
from rlhf_lab.training.sft import SFTConfig, completion_only_rows, quiet, sft_trainer

DEMONSTRATIONS = Dataset.from_list(
    [
        {"prompt": "w2 w3 w4", "completion": "w5"},
        {"prompt": "w6", "completion": "w7 w8 w9 w10"},
        {"prompt": "w11 w12", "completion": "w13 w2"},
        {"prompt": "w3", "completion": "w4"},
    ]
)


def make_settings(**changes) -> SFTConfig:
    return SFTConfig(**({"epochs": 1, "batch_size": 4, "precision": "fp32"} | changes))


@pytest.fixture(params=["<pad>", "</s>"])
def tokenizer(request):
    return make_tokenizer(pad=request.param)


def loss_by_hand(model, rows=DEMONSTRATIONS) -> float:
    """-log p of the replies' tokens, EOS included, summed one row at a time without padding, over their number."""
    total, tokens = 0.0, 0
    for row in rows:
        prompt, reply = (make_tokenizer().encode(row[name]) for name in ("prompt", "completion"))
        ids = torch.tensor([[*prompt, *reply, EOS]])
        with torch.no_grad():
            logp = model(input_ids=ids, attention_mask=torch.ones_like(ids)).logits[0].log_softmax(-1)
        for place in range(len(prompt), ids.shape[1]):
            total -= logp[place - 1, ids[0, place]].item()
            tokens += 1
    return total / tokens


# ---- What is learned from


def test_only_the_reply_and_one_eos_are_labels(tokenizer):
    rows = completion_only_rows(DEMONSTRATIONS, tokenizer, 16)
    assert rows[0] == {"input_ids": [2, 3, 4, 5, EOS], "labels": [-100, -100, -100, 5, EOS]}
    assert rows[1] == {"input_ids": [6, 7, 8, 9, 10, EOS], "labels": [-100, 7, 8, 9, 10, EOS]}


def test_an_eos_that_is_there_already_is_not_doubled(tokenizer):
    rows = completion_only_rows([{"prompt": "w2", "completion": "w3 </s>"}], tokenizer, 16)
    assert rows == [{"input_ids": [2, 3, EOS], "labels": [-100, 3, EOS]}]


def test_a_long_prompt_is_cut_and_a_long_reply_is_refused_by_row(tokenizer):
    rows = completion_only_rows([{"prompt": "w2 w3 w4", "completion": "w5"}], tokenizer, 3)
    assert rows == [{"input_ids": [4, 5, EOS], "labels": [-100, 5, EOS]}]
    with pytest.raises(LabError, match=r"^demonstrations, row 2: .*raise it$"):
        completion_only_rows(DEMONSTRATIONS, tokenizer, 4)


# ---- The loss


@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
def test_the_loss_of_a_batch_by_hand(architecture, tokenizer):
    model = make_policy(architecture)
    expected = loss_by_hand(model)
    trainer = sft_trainer(make_settings(), model, tokenizer, DEMONSTRATIONS)
    (batch,) = trainer.get_train_dataloader()
    assert trainer.compute_loss(model, batch).item() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
def test_the_gradient_is_that_of_the_replies(architecture, tokenizer):
    """Nothing of the prompts' own likelihood is in it."""
    model = make_policy(architecture)
    trainer = sft_trainer(make_settings(), model, tokenizer, DEMONSTRATIONS)
    (batch,) = trainer.get_train_dataloader()
    trainer.compute_loss(model, batch).backward()

    plain = make_policy(architecture)
    total, tokens = 0.0, 0
    for row in DEMONSTRATIONS:
        prompt, reply = (make_tokenizer().encode(row[name]) for name in ("prompt", "completion"))
        ids = torch.tensor([[*prompt, *reply, EOS]])
        logp = plain(input_ids=ids, attention_mask=torch.ones_like(ids)).logits[0, len(prompt) - 1 : -1].log_softmax(-1)
        total = total - logp.gather(1, ids[0, len(prompt) :, None]).sum()
        tokens += len(reply) + 1
    (total / tokens).backward()
    for (name, ours), theirs in zip(model.named_parameters(), plain.parameters(), strict=True):
        assert torch.allclose(ours.grad, theirs.grad, rtol=1e-4, atol=1e-6), name


def test_what_is_logged(tokenizer):
    model, logs = make_policy(), []
    first, held_out = loss_by_hand(model), DEMONSTRATIONS.select([1, 3])
    config = make_settings(epochs=2, lr=0.01, lr_schedule="constant", warmup_ratio=0)
    trainer = sft_trainer(config, model, tokenizer, DEMONSTRATIONS, heldout=held_out, on_log=logs.append)
    quiet(trainer.train)
    training = [figures for figures in logs if "train/loss" in figures]
    assert [figures["global_step"] for figures in training] == [1, 2]
    assert {figures["max_steps"] for figures in logs} == {2}
    assert training[0]["train/loss"] == pytest.approx(first, rel=1e-4)
    assert training[1]["train/loss"] < first
    assert [figures["lr"] for figures in training] == [0.01, 0.01]
    assert training[0]["policy/grad_norm"] > 0
    evaluated = [figures for figures in logs if "eval/loss" in figures]
    assert [figures["global_step"] for figures in evaluated] == [1, 2]
    assert evaluated[-1]["eval/loss"] == pytest.approx(loss_by_hand(model, held_out), rel=1e-4)
    known = {"train/loss", "eval/loss", "lr", "policy/grad_norm", "global_step", "max_steps"}
    assert {name for figures in logs for name in figures} == known


@pytest.mark.parametrize("rows", [81])
def test_the_last_step_is_watched_too(rows, tokenizer):
    """81 steps are logged every second one: a loss that breaks in the last is found by the mean of all."""
    model = make_policy()
    trainer = sft_trainer(
        make_settings(batch_size=1, lr=1e-6), model, tokenizer, Dataset.from_list([DEMONSTRATIONS[0]] * rows)
    )
    assert trainer.args.logging_steps == 2
    steps = []
    compute = trainer.compute_loss

    def breaks(*inputs, **options):
        steps.append(1)
        return compute(*inputs, **options) * (math.nan if len(steps) == rows else 1.0)

    trainer.compute_loss = breaks
    with pytest.raises(RunFailed, match="train_loss is nan"):
        quiet(trainer.train)


def test_it_learns_to_answer_and_to_stop(tokenizer):
    model = make_policy(initializer_range=0.1)
    config = make_settings(epochs=40, lr=0.02, warmup_ratio=0)
    quiet(sft_trainer(config, model, tokenizer, DEMONSTRATIONS).train)
    assert loss_by_hand(model) < 0.1


def test_equal_seeds_give_equal_weights(tokenizer):
    ends = []
    for _ in range(2):
        model = make_policy()
        quiet(sft_trainer(make_settings(batch_size=2), model, tokenizer, DEMONSTRATIONS).train)
        ends.append(weights_of(model))
    assert same(*ends)


# ---- What is left behind


def test_nothing_stays_on_the_disk(tokenizer, tmp_path, monkeypatch):
    (tmp_path / "temporary").mkdir()
    (tmp_path / "here").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    monkeypatch.chdir(tmp_path / "here")
    trainer = sft_trainer(make_settings(), make_policy(), tokenizer, DEMONSTRATIONS, heldout=DEMONSTRATIONS)
    assert trainer.args.output_dir.startswith(str(tmp_path / "temporary"))
    quiet(trainer.train)
    assert list((tmp_path / "temporary").iterdir()) == []
    assert list((tmp_path / "here").iterdir()) == []


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_afterwards_the_model_is_plain_again(precision, tokenizer):
    """TRL and accelerate patch `forward` onto the model. A copy of one still patched would share its weights."""
    model = make_policy()
    trainer = sft_trainer(make_settings(precision=precision), model, tokenizer, DEMONSTRATIONS)
    assert "forward" in vars(model)
    quiet(trainer.train)
    reference = copy.deepcopy(model)
    before = loss_by_hand(reference)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(0.5)
    assert loss_by_hand(reference) == before
    assert loss_by_hand(model) != before
    ids = torch.tensor([[2, 3]])
    assert model(input_ids=ids, attention_mask=torch.ones_like(ids)).logits.dtype == torch.float32
    assert model.forward.__func__ is type(model).forward


# ---- What is refused


def test_no_demonstrations(tokenizer):
    with pytest.raises(LabError, match=r"^SFT: no demonstrations; give at least one"):
        sft_trainer(make_settings(), make_policy(), tokenizer, DEMONSTRATIONS.select([]))


def test_a_loss_that_is_no_number_fails(tokenizer):
    model, logs = make_policy(), []
    with torch.no_grad():
        model.get_input_embeddings().weight[5, 0] = math.nan
    trainer = sft_trainer(make_settings(), model, tokenizer, DEMONSTRATIONS, on_log=logs.append)
    with pytest.raises(RunFailed, match=r"^SFT step 1: loss is nan; lower 'lr'$"):
        quiet(trainer.train)
    assert logs == []
