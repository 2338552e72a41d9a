"""The kinds of data set, and the way from TRL's formats to them and back.

    texts            text: what a model is pretrained on
    prompts          prompt, and whatever other columns the source has
    demonstrations   prompt, completion
    preferences      prompt, chosen, rejected
    rankings         prompt, completions (list), ranks (list of int: 0 is the best, equal ranks are a tie), and
                     perhaps finished (list of true/false: the completion ended by EOS; without it all did); read
                     from ranks that begin at 0 or 1, or from choice (the number of the best, from 0)
    ratings          prompt, completion, rating (a number), and perhaps finished (true/false)

Preferences and rankings may have a margin (a number: how clearly the better reply leads) and a source (text: where a
row comes from).

The best reply of preferences and rankings serves as a demonstration too.

A prompt is a text or a list of {"role", "content"} messages; the replies of a row are of the same sort, and
so are all rows of a data set. A text reply follows its prompt as it stands, with its leading space inside.
"""

from itertools import combinations
from typing import Any

from datasets import Dataset

from rlhf_lab.data import validation as check
from rlhf_lab.data.validation import Message, Row, RowProblem
from rlhf_lab.errors import LabError

# The sets of columns that make each kind, the plainest first. Preferences may have a prompt beside these.
FORMATS: dict[str, list[tuple[str, ...]]] = {
    "texts": [("text",)],
    "prompts": [("prompt",), ("messages",), ("chosen", "rejected")],
    "demonstrations": [
        ("prompt", "completion"),
        ("messages",),
        ("chosen", "rejected"),
        ("prompt", "completions", "ranks"),
    ],
    "preferences": [("chosen", "rejected")],
    "rankings": [("prompt", "completions", "ranks"), ("prompt", "completions", "choice")],
    "ratings": [("prompt", "completion", "rating"), ("messages", "rating")],
}

OPTIONAL = {
    "preferences": ["margin", "source"],
    "rankings": ["finished", "margin", "source"],
    "ratings": ["finished"],
}

TURN = "\n\nAssistant:"  # opens the assistant's turn in dialogues kept as text, as in HH-RLHF


def our_names(kind: str) -> list[str]:
    """Every column name that a `columns` map for this kind may have on its left side."""
    return list(
        dict.fromkeys(["prompt", *(name for names in FORMATS[kind] for name in names), *OPTIONAL.get(kind, [])])
    )


def text_row(row: Row) -> Row:
    """`text`, which is not empty."""
    if not check.text(check.cell(row, "text"), "text").strip():
        raise RowProblem("is empty", "text")
    return {"text": row["text"]}


def prompts_row(row: Row) -> Row:
    """A prompt with its other columns, from `prompt`, `messages`, or two whole dialogues.

    A text prompt beside dialogues as messages is a copy of their first message, so they are split all the same.
    """
    whole = [name for name in ("messages", "chosen", "rejected") if isinstance(row.get(name), list)]
    split = "messages" in whole or {"chosen", "rejected"} <= set(whole)
    if "prompt" in row and not (isinstance(row["prompt"], str) and split):
        return {**row, "prompt": check.prompt(row["prompt"])}
    rest = {name: value for name, value in row.items() if name not in ("prompt", "messages")}
    if "messages" in row:
        dialogue = check.messages(row["messages"], "messages")
        rest = {name: value for name, value in rest.items() if name not in whole}
        return {"prompt": check.prompt(dialogue[: _last_turn(dialogue)], "messages"), **rest}
    if "chosen" in row and "rejected" in row:
        prompt, chosen, rejected = split_pair(row["chosen"], row["rejected"])
        return {**rest, "prompt": prompt, "chosen": chosen, "rejected": rejected}
    raise RowProblem("is missing", "prompt")


def demonstration_row(row: Row) -> Row:
    """`prompt` and `completion`; of `messages` the last assistant turn is the completion, of comparisons the best."""
    whole = "prompt" in row and "completion" in row
    if not whole and "messages" not in row and "chosen" in row and "rejected" in row:
        pair = preference_row(row)
        return {"prompt": pair["prompt"], "completion": pair["chosen"]}
    if not whole and "messages" not in row and "completions" in row and "ranks" in row:
        ranked = ranking_row(row)
        return {"prompt": ranked["prompt"], "completion": ranked["completions"][ranked["ranks"].index(0)]}
    if "messages" in row and not whole:
        dialogue = check.messages(row["messages"], "messages")
        turn = _last_turn(dialogue)
        if turn == len(dialogue):
            raise RowProblem("does not end with an assistant message", "messages")
        return {"prompt": check.prompt(dialogue[:turn], "messages"), "completion": dialogue[turn:]}
    prompt = check.prompt(check.cell(row, "prompt"))
    return {"prompt": prompt, "completion": check.reply(check.cell(row, "completion"), "completion", prompt)}


def preference_row(row: Row) -> Row:
    """`prompt`, `chosen`, `rejected`; without a prompt it is what the two dialogues share.

    A text prompt beside dialogues as messages is a copy of their first message, so they are split all the
    same, as TRL does.
    """
    chosen, rejected = check.cell(row, "chosen"), check.cell(row, "rejected")
    if isinstance(chosen, str | list):
        _differ(chosen, rejected)
    if "prompt" in row and not (isinstance(row["prompt"], str) and isinstance(chosen, list)):
        prompt = check.prompt(row["prompt"])
        chosen = check.reply(chosen, "chosen", prompt)
        rejected = check.reply(rejected, "rejected", prompt)
    else:
        prompt, chosen, rejected = split_pair(chosen, rejected)
    _differ(chosen, rejected)
    return {"prompt": prompt, "chosen": chosen, "rejected": rejected} | _about(row)


def _about(row: Row) -> Row:
    """What a comparison may say of itself: `margin` and `source`, each where it is there."""
    about = {name: row[name] for name in ("margin", "source") if row.get(name) not in (None, "")}
    if "margin" in about:
        about["margin"] = check.number(about["margin"], "margin")
    return {name: str(value) if name == "source" else value for name, value in about.items()}


def _differ(chosen: Any, rejected: Any) -> None:
    if chosen == rejected:
        raise RowProblem("are equal, so neither is preferred", "chosen", "rejected")


def ranking_row(row: Row) -> Row:
    """`prompt`, `completions`, `ranks`, perhaps `finished`; text completions of messages become messages.

    Without `ranks` the `choice`, a number from 0, says which completion is better than all others.
    """
    prompt = check.prompt(check.cell(row, "prompt"))
    given = check.cell(row, "completions")
    if not isinstance(given, list):
        raise RowProblem(
            f"is {check.kind(given)} where a list of completions is expected (in CSV as JSON)", "completions"
        )
    if len(given) < 2:
        raise RowProblem(f"has {len(given)} where two or more are expected", "completions")
    if isinstance(prompt, list):
        given = [[{"role": "assistant", "content": one}] if isinstance(one, str) else one for one in given]
    completions = [check.reply(one, "completions", prompt, f"item {number} is") for number, one in enumerate(given, 1)]
    if "choice" in row and "ranks" not in row:
        best = check.choice(row["choice"], len(given))
        ranks = [int(number != best) for number in range(len(given))]
    else:
        ranks = check.ranks(check.cell(row, "ranks"), len(given))
    ranked = {"prompt": prompt, "completions": completions, "ranks": ranks} | _about(row)
    return ranked if row.get("finished") is None else ranked | {"finished": check.flags(row["finished"], len(given))}


def rating_row(row: Row) -> Row:
    """`prompt`, `completion` and `rating`, perhaps `finished`; prompt and completion as in demonstrations."""
    rated = {**demonstration_row(row), "rating": check.number(check.cell(row, "rating"), "rating")}
    finished = row.get("finished")
    if finished in (None, ""):
        return rated
    if isinstance(finished, str):  # a cell of CSV
        finished = {"true": True, "false": False}.get(finished.lower(), finished)
    if not isinstance(finished, bool):
        raise RowProblem(f"is {check.kind(finished)} where true/false is expected", "finished")
    return rated | {"finished": finished}


CONVERT = {
    "texts": text_row,
    "prompts": prompts_row,
    "demonstrations": demonstration_row,
    "preferences": preference_row,
    "rankings": ranking_row,
    "ratings": rating_row,
}


def split_pair(chosen: Any, rejected: Any) -> tuple[Any, Any, Any]:
    """Two whole dialogues -> (prompt, chosen reply, rejected reply).

    Messages are split before the last assistant turn, and HH-RLHF's texts after their last
    "\\n\\nAssistant:"; what comes before must be the same in both. Other texts are split at the last word
    boundary of their common prefix, and the space there goes with the replies.
    """
    if isinstance(chosen, list) and isinstance(rejected, list):
        parts = _split_messages(check.messages(chosen, "chosen"), check.messages(rejected, "rejected"))
    else:
        parts = _split_texts(check.text(chosen, "chosen"), check.text(rejected, "rejected"))
    prompt, chosen, rejected = parts
    if not prompt or (isinstance(prompt, str) and not prompt.strip()):
        raise RowProblem("share no prompt", "chosen", "rejected")
    return prompt, chosen, rejected


def _last_turn(dialogue: list[Message]) -> int:
    """Where the assistant messages at the end of the dialogue begin."""
    start = len(dialogue)
    while start and dialogue[start - 1]["role"] == "assistant":
        start -= 1
    return start


def _split_messages(chosen: list[Message], rejected: list[Message]) -> tuple[list, list, list]:
    turn = _last_turn(chosen)
    for column, dialogue in (("chosen", chosen), ("rejected", rejected)):
        if _last_turn(dialogue) == len(dialogue):
            raise RowProblem("does not end with an assistant message", column)
    if chosen[:turn] != rejected[: _last_turn(rejected)]:
        raise RowProblem("share no prompt: they differ before the last assistant turn", "chosen", "rejected")
    return chosen[:turn], chosen[turn:], rejected[turn:]


def _split_texts(chosen: str, rejected: str) -> tuple[str, str, str]:
    if TURN in chosen or TURN in rejected:
        cut = chosen.rfind(TURN) + len(TURN)
        other = rejected.rfind(TURN) + len(TURN)
        if TURN not in chosen or TURN not in rejected or chosen[:cut] != rejected[:other]:
            what = f"share no prompt: they differ before their last {TURN!r}"
            raise RowProblem(what, "chosen", "rejected")
        return chosen[:cut], chosen[cut:], rejected[cut:]
    same = 0
    while same < min(len(chosen), len(rejected)) and chosen[same] == rejected[same]:
        same += 1
    cut = max((i + 1 for i in range(same) if chosen[i].isspace()), default=0)
    if cut and chosen[cut - 1] == " ":
        cut -= 1
    return chosen[:cut], chosen[cut:], rejected[cut:]


def preferences_to_rankings(dataset: Dataset) -> Dataset:
    """Preferences as rankings of two: the chosen reply has rank 0, the rejected rank 1."""
    _need(dataset, "preferences_to_rankings", "prompt", "chosen", "rejected")
    pairs = zip(dataset["chosen"], dataset["rejected"], strict=True)
    about = {name: list(dataset[name]) for name in ("margin", "source") if name in dataset.column_names}
    return Dataset.from_dict(
        {
            "prompt": list(dataset["prompt"]),
            "completions": [list(pair) for pair in pairs],
            "ranks": [[0, 1]] * len(dataset),
            **about,
        }
    )


def rankings_to_preferences(dataset: Dataset) -> Dataset:
    """Every pair of a prompt's completions with different ranks, in TRL's explicit-prompt preference format.

    A pair of equal texts is left out, since neither is preferred. The pairs of a prompt stay together and in
    the order of its completions. Errors: `LabError` when no pair is left.
    """
    _need(dataset, "rankings_to_preferences", "prompt", "completions", "ranks")
    rows = []
    for row in dataset:
        for one, two in combinations(zip(row["ranks"], row["completions"], strict=True), 2):
            if one[0] != two[0] and one[1] != two[1]:
                best, worst = sorted((one, two), key=lambda pair: pair[0])
                rows.append({"prompt": row["prompt"], "chosen": best[1], "rejected": worst[1]})
    if not rows:
        raise LabError("rankings_to_preferences: no two completions of a prompt differ in rank; give ranks that do")
    return Dataset.from_list(rows)


def _need(dataset: Dataset, function: str, *columns: str) -> None:
    if missing := [column for column in columns if column not in dataset.column_names]:
        there = check.names(dataset.column_names)
        raise LabError(f"{function}: the data set has no column {check.names(missing)}; it has {there}")
