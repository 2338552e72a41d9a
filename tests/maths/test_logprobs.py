"""Log-probabilities and entropies of tokens."""

import math

import pytest
import torch

from rlhf_lab.maths import token_entropy, token_logprobs


def logits_and_tokens(seed=0, shape=(3, 4, 7)):
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(shape, dtype=torch.float64, generator=generator) * 3
    return logits, torch.randint(shape[-1], shape[:-1], generator=generator)


def test_label_logprobs_of_openai():
    # openai/summarize-from-feedback 70096744, utils/test_torch_utils.py test_label_logprobs:
    # -log 3, and -log(1 + 1/e)
    logits = torch.tensor([[[2.0, 2, 2], [1.0, 0, -math.inf]]], dtype=torch.float64)
    logp = token_logprobs(logits, torch.tensor([[2, 0]]))
    assert logp[0].tolist() == pytest.approx([-1.0986122886681098, -0.3132616875182228], abs=1e-12)


def test_position_t_predicts_token_t():
    # logits that are sure of one token each: its own log-probability is 0, any other's is -40
    logits = torch.zeros(1, 3, 5)
    for t, token in enumerate([4, 0, 2]):
        logits[0, t, token] = 40.0
    assert token_logprobs(logits, torch.tensor([[4, 0, 2]]))[0].tolist() == pytest.approx([0, 0, 0], abs=1e-6)
    assert token_logprobs(logits, torch.tensor([[0, 2, 4]]))[0].tolist() == pytest.approx([-40, -40, -40])


def test_probabilities_of_all_tokens_sum_to_one():
    logits, _ = logits_and_tokens()
    every = [token_logprobs(logits, torch.full((3, 4), v)).exp() for v in range(7)]
    assert torch.allclose(sum(every), torch.ones(3, 4, dtype=torch.float64))


def test_adding_a_constant_to_the_logits_changes_nothing():
    logits, tokens = logits_and_tokens()
    shift = torch.randn(3, 4, 1, dtype=torch.float64, generator=torch.Generator().manual_seed(1)) * 100
    assert torch.allclose(token_logprobs(logits + shift, tokens), token_logprobs(logits, tokens))
    assert torch.allclose(token_entropy(logits + shift), token_entropy(logits))


def test_gradient_is_one_hot_minus_softmax():
    # d log softmax(z)_a / d z_v = 1[v = a] - softmax(z)_v
    logits, tokens = logits_and_tokens()
    logits.requires_grad_()
    token_logprobs(logits, tokens).sum().backward()
    expected = torch.nn.functional.one_hot(tokens, 7) - logits.detach().softmax(-1)
    assert torch.allclose(logits.grad, expected)


@pytest.mark.parametrize("half", [torch.bfloat16, torch.float16])
def test_half_precision_is_computed_in_float32(half):
    # the logits are what they are after rounding; everything after that must be as exact as float32
    logits, tokens = logits_and_tokens(shape=(2, 3, 50))
    logits = logits.to(half)
    exact = logits.double().log_softmax(-1)
    logp, entropy = token_logprobs(logits, tokens), token_entropy(logits)
    assert logp.dtype == entropy.dtype == torch.float32
    assert torch.allclose(logp.double(), exact.gather(-1, tokens[..., None])[..., 0], atol=1e-5)
    assert torch.allclose(entropy.double(), -(exact.exp() * exact).sum(-1), atol=1e-5)


def test_entropy_worked_by_hand():
    # p = (1/2, 1/4, 1/4): log 2 / 2 + 2 * log 4 / 4 = 1.5 log 2
    logits = torch.tensor([[[0.5, 0.25, 0.25]]], dtype=torch.float64).log()
    assert token_entropy(logits).item() == pytest.approx(1.5 * math.log(2))


def test_entropy_of_a_uniform_and_of_a_sure_choice():
    assert token_entropy(torch.zeros(1, 1, 9)).item() == pytest.approx(math.log(9))
    assert token_entropy(torch.tensor([[[0.0, 500.0, 0.0]]])).item() == pytest.approx(0, abs=1e-6)


def test_entropy_is_minus_the_expected_logprob():
    """Enumeration: H = -E[log p], the expectation by hand over all tokens."""
    logits, _ = logits_and_tokens()
    expected = 0
    for v in range(7):
        logp = token_logprobs(logits, torch.full((3, 4), v))
        expected = expected - logp.exp() * logp
    assert torch.allclose(token_entropy(logits), expected)


def test_tokens_cut_off_by_top_p_add_nothing_and_get_no_gradient():
    logits = torch.tensor([[[0.3, -1.0, -math.inf, -math.inf]]], requires_grad=True)
    left = torch.tensor([[[0.3, -1.0]]], requires_grad=True)
    for logits_in in (logits, left):
        token_entropy(logits_in).sum().backward()
    assert token_entropy(logits).item() == pytest.approx(token_entropy(left).item())
    assert logits.grad[0, 0].tolist() == pytest.approx([*left.grad[0, 0].tolist(), 0, 0])


def test_refuses_what_does_not_fit():
    with pytest.raises(ValueError, match=r"^token_logprobs: .* got logits \(2, 3, 4\), tokens \(2, 4\)$"):
        token_logprobs(torch.zeros(2, 3, 4), torch.zeros(2, 4, dtype=torch.long))
    with pytest.raises(ValueError, match=r"^token_logprobs: wants logits \(B, T, V\)"):
        token_logprobs(torch.zeros(3, 4), torch.zeros(3, dtype=torch.long))
    with pytest.raises(ValueError, match=r"^token_entropy: wants shape \(B, T, V\), got logits \(3, 4\)$"):
        token_entropy(torch.zeros(3, 4))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_the_gradient_is_autograds_own_of_the_formula(dtype):
    torch.manual_seed(0)
    logits = (3 * torch.randn(3, 4, 7)).to(dtype)
    logits[1, 2, 5] = float("-inf")  # what top-p leaves
    tokens, weights = torch.randint(0, 5, (3, 4)), torch.randn(3, 4, dtype=torch.float64)
    ours, plain = logits.clone().requires_grad_(), logits.double().requires_grad_()
    (token_logprobs(ours, tokens) * weights.to(torch.float64)).sum().backward()
    (plain.log_softmax(-1).gather(-1, tokens[..., None])[..., 0] * weights).sum().backward()
    assert ours.grad.dtype == dtype
    exact = {torch.float64: 1e-12, torch.float32: 1e-6, torch.bfloat16: 2**-7}[dtype]
    assert torch.allclose(ours.grad.double(), plain.grad, rtol=exact, atol=exact)
    assert torch.autograd.gradcheck(
        lambda x: token_logprobs(x, tokens), logits.double().nan_to_num(neginf=-9).requires_grad_()
    )
