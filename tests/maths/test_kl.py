"""KL estimators against the exact KL, their gradients as losses, the controller and best-of-n."""

import math

import pytest
import torch

from rlhf_lab.maths import adaptive_kl, best_of_n_kl, kl_estimate

POLICY = torch.tensor([0.5, 0.3, 0.15, 0.05], dtype=torch.float64)
REFERENCE = torch.tensor([0.25, 0.25, 0.1, 0.4], dtype=torch.float64)


def exact_kl(p, q):
    return sum(a * math.log(a / b) for a, b in zip(p.tolist(), q.tolist(), strict=True))


def expectation(kind):
    """E over samples from the policy, by enumeration of the four outcomes."""
    return (POLICY * kl_estimate(POLICY.log(), REFERENCE.log(), kind=kind)).sum().item()


# ---- the estimators


@pytest.mark.parametrize("kind", ["k1", "k3"])
def test_k1_and_k3_average_to_the_kl_of_the_policy_from_the_reference(kind):
    assert expectation(kind) == pytest.approx(exact_kl(POLICY, REFERENCE), rel=1e-12)
    assert abs(expectation(kind) - exact_kl(REFERENCE, POLICY)) > 0.1  # and not to the other direction


def test_k2_does_not():
    by_hand = sum(p * math.log(p / q) ** 2 / 2 for p, q in zip(POLICY.tolist(), REFERENCE.tolist(), strict=True))
    assert expectation("k2") == pytest.approx(by_hand)
    assert abs(by_hand - exact_kl(POLICY, REFERENCE)) > 0.01


@pytest.mark.parametrize(
    ("kind", "shift", "bias", "deviation"),
    [
        ("k1", 0.1, 0.0, 20.0),
        ("k2", 0.1, 0.0025, 1.418),
        ("k3", 0.1, 0.0, 1.417),
        ("k1", 1.0, 0.0, 2.0),
        ("k2", 1.0, 0.25, 1.732),
        ("k3", 1.0, 0.0, 1.695),
    ],
)
def test_bias_and_deviation_on_gaussians(kind, shift, bias, deviation):
    # Schulman, "Approximating KL divergence" (2020): samples from N(0, 1), reference N(shift, 1), true KL
    # shift^2 / 2; bias and deviation as multiples of it, here by quadrature. By hand for k1, which is
    # N(shift^2/2, shift^2): deviation 2/shift. For k2: E[k2] = (shift^2 + shift^4/4) / 2, bias shift^2/4.
    x = torch.linspace(-12, 12, 24001, dtype=torch.float64)
    density = (-x.square() / 2).exp() / math.sqrt(2 * math.pi) * (x[1] - x[0])
    true = shift**2 / 2
    k = kl_estimate(-x.square() / 2, -(x - shift).square() / 2, kind=kind)
    mean = (density * k).sum()
    assert (mean / true - 1).item() == pytest.approx(bias, abs=1e-4)
    assert (((density * (k - mean).square()).sum()).sqrt() / true).item() == pytest.approx(deviation, abs=1e-3)


def test_sign_and_size_by_hand():
    # the policy gives the sample probability 0.5, the reference 0.25: logr = -log 2, so k1 = log 2,
    # k2 = log(2)^2 / 2, k3 = 1/2 - 1 + log 2
    logp, ref_logp = (
        torch.tensor(0.5, dtype=torch.float64).log(),
        torch.tensor(0.25, dtype=torch.float64).log(),
    )
    log2 = math.log(2)
    assert kl_estimate(logp, ref_logp, kind="k1").item() == pytest.approx(log2)
    assert kl_estimate(logp, ref_logp, kind="k2").item() == pytest.approx(log2**2 / 2)
    assert kl_estimate(logp, ref_logp, kind="k3").item() == pytest.approx(log2 - 0.5)


def test_k2_and_k3_are_never_negative():
    logr = torch.linspace(-6, 6, 101, dtype=torch.float64)
    for kind in ("k2", "k3"):
        assert (kl_estimate(torch.zeros_like(logr), logr, kind=kind) >= 0).all()


def test_k3_of_nemo():
    # NVIDIA-NeMo/RL 7ea279ab, tests/unit/algorithms/test_loss_functions.py L934-990
    k3 = kl_estimate(torch.tensor([0.0, -1, -2]).double(), torch.tensor([-1.0, -1, -1]).double(), kind="k3")
    assert k3.tolist() == pytest.approx([0.36787944117144233, 0, 0.7182818284590453], abs=1e-12)
    assert k3.mean().item() == pytest.approx(0.36205375654349586)


def test_k3_keeps_its_digits_in_float32():
    # natolambert/rlhf-book a66b0bf1, code/tests/test_kl3_stability.py: logr = 1 and 1e-4
    k3 = kl_estimate(torch.zeros(2), torch.tensor([1.0, 1e-4]), kind="k3")
    assert k3[0].item() == pytest.approx(0.7182818284590451, abs=1e-6)
    assert k3[1].item() == pytest.approx(5.0001666708330726e-09, abs=1e-11)  # exp(x) - 1 - x gives 1.7e-08


def test_k1_of_the_n_implementation_details():
    # huggingface/blog the_n_implementation_details_of_rlhf_with_ppo.md: log-probabilities and KL as printed
    # there, the reference's following from them
    logp = torch.tensor([-3.3213, -4.998, -3.869], dtype=torch.float64)
    ref_logp = torch.tensor([-2.9898, -4.9554, -4.5041], dtype=torch.float64)
    k1 = kl_estimate(logp, ref_logp, kind="k1")
    assert k1.tolist() == pytest.approx([-0.3315, -0.0426, 0.6351], abs=1e-4)
    assert k1.sum().item() == pytest.approx(0.261, abs=1e-4)


# ---- as losses: the gradient on samples from the policy, by enumeration


def gradient_as_loss(kind):
    """E over samples of the gradient of the estimate, the sampling itself not differentiated."""
    theta = POLICY.log().clone().requires_grad_()
    logp = theta.log_softmax(0)
    (POLICY * kl_estimate(logp, REFERENCE.log(), kind=kind)).sum().backward()
    return theta.grad


def gradient_of(divergence):
    theta = POLICY.log().clone().requires_grad_()
    divergence(theta.log_softmax(0)).backward()
    return theta.grad


def test_k2_as_a_loss_has_the_gradient_of_kl_from_the_reference():
    exact = gradient_of(lambda logp: (logp.exp() * (logp - REFERENCE.log())).sum())
    assert torch.allclose(gradient_as_loss("k2"), exact, atol=1e-12)


def test_k3_as_a_loss_has_the_gradient_of_the_other_kl():
    other = gradient_of(lambda logp: (REFERENCE * (REFERENCE.log() - logp)).sum())
    assert torch.allclose(gradient_as_loss("k3"), other, atol=1e-12)
    assert not torch.allclose(gradient_as_loss("k3"), gradient_as_loss("k2"), atol=0.01)


def test_k1_as_a_loss_has_none():
    # E[grad log pi] = 0: as a loss k1 does not regularise at all
    assert torch.allclose(gradient_as_loss("k1"), torch.zeros(4, dtype=torch.float64), atol=1e-12)


def test_kl_estimate_refuses_what_does_not_fit():
    with pytest.raises(ValueError, match=r"^kl_estimate: wants one shape, got logp \(2,\), ref_logp \(3,\)$"):
        kl_estimate(torch.zeros(2), torch.zeros(3), kind="k1")
    with pytest.raises(ValueError, match="^kl_estimate: kind must be k1, k2 or k3, got 'kl1'$"):
        kl_estimate(torch.zeros(2), torch.zeros(2), kind="kl1")


# ---- the controller


@pytest.mark.parametrize(
    ("kl", "expected"),
    [(12.0, 0.151536), (3.0, 0.148464), (6.0, 0.15), (6.6, 0.150768)],
)
def test_adaptive_kl_of_openai(kl, expected):
    # openai/lm-human-preferences cbfd210b, train_policy.py AdaptiveKLController. Relative error 12/6 - 1 = 1
    # and 3/6 - 1 = -0.5 are cut to +-0.2, 6.6/6 - 1 = 0.1 is not; 0.15 * (1 + 0.2 * 512 / 10000) = 0.151536
    assert adaptive_kl(0.15, kl, target=6.0, horizon=10_000, n_steps=512) == pytest.approx(expected, rel=1e-9)


def test_adaptive_kl_holds_a_policy_at_the_target():
    """On a policy whose KL is 2 / coef, the coefficient must settle where that is the target: at 2 / 6."""
    coef = 0.05
    for _ in range(500):
        coef = adaptive_kl(coef, 2 / coef, target=6.0, horizon=1_000, n_steps=100)
    assert coef == pytest.approx(2 / 6, rel=1e-3)


def test_adaptive_kl_refuses_a_target_or_horizon_of_zero():
    with pytest.raises(ValueError, match="^adaptive_kl: target and horizon must be above 0, got 0 and 100$"):
        adaptive_kl(0.1, 1.0, target=0, horizon=100, n_steps=1)
    with pytest.raises(ValueError, match="^adaptive_kl: target and horizon"):
        adaptive_kl(0.1, 1.0, target=1, horizon=0, n_steps=1)


# ---- best of n


@pytest.mark.parametrize(
    ("n", "stated", "within"),
    [
        # Stiennon et al. 2009.01325, appendix table 10, printed to one decimal
        *[(n, kl, 0.05) for n, kl in [(8, 1.2), (64, 3.2), (128, 3.9), (256, 4.5), (512, 5.2)]],
        # Gao et al. 2210.10760 (about 6 and 10 nats), Coste et al. 2310.02743 (8.4)
        *[(n, kl, 0.1) for n, kl in [(1000, 6.0), (12_500, 8.4), (60_000, 10.0)]],
        # log n - (n-1)/n at n = 1, 2, 4, 16
        *[(1, 0.0, 1e-9), (2, 0.1931471806, 1e-9), (4, 0.6362943611, 1e-9), (16, 1.8350887222, 1e-9)],
    ],
)
def test_best_of_n_kl_of_the_papers(n, stated, within):
    assert best_of_n_kl(n) == pytest.approx(stated, abs=within)


@pytest.mark.parametrize("n", [2, 4, 16])
def test_best_of_n_kl_is_that_of_the_largest_of_n_uniforms(n):
    # without ties only ranks matter, so take u uniform on (0, 1): the largest of n has density n u^(n-1), and
    # the KL is the integral of n u^(n-1) log(n u^(n-1)), here by the midpoint rule
    u = (torch.arange(200_000, dtype=torch.float64) + 0.5) / 200_000
    density = n * u.pow(n - 1)
    assert best_of_n_kl(n) == pytest.approx((density * density.clamp_min(1e-300).log()).mean().item(), abs=1e-6)


def test_best_of_n_kl_is_an_upper_bound_where_samples_tie():
    # five equally likely levels, best of 4: P(best <= i) = (i/5)^4; KL by enumeration is .607 against .636
    p = [(i / 5) ** 4 - ((i - 1) / 5) ** 4 for i in range(1, 6)]
    tied = sum(x * math.log(5 * x) for x in p)
    assert tied == pytest.approx(0.607, abs=5e-4)
    assert tied < best_of_n_kl(4)


def test_best_of_n_kl_refuses_no_sample():
    with pytest.raises(ValueError, match="^best_of_n_kl: n must be at least 1, got 0$"):
        best_of_n_kl(0)
