"""TRL's formats by rows written by hand, and TRL's own functions beside ours."""

import pytest
from datasets import Dataset
from trl import extract_prompt

from rlhf_lab.data import (
    load_demonstrations,
    load_preferences,
    load_prompts,
    load_rankings,
    preferences_to_rankings,
    rankings_to_preferences,
)
from rlhf_lab.data.formats import split_pair
from rlhf_lab.errors import LabError


def user(content):
    return {"role": "user", "content": content}


def bot(content):
    return {"role": "assistant", "content": content}


SYSTEM = {"role": "system", "content": "Be brief."}


def first(load, row, **options):
    return load(Dataset.from_list([row]), **options)[0]


# standard


def test_explicit_columns_come_out_as_they_are_and_others_are_left_out():
    row = {"prompt": "The sky is", "chosen": " blue.", "rejected": " red.", "who": 2}
    assert first(load_preferences, row) == {"prompt": "The sky is", "chosen": " blue.", "rejected": " red."}
    row = {"prompt": "The sky is", "completion": " blue.", "source": "x"}
    assert first(load_demonstrations, row) == {"prompt": "The sky is", "completion": " blue."}
    row = {"prompt": "p", "completions": ["x", "y", "z"], "ranks": [1, 0, 1], "who": "me"}
    assert first(load_rankings, row) == {"prompt": "p", "completions": ["x", "y", "z"], "ranks": [1, 0, 1]}


def test_rankings_may_say_which_completions_finished(tmp_path):
    row = {"prompt": "p", "completions": ["x", "y"], "ranks": [1, 0], "finished": [True, False]}
    assert first(load_rankings, row) == row
    renamed = {("done" if name == "finished" else name): value for name, value in row.items()}
    assert first(load_rankings, renamed, columns={"finished": "done"}) == row
    (tmp_path / "r.csv").write_text('prompt,completions,ranks,finished\np,"[""x"",""y""]","[1,0]","[true,false]"\n')
    assert load_rankings(tmp_path / "r.csv").to_list() == [row]
    for wrong, what in (([True], "has 1 entries for 2 completions"), ([1, 0], "is not a list of true/false")):
        with pytest.raises(LabError, match=f"row 1, column 'finished': {what}"):
            first(load_rankings, row | {"finished": wrong})


def test_prompts_keep_their_other_columns():
    row = {"prompt": "2 + 2 =", "answer": 4, "tags": ["sum"]}
    assert first(load_prompts, row) == row


def test_a_reply_may_be_empty():
    row = {"prompt": "p", "chosen": "", "rejected": "no"}
    assert first(load_preferences, row) == row


def test_columns_are_renamed_and_may_swap():
    row = {"question": "p", "good": "x", "bad": "y"}
    names = {"prompt": "question", "chosen": "good", "rejected": "bad"}
    assert first(load_preferences, row, columns=names) == {"prompt": "p", "chosen": "x", "rejected": "y"}
    row = {"prompt": "p", "chosen": "x", "rejected": "y"}
    swapped = first(load_preferences, row, columns={"chosen": "rejected", "rejected": "chosen"})
    assert swapped == {"prompt": "p", "chosen": "y", "rejected": "x"}


def test_a_renamed_column_takes_the_place_of_one_with_its_name():
    row = {"prompt": "the template", "question": "p", "id": 7}
    assert first(load_prompts, row, columns={"prompt": "question"}) == {"prompt": "p", "id": 7}


# implicit prompts as text


@pytest.mark.parametrize(
    ("chosen", "rejected", "expected"),
    [
        ("The sky is blue.", "The sky is green.", ("The sky is", " blue.", " green.")),
        ("Q: why?\nA: so", "Q: why?\nA: no", ("Q: why?\nA:", " so", " no")),
        ("Q: why?\nyes", "Q: why?\nno", ("Q: why?\n", "yes", "no")),
    ],
)
def test_text_without_turns_is_split_as_trl_does(chosen, rejected, expected):
    assert split_pair(chosen, rejected) == expected
    theirs = extract_prompt({"chosen": chosen, "rejected": rejected})
    assert (theirs["prompt"], theirs["chosen"], theirs["rejected"]) == expected


def test_a_word_is_never_cut_in_two():
    """TRL's own split is "The sky is bl" + "ue." / "ack."."""
    assert split_pair("The sky is blue.", "The sky is black.") == ("The sky is", " blue.", " black.")
    assert split_pair("It is so", "It is so now") == ("It is", " so", " so now")


def test_dialogues_as_text_are_split_after_their_last_assistant():
    """The replies share their first word, which a common prefix would have given to the prompt."""
    history = "\n\nHuman: hi\n\nAssistant: hello\n\nHuman: why?\n\nAssistant:"
    pair = {"chosen": history + " Because so.", "rejected": history + " Because not."}
    assert first(load_preferences, pair) == {
        "prompt": history,
        "chosen": " Because so.",
        "rejected": " Because not.",
    }
    assert first(load_prompts, pair)["prompt"] == history


# conversational


def test_conversational_columns_stay_messages():
    row = {"prompt": [SYSTEM, user("hi")], "completion": [bot("hello")]}
    assert first(load_demonstrations, row) == row
    row = {"prompt": [user("hi")], "chosen": [bot("hello")], "rejected": [bot("go")]}
    assert first(load_preferences, row) == row


def test_messages_are_split_before_the_last_assistant_turn():
    history = [SYSTEM, user("hi"), bot("hello"), user("why?")]
    row = {"messages": [*history, bot("so")], "id": 1}
    assert first(load_demonstrations, row) == {"prompt": history, "completion": [bot("so")]}
    assert first(load_prompts, row) == {"prompt": history, "id": 1}
    assert first(load_prompts, {"messages": history}) == {"prompt": history}


def test_an_implicit_conversational_prompt_is_what_comes_before_the_last_turn():
    history = [user("hi"), bot("hello"), user("why?")]
    row = {"chosen": [*history, bot("so")], "rejected": [*history, bot("no")]}
    expected = {"prompt": history, "chosen": [bot("so")], "rejected": [bot("no")]}
    assert first(load_preferences, row) == expected
    assert extract_prompt(row) == expected


def test_a_text_prompt_beside_whole_dialogues_gives_way_to_theirs():
    """As TRL's trainers do, and as a well-known data set on the hub needs it."""
    row = {"prompt": "hi", "chosen": [user("hi"), bot("x")], "rejected": [user("hi"), bot("y")]}
    assert first(load_preferences, row) == {
        "prompt": [user("hi")],
        "chosen": [bot("x")],
        "rejected": [bot("y")],
    }


def test_other_keys_of_a_message_are_left_out():
    row = {"prompt": [{**user("hi"), "name": "Ann"}], "completion": [bot("x")]}
    assert first(load_demonstrations, row)["prompt"] == [user("hi")]


def test_text_completions_of_a_conversational_prompt_become_messages():
    row = {"prompt": [user("hi")], "completions": ["x", "y"], "ranks": [0, 1]}
    assert first(load_rankings, row)["completions"] == [[bot("x")], [bot("y")]]


# written back


def test_preferences_to_rankings_by_hand():
    pairs = Dataset.from_list([{"prompt": "p", "chosen": "x", "rejected": "y"}])
    rankings = preferences_to_rankings(pairs)
    assert rankings.to_list() == [{"prompt": "p", "completions": ["x", "y"], "ranks": [0, 1]}]
    assert load_rankings(rankings).to_list() == rankings.to_list()


def test_rankings_to_preferences_gives_all_pairs_with_different_ranks():
    """Ranks (1, 0, 2, 1): six pairs, one of them tied."""
    rankings = Dataset.from_list([{"prompt": "p", "completions": list("wxyz"), "ranks": [1, 0, 2, 1]}])
    pairs = [(row["chosen"], row["rejected"]) for row in rankings_to_preferences(rankings)]
    assert pairs == [("x", "w"), ("w", "y"), ("x", "y"), ("x", "z"), ("z", "y")]


def test_rankings_to_preferences_leaves_out_equal_texts():
    rankings = Dataset.from_list([{"prompt": "p", "completions": ["x", "x", "y"], "ranks": [0, 1, 2]}])
    pairs = rankings_to_preferences(rankings)
    assert [(row["chosen"], row["rejected"]) for row in pairs] == [("x", "y"), ("x", "y")]
    assert load_preferences(pairs).to_list() == pairs.to_list()


def test_there_and_back_again():
    pairs = Dataset.from_list(
        [
            {"prompt": [user("hi")], "chosen": [bot("x")], "rejected": [bot("y")]},
            {"prompt": [user("ho")], "chosen": [bot("z")], "rejected": [bot("x")]},
        ]
    )
    assert rankings_to_preferences(preferences_to_rankings(pairs)).to_list() == pairs.to_list()


def test_conversions_say_what_is_missing():
    with pytest.raises(LabError, match="preferences_to_rankings: the data set has no column 'rejected'"):
        preferences_to_rankings(Dataset.from_list([{"prompt": "p", "chosen": "x"}]))
    tied = Dataset.from_list([{"prompt": "p", "completions": ["x", "y"], "ranks": [0, 0]}])
    with pytest.raises(LabError, match="no two completions of a prompt differ in rank"):
        rankings_to_preferences(tied)
