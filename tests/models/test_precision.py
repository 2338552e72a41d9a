"""The choice between fp32 and bf16. No test asserts a time: the measurement is replaced."""

import math

import pytest
import torch

from rlhf_lab.errors import LabError
from rlhf_lab.models import autocast, load_policy, load_scorer, precision, resolve_precision


@pytest.fixture
def measured(monkeypatch):
    """Replace the measurement by a given gain; counts how often it is asked."""
    asked = []

    def set_gain(gain, native=True):
        monkeypatch.setattr(precision, "_decided", {})
        monkeypatch.setattr(precision, "has_native_bf16", lambda device: native)
        monkeypatch.setattr(precision, "speedup", lambda model: asked.append(model) or gain)
        return asked

    return set_gain


def test_named_precisions_come_back(measured):
    asked = measured(9.0)
    assert (resolve_precision("fp32"), resolve_precision("bf16")) == ("fp32", "bf16")
    assert not asked


@pytest.mark.parametrize(
    ("gain", "native", "wanted"), [(1.19, True, "fp32"), (1.21, True, "bf16"), (9.0, False, "fp32")]
)
def test_auto_takes_bf16_only_where_it_is_native_and_pays(measured, llama_dir, gain, native, wanted):
    measured(gain, native)
    assert resolve_precision("auto") == wanted
    assert resolve_precision("auto", load_policy(llama_dir)) == wanted


def test_auto_measures_once_per_kind_of_model(measured, llama_dir, gpt2_dir):
    asked = measured(2.0)
    for folder in (llama_dir, llama_dir, gpt2_dir):
        resolve_precision("auto", load_policy(folder))
    assert len(asked) == 2


@pytest.mark.parametrize("kind", ["nothing", "policy", "reference", "scorer"])
def test_measuring_leaves_no_trace(llama_dir, kind):
    loads = {"policy": load_policy, "scorer": load_scorer, "nothing": lambda path: None}
    model = loads.get(kind, lambda path: load_policy(path, trainable=False))(llama_dir)
    before = torch.get_rng_state()
    gain = precision.speedup(model)
    assert math.isfinite(gain)
    assert gain > 0
    assert torch.equal(before, torch.get_rng_state())
    assert model is None or all(weight.grad is None for weight in model.parameters())


def test_autocast():
    weight = torch.ones(2, 2)
    with autocast("bf16"):
        assert (weight @ weight).dtype == torch.bfloat16
    with autocast("fp32"):
        assert (weight @ weight).dtype == torch.float32
    assert (weight @ weight).dtype == torch.float32


def test_errors():
    with pytest.raises(LabError, match="'fp64'; choose one of auto, fp32, bf16"):
        resolve_precision("fp64")
    with pytest.raises(LabError, match="resolve_precision"):
        autocast("auto")
