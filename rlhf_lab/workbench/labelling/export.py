"""Labels as data sets: what training reads, with where every row comes from."""

import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, Literal, NamedTuple

import pandas as pd

from rlhf_lab.errors import LabError
from rlhf_lab.workbench.labelling.answers import answer_table
from rlhf_lab.workbench.labelling.events import LabelFile
from rlhf_lab.workbench.labelling.items import Item
from rlhf_lab.workbench.writing import make_folder, user_path, write_text

Keep = Literal["drop", "keep"]
_NAMES = {"pairs": "preferences", "rankings": "rankings", "ratings": "ratings"}


class Exported(NamedTuple):
    """What was written, and what was left out: every answer is counted once."""

    path: Path
    rows: int
    ties: int
    skipped: int
    flagged: int
    repeats: int


def export_preferences(
    files: LabelFile | Iterable[LabelFile], path: str | Path, *, flagged: Keep = "drop", repeats: Keep = "drop"
) -> Exported:
    """Preferences in TRL's format (prompt, chosen, rejected), one row for each answer that is not a tie.

    Beside them: item, annotator, repeat, seconds, time (seconds since 1970), shown_first (chosen or rejected),
    chosen_model, rejected_model, flagged, labels (the file's name). Read it with `rlhf_lab.data.load_preferences`.
    flagged: answers to items that their annotator marked. repeats: second answers to the same item.
    Errors: `LabError` where the files hold no pairs, or nothing is left.
    """
    return _export("pairs", files, path, _preference, flagged, repeats)


def export_rankings(
    files: LabelFile | Iterable[LabelFile], path: str | Path, *, flagged: Keep = "drop", repeats: Keep = "drop"
) -> Exported:
    """Rankings: prompt, completions, ranks (0 the best, equal ranks a tie), models, order (of the places), and the
    rest as in `export_preferences`. Read it with `rlhf_lab.data.load_rankings`."""
    return _export("rankings", files, path, _ranking, flagged, repeats)


def export_ratings(
    files: LabelFile | Iterable[LabelFile], path: str | Path, *, flagged: Keep = "drop", repeats: Keep = "drop"
) -> Exported:
    """Ratings: prompt, completion, rating, model, and the rest as in `export_preferences`.

    Read it with `rlhf_lab.data.load_ratings`.
    """
    return _export("ratings", files, path, _rating, flagged, repeats)


def _export(kind: str, files: Any, path: str | Path, convert: Callable, flagged: Keep, repeats: Keep) -> Exported:
    for name, value in (("flagged", flagged), ("repeats", repeats)):
        if value not in ("drop", "keep"):
            raise LabError(f"export: {name}={value!r}; take 'drop' or 'keep'")
    left = dict.fromkeys(("ties", "skipped", "flagged", "repeats"), 0)
    rows = []
    for file in [files] if isinstance(files, LabelFile) else list(files):
        if file.items.kind != kind:
            raise LabError(
                f"export: {file.path} holds {file.items.kind}, not {kind}; use export_{_NAMES[file.items.kind]}"
            )
        items = {item.id: item for item in file.items.items}
        for answer in answer_table(file).itertuples():
            why = _left_out(answer, flagged, repeats)
            if why:
                left[why] += 1
            else:
                rows.append({**convert(items[answer.item], answer), **_provenance(file, answer)})
    path = user_path(path)
    if not rows:
        told = ", ".join(f"{count} {name}" for name, count in left.items() if count) or "no answers"
        raise LabError(f"export to {path}: there is nothing to write ({told}); label some more")
    make_folder(path.parent)
    write_text(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
    return Exported(path, len(rows), **left)


def _left_out(answer: Any, flagged: Keep, repeats: Keep) -> str:
    if answer.answer is None:
        return "skipped"
    if answer.flagged and flagged == "drop":
        return "flagged"
    if answer.repeat and repeats == "drop":
        return "repeats"
    return "ties" if isinstance(answer.answer, str) and answer.answer == "tie" else ""


def _provenance(file: LabelFile, answer: Any) -> dict[str, Any]:
    where = {"item": answer.item, "annotator": answer.annotator, "repeat": answer.repeat, "labels": file.path.name}
    return {**where, "seconds": round(answer.seconds, 3), "time": answer.time, "flagged": answer.flagged}


def _preference(item: Item, answer: pd.Series) -> dict[str, Any]:
    chosen = "ab".index(answer.answer)
    best, other = item.replies[chosen], item.replies[1 - chosen]
    row = {"prompt": item.prompt, "chosen": best, "rejected": other}
    models = {"chosen_model": item.models[chosen], "rejected_model": item.models[1 - chosen]}
    return {**row, "shown_first": "chosen" if answer.order[0] == chosen else "rejected", **models}


def _ranking(item: Item, answer: pd.Series) -> dict[str, Any]:
    row = {"prompt": item.prompt, "completions": list(item.replies), "ranks": list(answer.answer)}
    return {**row, "models": list(item.models), "order": list(answer.order)}


def _rating(item: Item, answer: pd.Series) -> dict[str, Any]:
    return {
        "prompt": item.prompt,
        "completion": item.replies[0],
        "rating": int(answer.answer),
        "model": item.models[0],
    }
