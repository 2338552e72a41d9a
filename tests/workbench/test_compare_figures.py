"""Bands, scales and figures of compared runs, the command, and a sweep's report."""

import base64
import json

import matplotlib as mpl
import numpy as np
import pandas as pd
import pytest
from bs4 import BeautifulSoup
from compared_runs import sweep
from scipy import stats

from rlhf_lab.cli import main
from rlhf_lab.workbench.comparing.figures import band, curve_of, curves
from rlhf_lab.workbench.comparing.find import find_runs
from rlhf_lab.workbench.comparing.reading import ComparedRun
from rlhf_lab.workbench.comparing.sweep_figures import results_figure, scale
from rlhf_lab.workbench.comparing.variants import compare
from rlhf_lab.workbench.experiments.record import ExperimentRecord, StageRecord
from rlhf_lab.workbench.report.experiment import write_report

mpl.use("Agg")


def run(seed=0, metrics=None, results=None, path="x", **settings):
    frame = pd.DataFrame({} if metrics is None else metrics)
    name = f"{settings}-{seed}"
    facts = {
        "experiment": "e",
        "stage": "ppo",
        "group": "e",
        "tags": (),
        "state": "done",
        "seconds": 1.0,
        "started": "",
    }
    return ComparedRun(
        name=name, path=path, seed=seed, settings=settings, results=results or {}, x="step", metrics=frame, **facts
    )


@pytest.fixture(scope="module")
def here(tmp_path_factory):
    """In a folder with the planted runs."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path_factory.mktemp("planted"))
        patch.setenv("RLHF_LAB_HEADLESS", "1")
        patch.delenv("RLHF_LAB_RUNS", raising=False)
        sweep()
        yield


# ------------------------------------------------------------------------------------------------ bands


def test_curves_with_the_same_steps_are_averaged_there():
    steps = np.array([1.0, 2.0, 4.0])
    values = np.array([[1.0, 2.0, 3.0], [3.0, 2.0, 9.0], [5.0, 2.0, 0.0]])
    found = band([(steps, row) for row in values])
    half = 4.302653 * values.std(0, ddof=1) / np.sqrt(3)  # Student's t for two degrees of freedom
    assert np.allclose(found.mean, [3.0, 2.0, 4.0]) and np.array_equal(found.steps, steps)
    assert np.allclose(found.high - found.mean, half, rtol=1e-6)
    assert np.allclose(found.mean - found.low, half, rtol=1e-6)


def test_curves_with_other_steps_are_averaged_where_all_have_been():
    found = band([(np.array([0.0, 10, 20]), np.array([0.0, 10, 20])), (np.array([5.0, 15, 25]), np.array([1.0, 1, 1]))])
    assert found.steps.tolist() == [5, 10, 15, 20]  # from the later beginning to the earlier end
    assert found.mean.tolist() == [3.0, 5.5, 8.0, 10.5]  # 5, 10, 15, 20 on the line, and 1
    expected = stats.t.interval(0.95, 1, loc=5.5, scale=stats.sem([10, 1]))
    assert (found.low[1], found.high[1]) == pytest.approx(expected)


def test_where_there_is_nothing_in_common_there_is_no_mean_and_one_seed_has_no_band():
    first, second = (np.array([0.0, 1.0]), np.zeros(2)), (np.array([5.0, 6.0]), np.zeros(2))
    assert band([first, second]) is None and band([]) is None
    assert np.isnan(band([first]).low).all()


def test_of_a_step_logged_twice_the_last_counts_and_what_is_no_number_is_left_out():
    metrics = {"step": [3, 1, 1, 2, 2, 4], "loss": [0.3, 9.0, 0.1, 0.2, np.nan, np.inf]}
    x, y = curve_of(run(metrics=metrics), "loss")
    assert x.tolist() == [1, 2, 3] and y.tolist() == [0.1, 0.2, 0.3]
    assert len(curve_of(run(metrics=metrics), "other")[0]) == 0


def test_the_curves_show_a_mean_for_each_variant_and_cut_a_band_that_dwarfs_them():
    runs = [
        run(seed, {"step": [1, 2], "loss": [v, v + 1]}, lr=lr) for lr in (1, 2) for seed, v in enumerate((0.0, 1.0))
    ]
    figure = curves(compare(runs), ["loss"])
    ax = figure.axes[0]
    means = [line.get_ydata().tolist() for line in ax.lines if line.get_linewidth() > 1 and len(line.get_xdata())]
    assert means.count([0.5, 1.5]) == 2
    low, high = ax.get_ylim()  # the band of two seeds is 12.7 * 0.5 to either side; the curves are between 0 and 2
    assert -0.8 < low < 0 and 2 < high < 2.8
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["lr=1", "lr=2"]


# ------------------------------------------------------------------------------------------------ sweeps


@pytest.mark.parametrize(
    ("values", "kind", "numeric"),
    [
        ([0.1, 0.2, 0.3], "linear", True),
        ([1e-4, 1e-3, 1e-2], "log", True),
        ([0.0, 0.01, 1.0], "symlog", True),
        ([-1.0, 0.01, 1.0], "linear", True),
        (["off", "rollout"], "linear", False),
        ([None, 0.1, 5.0], "linear", False),
        ([[1, 2], [1, 3]], "linear", False),
        ([True, False], "linear", False),
    ],
)
def test_numbers_that_span_much_stand_on_a_logarithmic_axis_and_all_else_in_a_row(values, kind, numeric):
    found = scale(compare([run(results={"gold": 1.0}, key=value) for value in values]), "key")
    assert (found.kind, found.numeric) == (kind, numeric)
    assert len(found.places) == len(values)
    if not numeric:
        assert sorted(found.places.values()) == list(range(len(values)))


def grid(**keys):
    """A run for each combination of values and two seeds; its result tells which it is."""
    points = [{}]
    for key, values in keys.items():
        points = [{**point, key: value} for point in points for value in values]
    return compare([run(s, results={"gold": i + s}, **point) for i, point in enumerate(points) for s in (0.0, 1.0)])


def test_one_key_is_drawn_against_its_values_with_the_interval_of_its_seeds():
    figure = results_figure(grid(lr=[0.1, 0.2, 0.4]), ["gold"])
    (container,) = figure.axes[0].containers
    points, _, (bars,) = container
    assert points.get_xdata().tolist() == [0.1, 0.2, 0.4] and points.get_ydata().tolist() == [0.5, 1.5, 2.5]
    ends = bars.get_segments()[0][:, 1]
    assert ends == pytest.approx([0.5 - 12.7062 * 0.5, 0.5 + 12.7062 * 0.5], abs=1e-3)  # s / sqrt(2) = 0.5


def test_two_keys_are_lines_by_colour_or_a_map_and_more_are_parallel_coordinates():
    lines = results_figure(grid(lr=[0.1, 0.2, 0.4], kl=[0.0, 0.1]), ["gold"])
    assert [text.get_text() for text in lines.legends[0].get_texts()] == ["0", "0.1"]
    assert len(lines.axes[0].containers) == 2

    wide = {"lr": list(range(1, 8)), "kl": list(range(7))}
    image = results_figure(grid(**wide), ["gold"]).axes[0].images[0].get_array()
    assert np.array_equal(image, np.arange(49).reshape(7, 7) + 0.5)  # lr changes slowest: it goes upwards

    several = results_figure(grid(lr=[0.1, 0.2], kl=[0.0, 0.1], whiten=["off", "rollout"]), ["gold"]).axes[0]
    assert [tick.get_text() for tick in several.get_xticklabels()] == ["lr", "kl", "whiten", "gold"]
    assert sum(len(line.get_xdata()) == 4 for line in several.lines) == 8


def test_runs_that_are_no_sweep_stand_below_each_other():
    runs = [
        run(seed, results={"gold": seed}, **{f"k{i}": index for i in range(12)}) for index in (0, 1) for seed in (0, 1)
    ]
    labels = [tick.get_text() for tick in results_figure(compare(runs), ["gold"]).axes[0].get_yticklabels()]
    assert labels == ["A", "B"]  # twelve settings make no name
    assert "no results" in results_figure(compare(runs), ["none"]).axes[0].texts[0].get_text()


# ------------------------------------------------------------------------------------------------ the command


def test_the_command_prints_tables_and_writes_files(here, tmp_path, capsys):
    command = ["compare", "kl", "--baseline", "kl_coef=0.1", "--csv", f"{tmp_path}/a/runs.csv"]
    assert main([*command, "--figure", f"{tmp_path}/a/kl.png"]) == 0
    out = capsys.readouterr().out
    lines = [" ".join(line.split()) for line in out.splitlines()]
    assert "7 runs, 3 variants, stage ppo" in lines
    assert "kl_coef=0.1 * kl ppo 3 1, 2, 3 done 0:00" in lines
    assert "gold kl_coef=0 1 7.00 +6.00 1" in lines
    assert "kl_coef=0.2 3 5.67 [-3.98, 15.31] +1.00 [-5.35, 7.35] 2, 1 unpaired" in lines  # 4.3027 * 3.8837 / sqrt(3)
    assert any(line.startswith("note kl: of its stages the last") for line in lines)
    assert len(pd.read_csv(tmp_path / "a" / "runs.csv")) == 7
    for name in ("kl.png", "kl-results.png"):
        assert (tmp_path / "a" / name).read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["nothing"], "nothing: no run, experiment, group or tag of this name"),
        (["kl", "--baseline", "zero"], "baseline zero: not among what is compared"),
        (["kl", "--metric", "golf"], "metric golf: no run has it (did you mean gold?)"),
        (["kl", "--figure", "a.gif"], "give a name that ends in .png"),
    ],
)
def test_what_the_user_can_mend_is_told_in_one_line(here, capsys, words, line):
    assert main(["compare", *words]) == 2
    captured = capsys.readouterr()
    assert line in captured.err and captured.err.count("\n") == 1


def test_different_stages_are_said_and_a_broken_run_is_named_but_no_failure(here, tmp_path, capsys):
    broken = tmp_path / "broken"
    broken.mkdir()
    (broken / "status.json").write_text(json.dumps({"state": "done", "stage": "ppo", "experiment": "x"}))
    assert main(["compare", "kl/ppo/kl0.1*", "kl/sft", str(broken)]) == 0
    out = capsys.readouterr().out
    assert "different stages: compared by the results they share (eos_rate)" in out
    assert f"left out: {broken / 'config.yaml'} cannot be read" in out


# ------------------------------------------------------------------------------------------------ the report


def test_the_report_of_a_sweep_has_its_variants_with_intervals_and_the_plot(here, tmp_path):
    stages, points = [], []
    for number, each in enumerate(find_runs(["kl/sft", "kl/ppo"]).runs):
        entry = StageRecord(f"{number:02d}-{each.stage}", tmp_path / "n.ipynb", each.path, "done", stage=each.stage)
        stages.append(entry)
        points.append(({"seed": each.seed}, [entry]))
    record = ExperimentRecord("kl", "", tmp_path / "f.yaml", tmp_path / "kl", "run", "2026-01-01T00:00", stages)
    record.points = points
    page = BeautifulSoup(write_report(record).read_text(), "html.parser")
    rows = [[cell.text for cell in row("td")] for row in page.select("table.results tbody tr")]
    assert ["kl_coef=0.1", "1, 2, 3", "2.00 [-0.48, 4.48]", "1.00 [1.00, 1.00]"] in rows
    assert ["kl_coef=0", "1", "7.00", "1.00"] in rows
    (image,) = page.select("main > .plots img")  # sft was not varied
    assert base64.b64decode(image["src"].partition(",")[2]).startswith(b"\x89PNG")
    record.points = []
    assert "The sweep" not in write_report(record).read_text()
