"""What a sweep would run, what is refused before anything starts, and why a stage runs again. Starts no kernel."""

import json
import shutil

import pytest
import yaml
from small_notebooks import write_notebook

import rlhf_lab
from rlhf_lab import cli
from rlhf_lab.errors import LabError
from rlhf_lab.workbench.experiments import fingerprint
from rlhf_lab.workbench.experiments.jobs import jobs_of
from rlhf_lab.workbench.experiments.pipeline import plan_in_words
from rlhf_lab.workbench.experiments.validate import validate
from rlhf_lab.workbench.records import mark_queued
from rlhf_lab.workbench.writing import write_json

PARAMETERS = 'lr: float = 0.5\npolicy: str = ""\nseed: int = 0\nthreads: int = 0\noptions: dict = {}\nrun_dir: str = ""'


EXAMPLE = "experiments/quickstart.yaml"


@pytest.fixture(autouse=True)
def project(tmp_path, monkeypatch):
    monkeypatch.delenv("RLHF_LAB_RUNS", raising=False)
    monkeypatch.chdir(tmp_path)
    for name in ("sft", "rm", "ppo"):
        write_notebook(tmp_path / "notebooks" / f"{name}.ipynb", "print(lr)", parameters=PARAMETERS)
    return tmp_path


def sweep(project, grid, **parameters):
    """A file of the stages sft, rm (of sft) and ppo (of both)."""
    takes = {"sft": "", "rm": "{sft}", "ppo": "{rm}/checkpoint"}
    stages = [
        {"name": name, "notebook": name, "parameters": {"policy": policy, **parameters.get(name, {})}}
        for name, policy in takes.items()
    ]
    stages[2]["parameters"]["options"] = {"reference": "{sft}"}
    file = project / "sweep.yaml"
    content = {"experiment": "demo", "stages": stages} | ({} if grid is None else {"sweep": grid})
    file.write_text(yaml.safe_dump(content, sort_keys=False))
    return file


def titles(file, *overrides):
    return [job.title for job in jobs_of(validate(file, overrides))[0]]


@pytest.mark.parametrize(
    ("grid", "expected"),
    [
        (None, ["sft", "rm", "ppo"]),
        ({"ppo.lr": [1, 2]}, ["sft", "rm", "ppo lr=1", "ppo lr=2"]),
        ({"rm.lr": [1, 2]}, ["sft", "rm lr=1", "ppo lr=1", "rm lr=2", "ppo lr=2"]),
        ({"seeds": [7]}, ["sft", "rm", "ppo"]),  # a single value distinguishes nothing
        ({"seeds": [7, 8]}, [f"{stage} seed={seed}" for seed in (7, 8) for stage in ("sft", "rm", "ppo")]),
        (
            {"rm.lr": [1, 2], "ppo.seed": [7, 8], "ppo.options.beta": [0.5]},
            ["sft", "rm lr=1", "ppo lr=1 seed=7", "ppo lr=1 seed=8", "rm lr=2", "ppo lr=2 seed=7", "ppo lr=2 seed=8"],
        ),
        ({"rm.lr": [1, 2], "ppo.lr": [3]}, ["sft", "rm lr=1", "ppo lr=1", "rm lr=2", "ppo lr=2"]),
        ({"rm.lr": [1], "ppo.lr": [3, 4]}, ["sft", "rm", "ppo lr=3", "ppo lr=4"]),
    ],
)
def test_a_stage_is_one_job_for_all_points_that_agree_on_what_matters_to_it(project, grid, expected):
    assert titles(sweep(project, grid)) == expected


def test_the_values_of_a_point_reach_its_stages_and_what_they_take_from(project):
    jobs, points = jobs_of(validate(sweep(project, {"rm.lr": [1, 2], "ppo.options.beta": [3, 4]})))
    assert len(jobs) == 1 + 2 + 4 and len(points) == 4
    ppo = points[3]["ppo"]
    assert ppo.stage.parameters["options"] == {"reference": "{sft}", "beta": 4}
    assert ppo.inputs["rm"].stage.parameters["lr"] == 2 and ppo.inputs["rm"] is points[2]["rm"]
    assert ppo.inputs["sft"] is points[0]["sft"]


def test_an_override_of_a_swept_key_takes_it_out_of_the_grid(project):
    file = sweep(project, {"rm.lr": [1, 2], "seeds": [7, 8]})
    assert titles(file, "seed=9") == ["sft", "rm lr=1", "ppo lr=1", "rm lr=2", "ppo lr=2"]
    assert {job.stage.parameters["seed"] for job in jobs_of(validate(file, ["seed=9"]))[0]} == {9}


def test_an_override_that_sets_all_that_a_swept_key_sets_leaves_no_point_twice(project):
    ppo = sweep(project, {"ppo.lr": [1, 2]})
    assert titles(ppo, "lr=3") == titles(ppo, "sft.lr=3", "ppo.lr=3") == ["sft", "rm", "ppo"]
    assert titles(ppo, "sft.lr=3") == ["sft", "rm", "ppo lr=1", "ppo lr=2"]
    assert titles(sweep(project, {"ppo.options.beta": [1, 2]}), "ppo.options={}") == ["sft", "rm", "ppo"]
    every = sweep(project, {"lr": [1, 2]})
    assert titles(every, "sft.lr=3", "rm.lr=3", "ppo.lr=3") == ["sft", "rm", "ppo"]
    assert titles(every, "ppo.lr=3") == ["sft lr=1", "rm lr=1", "ppo lr=1", "sft lr=2", "rm lr=2", "ppo lr=2"]
    with pytest.raises(LabError, match=r"'options=.* are the same run"):
        titles(sweep(project, {"ppo.options": [{"beta": 1}, {"beta": 2}]}), "ppo.options.beta=3")


@pytest.mark.parametrize(
    ("grid", "expected"),
    [
        ({}, "sweep: names no key"),
        ({"lr": []}, "sweep: 'lr' has no values"),
        ({"lr": 3}, "parameter 'sweep.lr' is 3"),
        ({"critic.lr": [1]}, "no stage of .* is called 'critic' or has a parameter 'critic' .its stages: sft, rm, ppo"),
        ({"ppo": [1]}, "'ppo' is a stage of .*; name a parameter of it, as ppo.KEY"),
        ({"lrr": [1]}, "sweep: no stage of .* has a parameter 'lrr' .did you mean 'lr'"),
        ({"pp.lr": [1]}, "has a parameter 'pp' .did you mean 'ppo'"),
        ({"ppo.lrr": [1]}, r"stage ppo \(lrr=1\): unknown parameter 'lrr' .did you mean 'lr'"),
        ({"ppo.lr": [1, "fast"]}, r"stage ppo \(lr=fast\): parameter 'lr' is 'fast'"),
        ({"lr": [1, 2, 1]}, "sweep: 'lr' has the value 1 twice"),
        ({"seeds": [7, 8, 7]}, "sweep: 'seeds' has the value 7 twice"),
        ({"lr": [1, 1.0]}, "sweep: 'lr=1' and 'lr=1.0' are the same run"),
        ({"ppo.lr": [1, 2], "lr": [3, 4]}, "sweep: 'ppo.lr' has no effect, 'lr' below it sets the same"),
        ({"seed": [1], "seeds": [2]}, "'seed' and 'seeds' are the same"),
        ({"run_dir": ["a", "b"]}, "'run_dir' says where a run is kept"),
        ({"ppo.policy": ["{sft}", "{pppo}"]}, "'{pppo}' refers to no earlier stage"),
        ({"ppo.policy": ["{ppo}"]}, "'{ppo}' refers to no earlier stage"),
        ({"sft.policy": ["{ppo}"]}, "'{ppo}' refers to no earlier stage .* break the cycle"),
        ({"lr": list(range(200)), "seeds": list(range(200))}, "40,000 points"),
    ],
)
def test_a_wrong_sweep_is_one_line_before_anything_starts(project, capsys, grid, expected):
    file = sweep(project, grid)
    with pytest.raises(LabError, match=expected) as told:
        validate(file)
    assert str(told.value).startswith(str(file)) and "\n" not in str(told.value)
    assert cli.main(["run", str(file)]) == 2 and capsys.readouterr().err.count("\n") == 1
    assert not (project / "runs").exists()


def test_a_sweep_under_which_nothing_stands_and_a_file_in_which_nothing_stands(project, capsys):
    file = sweep(project, None)
    file.write_text(file.read_text() + "sweep:\n# lr: [1, 2]\n")
    assert cli.main(["run", str(file)]) == 2 and "sweep: names no key" in capsys.readouterr().err
    file.write_text("# lr: 1\n")
    assert cli.main(["run", str(file)]) == 2
    assert capsys.readouterr().err == f"rlhf-lab: {file}: is empty; give 'experiment:' and 'stages:', as in {EXAMPLE}\n"
    assert not (project / "runs").exists()


def test_two_jobs_never_write_into_one_directory(project):
    for parameters in (
        {"rm": {"run_dir": "x"}, "ppo": {"run_dir": "x/y"}},
        {"rm": {"run_dir": "x"}, "ppo": {"run_dir": "x"}},
    ):
        with pytest.raises(LabError, match=r"stage ppo: run_dir .* is an earlier stage's \(rm\)"):
            jobs_of(validate(sweep(project, None, **parameters)))
    with pytest.raises(LabError, match=r"stage ppo lr=2: run_dir .* is an earlier stage's \(ppo lr=1\)"):
        jobs_of(validate(sweep(project, {"ppo.lr": [1, 2]}, ppo={"run_dir": "x"})))
    folder = project / "experiments" / "ppo"
    folder.mkdir(parents=True)
    (folder / "flat.yaml").write_text("sweep: {lr: [1]}\n")
    with pytest.raises(LabError, match="a sweep stands in a file with 'stages:'"):
        validate(folder / "flat.yaml")


# ------------------------------------------------------------------------------------------------ why again


def pretend_done(file, *overrides):
    """What the runner leaves behind each job, without running anything."""
    jobs, _ = jobs_of(validate(file, overrides))
    run_dirs = {}
    for job in jobs:
        run_dir = file.parent / "runs" / "demo" / job.stage.name / job.name
        inputs = {name: run_dirs[other] for name, other in job.inputs.items()}
        mark_queued(run_dir, stage=job.stage.name, experiment="demo")
        fingerprint.write_made_from(run_dir, fingerprint.made_from(job, inputs))
        (run_dir / "checkpoint").mkdir()
        (run_dir / "checkpoint" / "w.bin").write_text(job.title)
        write_json(run_dir / "status.json", {"state": "done", "started": f"2026-01-01T00:00:{job.number:02d}+00:00"})
        fingerprint.seal(run_dir)
        run_dirs[job] = run_dir
    return run_dirs


def words(file, *overrides, **options):
    """The lines of --dry-run by stage."""
    return {
        line.split("  ")[0]: " ".join(line.split())
        for line in plan_in_words(file, overrides, **options).splitlines()[1:]
    }


def edit_code(project, monkeypatch):
    write_notebook(project / "notebooks" / "rm.ipynb", "print(lr) # again", parameters=PARAMETERS)


def edit_weights(project, monkeypatch):
    (project / "runs/demo/rm/rm/checkpoint/w.bin").write_text("other")


def edit_with_the_same_length(project, monkeypatch):
    (project / "runs/demo/rm/rm/checkpoint/w.bin").write_text("RM")


def delete_weights(project, monkeypatch):
    (project / "runs/demo/rm/rm/checkpoint/w.bin").unlink()


def delete_run(project, monkeypatch):
    shutil.rmtree(project / "runs/demo/rm/rm")


def fail(project, monkeypatch):
    file = project / "runs/demo/rm/rm/status.json"
    file.write_text(json.dumps({"state": "failed", "reason": "NaN"}))


def cut_short(project, monkeypatch):
    """It has left a checkpoint, but the disk was full when its end was to be told."""
    (project / "runs/demo/rm/rm/status.json").write_text(json.dumps({"state": "queued"}))


@pytest.mark.parametrize(
    ("change", "rm"),
    [
        (edit_code, "rm run changed: code cells"),
        (edit_weights, "rm run runs/demo/rm/rm: checkpoint/w.bin was edited"),
        (edit_with_the_same_length, "rm run runs/demo/rm/rm: checkpoint/w.bin was edited"),
        (delete_weights, "rm run runs/demo/rm/rm: checkpoint/w.bin was deleted"),
        (delete_run, "rm run new"),
        (fail, "rm run failed before: NaN"),
        (cut_short, "rm run was cut short before"),
    ],
)
def test_a_change_runs_a_stage_again_and_what_takes_from_it_if_that_differs(project, monkeypatch, change, rm):
    file = sweep(project, None)
    pretend_done(file)
    change(project, monkeypatch)
    found = words(file)
    assert found["sft"].startswith("sft skip unchanged")
    assert found["rm"] == rm
    assert found["ppo"] == "ppo run unless rm comes out as before"


def test_every_ingredient_of_the_rule_counts_and_nothing_else(project, monkeypatch):
    data = project / "data.jsonl"
    data.write_text("{}")
    file = sweep(project, None, sft={"options": {"data": "data.jsonl", "reward": "mine.py:polite"}})
    (project / "mine.py").write_text("a")
    pretend_done(file)
    assert all(" skip " in line for line in words(file).values())

    notebook = project / "notebooks" / "sft.ipynb"  # saved by JupyterLab: outputs, counts, a text
    content = json.loads(notebook.read_text())
    content["cells"][1] |= {
        "outputs": [{"output_type": "stream", "name": "stdout", "text": "0.5"}],
        "execution_count": 3,
    }
    content["cells"].append({"cell_type": "markdown", "metadata": {}, "source": "a thought", "id": "x"})
    notebook.write_text(json.dumps(content))
    assert " skip " in words(file)["sft"]
    assert " skip " in words(file, "threads=3")["sft"]  # how it runs, not what it does

    assert words(file, "sft.lr=0.25")["sft"] == "sft run changed: parameter lr: 0.5 -> 0.25"
    assert words(file, fresh=True)["sft"] == "sft run asked for"
    for path in (data, project / "mine.py"):
        before = path.read_text()
        path.write_text("other")
        assert words(file)["sft"] == f"sft run changed: input {path.name}"
        path.write_text(before)
    assert " skip " in words(file)["sft"]
    with monkeypatch.context() as patch:
        patch.setattr(fingerprint, "versions", lambda: {"torch": "1.0", "transformers": "5", "trl": "1"})
        assert words(file)["sft"].startswith("sft run changed: torch ") and "-> 1.0" in words(file)["sft"]
    package = project / "copy"
    computing = [f"workbench/{name if name.endswith('.py') else name + '/x.py'}" for name in fingerprint.COMPUTES]
    for name in ("maths/kl.py", "workbench/runs.py", "config.py", "cli.py", "maths/__pycache__/kl.pyc", *computing):
        (package / name).parent.mkdir(parents=True, exist_ok=True)
        (package / name).write_text("x")
    monkeypatch.setattr(rlhf_lab, "__file__", str(package / "__init__.py"))
    digest = fingerprint.package_source()
    for name, counts in {
        "workbench/runs.py": False,
        "cli.py": False,
        "maths/__pycache__/kl.pyc": False,
        "maths/kl.py": True,
        "config.py": True,
        **dict.fromkeys(computing, True),
    }.items():
        (package / name).write_text("y")
        assert (fingerprint.package_source() != digest) == counts, name
        digest = fingerprint.package_source()
    assert words(file)["sft"] == "sft run changed: source of the package"


def test_a_given_directory_that_holds_another_run_is_refused_before_anything_starts(project):
    file = sweep(project, None, rm={"run_dir": "mine"})
    mark_queued(project / "mine")
    write_json(project / "mine" / "status.json", {"state": "done"})
    with pytest.raises(LabError, match="stage rm: run_dir .*mine holds a run already; give a new one"):
        plan_in_words(file)


# ------------------------------------------------------------------------------------------------ the commands


def test_status_rm_and_schema(project, capsys):
    run_dirs = list(pretend_done(sweep(project, None)).values())
    assert cli.main(["status"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[:2] for line in lines[1:]] == [[f"demo/{s}/{s}", "done"] for s in ("ppo", "rm", "sft")]
    assert cli.main(["status", "none"]) == 2 and "holds no run of none" in capsys.readouterr().err

    assert cli.main(["rm", "runs/demo/ppo/ppo"]) == 2  # nobody to ask
    assert "say --yes" in capsys.readouterr().err and run_dirs[2].exists()
    assert cli.main(["rm", "rm/rm", "nothing", "--yes"]) == 2
    assert "nothing: no such run" in capsys.readouterr().err and run_dirs[1].exists()
    assert cli.main(["rm", "rm/rm", str(run_dirs[2]), "--yes"]) == 0 and "deleted 2 runs" in capsys.readouterr().out
    assert [run_dir.exists() for run_dir in run_dirs] == [True, False, False]
    for status, told in {
        "done": "is done; there is nothing to stop",
        "failed": "has failed; there is nothing to stop",
        "queued": "has not begun; stop the command that will start it",
    }.items():
        write_json(run_dirs[0] / "status.json", {"state": status})
        assert cli.main(["stop", "demo/sft/sft"]) == 2
        assert capsys.readouterr().err == f"rlhf-lab: runs/demo/sft/sft {told}\n"
    (run_dirs[0] / "status.json").write_text("{")
    assert cli.main(["rm", "sft/sft", "--yes"]) == 2 and run_dirs[0].exists()  # it may be alive
    assert "it is not the JSON of a run's status; mend it, or delete the run" in capsys.readouterr().err
    write_json(run_dirs[0] / "status.json", {"state": "done"})

    assert cli.main(["schema", "ppo"]) == 0
    assert json.loads(capsys.readouterr().out)["properties"]["kl_coef"]["type"] == "number"
    assert cli.main(["schema"]) == 0
    assert {"experiment", "01_sft", "04_judge_bias"} <= json.loads(capsys.readouterr().out).keys()
    assert cli.main(["schema", "pp0"]) == 2 and "did you mean 'ppo'" in capsys.readouterr().err


def test_the_words_of_wandb_agent_are_parameters(project, capsys):
    """`${args_no_hyphens}` of a sweep's command becomes key=value words, as wandb's own function makes them."""
    from wandb.sdk.launch.sweeps.utils import create_sweep_command_args

    given = create_sweep_command_args({"args": {"ppo.lr": {"value": 0.25}, "seed": {"value": 3}}})["args_no_hyphens"]
    file = sweep(project, None)
    for command in (
        ["run", str(file), "-n", *given],
        ["run", str(file), "-n", "-p", *given],
        ["run", "-n", "-p", given[0], str(file), given[1]],
    ):
        assert cli.main(command) == 0
        assert "ppo" in capsys.readouterr().out
    pretend_done(file, *given)
    assert cli.main(["run", str(file), "-n", *given]) == 0
    assert "3 to skip" in capsys.readouterr().out
    for wrong in (["run", str(file), "--lr=1"], ["run", str(file), "lr"], ["doctor", "lr=1"]):
        with pytest.raises(SystemExit):
            cli.main(wrong)
