"""The two ways a run ends badly, each told in one line."""


class LabError(Exception):
    """Something the user can mend: says what is wrong, where, and what to do, in one line.

    A notebook shows the line instead of a traceback; the command line prints it and exits with 2.
    """

    exit_code = 2

    def _render_traceback_(self) -> list[str]:  # IPython's hook for exceptions that draw themselves
        return [f"{type(self).__name__}: {self}"]


class RunFailed(LabError):
    """A run that started well and failed, such as a loss that became NaN. Exit code 1."""

    exit_code = 1
