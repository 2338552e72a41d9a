"""Whatever stands in a configuration, it is taken or refused in one line; what is taken comes back the same."""

import contextlib
import datetime

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from rlhf_lab.errors import LabError
from rlhf_lab.judges.backends.simulated import SimulatedJudgeConfig
from rlhf_lab.judges.readers.replay import ReplayConfig
from rlhf_lab.sandbox.labelers import LabelerConfig
from rlhf_lab.workbench.experiments.validate import ChainFile, StageEntry, read_yaml, validate
from rlhf_lab.workbench.stages import STAGES
from rlhf_lab.workbench.tracking import TrackingConfig

CONFIGS = [*STAGES.values(), TrackingConfig, LabelerConfig, SimulatedJudgeConfig, ReplayConfig, StageEntry, ChainFile]
quick = settings(max_examples=60, deadline=None, derandomize=True)

text = st.text(st.characters(), max_size=12)  # half characters and line breaks too
odd = st.sampled_from(
    [
        -(2**70),
        float("nan"),
        float("inf"),
        "1e-5",
        "yes",
        "",
        "\n",
        "\ud800",
        b"\xff",
        datetime.date(2024, 2, 29),
    ]
)
# YAML itself takes the "next line" of EBCDIC for an ordinary line break
written = st.characters(codec="utf-8", exclude_characters="\x85")
plain = st.none() | st.booleans() | st.integers() | st.floats() | text | odd
values = st.recursive(plain, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(text, inner, max_size=3))


def mappings(config):
    """Values under names of the config and under any other key."""
    keys = st.sampled_from(sorted(config.model_fields)) | text | st.none() | st.integers()
    return st.dictionaries(keys, values, max_size=4)


def assert_one_line(error: LabError, *words: str) -> None:
    line = str(error)
    assert len(line.splitlines()) == 1
    assert line.isprintable() or line.encode().decode() == line
    assert "Traceback" not in line
    assert len(line) < 5000
    assert all(word in line for word in words), line


@pytest.mark.parametrize("config", CONFIGS, ids=lambda config: config.__name__)
def test_any_mapping_is_taken_or_refused_in_one_line(config):
    @quick
    @given(mappings(config))
    def check(mapping):
        try:
            taken = config.parse(mapping, "here")
        except LabError as error:
            assert_one_line(error, "here")
        else:
            assert set(mapping) <= set(config.model_fields)
            assert config.parse(taken.model_dump(mode="json")) == taken

    check()


class Unspeakable:
    def __repr__(self):
        raise RuntimeError("no words")


@pytest.mark.parametrize(
    "value", [10**5000, [[10**5000]], Unspeakable(), "x" * 10**6], ids=["long", "in", "mute", "text"]
)
def test_values_that_cannot_be_written_out(value):
    for name in ("experiment", "seed", "columns"):
        with contextlib.suppress(LabError):  # a long name is a name, for the file system to refuse
            STAGES["03_ppo"].parse({name: value})
    with pytest.raises(LabError) as told:
        STAGES["03_ppo"].parse({"seed": value}, "here")
    assert_one_line(told.value, "here: parameter 'seed' is ")
    for nothing in (None, [], "lr: 1"):
        with pytest.raises(LabError, match="expected names with their values"):
            STAGES["03_ppo"].parse(nothing)


@pytest.mark.parametrize("stem", STAGES)
def test_one_wrong_value_is_named_whatever_it_is(stem):
    """No number takes a list, an object or a switch; the line says which parameter it was."""
    config = STAGES[stem]
    numbers = [name for name, field in config.model_fields.items() if field.annotation in (int, float)]
    assert {"seed", "threads"} <= set(numbers)

    @quick
    @given(st.sampled_from(numbers), st.booleans() | st.lists(plain) | st.dictionaries(text, plain) | st.just("fast"))
    def check(name, value):
        with pytest.raises(LabError) as told:
            config.parse({name: value}, "here")
        assert_one_line(told.value, f"here: parameter '{name}' is ")

    check()


def _highest(config, name: str) -> float:
    """1, or just below the bound that the field itself sets."""
    bounds = [
        b for m in config.model_fields[name].metadata for b in (getattr(m, "lt", None), getattr(m, "le", None)) if b
    ]
    return min([1.0, *(0.99 * bound for bound in bounds)])


@pytest.mark.parametrize("stem", STAGES)
def test_settings_come_back_from_yaml(stem):
    """The way of a run's config.yaml and of an experiment file: numbers of any size stay what they were."""
    config = STAGES[stem]
    floats = [name for name, field in config.model_fields.items() if field.annotation is float]
    wanted = st.fixed_dictionaries({}, optional={name: st.floats(1e-12, _highest(config, name)) for name in floats})

    @quick
    @given(wanted, st.integers(0, 2**32 - 1), st.text(written, max_size=20))
    def check(given_floats, seed, notes):
        cfg = config.parse({**given_floats, "seed": seed, "tracking": {"notes": notes}})
        written = yaml.safe_dump(cfg.model_dump(mode="json"), allow_unicode=True)
        assert config.parse(yaml.safe_load(written)) == cfg

    check()


@quick
@given(st.lists(st.sampled_from("abc:-[]{}&*!|>'\"%@`#,? \n\t0159.é\x00"), max_size=30).map("".join))
def test_any_text_is_an_experiment_file_or_refused_in_one_line(tmp_path_factory, content):
    file = tmp_path_factory.getbasetemp() / "any.yaml"
    file.write_text(content, encoding="utf-8")
    for read in (read_yaml, validate):
        try:
            read(file)
        except LabError as error:
            assert_one_line(error, "any.yaml")


@quick
@given(text, values)
def test_any_override_is_taken_or_refused_in_one_line(tmp_path_factory, key, value):
    folder = tmp_path_factory.getbasetemp() / "experiments" / "03_ppo"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "x.yaml").write_text("lr: 1e-5\n")
    for name in (key, "lr", "tracking.notes", "ppo.columns"):
        try:
            validate(folder / "x.yaml", [f"{name}={value!s}" if not isinstance(value, int) else f"{name}=9"])
        except LabError as error:
            assert_one_line(error)
