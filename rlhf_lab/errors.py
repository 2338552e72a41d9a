"""The two ways a run ends badly, each told in one line."""

import re

_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]+")  # whatever breaks a line or a terminal


class LabError(Exception):
    """Something the user can mend: says what is wrong, where, and what to do, in one line.

    A notebook shows the line instead of a traceback; the command line prints it and exits with 2.
    """

    exit_code = 2

    def __init__(self, line: str):
        # Names of files and what users wrote stand in it, so one line of printable text is seen to here.
        printable = line.encode("utf-8", "backslashreplace").decode()
        super().__init__(_CONTROL.sub(" ", printable).strip())

    def _render_traceback_(self) -> list[str]:  # IPython's hook for exceptions that draw themselves
        return [f"{type(self).__name__}: {self}"]


class RunFailed(LabError):
    """A run that started well and failed, such as a loss that became NaN. Exit code 1."""

    exit_code = 1
