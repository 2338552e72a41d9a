"""One notebook executed: what reaches the caller and what is left, whether it ends well or not."""

import os
import signal
import threading
import time

import nbformat
import pytest
from small_notebooks import write_notebook

from rlhf_lab.errors import LabError, RunFailed
from rlhf_lab.workbench.notebooks import describe_failure, execute


def texts(path):
    """What the cells of an executed notebook printed, in order."""
    cells = nbformat.read(path, as_version=4).cells
    return [output.text for cell in cells for output in cell.get("outputs", []) if "text" in output]


def test_parameters_and_working_directory_reach_the_kernel(tmp_path, monkeypatch):
    caller = tmp_path / "caller"
    caller.mkdir()
    monkeypatch.chdir(caller)
    notebook = write_notebook(
        tmp_path / "folder" / "a.ipynb",
        "# # Title\n\n## The *first* part",
        "import os, sys\nprint(lr * 2, policy, type(steps).__name__)",
        "print(os.getcwd() + '|' + sys.executable + '|' + os.environ['RLHF_LAB_HEADLESS'])",
        'from ipykernel.connect import get_connection_info as info\nprint(\'"transport": "ipc"\' in info())',
    )
    seen = []
    output = tmp_path / "out {odd}.ipynb"
    execute(notebook, output, {"lr": 1e-5, "policy": "x/y"}, tick=seen.append, every=0.05)
    first, second, uses_sockets = texts(output)
    assert first == "2e-05 x/y int\n"
    assert second.split("|")[0] == str(caller)
    assert os.path.realpath(second.split("|")[1]) == os.path.realpath(os.sys.executable)
    assert second.strip().endswith("|1")
    assert uses_sockets == "True\n"  # so no two runs can want the same port
    assert [p.cell for p in seen] == sorted(p.cell for p in seen)
    assert {p.cells for p in seen if p.cell} == {6}  # five cells and the injected one
    assert seen[-1].heading == "The first part"
    said = [log.read_text() for log in tmp_path.glob("*.log")]  # nothing, but for a socket that was closing
    assert all("zmqstream" in text for text in said), said


@pytest.mark.parametrize(
    ("source", "kind", "code", "expected"),
    [
        ("1 / 0", RunFailed, 1, "b.ipynb, cell [2]: ZeroDivisionError: division by zero"),
        (
            "from rlhf_lab.errors import LabError\nraise LabError('x.jsonl, row 3: no column')",
            LabError,
            2,
            "b.ipynb, cell [2]: x.jsonl, row 3: no column",
        ),
        (
            "from rlhf_lab.errors import RunFailed\nraise RunFailed('the loss is NaN at update 7')",
            RunFailed,
            1,
            "b.ipynb, cell [2]: the loss is NaN at update 7",
        ),
        (
            "import os\nos.kill(os.getpid(), 9)",
            RunFailed,
            1,
            "b.ipynb: the kernel died; it was killed, crashed or ran out of memory",
        ),
    ],
)
def test_every_failure_is_one_line_with_its_exit_code(tmp_path, source, kind, code, expected):
    notebook = write_notebook(tmp_path / "b.ipynb", "print('before')", source, "print('after')", parameters=None)
    with pytest.raises(LabError) as caught:
        execute(notebook, tmp_path / "out.ipynb", {})
    assert type(caught.value) is kind
    assert caught.value.exit_code == code
    assert str(caught.value) == expected
    assert texts(tmp_path / "out.ipynb") == ["before\n"]  # kept, and nothing ran after the failure


def test_long_and_coloured_messages_become_one_short_line():
    class PapermillExecutionError(Exception):
        exec_count, ename, evalue = 4, "ValueError", "\x1b[31mred\x1b[0m\n  and\nmore " + "x" * 1000

    line = str(describe_failure(PapermillExecutionError(), "dir/n.ipynb"))
    assert line.startswith("n.ipynb, cell [4]: ValueError: red and more xxx")
    assert line.endswith("x ...")
    assert len(line) < 500


def interrupt_when(path, *, again_after=None):
    """Send this process what Ctrl-C sends, once `path` exists."""

    def send():
        while not path.exists():
            time.sleep(0.02)
        os.kill(os.getpid(), signal.SIGINT)
        if again_after is not None:
            time.sleep(again_after)
            os.kill(os.getpid(), signal.SIGINT)

    threading.Thread(target=send, daemon=True).start()


def test_ctrl_c_interrupts_the_cell_and_starts_no_other(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    notebook = write_notebook(
        tmp_path / "c.ipynb",
        "import pathlib, time\npathlib.Path('here').touch()\n"
        "try:\n    time.sleep(60)\nexcept KeyboardInterrupt:\n    print('put away')",
        "pathlib.Path('after').touch()",
    )
    interrupt_when(tmp_path / "here")
    began = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        execute(notebook, tmp_path / "out.ipynb", {})
    assert time.monotonic() - began < 50  # the cell did not sleep its minute out
    assert texts(tmp_path / "out.ipynb") == ["put away\n"]
    assert not (tmp_path / "after").exists()


def test_a_second_ctrl_c_ends_a_cell_that_will_not(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    source = (
        "import pathlib, signal, time\nsignal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])\n"
        "pathlib.Path('here').write_text(str(__import__('os').getpid()))\ntime.sleep(60)"
    )
    notebook = write_notebook(tmp_path / "d.ipynb", source)
    interrupt_when(tmp_path / "here", again_after=0.3)
    with pytest.raises(KeyboardInterrupt):
        execute(notebook, tmp_path / "out.ipynb", {})
    with pytest.raises(ProcessLookupError):
        os.kill(int((tmp_path / "here").read_text()), 0)
