"""Sampling: what a rollout holds, against an independent forward of the same models."""

import pytest
import torch
from tiny import (
    EOS,
    PAD,
    PROMPTS,
    TableCritic,
    chain,
    count_words,
    make_config,
    make_policy,
    make_scorer,
    make_tokenizer,
    same,
    sample,
)

from rlhf_lab.training.rollouts import (
    Rollout,
    decode_replies,
    rollout,
    sample_replies,
    texts_of,
    tokens_of,
)


def draw(config, *, policy=None, reference=None, critic=None, reward=count_words, prompts=PROMPTS[:8], columns=None):
    policy = policy if policy is not None else make_policy()
    reference = reference if reference is not None else make_policy(seed=9)
    generator = torch.Generator().manual_seed(3)
    return rollout(policy, reference, critic, reward, make_tokenizer(), prompts, config, generator, columns)


@pytest.mark.parametrize("temperature", [1.0, 0.6])
def test_log_probabilities_are_those_of_each_model_at_the_temperature(temperature):
    """One row at a time, without padding, by transformers' own forward."""
    config = make_config(temperature=temperature)
    batch = draw(config)
    for model, found in ((make_policy(), batch.old_logp), (make_policy(seed=9), batch.ref_logp)):
        for row in range(8):
            prompt = batch.prompt_ids[row][batch.prompt_mask[row]]
            reply = batch.response_ids[row][batch.response_mask[row]]
            ids = torch.cat([prompt, reply])[None]
            with torch.no_grad():
                logits = model(input_ids=ids, attention_mask=torch.ones_like(ids)).logits[0, len(prompt) - 1 : -1]
            logp = (logits / temperature).log_softmax(-1)[torch.arange(len(reply)), reply]
            assert found[row, : len(reply)].tolist() == pytest.approx(logp.tolist(), abs=1e-4)
            assert not found[row, len(reply) :].any()


def test_values_are_read_before_their_token():
    table = [float(number) for number in range(14)]
    batch = draw(make_config(), critic=TableCritic(table))
    for row in range(8):
        length = int(batch.response_mask[row].sum())
        before = [*batch.prompt_ids[row].tolist(), *batch.response_ids[row].tolist()]
        start = batch.prompt_ids.shape[1] - 1
        assert batch.values[row, :length].tolist() == [table[t] for t in before[start : start + length]]
        assert not batch.values[row, length:].any()


def test_masks_end_with_the_eos_and_padding_follows():
    batch = draw(make_config(batch_size=16), prompts=PROMPTS)
    assert 0 < batch.finished.sum() < 16
    for ids, mask, finished in zip(batch.response_ids, batch.response_mask, batch.finished, strict=True):
        real = ids[mask].tolist()
        assert mask.tolist() == sorted(mask.tolist(), reverse=True)
        assert real.count(EOS) == int(finished)
        assert (real[-1] == EOS) == bool(finished)
        assert finished or len(real) == 8
        assert set(ids[~mask].tolist()) <= {PAD}


def test_groups_repeat_each_prompt_and_its_columns():
    seen = {}

    def reward(prompts, completions, prompt_ids, completion_ids, finished, answer):
        seen.update(prompts=prompts, answer=answer, prompt_ids=prompt_ids, ids=completion_ids, finished=finished)
        return list(range(len(completions)))

    config = make_config(samples_per_prompt=3)
    batch = draw(config, reward=reward, prompts=["w2 w3", "w4"], columns={"answer": ["a", "b"]})
    assert batch.group.tolist() == [0, 0, 0, 1, 1, 1]
    assert seen["prompts"] == ["w2 w3"] * 3 + ["w4"] * 3
    assert seen["answer"] == ["a"] * 3 + ["b"] * 3
    assert seen["prompt_ids"] == [[2, 3]] * 3 + [[4]] * 3
    assert seen["finished"] == batch.finished.tolist()
    assert seen["ids"] == [ids[mask].tolist() for ids, mask in zip(*batch[2:4], strict=True)]
    assert batch.scores.tolist() == [0, 1, 2, 3, 4, 5]
    assert len({tuple(ids) for ids in seen["ids"]}) > 2  # drawn apart, not copied


def test_scores_come_raw():
    """The penalty for a missing EOS is PPO's business: what is kept is what the reward said."""
    batch = draw(make_config(missing_eos_penalty=5.0), reward=lambda completions: [1.5] * len(completions))
    assert not batch.finished.all()
    assert batch.scores.tolist() == [1.5] * 8


def test_equal_generators_give_equal_rollouts():
    one, two = draw(make_config(), critic=make_scorer()), draw(make_config(), critic=make_scorer())
    assert same(list(one), list(two))


def test_a_rollout_carries_no_gradient():
    assert not any(field.requires_grad for field in draw(make_config(), critic=make_scorer()))


def test_take_keeps_the_rows_and_drops_empty_columns():
    width = {"prompt": 4, "response": 5}
    lengths = {"prompt": torch.tensor([1, 4, 2]), "response": torch.tensor([5, 1, 3])}
    numbers = torch.arange(15.0).view(3, 5)
    batch = Rollout(
        prompt_ids=torch.arange(12).view(3, 4),
        prompt_mask=torch.arange(4) >= width["prompt"] - lengths["prompt"][:, None],
        response_ids=torch.arange(15).view(3, 5),
        response_mask=torch.arange(5) < lengths["response"][:, None],
        finished=torch.tensor([True, False, True]),
        group=torch.tensor([0, 1, 2]),
        old_logp=numbers,
        ref_logp=numbers + 100,
        values=numbers + 200,
        scores=torch.tensor([1.0, 2.0, 3.0]),
    )
    part = batch.take(torch.tensor([2, 0]))  # prompts of 2 and 1 tokens, replies of 3 and 5
    assert part.prompt_ids.tolist() == [[10, 11], [2, 3]]
    assert part.prompt_mask.tolist() == [[True, True], [False, True]]
    assert part.response_ids.tolist() == [[10, 11, 12, 13, 14], [0, 1, 2, 3, 4]]
    assert part.scores.tolist() == [3, 1]
    assert part.group.tolist() == [2, 0]
    part = batch.take(torch.tensor([1]))  # a prompt of 4 tokens, a reply of 1
    assert part.prompt_ids.tolist() == [[4, 5, 6, 7]]
    assert part.response_ids.tolist() == [[5]]
    assert part.response_mask.tolist() == [[True]]
    assert (part.old_logp.item(), part.ref_logp.item(), part.values.item()) == (5, 105, 205)
    assert part.finished.tolist() == [False]


def test_texts_and_tokens():
    policy = chain({3: 5, 5: 6, 6: EOS})
    batch = draw(make_config(), policy=policy, reference=policy, prompts=["w3", "w2 w4 w5"])
    tokenizer = make_tokenizer()
    assert texts_of(batch, tokenizer) == (["w3", "w2 w4 w5"], ["w5 w6", "w6"])
    assert decode_replies(tokenizer, batch.response_ids, batch.response_mask) == ["w5 w6", "w6"]
    assert tokens_of(batch, tokenizer, 0) == ["w5", "w6", "</s>"]
    assert tokens_of(batch, tokenizer, 1) == ["w6", "</s>"]


def test_sample_replies_answers_each_prompt_in_order():
    policy = chain({3: 5, 5: 6, 6: EOS, 7: 7})
    replies, finished = sample_replies(policy, make_tokenizer(), ["w3", "w7", "w2 w5"], max_new_tokens=4, batch_size=2)
    assert replies == ["w5 w6", "w7 w7 w7 w7", "w6"]
    assert finished == [True, False, True]


def test_sample_replies_by_seed():
    found = [
        sample_replies(make_policy(), make_tokenizer(), PROMPTS, max_new_tokens=8, seed=seed) for seed in (0, 0, 1)
    ]
    assert found[0] == found[1]
    assert found[0] != found[2]


def test_bf16_is_only_an_approximation_of_fp32():
    config = make_config(batch_size=4)
    full = sample(make_policy(), make_scorer(), config)
    half = sample(make_policy(), make_scorer(), config.model_copy(update={"precision": "bf16"}))
    assert half.old_logp.dtype == half.values.dtype == torch.float32
    # Same random numbers, so the replies agree until a rounding tips one; the first token's values always do.
    assert half.values[:, 0].tolist() == pytest.approx(full.values[:, 0].tolist(), abs=0.05)
    assert not torch.equal(half.values[:, 0], full.values[:, 0])
