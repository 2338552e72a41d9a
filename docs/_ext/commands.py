"""The reference of the command line, from its own parser."""

import argparse
from collections.abc import Iterator

from rlhf_lab import cli


def subcommands() -> dict[str, argparse.ArgumentParser]:
    """Every subcommand's parser by name."""
    parser = cli._parser()
    return next(action for action in parser._actions if isinstance(action, argparse._SubParsersAction)).choices


def page() -> str:
    """The page's Markdown: a section for each subcommand."""
    return "\n\n".join(part for name, parser in subcommands().items() for part in _section(name, parser))


def _section(name: str, parser: argparse.ArgumentParser) -> Iterator[str]:
    yield f"## rlhf-lab {name}"
    yield " ".join((parser.description or "").split())
    yield f"```text\n{parser.format_usage().removeprefix('usage: ').strip()}\n```"
    actions = [action for action in parser._actions if not isinstance(action, argparse._HelpAction)]
    if actions:
        rows = [f"| {_name(action)} | {_help(action)} |" for action in actions]
        yield "\n".join(["| argument | what it does |", "| --- | --- |", *rows])


def _name(action: argparse.Action) -> str:
    metavar = action.metavar or action.dest.upper()
    if not action.option_strings:
        return f"`{action.metavar or action.dest}`"
    return ", ".join(f"`{name}{'' if action.nargs == 0 else f' {metavar}'}`" for name in action.option_strings)


def _help(action: argparse.Action) -> str:
    return (action.help or "").replace("|", "\\|")
