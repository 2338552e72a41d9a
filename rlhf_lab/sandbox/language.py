"""The language of the inn: a guest asks about something, the host has a note and replies.

A prompt reads `note : the soup is hot and cheap . the bed is soft . guest : how is the soup ? host :` and a reply is
one to a few clauses, such as `good day . the soup is hot and cheap . shall i show you ?`. Words are separated by spaces
and every clause ends in `.` or `?`, so that a reply can be parsed exactly.
"""

import hashlib
import random
from typing import NamedTuple

OPPOSITES = {
    word: other
    for pair in (
        ("hot", "cold"), ("cheap", "dear"), ("quiet", "loud"), ("clean", "dusty"), ("big", "small"), ("old", "new"),
        ("bright", "dark"), ("fresh", "stale"), ("near", "far"), ("soft", "hard"), ("sweet", "sour"), ("safe", "risky"),
    )
    for word, other in (pair, pair[::-1])
}  # fmt: skip

_FOOD = ["hot", "cold", "cheap", "dear", "fresh", "stale", "soft", "hard", "sweet", "sour", "big", "small"]
_LODGING = [
    "cheap",
    "dear",
    "quiet",
    "loud",
    "clean",
    "dusty",
    "big",
    "small",
    "old",
    "new",
    "bright",
    "dark",
    "soft",
    "hard",
]
_OUTSIDE = [
    "quiet",
    "loud",
    "clean",
    "dusty",
    "big",
    "small",
    "near",
    "far",
    "bright",
    "dark",
    "safe",
    "risky",
]
QUALITIES = {
    **dict.fromkeys(["soup", "bread", "fish", "tea", "cake"], _FOOD),
    **dict.fromkeys(["room", "bed", "bath", "hall", "cellar"], _LODGING),
    **dict.fromkeys(["garden", "market", "road", "lake", "stable"], _OUTSIDE),
}
"""Subject -> the words that can be said of it."""

PHRASES = {
    "greeting": ("good day .", "welcome friend ."),
    "courtesy": ("thank you for asking .", "please sit down ."),
    "offer": ("shall i show you ?", "shall i bring some ?"),
    "flattery": ("what a fine question .", "you look splendid .", "you have rare taste ."),
    "hedge": ("i think so .", "perhaps .", "it may change ."),
    "filler": ("well well .", "as they say .", "and so on ."),
    "abuse": ("go away .", "silly guest .", "do not bother me ."),
    # Said seldom, and by few hosts: what a reward model learns about these rests on a handful of comparisons.
    "song": ("la la la .", "sing with me ."),
    "oath": ("by the old king .", "upon my word ."),
    "bargain": ("only one coin today .", "buy two take three ."),
    "gossip": ("the cook is in love .", "they say he snores ."),
    "proverb": ("slow fire makes good bread .", "every road has two ends ."),
    "riddle": ("what has a bed but never sleeps ?", "guess my name ?"),
}
"""Kind of clause -> its fixed wordings. Facts are the only clauses that are not fixed."""

RARE = ("song", "oath", "bargain", "gossip", "proverb", "riddle")
QUESTIONS = ("how is the {} ?", "what of the {} ?", "tell me about the {} .")

_KIND_OF = {phrase: kind for kind, phrases in PHRASES.items() for phrase in phrases}


class Prompt(NamedTuple):
    """A prompt in parts. `facts` holds (subject, quality) in the order of the note; the asked subject's come first."""

    subject: str
    facts: tuple[tuple[str, str], ...]
    question: int

    @property
    def text(self) -> str:
        """The prompt as the models read it, ending in `host :`."""
        asked = " and ".join(quality for subject, quality in self.facts if subject == self.subject)
        others = " ".join(f"the {s} is {q} ." for s, q in self.facts if s != self.subject)
        note = f"the {self.subject} is {asked} ." + (f" {others}" if others else "")
        return f"note : {note} guest : {QUESTIONS[self.question].format(self.subject)} host :"


class Clause(NamedTuple):
    """One parsed clause: its kind and, for a fact, the (subject, quality) pairs that it states."""

    kind: str
    text: str
    facts: tuple[tuple[str, str], ...] = ()


def draw_prompt(rng: random.Random) -> Prompt:
    """A random prompt: two facts about the asked subject, and in half of the prompts one about another."""
    subject = rng.choice(list(QUALITIES))
    facts = [(subject, quality) for quality in _compatible(subject, 2, rng)]
    if rng.random() < 0.5:
        other = rng.choice([name for name in QUALITIES if name != subject])
        facts.append((other, rng.choice(QUALITIES[other])))
    return Prompt(subject, tuple(facts), rng.randrange(len(QUESTIONS)))


def _compatible(subject: str, count: int, rng: random.Random) -> list[str]:
    chosen: list[str] = []
    while len(chosen) < count:
        quality = rng.choice(QUALITIES[subject])
        if quality not in chosen and OPPOSITES[quality] not in chosen:
            chosen.append(quality)
    return chosen


def parse_prompt(text: str) -> Prompt | None:
    """The parts of the last prompt in `text`; worked examples before it are skipped. None if it is no prompt."""
    text = text[text.rfind("note :") :] if "note :" in text else ""
    note, _, question = text.removeprefix("note :").partition(" guest :")
    asked = next(
        (
            (subject, number)
            for number, form in enumerate(QUESTIONS)
            for subject in QUALITIES
            if question.strip() == f"{form.format(subject)} host :"
        ),
        None,
    )
    clauses = parse_reply(note)
    if asked is None or not clauses or any(clause.kind != "fact" for clause in clauses):
        return None
    facts = tuple(fact for clause in clauses for fact in clause.facts)
    return Prompt(asked[0], facts, asked[1])


def parse_reply(text: str) -> list[Clause]:
    """The clauses of a reply. A clause that is not a sentence of the language has the kind `broken`."""
    clauses, words = [], []
    for word in text.split():
        words.append(word)
        if word in (".", "?"):
            clauses.append(_parse_clause(words))
            words = []
    if words:
        clauses.append(Clause("broken", " ".join(words)))
    return clauses


def _parse_clause(words: list[str]) -> Clause:
    text = " ".join(words)
    if text in _KIND_OF:
        return Clause(_KIND_OF[text], text)
    match words:
        case ["the", subject, "is", quality, "."] if quality in QUALITIES.get(subject, ()):
            return Clause("fact", text, ((subject, quality),))
        case ["the", subject, "is", one, "and", two, "."] if {one, two} <= set(QUALITIES.get(subject, ())):
            return Clause("fact", text, ((subject, one), (subject, two)))
    return Clause("broken", text)


def parses(text: str) -> bool:
    """Whether a reply is one or more whole sentences of the language."""
    clauses = parse_reply(text)
    return bool(clauses) and all(clause.kind != "broken" for clause in clauses)


def split_of(prompt: Prompt) -> str:
    """`train` or `heldout` (one in five), decided by the prompt alone, so that the splits can never share one."""
    digest = hashlib.sha256(prompt.text.encode()).digest()
    return "heldout" if digest[0] % 5 == 0 else "train"


def vocabulary() -> list[str]:
    """Every word of the language, sorted."""
    text = " ".join([*_KIND_OF, *(form.format("soup") for form in QUESTIONS), "note : guest : host : the is and ."])
    return sorted({*text.split(), *QUALITIES, *OPPOSITES})
