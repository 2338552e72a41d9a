"""A study that is resumed under changed code: old lines are left apart, told, and never in one table with new ones."""

import json

import pytest

from rlhf_lab.cli import main
from rlhf_lab.errors import LabError
from rlhf_lab.workbench.studies import code_of as code_module
from rlhf_lab.workbench.studies import finished_lines
from rlhf_lab.workbench.studies.finished_lines import FinishedLines, origin
from rlhf_lab.workbench.studies.units import latest


class Quiet:
    """A run that logs nothing."""

    def __init__(self, folder):
        self.file = folder.joinpath

    def rewind(self, step):
        pass


def key(unit, seed=0):
    return {"unit": unit, "seed": seed, "common": "c", "own": "o", "models": "m"}


@pytest.fixture
def under(tmp_path, monkeypatch):
    """FinishedLines of a file as code of a given digest sees it."""

    def make(code):
        monkeypatch.setattr(finished_lines, "code_of", lambda study: code)
        return FinishedLines(str(tmp_path / "lines.jsonl"), Quiet(tmp_path))

    return make


def test_lines_of_other_code_are_left_apart_and_told(under, capsys):
    under("old").add(key("a"), {"figures": {"gold": 1.0}})
    lines = under("new")
    assert lines.find("a", key("a")) is None
    assert "a: finished before by other code (commit" in capsys.readouterr().out
    lines.add(key("a"), {"figures": {"gold": 2.0}})
    assert lines.find("a", key("a"))["figures"] == {"gold": 2.0}
    back = under("old")  # and going back to the old code finds its own
    assert back.find("a", key("a"))["figures"] == {"gold": 1.0}
    assert len(back.file.read_text().splitlines()) == 2  # nothing was lost


def test_lines_from_before_there_were_digests_count_as_ever(under):
    lines = under("new")
    lines.file.write_text(json.dumps(key("a") | {"figures": {"gold": 1.0}}) + "\n")
    assert lines.find("a", key("a"))["figures"] == {"gold": 1.0}


def test_what_other_code_has_finished_as_a_whole_is_taken_as_a_whole(under, capsys):
    old = under("old")
    old.add(key("a"), {"figures": {"gold": 1.0}})
    lines = under("new")
    lines.settle([key("a"), key("b")])
    assert lines.find("a", key("a")) is None  # b would be of new code
    old.add(key("b"), {"figures": {"gold": 2.0}})
    lines.settle([key("a"), key("b")])
    assert [lines.last(key(unit))["figures"]["gold"] for unit in "ab"] == [1.0, 2.0]
    assert "all is finished, by other code (commit" in capsys.readouterr().out
    for unit, gold in (("a", 3.0), ("b", 4.0)):
        under("new").add(key(unit), {"figures": {"gold": gold}})
    lines.settle([key("a"), key("b")])  # one's own comes first
    assert [lines.last(key(unit))["figures"]["gold"] for unit in "ab"] == [3.0, 4.0]


def test_what_is_finished_by_older_code_than_the_last_line_is_wanted_again(under):
    """Else a table, which is of the last line's code, would lack that seed for ever."""
    under("old").add(key("a", seed=0), {"figures": {"gold": 1.0}})
    under("new").add(key("a", seed=1), {"figures": {"gold": 2.0}})
    lines = under("new")
    lines.settle([key("a", seed=0)])
    assert lines.find("a", key("a", seed=0)) is None


def test_a_model_that_an_experiment_file_makes_is_known_by_its_settings(tmp_path):
    file, folder = tmp_path / "sft.yaml", tmp_path / "model"
    file.write_text("lr: 0.001\n")
    known = origin(str(file), lambda: 1 / 0)  # and is not made for that
    file.write_text("# as before\nlr: 1.0e-3\n")
    assert origin(str(file), lambda: 1 / 0) == known
    file.write_text("lr: 0.002\n")
    assert origin(str(file), lambda: 1 / 0) != known
    folder.mkdir()
    (folder / "model.safetensors").write_text("weights")
    known = origin(str(folder), lambda: str(folder))
    (folder / "model.safetensors").write_text("others")
    assert origin(str(folder), lambda: str(folder)) != known


def test_what_makes_the_models_is_code_of_every_study(monkeypatch):
    assert all((code_module._ROOT / name).is_file() for name in code_module._MAKES)
    whole = code_module.code_of("ensembles")
    code_module.code_of.cache_clear()
    monkeypatch.setattr(code_module, "_MAKES", ())
    assert code_module.code_of("ensembles") != whole
    code_module.code_of.cache_clear()


def test_a_table_holds_lines_of_one_code():
    old, new = ({"code": code} for code in ("old", "new"))
    lines = [key("a", 0) | old, key("a", 1) | old, key("a", 2) | new, key("a", 3)]
    lines = [line | {"figures": {"gold": float(line["seed"])}} for line in lines]
    assert latest(lines[:3]) == ({"a": {2: {"gold": 2.0}}}, 2)
    assert latest([lines[3], *lines[:2]]).units == {"a": {seed: {"gold": float(seed)} for seed in (0, 1, 3)}}


def test_a_broken_line_is_named(under):
    lines = under("new")
    lines.add(key("a"), {"figures": {}})
    with lines.file.open("a") as file:
        file.write('{"unit": "b"\n' + json.dumps(key("c")) + "\n")
    with pytest.raises(LabError, match=r"lines.jsonl, line 2 is broken: it is not a JSON object; mend or delete it"):
        under("new").find("a", key("a"))


@pytest.mark.parametrize("lacks", ["seed", "figures", "results"])
def test_a_line_that_lacks_something_is_named_by_summarise(tmp_path, lacks, capsys):
    line = {"seed": 1, "results": {"sft": {"gold": 1.0}}}
    if lacks == "figures":
        line = key("fair") | {"figures": {}}
    broken = {name: value for name, value in line.items() if name != lacks}
    file = tmp_path / "lines.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in (line, broken, line)))
    assert main(["summarise", str(file)]) == 2
    told = capsys.readouterr().err
    assert f"lines.jsonl, line 2 is broken: it has no '{lacks}'; mend or delete it" in told and told.count("\n") == 1


FILES = {
    "maths/kl.py": "def kl():\n    return 1\n",
    "maths/unused.py": "X = 1\n",
    "sandbox/world.py": "X = 1\n",
    "sandbox/worlds.yaml": "gold: 1\n",
    "training/ppo.py": "def step():\n    from rlhf_lab.maths import kl\n",
    "workbench/plots.py": "X = 1\n",
    "workbench/evaluation.py": "import rlhf_lab.sandbox.world\n",
    "workbench/studies/one.py": "from rlhf_lab.training.ppo import step\n"
    "from rlhf_lab.workbench import evaluation, plots\nfrom rlhf_lab.workbench.studies import one_results, units\n",
    "workbench/studies/one_results.py": "X = 1\n",
    "workbench/studies/units.py": "X = 1\n",
    "workbench/studies/two.py": "X = 1\n",
}


def test_what_changes_the_digest_and_what_does_not(tmp_path, monkeypatch):
    monkeypatch.setattr(code_module, "_ROOT", tmp_path)
    for name, text in FILES.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)

    def with_line(name, line):
        (tmp_path / name).write_text(FILES[name] + line)
        found = code_module.code_of.__wrapped__("one")
        (tmp_path / name).write_text(FILES[name])
        return found

    before = code_module.code_of.__wrapped__("one")
    changing = {
        name for name in FILES if with_line(name, "\nmore: 1\n" if "yaml" in name else "\nMORE = 1\n") != before
    }
    assert changing == {
        "maths/kl.py", "sandbox/world.py", "sandbox/worlds.yaml", "training/ppo.py",
        "workbench/evaluation.py", "workbench/studies/one.py",
    }  # fmt: skip
    assert with_line("maths/kl.py", "\n\n# Words.\n") == before
    text = 'def more():\n    """{}"""\n'
    assert with_line("maths/kl.py", text.format("Words.")) == with_line("maths/kl.py", text.format("Other words."))
    assert code_module.code_of.__wrapped__("two") not in (before, code_module.code_of.__wrapped__(""))
