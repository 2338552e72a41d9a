"""08_human_feedback: which pairs are asked about, what labels cost, and that a person can stop anywhere."""

import json
import math
import sqlite3
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from scipy import stats

from rlhf_lab.errors import LabError
from rlhf_lab.rewards.ensemble import disagreement
from rlhf_lab.sandbox.world import World
from rlhf_lab.workbench.labelling import Session, answer_table, pair_items
from rlhf_lab.workbench.reference import as_text
from rlhf_lab.workbench.stages import HumanFeedbackStage
from rlhf_lab.workbench.studies import human_feedback as study
from rlhf_lab.workbench.studies import human_feedback_loop as looping
from rlhf_lab.workbench.studies import human_feedback_results as kept
from rlhf_lab.workbench.studies.rounds import Learned, candidates, chosen, doubts
from rlhf_lab.workbench.studies.units import gaps_of

TINY = {
    "policy": World.load().base_model,
    "rounds": 2,
    "labels": 12,
    "pool": 24,
    "members": 2,
    "eval_prompts": 4,
    "max_new_tokens": 8,
    "reward_model": {"epochs": 1},
    "ppo": {"updates": 1, "batch_size": 8},
}


class Quiet(SimpleNamespace):
    """A run that only remembers."""

    def __init__(self, folder):
        super().__init__(folder=folder, progress=lambda *told: None, rewind=lambda step: None, logged=[])

    def file(self, name):
        (self.folder / name).parent.mkdir(parents=True, exist_ok=True)
        return self.folder / name

    def log(self, metrics, step):
        self.logged.append((step, metrics))


def grounded(folder, **changes):
    return study.common_ground(HumanFeedbackStage.parse(TINY | changes), Quiet(folder))


@pytest.fixture(scope="module")
def ground(tmp_path_factory):
    return grounded(tmp_path_factory.mktemp("ground"))


@pytest.fixture(scope="module")
def done(tmp_path_factory, ground):
    """All arms through all rounds, and their folder."""
    run = Quiet(tmp_path_factory.mktemp("done"))
    arms = looping.loops(ground, run).arms
    for loop in arms.values():
        while not loop.over:
            loop.label()
            loop.learn()
    return arms, run.folder


def pairs(n):
    rows = [{"prompt": f"p{i}", "reply_a": f"a{i}", "reply_b": f"b{i}"} for i in range(n)]
    return pair_items([row | {"finished": [True, i % 2 == 0], "models": "m"} for i, row in enumerate(rows)])


# ---- Which pairs


def test_disagreement_is_the_variance_of_who_wins():
    gaps = torch.tensor([[math.log(3), 0.0, 0.0, 9.0], [-math.log(3), 0.0, math.log(3), 9.0]])
    # P(first): 3/4 and 1/4, 1/2 and 1/2, 1/2 and 3/4, and two that are equally sure
    assert disagreement(gaps).tolist() == pytest.approx([1 / 16, 0, 1 / 64, 0], abs=1e-6)


def test_the_pairs_in_doubt_are_those_where_the_members_disagree_in_their_own_logits():
    gaps = {"p0": (0.0, 0.0), "p1": (math.log(3), -math.log(3)), "p2": (9.0, 9.0), "p3": (0.0, math.log(3))}

    def scores(number, gain):  # reply a leads by the gap, in units that were made `gain` times as small
        return lambda prompts, completions: [
            gain * gaps[prompt][number] * (text[0] == "a") + 5
            for prompt, text in zip(prompts, completions, strict=True)
        ]

    members, scorers = [scores(0, 2.0), scores(1, 0.1)], [SimpleNamespace(gain=2.0), SimpleNamespace(gain=0.1)]
    learned = Learned(scorers, SimpleNamespace(members=members), None, None)
    found = doubts(learned, pairs(4))
    assert found == pytest.approx([0, 1 / 16, 0, 1 / 64], abs=1e-6)
    assert [item.prompt for item in chosen(pairs(4), 2, seed="any", doubt=found).items] == ["p1", "p3"]


def test_without_doubt_every_pair_is_as_likely_and_a_coin_stands_between_equals():
    counts = np.zeros(6)
    for seed in range(600):
        uniform = [item.prompt for item in chosen(pairs(6), 2, seed=str(seed)).items]
        assert uniform == [item.prompt for item in chosen(pairs(6), 2, seed=str(seed), doubt=[0.1] * 6).items]
        assert uniform == sorted(set(uniform)) and len(uniform) == 2
        counts[[int(name[1]) for name in uniform]] += 1
    assert abs(counts - 200).max() < 4 * math.sqrt(600 * 1 / 3 * 2 / 3)


def test_too_few_different_replies_are_told(ground):
    short = {"labels": 24, "pool": 24, "max_new_tokens": 1}  # of one token, many are equal
    one = ground._replace(cfg=ground.cfg.model_copy(update=short))
    with pytest.raises(LabError, match=r"round 1: \d+ of 24 pairs of replies differ, but 'labels' is 24"):
        candidates(one, one.sft, 1, "SFT")


# ---- What it costs, and where it goes


def events(path) -> list[dict]:
    with sqlite3.connect(path) as file:
        return [json.loads(text) for (text,) in file.execute("SELECT event FROM events ORDER BY seq")]


def items_of(path) -> dict[str, dict]:
    with sqlite3.connect(path) as file:
        found = [json.loads(text) for (text,) in file.execute("SELECT item FROM items ORDER BY place")]
    return {item["id"]: item for item in found}


def test_every_arm_pays_for_the_same_number_of_labels(done):
    _, folder = done
    for arm in kept.ARMS:
        for number in (1, 2):
            file = folder / "labels" / arm / f"round-{number}.sqlite"
            given = [event["item"] for event in events(file) if event["action"] == "choose"]
            assert len(given) == len(set(given)) == 12 and set(given) == set(items_of(file))
        assert not (folder / "labels" / arm / "round-3.sqlite").exists()


def test_arms_begin_alike_and_only_the_online_ones_ask_about_the_policy(done):
    arms, folder = done
    items = {(arm, n): items_of(folder / "labels" / arm / f"round-{n}.sqlite") for arm in kept.ARMS for n in (1, 2)}
    assert items["offline", 1] == items["online_uniform", 1] == items["online_disagreement", 1]
    firsts = [{k: v for k, v in arms[arm].rounds[0].items() if k != "seconds"} for arm in kept.ARMS]
    assert firsts[0] == firsts[1] == firsts[2]
    models = {arm: {name for item in items[arm, 2].values() for name in item["models"]} for arm in kept.ARMS}
    assert models == {"offline": {"SFT"}, "online_uniform": {"round 1"}, "online_disagreement": {"round 1"}}
    prompts = {key: {item["prompt"] for item in found.values()} for key, found in items.items()}
    assert not prompts["offline", 1] & prompts["offline", 2]
    assert prompts["online_uniform", 2] != prompts["online_disagreement", 2]


def test_what_is_trained_on_is_what_was_labelled_and_nothing_else(done):
    """Read off the raw events: the side that was chosen, by the order in which the replies were shown."""
    arms, folder = done
    for arm in kept.ARMS:
        wanted = []
        for number in (1, 2):
            file = folder / "labels" / arm / f"round-{number}.sqlite"
            items, order = items_of(file), None
            for event in events(file):
                if event["action"] == "shown":
                    order = event["body"]["order"]
                else:
                    replies = [items[event["item"]]["replies"][place] for place in order]
                    won = ["first", "second"].index(event["body"]["shown"])
                    wanted.append((items[event["item"]]["prompt"], replies[won], replies[1 - won]))
        rows = [json.loads(line) for line in (folder / "labels" / arm / "preferences.jsonl").open()]
        assert [(row["prompt"], row["chosen"], row["rejected"]) for row in rows] == wanted
        assert {row["annotator"] for row in rows} == {"robot"} and len(rows) == 24
        assert arms[arm].rounds[-1]["pairs"] == arms[arm].rounds[-1]["labels"] == 24


def test_sides_are_drawn_and_undone_for_the_robot_too(ground, tmp_path, monkeypatch):
    """A robot that always takes the first has no preference among the replies."""
    monkeypatch.setattr(looping, "candidates", lambda *_: pairs(400))
    cfg = ground.cfg.model_copy(update={"labels": 400, "pool": 400, "rounds": 1})
    biased = ground._replace(cfg=cfg, labeler=lambda prompt, replies: 0, models="m")
    loop = looping.loops(biased, Quiet(tmp_path)).arms["offline"]
    loop.label()
    rows = study.training_rows([loop.file(1)], tmp_path / "rows.jsonl")
    assert len(rows) == 400 and {row["shown_first"] for row in rows} == {"chosen"}
    firsts = sum(row["chosen"].startswith("a") for row in rows)
    assert abs(firsts - 200) < 4 * math.sqrt(400 / 4)
    for row in rows:  # reply a always finished, reply b on even prompts
        ended = {"a": True, "b": int(row["prompt"][1:]) % 2 == 0}
        assert row["finished"] == [ended[row["chosen"][0]], ended[row["rejected"][0]]]


def test_figures_tables_and_nothing_is_run_twice(done, ground, monkeypatch):
    arms, folder = done
    units = arms["offline"].finished.units
    assert list(units) == [f"{arm}/{number}" for arm in kept.ARMS for number in (1, 2)]
    figures = kept.results(units)
    assert all(np.isfinite(list(figures.values()))) and figures["labels_offline_2"] == 24
    assert len(kept.round_table(units)) == 6 and len(kept.comparison_table(units)) == 2
    assert len(kept.figure(units).axes) == 3

    monkeypatch.setattr(looping, "learn", lambda *_: pytest.fail("learned again"))
    again = looping.loops(ground, Quiet(folder))
    assert all(loop.over for loop in again.arms.values()) and again.yours is again.arms["online_disagreement"]
    assert again.arms["offline"].rounds == arms["offline"].rounds
    before = {path: path.read_bytes() for path in folder.rglob("*.sqlite")}
    again.yours.label(), again.yours.learn()
    assert before == {path: path.read_bytes() for path in folder.rglob("*.sqlite")}


def test_rounds_whose_pairs_another_run_has_are_done_again(done, ground, tmp_path):
    """The file of results has round 1, but without its policy and its labels no round 2 can follow."""
    arms, folder = done
    lines = (folder / "finished.jsonl").read_text().splitlines()
    (tmp_path / "finished.jsonl").write_text("".join(line + "\n" for line in lines if "offline/2" not in line))
    found = looping.loops(ground, Quiet(tmp_path)).arms
    assert found["offline"].number == 1 and found["online_uniform"].over


# ---- A person


def answer(loop, value, limit=None) -> None:
    """As the widget does: one question after the other, each time from where the file says."""
    session, given = Session(loop.file(loop.number), loop.by), 0
    while (question := session.question) is not None and given != limit:
        given += session.act("choose", question.token, value)


@pytest.fixture
def watched(ground, tmp_path, monkeypatch):
    """Makes the loop of a person, as a fresh kernel does that resumes the run; what is learned is of no interest."""
    monkeypatch.setenv("RLHF_LAB_HEADLESS", "0")
    monkeypatch.setattr(looping, "learn", lambda *_: None)
    monkeypatch.setattr(looping, "round_figures", lambda ground, files, rows, learned: {"pairs": len(rows)})
    mine = ground._replace(cfg=ground.cfg.model_copy(update={"arms": ["offline"]}))
    return lambda **changes: looping.loops(mine._replace(**changes), Quiet(tmp_path)).yours


def test_a_person_stops_in_the_middle_of_round_two_and_comes_back(watched, tmp_path):
    yours = watched()
    assert (yours.name, yours.by) == ("offline-me", "me") and yours.label() is not None
    answer(yours, "first", limit=5)
    with pytest.raises(LabError, match="offline-me, round 1: 5 of 12 pairs have a label; label the other 7") as told:
        yours.learn()
    assert "\n" not in str(told.value)
    answer(watched(), "first")
    yours = watched()
    yours.learn()
    assert yours.number == 2
    answer(yours, "second", limit=4)

    back = watched()
    assert back.number == 2 and back.rounds == yours.rounds
    assert back.label().view["done"] == 4
    answer(back, "second")
    back.learn()
    assert back.over and back.label() is None and back.rounds[-1]["pairs"] == 24
    files = [tmp_path / "labels" / "offline-me" / f"round-{number}.sqlite" for number in (1, 2)]
    given = [[event for event in events(file) if event["action"] == "choose"] for file in files]
    assert [len(each) for each in given] == [len({event["item"] for event in each}) for each in given] == [12, 12]
    assert {event["body"]["shown"] for event in given[0]} == {"first"} != {given[1][3]["body"]["shown"]}
    assert watched().over


def test_too_few_labels_that_decide_are_counted_and_can_be_mended(watched):
    yours = watched()
    answer(yours, "first", limit=7)
    answer(yours, "tie")
    with pytest.raises(LabError, match="7 labels decide a pair, and a reward model needs 10") as told:
        yours.learn()
    assert "\n" not in str(told.value) and yours.number == 1
    session = Session(yours.file(1), "me")
    for _ in range(3):
        session.act("undo", session.token)
    answer(yours, "second")
    yours.learn()
    assert yours.rounds == [{"pairs": 10, "seconds": pytest.approx(0, abs=60)}]


def test_labels_of_another_models_replies_are_told_and_kept(watched):
    answer(watched(), "first", limit=5)
    for step in ("label", "learn"):
        with pytest.raises(LabError, match="round-1.sqlite: its replies are of another SFT model") as told:
            getattr(watched(models="other"), step)()
        assert "\n" not in str(told.value)
    assert len(answer_table(watched().file(1))) == 5


def test_repeats_cost_labels_and_are_not_learned_from(ground, tmp_path):
    repeated = ground._replace(cfg=ground.cfg.model_copy(update={"repeat_share": 0.25, "arms": ["offline"]}))
    loop = looping.loops(repeated, Quiet(tmp_path)).yours
    loop.label()
    assert len(answer_table(loop.file(1))) == 15
    assert len(study.training_rows([loop.file(1)], tmp_path / "rows.jsonl")) == 12


def test_without_a_sandbox_a_person_labels_and_there_is_no_gold(tmp_path, monkeypatch):
    prompts = tmp_path / "prompts.jsonl"
    texts = World.load().prompts("train", 30)
    prompts.write_text("".join(json.dumps({"prompt": text}) + "\n" for text in texts))
    mine = grounded(tmp_path / "ground", sandbox="", prompts=str(prompts), arms=["offline"], members=1, rounds=1)
    with pytest.raises(LabError, match="nobody watches, and without a 'sandbox'"):
        looping.loops(mine, Quiet(tmp_path / "run"))
    monkeypatch.setenv("RLHF_LAB_HEADLESS", "0")
    yours, arms = looping.loops(mine, Quiet(tmp_path / "run"))
    assert arms == {} and list(study.held_out_pairs(mine)) == ["prompt", "first", "second"]
    answer(yours, "first")
    yours.learn()
    figures = yours.rounds[0]
    assert figures["pairs"] == 12 and np.isfinite(figures["kl"]) and not {"gold", "accuracy"} & set(figures)
    assert len(kept.figure(yours.finished.units).axes) == 3


# ---- The settings


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"labels": 9}, "labels"),
        ({"labels": 65, "pool": 64}, "'labels' is 65, but the 'pool' that they are chosen from is 64"),
        ({"members": 1}, "wants 'members' of 2"),
        ({"arms": ["offline", "offline"]}, "names one twice"),
        ({"arms": []}, "arms"),
        ({"annotator": "../me"}, "annotator"),
        ({"reward_model": {"loss": "regression"}}, "for 'pairwise'"),
        ({"ppo": {"seed": 3}}, "ppo.seed follows from the settings that all arms share"),
    ],
)
def test_settings_that_make_no_sense_are_refused_by_name(settings, message):
    with pytest.raises(LabError, match=message) as told:
        HumanFeedbackStage.parse(settings, "test.yaml")
    assert "\n" not in str(told.value)


def test_more_prompts_than_there_are_is_told(tmp_path):
    with pytest.raises(LabError, match="prompts: 4096 to learn from, but the rounds take 5000"):
        grounded(tmp_path, pool=2500)


def test_a_round_is_known_by_its_settings():
    def hashes(**changes):
        return kept.settings_hashes(HumanFeedbackStage.parse(changes), "offline/1")

    assert hashes() == hashes(seed=3, threads=1, results="x", arms=["offline"], annotator="you", resume=True)
    assert len({hashes(), hashes(labels=65), hashes(ppo={"lr": 1e-4}), hashes(labeler={"flip": 0.1})}) == 4


# ---- Over seeds


def record(file, unit: str, seed: int, common="c", **values) -> None:
    figures = {"labels": 10 * int(unit[-1]), "accuracy_gold": 0.6, "accuracy_policy": 0.5, "gold_sft": 0.0} | values
    line = {"unit": unit, "seed": seed, "common": common, "own": "o", "models": f"m{seed}", "figures": figures}
    with file.open("a") as out:
        out.write(json.dumps(line) + "\n")


def test_arms_are_compared_seed_by_seed_with_intervals_that_hold_at_once(tmp_path):
    file = tmp_path / "all.jsonl"
    assert kept.recorded(file) is None
    record(file, "offline/2", 0, common="old", gold=9.0)
    gold = {"offline": [0.1, 0.5, 0.2], "online_uniform": [0.4, 0.6, 0.4], "online_disagreement": [0.3, 0.9, 0.5]}
    for arm, values in gold.items():
        for seed, value in enumerate(values):
            record(file, f"{arm}/1", seed, gold=0.1)
            record(file, f"{arm}/2", seed, gold=value)
    record(file, "offline-me/1", 0, gold=99.0)  # a person's are not the robot's
    found = kept.recorded(file)
    assert found.left_out == 1 and len(found.units) == 6
    assert gaps_of(found.units, "online_uniform/2", "offline/2", "gold") == pytest.approx([0.3, 0.1, 0.2])
    table = kept.comparison_table(found.units)
    at = stats.ttest_1samp([0.3, 0.1, 0.2], 0).confidence_interval(1 - 0.05 / 2)  # two differences in one round
    assert table.loc[("online_uniform less offline", 2), "gold"] == f"0.20 [{at.low:.2f}, {at.high:.2f}]"
    assert [round_ for _, round_ in table.index] == [2, 2]
    assert kept.round_table(found.units).loc[("online_uniform", 2), "labels"].startswith("20 ")
    assert len(kept.figure(found.units).axes) == 3
    assert "online_uniform less offline" in as_text(file)
