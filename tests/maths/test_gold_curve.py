"""The forms of Gao et al. against data drawn from known curves, and against other libraries' least squares."""

import numpy as np
import pytest
import torch
from scipy.optimize import curve_fit
from sklearn.metrics import r2_score

from rlhf_lab.maths import fit_gold_curve

CURVES = {
    "best_of_n": lambda d, alpha, beta: d * (alpha - beta * d),
    "rl": lambda d, alpha, beta: d * (alpha - beta * np.log(d)),
}


@pytest.mark.parametrize("form", CURVES)
@pytest.mark.parametrize(("alpha", "beta"), [(0.8, 0.3), (0.5, 0.2)])
def test_a_curve_without_noise_gives_its_own_coefficients_and_peak(form, alpha, beta):
    d = np.linspace(0.3, 4, 9)
    found = fit_gold_curve(torch.tensor(d), torch.tensor(CURVES[form](d, alpha, beta)), form=form)
    assert found[:3] == pytest.approx((alpha, beta, 1), abs=1e-9)
    grid = np.linspace(0.001, 8, 100_000)
    assert found.peak == pytest.approx(grid[CURVES[form](grid, alpha, beta).argmax()], abs=1e-3)


@pytest.mark.parametrize("form", CURVES)
def test_noisy_data_of_the_other_form_are_fitted_as_scipy_fits_them(form):
    d = np.linspace(0.2, 5, 12)
    other = next(name for name in CURVES if name != form)
    gold = CURVES[other](d, 0.7, 0.25) + np.random.default_rng(0).normal(0, 0.1, 12)
    (alpha, beta), _ = curve_fit(CURVES[form], d, gold, p0=(0, 0))
    found = fit_gold_curve(torch.tensor(d), torch.tensor(gold), form=form)
    assert found[:2] == pytest.approx((alpha, beta), abs=1e-6)
    assert found.r_squared == pytest.approx(r2_score(gold, CURVES[form](d, alpha, beta)), abs=1e-9)


def test_the_start_says_nothing_about_either_form():
    d, gold = torch.tensor([0.5, 1.0, 2.0]), torch.tensor([0.2, 0.5, 0.3])
    with_start = fit_gold_curve(torch.cat([torch.zeros(1), d]), torch.cat([torch.zeros(1), gold]), form="rl")
    assert with_start == pytest.approx(fit_gold_curve(d, gold, form="rl"))


def test_what_never_turns_has_no_peak_and_what_falls_from_the_start_has_it_there():
    d = torch.tensor([1.0, 2.0, 3.0])
    assert fit_gold_curve(d, d**2 + d, form="best_of_n")[:2] == pytest.approx((1, -1))
    assert fit_gold_curve(d, d**2 + d, form="best_of_n").peak == float("inf")
    assert fit_gold_curve(d, -(d**2) - d, form="best_of_n").peak == 0


@pytest.mark.parametrize(
    ("distance", "gain", "form", "message"),
    [
        ([1.0, 2.0], [1.0], "rl", "shape"),
        ([1.0, 2.0], [1.0, 1.0], "ppo", "best_of_n or rl"),
        ([-1.0, 2.0], [1.0, 1.0], "rl", "negative, got -1"),
        ([0.0, 2.0, 2.0], [0.0, 1.0, 1.0], "rl", "at least two"),
    ],
)
def test_what_cannot_be_fitted_is_named(distance, gain, form, message):
    with pytest.raises(ValueError, match=message):
        fit_gold_curve(torch.tensor(distance), torch.tensor(gain), form=form)
