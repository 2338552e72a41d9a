"""A sweep in its report: of each stage the variants with intervals over seeds, and the results over the grid."""

from typing import TYPE_CHECKING

from rlhf_lab.errors import LabError
from rlhf_lab.workbench.report.notebook import escape

if TYPE_CHECKING:
    from rlhf_lab.workbench.comparing.variants import Comparison
    from rlhf_lab.workbench.experiments.record import ExperimentRecord

SHOWN = 4  # results of a stage in its table
DRAWN = 3  # of them in its figure


def sweep_section(record: "ExperimentRecord") -> str:
    """HTML for a sweep; "" for an experiment that is none, or whose runs keep no record of themselves."""
    parts = []
    for stage in dict.fromkeys(entry.stage for entry in record.stages) if record.points else ():
        comparison = _compared(record, stage)
        if comparison.variants:
            parts.append(f"<h3>{escape(stage)}</h3>{_table(comparison)}{_figure(comparison)}")
    words = "Mean and 95% interval, with the seed as the unit; in the figures hollow points are seeds."
    return f'<h2>The sweep</h2><p class="muted">{words}</p>{"".join(parts)}' if parts else ""


def _compared(record: "ExperimentRecord", stage: str) -> "Comparison":
    from rlhf_lab.workbench.comparing.reading import read_run
    from rlhf_lab.workbench.comparing.variants import compare

    runs = []
    for entry in record.stages:
        if entry.stage == stage and entry.state == "done":
            try:
                runs.append(read_run(entry.run_dir))
            except LabError:  # a notebook that keeps no record has no settings to tell it by
                continue
    return compare(runs)


def _table(comparison: "Comparison") -> str:
    from rlhf_lab.workbench.comparing.effects import effects, result_names
    from rlhf_lab.workbench.comparing.table import effect_table

    names = result_names(comparison)[:SHOWN]
    means = effect_table(effects(comparison, names), comparison)["mean [95%]"].to_dict()
    rows = []
    for variant in comparison.variants:
        cells = "".join(f'<td class="range">{escape(means.get((name, variant.name), "-"))}</td>' for name in names)
        title = escape(variant.name or "all runs")
        rows.append(f'<tr><td class="stage">{title}</td><td>{escape(", ".join(variant.seeds))}</td>{cells}</tr>')
    head = "".join(f"<th>{escape(name)}</th>" for name in ("variant", "seeds", *names))
    table = f'<table class="results"><thead><tr>{head}</tr></thead><tbody>{"".join(rows)}</tbody></table>'
    return f'<div class="scroll">{table}</div>'


def _figure(comparison: "Comparison") -> str:
    from rlhf_lab.workbench.comparing.effects import result_names
    from rlhf_lab.workbench.comparing.off_screen import as_png, off_screen

    names = result_names(comparison)[:DRAWN]
    if len(comparison.variants) < 2 or not names:
        return ""
    off_screen()
    from rlhf_lab.workbench.comparing.sweep_figures import results_figure

    shown = f"{', '.join(names)} against {', '.join(comparison.settings)}"
    picture = as_png(results_figure(comparison, names))
    image = f'<img src="data:image/png;base64,{picture}" alt="{escape(shown)}">'
    return f'<div class="plots"><figure>{image}</figure></div>'
