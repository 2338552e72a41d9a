"""Loading: float32, no dropout, nothing half-loaded, and one clear line for what is no model."""

import shutil

import pytest
import torch
import transformers
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, GenerationConfig

from rlhf_lab.errors import LabError
from rlhf_lab.models import attention, load_policy, load_scorer, load_tokenizer, scorer
from rlhf_lab.models.device import VARIABLE

from .tiny_models import EOS, PAD, build_config

IDS = torch.tensor([[5, 6, 7, 8, 9, 10, 11, 12]])


@pytest.mark.parametrize("attention", [None, "eager"])  # None: sdpa where there is one
def test_training_mode_has_no_dropout(policy_dir, attention):
    plain = AutoModelForCausalLM.from_pretrained(policy_dir, attn_implementation=attention).train()
    assert not torch.equal(plain(input_ids=IDS).logits, plain(input_ids=IDS).logits)  # the config does ask for dropout
    policy = load_policy(policy_dir)
    policy.set_attn_implementation(plain.config._attn_implementation)
    policy.train()
    once = policy(input_ids=IDS).logits
    assert torch.equal(once, policy(input_ids=IDS).logits)
    assert torch.allclose(once, plain.eval()(input_ids=IDS).logits, atol=1e-5)


def test_no_dropout_probability_is_left_in_the_config(policy_dir):
    saved = load_policy(policy_dir).config.to_dict()
    assert not {name: value for name, value in saved.items() if "drop" in name and value}


def test_scorer_training_mode_has_no_dropout(reward_dir):
    scorer = load_scorer(reward_dir).train()
    mask = torch.ones_like(IDS, dtype=torch.bool)
    assert torch.equal(scorer.token_scores(IDS, mask), scorer.token_scores(IDS, mask))


def test_frozen_and_trainable(llama_dir):
    policy, reference = load_policy(llama_dir), load_policy(llama_dir, trainable=False)
    assert all(weight.requires_grad for weight in policy.parameters())
    assert not any(weight.requires_grad for weight in reference.parameters())
    assert not reference.training
    critic = load_scorer(llama_dir, trainable=False)
    assert not any(weight.requires_grad for weight in critic.parameters())


def test_weights_are_float32_whatever_the_files_hold(llama_dir, tmp_path):
    AutoModelForCausalLM.from_pretrained(llama_dir, dtype=torch.bfloat16).save_pretrained(tmp_path)
    policy = load_policy(tmp_path)
    assert {weight.dtype for weight in policy.parameters()} == {torch.float32}
    assert policy.config._attn_implementation == attention.NAME


def test_models_are_computed_where_the_environment_says(llama_dir, reward_dir, monkeypatch):
    """torch's meta device stands in for a card: it holds no numbers, but a tensor left on the CPU would be seen."""
    assert {weight.device.type for weight in load_policy(llama_dir).parameters()} == {"cpu"}
    monkeypatch.setenv(VARIABLE, "meta")
    assert {weight.device.type for weight in load_policy(llama_dir).parameters()} == {"meta"}
    monkeypatch.setattr(scorer, "is_causal", lambda model: True)  # which looks at numbers
    assert {weight.device.type for weight in load_scorer(reward_dir).parameters()} == {"meta"}


@pytest.mark.parametrize("name", ["gpu", "cuda:99"])
def test_a_device_that_is_not_there(name, llama_dir, monkeypatch):
    monkeypatch.setenv(VARIABLE, name)
    with pytest.raises(LabError, match=f"^RLHF_LAB_DEVICE={name}: torch finds no such device here; unset it"):
        load_policy(llama_dir)


def test_one_card_is_chosen_outside(llama_dir, monkeypatch):
    """transformers' trainers take every card that they see, and no other than the first by its number."""
    monkeypatch.setenv(VARIABLE, "meta:1")
    with pytest.raises(LabError, match="^RLHF_LAB_DEVICE=meta:1: choose one card by CUDA_VISIBLE_DEVICES=0 and"):
        load_policy(llama_dir)


def test_generation_defaults_do_not_leak(llama_dir, tmp_path):
    shutil.copytree(llama_dir, tmp_path, dirs_exist_ok=True)
    GenerationConfig(top_k=3, temperature=0.2, do_sample=True, eos_token_id=EOS).save_pretrained(tmp_path)
    left = load_policy(tmp_path).generation_config
    assert (left.top_k, left.temperature, left.do_sample, left.eos_token_id) == (None, None, None, EOS)


@pytest.mark.parametrize("architecture", ["llama", "gemma"])
def test_eos_embedding_is_trained_where_eos_pads(save, architecture):
    folder = save(build_config(architecture, pad_token_id=EOS, tie_word_embeddings=False))
    policy = load_policy(folder)
    policy(input_ids=torch.tensor([[5, EOS, 6]])).logits[0, -1, 7].backward()
    assert policy.get_input_embeddings().weight.grad[EOS].norm() > 0


def test_loading_says_nothing(llama_dir, capfd):
    load_policy(llama_dir)
    load_scorer(llama_dir, head="new")
    load_tokenizer(llama_dir)
    out, err = capfd.readouterr()
    assert (out, err) == ("", "")


def _fails(load, path, *words):
    with pytest.raises(LabError) as caught:
        load(path)
    line = str(caught.value)
    assert "\n" not in line
    for word in (str(path), *words):
        assert word in line


@pytest.mark.parametrize("load", [load_policy, load_scorer, load_tokenizer])
def test_a_path_that_is_no_model(load, tmp_path):
    _fails(load, tmp_path / "missing", "no such directory", "give a directory")
    _fails(load, str(tmp_path / "missing"), "no such directory")
    (tmp_path / "notes.txt").write_text("no model")
    _fails(load, tmp_path / "notes.txt", "is a file")


@pytest.mark.parametrize("load", [load_policy, load_scorer])
def test_directories_that_hold_no_usable_weights(load, llama_dir, tmp_path):
    empty, broken, pickled, torn = (tmp_path / name for name in ("empty", "broken", "pickled", "torn"))
    empty.mkdir()
    _fails(load, empty, "config.json is missing", "give a directory")
    broken.mkdir()
    (broken / "config.json").write_text("{")
    _fails(load, broken)
    shutil.copytree(llama_dir, pickled)
    (pickled / "model.safetensors").unlink()
    torch.save({}, pickled / "pytorch_model.bin")
    _fails(load, pickled, "pickled", "safetensors")
    shutil.copytree(llama_dir, torn)
    whole = (torn / "model.safetensors").read_bytes()
    (torn / "model.safetensors").write_bytes(whole[: len(whole) // 2])
    _fails(load, torn)


def test_missing_weights_are_refused_not_filled_with_random_numbers(llama_dir, tmp_path):
    model = AutoModelForCausalLM.from_pretrained(llama_dir)
    state = {name: value for name, value in model.state_dict().items() if "layers.1.mlp.up_proj" not in name}
    model.save_pretrained(tmp_path, state_dict=state)
    for load in (load_policy, load_scorer):
        _fails(load, tmp_path, "layers.1.mlp.up_proj")


@pytest.mark.parametrize("tied", [True, False])
def test_a_reward_model_is_no_policy(save, tied):
    folder = save(build_config("llama", num_labels=1, tie_word_embeddings=tied), AutoModelForSequenceClassification)
    _fails(load_policy, folder)


def test_a_model_that_reads_both_ways_is_no_policy_and_no_critic(save):
    sizes = {"vocab_size": 40, "hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = transformers.BertConfig(**sizes, intermediate_size=32, num_labels=1)
    _fails(load_policy, save(config, transformers.AutoModelForMaskedLM), "both directions")
    _fails(load_policy, save(config, transformers.AutoModel), "both directions")
    scorer = load_scorer(save(config, AutoModelForSequenceClassification))
    with pytest.raises(LabError, match=r"^BertForSequenceClassification reads in both directions.*causal model$"):
        scorer.token_scores(IDS, torch.ones_like(IDS, dtype=torch.bool))


@pytest.mark.parametrize("load", [load_policy, load_scorer])
def test_a_model_with_encoder_and_decoder_is_refused(save, load):
    sizes = {"d_model": 16, "d_kv": 8, "d_ff": 16, "num_layers": 1, "num_heads": 2}
    config = transformers.T5Config(vocab_size=40, num_labels=1, decoder_start_token_id=0, **sizes)
    auto = AutoModelForSequenceClassification if load is load_scorer else transformers.AutoModelForSeq2SeqLM
    _fails(load, save(config, auto))


def test_a_tokenizer_of_ones_own_is_read_as_it_was_saved(policy_dir):
    tokenizer = load_tokenizer(policy_dir)
    assert tokenizer("w5 w6 </s> w7").input_ids == [5, 6, EOS, 7]
    assert (len(tokenizer), tokenizer.pad_token_id, tokenizer.eos_token_id) == (40, PAD, EOS)


def test_tokenizer_without_padding_pads_with_eos(tokenizer, tmp_path):
    tokenizer.save_pretrained(tmp_path / "both")
    assert load_tokenizer(tmp_path / "both").pad_token_id == PAD
    inner = tokenizer.backend_tokenizer
    bare = transformers.PreTrainedTokenizerFast(tokenizer_object=inner, eos_token="</s>")
    bare.save_pretrained(tmp_path / "bare")
    loaded = load_tokenizer(tmp_path / "bare")
    assert (loaded.pad_token_id, loaded.eos_token_id, len(loaded)) == (EOS, EOS, len(tokenizer))
    transformers.PreTrainedTokenizerFast(tokenizer_object=inner).save_pretrained(tmp_path / "endless")
    _fails(load_tokenizer, tmp_path / "endless", "EOS")


def test_a_model_directory_without_a_tokenizer(llama_dir, tmp_path):
    for name in ("config.json", "model.safetensors"):
        shutil.copy(llama_dir / name, tmp_path)
    _fails(load_tokenizer, tmp_path, "tokenizer")
