"""A checkpoint is whole or absent."""

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from rlhf_lab.errors import LabError
from rlhf_lab.models import load_policy, load_scorer, save_policy
from rlhf_lab.models.saving import whole_directory


def test_round_trip(policy_dir, tokenizer, tmp_path):
    policy = load_policy(policy_dir)
    torch.nn.init.normal_(policy.get_input_embeddings().weight)
    save_policy(tmp_path / "deep" / "policy", policy, tokenizer)
    for read in (load_policy, AutoModelForCausalLM.from_pretrained):
        found, state = read(tmp_path / "deep" / "policy").state_dict(), policy.state_dict()
        assert state.keys() == found.keys()
        assert all(torch.equal(value, found[name]) for name, value in state.items())


def test_only_safetensors_and_nothing_left_beside(llama_dir, tokenizer, tmp_path):
    policy = load_policy(llama_dir)
    for _ in range(2):
        save_policy(tmp_path / "policy", policy, tokenizer)
    assert AutoTokenizer.from_pretrained(tmp_path / "policy").get_vocab() == tokenizer.get_vocab()
    assert [path.name for path in tmp_path.iterdir()] == ["policy"]
    names = {path.name for path in (tmp_path / "policy").iterdir()}
    assert {"config.json", "model.safetensors", "tokenizer.json"} <= names
    assert not [name for name in names if name.endswith((".bin", ".pt", ".pkl"))]


class Breaks:
    """A tokenizer that cannot be saved."""

    pad_token_id = eos_token_id = 1

    def save_pretrained(self, folder):
        raise OSError("no space left on device")


def test_a_save_that_fails_leaves_the_old_model(llama_dir, tokenizer, tmp_path):
    policy, scorer = load_policy(llama_dir), load_scorer(llama_dir, head="zero")
    for save, name in ((lambda at, tok: save_policy(at, policy, tok), "policy"), (scorer.save, "critic")):
        save(tmp_path / name, tokenizer)
        before = {path.name: path.read_bytes() for path in (tmp_path / name).iterdir()}
        with pytest.raises(LabError, match="cannot be written .no space"):
            save(tmp_path / name, Breaks())
        assert {path.name: path.read_bytes() for path in (tmp_path / name).iterdir()} == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["critic", "policy"]


def test_the_new_directory_appears_only_when_it_is_complete(tmp_path):
    target = tmp_path / "policy"
    with whole_directory(target) as folder:
        (folder / "config.json").write_text("new")
        assert not target.exists()
        assert folder.parent == tmp_path
    assert (target / "config.json").read_text() == "new"
    with whole_directory(target) as folder:
        (folder / "config.json").write_text("newer")
        assert (target / "config.json").read_text() == "new"
    assert (target / "config.json").read_text() == "newer"


def test_what_is_no_model_is_not_overwritten(llama_dir, tokenizer, tmp_path):
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter.txt").write_text("years of work")
    (tmp_path / "file").write_text("a file")
    for name in ("thesis", "file"):
        with pytest.raises(LabError, match=f"{name}: is in the way"):
            save_policy(tmp_path / name, load_policy(llama_dir), tokenizer)
    assert (tmp_path / "thesis" / "chapter.txt").read_text() == "years of work"
