"""The file of labels: durable, shared by processes, and clear about files and data that are not its own."""

import multiprocessing
import os
import random
import signal
import sqlite3
import time

import pytest

from rlhf_lab.errors import LabError
from rlhf_lab.workbench.labelling import (
    LabelFile,
    Plan,
    Session,
    answer_table,
    pair_items,
    rating_items,
    simulate,
)

FORK = multiprocessing.get_context("fork")


def rows(n, mark=""):
    return [{"prompt": f"prompt {i}{mark}", "reply_a": f"a{i}", "reply_b": f"b{i}", "topic": i} for i in range(n)]


def label_and_tell(path, items, plan, annotator, seed, pipe):
    """In a process of its own: label for ever, telling of every answer once it is stored."""
    rng = random.Random(seed)
    session = Session(LabelFile(path, items, plan), annotator)
    while (question := session.question) is not None:
        item, value = session.item, rng.choice(["first", "second", "tie"])
        if session.act("choose", question.token, value):
            places = dict(zip(("first", "second"), question.replies, strict=True))
            pipe.send((annotator, item.id, places.get(value, "tie")))
    pipe.send(None)


def start(*arguments):
    """The process, and where it tells of what it has stored."""
    reading, writing = FORK.Pipe(duplex=False)
    process = FORK.Process(target=label_and_tell, args=(*arguments, writing))
    process.start()
    writing.close()
    return process, reading


def drain(reading):
    """All that a process told before it ended."""
    told = []
    while True:
        try:
            said = reading.recv()
        except EOFError:
            return told
        if said is None:
            return told
        told.append(said)


def stored(path):
    """The answers in the file, in words of the replies, in their order."""
    file = LabelFile(path)
    items = {item.id: item for item in file.items.items}
    found = []
    for row in answer_table(file).itertuples():
        text = row.answer if row.answer == "tie" else items[row.item].replies["ab".index(row.answer)]
        found.append((row.annotator, row.item, text))
    file.close()
    return found


def test_what_was_told_to_be_stored_is_there_after_kill_9_at_any_moment(tmp_path):
    items, plan, rng = pair_items(rows(400)), Plan(repeat_share=0), random.Random(3)
    path, before = tmp_path / "labels.sqlite", []
    for seed in range(6):
        process, reading = start(path, items, plan, "anna", seed)
        told = [reading.recv() for _ in range(rng.randrange(1, 12))]
        time.sleep(rng.random() * 0.01)
        os.kill(process.pid, signal.SIGKILL)
        process.join()
        told += drain(reading)
        after = stored(path)
        # One answer may have reached the disk, and its process been killed before it told.
        assert after[: len(before) + len(told)] == before + told
        assert len(after) - len(before) - len(told) in (0, 1)
        before = after
    assert len({item for _, item, _ in before}) == len(before)  # and no item was asked twice


def test_every_event_is_written_through_to_the_disk(tmp_path):
    """What kill -9 cannot show: that a power cut would lose nothing either. SQLite's FULL is 2."""
    file = LabelFile(tmp_path / "labels.sqlite", pair_items(rows(2)))
    found = [file._file.execute(f"PRAGMA {name}").fetchone()[0] for name in ("journal_mode", "synchronous")]
    assert found == ["wal", 2]


def test_processes_that_label_at_once_lose_nothing(tmp_path):
    """Two annotators, one of them in two processes, and all of them want to make the file."""
    items, plan, path = pair_items(rows(40)), Plan(repeat_share=0), tmp_path / "labels.sqlite"
    working = [start(path, items, plan, name, seed) for seed, name in enumerate(["anna", "ben", "ben"])]
    told = [said for _, reading in working for said in drain(reading)]
    for process, _ in working:
        process.join()
        assert process.exitcode == 0
    found = stored(path)
    assert sorted(found) == sorted(told)
    assert len(found) == 80
    assert len({(annotator, item) for annotator, item, _ in found}) == 80


def test_an_annotator_who_is_killed_costs_nobody_a_label(tmp_path):
    """Two annotators at once, one of them killed in the middle, who then comes back."""
    items, plan, path = pair_items(rows(40)), Plan(repeat_share=0), tmp_path / "labels.sqlite"
    (mine, telling), (other, reading) = start(path, items, plan, "me", 0), start(path, items, plan, "robot", 1)
    told = [telling.recv() for _ in range(7)]
    os.kill(mine.pid, signal.SIGKILL)
    told += drain(telling)
    of_robot = drain(reading)
    other.join()
    assert other.exitcode == 0 and len(of_robot) == 40
    mine, telling = start(path, items, plan, "me", 2)
    again = drain(telling)
    mine.join()
    found = {name: [answer for answer in stored(path) if answer[0] == name] for name in ("me", "robot")}
    assert found["robot"] == of_robot
    assert found["me"][: len(told)] == told and found["me"][40 - len(again) :] == again
    assert 40 - len(told) - len(again) in (0, 1)  # one may have been stored and not told
    assert len({item for _, item, _ in found["me"]}) == len(found["me"]) == 40  # no item was asked twice


def test_an_item_goes_to_as_many_annotators_as_the_plan_says(tmp_path):
    items = pair_items(rows(30))
    file = LabelFile(tmp_path / "labels.sqlite", items, Plan(per_item=1, overlap=0.2, repeat_share=0))
    sessions = [Session(file, name) for name in ("anna", "ben", "cleo")]
    open_ones = set(sessions)
    while open_ones:
        for session in list(open_ones):
            question = session.question
            if question is None:
                open_ones.discard(session)
            else:
                session.act("choose", question.token, "first")
    each = answer_table(file).groupby("item").size()
    assert sorted(each) == [1] * 24 + [3] * 6
    assert all(session.progress.left == 0 for session in sessions)


# ------------------------------------------------------------------------------------------------ bad input


@pytest.fixture
def labelled(tmp_path):
    """A file with some answers in it."""
    file = LabelFile(tmp_path / "labels.sqlite", pair_items(rows(5)), Plan(repeat_share=0))
    simulate(file, "anna", lambda prompt, replies: 0, limit=3)
    file.close()
    return file.path


def change(path, statement):
    with sqlite3.connect(path) as file:
        file.execute(statement)
    file.close()


def test_only_the_same_items_and_the_same_plan_are_taken_up(labelled):
    def told(items=None, plan=None):
        with pytest.raises(LabError) as error:
            LabelFile(labelled, items, plan)
        assert "\n" not in str(error.value)
        return str(error.value)

    assert len(answer_table(LabelFile(labelled, pair_items(rows(5)), Plan(repeat_share=0)))) == 3
    changed = rows(5)
    changed[2]["reply_b"] = "other"
    assert "1 of 5 items have changed, the first is item '3'" in told(pair_items(changed))
    assert "0 of its 5 items are gone and 1 are new" in told(pair_items(rows(6)))
    named = [{**row, "id": str(number)} for number, row in enumerate(rows(5), 1)]
    assert "stand in another order" in told(pair_items(named[::-1]))
    rated = [{"prompt": "p", "completion": "c"}]
    assert "it was made for pairs, these are ratings" in told(rating_items(rated))
    assert "was made with seed=0, not 1" in told(plan=Plan(seed=1, repeat_share=0))
    assert len(stored(labelled)) == 3


@pytest.mark.parametrize(
    ("statement", "told"),
    [
        ("UPDATE events SET event = replace(event, 'anna', 'otto') WHERE seq = 3", "damaged: event 3"),
        ("DELETE FROM events WHERE seq = 2", "damaged: event 2"),
        ("UPDATE items SET item = replace(item, 'a1', 'b1') WHERE place = 1", "damaged: its list of items"),
        ("DELETE FROM about WHERE key = 'plan'", "damaged: its list of items"),
        ("PRAGMA user_version = 7", "of another version"),
        ("PRAGMA application_id = 1", "not a file of labels"),
        ("DROP TABLE events", "no such table"),
    ],
)
def test_a_damaged_file_is_told_in_one_line(labelled, statement, told):
    change(labelled, statement)
    with pytest.raises(LabError, match=told) as error:
        Session(LabelFile(labelled), "anna")
    assert str(labelled) in str(error.value)
    assert "\n" not in str(error.value)


def test_another_file_is_refused_and_left_as_it_is(tmp_path, labelled):
    items = pair_items(rows(5))
    foreign = tmp_path / "foreign.sqlite"
    change(foreign, "CREATE TABLE theirs (x)")
    (tmp_path / "text.sqlite").write_text("prompt,chosen,rejected\n" * 100)
    (tmp_path / "cut.sqlite").write_bytes(labelled.read_bytes()[:5000])
    (tmp_path / "folder.sqlite").mkdir()
    for name in ("foreign", "text", "cut", "folder"):
        path = tmp_path / f"{name}.sqlite"
        before = path.read_bytes() if path.is_file() else None
        with pytest.raises(LabError, match=name) as error:
            LabelFile(path, items)
        assert "\n" not in str(error.value)
        assert before is None or path.read_bytes() == before
    with pytest.raises(LabError, match="no such file of labels"):
        LabelFile(tmp_path / "missing.sqlite")
    assert not (tmp_path / "missing.sqlite").exists()


def test_a_full_disk_loses_no_label_and_one_can_go_on(tmp_path):
    file = LabelFile(tmp_path / "labels.sqlite", pair_items(rows(200)), Plan(repeat_share=0))
    session = Session(file, "anna")
    limit = file._file.execute("PRAGMA page_count").fetchone()[0] + 2
    file._file.execute(f"PRAGMA max_page_count = {limit}")
    given = 0

    def go_on():
        nonlocal given
        while session.act("choose", session.question.token, "first"):
            given += 1

    with pytest.raises(LabError, match="disk is full"):
        go_on()
    assert given > 0
    question = session.question
    assert session.progress.done == given == len(answer_table(file))
    file._file.execute("PRAGMA max_page_count = 100000")
    assert session.act("choose", question.token, "second")  # the very question that could not be stored
    assert session.progress.done == given + 1


@pytest.mark.parametrize(
    ("row", "told"),
    [
        ({"prompt": "p", "reply_a": "x"}, "row 2, column 'reply_b': is missing"),
        ({"prompt": "", "reply_a": "x", "reply_b": "y"}, "row 2, column 'prompt': is empty"),
        ({"prompt": "p", "reply_a": "x", "reply_b": " x"}, "are equal, so neither can be better"),
        ({"prompt": "p", "reply_a": "x", "reply_b": 3}, "is a number where text is expected"),
        ({"prompt": "p", "reply_a": "x", "reply_b": "y", "id": "1"}, "column 'id': occurs twice"),
    ],
)
def test_rows_that_cannot_be_labelled_are_named_or_left_out(row, told, capsys):
    good = {"prompt": "p", "reply_a": "x", "reply_b": "y"}
    with pytest.raises(LabError, match=told):
        pair_items([good, row])
    assert len(pair_items([good, row], on_bad="drop").items) == 1
    assert "dropped 1 of 2 rows" in capsys.readouterr().out
