"""Every command in the README and the documentation would run: the real parsers take it, and its files are there."""

import ast
import importlib
import json
import pkgutil
import re
import tomllib
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

import pytest
import yaml
from doc_pages import PAGES, ROOT, blocks, commands, read, shell_commands, write_files

from rlhf_lab import cli
from rlhf_lab.errors import LabError
from rlhf_lab.workbench.experiments.files import read_yaml, stage_config
from rlhf_lab.workbench.experiments.schema import schemas
from rlhf_lab.workbench.experiments.validate import validate

PLACEHOLDER = re.compile(r"([\w-]+/)*[A-Z][A-Z_]*(\.\w+)?|.*\.\.\..*")  # FILE, kl/ppo/RUN, https://...
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
SETTING = re.compile(r"[A-Za-z_]\w*=.*")


@pytest.fixture
def project(tmp_path, monkeypatch) -> Path:
    """A directory for the files that a page shows."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def there(name: str) -> Path:
    """The file as the page shows it, else that of the repository."""
    path = Path(name) if Path(name).exists() else ROOT / name
    assert path.exists(), f"{name} is not there"
    return path


def check_lab(words: list[str]) -> None:
    parser = cli._parser()
    if len(words) == 1 and words[0] in parser.format_help():
        return  # a command spoken of by its name
    try:
        options, rest = parser.parse_known_args(words)
    except SystemExit:
        raise AssertionError("does not parse") from None
    assert all(SETTING.fullmatch(word.replace(".", "_")) for word in rest), f"unrecognised: {rest}"
    if words[0] == "schema":
        schemas(options.stage)
    if hasattr(options, "file") and not PLACEHOLDER.fullmatch(options.file):
        file = there(options.file)
        if hasattr(options, "parameters"):
            validate(file, [*options.parameters, *rest])


def check_make(words: list[str]) -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    for word in words:
        if SETTING.fullmatch(word):
            name = word.partition("=")[0]
            assert re.search(rf"\b{name}\b", makefile), f"the Makefile knows no {name}"
        else:
            assert re.search(rf"^{re.escape(word)}:.*##", makefile, re.M), f"no target {word} with a help text"


def check_papermill(words: list[str]) -> None:
    notebook, _, *options = words
    given = {}
    while options:
        flag = options.pop(0)
        assert flag in ("-f", "-p"), f"{flag}: not looked at here"
        name = options.pop(0)
        given |= read_yaml(there(name)) if flag == "-f" else {name: options.pop(0)}
    stage_config(Path(notebook).stem, there(notebook)).parse(given, notebook)


def check_click(group, words: list[str]) -> None:
    """A command of a program that is made with click, and the names of its options."""
    command = group
    while words and words[0] in getattr(command, "commands", {}):
        command = command.commands[words[0]]
        words = words[1:]
    assert command is not group, f"no command {words[:1]}"
    known = {name for parameter in command.params for name in [*parameter.opts, *parameter.secondary_opts]}
    unknown = [word for word in words if word[:1] == "-" and word.partition("=")[0] not in known]
    assert unknown == [], f"no options {unknown}"


def check_wandb(words: list[str]) -> None:
    from wandb.cli.cli import cli as wandb

    check_click(wandb, words)


def check_ray(words: list[str]) -> None:
    scripts = pytest.importorskip("ray.scripts.scripts", exc_type=ImportError)
    check_click(scripts.cli, words)


def check_python(words: list[str]) -> None:
    there(words[0])


def check_pip(words: list[str]) -> None:
    assert words[0] in ("install", "download")
    pinned = (ROOT / "constraints.txt").read_text(encoding="utf-8")
    takes_value = {"-c": there, "-r": there, "-d": str, "--find-links": str, "--extra-index-url": str}
    rest = words[1:]
    while rest:
        word = rest.pop(0)
        if word in takes_value:
            takes_value[word](rest.pop(0))
        elif not word.startswith("-"):
            name, extras = re.match(r"[\w-]+|\.", word)[0], re.findall(r"[\w-]+", word.partition("[")[2])
            assert set(extras) <= set(PROJECT["optional-dependencies"]), f"{word}: no such extra"
            assert name in (".", "setuptools", "wheel", PROJECT["name"]) or f"\n{name}==" in pinned, (
                f"{name} is not pinned"
            )


def check_conda(words: list[str]) -> None:
    environment = yaml.safe_load((ROOT / "environment.yml").read_text(encoding="utf-8"))
    if words[0] == "activate":
        assert words[1:] == [environment["name"]]
    else:
        assert words == ["env", "create", "-f", "environment.yml"]


def check_launch(parser, words: list[str]) -> None:
    """A launcher of several processes: its own options, and the file and settings of the lab's module."""
    try:
        options = parser.parse_args(words)
    except SystemExit:
        raise AssertionError("does not parse") from None
    module, *rest = [options.training_script, *options.training_script_args]
    assert options.module and module == "rlhf_lab.workbench.launch", f"not looked at here: {module}"
    file, *settings = rest
    if not PLACEHOLDER.fullmatch(file):
        validate(there(file), settings[1::2])
    assert all(SETTING.fullmatch(word) if number % 2 else word == "-p" for number, word in enumerate(settings))


def check_torchrun(words: list[str]) -> None:
    from torch.distributed.run import get_args_parser

    check_launch(get_args_parser(), words)


def check_accelerate(words: list[str]) -> None:
    from accelerate.commands.launch import launch_command_parser

    if words[0] != "launch" or "-m" not in words:
        assert words[0] in ("config", "launch")  # spoken of
        launch_command_parser().parse_args([*words[1:], "a_script.py"])
        return
    check_launch(launch_command_parser(), words[1:])


def check_export(words: list[str]) -> None:
    assert all(SETTING.fullmatch(word) for word in words)


CHECKS: dict[str, Callable[[list[str]], None]] = {
    "rlhf-lab": check_lab,
    "make": check_make,
    "papermill": check_papermill,
    "wandb": check_wandb,
    "ray": check_ray,
    "python": check_python,
    "pip": check_pip,
    "conda": check_conda,
    "export": check_export,
    "torchrun": check_torchrun,
    "accelerate": check_accelerate,
}


def problems(found: list[list[str]]) -> list[str]:
    """What is wrong with these commands, a line each."""
    told = []
    for program, *words in found:
        try:
            assert program in CHECKS, "no test knows this program"
            CHECKS[program](words)
        except (AssertionError, LabError, OSError) as error:
            told.append(f"{program} {' '.join(words)}: {error}".splitlines()[0])
    return told


@pytest.mark.parametrize("page", PAGES)
def test_every_command_of_a_page_would_run(page, project):
    write_files(page, project)
    assert problems(commands(page, set(CHECKS))) == []


@pytest.mark.parametrize(
    ("command", "expected"),
    [
        ("rlhf-lab rum experiments/quickstart.yaml", "does not parse"),
        ("torchrun --nproc 2 --none -m rlhf_lab.workbench.launch FILE", "does not parse"),
        ("torchrun -m rlhf_lab.workbench.launch experiments/03_ppo/nplus.yaml -p lrr=1", "did you mean 'lr'"),
        ("rlhf-lab run experiments/none.yaml", "experiments/none.yaml is not there"),
        ("rlhf-lab run experiments/quickstart.yaml -p kl_coeff=1", "did you mean 'kl_coef'"),
        ("rlhf-lab run experiments/quickstart.yaml --now", "unrecognised"),
        ("rlhf-lab schema ppp", "no stage 'ppp'"),
        ("make teh-tests", "no target"),
        ("make run RUN_ARG=1", "the Makefile knows no RUN_ARG"),
        ("papermill notebooks/03_ppo.ipynb out.ipynb -p lrr 1", "did you mean 'lr'"),
        ("wandb synk", "no command"),
        ("wandb sync --all-of-it", "no options"),
        ("ray start --heads", "no options"),
        ("python docs/examples/nothing.py", "is not there"),
        ("pip install -e '.[development]'", "no such extra"),
        ("echo a && frobnicate", "no test knows"),
    ],
)
def test_a_command_that_would_not_run_is_found(command, expected, project):
    assert any(expected in line for line in problems(shell_commands(command)))


def test_commands_are_found_in_loops_lists_and_comments():
    text = "for seed in 100 101; do\n  a run -p seed=$seed \\\n    x  # not this\ndone\nA=1 b 'c d' && e > f\n"
    assert shell_commands(text) == [["a", "run", "-p", "seed=100", "x"], ["b", "c d"], ["e"], ["f"]]


def check_yaml(text: str, name: str) -> None:
    """An experiment file, a sweep of wandb, or parameters of a stage. What is none of these, nobody has checked."""
    from rlhf_lab.workbench.stages import STAGES

    file = Path(name or "experiments/block.yaml")
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text, encoding="utf-8")
    content = read_yaml(file)
    if "stages" in content:
        validate(file)
    elif "command" in content:
        assert set(content) <= {"command", "method", "metric", "parameters", "name", "program", "early_terminate"}
        words = [word for word in content["command"] if not word.startswith("${")]
        values = {key: said.get("values", [said.get("min")])[0] for key, said in content["parameters"].items()}
        check_lab([*words[1:], *(f"{key}={value}" for key, value in values.items())])
    else:
        fitting = [model for model in STAGES.values() if set(content) <= set(model.model_fields)]
        assert fitting, f"no stage has all of {list(content)}"
        fitting[0].parse(content, name)


@pytest.mark.parametrize("page", [page for page in PAGES if blocks(page, "yaml")])
def test_every_piece_of_yaml_is_valid(page, project):
    for block in blocks(page, "yaml"):
        check_yaml(block.text, block.name)


@pytest.mark.parametrize("page", [page for page in PAGES if blocks(page, "python")])
def test_every_import_in_python_resolves(page):
    for block in blocks(page, "python"):
        for node in ast.walk(ast.parse(block.text)):
            if isinstance(node, ast.ImportFrom):
                module = importlib.import_module(node.module)
                names = [alias.name for alias in node.names]
                missing = [n for n in names if not hasattr(module, n) and not find_spec(f"{node.module}.{n}")]
                assert missing == [], f"{node.module} has no {missing}"
            elif isinstance(node, ast.Import):
                for alias in node.names:
                    importlib.import_module(alias.name)


@pytest.mark.parametrize("page", PAGES)
def test_every_name_of_the_package_resolves(page):
    for name in re.findall(r"`(rlhf_lab(?:\.\w+)+)`", read(page)):
        assert pkgutil.resolve_name(name) is not None


@pytest.mark.parametrize("page", [page for page in PAGES if blocks(page, "json")])
def test_every_line_of_json_is_json(page):
    for block in blocks(page, "json"):
        assert all(isinstance(json.loads(line), dict) for line in block.text.splitlines())
