"""Sampling against transformers' greedy search, known distributions, and chains whose replies are known."""

from types import SimpleNamespace

import pytest
import torch
from scipy.stats import chisquare
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import AutoModelForCausalLM, LlamaForCausalLM

from rlhf_lab.errors import LabError, RunFailed
from rlhf_lab.models import generate, load_policy, response_logprobs
from rlhf_lab.models.generation import pick_tokens

from .tiny_models import CONTEXT, EOS, PAD, VOCABULARY, build_config

NEVER = -1  # an EOS id that no token has


class Chain(torch.nn.Module):
    """A language model that knows only the last token: logits[next | last] = table[last, next]."""

    class Cache:
        def reorder_cache(self, rows):
            pass  # nothing is remembered, so rows may leave as they like

    def __init__(self, table):
        super().__init__()
        self.table, self.config, self.steps = table, SimpleNamespace(), 0

    def forward(self, input_ids, attention_mask, past_key_values, use_cache):
        self.steps += 1
        logits = self.table[input_ids]
        return SimpleNamespace(logits=logits, past_key_values=Chain.Cache())

    @classmethod
    def of(cls, steps: dict[int, int]):
        """A chain that goes from each token to one other, for certain."""
        table = torch.full((10, 10), -1e4)
        for last, following in steps.items():
            table[last, following] = 0.0
        return cls(table)


def prompts(*rows):
    width = max(map(len, rows))
    ids = torch.tensor([[0] * (width - len(row)) + list(row) for row in rows])
    mask = torch.tensor([[False] * (width - len(row)) + [True] * len(row) for row in rows])
    return ids, mask


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def test_greedy_equals_transformers(policy_dir, batch):
    ids, mask, steps = batch.prompt_ids, batch.prompt_mask, 10
    plain = AutoModelForCausalLM.from_pretrained(policy_dir).eval()
    options = {"do_sample": False, "max_new_tokens": steps, "pad_token_id": PAD}
    free = plain.generate(ids, attention_mask=mask.long(), eos_token_id=NEVER, **options)[:, ids.shape[1] :]
    eos = int(free[1, 3])  # a token that some replies contain, so that they end at different steps
    wanted = plain.generate(ids, attention_mask=mask.long(), eos_token_id=eos, **options)[:, ids.shape[1] :]
    policy = load_policy(policy_dir)
    found = generate(policy, ids, mask, max_new_tokens=steps, temperature=0, eos_id=eos, pad_id=PAD)
    assert found.response_ids.tolist() == wanted.tolist()
    ends = [row.index(eos) + 1 if eos in row else steps for row in free.tolist()]
    assert found.lengths.tolist() == ends
    assert found.finished.tolist() == [eos in row for row in free.tolist()]


def test_sampled_tokens_have_the_logprob_of_a_plain_forward(policy_dir, batch):
    policy = load_policy(policy_dir)
    options = {"max_new_tokens": 8, "temperature": 0.9, "eos_id": EOS, "pad_id": PAD}
    sampled = generate(policy, *batch.tensors[:2], **options, generator=seeded())
    logp = response_logprobs(policy, *batch.tensors[:2], *sampled[:2], temperature=0.9).logp
    plain = AutoModelForCausalLM.from_pretrained(policy_dir).eval()
    for row, prompt in enumerate(batch.prompts):
        reply = sampled.response_ids[row, : sampled.lengths[row]].tolist()
        logits = plain(input_ids=torch.tensor([prompt + reply])).logits[0, len(prompt) - 1 : -1]
        wanted = (logits / 0.9).log_softmax(-1)[range(len(reply)), reply]
        torch.testing.assert_close(logp[row, : len(reply)], wanted, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("temperature", [1.0, 0.5])
def test_first_tokens_are_drawn_with_their_probability(llama_dir, temperature):
    rows = 3000
    ids, mask = torch.tensor([[5, 6, 7]]), torch.ones(1, 3, dtype=torch.bool)
    plain = AutoModelForCausalLM.from_pretrained(llama_dir).eval()
    with torch.no_grad():
        logits = plain(input_ids=ids).logits[0, -1]
    options = {"max_new_tokens": 1, "temperature": temperature, "eos_id": EOS, "pad_id": PAD}
    drawn = generate(load_policy(llama_dir), ids.expand(rows, 3), mask.expand(rows, 3), **options, generator=seeded())
    counts = torch.bincount(drawn.response_ids[:, 0], minlength=VOCABULARY).double().numpy()

    def p_value(at):
        return chisquare(counts, rows * (logits.double() / at).softmax(-1).numpy()).pvalue

    assert p_value(temperature) > 0.01
    assert p_value(temperature * 1.5) < 1e-6  # the test can tell temperatures apart


def test_later_tokens_are_drawn_with_their_probability():
    """Three states, EOS among them: reply frequencies against the product of the chain's probabilities."""
    chance = torch.tensor([[0.2, 0.5, 0.3], [1.0, 0.0, 0.0], [0.6, 0.3, 0.1]])  # token 1 is EOS
    rows, length = 20_000, 3
    ids, mask = prompts(*[[0]] * rows)
    drawn = generate(Chain(chance.log()), ids, mask, max_new_tokens=length, eos_id=1, pad_id=1, generator=seeded())
    replies = {}

    def enumerate_replies(reply, probability):
        if (reply and reply[-1] == 1) or len(reply) == length:
            replies[tuple(reply)] = probability
            return
        for token in range(3):
            enumerate_replies([*reply, token], probability * chance[reply[-1] if reply else 0, token].item())

    enumerate_replies([], 1.0)
    found = [tuple(row[:end].tolist()) for row, end in zip(drawn.response_ids, drawn.lengths, strict=True)]
    counts = [found.count(reply) for reply in replies]
    assert sum(counts) == rows
    expected = [rows * probability / sum(replies.values()) for probability in replies.values()]
    assert chisquare(counts, expected).pvalue > 0.01


def test_a_token_is_where_the_draw_falls_in_the_cumulative_distribution():
    """p = .5, .15, .3, .05: edges .5, .65, .95. Top-p .75 keeps tokens 0 and 2, then .625 and .375."""
    logits = torch.tensor([0.5, 0.15, 0.3, 0.05]).log()
    draws = torch.tensor([0.0, 0.49, 0.51, 0.64, 0.66, 0.94, 0.96, 0.999999], dtype=torch.float64)

    def picked(draws, **options):
        return pick_tokens(logits.expand(len(draws), 4), draws, **({"temperature": 1, "top_p": 1} | options)).tolist()

    assert picked(draws) == [0, 0, 1, 1, 2, 2, 3, 3]
    assert picked(draws, temperature=0) == [0] * 8
    assert picked(torch.tensor([0.62, 0.63, 0.999999]).double(), top_p=0.75) == [0, 2, 2]
    assert picked(draws, top_p=0.1) == [0] * 8  # never fewer than one token
    assert set(picked(draws, top_p=0.81)) == {0, 1, 2}
    # at temperature 1/2 probabilities are squared: .25, .0225, .09, .0025 of .365, edges .685, .747, .993
    assert picked(torch.tensor([0.68, 0.69, 0.75, 0.995]).double(), temperature=0.5) == [0, 1, 2, 3]


def test_no_token_of_probability_zero_is_ever_drawn():
    logits = torch.full((1, 1000), -torch.inf)
    logits[0, [3, 700]] = 0.0
    edges = torch.tensor([0.0, 0.5 - 1e-12, 0.5, 1 - 2**-53], dtype=torch.float64)
    assert pick_tokens(logits.expand(4, -1), edges, temperature=1.0, top_p=1.0).tolist() == [3, 3, 700, 700]


def test_pad_that_is_eos():
    chain = Chain.of({3: 4, 4: 1, 5: 6, 6: 7, 7: 8, 8: 9, 1: 1})
    ids, mask = prompts([3], [5], [2, 4])
    found = generate(chain, ids, mask, max_new_tokens=4, eos_id=1, pad_id=1, generator=seeded())
    assert found.response_ids.tolist() == [[4, 1, 1, 1], [6, 7, 8, 9], [1, 1, 1, 1]]
    assert found.response_mask.int().tolist() == [[1, 1, 0, 0], [1, 1, 1, 1], [1, 0, 0, 0]]
    assert found.finished.tolist() == [True, False, True]
    assert found.lengths.tolist() == [2, 4, 1]


def test_a_sampled_pad_token_does_not_end_a_reply():
    chain = Chain.of({3: 2, 2: 4, 4: 1, 5: 1, 1: 1})  # 2 is padding
    ids, mask = prompts([3], [5])
    found = generate(chain, ids, mask, max_new_tokens=9, eos_id=1, pad_id=2, generator=seeded())
    assert found.response_ids.tolist() == [[2, 4, 1], [1, 2, 2]]
    assert found.response_mask.int().tolist() == [[1, 1, 1], [1, 0, 0]]
    assert found.finished.tolist() == [True, True]


def test_stops_when_every_reply_has_ended():
    chain = Chain.of({3: 4, 4: 1, 5: 1, 1: 1})
    generate(chain, *prompts([3], [5]), max_new_tokens=50, eos_id=1, pad_id=0, generator=seeded())
    assert chain.steps == 2  # the longest reply has two tokens


def test_a_last_token_that_is_eos_has_finished():
    found = generate(Chain.of({3: 4, 4: 1, 1: 1}), *prompts([3]), max_new_tokens=2, eos_id=1, pad_id=0)
    assert found.finished.tolist() == [True]


def test_rows_that_end_and_leave_change_nothing_for_the_others(policy_dir):
    """Without any EOS every row stays to the end; cut at the EOS afterwards, the replies must be the same."""
    policy = load_policy(policy_dir)
    ids, mask = prompts(*[[5 + row, 6, 7][: 1 + row % 3] for row in range(12)])
    options = {"max_new_tokens": 14, "pad_id": PAD, "temperature": 2.0}
    free = generate(policy, ids, mask, eos_id=NEVER, generator=seeded(), **options)
    eos = free.response_ids[:, 3:9].flatten().mode().values.item()  # a token that ends several of the replies
    found = generate(policy, ids, mask, eos_id=eos, generator=seeded(), **options)
    ends = [row.index(eos) + 1 if eos in row else 14 for row in free.response_ids.tolist()]
    assert len({end for end in ends if end < 14}) >= 2
    wanted = [row[:end] for row, end in zip(free.response_ids.tolist(), ends, strict=True)]
    assert [row[mask].tolist() for row, mask in zip(*found[:2], strict=True)] == wanted


def test_padding_changes_no_sample(policy_dir, batch):
    policy, options = load_policy(policy_dir), {"max_new_tokens": 8, "eos_id": EOS, "pad_id": PAD}
    wanted = generate(policy, *batch.tensors[:2], **options, generator=seeded())
    found = generate(policy, *batch.padded(4, 0, VOCABULARY + 7)[:2], **options, generator=seeded())
    assert all(torch.equal(one, other) for one, other in zip(found, wanted, strict=True))


def test_the_generator_alone_decides(llama_dir, batch):
    policy, options = load_policy(llama_dir), {"max_new_tokens": 8, "eos_id": NEVER, "pad_id": PAD}
    before = torch.get_rng_state()
    one, same, other = (generate(policy, *batch.tensors[:2], **options, generator=seeded(s)) for s in (1, 1, 2))
    assert torch.equal(one.response_ids, same.response_ids)
    assert not torch.equal(one.response_ids, other.response_ids)
    assert torch.equal(before, torch.get_rng_state())


def test_every_token_is_read_once(policy_dir, batch):
    policy, read = load_policy(policy_dir), []
    policy.get_input_embeddings().register_forward_hook(lambda module, args, out: read.append(args[0].numel()))
    generate(policy, *batch.tensors[:2], max_new_tokens=6, eos_id=NEVER, pad_id=PAD)
    assert read == [batch.prompt_ids.numel(), 4, 4, 4, 4, 4]  # the prompts, then one new token a row


class Largest(TorchDispatchMode):
    """Remembers the size of the largest tensor that any operation makes."""

    numel = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        for tensor in result if isinstance(result, tuple | list) else [result]:
            if isinstance(tensor, torch.Tensor):
                self.numel = max(self.numel, tensor.numel())
        return result


def test_nothing_of_the_size_of_batch_times_length_times_vocabulary():
    sizes = {"vocab_size": 2000, "hidden_size": 16, "intermediate_size": 16, "tie_word_embeddings": True}
    policy = LlamaForCausalLM(build_config("llama", **sizes))
    ids, mask = torch.full((8, 20), 5), torch.ones(8, 20, dtype=torch.bool)
    with Largest() as seen:
        found = generate(policy, ids, mask, max_new_tokens=20, top_p=0.9, eos_id=NEVER, pad_id=PAD)
    assert found.response_ids.shape == (8, 20)
    assert seen.numel <= 2 * 8 * 2000  # one step's logits, and room for a copy
    with Largest() as seen, torch.no_grad():
        policy(input_ids=ids)
    assert seen.numel >= 8 * 20 * 2000  # the hook does see such tensors


def test_training_mode_comes_back(llama_dir, batch):
    policy = load_policy(llama_dir)
    assert policy.training
    generate(policy, *batch.tensors[:2], max_new_tokens=2, eos_id=EOS, pad_id=PAD)
    assert policy.training


def test_errors(llama_dir, batch):
    policy, options = load_policy(llama_dir), {"max_new_tokens": 4, "eos_id": EOS, "pad_id": PAD}
    with pytest.raises(ValueError, match="pad on the left"):
        generate(policy, batch.prompt_ids, batch.prompt_mask.flip(1), **options)
    for wrong in ({"temperature": -1.0}, {"top_p": 0.0}, {"max_new_tokens": 0}):
        with pytest.raises(ValueError, match="generate wants"):
            generate(policy, *batch.tensors[:2], **(options | wrong))
    with pytest.raises(LabError, match=f"context of {CONTEXT}"):
        generate(policy, *batch.tensors[:2], **(options | {"max_new_tokens": CONTEXT}))
    policy.lm_head.weight.data[3] = torch.nan
    with pytest.raises(RunFailed, match="not finite"):
        generate(policy, *batch.tensors[:2], **options)
