"""The command `rlhf-lab`. Every subcommand is one call into the workbench."""

import argparse
import os
import shlex
import signal
import sys
from collections.abc import Sequence

from rlhf_lab.errors import LabError


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code: 0, 1 a failed run, 2 what the user can mend, 130 stopped."""
    parser = _parser()
    options = parser.parse_args(arguments)
    if hasattr(sys.stdout, "reconfigure"):
        sys.stdout.reconfigure(errors="backslashreplace")  # a terminal that knows no emoji still shows the rest
    try:
        return options.call(options)
    except LabError as error:
        _complain(str(error))
        return error.exit_code
    except KeyboardInterrupt:
        print("rlhf-lab: stopped", file=sys.stderr)
        return 130
    except BrokenPipeError:  # the reader, such as `head`, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except OSError as error:  # a disk or a permission, of a file that no room of the lab looks after
        _complain(
            str(LabError(f"{error.filename or 'a file'}: {error.strerror or error}; check the disk and the path"))
        )
        return 2


def _complain(line: str) -> None:
    from rlhf_lab.workbench.secrets import redact

    print(f"rlhf-lab: {redact(line)}", file=sys.stderr)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="rlhf-lab", description="A workbench for research on RLHF.")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    run = commands.add_parser("run", help="run an experiment file", description=_run.__doc__)
    run.add_argument("--quiet", "-q", action="store_true", help="no progress lines")
    run.add_argument("--record", metavar="FILE", help="append the results of a finished run to this .jsonl file")
    run.add_argument("--resume", action="store_true", help="go on with its newest run, which was stopped or killed")
    run.set_defaults(call=_run)

    check = commands.add_parser("validate", help="check an experiment file", description=_validate.__doc__)
    check.set_defaults(call=_validate)
    for command in (run, check):
        command.add_argument("file", help="an experiment file, such as experiments/quickstart.yaml")
        command.add_argument(
            "-p",
            dest="parameters",
            metavar="KEY=VALUE",
            action="append",
            default=[],
            help="set a parameter of every stage that has it, or with STAGE.KEY=VALUE of one stage",
        )

    summary = commands.add_parser(
        "summarise", help="mean and interval of recorded results", description=_summarise.__doc__
    )
    summary.add_argument("file", help="a file of recorded results, such as experiments/reference/quickstart.jsonl")
    summary.set_defaults(call=_summarise)

    doctor = commands.add_parser("doctor", help="check the installation", description=_doctor.__doc__)
    doctor.set_defaults(call=_doctor)
    return parser


def _run(options: argparse.Namespace) -> int:
    """Check an experiment file, run its stages, and write results and report below runs/."""
    from rlhf_lab.workbench.pipeline import run_experiment

    signal.signal(signal.SIGTERM, signal.default_int_handler)  # a polite kill stops a run as Ctrl-C does
    command = shlex.join(["rlhf-lab", *sys.argv[1:]]) if sys.argv[1:] else ""
    record = run_experiment(
        options.file, options.parameters, quiet=options.quiet, command=command, resume=options.resume
    )
    if options.record:
        from rlhf_lab.workbench.reference import record_results

        record_results(record, options.record)
    return 0


def _summarise(options: argparse.Namespace) -> int:
    """Mean and 95% interval of every number in a file of recorded results, the seed as the unit."""
    from rlhf_lab.workbench.reference import as_text

    print(as_text(options.file))
    return 0


def _validate(options: argparse.Namespace) -> int:
    """Check every key and value of an experiment file without starting anything."""
    from rlhf_lab.workbench.validate import validate

    plan = validate(options.file, options.parameters)
    stages = ", ".join(stage.name for stage in plan.stages)
    print(f"{options.file} is valid: experiment {plan.experiment}, stages {stages}")
    return 0


def _doctor(options: argparse.Namespace) -> int:
    """Check the installation: versions, torch, kernel, tracking, disk. One line each."""
    from rlhf_lab.workbench.doctor import examine, told

    print("\n".join(told(examine())))
    return 0


if __name__ == "__main__":
    sys.exit(main())
