"""What each recipe makes of its data set's own format and its model's own tokenizer, by hand. Nothing is downloaded."""

from pathlib import Path

import pytest
import yaml
from recipe_files import KINDS, make_tokenizer, overrides, write_data

from rlhf_lab import data
from rlhf_lab.errors import LabError
from rlhf_lab.workbench import artefacts, own_data, pretraining_runs, reward_runs
from rlhf_lab.workbench.experiments.validate import validate
from rlhf_lab.workbench.stages import STAGES

RECIPES = Path(__file__).resolve().parents[2] / "experiments" / "recipes"
ULTRA = "<|im_start|>system\nBe kind.<|im_end|>\n<|im_start|>user\nWhat is tea, 0?<|im_end|>\n<|im_start|>assistant\n"
BASE = "<|im_start|>user\nWhat is tea, 0?<|im_end|>\n<|im_start|>assistant\n"
HUMAN = "\n\nHuman: Tell me of tea, part 0.\n\nAssistant: Which?\n\nHuman: Any.\n\nAssistant:"
POST = "SUBREDDIT: r/lab\n\nTITLE: On tea\n\nPOST: I saw it 0 times.\n\nTL;DR:"

# recipe, tokenizer: the first prompt, its demonstration, its replies from best to worst
EXPECTED = {
    ("gpt2_tldr", "gpt2"): (POST, " Saw it 0.", [" Saw it, 0.", " I did not look."]),
    ("pythia_hh", "pythia"): (HUMAN, " It is good.", [" It is good.", " I will not say, 0."]),
    ("qwen_ultrafeedback", "qwen2.5-instruct"): (ULTRA, "It is good.", ["It is good.", "No, 0."]),
    ("qwen_ultrafeedback", "qwen3-base"): (
        BASE, "<think>\n\n</think>\n\nIt is good.<|im_end|>\n",
        ["<think>\n\n</think>\n\nIt is good.<|im_end|>\n", "<think>\n\n</think>\n\nNo, 0.<|im_end|>\n"],
    ),
    ("smollm_nectar", "smollm2"): (
        "\n\nHuman: Say 0 of tea.\n\nAssistant: ", "So it is.", ["So " * rank + "it is." for rank in range(1, 8)],
    ),
}  # fmt: skip
# recipe: rows to learn from and held-out ones, of 01, of 02, and of 03
COUNTS = {
    "gpt2_tldr": (16, 4, 8, 4, 16, 4),  # a fifth of 20 is held back; 4 of 12 comparisons, the news dropped
    "pythia_hh": (24, 3, 24, 3, 20, 4),  # 25 less the broken one; of 4 held-out ones one was learned from
    "qwen_ultrafeedback": (12, 4, 16, 4, 13, 3),
    "smollm_nectar": (16, 4, 16, 4, 16, 4),
}


@pytest.fixture(scope="module")
def paths(tmp_path_factory):
    return write_data(tmp_path_factory.mktemp("data"))


def configs(name, paths, *changes):
    plan = validate(RECIPES / f"{name}.yaml", [*overrides(RECIPES / f"{name}.yaml", paths), *changes])
    return [STAGES[stage.notebook.stem].parse(stage.parameters) for stage in plan.stages]


@pytest.mark.parametrize(("name", "kind"), EXPECTED)
def test_prompts_and_replies_are_those_of_the_data_set(name, kind, paths):
    sft, reward, ppo = configs(name, paths, "eval_prompts=4", "n_heldout=4")
    tokenizer = make_tokenizer(kind)
    prompt, reply, replies = EXPECTED[name, kind]
    demos, held_out = (data.to_text(rows, tokenizer) for rows in own_data.demonstration_split(sft, {}))
    ranked = reward_runs.training_rows(reward, {}, tokenizer)
    labelled, compared = reward_runs.held_out_split(reward, {}, ranked, tokenizer)
    train, measured = (data.to_text(rows, tokenizer) for rows in artefacts.prompt_split(ppo, {}))
    counts = [len(rows) for rows in (demos, held_out, labelled, compared, train, measured)]
    assert tuple(counts) == COUNTS[name]
    every = {row["prompt"]: row["completion"] for row in (*demos, *(held_out if sft.prompts == "split" else ()))}
    assert every[prompt] == reply
    row = next(row for row in ranked if row["prompt"] == prompt)
    assert [text for _, text in sorted(zip(row["ranks"], row["completions"], strict=True))] == replies
    assert prompt in {*train["prompt"], *measured["prompt"]}
    assert not {*train["prompt"]} & {*measured["prompt"]} and not {*demos["prompt"]} & {*held_out["prompt"]}


@pytest.mark.parametrize(("name", "kind"), EXPECTED)
def test_a_reply_ends_in_one_eos_and_is_read_back(name, kind, paths, tmp_path):
    from rlhf_lab.models import load_tokenizer

    make_tokenizer(kind).save_pretrained(tmp_path)
    tokenizer = load_tokenizer(tmp_path)
    assert tokenizer.pad_token == (KINDS[kind].pad or KINDS[kind].eos)  # EOS pads where there is none
    prompt, reply, _ = EXPECTED[name, kind]
    pair = data.encode_pair(tokenizer, prompt, reply)
    assert tokenizer.decode(pair.prompt_ids) == prompt  # no BOS before it
    assert tokenizer.decode(pair.reply_ids) == reply + tokenizer.eos_token
    assert pair.reply_ids.count(tokenizer.eos_token_id) == 1
    assert ("<|im_end|>" in tokenizer.decode(pair.reply_ids)) == (name == "qwen_ultrafeedback")


@pytest.mark.parametrize("kind", [kind for kind in KINDS if KINDS[kind].template is None])
def test_messages_for_a_model_without_a_template(kind, paths):
    sft, reward, _ = configs("qwen_ultrafeedback", paths, "eval_prompts=4")
    line = (
        r"^row 1: .*has no chat template, and the prompt is a list of messages; .*or give prompts and replies as text$"
    )
    with pytest.raises(LabError, match=line):
        data.to_text(own_data.demonstration_split(sft, {}).train, make_tokenizer(kind))
    with pytest.raises(LabError, match=line):
        reward_runs.training_rows(reward, {}, make_tokenizer(kind))


def test_own_text_reads_both_dialogues_and_tells_none_apart(paths):
    pretrain, sft, reward, ppo = configs("own_text", paths, "pretrain.vocab_size=300", "pretrain.context=64")
    found = pretraining_runs.material(pretrain, None)
    text = "".join(found.tokenizer.decode(ids) for ids in (*found.documents, *found.held_out))
    assert text.count("It is good.<|endoftext|>") == text.count("I will not say, ") == 24
    assert len(found.tokenizer) == 300 and found.tokenizer.eos_token == "<|endoftext|>"
    assert own_data.demonstration_split(sft, {}).train[0]["completion"] == " It is good."
    assert len(reward_runs.training_rows(reward, {}, found.tokenizer)) == 24
    assert len(artefacts.prompt_split(ppo, {}).train) == 20  # less a fifth


def test_a_recipe_has_lines_on_model_lengths_and_memory_and_names_all_its_data():
    for file in RECIPES.glob("*.yaml"):
        head = file.read_text().partition("experiment:")[0]
        assert all(f"\n# {word}" in head for word in ("Model", "Lengths", "Memory")), file.name
        for stage in yaml.safe_load(file.read_text())["stages"]:
            assert stage["parameters"]["sandbox"] == "", "no recipe touches the embedded world"
