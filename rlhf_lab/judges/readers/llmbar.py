"""The recorded judges of LLMBar (Zeng et al. 2023, arXiv 2310.07641): its result files, and a compact table of them.

The result files are those of its repository, <subset>/evaluators/<evaluator>/<strategy>/result.json below Dataset. The
table has one row per pair and run: subset, idx, evaluator, strategy, label, w0, w1 (the winner in the original and in
the swapped order, both as output 1 or 2), len1, len2 (characters), score1, score2.
"""

import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd

from rlhf_lab.config import Config
from rlhf_lab.data.reading import file_type
from rlhf_lab.errors import LabError
from rlhf_lab.judges.readers.columns import read_rows, word_of
from rlhf_lab.judges.readers.replay import Replay
from rlhf_lab.judges.table import exchange, make_pairs, verdict_table

EqualScores = Literal["recorded", "tie"]
_FILES = ("result.json", "result.json.gz", "verdicts.csv", "verdicts.csv.gz")
_NEEDED = ("subset", "idx", "evaluator", "strategy", "label", "w0", "w1", "len1", "len2")
_WINNER = {"1": "a", "2": "b"}
_SWAPS = ("swap = False", "swap = True")


class LLMBarConfig(Config):
    """Where LLMBar's verdicts are: the arguments of `read_llmbar`."""

    kind: Literal["llmbar"] = "llmbar"  # to be given: it says that these are LLMBar's
    path: str | list[str]  # its result files or tables, or folders that are searched for them
    pairs: str = ""  # folder of its data sets, whose texts a table lacks; "" = without them
    equal_scores: EqualScores = "recorded"  # recorded: the one shown second wins, as in its files; tie: neither


def read_llmbar(
    path: str | Path | Sequence[str | Path], *, pairs: str | Path = "", equal_scores: EqualScores = "recorded"
) -> Replay:
    """LLMBar's verdicts and pairs: judges named "evaluator / strategy", pairs "subset / idx" with a column `subset`.

    path: files, or folders that are searched for result.json and verdicts.csv, also with .gz; one or several.
    pairs: a folder of <subset>/dataset.json, for the texts that the table does not have; they are checked against it.
    equal_scores: its rating judges score each reply once. Where the scores are equal, the files record the reply shown
    second as winner of either order. "recorded" keeps that, and so the published figures; "tie" reads a tie.
    The verdicts have further columns: evaluator, strategy, and n_calls. Auxiliary texts serve both orders, so a verdict
    may have cost 1.5 calls. The table does not tell whether Swap asked a second time: there its calls are the least.
    Errors: LabError in one line that names the file and the row.
    """
    paths = [path] if isinstance(path, str | Path) else list(path)
    places, rows = [], []
    for file in (file for given in paths for file in _files(Path(given).expanduser())):
        here, read = read_rows(file)
        places += here
        rows += _of_table(read, file) if file_type(file) == ".csv" else _of_results(read, here, file)
    table = pd.DataFrame(rows, dtype=object)
    for column in ("label", "w0", "w1"):
        table[column] = pd.Series([_WINNER.get(word_of(value)) for value in table[column]], dtype=object)
    table["pair_id"] = [f"{subset} / {idx}" for subset, idx in zip(table["subset"], table["idx"], strict=True)]
    if pairs:
        _add_texts(table, Path(pairs).expanduser(), places)
    if equal_scores == "tie":
        same = table["score1"].map(word_of).eq(table["score2"].map(word_of)) & table["score1"].map(word_of).ne("")
        table.loc[same, ["w0", "w1"]] = "tie"
    return Replay(_verdicts(table, places), _pairs(table, places))


def _files(path: Path) -> list[Path]:
    if path.is_file():
        return [path]
    found = sorted(file for file in path.rglob("*") if file.name in _FILES) if path.is_dir() else []
    if not found:
        raise LabError(f"{path}: no such file, and no folder with {' or '.join(_FILES[::2])} in it")
    return found


def _of_table(rows: list[dict], file: Path) -> list[dict]:
    """The rows of the compact table, with what its strategies tell of calls."""
    if missing := [name for name in _NEEDED if name not in rows[0]]:
        raise LabError(f"{file}: column '{missing[0]}' is missing; LLMBar's table has {', '.join(_NEEDED)}")
    return [{"score1": "", "score2": ""} | row | {"n_calls": _usual_calls(row["strategy"])} for row in rows]


def _usual_calls(strategy: str) -> float:
    """Calls for one verdict: two verdicts, or two ratings, share what was asked before."""
    return ((f"_{strategy}_".count("_Metrics_")) + f"_{strategy}_".count("_Reference_") + 2) / 2


def _of_results(rows: list[dict], places: list[str], file: Path) -> list[dict]:
    """The rows of one result file, in the form of the table, with texts."""
    subset, evaluator, strategy = _run_of(file)
    run = {"subset": subset, "evaluator": evaluator, "strategy": strategy}
    found = [_of_result(row, place) for row, place in zip(rows, places, strict=True)]
    return [run | {"idx": number} | row for number, row in enumerate(found)]


def _run_of(file: Path) -> tuple[str, str, str]:
    parts = file.resolve().parts[:-1]
    at = len(parts) - 3
    if at < 1 or parts[at] != "evaluators":
        raise LabError(f"{file}: its folders are not <subset>/evaluators/<evaluator>/<strategy>: who judged?")
    above = parts[:at]
    start = max((number + 1 for number, part in enumerate(above) if part == "Dataset"), default=at - 1)
    return "/".join(above[start:]), parts[at + 1], parts[at + 2]


def _of_result(row: dict, place: str) -> dict[str, Any]:
    results = row.get("results")
    rounds = [part for part in results if isinstance(part, dict)] if isinstance(results, list) else []
    texts = {name: row.get(name) for name in ("input", "output_1", "output_2")}
    if not rounds or not all(isinstance(rounds[-1].get(swap), dict) for swap in _SWAPS):
        raise LabError(f"{place}: 'results' does not end in an object with '{_SWAPS[0]}' and '{_SWAPS[1]}'; see LLMBar")
    if not all(isinstance(text, str) for text in texts.values()):
        raise LabError(f"{place}: input, output_1 and output_2 should be text, as in LLMBar's result files")
    last = rounds[-1]  # what comes before is auxiliary, or a first round that disagreed
    told = {f"w{order}": last[swap].get("winner") for order, swap in enumerate(_SWAPS)}
    said = {f"raw{order}": _said(last[swap]) for order, swap in enumerate(_SWAPS)}
    scores = {f"score{number}": (last.get(f"score_{number}") or [""])[0] for number in (1, 2)}
    lengths = {f"len{number}": len(texts[f"output_{number}"]) for number in (1, 2)}
    calls = (len(results) - len(rounds) + 2 * len(rounds)) / 2
    return {**texts, "label": row.get("label"), **told, **said, **scores, **lengths, "n_calls": calls}


def _said(answer: dict) -> str:
    completion = answer.get("completion") or [""]
    return str(completion[0] or "")


def _add_texts(table: pd.DataFrame, folder: Path, places: list[str]) -> None:
    """Fill in input, output_1 and output_2 from the data sets, after checking that they are the same pairs."""
    known = {_plain(str(file.parent.relative_to(folder))): file for file in sorted(folder.rglob("dataset.json"))}
    if not known:
        raise LabError(f"{folder}: no dataset.json in this folder or below it; give LLMBar's folder of pairs")
    texts = {}
    for subset in dict.fromkeys(table["subset"]):
        if _plain(subset) in known:
            texts[subset] = read_rows(known[_plain(subset)])[1]
    for column in ("input", "output_1", "output_2"):
        found = []
        for place, subset, idx in zip(places, table["subset"], table["idx"], strict=True):
            rows, number = texts.get(subset), _whole(idx, "idx", place)
            if rows is not None and number >= len(rows):
                raise LabError(f"{place}: idx is {idx}, but the pairs of '{subset}' are {len(rows)}")
            found.append(None if rows is None else rows[number].get(column))
        table[column] = pd.Series(found, dtype=object)
    for number in (1, 2):
        counted = [None if text is None else len(text) for text in table[f"output_{number}"]]
        for place, have, told in zip(places, counted, table[f"len{number}"], strict=True):
            if have is not None and have != _whole(told, f"len{number}", place):
                raise LabError(f"{place}: len{number} is {told}, but the reply in {folder} has {have} characters")


def _whole(value: object, column: str, place: str) -> int:
    if not word_of(value).isdecimal():
        raise LabError(f"{place}: '{column}' is {value!r}, which should be a whole number")
    return int(word_of(value))


def _plain(name: str) -> str:
    """LLMEval^2 and LLMEval2, Base-9 and Base_9 are the same set."""
    return re.sub(r"[^a-z0-9/]", "", name.casefold())


def _verdicts(table: pd.DataFrame, places: list[str]) -> pd.DataFrame:
    common = pd.DataFrame({
        "pair_id": table["pair_id"],
        "judge": table["evaluator"] + " / " + table["strategy"],
        "score_a": [None if value == "" else value for value in table["score1"]],
        "score_b": [None if value == "" else value for value in table["score2"]],
        "n_calls": table["n_calls"],
        "evaluator": table["evaluator"],
        "strategy": table["strategy"],
    })  # fmt: skip
    parts = []
    for order in (0, 1):
        part = common.assign(order=order, verdict=table[f"w{order}"])
        if "input" in table:
            part["prompt"] = table["input"]
            part["first"], part["second"] = exchange(table["output_1"], table["output_2"], np.full(len(table), order))
        if f"raw{order}" in table:
            part["raw_text"] = table[f"raw{order}"].fillna("")
        parts.append(part)
    return verdict_table(pd.concat(parts, ignore_index=True), source=[*places, *places])


def _pairs(table: pd.DataFrame, places: list[str]) -> pd.DataFrame:
    names = {"label": "gold", "len1": "chars_a", "len2": "chars_b", "subset": "subset"}
    names |= {ours: theirs for ours, theirs in _TEXTS.items() if ours in table}
    about = table[["pair_id", *names]].rename(columns=names)
    _check_gold(about, places)
    first = about.drop_duplicates("pair_id")
    rows = first.set_index("pair_id").loc[about["pair_id"]].reset_index()
    for name in ("gold", "chars_a", "chars_b"):
        differs = (rows[name].map(str) != about[name].map(str).to_numpy()).to_numpy()
        if differs.any():
            row = int(differs.argmax())
            said = f"{about[name].iloc[row]!r}, but {rows[name].iloc[row]!r} in an earlier row"
            raise LabError(f"{places[row]}: '{name}' of pair '{about['pair_id'].iloc[row]}' is {said}")
    return make_pairs(first, source=[places[row] for row in first.index])


_TEXTS = {"input": "prompt", "output_1": "reply_a", "output_2": "reply_b"}


def _check_gold(about: pd.DataFrame, places: Iterable[str]) -> None:
    for place, gold in zip(places, about["gold"], strict=True):
        if gold is None:
            raise LabError(f"{place}: 'label' is neither 1 nor 2, the better output")
