"""Prompts, demonstrations, preferences, rankings and ratings: read, checked, tokenised and padded."""

from rlhf_lab.data.collation import Padded, left_pad, right_pad
from rlhf_lab.data.formats import preferences_to_rankings, rankings_to_preferences
from rlhf_lab.data.loading import (
    load_demonstrations,
    load_preferences,
    load_prompts,
    load_rankings,
    load_ratings,
    load_texts,
)
from rlhf_lab.data.reading import column_names
from rlhf_lab.data.splits import Split, hold_out, hold_out_openings, unseen
from rlhf_lab.data.tokenising import (
    Encoded,
    cut_prompt,
    encode_pair,
    encode_prompt,
    encode_reply,
    render_chat,
    render_reply,
    to_text,
)

__all__ = [
    "Encoded",
    "Padded",
    "Split",
    "column_names",
    "cut_prompt",
    "encode_pair",
    "encode_prompt",
    "encode_reply",
    "hold_out",
    "hold_out_openings",
    "left_pad",
    "load_demonstrations",
    "load_preferences",
    "load_prompts",
    "load_rankings",
    "load_ratings",
    "load_texts",
    "preferences_to_rankings",
    "rankings_to_preferences",
    "render_chat",
    "render_reply",
    "right_pad",
    "to_text",
    "unseen",
]
