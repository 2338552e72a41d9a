"""Files that a user names, on a full disk: the old one stands, nothing half-written lies about, and one line tells."""

import contextlib
import json
import os
import resource
import threading

import pytest
from tiny import make_policy, make_scorer, make_tokenizer

from rlhf_lab.cli import main
from rlhf_lab.config import Config
from rlhf_lab.errors import LabError
from rlhf_lab.models import LoraConfig, save_policy
from rlhf_lab.models.adapters import SharedBase
from rlhf_lab.workbench.exporting import export
from rlhf_lab.workbench.labelling import LabelFile, export_preferences, pair_items, simulate
from rlhf_lab.workbench.runs import Run
from rlhf_lab.workbench.tracking import TrackingConfig
from rlhf_lab.workbench.writing import write_text


class Settings(Config):
    """Of a stage."""

    lr: float


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    """Two runs, in a folder of their own."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("RLHF_LAB_RUNS", raising=False)
    monkeypatch.setenv("RLHF_LAB_HEADLESS", "1")
    for lr in (0.1, 0.2):
        quiet = TrackingConfig(mode="disabled")
        run = Run.start("ppo", Settings(lr=lr), run_dir=f"runs/x/ppo/{lr}", experiment="x", tracking=quiet)
        run.log({"objective/kl": lr}, step=1)
        run.log({"objective/kl": lr + 1}, step=2)
        run.finish({"gold": lr})
    return tmp_path


@contextlib.contextmanager
def full(room=300):
    """No file can grow beyond so many bytes, as on a disk that is full or under a quota."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (room, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def refusal(call, *arguments, **options):
    with full(), pytest.raises(LabError) as told:
        call(*arguments, **options)
    assert "too large" in str(told.value) and "free some space" in str(told.value)
    assert len(str(told.value).splitlines()) == 1
    return str(told.value)


@pytest.mark.parametrize("name", ["table.csv", "curves.png"])
def test_a_comparison_leaves_the_old_file(here, name, capsys):
    command = ["compare", "x/ppo", "--csv" if name.endswith("csv") else "--figure", name]
    (here / name).write_text("old")
    before = sorted(path.name for path in here.iterdir())
    main(["compare", "x/ppo"])  # fonts and the like are not what is looked at here
    with full(64):
        code = main(command)
    err = capsys.readouterr().err
    assert code == 2 and err.count("\n") == 1 and f"{name} cannot be written (file too large): free some space" in err
    assert (here / name).read_text() == "old" and sorted(path.name for path in here.iterdir()) == before
    assert main(command) == 0 and (here / name).stat().st_size > 64


def test_labels_leave_the_old_file_and_make_the_folder(here):
    file = LabelFile(here / "labels.sqlite", pair_items([{"prompt": "p" * 400, "reply_a": "a", "reply_b": "b"}]))
    simulate(file, "robot", lambda prompt, replies: 0)
    out = here / "new" / "out.jsonl"
    assert export_preferences(file, out).rows == 1
    out.write_text("old")
    assert "out.jsonl cannot be written" in refusal(export_preferences, file, out)
    assert [path.name for path in out.parent.iterdir()] == ["out.jsonl"] and out.read_text() == "old"


@pytest.mark.parametrize("kind", ["policy", "reward model", "adapter apart"])
def test_an_exported_model_is_there_whole_or_not_at_all(here, kind):
    tokenizer = make_tokenizer()
    if kind == "policy":
        save_policy(here / "model", make_policy(), tokenizer)
    elif kind == "reward model":
        make_scorer().save(here / "model", tokenizer)
    else:
        save_policy(here / "base", make_policy(seed=5), tokenizer)
        SharedBase(here / "base").scorer(LoraConfig(rank=2), head="new").save(here / "model", tokenizer)
    before = sorted(path.name for path in here.iterdir())
    line = refusal(export, "model", "out", apart="apart" in kind)
    assert line.startswith("out") and ".out" not in line and "cannot be written" in line
    assert sorted(path.name for path in here.iterdir()) == before
    assert export("model", "out", apart="apart" in kind).path == here / "out"


@pytest.mark.skipif(os.name == "nt", reason="named pipes")
def test_what_is_no_file_of_its_own_is_written_into_and_not_replaced(here):
    """Such as /dev/stdout, which root would otherwise lose."""
    os.mkfifo(here / "pipe")
    (here / "link").symlink_to(here / "file")
    read = []
    reader = threading.Thread(target=lambda: read.append((here / "pipe").read_text()), daemon=True)
    reader.start()
    for name in ("pipe", "link"):
        assert main(["compare", "x/ppo", "--csv", name]) == 0
    reader.join(30)
    assert read == [(here / "file").read_text()] and "lr" in read[0]
    assert (here / "pipe").is_fifo() and (here / "link").is_symlink()
    with pytest.raises(LabError, match="runs cannot be written .is a directory.: name a file"):
        write_text(here / "runs", json.dumps({}))
    assert sorted(path.name for path in here.iterdir()) == ["file", "link", "pipe", "runs"]
