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
    options, rest = parser.parse_known_args(arguments)
    if bare := [word for word in rest if word[:1] == "-" or "=" not in word or not hasattr(options, "parameters")]:
        parser.error(f"unrecognized arguments: {' '.join(bare)}")
    if rest:  # KEY=VALUE needs no -p of its own, as `wandb agent` gives them
        options.parameters = [*options.parameters, *rest]
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
    run.add_argument("-j", "--jobs", type=int, default=1, metavar="N", help="stages to run at once; threads are shared")
    run.add_argument("--on", default="local", metavar="PLACE", help="local, this machine, or ray, a cluster of several")
    run.add_argument("--dry-run", "-n", action="store_true", help="tell what would run and why, and stop there")
    run.add_argument("--fresh", action="store_true", help="skip nothing, run what is done again")
    run.add_argument("--resume", action="store_true", help="refuse to start anything if nothing was left unfinished")
    run.set_defaults(call=_run)

    check = commands.add_parser("validate", help="check an experiment file", description=_validate.__doc__)
    check.set_defaults(call=_validate)

    plan = commands.add_parser(
        "plan", help="what a run will need: tokens, FLOPs, time, memory", description=_plan.__doc__
    )
    plan.add_argument(
        "--prompt-tokens", type=float, metavar="N", help="mean length of a prompt, else the longest of some"
    )
    plan.add_argument(
        "--reply-tokens", type=float, metavar="N", help="mean length of a reply, else the longest allowed"
    )
    plan.add_argument("--measure", action="store_true", help="measure this machine again, and keep that")
    plan.set_defaults(call=_plan)
    for command in (run, check, plan):
        command.add_argument("file", help="an experiment file, such as experiments/quickstart.yaml")
        command.add_argument(
            "-p",
            dest="parameters",
            metavar="KEY=VALUE",
            action="append",
            default=[],
            help="set a parameter of every stage that has it, or with STAGE.KEY=VALUE of one stage",
        )
    _add_keeping(commands)

    summary = commands.add_parser(
        "summarise", help="mean and interval of recorded results", description=_summarise.__doc__
    )
    summary.add_argument("file", help="a file of recorded results, such as experiments/reference/quickstart.jsonl")
    summary.add_argument("--figure", default="", metavar="FILE.png", help="draw a study's figure over seeds")
    summary.set_defaults(call=_summarise)

    compare = commands.add_parser("compare", help="runs side by side", description=_compare.__doc__)
    compare.add_argument("runs", nargs="+", metavar="RUN", help="see above; group:NAME and tag:NAME are no paths")
    compare.add_argument(
        "--baseline", default="", metavar="NAME", help="the variant or run that others are compared with"
    )
    compare.add_argument(
        "--metric", nargs="+", action="extend", default=[], metavar="NAME", help="results or logged metrics to show"
    )
    compare.add_argument("--csv", default="", metavar="FILE", help="write the table of all runs")
    compare.add_argument("--figure", default="", metavar="FILE.png", help="draw curves, and results beside it")
    compare.set_defaults(call=_compare)

    doctor = commands.add_parser("doctor", help="check the installation", description=_doctor.__doc__)
    doctor.set_defaults(call=_doctor)
    return parser


def _add_keeping(commands: argparse._SubParsersAction) -> None:
    """Look at runs, stop and remove them."""
    status = commands.add_parser("status", help="the runs and how they are getting on", description=_status.__doc__)
    status.add_argument("experiment", nargs="?", default="", help="of this experiment only")
    status.add_argument("--all", "-a", action="store_true", help="old ones too")
    status.set_defaults(call=_status)

    watch = commands.add_parser("watch", help="follow a run, with alarms", description=_watch.__doc__)
    watch.add_argument("run", nargs="?", default="auto", help="its directory or the end of that path; else the newest")
    watch.set_defaults(call=_watch)

    stop = commands.add_parser("stop", help="stop a run, with a checkpoint", description=_stop.__doc__)
    stop.add_argument("run", help="its directory, or the end of that path")
    stop.set_defaults(call=_stop)

    remove = commands.add_parser("rm", help="delete runs", description=_remove.__doc__)
    remove.add_argument("runs", nargs="+", metavar="run", help="their directories, or the ends of these paths")
    remove.add_argument("--yes", "-y", action="store_true", help="do not ask")
    remove.set_defaults(call=_remove)

    leave = commands.add_parser(
        "export", help="a model for plain transformers, with a card", description=_export.__doc__
    )
    leave.add_argument("run", help="a run's directory, the end of that path, or a model directory")
    leave.add_argument("out", help="a new directory")
    leave.add_argument("--apart", action="store_true", help="leave an adapter as one, with its base beside it")
    leave.set_defaults(call=_export)

    schema = commands.add_parser("schema", help="the JSON schema of every config", description=_schema.__doc__)
    schema.add_argument("stage", nargs="?", default="", help="of this one alone, such as ppo")
    schema.set_defaults(call=_schema)


def _run(options: argparse.Namespace) -> int:
    """Bring the stages of an experiment file to their end, and write results and report below runs/.

    What is done and unchanged is skipped, and what was stopped or killed goes on where it was: the same command again
    takes up what it left.
    """
    from rlhf_lab.workbench.experiments.pipeline import plan_in_words, run_experiment

    if options.dry_run:
        print(plan_in_words(options.file, options.parameters, fresh=options.fresh))
        return 0
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # a polite kill stops a run as Ctrl-C does
    command = shlex.join(["rlhf-lab", *sys.argv[1:]]) if sys.argv[1:] else ""
    record = run_experiment(
        options.file,
        options.parameters,
        quiet=options.quiet,
        command=command,
        resume=options.resume,
        workers=options.jobs,
        fresh=options.fresh,
        on=options.on,
    )
    if options.record:
        from rlhf_lab.workbench.reference import record_results

        record_results(record, options.record)
    return 0


def _summarise(options: argparse.Namespace) -> int:
    """Mean and 95% interval of every number in a file of recorded results, the seed as the unit."""
    from rlhf_lab.workbench.reference import as_text, draw

    print(as_text(options.file))
    if options.figure:
        draw(options.file, options.figure)
    return 0


def _compare(options: argparse.Namespace) -> int:
    """What runs have in common and what not: settings that differ, results with intervals, differences seed by seed.

    RUN is a run's path or its end, a folder of runs, an experiment (its last stage) or experiment/stage, a group, a
    tag, a pattern such as 'kl*/ppo', or an offline wandb directory.
    """
    from rlhf_lab.workbench.comparing.command import compare_in_words

    print(
        compare_in_words(
            options.runs,
            baseline=options.baseline,
            metrics=options.metric,
            csv=options.csv,
            figure=options.figure,
        )
    )
    return 0


def _validate(options: argparse.Namespace) -> int:
    """Check every key and value of an experiment file without starting anything."""
    from rlhf_lab.workbench.experiments.validate import validate

    plan = validate(options.file, options.parameters)
    stages = ", ".join(stage.name for stage in plan.stages)
    points = f", {len(plan.points)} points" if len(plan.points) > 1 else ""
    print(f"{options.file} is valid: experiment {plan.experiment}, stages {stages}{points}")
    return 0


def _plan(options: argparse.Namespace) -> int:
    """Say what the stages of an experiment file will need: tokens, FLOPs, time, and memory by role. Runs none of them.

    Time and memory follow from a short measurement of this machine, made at the first use and kept.
    """
    from rlhf_lab.workbench.costs.plan import plan_in_words

    lengths = {"prompt": options.prompt_tokens, "reply": options.reply_tokens}
    print(plan_in_words(options.file, options.parameters, anew=options.measure, **lengths))
    return 0


def _status(options: argparse.Namespace) -> int:
    """The runs below runs/, the newest first: state, progress, time, memory, and when they were last heard from."""
    from rlhf_lab.workbench.experiments.keeping import status_table

    print(status_table(options.experiment, everything=options.all))
    return 0


def _watch(options: argparse.Namespace) -> int:
    """Tell every few seconds how a run is getting on, and what is wrong with it, until it ends. Ctrl-C leaves it be."""
    from rlhf_lab.workbench.live import Watch, choose

    try:
        Watch(choose(options.run)).follow()
    except KeyboardInterrupt:
        print("no longer watching; the run goes on")
    return 0


def _stop(options: argparse.Namespace) -> int:
    """Interrupt a run as Ctrl-C would: it saves a checkpoint and ends. The command that ran it takes it up again."""
    from rlhf_lab.workbench.experiments.keeping import find_run, stop_run
    from rlhf_lab.workbench.experiments.record import shown

    print(f"{shown(find_run(options.run))}: {stop_run(options.run).state}")
    return 0


def _remove(options: argparse.Namespace) -> int:
    """Delete runs, with all that they made. One that is alive is refused."""
    from rlhf_lab.workbench.experiments.keeping import find_run, remove_runs, size_of
    from rlhf_lab.workbench.experiments.record import shown

    paths = list(dict.fromkeys(find_run(name) for name in options.runs))
    if not options.yes:
        if not sys.stdin.isatty():
            raise LabError("rm: deletes for good; say --yes where nobody can be asked")
        print("\n".join(f"{shown(path)}  {size_of(path) / 1e6:,.1f} MB" for path in paths))
        if input(f"Delete {len(paths)} run{'s' * (len(paths) > 1)} for good? [y/N] ").strip().lower() not in (
            "y",
            "yes",
        ):
            print("nothing was deleted")
            return 0
    remove_runs(paths)
    print(f"deleted {len(paths)} run{'s' * (len(paths) > 1)}")
    return 0


def _export(options: argparse.Namespace) -> int:
    """Write the model of a run as a directory that plain transformers loads, with a model card.

    Weights, tokenizer, and how to use them; data, settings, results and the run they came from. An adapter is merged.
    """
    from rlhf_lab.workbench.experiments.record import shown
    from rlhf_lab.workbench.exporting import export

    done = export(options.run, options.out, apart=options.apart)
    print(f"{shown(done.path)}: {done.kind}")
    return 0


def _schema(options: argparse.Namespace) -> int:
    """The JSON schema of every notebook's parameters and of an experiment file, or of one."""
    import json

    from rlhf_lab.workbench.experiments.schema import schemas

    print(json.dumps(schemas(options.stage), indent=2))
    return 0


def _doctor(options: argparse.Namespace) -> int:
    """Check the installation: versions, torch, kernel, tracking, disk. One line each."""
    from rlhf_lab.workbench.doctor import examine, told

    print("\n".join(told(examine())))
    return 0


if __name__ == "__main__":
    sys.exit(main())
