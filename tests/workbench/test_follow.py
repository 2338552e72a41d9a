"""Following a run by its files: torn lines, rewinding, replaced and deleted files, a process that appends meanwhile."""

import json
import os
import shutil
import subprocess
import sys
import textwrap
import threading
import time

import psutil
import pytest

from rlhf_lab.cli import main
from rlhf_lab.config import Config
from rlhf_lab.errors import LabError
from rlhf_lab.workbench.live.follow import Follower, JsonlTail
from rlhf_lab.workbench.live.screen import page
from rlhf_lab.workbench.live.start import Started, choose
from rlhf_lab.workbench.live.watching import Watch, watch
from rlhf_lab.workbench.records import BUSY, STOP, Status, mark_queued, runs_root
from rlhf_lab.workbench.runs import Run
from rlhf_lab.workbench.tracking import TrackingConfig
from rlhf_lab.workbench.writing import write_json

LEFT = "no longer watching; the run goes on"
QUIET = TrackingConfig(mode="disabled")


class Settings(Config):
    kl_control: str = "ziegler"
    kl_target: float = 2.0


@pytest.fixture
def runs(tmp_path, monkeypatch):
    monkeypatch.setenv("RLHF_LAB_RUNS", str(tmp_path / "runs"))
    return tmp_path / "runs"


@pytest.fixture
def run(runs):
    started = Run.start("ppo", Settings(), experiment="followed", tracking=QUIET)
    yield started
    started.close("stopped", "the test is over")


def append(path, data: bytes) -> None:
    with path.open("ab") as file:
        file.write(data)


def numbers(tail: JsonlTail) -> list[int]:
    return [row["n"] for row in tail.rows]


def lines(*values: int) -> bytes:
    return b"".join(b'{"n": %d}\n' % value for value in values)


# --- one file


def test_a_torn_last_line_waits_until_it_is_whole(tmp_path):
    tail = JsonlTail(tmp_path / "rows.jsonl")
    assert not tail.read() and numbers(tail) == []  # there is none yet
    append(tail.path, lines(1) + b'{"n": 2, "reply": "\xc3')  # a character torn in two
    assert tail.read() and numbers(tail) == [1]
    assert not tail.read()
    append(tail.path, b'\xa9"}\n{"n"')
    assert tail.read() and tail.rows[1] == {"n": 2, "reply": "é"}
    append(tail.path, b": 3}\n")
    assert tail.read() and numbers(tail) == [1, 2, 3]
    assert tail.broken == []


def test_a_rewound_file_is_read_anew_also_when_it_has_grown_beyond_the_old_end(tmp_path):
    tail = JsonlTail(tmp_path / "rows.jsonl")
    append(tail.path, lines(1, 2, 3, 4))
    tail.read()
    other = tmp_path / "other"
    other.write_bytes(lines(1, 2))
    os.replace(other, tail.path)
    assert tail.read() and numbers(tail) == [1, 2]
    append(tail.path, lines(3, 4))
    tail.read()
    other.write_bytes(lines(1, 2, 7, 8, 9, 10, 11))  # rewound and gone on, all between two looks
    os.replace(other, tail.path)
    assert tail.read() and numbers(tail) == [1, 2, 7, 8, 9, 10, 11]
    tail.path.write_bytes(lines(1, 2, 7, 8, 9, 10, 12))  # written over in place, as long as before
    assert tail.read() and numbers(tail) == [1, 2, 7, 8, 9, 10, 12]
    tail.path.write_bytes(b"")
    assert tail.read() and numbers(tail) == []
    append(tail.path, lines(5))
    assert tail.read() and numbers(tail) == [5]
    tail.path.unlink()
    assert tail.read() and numbers(tail) == []


def test_a_broken_line_is_left_out_and_counted(tmp_path):
    tail = JsonlTail(tmp_path / "rows.jsonl", keep=2)
    append(tail.path, lines(1) + b"\n{broken}\n[1]\n" + lines(2, 3, 4))
    tail.read()
    assert tail.broken == [3, 4]  # the empty line is none
    assert numbers(tail) == [3, 4]  # the newest two


def test_a_process_that_appends_while_we_read(tmp_path):
    path = tmp_path / "rows.jsonl"
    code = f"""
        import json, time
        with open({str(path)!r}, "ab", buffering=0) as file:
            for n in range(400):
                data = (json.dumps({{"n": n, "text": "x" * (n % 97)}}) + "\\n").encode()
                cut = (7 * n) % len(data)
                file.write(data[:cut])
                if n % 40 == 0:
                    time.sleep(0.01)
                file.write(data[cut:])
    """
    tail, looks = JsonlTail(path), 0
    with subprocess.Popen([sys.executable, "-c", textwrap.dedent(code)]) as process:
        while process.poll() is None:
            before = len(tail.rows)
            looks += tail.read()
            assert numbers(tail)[before:] == list(range(before, len(tail.rows)))
    tail.read()
    assert process.returncode == 0
    assert numbers(tail) == list(range(400)) and tail.broken == []
    assert looks > 2  # it was read while it grew


# --- a run


def test_a_run_is_followed_through_a_resume(run):
    follower = Follower(run.path)
    assert follower.look().rows == [] and follower.look().state == "running"
    for step in range(1, 6):
        run.log({"objective/kl": 0.5 * step}, step=8 * step)
    run.log_samples([{"prompt": "hello", "PPO": "good day"}], step=40)
    run.progress(5, 60, "PPO")
    seen = follower.look()
    assert [row["objective/kl"] for row in seen.rows] == [0.5, 1.0, 1.5, 2.0, 2.5]
    assert seen.settings["kl_target"] == 2.0 and seen.progress["done"] == 5
    assert seen.samples[0]["PPO"] == "good day"
    run.rewind(24)
    run.log({"objective/kl": 9.0}, step=32)
    seen = follower.look()
    assert [row["objective/kl"] for row in seen.rows] == [0.5, 1.0, 1.5, 9.0] and seen.samples == []
    assert follower.look().version == seen.version  # nothing new


def test_a_deleted_directory_is_told_and_what_was_seen_stays(run):
    run.log({"objective/kl": 0.5}, step=8)
    found = Watch(choose(str(run.path)))
    shutil.rmtree(run.path)
    found.look()
    assert found.over and found.seen.state == "gone"
    assert found.seen.rows[0]["objective/kl"] == 0.5
    shown = found.page()
    assert "is gone: it was deleted or moved" in shown["note"]
    assert shown["stop"]["able"] is False
    with pytest.raises(LabError, match="no such run"):
        choose(str(run.path))


def test_files_that_are_broken_or_not_there_yet_are_told(run):
    append(run.path / "metrics.jsonl", b"{broken}\n" + b'{"episode": 8, "objective/kl": 1.0}\n')
    (run.path / "config.yaml").write_text("config: [1")
    (run.path / "progress.json").write_text("{")
    seen = Follower(run.path).look()
    assert "metrics.jsonl, line 1 is broken" in seen.problem
    assert (len(seen.rows), seen.settings, seen.progress) == (1, {}, {})
    (run.path / "status.json").write_text("{")
    seen = Follower(run.path).look()
    assert "status.json is broken" in seen.problem and seen.ended


def test_a_run_that_was_queued_and_never_began_has_died(runs):
    mark_queued(runs / "x" / "ppo" / "one", stage="ppo", experiment="x")
    follower = Follower(runs / "x" / "ppo" / "one")
    assert follower.look().state == "queued" and not follower.look().ended
    os.utime(follower.path / "status.json", (time.time() - 121, time.time() - 121))
    assert follower.look().ended
    assert "never began" in Watch(choose(str(follower.path))).alarms[0].words


# --- which run


def test_auto_takes_the_newest_that_runs_and_never_a_live_view(runs):
    with pytest.raises(LabError, match="no run to follow"):
        choose()
    for name, state, started, stage in (
        ("a", "running", "2026-01-01", "ppo"),
        ("b", "done", "2026-01-02", "ppo"),
        ("c", "running", "2026-01-03", "live"),
    ):
        host = {"host": "elsewhere", "heartbeat": "2999-01-01T00:00:00+00:00", "pid": 1}
        (runs / "x" / stage / name).mkdir(parents=True)
        write_json(
            runs / "x" / stage / name / "status.json", {"state": state, "started": started, "stage": stage, **host}
        )
    assert choose().path().name == "a"
    shutil.rmtree(runs / "x" / "ppo" / "a")
    assert choose().path().name == "b"


def test_an_experiment_that_cannot_start_says_why_before_it_does(runs, tmp_path):
    with pytest.raises(LabError, match="no such file"):
        choose(start_file=str(tmp_path / "none.yaml"))
    with pytest.raises(LabError, match="did you mean 'updates'"):
        choose(start_file="quickstart.yaml", parameters={"ppo.upates": 3})
    assert not list(runs.rglob("live-*.log"))


def test_an_experiment_that_is_at_it_already_is_not_started_twice(runs, capsys):
    (runs / "quickstart" / "sft" / "one").mkdir(parents=True)
    write_json(runs / "quickstart" / "sft" / "one" / "status.json", {"state": "queued"})
    process = psutil.Process()  # this one stands for the command
    note = {"file": "quickstart.yaml", "pid": process.pid, "process_start": process.create_time()}
    write_json(runs / "quickstart" / "live.json", note | {"began": time.time() - 5, "log": "live.log"})
    source = choose(start_file="quickstart.yaml")
    assert "quickstart.yaml is running already" in capsys.readouterr().out
    assert source.path().name == "one" and not source.over()


def test_a_command_that_winds_up_after_its_last_run_is_waited_for(runs):
    (runs / "x" / "sft" / "one").mkdir(parents=True)
    write_json(runs / "x" / "sft" / "one" / "status.json", {"state": "stopped"})
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as process:
        note = {"pid": process.pid, "process_start": psutil.Process(process.pid).create_time(), "began": 0.0}
        threading.Timer(0.3, process.communicate).start()  # ends it
        assert not Started(runs / "x", note).at_it()
    assert process.returncode is not None


def test_a_command_that_ended_before_it_had_a_run_is_told_in_its_own_words(runs):
    folder = runs / "x"
    folder.mkdir(parents=True)
    note = {"file": "x.yaml", "pid": 2**22 + 1, "process_start": 0.0, "began": time.time() - 5, "log": "live.log"}
    (folder / "live.log").write_text("x: sft, ppo\nrlhf-lab: x, stage sft: another process is running it\n")
    with pytest.raises(LabError, match="x.yaml did not start: x, stage sft: another process is running it"):
        Started(folder, note).wait()
    (folder / "live.log").write_text("x: sft\n[1/1] sft unchanged, skipped\n")
    with pytest.raises(LabError, match="has made no run; what it says is in .*live.log"):
        Started(folder, note).wait()
    (folder / "sft" / "old").mkdir(parents=True)
    write_json(folder / "sft" / "old" / "status.json", {"state": "done", "started": "2026-01-01"})
    os.utime(folder / "sft" / "old" / "status.json", (1e9, 1e9))
    started = Started(folder, note)
    started.wait()  # all was done before
    assert started.path().name == "old" and started.over()
    (folder / "ppo" / "new").mkdir(parents=True)
    write_json(folder / "ppo" / "new" / "status.json", {"state": "queued"})
    assert Started(folder, note).path().name == "new"


# --- what is shown


def test_headless_it_returns_at_the_end_with_lines_figure_and_results(run, capsys):
    for step in range(1, 8):
        run.log({"objective/scores": 0.1 * step, "objective/kl": 6.5, "policy/clipfrac_avg": 0.01}, step=8 * step)
    run.progress(7, 7, "PPO")
    run.finish({})
    capsys.readouterr()
    found = watch(choose(str(run.path)))
    said = capsys.readouterr().out.splitlines()
    assert said[0].startswith(
        "ALARM The KL to the reference is 6.5 nats per reply, above 6. Try: Too high: raise kl_coef"
    )
    assert said[1].startswith("followed/ppo/") and said[1].endswith(": done, 7 of 7, score 0.700, KL 6.50")
    assert found.results() == {"points": 7, "alarms": 1, "score": pytest.approx(0.7), "kl": 6.5}
    assert len([ax for ax in found.figure().axes if ax.get_visible()]) == 3
    assert found.alarm_table()["since"].tolist() == [8.0]
    looking = Run.start("live", Settings(), experiment="followed", tracking=QUIET)
    found.finish(looking)
    assert looking.state == "done"
    (alarm,) = json.loads((looking.path / "alarms.json").read_text())
    assert alarm["metric"] == "objective/kl"


def test_headless_it_gives_up_after_the_time_it_was_given(run, capsys):
    found = watch(choose(str(run.path)), follow_s=0.01)
    assert not found.over and "running, no sign of progress yet" in capsys.readouterr().out
    assert (found.figure(), found.alarm_table(), found.samples()) == (
        "nothing was logged yet",
        "no alarm",
        "no samples were written yet",
    )
    assert found.results() == {"points": 0, "alarms": 0}


def test_the_terminal_follows_too_and_ctrl_c_leaves_the_run_alone(run, capsys, monkeypatch):
    def interrupt(_):
        raise KeyboardInterrupt

    monkeypatch.setattr("rlhf_lab.workbench.live.watching.time.sleep", interrupt)
    assert main(["watch", str(run.path)]) == 0
    said = capsys.readouterr().out.splitlines()
    assert said[-2:] == [f"{run.path.relative_to(runs_root())}: running, no sign of progress yet", LEFT]
    assert run.state == "running"
    append(run.path / "metrics.jsonl", b"{broken}\n")
    run.finish({})
    assert main(["watch"]) == 0  # the newest
    *_, ended, broken = capsys.readouterr().out.splitlines()
    assert ended.endswith(": done") and "metrics.jsonl, line 1 is broken" in broken


def test_the_button_says_where_a_run_must_be_stopped(run):
    seen = Follower(run.path).look()
    assert page(seen, [])["stop"]["able"]
    stopping = page(seen, [], stopping=True)["stop"]
    assert stopping == {"label": "Stopping", "able": False, "note": "It saves a checkpoint first."}
    far = page(seen._replace(status=seen.status.model_copy(update={"host": "far"})), [])["stop"]
    assert not far["able"] and far["note"].startswith("It runs on far. Stop it there: rlhf-lab stop followed/ppo/")
    (run.path / BUSY).touch()
    os.utime(run.path / BUSY, (time.time() + 1,) * 2)  # after the run began: a runner looks after it
    far = page(seen._replace(status=seen.status.model_copy(update={"host": "far"})), [])["stop"]
    assert far == {"label": "Stop the run", "able": True, "note": "It saves a checkpoint, and can be resumed."}
    for status in (Status(state="queued"), Status(state="done"), Status(state="died"), None):
        assert not page(seen._replace(status=status), [])["stop"]["able"]


def test_the_button_asks_the_runner_of_a_run_on_another_host(runs):
    path = runs / "x" / "ppo" / "far"
    path.mkdir(parents=True)
    status = {"state": "running", "host": "far", "pid": 1, "started": "2026-01-01T00:00:00+00:00", "stage": "ppo"}
    write_json(path / "status.json", status)
    (path / BUSY).touch()
    found = Watch(choose(str(path)))
    assert found.page()["stop"]["able"]
    found.stop(found.page()["run"])
    deadline = time.monotonic() + 30
    while not (path / STOP).exists():
        assert time.monotonic() < deadline
        time.sleep(0.01)
    assert found.page()["stop"]["label"] == "Stopping"
    write_json(path / "status.json", status | {"state": "stopped"})  # what its runner does there
    found._stopping.join(30)
    found.look()
    assert found.page()["stop"]["label"] == "The run is stopped" and found.over and found.page()["note"] == ""


def test_a_stop_that_is_meant_for_another_run_is_left_alone(run, monkeypatch):
    stopped = []
    monkeypatch.setattr("rlhf_lab.workbench.live.watching.stop_run", stopped.append)
    found = Watch(choose(str(run.path)))
    found.stop("followed/sft/20260101-000000")
    assert found._stopping is None
    found.stop(found.page()["run"])
    found._stopping.join()
    assert stopped == [str(run.path)]


def test_a_long_curve_is_thinned_and_keeps_its_newest_point(run):
    run.history = [{"episode": n, "objective/kl": float(n)} for n in range(1, 2001)] + [{"episode": 2001}]
    seen = Follower(run.path).look()._replace(rows=run.history)
    (panel,) = page(seen, [])["panels"]
    points = panel["curves"][0]["points"]
    assert len(points) <= 300 and points[-1] == (2000, 2000.0) and points[1][0] - points[0][0] == 7
    assert (panel["target"], panel["band"]) == (2.0, None)  # the run has a target of its own
