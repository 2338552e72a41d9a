"""Ensembles of reward models: the three ways to combine them, and their directory."""

import json
import statistics

import pytest
import torch

from rlhf_lab.errors import LabError
from rlhf_lab.models import load_scorer
from rlhf_lab.rewards import EnsembleReward, ModelReward, call_reward, load_reward, save_ensemble

TEXTS = {"prompts": ["w5", "w6 w7"], "completions": ["w8 w9", "w3"], "finished": [True, False]}
IDS = {"prompt_ids": [[5], [6, 7]], "completion_ids": [[8, 9, 1], [3]]}


@pytest.fixture(scope="module")
def scorers(reward_dir):
    """Three reward models that differ in their heads."""
    found = [load_scorer(reward_dir, trainable=False)]
    for seed in (1, 2):
        torch.manual_seed(seed)
        found.append(load_scorer(reward_dir, head="new", trainable=False))
    return found


@pytest.fixture(scope="module")
def folder(scorers, tokenizer, tmp_path_factory):
    path = tmp_path_factory.mktemp("ensemble") / "checkpoint"
    save_ensemble(scorers, path, tokenizer)
    return path


@pytest.mark.parametrize("given", [TEXTS, TEXTS | IDS])
def test_the_three_modes_by_hand(scorers, tokenizer, folder, given):
    """Coste et al. 2023, section 3: the mean, the least, and the mean less the variance over the members."""
    alone = [ModelReward(scorer, tokenizer, tokenizer)(**given) for scorer in scorers]
    per_reply = list(zip(*alone, strict=True))
    wanted = {
        "mean": [statistics.fmean(row) for row in per_reply],
        "worst": [min(row) for row in per_reply],
        "uncertainty": [statistics.fmean(row) - 0.3 * statistics.pvariance(row) for row in per_reply],
    }
    assert max(statistics.pvariance(row) for row in per_reply) > 0.01
    for mode, expected in wanted.items():
        reward = load_reward(folder, policy_tokenizer=tokenizer, mode=mode, coef=0.3)
        assert isinstance(reward, EnsembleReward)
        assert call_reward(reward, **given) == pytest.approx(expected, rel=1e-5)
        assert reward.last == [pytest.approx(row, rel=1e-5) for row in alone]


def test_every_member_runs_in_the_precision_asked_for(folder):
    assert [member.precision for member in load_reward(folder, precision="bf16").members] == ["bf16"] * 3


def test_who_knows_nothing_of_ensembles_reads_member_0(scorers, folder, tokenizer):
    first = ModelReward(load_scorer(folder, trainable=False), tokenizer)
    assert first(**TEXTS) == pytest.approx(ModelReward(scorers[0], tokenizer)(**TEXTS), rel=1e-6)


def test_saved_again_with_fewer_members_none_is_left(scorers, tokenizer, tmp_path):
    save_ensemble(scorers, tmp_path / "rm", tokenizer)
    save_ensemble(scorers[:2], tmp_path / "rm", tokenizer)
    assert len(load_reward(tmp_path / "rm").members) == 2
    save_ensemble(scorers[:1], tmp_path / "rm", tokenizer)
    assert isinstance(load_reward(tmp_path / "rm"), ModelReward)
    assert not list((tmp_path / "rm").glob("member-*"))


def refused(words, **how):
    with pytest.raises(LabError, match=words) as caught:
        load_reward(how.pop("source"), **how)
    assert "\n" not in str(caught.value)


def test_one_model_has_no_mode(reward_dir):
    refused(
        r"^reward_mode is 'worst' but .* is one reward model; train several \('members'\)",
        source=reward_dir,
        mode="worst",
    )


def test_settings_that_make_no_sense(folder):
    refused(r"^reward_mode is 'median'; choose 'mean', 'worst' or 'uncertainty'", source=folder, mode="median")
    refused(r"^uncertainty_coef is -1.0; give 0 or more", source=folder, mode="uncertainty", coef=-1.0)
    with pytest.raises(LabError, match="no reward models given"):
        EnsembleReward([])


def test_members_with_another_tokenizer_are_refused(scorers, tokenizer, other_tokenizer, tmp_path):
    save_ensemble(scorers[:2], tmp_path / "rm", tokenizer)
    scorers[1].save(tmp_path / "rm" / "member-1", other_tokenizer)
    refused(r"^ensemble: member 1 has another tokenizer than member 0", source=tmp_path / "rm")


def test_damaged_lists_and_members(scorers, tokenizer, tmp_path):
    save_ensemble(scorers[:2], tmp_path / "rm", tokenizer)
    listed = tmp_path / "rm" / "ensemble.json"
    for damage in ("{", "[]", '{"members": 3}', '{"other": []}'):
        listed.write_text(damage)
        refused(r"ensemble.json: cannot be read", source=tmp_path / "rm")
    listed.write_text(json.dumps({"members": [".", "member-7"]}))
    refused(r"ensemble.json: names member-7, which holds no model", source=tmp_path / "rm")
