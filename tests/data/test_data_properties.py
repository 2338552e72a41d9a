"""Whatever is in a file, it gives rows or one line; and the ways to write one data set give the same rows."""

import contextlib
import csv
import io
import json

import pytest
from datasets import Dataset
from hypothesis import given, settings
from hypothesis import strategies as st

from rlhf_lab.data import hold_out, load_demonstrations, load_preferences, load_prompts, load_rankings, unseen
from rlhf_lab.errors import LabError

LOADERS = [load_prompts, load_demonstrations, load_preferences, load_rankings]
COLUMNS = ["prompt", "completion", "chosen", "rejected", "completions", "ranks", "messages", "n"]
quick = settings(max_examples=60, deadline=None, derandomize=True)

text = st.text(st.characters(), max_size=8)  # emoji, right-to-left marks, line breaks, half characters
plain = st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats() | text
message = st.fixed_dictionaries({"role": st.sampled_from(["user", "assistant", "system"]), "content": text})
values = st.recursive(
    plain | message, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(text, inner, max_size=2)
)
rows = st.dictionaries(st.sampled_from(COLUMNS) | text, values | text | st.lists(message, max_size=3), max_size=4)
# What no JSON writer makes: torn lines, numbers of thousands of digits, lists a thousand deep, other encodings.
odd_lines = st.sampled_from(
    [
        b'{"prompt": "x"', b'{"prompt": ' + b"9" * 5000 + b"}", b"[" * 20000, b"null", b"3", b'"x"', b"{}",
        b'{"prompt": "\\ud83d"}', b'{"n": NaN, "prompt": "x"}', b"\x00", b'{"prompt": "\xe9"}', b"{'prompt': 'x'}",
        b"\r", b"\xff\xfe{}", b"\xef\xbb\xbf{}",
    ]
)  # fmt: skip
lines = st.lists(rows.map(lambda row: json.dumps(row).encode()) | odd_lines | st.binary(max_size=12), max_size=5)


def loads_or_tells(load, path, **options):
    """The rows, or None after one line that names the file."""
    try:
        found = load(path, **options)
    except LabError as error:
        line = str(error)
        assert len(line.splitlines()) == 1
        assert path.name in line
        return None
    assert len(found) > 0
    for row in found:
        json.dumps(row, ensure_ascii=False).encode()  # nothing that cannot be written again
        assert row["prompt"]
    return found


@pytest.mark.parametrize("load", LOADERS, ids=lambda load: load.__name__)
@pytest.mark.parametrize("suffix", ["jsonl", "json"])
def test_any_lines_are_rows_or_one_line(load, suffix, tmp_path, capsys):
    path = tmp_path / f"any.{suffix}"

    @quick
    @given(lines)
    def check(content):
        path.write_bytes(b"\n".join(content))
        strict = loads_or_tells(load, path)
        kept = loads_or_tells(load, path, on_bad="drop")
        if strict is not None:  # nothing was wrong, so nothing is dropped
            assert repr(kept.to_list()) == repr(strict.to_list())  # NaN differs from itself

    check()


@pytest.mark.parametrize("load", LOADERS, ids=lambda load: load.__name__)
def test_any_cells_are_rows_or_one_line(load, tmp_path, capsys):
    path = tmp_path / "any.csv"
    cell = text | st.sampled_from(
        ['["a", "b"]', "[0, 1]", "[" * 9999, "9" * 5000, "true", "1e999", '[{"role": 1}]', "\x00"]
    )

    @quick
    @given(st.lists(st.sampled_from(COLUMNS) | text, max_size=4), st.lists(st.lists(cell, max_size=4), max_size=4))
    def check(header, body):
        out = io.StringIO()
        csv.writer(out, escapechar="\\").writerows([header, *body])
        path.write_bytes(out.getvalue().encode("utf-8", "surrogatepass"))
        loads_or_tells(load, path)
        loads_or_tells(load, path, on_bad="drop")

    check()


@pytest.mark.parametrize("suffix", ["jsonl", "csv", "csv.gz", "parquet"])
def test_any_bytes_are_rows_or_one_line(suffix, tmp_path):
    path = tmp_path / f"any.{suffix}"

    @quick
    @given(st.binary(max_size=60))
    def check(content):
        path.write_bytes(content)
        loads_or_tells(load_prompts, path)

    check()


# --- one data set, written in several ways

word = st.text(st.characters(codec="utf-8", exclude_categories=["Cc", "Zs", "Zl", "Zp"]), min_size=1, max_size=6)
reply = st.text(st.characters(codec="utf-8", exclude_categories=["Cc", "Zl", "Zp"]), max_size=8)
user = word.map(lambda content: {"role": "user", "content": content})
assistant = reply.map(lambda content: {"role": "assistant", "content": content})
system = word.map(lambda content: {"role": "system", "content": content})
dialogue = st.builds(
    lambda head, turns, last: [*head, *(m for turn in turns for m in turn), last],
    st.lists(system, max_size=1), st.lists(st.tuples(user, assistant), max_size=2), user,
)  # fmt: skip


def written(path, rows):
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return path


@quick
@given(dialogue, assistant, assistant)
def test_conversations_with_and_without_a_prompt_column_are_the_same_rows(tmp_path_factory, prompt, good, bad):
    """The prompt is what comes before the last assistant turn, whether it has a column of its own or not."""
    path = tmp_path_factory.getbasetemp() / "a.jsonl"
    if good != bad:
        explicit = {"prompt": prompt, "chosen": [good], "rejected": [bad]}
        implicit = {"chosen": [*prompt, good], "rejected": [*prompt, bad]}
        for row in (explicit, implicit):
            assert load_preferences(written(path, [row])).to_list() == [explicit]
    told = {"prompt": prompt, "completion": [good]}
    for row in (told, {"messages": [*prompt, good]}):
        assert load_demonstrations(written(path, [row])).to_list() == [told]
    for row in ({"prompt": prompt}, {"messages": [*prompt, good]}, {"messages": prompt}):
        assert load_prompts(written(path, [row]))["prompt"][0] == prompt


@quick
@given(st.lists(word, min_size=1, max_size=4), reply, reply)
def test_texts_with_and_without_a_prompt_column_lose_no_letter(tmp_path_factory, words, good, bad):
    path = tmp_path_factory.getbasetemp() / "a.jsonl"
    prompt = f"\n\nHuman: {' '.join(words)}\n\nAssistant:"
    if good != bad:
        explicit = {"prompt": prompt, "chosen": good, "rejected": bad}
        for row in (explicit, {"chosen": prompt + good, "rejected": prompt + bad}):
            assert load_preferences(written(path, [row])).to_list() == [explicit]
        plain = {"chosen": f"{' '.join(words)} {good}x", "rejected": f"{' '.join(words)} {bad}y"}
        (row,) = load_preferences(written(path, [plain])).to_list()
        assert {"chosen": row["prompt"] + row["chosen"], "rejected": row["prompt"] + row["rejected"]} == plain


@quick
@given(st.lists(st.fixed_dictionaries({"prompt": word, "completion": reply}), min_size=1, max_size=3))
def test_every_file_type_gives_back_any_script(tmp_path_factory, rows):
    folder = tmp_path_factory.getbasetemp()
    Dataset.from_list(rows).to_parquet(folder / "a.parquet")
    (folder / "a.json").write_text(json.dumps(rows), encoding="utf-8")  # ASCII, with escapes
    with (folder / "a.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, ["prompt", "completion"], quoting=csv.QUOTE_ALL)
        writer.writeheader()
        writer.writerows(rows)
    written(folder / "a.jsonl", rows)
    for suffix in ("jsonl", "json", "csv", "parquet"):
        assert load_demonstrations(folder / f"a.{suffix}").to_list() == rows


# --- broken rows are counted, and no prompt stands on both sides


@quick
@given(st.lists(st.booleans(), min_size=1, max_size=30))
def test_of_any_mixture_the_broken_rows_are_counted_and_the_others_kept(tmp_path_factory, good):
    path = tmp_path_factory.getbasetemp() / "a.jsonl"
    path.write_text("\n".join(f'{{"prompt": "p{n}"}}' if ok else '{"prompt": "torn' for n, ok in enumerate(good)))
    broken = [str(number) for number, ok in enumerate(good, 1) if not ok]
    if not broken:
        assert len(load_prompts(path)) == len(good)
        return
    with pytest.raises(LabError, match=f"a.jsonl, line {broken[0]}: broken JSON at character 12") as told:
        load_prompts(path)
    assert len(broken) == 1 or f"; {len(broken)} such rows: {', '.join(broken[:10])}" in str(told.value)
    if any(good):
        with contextlib.redirect_stdout(io.StringIO()) as told:
            kept = load_prompts(path, on_bad="drop")["prompt"]
        assert list(kept) == [f"p{n}" for n, ok in enumerate(good) if ok]
        assert f"dropped {len(broken)} of {len(good)} rows: broken JSON ({len(broken)}, first" in told.getvalue()


@quick
@given(st.lists(st.sampled_from("abcdefgh"), min_size=1, max_size=12), st.integers(1, 9), st.randoms())
def test_what_is_held_out_was_not_learned_from(prompts, count, random):
    rows = Dataset.from_dict({"prompt": prompts, "n": list(range(len(prompts)))})
    different = set(prompts)
    if len(different) < 2:
        with pytest.raises(LabError, match="one prompt cannot be both"):
            hold_out(rows, count)
        return
    train, heldout = hold_out(rows, count)
    held = list(heldout["prompt"])
    assert len(held) == len(set(held)) == min(count, max(1, len(different) // 5))
    assert not set(held) & set(train["prompt"])
    assert set(held) | set(train["prompt"]) == different
    assert len(train) == sum(prompt not in held for prompt in prompts)
    shuffled = prompts[:]
    random.shuffle(shuffled)
    again = hold_out(Dataset.from_dict({"prompt": shuffled}), count)
    assert set(again.heldout["prompt"]) == set(held)  # whatever the order of the rows


@quick
@given(st.lists(st.sampled_from("abcdef"), min_size=1, max_size=8), st.lists(st.sampled_from("defghi"), min_size=1))
def test_a_prompt_on_both_sides_is_refused_or_dropped(train, heldout):
    ours, theirs = (
        Dataset.from_dict({"prompt": [f" {p} x"[i % 2 :] for i, p in enumerate(side)]}) for side in (train, heldout)
    )
    shared = [p for p in heldout if p in train]
    if not shared:
        assert len(unseen(theirs, ours)) == len(heldout)
        return
    with pytest.raises(LabError, match=f"^{len(shared)} of {len(heldout)} held-out rows have a prompt of the training"):
        unseen(theirs, ours)
    if len(shared) < len(heldout):
        kept = unseen(theirs, ours, on_bad="drop")["prompt"]
        assert [p.split()[0] for p in kept] == [p for p in heldout if p not in train]
    else:
        with pytest.raises(LabError, match="no row is left"):
            unseen(theirs, ours, on_bad="drop")
