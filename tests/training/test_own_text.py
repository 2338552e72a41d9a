"""A text of one's own: how it is read and cut, the tokenizer trained on it, and the loss on what was held out."""

import math
from types import SimpleNamespace

import pytest
import torch
from tiny import EOS, make_policy, make_tokenizer

from rlhf_lab.data import load_texts
from rlhf_lab.errors import LabError
from rlhf_lab.training.byte_pairs import BYTES, bytes_in, train_tokenizer
from rlhf_lab.training.pretraining import in_pieces, mean_loss
from rlhf_lab.workbench import pretraining_runs
from rlhf_lab.workbench.stages import PretrainStage

TEXT = "the sea is cold, the sea is wide, and the hill by the sea is high\n" * 30


def test_texts_are_read_from_plain_files_folders_and_columns(tmp_path):
    (tmp_path / "a.txt").write_text("one\n\ntwo")
    assert load_texts(tmp_path / "a.txt").to_list() == [{"text": "one\n\ntwo"}]
    (tmp_path / "notes").mkdir()
    for name in ("2.md", "1.md"):
        (tmp_path / "notes" / name).write_text(f"# {name}")
    assert load_texts(tmp_path / "notes")["text"][:] == ["# 1.md", "# 2.md"]
    (tmp_path / "b.jsonl").write_text('{"chosen": "x", "rejected": "y"}\n{"chosen": "z", "rejected": "w"}\n')
    assert load_texts(tmp_path / "b.jsonl", columns={"text": "{chosen}/{rejected}"})["text"][:] == ["x/y", "z/w"]
    (tmp_path / "empty.txt").write_text(" \n")
    with pytest.raises(LabError, match=r"empty.txt, row 1, column 'text': is empty"):
        load_texts(tmp_path / "empty.txt")
    with pytest.raises(LabError, match=r"a.txt: columns=\{'text': 'chosen'\} names a column that is not there"):
        load_texts(tmp_path / "a.txt", columns={"text": "chosen"})


def test_the_tokenizer_writes_any_text_and_joins_the_commonest_neighbours_first():
    tokenizer = train_tokenizer(["abab ab", "ab"], BYTES + 1)
    assert len(tokenizer) == 259 and "ab" in tokenizer.get_vocab()  # the one pair that was joined: a, b
    text = "çé 🙂\n\tx <|endoftext|> 你"
    assert tokenizer.decode(tokenizer.encode(text)) == text
    assert bytes_in(tokenizer, tokenizer.encode(text)) == len(text.replace("<|endoftext|>", "").encode())
    assert tokenizer.encode("abab") == [258, 258]
    assert train_tokenizer([TEXT], 300).get_vocab() == train_tokenizer([TEXT], 300).get_vocab()  # a resumed run's


def test_long_documents_are_cut_and_each_ends_in_eos():
    tokenizer = make_tokenizer()
    ids = in_pieces(tokenizer, ["w2 w3 w4 w5 w6", "w7 </s> w8 w9", "w2 w3 w4"], 4)
    # 6 tokens as 4 and 2; an EOS within a text ends a document; 4 tokens fit
    assert ids == [[2, 3, 4, 5], [6, EOS], [7, EOS], [8, 9, EOS], [2, 3, 4, EOS]]
    assert in_pieces(tokenizer, ["w2 w3 w4 w5"], 4) == [[2, 3, 4, 5]]  # the EOS alone would predict nothing


def test_the_held_out_loss_by_hand():
    policy, tokenizer, rows = make_policy().eval(), make_tokenizer(), [[2, 3, 4, EOS], [5, EOS], [6, 7, 8]]
    total = 0.0
    for row in rows:  # one by one, without padding
        logp = policy(input_ids=torch.tensor([row])).logits[0, :-1].log_softmax(-1)
        total -= logp.gather(1, torch.tensor(row)[1:, None]).sum().item()
    assert mean_loss(policy, tokenizer, rows, batch_tokens=6) == pytest.approx(total / 6, rel=1e-5)
    with pytest.raises(LabError, match="nothing is held out"):
        mean_loss(policy, tokenizer, [])


def settings(path, **changes):
    return PretrainStage(sandbox="", text=str(path), vocab_size=270, context=16, **changes)


def test_the_last_tenth_is_measured_on(tmp_path):
    (tmp_path / "a.txt").write_text(TEXT)
    found = pretraining_runs.material(settings(tmp_path / "a.txt"), None)
    count = len(found.documents) + len(found.held_out)
    assert len(found.held_out) == count // 10
    assert found.tokenizer.decode(sum([*found.documents, *found.held_out], [])) == TEXT + "<|endoftext|>"
    few = pretraining_runs.material(settings(tmp_path / "a.txt", eval_prompts=2), None)
    assert len(few.held_out) == len(few.prompts) == 2
    assert few.tokenizer.decode(few.held_out[0]).startswith(few.prompts[0])


def test_bits_per_byte_of_a_model_that_knows_nothing(tmp_path):
    """Uniform over V tokens: log2 V bits for each predicted token, over the bytes of these tokens."""
    (tmp_path / "a.txt").write_text(TEXT)
    cfg = settings(tmp_path / "a.txt", eval_prompts=3)
    found = pretraining_runs.material(cfg, None)
    vocabulary = len(found.tokenizer)

    class Uniform(torch.nn.Module):
        device = torch.device("cpu")
        config = SimpleNamespace(vocab_size=vocabulary)

        def forward(self, input_ids, attention_mask=None, past_key_values=None, use_cache=None):
            cache = SimpleNamespace(reorder_cache=lambda rows: None)
            return SimpleNamespace(logits=torch.zeros(*input_ids.shape, vocabulary), past_key_values=cache)

    results = pretraining_runs.report(cfg, SimpleNamespace(model=Uniform()), found, None).results
    assert results["heldout_loss"] == pytest.approx(math.log(vocabulary), rel=1e-5)
    predicted = sum(len(ids) - 1 for ids in found.held_out)
    texts = [found.tokenizer.decode(ids[1:]).removesuffix("<|endoftext|>") for ids in found.held_out]
    expected = math.log2(vocabulary) * predicted / sum(len(text.encode()) for text in texts)
    assert results["bits_per_byte"] == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("sandbox", "text is 'sandbox' but the parameter 'sandbox' is empty"),
        ("short.txt", "only one piece of 16 tokens"),
    ],
)
def test_what_is_no_text_to_learn_from(text, line, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "short.txt").write_text("a b")
    with pytest.raises(LabError, match=line):
        pretraining_runs.material(settings(text), None)
