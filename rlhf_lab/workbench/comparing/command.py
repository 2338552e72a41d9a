"""What `rlhf-lab compare` prints and writes."""

import io
from collections.abc import Sequence
from pathlib import Path

from rlhf_lab.errors import LabError
from rlhf_lab.workbench.comparing.effects import curve_names, effects, known, metric_names, result_names
from rlhf_lab.workbench.comparing.find import find_runs
from rlhf_lab.workbench.comparing.table import (
    as_lines,
    effect_table,
    effect_words,
    run_table,
    settings_table,
    variant_table,
)
from rlhf_lab.workbench.comparing.variants import Comparison, compare
from rlhf_lab.workbench.experiments.record import shown
from rlhf_lab.workbench.writing import make_folder, user_path, write_bytes, write_text

MANY = 40  # lines of results; beyond, only the first few results are shown unless they are named
FIRST = 3


def compare_in_words(
    names: Sequence[str], *, baseline: str = "", metrics: Sequence[str] = (), csv: str = "", figure: str = ""
) -> str:
    """Compare runs: variants, the settings that differ, results with intervals, paired differences, files written.

    metrics: results, or logged metrics whose last value counts; without them the results that all stages share.
    csv: a file for the tidy table. figure: a .png file for the curves, beside it the results as `NAME-results.png`.
    Errors: `LabError`, see `find_runs`, `compare` and `known`.
    """
    found = find_runs(names)
    comparison = compare(found.runs, found.notes, baseline=baseline)
    wanted = known(comparison, metrics)
    lines = [*_heading(comparison), "", *as_lines(variant_table(comparison), right=(3,))]
    lines += ["* the baseline" + ("" if baseline else " (the first; --baseline pins another)")]
    lines += _settings(comparison)
    chosen, more = _chosen(comparison, wanted)
    lines += _results(comparison, chosen, more)
    if comparison.notes:
        lines += ["", *(f"note     {note}" for note in comparison.notes)]
    written = [_write_csv(comparison, csv)] if csv else []
    written += _write_figures(comparison, figure, wanted, chosen) if figure else []
    return "\n".join(lines + [""] * bool(written) + written)


def _heading(comparison: Comparison) -> list[str]:
    runs, variants, stages = len(comparison.runs), len(comparison.variants), comparison.stages
    line = f"{runs} run{'s' * (runs != 1)}, {variants} variant{'s' * (variants != 1)}, stage {', '.join(stages)}"
    if len(stages) > 1:
        shared = ", ".join(result_names(comparison)) or "none"
        return [line, f"different stages: compared by the results they share ({shared})"]
    return [line]


def _settings(comparison: Comparison) -> list[str]:
    if not comparison.settings:
        return ["", "No setting differs."] if len(comparison.variants) > 1 else []
    table = settings_table(comparison)
    if len(comparison.variants) > len(comparison.settings):
        table = table.T.rename_axis("variant")
    return ["", "Settings that differ", *as_lines(table)]


def _chosen(comparison: Comparison, wanted: list[str]) -> tuple[list[str], int]:
    """The results to show, and how many more there are."""
    names = wanted or result_names(comparison)
    most = len(names) if wanted or len(names) * len(comparison.variants) <= MANY else FIRST
    return names[:most], len(names) - most


def _results(comparison: Comparison, names: list[str], more: int) -> list[str]:
    table = effects(comparison, names)
    if table.empty:
        return ["", "No results: none of these runs has any" + (" that all share" * (len(comparison.stages) > 1))]
    text = effect_table(table, comparison).reset_index()
    text["result"] = text["result"].where(text["result"] != text["result"].shift(), "")
    lines = ["", "Results", *as_lines(text.set_index("result"), right=(2,)), *effect_words(table)]
    return lines + ([f"{more} more results: --metric NAME shows them, --csv FILE has all"] if more else [])


def _write_csv(comparison: Comparison, file: str) -> str:
    path = user_path(file)
    make_folder(path.parent)
    write_text(path, run_table(comparison).to_csv(index=False))
    return f"table    {shown(path)}"


def _write_figures(comparison: Comparison, file: str, wanted: list[str], results: list[str]) -> list[str]:
    """The curves of what was logged, and the results."""
    from rlhf_lab.workbench.comparing.off_screen import off_screen

    off_screen()
    from rlhf_lab.workbench.comparing.figures import curves
    from rlhf_lab.workbench.comparing.sweep_figures import results_figure

    path = user_path(file)
    if path.suffix.lower() != ".png":
        raise LabError(f"--figure {file}: give a name that ends in .png")
    make_folder(path.parent)
    logged = metric_names(comparison)
    drawn = [name for name in wanted if name in logged] if wanted else curve_names(comparison)
    written = []
    if drawn:
        _save(curves(comparison, drawn), path)
        written.append(f"curves   {shown(path)}")
    if results:
        beside = path.with_stem(f"{path.stem}-results") if drawn else path
        _save(results_figure(comparison, results[:FIRST]), beside)
        written.append(f"results  {shown(beside)}")
    return written


def _save(figure, path: Path) -> None:
    picture = io.BytesIO()
    figure.savefig(picture, dpi=150, format="png")
    write_bytes(path, picture.getvalue())
