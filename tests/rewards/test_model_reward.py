"""A reward model as a reward: it reads the sampled ids, or text by its own tokenizer with the EOS rule."""

import random
import sys

import pytest
import torch

from rlhf_lab.errors import LabError
from rlhf_lab.rewards import ModelReward, call_reward

PROMPTS = ["w5 w6 w7", "w8", "w9 w10"]
COMPLETIONS = ["w11", "w12 w13 w14", "w15 w16"]
FINISHED = [True, False, True]
PROMPT_IDS = [[5, 6, 7], [8], [9, 10]]
REPLY_IDS = [[11, 1], [12, 13, 14], [15, 16, 1]]
TEXT = {"prompts": PROMPTS, "completions": COMPLETIONS, "finished": FINISHED}
IDS = {"prompt_ids": PROMPT_IDS, "completion_ids": REPLY_IDS}


def close(values):
    return pytest.approx(values, rel=1e-5, abs=1e-6)


def test_ids_are_read_exactly_as_sampled(scorer, tokenizer, plain_score):
    """Padding, unknown and EOS tokens inside the reply would not survive a trip through text."""
    odd = [[11, 2, 0, 12, 1], [2], [1, 13]]
    reward = ModelReward(scorer, tokenizer, tokenizer)
    found = call_reward(reward, **(TEXT | {"prompt_ids": PROMPT_IDS, "completion_ids": odd}))
    assert found == close([plain_score(prompt + reply) for prompt, reply in zip(PROMPT_IDS, odd, strict=True)])


def test_text_gets_the_models_own_eos_if_and_only_if_finished(scorer, tokenizer, plain_score):
    found = call_reward(ModelReward(scorer, tokenizer), **TEXT)
    wanted = [plain_score(prompt + reply) for prompt, reply in zip(PROMPT_IDS, REPLY_IDS, strict=True)]
    assert found == close(wanted)
    unfinished = call_reward(ModelReward(scorer, tokenizer), **(TEXT | {"finished": [False] * 3}))
    assert unfinished[0] == close(plain_score([5, 6, 7, 11]))  # the last real token, no EOS
    assert unfinished[0] != close(found[0])
    assert unfinished[1] == close(found[1])


def test_another_vocabulary_goes_through_text(scorer, tokenizer, other_tokenizer, plain_score):
    """The policy's ids mean other words to the reward model, so they must not be read."""
    theirs = {
        "prompt_ids": [other_tokenizer(text).input_ids for text in PROMPTS],
        "completion_ids": [other_tokenizer(text).input_ids for text in COMPLETIONS],
    }
    reward = ModelReward(scorer, tokenizer, other_tokenizer)
    wanted = [plain_score(prompt + reply) for prompt, reply in zip(PROMPT_IDS, REPLY_IDS, strict=True)]
    assert call_reward(reward, **TEXT, **theirs) == close(wanted)


def test_another_eos_goes_through_text(scorer, tokenizer, reward_dir, plain_score):
    from rlhf_lab.models import load_tokenizer

    policy_tokenizer = load_tokenizer(reward_dir)
    policy_tokenizer.eos_token = "w29"  # same vocabulary, but its replies end otherwise
    reward = ModelReward(scorer, tokenizer, policy_tokenizer)
    sampled = {"prompt_ids": PROMPT_IDS, "completion_ids": [[11, 29], [12, 13, 14], [15, 16, 29]]}
    wanted = [plain_score(prompt + reply) for prompt, reply in zip(PROMPT_IDS, REPLY_IDS, strict=True)]
    assert call_reward(reward, **TEXT, **sampled) == close(wanted)


def test_an_empty_unfinished_reply_is_read_at_the_prompts_end(scorer, tokenizer, plain_score):
    found = ModelReward(scorer, tokenizer)(prompts=["w5 w6"], completions=[""], finished=[False])
    assert found == close([plain_score([5, 6])])


@pytest.mark.parametrize("batch_size", [1, 4, 64])
def test_order_and_batching_change_nothing(scorer, tokenizer, plain_score, batch_size):
    rng = random.Random(0)
    prompts = [[rng.randrange(3, 30) for _ in range(rng.randrange(1, 20))] for _ in range(30)]
    replies = [[rng.randrange(0, 30) for _ in range(rng.randrange(1, 20))] for _ in range(30)]
    reward = ModelReward(scorer, tokenizer, tokenizer, batch_size=batch_size)
    found = reward(prompt_ids=prompts, completion_ids=replies)
    assert found == close([plain_score(prompt + reply) for prompt, reply in zip(prompts, replies, strict=True)])
    assert found == reward(prompt_ids=prompts, completion_ids=replies)  # twice the same, to the bit


def test_batches_hold_rows_of_like_length(scorer, tokenizer, monkeypatch):
    widths, rows = [], [[5 + place] * length for place, length in enumerate((9, 2, 8, 3, 9, 2, 8, 3))]
    plain = scorer.sequence_scores
    monkeypatch.setattr(scorer, "sequence_scores", lambda ids, mask: widths.append(ids.shape) or plain(ids, mask))
    ModelReward(scorer, tokenizer, tokenizer, batch_size=2)(prompt_ids=rows, completion_ids=[[6]] * 8)
    assert widths == [(2, 3), (2, 4), (2, 9), (2, 10)]


def test_equal_replies_are_read_once_and_tie_to_the_bit(scorer, tokenizer, monkeypatch):
    read, plain = [], scorer.sequence_scores
    monkeypatch.setattr(scorer, "sequence_scores", lambda ids, mask: read.append(len(ids)) or plain(ids, mask))
    rows = [[5, 6, 7], [8, 9], [5, 6, 7], [9, 8], [5, 6, 7]]
    found = ModelReward(scorer, tokenizer, tokenizer)(prompt_ids=rows, completion_ids=[[6, 1]] * 5)
    assert found[0] == found[2] == found[4]
    assert len(set(found)) == 3
    assert read == [3]


def test_shift_is_subtracted(reward_dir, tokenizer):
    from rlhf_lab.models import load_scorer

    scorer = load_scorer(reward_dir, trainable=False)
    before = ModelReward(scorer, tokenizer)(**TEXT)
    scorer.shift = 2.0
    assert ModelReward(scorer, tokenizer)(**TEXT) == close([score - 2 for score in before])


@pytest.mark.parametrize("watched", [True, False])
def test_a_progress_bar_on_long_work_only_and_only_where_someone_watches(
    scorer, tokenizer, capsys, monkeypatch, watched
):
    reward = ModelReward(scorer, tokenizer, tokenizer, batch_size=1)
    for rows in (20, 21):
        monkeypatch.setattr(sys.stderr, "isatty", lambda: watched, raising=False)
        reward(prompt_ids=[[5 + row] for row in range(rows)], completion_ids=[[6]] * rows)
        assert ("scoring" in capsys.readouterr().err) == (rows > 20 and watched)


def test_no_gradient(scorer, tokenizer, reward_dir):
    from rlhf_lab.models import load_scorer

    trainable, seen = load_scorer(reward_dir), []
    trainable.head.register_forward_hook(lambda module, args, out: seen.append(out.requires_grad))
    ModelReward(trainable, tokenizer)(**TEXT)
    assert seen == [False]


def test_raises_where_the_replies_cannot_be_read(scorer, tokenizer, other_tokenizer):
    without_end = {"prompts": PROMPTS, "completions": COMPLETIONS}
    same, other = (ModelReward(scorer, tokenizer, policy) for policy in (tokenizer, other_tokenizer))
    unknown = ModelReward(scorer, tokenizer)
    for reward, given in (
        (other, IDS),
        (unknown, IDS),
        (other, IDS | without_end),
        (same, without_end),
        (same, {}),
    ):
        with pytest.raises(LabError, match="cannot read these replies"):
            reward(**given)
    assert same(**IDS) == close(unknown(**TEXT))


def test_no_replies(scorer, tokenizer):
    assert ModelReward(scorer, tokenizer)(prompts=[], completions=[], finished=[]) == []


def test_a_batch_size_below_one(scorer, tokenizer):
    with pytest.raises(LabError, match="batch_size is 0"):
        ModelReward(scorer, tokenizer, batch_size=0)


def test_precision_is_that_of_the_matrix_products_and_not_of_the_score(scorer, tokenizer):
    exact, lowered = (call_reward(ModelReward(scorer, tokenizer, precision=each), **TEXT) for each in ("fp32", "bf16"))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        by_hand = call_reward(ModelReward(scorer, tokenizer), **TEXT)
    assert lowered == by_hand != exact
    assert lowered == pytest.approx(exact, abs=0.05)
    assert any(score != torch.tensor(score).bfloat16().item() for score in lowered)
    with pytest.raises(LabError, match="precision is 'half'"):
        ModelReward(scorer, tokenizer, precision="half")
