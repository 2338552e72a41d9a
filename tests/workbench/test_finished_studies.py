"""The recorded lines of the studies are those of the present settings: the notebooks find every unit finished."""

import json

import pytest

from rlhf_lab.workbench import artefacts, session
from rlhf_lab.workbench.experiments.files import read_yaml

SEEDS = [110, 120, 130, 140, 150]
STUDIES = sorted(file.stem for file in (artefacts.HOUSE / "experiments" / "studies").glob("*.yaml"))


class Study:
    """A study's notebook as its experiment file runs it, with a copy of its recorded lines as `results`."""

    def __init__(self, repo, folder, name: str):
        (stage,) = read_yaml(repo / "experiments" / "studies" / f"{name}.yaml")["stages"]
        notebook = json.loads((repo / "notebooks" / f"{stage['notebook']}.ipynb").read_text())
        cells = ["".join(cell["source"]) for cell in notebook["cells"] if cell["cell_type"] == "code"]
        begun = next(place for place, cell in enumerate(cells) if "finished = " in cell) + 1
        self.cells = cells[:begun], [cell for cell in cells[begun:] if "finished.find(" in cell]
        self.results = folder / "results.jsonl"
        self.results.write_text((repo / stage["parameters"]["results"]).read_text())
        self.parameters = stage["parameters"] | {"results": str(self.results)}

    def lines(self) -> list[dict]:
        return [json.loads(line) for line in self.results.read_text().splitlines()]

    def begin(self, seed: int, **changes) -> dict:
        """The notebook's names, once it has looked which units are finished."""
        names: dict = {"__name__": "notebook"}
        parameters, *rest = self.cells[0]
        exec(parameters, names)
        names |= self.parameters | changes | {"seed": seed}
        for cell in rest:
            exec(cell, names)
        return names

    def read(self, names: dict) -> dict:
        """Unit -> seed -> figures, by the cells that take what is finished and make the rest."""
        for cell in self.cells[1]:
            exec(cell, names)
        return names["finished"].units


@pytest.fixture(autouse=True)
def no_model(tmp_path, monkeypatch):
    """A study that wants a model has not found all."""
    monkeypatch.setenv("RLHF_LAB_RUNS", str(tmp_path / "runs"))
    monkeypatch.setenv("WANDB_MODE", "disabled")

    def refuse(value, stage, cfg):
        raise AssertionError(f"{value} is asked for: not every unit is finished")

    monkeypatch.setattr(artefacts, "checkpoint", refuse)
    yield
    for run in session.open_runs():
        run.stop("the test is over")


def test_every_study_has_its_file():
    assert len(STUDIES) == 7


@pytest.mark.parametrize("name", STUDIES)
def test_what_is_recorded_is_finished_under_the_present_settings(repo, tmp_path, name):
    study = Study(repo, tmp_path, name)
    recorded = {}
    for line in study.lines():
        recorded.setdefault(line["seed"], {})[line["unit"]] = line["figures"]
    assert sorted(recorded) == SEEDS
    for seed in (SEEDS[0], SEEDS[-1]):
        found = study.read(study.begin(seed))
        assert {unit: figures[seed] for unit, figures in found.items()} == recorded[seed]


def test_other_settings_are_not_finished(repo, tmp_path):
    study = Study(repo, tmp_path, "kl_coefficient")
    for changes in ({"max_new_tokens": 41}, {"comparisons": 251}, {"labeler": {"flip": 0.1}}):
        with pytest.raises(AssertionError, match="not every unit is finished"):
            study.read(study.begin(SEEDS[0], **changes))


def test_that_lines_of_other_code_are_left_apart_is_told_once(repo, tmp_path, capsys):
    study = Study(repo, tmp_path, "kl_coefficient")
    *lines, lost = [line | {"code": "another"} for line in study.lines() if line["seed"] == SEEDS[0]]
    study.results.write_text("".join(json.dumps(line) + "\n" for line in lines))  # not all, or they would be taken
    names = study.begin(SEEDS[0])
    names["study"] = type("study", (), {"unit": staticmethod(lambda name, ground: {"gold": 1.0})})
    assert len(study.read(names)) == len(lines) + 1 == 13
    told = [line for line in capsys.readouterr().out.splitlines() if "other code" in line]
    assert len(told) == 1 and f"other code (commit {lines[0]['commit']:.7}); its lines are left apart in" in told[0]
    assert [line["unit"] for line in study.lines()[len(lines) :]] == [line["unit"] for line in (*lines, lost)]
