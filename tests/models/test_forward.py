"""Log-probabilities and values against plain forwards of single rows without padding."""

import pytest
import torch
from torch.distributions import Categorical
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

from rlhf_lab.errors import LabError
from rlhf_lab.models import load_policy, load_scorer, response_logprobs, response_values
from rlhf_lab.models.inputs import accepts, positions

from .tiny_models import CONTEXT, VOCABULARY


def plain_logits(folder, prompt, reply):
    """Row by row, no padding, no masks: the logits that predict each token of the reply."""
    plain = AutoModelForCausalLM.from_pretrained(folder).eval()
    with torch.no_grad():
        return plain(input_ids=torch.tensor([prompt + reply])).logits[0, len(prompt) - 1 : -1]


def assert_close(found, wanted, relative=1e-5):
    assert (found - wanted).abs().max() <= relative * wanted.abs().max()


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_logprobs_and_entropy_are_those_of_a_plain_forward(policy_dir, batch, temperature):
    found = response_logprobs(load_policy(policy_dir), *batch.tensors, temperature=temperature, with_entropy=True)
    for row, (prompt, reply) in enumerate(zip(batch.prompts, batch.replies, strict=True)):
        drawn_from = Categorical(logits=plain_logits(policy_dir, prompt, reply) / temperature)
        assert_close(found.logp[row, : len(reply)], drawn_from.log_prob(torch.tensor(reply)))
        assert_close(found.entropy[row, : len(reply)], drawn_from.entropy())
        assert not found.logp[row, len(reply) :].any()
        assert not found.entropy[row, len(reply) :].any()


def test_entropy_only_when_asked(llama_dir, batch):
    assert response_logprobs(load_policy(llama_dir), *batch.tensors).entropy is None


@pytest.mark.parametrize("junk", [0, 9, VOCABULARY + 7])  # the last has no embedding at all
@pytest.mark.parametrize(("left", "right"), [(3, 0), (0, 4), (2, 5)])
def test_padding_changes_nothing(policy_dir, batch, left, right, junk):
    policy = load_policy(policy_dir)
    wanted = response_logprobs(policy, *batch.tensors, with_entropy=True)
    found = response_logprobs(policy, *batch.padded(left, right, junk), with_entropy=True)
    width = batch.response_ids.shape[1]
    for one, other in zip(found, wanted, strict=True):
        assert_close(one[:, :width], other)
        assert not one[:, width:].any()


def test_padding_changes_no_gradient(policy_dir, batch):
    gradients = []
    for tensors in (batch.tensors, batch.padded(3, 4, 0)):
        policy = load_policy(policy_dir)
        result = response_logprobs(policy, *tensors, with_entropy=True)
        (result.logp.sum() + result.entropy.sum()).backward()
        gradients.append(torch.cat([weight.grad.flatten() for weight in policy.parameters()]))
    assert gradients[1].isfinite().all()
    assert_close(gradients[1], gradients[0], relative=1e-4)


def test_logits_of_the_reply_only(llama_dir, batch):
    policy, widths = load_policy(llama_dir), []
    policy.lm_head.register_forward_hook(lambda module, args, logits: widths.append(logits.shape[:-1].numel()))
    response_logprobs(policy, *batch.tensors)
    assert widths == [int(batch.response_mask.sum())]  # and of real tokens only


def test_a_model_that_cannot_keep_only_some_logits_gives_the_same(gpt2_dir, batch):
    policy = load_policy(gpt2_dir)
    wanted, whole = response_logprobs(policy, *batch.tensors).logp, policy.forward

    def forward(input_ids, attention_mask, position_ids, use_cache):
        return whole(input_ids, attention_mask=attention_mask, position_ids=position_ids, use_cache=use_cache)

    policy.forward = forward
    assert not accepts(policy, "logits_to_keep")
    assert_close(response_logprobs(policy, *batch.tensors).logp, wanted)


def test_bf16_logits_are_widened_before_anything_is_summed(llama_dir, batch):
    policy = load_policy(llama_dir)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = response_logprobs(policy, *batch.tensors, temperature=0.7, with_entropy=True)
    wanted = response_logprobs(policy, *batch.tensors, temperature=0.7, with_entropy=True)
    assert found.logp.dtype == found.entropy.dtype == torch.float32
    assert_close(found.logp, wanted.logp, relative=0.03)  # bfloat16 keeps 8 bits: 2^-8 = 0.004 an operation


def test_values_are_read_before_each_token(reward_dir, batch):
    scorer = load_scorer(reward_dir)
    found = response_values(scorer, *batch.tensors)
    plain = AutoModelForSequenceClassification.from_pretrained(reward_dir).eval()
    for row, (prompt, reply) in enumerate(zip(batch.prompts, batch.replies, strict=True)):
        for step in range(len(reply)):  # V(s_t): the state ends with the token before t
            state = torch.tensor([prompt + reply[:step]])
            with torch.no_grad():
                wanted = plain.score(plain.base_model(input_ids=state).last_hidden_state[0, -1])
            torch.testing.assert_close(found[row, step], wanted[0], rtol=1e-4, atol=1e-5)
        assert not found[row, len(reply) :].any()


def test_padding_changes_no_value(reward_dir, batch):
    scorer, width = load_scorer(reward_dir), batch.response_ids.shape[1]
    wanted = response_values(scorer, *batch.tensors)
    found = response_values(scorer, *batch.padded(3, 4, VOCABULARY + 7))
    assert_close(found[:, :width], wanted)
    assert not found[:, width:].any()


def test_positions_count_real_tokens():
    mask = torch.tensor([[0, 0, 1, 1, 1, 0], [1, 1, 1, 1, 1, 1]], dtype=torch.bool)
    assert positions(mask).tolist() == [[0, 0, 0, 1, 2, 2], [0, 1, 2, 3, 4, 5]]


def test_empty_replies(llama_dir, batch):
    policy, critic = load_policy(llama_dir), load_scorer(llama_dir, head="zero")
    none = (*batch.tensors[:2], batch.response_ids[:, :0], batch.response_mask[:, :0])
    assert response_logprobs(policy, *none).logp.shape == response_values(critic, *none).shape == (4, 0)


def test_errors(llama_dir, batch):
    policy, critic = load_policy(llama_dir), load_scorer(llama_dir, head="zero")
    prompt_ids, prompt_mask, response_ids, response_mask = batch.tensors
    wrong_side = (prompt_ids, prompt_mask.flip(1), response_ids, response_mask)
    for call in (response_logprobs, response_values):
        with pytest.raises(ValueError, match="pad on the left"):
            call(policy if call is response_logprobs else critic, *wrong_side)
    with pytest.raises(ValueError, match="temperature"):
        response_logprobs(policy, *batch.tensors, temperature=0.0)
    long = torch.full((1, CONTEXT), 5), torch.ones(1, CONTEXT, dtype=torch.bool)
    with pytest.raises(LabError, match=f"token id {VOCABULARY} is beyond the model's vocabulary"):
        response_logprobs(policy, prompt_ids.masked_fill(prompt_ids == 5, VOCABULARY), *batch.tensors[1:])
    with pytest.raises(LabError, match=f"{CONTEXT + 1} tokens are too long"):
        response_logprobs(policy, *long, *(part[:1, :2] for part in long))
