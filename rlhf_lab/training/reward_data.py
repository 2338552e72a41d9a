"""What reward models learn from, as token ids: rankings, and replies with a rating each."""

from collections.abc import Sequence
from typing import NamedTuple

import torch

from rlhf_lab.data import encode_pair, right_pad
from rlhf_lab.errors import LabError
from rlhf_lab.models import Scorer


class Ranked(NamedTuple):
    """Tokenised rankings: for each prompt its ids, its replies' ids, and their ranks (0 = best, equal = tie)."""

    prompts: list[list[list[int]]]  # per prompt and reply: a long reply may cut its prompt
    replies: list[list[list[int]]]
    ranks: list[list[int]]
    margins: list[float]  # per prompt; 0 where the data say nothing


class Rated(NamedTuple):
    """Tokenised rated replies, one prompt and one rating each."""

    prompts: list[list[int]]
    replies: list[list[int]]
    ratings: list[float]


def encode_rankings(rankings, tokenizer, max_length: int | None) -> Ranked:
    """Tokenise columns prompt, completions and ranks. A prompt whose replies all tie says nothing and is left out.

    A column `finished` (one true/false per reply) tells which replies ended by EOS; without it all did.
    A column `margin` (one number per prompt) says how clear its comparisons are.
    Errors: `LabError` if nothing is left, or naming the row with a reply that does not fit or a negative margin.
    """
    data = Ranked([], [], [], [])
    for number, row in enumerate(rankings, 1):
        if len(set(row["ranks"])) < 2:
            continue
        ended = row.get("finished") or [True] * len(row["completions"])
        try:
            pairs = [
                encode_pair(tokenizer, row["prompt"], text, finished=end, max_length=max_length)
                for text, end in zip(row["completions"], ended, strict=True)
            ]
        except LabError as error:
            raise LabError(f"rankings, row {number}: {error}") from None
        data.prompts.append([pair.prompt_ids for pair in pairs])
        data.replies.append([pair.reply_ids for pair in pairs])
        data.ranks.append(list(row["ranks"]))
        data.margins.append(row.get("margin") or 0.0)
        if data.margins[-1] < 0:
            raise LabError(f"rankings, row {number}: margin is {row['margin']}; give 0 or more")
    if not data.ranks:
        raise LabError("reward model: no comparisons; give at least one prompt with two replies of unequal rank")
    return data


def encode_ratings(rows, tokenizer, max_length: int | None) -> Rated:
    """Tokenise columns prompt, completion and rating, and `finished` (true/false) if there is one.

    Errors: `LabError` if there is no row, or naming the row with a reply that does not fit.
    """
    data = Rated([], [], [])
    for number, row in enumerate(rows, 1):
        if "rating" not in row:
            raise LabError(
                "reward model: losses 'regression' and 'bins' learn from a column 'rating'; give rated replies"
            )
        ended = row.get("finished")
        try:
            pair = encode_pair(
                tokenizer, row["prompt"], row["completion"], finished=ended is not False, max_length=max_length
            )
        except LabError as error:
            raise LabError(f"ratings, row {number}: {error}") from None
        data.prompts.append(pair.prompt_ids)
        data.replies.append(pair.reply_ids)
        data.ratings.append(float(row["rating"]))
    if not data.ratings:
        raise LabError("reward model: no rated replies; give at least one")
    return data


def head_outputs(scorer: Scorer, pad_id: int, prompts: Sequence[list[int]], replies: Sequence[list[int]]):
    """(N, n) what the head says of each reply, by the ids of prompts and replies. Equal ones are read once, and tie."""
    texts = [(*prompt, *reply) for prompt, reply in zip(prompts, replies, strict=True)]
    place = {text: number for number, text in enumerate(dict.fromkeys(texts))}
    ids, mask = right_pad(list(place), pad_id)
    outputs = scorer.sequence_outputs(ids.to(scorer.device), mask.to(scorer.device))
    return outputs[torch.tensor([place[text] for text in texts], device=scorer.device)]


def ranked_scores(scorer: Scorer, pad_id: int, data: Ranked, rows: list[int]):
    """(B, K) scores, mask and ranks of those prompts; K is the largest number of replies among them."""
    sizes = [len(data.ranks[i]) for i in rows]
    prompts, replies = [p for i in rows for p in data.prompts[i]], [r for i in rows for r in data.replies[i]]
    flat = scorer.scores(head_outputs(scorer, pad_id, prompts, replies))
    mask = torch.arange(max(sizes)).expand(len(rows), -1) < torch.tensor(sizes)[:, None]
    mask = mask.to(flat.device)
    scores = flat.new_zeros(mask.shape).masked_scatter(mask, flat)
    ranks = torch.zeros(mask.shape, dtype=torch.long, device=flat.device)
    ranks[mask] = torch.tensor([rank for i in rows for rank in data.ranks[i]], device=flat.device)
    return scores, mask, ranks
