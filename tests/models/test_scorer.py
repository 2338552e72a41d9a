"""Scores against transformers' own sequence classification on single rows without padding."""

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

from rlhf_lab.errors import LabError
from rlhf_lab.models import load_scorer, load_tokenizer

from .tiny_models import CONTEXT, EOS, PAD, VOCABULARY, build_config


def plain_score(folder, ids):
    """One unpadded row through the classifier's own forward, which then reads the last token."""
    plain = AutoModelForSequenceClassification.from_pretrained(folder).eval()
    plain.config.pad_token_id = None
    with torch.no_grad():
        return plain(input_ids=torch.tensor([ids])).logits[0, 0].item()


def test_reply_scores_are_read_at_the_last_real_token(reward_dir, batch):
    scores = load_scorer(reward_dir).reply_scores(*batch.tensors)
    wanted = [plain_score(reward_dir, prompt + reply) for prompt, reply in zip(*batch[4:], strict=True)]
    assert scores.tolist() == pytest.approx(wanted, rel=1e-5, abs=1e-5)


@pytest.mark.parametrize("junk", [0, VOCABULARY + 7])
@pytest.mark.parametrize(("left", "right"), [(3, 0), (0, 4), (2, 5)])
def test_padding_changes_no_score(reward_dir, batch, left, right, junk):
    scorer = load_scorer(reward_dir)
    tensors = batch.padded(left, right, junk)
    wanted = scorer.reply_scores(*batch.tensors).tolist()
    assert scorer.reply_scores(*tensors).tolist() == pytest.approx(wanted, rel=1e-5, abs=1e-5)
    ids, mask = torch.cat(tensors[::2], dim=1), torch.cat(tensors[1::2], dim=1)
    every = scorer.token_scores(ids, mask)
    assert every[mask].all()
    assert not every[~mask].any()
    assert scorer.sequence_scores(ids, mask).tolist() == pytest.approx(wanted, rel=1e-5, abs=1e-5)


def test_eos_is_read_where_eos_pads(save, tmp_path):
    folder = save(build_config("llama", num_labels=1), AutoModelForSequenceClassification)
    tokenizer, scorer = load_tokenizer(folder), load_scorer(folder)
    tokenizer.pad_token = tokenizer.eos_token
    prompt, reply = torch.tensor([[5, 6]]), torch.tensor([[7, EOS, EOS]])
    real = torch.tensor([[True, True]])
    score = scorer.reply_scores(prompt, real, reply, torch.tensor([[True, True, False]])).item()
    assert score == pytest.approx(plain_score(folder, [5, 6, 7, EOS]), rel=1e-5)
    assert score != pytest.approx(plain_score(folder, [5, 6, 7]), rel=1e-3)
    scorer.save(tmp_path / "rm", tokenizer)  # so that in plain transformers the EOS is no padding
    plain = AutoModelForSequenceClassification.from_pretrained(tmp_path / "rm").eval()
    assert plain(input_ids=torch.tensor([[5, 6, 7, EOS]])).logits.item() == pytest.approx(score, rel=1e-5)


def test_an_empty_reply_is_read_at_the_prompts_end(reward_dir, batch):
    none = batch.response_ids[:, :0], batch.response_mask[:, :0]
    scores = load_scorer(reward_dir).reply_scores(*batch.tensors[:2], *none)
    assert scores.tolist() == pytest.approx([plain_score(reward_dir, row) for row in batch.prompts], rel=1e-5, abs=1e-5)


def test_a_new_head_has_the_reference_variance(save):
    """std 1/sqrt(d+1) with d = 1024: 0.03123. From 1,024 draws its estimate has a standard error of 2.2%."""
    folder = save(build_config("llama", hidden_size=1024, num_hidden_layers=1))
    torch.manual_seed(0)
    for scorer in (load_scorer(folder), load_scorer(folder, head="new")):
        assert scorer.head.weight.std().item() == pytest.approx(0.03123, rel=0.07)
        assert abs(scorer.head.weight.mean().item()) < 4 * 0.03123 / 32
        assert scorer.head.bias is None or not scorer.head.bias.any()
        assert scorer.new_head


def test_the_seed_decides_the_new_head(llama_dir):
    heads = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        heads.append(load_scorer(llama_dir).head.weight)
    assert torch.equal(heads[0], heads[1])
    assert not torch.equal(heads[0], heads[2])


def test_head_choices(reward_dir, batch):
    kept, zero, new = (load_scorer(reward_dir, head=head) for head in ("keep", "zero", "new"))
    stored = AutoModelForSequenceClassification.from_pretrained(reward_dir).score.weight
    assert torch.equal(kept.head.weight, stored)
    assert not kept.new_head
    assert not zero.reply_scores(*batch.tensors).any()
    assert not torch.equal(new.head.weight, stored)
    assert zero.new_head
    assert new.new_head


def test_backbone_of_a_policy_is_kept(policy_dir):
    critic = load_scorer(policy_dir, head="zero")
    plain = AutoModelForCausalLM.from_pretrained(policy_dir).base_model.state_dict()
    found = critic.model.base_model.state_dict()
    assert plain.keys() == found.keys()
    assert all(torch.equal(value, found[name]) for name, value in plain.items())


def test_shift_is_subtracted_saved_and_dropped_with_the_head(llama_dir, tokenizer, batch, tmp_path):
    scorer = load_scorer(llama_dir, head="new")
    before = scorer.reply_scores(*batch.tensors)
    scorer.shift = 1.5
    assert scorer.reply_scores(*batch.tensors).tolist() == pytest.approx((before - 1.5).tolist())
    scorer.save(tmp_path / "rm", tokenizer)
    again = load_scorer(tmp_path / "rm")
    assert again.shift == 1.5
    assert again.reply_scores(*batch.tensors).tolist() == pytest.approx((before - 1.5).tolist())
    assert load_scorer(tmp_path / "rm", head="zero").shift == 0.0


def test_what_is_saved_is_what_is_read(policy_dir, tokenizer, batch, tmp_path):
    scorer = load_scorer(policy_dir, head="new")
    scorer.save(tmp_path / "rm", tokenizer)
    again = load_scorer(tmp_path / "rm")
    state, found = scorer.state_dict(), again.state_dict()
    assert state.keys() == found.keys()
    assert all(torch.equal(value, found[name]) for name, value in state.items())
    assert not again.new_head
    assert not list((tmp_path / "rm").glob("*.bin"))


def test_plain_transformers_reads_it_in_batches(llama_dir, tokenizer, batch, tmp_path):
    scorer = load_scorer(llama_dir, head="new")
    scorer.save(tmp_path / "rm", tokenizer)
    plain = AutoModelForSequenceClassification.from_pretrained(tmp_path / "rm").eval()
    rows = [prompt + reply for prompt, reply in zip(batch.prompts[:3], batch.replies[:3], strict=True)]
    width = max(map(len, rows))
    ids = torch.tensor([row + [PAD] * (width - len(row)) for row in rows])
    mask = torch.tensor([[1] * len(row) + [0] * (width - len(row)) for row in rows])
    found = plain(input_ids=ids, attention_mask=mask).logits[:, 0].tolist()
    assert found == pytest.approx(scorer.reply_scores(*batch.tensors)[:3].tolist(), rel=1e-5, abs=1e-5)


def test_the_head_computes_in_float32_under_autocast(reward_dir, batch):
    scorer, seen = load_scorer(reward_dir), []
    scorer.head.register_forward_hook(lambda module, args, out: seen.extend([args[0].dtype, out.dtype]))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert scorer.reply_scores(*batch.tensors).dtype == torch.float32
    assert seen == [torch.float32, torch.float32]


def test_gradients_reach_the_head_and_the_embeddings(reward_dir, batch):
    scorer = load_scorer(reward_dir)
    scorer.reply_scores(*batch.padded(2, 2, 0)).sum().backward()
    assert scorer.head.weight.grad.norm() > 0
    rows = scorer.model.get_input_embeddings().weight.grad.norm(dim=1)
    assert rows.isfinite().all()
    used = {token for row in batch.prompts + batch.replies for token in row}
    assert {token for token in range(VOCABULARY) if rows[token] > 0} == used


def test_errors(save, llama_dir, batch):
    with pytest.raises(LabError, match="head is 'old'"):
        load_scorer(llama_dir, head="old")
    several = save(build_config("llama", num_labels=3), AutoModelForSequenceClassification)
    with pytest.raises(LabError, match="3 labels"):
        load_scorer(several)
    scorer = load_scorer(llama_dir)
    with pytest.raises(ValueError, match="no real token"):
        scorer.sequence_scores(batch.prompt_ids, torch.zeros_like(batch.prompt_mask))
    long = torch.full((1, CONTEXT + 1), 5)
    with pytest.raises(LabError, match="too long"):
        scorer.token_scores(long, torch.ones_like(long, dtype=torch.bool))
