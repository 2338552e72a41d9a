"""What the figures show: the right numbers in the right places, nothing on top of anything else."""

import math

import numpy as np
import pandas as pd
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from statsmodels.stats.proportion import proportion_confint

from rlhf_lab.config import Config
from rlhf_lab.errors import LabError
from rlhf_lab.workbench import curves as curves_module
from rlhf_lab.workbench.glossary import GLOSSARY, healthy_ranges
from rlhf_lab.workbench.plots import (
    calibration,
    calibration_table,
    curves,
    live_curves,
    proxy_gold,
    reward_histogram,
    token_bars,
    verdict_bars,
)
from rlhf_lab.workbench.runs import Run

# DESIGN.md, section 6, and what judges/statistics.py sums up; written down by hand
NAMES = [
    "objective/kl",
    "objective/non_score_reward",
    "objective/entropy",
    "objective/scores",
    "objective/scores_raw",
    "objective/rlhf_reward",
    "objective/kl_coef",
    "policy/approxkl_avg",
    "policy/clipfrac_avg",
    "policy/entropy_avg",
    "loss/policy_avg",
    "loss/value_avg",
    "val/clipfrac_avg",
    "val/ratio",
    "val/explained_var",
    "policy/grad_norm",
    "val/grad_norm",
    "val/num_eos_tokens",
    "completions/mean_length",
    "completions/clipped_ratio",
    "completions/eos_rate",
    "time/rollout",
    "time/score",
    "time/train",
    "lr",
    "episode",
    "gold/mean",
    "gold/win_rate",
    "train/loss",
    "eval/loss",
    "eval/accuracy",
    "eval/gap",
    "global_step",
    "judge/accuracy",
    "judge/kappa",
    "judge/consistency",
    "judge/conflict_rate",
    "judge/first_share",
    "judge/primacy",
    "judge/recency",
    "judge/preference_fairness",
    "judge/longer_share",
    "judge/gold_longer_share",
    "judge/excess_length",
    "judge/invalid_share",
]


def texts(fig):
    """Everything written in a figure."""
    return [text.get_text() for text in fig.findobj(lambda part: hasattr(part, "get_text")) if text.get_text()]


# --- glossary


def test_the_glossary_has_every_metric_of_the_design():
    assert [name for name in NAMES if name not in GLOSSARY] == []
    for name, metric in GLOSSARY.items():
        assert metric.formula, name
        assert metric.unit, name
        assert metric.words.endswith("."), name
        assert metric.healthy is None or metric.healthy[0] < metric.healthy[1], name


def test_healthy_ranges_leave_out_what_has_none():
    assert healthy_ranges(["val/ratio", "lr", "unheard/of"]) == {"val/ratio": (0.9, 1.1)}


# --- curves


@pytest.fixture
def metrics():
    steps = np.arange(10) * 64
    return pd.DataFrame({
        "episode": steps,
        "objective/kl": np.linspace(0, 9, 10),
        "policy/clipfrac_avg": np.linspace(0.3, 0.2, 10),
        "gold/mean": np.where(np.arange(10) % 3 == 0, 1.0, np.nan),
    })  # fmt: skip


def test_a_curve_shows_its_points_and_skips_what_was_not_logged(metrics):
    fig = curves(metrics, ["objective/kl", "gold/mean"])
    first, second = fig.axes[:2]
    assert list(first.lines[0].get_xdata()) == list(metrics["episode"])
    assert list(first.lines[0].get_ydata()) == list(metrics["objective/kl"])
    assert list(second.lines[0].get_xdata()) == [0, 192, 384, 576]
    assert first.get_title(loc="left") == "objective/kl"


def test_the_healthy_band_is_drawn_and_brought_into_view(metrics):
    fig = curves(metrics, ["objective/kl", "policy/clipfrac_avg"])
    kl, clip = fig.axes
    assert kl.patches[0].get_y() == 0
    assert kl.patches[0].get_height() == 18
    assert kl.get_ylim()[1] < 12  # a band up to 18 must not press a curve up to 9 flat
    low, high = clip.get_ylim()
    assert low < 0.1 < 0.3 < high  # the curve is above its band, whose edge is shown
    plain = curves(metrics, ["objective/kl"], healthy={}).axes[0]
    assert not plain.patches
    own = curves(metrics, ["gold/mean"], healthy={"gold/mean": (1.5, 2.0)}).axes[0]
    assert own.get_ylim()[1] > 1.5


def test_a_metric_never_logged_says_so(metrics):
    fig = curves(metrics, ["objective/kl", "val/ratio"])
    assert "not logged" in texts(fig)
    assert "not logged" in texts(curves(pd.DataFrame(), ["val/ratio"]))


def test_another_step_is_found(metrics):
    steps = metrics.rename(columns={"episode": "global_step"})
    assert curves(steps, ["objective/kl"]).axes[0].get_xlabel() == "global_step"


def test_infinities_do_not_break_a_curve(metrics):
    metrics.loc[4, "objective/kl"] = math.inf
    low, high = curves(metrics, ["objective/kl"]).axes[0].get_ylim()
    assert high < 12


def test_titles_and_ranges_do_not_touch():
    names = [name for name, metric in GLOSSARY.items() if metric.healthy]
    table = pd.DataFrame({name: np.linspace(0, 1, 30) for name in names})
    fig = curves(table, names)
    canvas = FigureCanvasAgg(fig)
    canvas.draw()
    renderer = canvas.get_renderer()
    for ax in fig.axes[: len(names)]:
        left = ax._left_title.get_window_extent(renderer)
        right = ax._right_title.get_window_extent(renderer)
        assert not ax.get_title(loc="right") or left.x1 < right.x0, ax.get_title(loc="left")


# --- live curves


class Stage(Config):
    """Parameters of a stage."""


@pytest.fixture
def run(tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "disabled")
    monkeypatch.setenv("RLHF_LAB_HEADLESS", "1")
    return Run.start("ppo", Stage(), run_dir=tmp_path / "one")


class Display:
    """Stands for IPython's display: keeps what it is shown, and how many pictures that are not updates of one."""

    def __init__(self):
        self.shown, self.pictures, self.execution_count = [], 0, 1

    def __call__(self, image, display_id=None):
        self.pictures += 1
        self.update(image)
        return self

    def update(self, image):
        self.shown.append(image)


@pytest.fixture
def watched(monkeypatch):
    import IPython.display

    display = Display()
    monkeypatch.setenv("RLHF_LAB_HEADLESS", "0")
    monkeypatch.setattr(curves_module, "in_kernel", lambda: True)
    monkeypatch.setattr(curves_module, "shell", lambda: display)
    monkeypatch.setattr(IPython.display, "display", display)
    return display


def test_headless_only_the_last_figure_is_drawn(run, watched, monkeypatch):
    monkeypatch.setenv("RLHF_LAB_HEADLESS", "1")
    live = live_curves(run, ["objective/kl"])
    for step in range(5):
        run.log({"objective/kl": step}, step=step)
        live.update()
    assert watched.shown == []
    live.final()
    assert len(watched.shown) == 1
    assert list(live.figure.axes[0].lines[0].get_ydata()) == [0, 1, 2, 3, 4]


def test_a_cell_that_is_run_again_gets_a_picture_of_its_own(run, watched):
    """JupyterLab clears the output of a cell that runs again, and with it the picture that would be updated."""
    live = live_curves(run, ["objective/kl"])
    for step, cell in enumerate([1, 1, 2, 2]):
        watched.execution_count = cell
        run.log({"objective/kl": step}, step=step)
        live.final()
    assert (len(watched.shown), watched.pictures) == (4, 2)


def test_live_curves_are_drawn_at_most_twice_a_second(run, watched, monkeypatch):
    class Clock:
        now = 0.0

        def monotonic(self):
            return self.now

    clock = Clock()
    monkeypatch.setattr(curves_module, "time", clock)
    live = live_curves(run, ["objective/kl"])
    live.update()  # nothing is logged yet
    assert watched.shown == []
    for step in range(40):
        run.log({"objective/kl": step}, step=step)
        live.update()
        clock.now += 0.1
    assert len(watched.shown) == 8  # 4 seconds
    run.progress(3, 9, "rollouts")
    clock.now += 1
    live.update()
    assert live.figure.get_suptitle() == "ppo 3/9 (33%), rollouts"


# --- one figure each


def test_the_histograms_are_shares_on_the_same_bins():
    fig = reward_histogram([0.0, 1.0, 1.0, math.nan], [2.0, 4.0], labels=("SFT", "PPO"), bins=4)
    bars = fig.axes[0].patches
    assert [bar.get_height() for bar in bars] == pytest.approx([100 / 3, 200 / 3, 0, 0, 0, 0, 50, 50])
    assert {"SFT: mean 0.67", "PPO: mean 3.00"} <= set(texts(fig))
    with pytest.raises(LabError, match="'after' has no finite values"):
        reward_histogram([1.0], [math.nan])


def test_token_bars_cut_the_score_and_say_its_value():
    fig = token_bars(["a", "b", "$c$", "<eos>"], [-0.01, 0.02, -0.03, 2.5], [0.1, -0.2, 0.3, 0.0])
    top, bottom = fig.axes
    assert [bar.get_height() for bar in top.patches] == pytest.approx([0.1, -0.2, 0.3, 0.0])
    assert [bar.get_height() for bar in bottom.patches] == pytest.approx([-0.01, 0.02, -0.03, 0.06])
    assert "2.50" in texts(fig)
    assert "KL 0.20 nats, reward 2.48 (a bar with a number is cut off)" in texts(fig)
    assert [label.get_text() for label in bottom.get_xticklabels()] == ["a", "b", r"\$c\$", "<eos>"]
    FigureCanvasAgg(fig).draw()  # a dollar read as mathematics would fail here


def test_token_bars_of_like_size_are_not_cut():
    _, bottom = token_bars(["a", "b", "c"], [0.1, 0.2, 0.3], [0, 0, 0]).axes
    assert [bar.get_height() for bar in bottom.patches] == pytest.approx([0.1, 0.2, 0.3])


def test_long_replies_are_broken_into_rows_on_one_scale():
    fig = token_bars(["t"] * 50, np.linspace(0, 1, 50), np.linspace(-1, 1, 50), per_row=20)
    assert len(fig.axes) == 6
    assert len({ax.get_ylim() for ax in fig.axes[0::2]}) == 1
    assert len({ax.get_ylim() for ax in fig.axes[1::2]}) == 1
    with pytest.raises(LabError, match="2 tokens, 1 rewards"):
        token_bars(["a", "b"], [1.0], [0.0, 0.0])


def test_proxy_and_gold_are_gains_since_the_start():
    table = pd.DataFrame({
        "objective/kl": [0.0, 2.0, 5.0],
        "objective/scores": [1.0, 2.0, 4.0],
        "gold/mean": [0.5, np.nan, -0.5],
    })  # fmt: skip
    fig = proxy_gold(table)
    proxy, gold = fig.axes[0].lines[:2]
    assert (list(proxy.get_xdata()), list(proxy.get_ydata())) == ([0, 2, 5], [0, 1, 3])
    assert (list(gold.get_xdata()), list(gold.get_ydata())) == ([0, 5], [0, -1])
    assert {"proxy +3.00", "gold -1.00"} <= set(texts(fig))
    with pytest.raises(LabError, match="no 'gold/mean'"):
        proxy_gold(table.drop(columns="gold/mean"))


def test_calibration_bins_by_hand_and_intervals_by_statsmodels():
    said = np.array([0.05, 0.1, 0.15, 0.95, 1.0, 0.9, 0.9])
    happened = np.array([0, 0, 1, 1, 1, 0, 1])
    table = calibration_table(said, happened, bins=5)
    assert list(table["n"]) == [3, 4]
    assert list(table["said"]) == pytest.approx([0.1, 0.9375])
    assert list(table["share"]) == pytest.approx([1 / 3, 3 / 4])
    low, high = proportion_confint([1, 3], [3, 4], method="wilson")
    np.testing.assert_allclose(table["low"], low)
    np.testing.assert_allclose(table["high"], high)
    # |1/3 - .1| over 3 and |.75 - .9375| over 4: (.7 + .75) / 7
    assert "mean gap 0.207" in texts(calibration(said, happened, bins=5))
    with pytest.raises(LabError, match="all p in"):
        calibration([1.2], [1])


def test_verdict_bars_show_intervals_and_the_planted_truth():
    summary = pd.DataFrame(
        [
            ("one", "accuracy", 0.7, 0.6, 0.8),
            ("two", "accuracy", 0.5, 0.4, 0.6),
            ("two", "kappa", np.nan, np.nan, np.nan),  # undefined
        ],
        columns=["judge", "statistic", "value", "low", "high"],
    )
    fig = verdict_bars(summary, {("one", "accuracy"): 0.75})
    ax = fig.axes[0]
    points = [line for line in ax.lines if line.get_marker() == "o"]
    assert [list(line.get_xdata())[0] for line in points] == [0.7, 0.5]
    segments = [segment for lines in ax.collections for segment in lines.get_segments() if len(segment)]
    spans = [segment[:, 0].tolist() for segment in segments]
    assert [0.6, 0.8] in spans
    assert [0.4, 0.6] in spans
    (diamond,) = [line for line in ax.lines if line.get_marker() == "D" and len(line.get_xdata())]
    assert diamond.get_xdata()[0] == 0.75
    assert diamond.get_ydata()[0] == points[0].get_ydata()[0]
    assert [label.get_text() for label in ax.get_yticklabels()] == ["accuracy", "kappa"]
    with pytest.raises(LabError, match="no column 'high'"):
        verdict_bars(summary.drop(columns="high"))


def test_figures_leave_the_users_style_and_pyplot_alone(metrics):
    import matplotlib.pyplot as plt

    before = dict(plt.rcParams)
    curves(metrics, ["objective/kl"])
    reward_histogram([1.0, 2.0], [2.0])
    assert dict(plt.rcParams) == before
    assert plt.get_fignums() == []  # or a notebook would show each figure twice


def test_calibration_is_drawn_where_everything_or_nothing_happened():
    """The Wilson interval touches the share at 0 and 1; rounding must not carry it across."""
    for n in range(1, 200):
        for happened in (0.0, 1.0):
            table = calibration_table(np.full(n, 0.3), np.full(n, happened))
            assert table["low"][0] <= happened <= table["high"][0]
    calibration(np.full(7, 0.95), np.ones(7))


def test_a_notebooks_own_plots_are_shown_after_ours(tmp_path):
    """In a real kernel: a figure by pyplot, in a later cell than a figure by the lab."""
    import nbformat
    import papermill

    ours = "from rlhf_lab.workbench import plots\nplots.reward_histogram([1, 2, 3], [2, 3, 4])"
    theirs = "import seaborn as sns\nsns.pointplot(x=[1, 2], y=[1, 2]).axvline(0.5);"
    cells = [nbformat.v4.new_code_cell(text) for text in (ours, theirs)]
    metadata = {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}
    nbformat.write(nbformat.v4.new_notebook(cells=cells, metadata=metadata), tmp_path / "in.ipynb")
    monkeypatch = pytest.MonkeyPatch()
    monkeypatch.delenv("MPLBACKEND", raising=False)
    done = papermill.execute_notebook(tmp_path / "in.ipynb", tmp_path / "out.ipynb", progress_bar=False)
    monkeypatch.undo()
    assert [sum("image/png" in o.get("data", {}) for o in cell.outputs) for cell in done.cells] == [1, 1]
