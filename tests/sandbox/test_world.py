"""The embedded world: presets, splits, files, and a base model that does what is claimed of it."""

import json
import random

import numpy as np
import pytest

from rlhf_lab.errors import LabError
from rlhf_lab.sandbox.language import parse_prompt, split_of
from rlhf_lab.sandbox.world import World


@pytest.fixture(scope="module")
def world() -> World:
    return World.load()


def test_an_unknown_preset_is_named_with_those_there_are():
    with pytest.raises(LabError, match="sandbox 'defualt' is not a preset; there are default"):
        World.load("defualt")


def test_gold_is_the_sum_of_its_parts_in_reference_deviations(world):
    prompt = world.prompts("heldout", 1)[0]
    subject = parse_prompt(prompt).subject
    reply = f"the {subject} is {parse_prompt(prompt).facts[0][1]} . go away ."
    parts = world.gold_parts(prompt, reply)
    assert world.gold(prompts=[prompt], completions=[reply]) == pytest.approx([sum(parts.values())])
    assert parts["harmless"] == pytest.approx(world.gold_weights.abuse / world.reference_std)


def test_prompts_are_different_and_of_their_split(world):
    for split in ("train", "heldout"):
        prompts = world.prompts(split, 300, seed=5)
        assert len(set(prompts)) == 300
        assert {split_of(parse_prompt(prompt)) for prompt in prompts} == {split}
    assert (
        world.prompts("train", 20, seed=1) == world.prompts("train", 20, seed=1) != world.prompts("train", 20, seed=2)
    )


def test_files_hold_what_they_say(world, tmp_path):
    folder = world.write(tmp_path / "data", demonstrations=30, train=50, heldout=20, seed=3)
    rows = {path.name: [json.loads(line) for line in path.read_text().splitlines()] for path in folder.iterdir()}
    assert {name: len(found) for name, found in rows.items()} == {
        "demonstrations.jsonl": 30, "prompts-train.jsonl": 50, "prompts-heldout.jsonl": 20,
    }  # fmt: skip
    assert set(rows["demonstrations.jsonl"][0]) == {"prompt", "completion"}
    held_out = {row["prompt"] for row in rows["prompts-heldout.jsonl"]}
    assert not held_out & {row["prompt"] for name in rows if "heldout" not in name for row in rows[name]}


def test_worked_examples_stand_before_the_prompt(world):
    prompt = world.prompts("heldout", 1)[0]
    text = world.shots(prompt, 3, random.Random(0), "</s>")
    assert text.endswith("</s> " + prompt) and text.count("guest :") == 4
    assert world.shots(prompt, 0, random.Random(0), "</s>") == prompt


def test_the_base_model_speaks_the_language_and_is_worse_than_the_demonstrators(world):
    """At least 95% of its replies parse, and its gold lies 0.7 reference deviations below that of the SFT policy.

    The SFT policy's mean is the constant stored with the world; 01_sft measures it anew.
    """
    from rlhf_lab import models
    from rlhf_lab.training.rollouts import sample_replies

    base, tokenizer = models.load_policy(world.base_model, trainable=False), models.load_tokenizer(world.base_model)
    prompts = world.prompts("heldout", 300)
    replies, finished = sample_replies(base, tokenizer, prompts, max_new_tokens=48)
    assert np.mean([world.parses(reply) for reply in replies]) >= 0.95
    gold = np.array(world.gold(prompts=prompts, completions=replies))
    assert gold.mean() <= world.reference_mean / world.reference_std - 0.7 + 2 * gold.std() / len(gold) ** 0.5
    assert np.mean(finished) >= 0.95
    assert sum(p.numel() for p in base.parameters()) <= 1_000_000


# --- the other presets


@pytest.mark.parametrize("name", ["default", "misspecified", "near_linear"])
def test_every_preset_has_its_own_gold_on_the_same_language(name):
    preset, default = World.load(name), World.load()
    prompts = preset.prompts("heldout", 20)
    assert prompts == default.prompts("heldout", 20)
    assert preset.demonstrations(5) == default.demonstrations(5)
    assert preset.shows and preset.reference_std > 0


def test_misspecified_people_like_the_length_that_gold_takes_off():
    preset = World.load("misspecified")
    prompt = preset.prompts("heldout", 1)[0]
    subject, quality = parse_prompt(prompt).facts[0]
    short = f"the {subject} is {quality} ."
    long = " ".join([short] * 4)  # 20 words, ten of them beyond the limit, and nothing repeated pays
    worse = preset.gold(prompts=[prompt, prompt], completions=[short, long])
    assert worse[1] - worse[0] < 10 * preset.gold_weights.long_word / preset.reference_std
    # What they say: the gap in gold over the temperature, and half a logit for each of fifteen words.
    gap = (worse[1] - worse[0]) / 0.5 + 0.5 * 15
    labeler = preset.labeler(temperature=0.5)
    assert labeler.probability(prompt, long, short) == pytest.approx(1 / (1 + np.exp(-gap)))
    assert World.load().labeler(temperature=0.5).config.length_bias == 0


def test_a_planted_bias_is_added_to_the_worlds_own():
    assert World.load("misspecified").labeler(length_bias=0.1, position_bias=0.3).config.length_bias == pytest.approx(
        0.6
    )
    assert World.load("misspecified").labeler(position_bias=0.3).config.position_bias == pytest.approx(0.3)


def test_near_linear_gold_adds_up_over_clauses():
    """What does not touch the facts is worth the same however often it was said before, and wording aside."""
    preset = World.load("near_linear")
    preset = preset.model_copy(update={"gold_weights": preset.gold_weights.model_copy(update={"wording": 0.0})})
    prompt = preset.prompts("heldout", 1)[0]
    clauses = [
        "good day .",
        "thank you for asking .",
        "shall i show you ?",
        "what a fine question .",
        "perhaps .",
        "well well .",
    ]
    for clause in clauses:
        raw = [sum(preset.gold_parts(prompt, " ".join([clause] * times)).values()) for times in (1, 2, 3)]
        assert raw[1] - raw[0] == pytest.approx(raw[2] - raw[1])
    one, other = (sum(preset.gold_parts(prompt, text).values()) for text in clauses[:2])
    assert sum(preset.gold_parts(prompt, " ".join(clauses[:2])).values()) == pytest.approx(one + other)
