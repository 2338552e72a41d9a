"""The examples of the how-to pages do what they say, and the experiments in them run."""

import pytest
from doc_pages import ROOT, blocks, write_files

from rlhf_lab.sandbox.world import World
from rlhf_lab.workbench.experiments.pipeline import run_experiment

HOWTOS = sorted(str(path.relative_to(ROOT)) for path in ROOT.glob("docs/howto/*.md"))
SMALL = ["eval_prompts=16", "sft.n_demonstrations=48", "sft.epochs=1"]


@pytest.fixture
def run_page(tmp_path, monkeypatch):
    """Write the files that a page shows, run its Python, and return the names that this leaves."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("WANDB_MODE", "disabled")
    monkeypatch.setenv("RLHF_LAB_RUNS", str(tmp_path / "runs"))

    def run(page: str) -> dict:
        write_files(f"docs/howto/{page}.md", tmp_path)
        names: dict = {"__name__": page}
        for block in blocks(f"docs/howto/{page}.md", "python"):
            if not block.name:
                exec(compile(block.text, page, "exec"), names)
        return names

    return run


def test_every_howto_with_python_is_run_here():
    with_python = {page for page in HOWTOS if any(not block.name for block in blocks(page, "python"))}
    assert with_python == {
        f"docs/howto/{name}.md" for name in ("own_reward", "own_data", "own_judge", "own_method", "gpu")
    }


def test_own_reward(run_page, capsys):
    names = run_page("own_reward")
    assert capsys.readouterr().out == "[1.0]\n"  # as its comment says
    assert names["reward"](["x"], ["please, please"], [False]) == [1.0]  # two, less one for the missing end


def test_own_data(run_page, capsys):
    rows = run_page("own_data")["rows"]
    assert set(rows.column_names) == {"prompt", "chosen", "rejected"}
    assert rows["rejected"][1] == " you fool ."


def test_own_judge(run_page, capsys):
    names = run_page("own_judge")
    found = names["summary"](names["verdicts"], names["pairs"]).set_index("statistic")["value"]
    # wrong on two pairs in both orders, and on the third right where the better reply stands first
    assert found["accuracy"] == pytest.approx(1 / 6)
    assert found["consistency"] == pytest.approx(2 / 3)


def test_own_method(run_page, capsys):
    names = run_page("own_method")
    assert len(capsys.readouterr().out.splitlines()) == 3
    advantages, mask = names["advantages"], names["sample"].response_mask
    assert advantages.shape == mask.shape
    assert abs(advantages[:, 0].mean().item()) < 1e-5  # every reply has a first token: scores less their mean
    before = World.load("default").base_model
    changed = names["load_policy"](before).state_dict()
    assert any((changed[name] != weight).any() for name, weight in names["policy"].state_dict().items())


def test_gpu(run_page, capsys):
    names = run_page("gpu")
    assert names["state"].number == names["config"].updates


@pytest.mark.slow
def test_the_experiment_of_own_reward_runs(run_page, tmp_path):
    run_page("own_reward")
    small = [*SMALL, "ppo.updates=2", "ppo.batch_size=8", "threads=1"]
    record = run_experiment("experiments/polite.yaml", small, quiet=True)
    assert all(stage.state == "done" for stage in record.stages)


@pytest.mark.slow
def test_the_experiment_of_own_data_runs(run_page, tmp_path):
    run_page("own_data")
    small = [f"sft.model={World.load('default').base_model}", "sft.epochs=1", "ppo.updates=1", "threads=1"]
    record = run_experiment("experiments/my_data.yaml", small, quiet=True)
    assert all(stage.state == "done" for stage in record.stages)
