"""The pages that the tests of this folder read: their blocks of code, and the commands in them."""

import re
import shlex
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[2]
PAGES = [
    "README.md",
    "CONTRIBUTING.md",
    *(
        str(path.relative_to(ROOT))
        for folder in ("docs", "docs/howto", "docs/api")
        for path in ROOT.glob(f"{folder}/*.md")
    ),
]
FENCE = re.compile(r"(?:^`([^`\n]+)`:\n\n)?^```([^\n]*)\n(.*?)^```", re.M | re.S)
FIRST_LINE = re.compile(r"# ([\w./-]+\.\w+)(?:,.*)?$", re.M)


class Block(NamedTuple):
    """A fenced block. name: the file that it is, said in a line before it or in its own first line; "" for none."""

    language: str
    name: str
    text: str


def read(page: str) -> str:
    return (ROOT / page).read_text(encoding="utf-8")


def blocks(page: str, *languages: str) -> list[Block]:
    """The page's fenced blocks in these languages, or all of them."""
    found = []
    for name, language, text in FENCE.findall(read(page)):
        first = FIRST_LINE.match(text)
        found.append(Block(language.strip(), name or (first[1] if first else ""), text))
    return [block for block in found if not languages or block.language in languages]


def write_files(page: str, folder: Path) -> None:
    """Write every file that the page shows."""
    for block in blocks(page):
        if block.name:
            file = folder / block.name
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(block.text, encoding="utf-8")


def commands(page: str, programs: set[str]) -> list[list[str]]:
    """Every command of the page as words: all in blocks of shell, and in the text those of these programs."""
    found = [words for block in blocks(page, "sh", "bash", "console") for words in shell_commands(block.text)]
    for span in re.findall(r"`([^`\n]+)`", FENCE.sub("", read(page))):
        if span.split()[0] in programs and len(span.split()) > 1:
            found += shell_commands(span)
    return found


def shell_commands(text: str) -> list[list[str]]:
    """The simple commands of a piece of shell. A loop's variable has its first value; where output goes is left out."""
    text = text.replace("\\\n", " ")
    for name, first in re.findall(r"\bfor (\w+) in (\S+)[^\n;]*; do", text):
        text = re.sub(rf"\$\{{?{name}\}}?", first, text)
    text = re.sub(r"\bfor \w+ in [^\n;]*; do\b|^\s*done\b", "", text, flags=re.M)
    found: list[list[str]] = []
    for line in text.splitlines():
        words = shlex.shlex(line, posix=True, punctuation_chars=True)
        words.whitespace_split = True
        command: list[str] = []
        for word in [*words, ";"]:
            if word in (";", "&&", "||", "|", "&", ">", ">>"):
                found.append(command)
                command = []
            else:
                command.append(word)
    return [command for command in map(_without_settings, found) if command]


def _without_settings(command: list[str]) -> list[str]:
    """`A=b program` is the program."""
    while len(command) > 1 and re.match(r"[A-Z_]+=", command[0]):
        command = command[1:]
    return command
