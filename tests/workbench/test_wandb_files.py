"""Reading foreign wandb directories: made by the real wandb and held against its own reader, and written by hand."""

import json
import math
import os
import random
import shutil
import struct
import subprocess
import sys
import time
import zlib

import pandas as pd
import pytest
from wandb.proto.wandb_internal_pb2 import Record

from rlhf_lab.errors import LabError
from rlhf_lab.workbench.comparing.wandb_files import is_wandb, read_wandb

BODY = """
import os, signal, time, wandb
quiet = wandb.Settings(console="off", silent=True, save_code=False)
config = {"lr": 1e-5, "ppo": {"clip": 0.2, "betas": [0.9, {"deep": None}]}, "long": "x" * 100_000}
labels = {"project": "thesis", "group": "sweep 3", "job_type": "ppo", "tags": ["gold", "long"], "name": "first"}
run = wandb.init(mode="offline", config=config, settings=quiet, **labels)
run.define_metric("env/episode")
run.define_metric("*", step_metric="env/episode")
for i in range(1, 201):
    run.log({"env/episode": 64 * i, "objective/kl": i / 8, "nested": {"loss": -i}, "note": "text"})
    if i in (100, 200):
        table = wandb.Table(columns=["prompt", "score"], data=[["p", i], ["q", None]])
        run.log({"replies": table, "env/episode": 64 * i})
run.log({"env/episode": 64 * 201, "objective/kl": float("nan"), "hist": wandb.Histogram([1, 2, 3], num_bins=2)})
run.config.update({"late": {"seed": 7}})
run.summary["gold"] = {"mean": 1.5}
run.finish()
for first, last, value in ((0, 50, 1.0), (30, 70, 2.0)):
    time.sleep(1 if first else 0)  # directories are named by the second
    run = wandb.init(mode="offline", id="again", resume="allow", config={"from": first}, settings=quiet)
    run.define_metric("*", step_metric="train/global_step")
    for step in range(first, last, 10):
        run.log({"train/global_step": step, "loss": value})
    run.finish(exit_code=1 if last == 50 else 0)
run = wandb.init(mode="offline", id="killed", settings=quiet)
for i in range(300):
    run.log({"loss": i})
time.sleep(0.5)
os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder `wandb` with a whole run, one of two directories, and a killed one."""
    here = tmp_path_factory.mktemp("foreign")
    env = {name: value for name, value in os.environ.items() if not name.startswith("WANDB_")}
    env |= {"HOME": str(here / "home"), "WANDB_DATA_DIR": str(here / "staging")}
    done = subprocess.run([sys.executable, "-c", BODY], cwd=here, env=env, capture_output=True, text=True, timeout=120)
    assert done.returncode == -9, done.stderr
    return here / "wandb"


@pytest.fixture(scope="module")
def runs(folder):
    return read_wandb(folder)


def leet(file, *options):
    """What wandb's own reader finds."""
    command = [sys.executable, "-m", "wandb", "leet", "inspect", "--json", *options, str(file)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    if done.returncode:
        pytest.skip(f"this wandb cannot read its files back: {done.stderr.strip()[:100]}")
    return [json.loads(line) for line in done.stdout.splitlines()] if not options else json.loads(done.stdout)


def file_of(run):
    return next(run.paths[-1].glob("*.wandb"))


# --- by the real wandb


def test_a_folder_holds_its_runs_in_order_of_time(folder, runs, capsys):
    assert [run.id for run in runs] == [runs[0].id, "again", "killed"]
    assert [len(run.paths) for run in runs] == [1, 2, 1]
    assert read_wandb(folder)[1].id == "again"
    assert capsys.readouterr().err == ""  # nothing was left out
    assert is_wandb(folder)
    assert is_wandb(runs[0].paths[0])
    assert is_wandb(file_of(runs[0]))
    assert not is_wandb(folder.parent)
    assert not is_wandb(runs[0].paths[0] / "files")


def test_what_wandbs_own_reader_finds_is_found(runs):
    run = runs[0]
    told = leet(file_of(run), "--summary")
    assert (run.id, run.name, run.project) == (told["run_id"], told["name"], told["project"])
    assert set(run.tags) == set(told["tags"])
    assert run.config == {name: value for name, value in told["config"].items() if name != "_wandb"}
    records = leet(file_of(run))
    (labels,) = [record["run"] for record in records if record["type"] == "run"]
    assert (run.group, run.job_type) == (labels["run_group"], labels["job_type"])
    items = [record["history"]["item"] for record in records if record["type"] == "history"]
    kl = {item["env/episode"]: float(item["objective/kl"]) for item in items if "objective/kl" in item}
    assert len(kl) == 201
    pd.testing.assert_series_equal(
        run.metrics.set_index("env/episode")["objective/kl"], pd.Series(kl), check_names=False, check_index_type=False
    )
    assert run.summary["gold"] == told["summary"]["gold"]


def test_a_run_is_as_it_was_logged(runs):
    run = runs[0]
    assert (run.x, run.state) == ("env/episode", "done")
    names = ["env/episode", "objective/kl", "nested.loss"]
    assert {*run.metrics} == {*names}  # wandb writes them in any order
    assert (run.group, run.job_type, sorted(run.tags), run.name) == ("sweep 3", "ppo", ["gold", "long"], "first")
    assert run.config["ppo"] == {"clip": 0.2, "betas": [0.9, {"deep": None}]}
    assert run.config["late"] == {"seed": 7}
    assert len(run.config["long"]) == 100_000  # an entry of four blocks
    assert run.metrics[names].iloc[9].tolist() == [640, 1.25, -10]
    assert math.isnan(run.metrics.iloc[-1]["objective/kl"])
    assert run.summary["gold"] == {"mean": 1.5}
    assert not {"hist", "replies"} & run.summary.keys()


def test_tables_carry_the_step_they_were_logged_at(runs):
    (table,) = runs[0].samples.values()
    assert list(table) == ["env/episode", "prompt", "score"]
    assert table["env/episode"].tolist() == [6400, 6400, 12800, 12800]
    assert table["score"].fillna(-1).tolist() == [100, -1, 200, -1]


def test_the_directories_of_a_resumed_run_are_put_together(runs):
    run = runs[1]
    assert run.x == "train/global_step"
    assert run.metrics["train/global_step"].tolist() == [0, 10, 20, 30, 40, 50, 60]
    assert run.metrics["loss"].tolist() == [1, 1, 1, 2, 2, 2, 2]  # from 30 on by the later directory
    assert (run.config, run.state) == ({"from": 30}, "done")
    assert run.paths[0].name < run.paths[1].name


def test_a_killed_run_is_read_as_far_as_it_goes(runs, folder, tmp_path):
    run = runs[2]
    items = [record["history"]["item"] for record in leet(file_of(run)) if record["type"] == "history"]
    assert run.metrics["loss"].tolist() == [item["loss"] for item in items] == list(range(len(items)))
    assert len(items) > 100  # of 300: what wandb had not written yet is lost
    assert (run.x, run.state) == ("_step", "running")
    copy = shutil.copytree(run.paths[0], tmp_path / run.paths[0].name)
    long_ago = time.time() - 3600
    os.utime(next(copy.glob("*.wandb")), (long_ago, long_ago))
    assert read_wandb(copy)[0].state == "died"


def test_a_torn_file_gives_its_first_rows_and_no_complaint(runs, tmp_path, capsys):
    data = file_of(runs[1]).read_bytes()
    losses = [2.0] * 4
    seen = []
    for cut in range(1000, len(data), 37):
        (tmp_path / "run-again.wandb").write_bytes(data[:cut])
        (run,) = read_wandb(tmp_path / "run-again.wandb")
        seen.append(len(run.metrics))
        assert run.metrics["loss"].tolist() == losses[: seen[-1]] if seen[-1] else run.metrics.empty
    assert seen == sorted(seen)
    assert set(seen) == {0, 1, 2, 3, 4}
    assert capsys.readouterr().err == ""


def test_a_flipped_byte_costs_one_record_and_one_line(runs, tmp_path, capsys):
    data = file_of(runs[2]).read_bytes()
    end = len(data) - 2000  # the last records might pass for a torn end
    whole = set(runs[2].metrics["loss"])
    for place in random.Random(0).sample(range(7, end), 40):
        broken = bytearray(data)
        broken[place] ^= 0x10
        (tmp_path / "run-killed.wandb").write_bytes(broken)
        (run,) = read_wandb(tmp_path)
        lost = whole - set(run.metrics["loss"])
        assert len(lost) <= 1, place
        assert run.id == "killed"
        (line,) = capsys.readouterr().err.splitlines()
        assert "run-killed.wandb (wandb " in line or place < 200
        assert "left out 1 broken or unknown records" in line


# --- by hand


def history(step=0, **values):
    items = [{"key": name, "value_json": json.dumps(value)} for name, value in values.items()]
    return Record(history={"item": items, "step": {"num": step}})


def metric(name, step):
    return Record(metric={"glob_name" if "*" in name else "name": name, "step_metric": step})


def piece(kind, body):
    return struct.pack("<IHB", zlib.crc32(bytes([kind]) + body), len(body), kind) + body


def write(folder, records, *, name="hand", ident=b":W&B\xe1\xbe\x00"):
    """A .wandb file in one block: after the head, for each record checksum, length, kind 1 and the message."""
    folder.mkdir(parents=True, exist_ok=True)
    data = ident
    for record in records:
        data += piece(1, record.SerializeToString())
    assert len(data) < 32768
    (folder / f"run-{name}.wandb").write_bytes(data)
    return folder


@pytest.mark.parametrize("left", [0, 1, 6, 7, 8])
def test_entries_at_the_end_of_a_block(tmp_path, left, capsys):
    """LevelDB: fewer than 7 bytes left are filled with zeros; in 7 an entry begins without a byte of its own."""
    first = a_run(notes="n" * (32768 - 7 - 7 - left - len(a_run(notes="n" * 32000).SerializeToString()) + 32000))
    second = history(v=5).SerializeToString()
    data = b":W&B\xe1\xbe\x00" + piece(1, first.SerializeToString())
    assert len(data) == 32768 - left
    here = left - 7
    data += bytes(left) + piece(1, second) if here < 0 else piece(2, second[:here]) + piece(4, second[here:])
    (tmp_path / "run-hand.wandb").write_bytes(data)
    (run,) = read_wandb(tmp_path)
    assert run.metrics["v"].tolist() == [5]
    assert capsys.readouterr().err == ""


def a_run(**more):
    return Record(run={"run_id": "hand"} | more)


def test_the_layout_of_wandb_0_15(tmp_path):
    """As wandb 0.15.12 writes it: an empty header, nested values whole, a media entry whole, no step in the header."""
    where = tmp_path / "offline-run-20230901_101010-hand"
    (where / "files/media/table").mkdir(parents=True)
    (where / "files/media/table/t.table.json").write_text('{"columns": ["prompt", "x"], "data": [["p", NaN]]}')
    config = [{"key": "nest", "value_json": '{"a": [1, {"b": 2}]}'}, {"key": "_wandb", "value_json": "{}"}]
    telemetry = {"cli_version": "0.15.12"}
    table = {"_type": "table-file", "path": "media/table/t.table.json", "ncols": 2, "nrows": 1}
    records = [
        Record(header={}),
        a_run(run_group="g", job_type="sft", config={"update": config}, telemetry=telemetry),
        metric("*", "episode"),
        history(0, episode=0, nested={"x": 3}, bad=float("nan"), _runtime=0.1, _timestamp=1.0, _step=0),
        history(1, episode=10, nested={"x": 4}, _step=1),
        history(2, episode=20, samples=table, _step=2),
        Record(exit={"exit_code": 1}),
        Record(summary={"update": [{"key": "episode", "value_json": "20"}]}),
    ]
    (run,) = read_wandb(write(where, records))
    assert (run.x, run.state, run.config, run.summary) == (
        "episode",
        "failed",
        {"nest": {"a": [1, {"b": 2}]}},
        {"episode": 20},
    )
    assert run.metrics[["episode", "nested.x"]].values.tolist() == [[0, 3], [10, 4]]
    assert run.samples["samples"][["episode", "prompt"]].values.tolist() == [[20, "p"]]


@pytest.mark.parametrize(
    ("records", "x", "expected"),
    [
        ([metric("train/*", "b"), metric("*", "a"), history(a=1, b=5, v=2)], "a", [[1, 5, 2]]),
        ([metric("*", "never"), history(episode=3, v=1)], "episode", [[3, 1]]),
        ([history(**{"episode": 3, "train/global_step": 4, "v": 1})], "train/global_step", [[4, 3, 1]]),
        # in one row of three it is no step of the run: the other rows would be lost
        ([history(0, v=1), history(1, v=2), history(2, v=3, episode=8)], "_step", [[0, 1], [1, 2], [2, 3]]),
        # a row without the step belongs to the one before; rows of one step become one
        ([history(episode=3, v=1), history(1, w=2), history(2, episode=4, v=5)], "episode", [[3, 1, 2], [4, 5, None]]),
    ],
)
def test_the_runs_own_step(tmp_path, records, x, expected):
    (run,) = read_wandb(write(tmp_path, [a_run(), *records]))
    assert (run.x, next(iter(run.metrics))) == (x, x)
    rows = run.metrics.astype(object).where(run.metrics.notna(), None).values.tolist()
    assert [row[: len(wanted)] for row, wanted in zip(rows, expected, strict=True)] == expected


def test_wandbs_own_step_goes_on_in_a_resumed_run(tmp_path):
    for second, (seconds, first) in enumerate(((10, 0), (20, 0), (30, 4))):
        records = [a_run(start_time={"seconds": seconds}), *(history(first + i, v=second) for i in range(2))]
        write(tmp_path / f"offline-run-20260101_00000{9 - second}-hand", records)  # names lie: a clock was set back
    (run,) = read_wandb(tmp_path)
    assert run.metrics.values.tolist() == [[0, 0], [1, 0], [2, 1], [3, 1], [4, 2], [5, 2]]


def test_config_and_summary_follow_later_changes(tmp_path):
    def change(kind, update, remove=()):
        items = [{"nested_key": path, "value_json": json.dumps(value)} for path, value in update]
        return Record(**{kind: {"update": items, "remove": [{"nested_key": path} for path in remove]}})

    records = [
        a_run(),
        change("config", [(["a"], {"b": 1, "c": 2}), (["d"], 3)]),
        change("config", [(["a", "b"], 5)], remove=[["a", "c"], ["d"]]),
        change("summary", [(["gold", "mean"], 1.5), (["hist"], {"_type": "histogram"})]),
    ]
    (run,) = read_wandb(write(tmp_path, records))
    assert (run.config, run.summary) == ({"a": {"b": 5}}, {"gold": {"mean": 1.5}})
    assert (len(run.metrics), list(run.metrics)) == (0, ["_step"])


def test_what_is_left_out_is_told_in_one_line(tmp_path, capsys):
    table = {"_type": "table-file", "path": "media/table/gone.json"}
    records = [
        Record(header={"version_info": {"producer": "9.9.9+abc"}}),
        a_run(),
        metric("*", "episode"),
        history(0, v=1),  # before any episode
        history(1, v=1, episode=1),
        history(2, v=2, episode=1),
        history(3, t=table, episode=2),
        Record(num=7),  # of a kind that only later wandb knows
    ]
    (run,) = read_wandb(write(tmp_path, records))
    assert run.metrics.values.tolist() == [[1, 2]]
    told = [line.partition(str(tmp_path))[2] for line in capsys.readouterr().err.splitlines()]
    assert [line.split(": ", 1)[1] for line in told] == [
        "left out 1 broken or unknown records; the rest is read",
        *("table 't' at episode 2 was left out: the file is missing or broken",),
        "1 rows have no episode and were left out",
        "1 rows have the episode of another; of a metric in both the last value stands",
    ]
    assert told[0].startswith("/run-hand.wandb (wandb 9.9.9)")


def test_a_run_whose_labels_are_broken_keeps_its_rows(tmp_path, capsys):
    write(tmp_path, [a_run(project="p" * 50), history(0, v=1)])
    file = tmp_path / "run-hand.wandb"
    file.write_bytes(file.read_bytes().replace(b"p" * 50, b"q" * 50))
    (run,) = read_wandb(tmp_path)
    assert (run.id, run.name, run.project, run.metrics["v"].tolist()) == ("hand", "hand", "", [1])
    assert "left out 1" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda d: None, "there is no such file or directory"),
        (lambda d: d.mkdir(), "there is no run-*.wandb in it; give an offline-run-* directory"),
        (lambda d: (d / "offline-run-20260101_000000-x").mkdir(parents=True), "there is no run-*.wandb in it"),
        (lambda d: write(d, [], ident=b""), "is empty: its run was killed before it wrote anything"),
        (lambda d: write(d, [], ident=b"PK\x03\x04 a zip"), "is no wandb file"),
        (lambda d: write(d, [a_run()], ident=b":W&B\xe1\xbe\x01"), "is laid out as version 1 of wandb's files"),
        (lambda d: write(d, [Record(header={"version_info": {"producer": "9.9.9+abc"}})]), "(wandb 9.9.9): no"),
        (lambda d: write(d, []), "no run can be read in it; try `wandb sync`"),
    ],
)
def test_what_cannot_be_read_is_told_in_one_line(tmp_path, make, message):
    make(tmp_path / "d")
    with pytest.raises(LabError) as told:
        read_wandb(tmp_path / "d")
    assert message in str(told.value)
    assert str(tmp_path / "d") in str(told.value)
    assert "\n" not in str(told.value)


def test_one_broken_directory_does_not_hide_the_others(tmp_path, capsys):
    write(tmp_path / "run-20260101_000000-hand", [a_run(), history(0, v=1)])
    write(tmp_path / "run-20260101_000001-other", [], name="other", ident=b"what?")
    assert [run.id for run in read_wandb(tmp_path)] == ["hand"]
    (line,) = capsys.readouterr().err.splitlines()
    assert "left out: " in line
    assert "run-other.wandb is no wandb file" in line
