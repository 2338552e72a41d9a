"""What the notebook's trained judges learn from, and what is recorded of them."""

import json
from types import SimpleNamespace

import pandas as pd
import pytest

from rlhf_lab.errors import LabError
from rlhf_lab.workbench.learned_judge import LearnedJudgeConfig, judge_preferences, learned_results, mass

ROWS = [{"prompt": f"p{n}", "chosen": f"good {n}", "rejected": f"bad {n}"} for n in range(4)]


def asked(learned, **names):
    """The comparisons for settings of the learned judge, without a sandbox; p1 is held out."""
    cfg = SimpleNamespace(learned=learned, seed=0, max_new_tokens=4, on_bad="raise")
    return judge_preferences(cfg, None, None, None, None, ["p1", "p9"], **names)


def test_comparisons_of_ones_own_are_read_and_held_out_prompts_left_out(tmp_path, capsys):
    file = tmp_path / "pairs.jsonl"
    file.write_text("".join(json.dumps({"question": r["prompt"], **r, "prompt": ""}) + "\n" for r in ROWS))
    learned = LearnedJudgeConfig(preferences=str(file), columns={"prompt": "question"}, n_prompts=3)
    assert asked(learned) == [ROWS[0], ROWS[2]]
    assert "1 comparisons left out, their prompts are held out" in capsys.readouterr().out


def test_without_comparisons_there_are_none_and_a_line_says_so(capsys):
    assert asked(None) == []
    assert capsys.readouterr().out == ""
    assert asked(LearnedJudgeConfig()) == []
    assert "learned.preferences" in capsys.readouterr().out


def test_in_the_sandbox_the_best_stands_against_the_worst_and_the_file_says_it(tmp_path, monkeypatch):
    from rlhf_lab.sandbox.language import parse_prompt, split_of
    from rlhf_lab.sandbox.world import World
    from rlhf_lab.training import comparisons

    def sample_rankings(policy, tokenizer, prompts, rank, *, k, max_new_tokens, seed):
        ranks = [2, 0, 1]
        return [{"prompt": prompt, "completions": ["c", "a", "b"], "ranks": ranks} for prompt in prompts]

    monkeypatch.setattr(comparisons, "sample_rankings", sample_rankings)
    world = World.load()
    cfg = SimpleNamespace(learned=LearnedJudgeConfig(n_prompts=3, k=3), seed=0, max_new_tokens=4)
    rows = judge_preferences(cfg, SimpleNamespace(file=lambda name: tmp_path), world, None, None, [])
    prompts = [row["prompt"] for row in rows]
    assert rows == [{"prompt": prompt, "chosen": "a", "rejected": "c"} for prompt in prompts]
    assert len(set(prompts)) == 3 and {split_of(parse_prompt(prompt)) for prompt in prompts} == {"train"}
    assert [json.loads(line) for line in (tmp_path / "judge_preferences.jsonl").read_text().splitlines()] == rows


def test_the_mass_is_a_mean_by_judge_and_recorded_under_the_share():
    verdicts = pd.DataFrame({"judge": ["x", "y", "y"], "score_a": [0.1, 0.5, 0.7], "score_b": [0.2, 0.5, 0.1]})
    assert mass(verdicts).to_dict() == pytest.approx({"x": 0.3, "y": 0.9})
    statistics = ("accuracy", "consistency", "first_share", "excess_length")
    summary = pd.DataFrame([{"judge": "y", "statistic": s, "value": n} for n, s in enumerate(statistics)])
    found = learned_results(summary, verdicts, {"y": 0.8})
    assert found == pytest.approx(
        {
            **{"learned_0.8_accuracy": 0, "learned_0.8_consistency": 1, "learned_0.8_first_share": 2},
            **{"learned_0.8_excess_length": 3, "learned_0.8_mass": 0.9},
        }
    )


@pytest.mark.parametrize("wrong", [{"first_shares": [1.2]}, {"k": 1}, {"template": {"text": "{prompt}"}}, {"lrr": 1}])
def test_wrong_settings_are_refused_in_one_line(wrong):
    with pytest.raises(LabError, match="^learned: ") as told:
        LearnedJudgeConfig.parse(wrong, "learned")
    assert "\n" not in str(told.value)
