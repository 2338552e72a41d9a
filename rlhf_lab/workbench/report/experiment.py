"""The report of an experiment: an index with results and plots, and each executed notebook as a page."""

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from rlhf_lab.workbench.report.figures import Figure, duration, figures
from rlhf_lab.workbench.report.notebook import Notebook, Plot, escape, markdown, read_notebook
from rlhf_lab.workbench.report.pages import badge, page
from rlhf_lab.workbench.report.sweep import sweep_section
from rlhf_lab.workbench.writing import make_folder, write_text

if TYPE_CHECKING:
    from rlhf_lab.workbench.experiments.record import ExperimentRecord, StageRecord

TILES = 6
PLOTS = 4


def write_report(record: "ExperimentRecord") -> Path:
    """Write `report/index.html` below the experiment's folder, a page per executed notebook beside it.

    The folder needs nothing outside itself, so it can be moved or sent. Each run keeps a copy of its page.
    Cells tagged `report` put their plots on the index; without any, a notebook's last plots stand there.

    Returns the path of the index.
    """
    folder = record.folder / "report"
    shutil.rmtree(folder, ignore_errors=True)  # pages of stages that are no longer in the file
    make_folder(folder)
    cards = []
    for stage in record.stages:
        back = f'<nav><a href="index.html">&larr; {escape(record.experiment)}</a></nav>'
        read = read_notebook(stage.run_dir / "notebook.ipynb", back=back)
        if read:
            write_text(folder / f"{stage.name}.html", read.html)
            write_text(stage.run_dir / "report.html", read.html.replace(back, ""))
        cards.append(_card(stage, read))
    if (record.folder / "results.json").is_file():
        write_text(folder / "results.json", (record.folder / "results.json").read_text(encoding="utf-8"))
    write_text(folder / "index.html", page(record.experiment, _index(record, cards)))
    return folder / "index.html"


def _index(record: "ExperimentRecord", cards: list[str]) -> str:
    facts = [
        ("started", record.started[:16].replace("T", " ") + " UTC"),
        ("time", duration(record.seconds)),
        ("seed", _seeds(record.seed)),
        ("commit", record.commit[:10] + "-dirty" * record.commit.endswith("-dirty")),
        ("file", record.file),
    ]
    known = [(name, value) for name, value in facts if value]
    line = " ".join(f"<span>{name} <b>{escape(value)}</b></span>" for name, value in known)
    lead = f'<div class="lead">{markdown(record.description)}</div>' if record.description else ""
    return f"""<main>
<h1>{escape(record.experiment)} {badge(record.state)}</h1>
{lead}
<div class="facts">{line}</div>
{sweep_section(record)}
{_results(record)}
<h2>Stages</h2>
{"".join(cards)}
<footer>
<p>Made by <code>{escape(record.command)}</code>. The same numbers are in
<a href="results.json">results.json</a>.</p>
</footer>
</main>"""


def _seeds(seed) -> str:
    if isinstance(seed, dict):
        return ", ".join(f"{stage} {value}" for stage, value in seed.items())
    return "" if seed is None else str(seed)


def _results(record: "ExperimentRecord") -> str:
    rows = []
    for stage in record.stages:
        found = figures(stage.results)
        for number, figure in enumerate(found):
            inside = ' class="inside"' if number < len(found) - 1 else ""
            rows.append(
                f'<tr{inside}><td class="stage">{escape(stage.name) if number == 0 else ""}</td>'
                f"<td>{escape(figure.label)}</td>"
                f'<td class="number">{escape(figure.value)}</td>'
                f'<td class="range">{escape(figure.interval)}</td>'
                f'<td class="unit">{escape(figure.unit)}</td></tr>'
            )
    if not rows:
        return ""
    head = '<th>stage</th><th>result</th><th class="number">value</th><th>95% interval</th><th>unit</th>'
    table = f'<table class="results"><thead><tr>{head}</tr></thead><tbody>{"".join(rows)}</tbody></table>'
    return f'<h2>Results</h2><div class="scroll">{table}</div>'


def _card(stage: "StageRecord", read: Notebook | None) -> str:
    title = read.title if read else stage.name
    time = f'<span class="time">{duration(stage.seconds)}</span>' if stage.seconds is not None else ""
    problem = ""
    if stage.reason and stage.state != "done":
        problem = f'<p class="problem">{escape(stage.reason)}</p>'
    links = []
    if read:
        links.append(f'<a href="{escape(stage.name)}.html">Read the executed notebook</a>')
    if stage.url:
        links.append(f'<a href="{escape(stage.url)}">Open the run on wandb</a>')
    links.append(f'<span class="muted"><code>{escape(_short(stage.run_dir))}</code></span>')
    return f"""<section class="card">
<header><h3>{escape(title)}</h3>{badge(stage.state)}{time}</header>
{problem}{_tiles(figures(stage.results))}{_plots(read.plots if read else [])}
<div class="links">{" ".join(links)}</div>
</section>"""


def _tiles(found: Sequence[Figure]) -> str:
    tiles = [
        f'<div class="tile"><div class="value">{escape(f.value)} <small>{escape(f.unit)}</small></div>'
        f'<div class="label">{escape(f.label)}</div><div class="range">{escape(f.interval)}</div></div>'
        for f in found[:TILES]
    ]
    return f'<div class="tiles">{"".join(tiles)}</div>' if tiles else ""


def _plots(plots: Sequence[Plot]) -> str:
    chosen = [plot for plot in plots if plot.wanted] or list(plots[-PLOTS:])
    drawn = [
        f'<figure><img src="data:image/png;base64,{plot.png}" alt="{escape(plot.caption or "plot")}">'
        f"<figcaption>{escape(plot.caption)}</figcaption></figure>"
        for plot in chosen
    ]
    return f'<div class="plots">{"".join(drawn)}</div>' if drawn else ""


def _short(path: Path) -> str:
    return str(Path(*path.parts[-4:])) if len(path.parts) > 4 else str(path)
