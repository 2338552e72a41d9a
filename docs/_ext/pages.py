"""Pages that are made from the code: the line `<!-- made: NAME -->` in a page becomes what NAME is here."""

import pkgutil
import re
from collections.abc import Callable, Iterator
from pathlib import Path

from _ext import commands, configuration, metrics

import rlhf_lab

MADE: dict[str, Callable[[], str]] = {
    "configuration": configuration.page,
    "commands": commands.page,
    "metrics": metrics.page,
}
ROOMS = ("maths", "data", "models", "rewards", "training", "judges", "sandbox", "workbench")


def _fill(app, docname: str, source: list[str]) -> None:
    source[0] = re.sub(r"<!-- made: (\w+) -->", lambda match: MADE[match[1]](), source[0])


def write_api(app) -> None:
    """A page for each package and its modules, below docs/api; git ignores them."""
    folder = Path(app.srcdir) / "api"
    wanted = {f"{name}.rst": text for room in ROOMS for name, text in _packages(f"rlhf_lab.{room}")}
    for stale in folder.glob("*.rst"):
        if stale.name not in wanted:
            stale.unlink()
    for name, text in wanted.items():
        file = folder / name
        if not file.is_file() or file.read_text(encoding="utf-8") != text:  # else Sphinx would read it again
            file.write_text(text, encoding="utf-8")


def _packages(package: str) -> Iterator[tuple[str, str]]:
    """The page of a package, then those of the packages in it."""
    path = Path(rlhf_lab.__file__).parent.joinpath(*package.split(".")[1:])
    modules = sorted(pkgutil.iter_modules([str(path)]), key=lambda module: module.name)
    inner = [f"{package}.{module.name}" for module in modules if module.ispkg]
    plain = [f"{package}.{module.name}" for module in modules if not module.ispkg and module.name[0] != "_"]
    short = package.removeprefix("rlhf_lab.")
    lines = [short, "=" * len(short), "", f".. automodule:: {package}", ""]
    if inner:
        lines += [".. toctree::", "   :maxdepth: 1", ""]
        lines += [f"   {name.removeprefix('rlhf_lab.')}" for name in inner] + [""]
    for module in plain:
        lines += [module, "-" * len(module), "", f".. automodule:: {module}", "   :members:", ""]
    yield short, "\n".join(lines)
    for name in inner:
        yield from _packages(name)


def setup(app) -> dict:
    app.connect("builder-inited", write_api)
    app.connect("source-read", _fill)
    return {"parallel_read_safe": True}
