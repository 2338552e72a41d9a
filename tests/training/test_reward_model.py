"""The reward model: its loss against TRL's and against pairs by hand, and what its training does."""

import itertools
import math

import pytest
import torch
import transformers
from datasets import Dataset
from tiny import EOS, PAD, make_scorer, make_tokenizer, same, weights_of

from rlhf_lab.errors import LabError, RunFailed
from rlhf_lab.models import load_scorer
from rlhf_lab.training.reward_data import head_outputs
from rlhf_lab.training.reward_model import (
    RewardModelConfig,
    evaluate_reward_model,
    reward_model_start,
    reward_model_steps,
    score_replies,
    shift_to_demonstrations,
)

PAIRS = [
    ("w2 w3", "w4 w5 w6", "w7"),
    ("w8", "w9", "w2 w2 w2 w3"),
    ("w10 w11 w12 w13", "w3 w5", "w5 w3"),
    ("w4 w2", "w6 w7 w8 w9", "w13 w12"),
]


def rankings_of(pairs) -> list[dict]:
    return [{"prompt": prompt, "completions": [good, bad], "ranks": [0, 1]} for prompt, good, bad in pairs]


def make_settings(**changes) -> RewardModelConfig:
    """Settings that leave the weights where they are, and the gradient as it is."""
    return RewardModelConfig(**({"lr": 0, "precision": "fp32", "max_grad_norm": 1e6, "batch_size": 64} | changes))


def one_step(scorer, rankings, **changes):
    state = reward_model_start(make_settings(**changes), scorer, make_tokenizer(), rankings)
    (stats,) = reward_model_steps(state)
    return stats


def plain_score(scorer, prompt: str, reply: str) -> float:
    """transformers' own forward of one row without padding, whose last token is the EOS."""
    ids = make_tokenizer().encode(f"{prompt} {reply}") + [EOS]
    with torch.no_grad():
        found = scorer.model(input_ids=torch.tensor([ids]), attention_mask=torch.ones(1, len(ids), dtype=torch.long))
    return found.logits[0, 0].item()


def nats(gap: float) -> float:
    """-log sigmoid(gap)."""
    return math.log1p(math.exp(-gap))


# ---- The loss


@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
def test_two_replies_are_the_pairwise_loss_of_trl(architecture, tmp_path):
    """Loss and gradients of TRL's RewardTrainer on the same comparisons, by its own tokenising and collating."""
    from trl import RewardConfig, RewardTrainer

    columns = dict(zip(("prompt", "chosen", "rejected"), zip(*PAIRS, strict=True), strict=True))
    columns = {  # TRL tokenises prompt and reply as one text, so the space between them is the reply's
        name: [text if name == "prompt" else f" {text}" for text in texts] for name, texts in columns.items()
    }
    theirs = make_scorer(architecture).model
    trainer = RewardTrainer(
        model=theirs,
        args=RewardConfig(
            str(tmp_path),
            use_cpu=True,
            bf16=False,
            gradient_checkpointing=False,
            report_to="none",
            disable_tqdm=True,
            center_rewards_coefficient=None,
        ),
        train_dataset=Dataset.from_dict(columns),
        processing_class=make_tokenizer(),
    )
    theirs.eval()
    batch = trainer.data_collator([trainer.train_dataset[row] for row in range(len(PAIRS))])
    loss = trainer.compute_loss(theirs, batch)
    loss.backward()

    scorer = make_scorer(architecture)
    stats = one_step(scorer, rankings_of(PAIRS))
    assert stats.loss == pytest.approx(loss.item(), rel=1e-5)
    assert stats.accuracy == trainer._metrics["eval"]["accuracy"][0]
    assert stats.gap == pytest.approx(trainer._metrics["eval"]["margin"][0], rel=1e-4)
    gradients = dict(theirs.named_parameters())
    for name, parameter in scorer.model.named_parameters():
        assert torch.allclose(parameter.grad, gradients[name].grad, rtol=1e-4, atol=1e-6), name
    norm = math.sqrt(sum(float(p.grad.square().sum()) for p in theirs.parameters()))
    assert stats.grad_norm == pytest.approx(norm, rel=1e-4)


RAGGED = [
    {"prompt": "w2", "completions": ["w3", "w4 w5", "w6 w7 w8"], "ranks": [1, 0, 2]},
    {"prompt": "w9 w10 w11", "completions": ["w12", "w13 w2"], "ranks": [1, 0]},
    {"prompt": "w4 w4", "completions": ["w5", "w6", "w7", "w8"], "ranks": [0, 1, 1, 2]},  # a tie
    {"prompt": "w13", "completions": ["w2", "w3"], "ranks": [0, 0]},  # nothing but a tie
]


def gaps_by_hand(scorer) -> list[list[float]]:
    """For each prompt the gaps of its untied pairs, winner less loser."""
    found = []
    for row in RAGGED:
        scored = [
            (rank, plain_score(scorer, row["prompt"], reply))
            for rank, reply in zip(row["ranks"], row["completions"], strict=True)
        ]
        pairs = itertools.combinations(scored, 2)
        found.append([(b - a) if i > j else (a - b) for (i, a), (j, b) in pairs if i != j])
    return found


@pytest.mark.parametrize("reverse", [False, True])
def test_whole_rankings_are_the_mean_over_their_pairs(reverse):
    """Of unequal size, with ties: mean over the pairs of a prompt, then over the prompts that have one."""
    scorer = make_scorer()
    gaps = gaps_by_hand(scorer)
    assert [len(row) for row in gaps] == [3, 1, 5, 0]
    signed = [[-gap if reverse else gap for gap in row] for row in gaps if row]
    expected = sum(sum(map(nats, row)) / len(row) for row in signed) / 3
    stats = one_step(scorer, RAGGED, reverse=reverse)
    assert stats.loss == pytest.approx(expected, rel=1e-5)
    every = [gap for row in signed for gap in row]
    assert stats.gap == pytest.approx(sum(every) / 9, rel=1e-4)
    assert stats.accuracy == pytest.approx(sum(gap > 0 for gap in every) / 9)


def test_a_reply_that_never_finished_gets_no_eos():
    """As it was sampled: the score is read at its last word. Where nothing is said, replies have finished."""
    scorer, tokenizer = make_scorer(), make_tokenizer()
    ids = tokenizer.encode("w2 w3 w4")
    with torch.no_grad():
        unfinished = scorer.model(input_ids=torch.tensor([ids]), attention_mask=torch.ones(1, 3, dtype=torch.long))
    expected = unfinished.logits[0, 0].item() - plain_score(scorer, "w2", "w5")
    row = {"prompt": "w2", "completions": ["w3 w4", "w5"], "ranks": [0, 1]}
    found = one_step(scorer, [row | {"finished": [False, True]}])
    assert (found.gap, found.loss) == pytest.approx((expected, nats(expected)), rel=1e-4)
    assert one_step(scorer, [row]).gap != pytest.approx(expected, rel=1e-3)
    for said in ({}, {"finished": None}):  # a file in which only some rows say it
        assert one_step(scorer, [row | said]).gap == one_step(scorer, [row | {"finished": [True, True]}]).gap
    scores = score_replies(scorer, tokenizer, ["w2", "w2"], ["w3 w4", "w5"], finished=[False, True])
    assert (scores[0] - scores[1]).item() == pytest.approx(expected, rel=1e-4)


def test_a_reply_that_does_not_fit_is_named_with_its_row():
    rows = [RAGGED[1], {"prompt": "w2", "completions": ["w3 w4 w5 w6", "w7"], "ranks": [0, 1]}]
    with pytest.raises(LabError, match=r"^rankings, row 2: the prompt has 1 tokens and the reply 5"):
        one_step(make_scorer(), rows, max_length=5)


def test_evaluation_is_the_same_loss_over_any_batches():
    scorer = make_scorer()
    every = [row for row in gaps_by_hand(scorer) if row]
    for batch_size in (1, 2, 64):
        found = evaluate_reward_model(scorer, make_tokenizer(), RAGGED, max_length=32, batch_size=batch_size)
        assert found.loss == pytest.approx(sum(sum(map(nats, row)) / len(row) for row in every) / 3, rel=1e-5)
        assert found.comparisons == 9
        assert found.accuracy == pytest.approx(sum(gap > 0 for row in every for gap in row) / 9)
        assert found.gap == pytest.approx(sum(map(sum, every)) / 9, rel=1e-4)


def test_equal_scores_count_half():
    # Two replies of the same words have the same score, whoever is said to be better.
    rankings = [{"prompt": "w2", "completions": ["w3", "w3"], "ranks": [0, 1]}]
    found = evaluate_reward_model(make_scorer(), make_tokenizer(), rankings, max_length=32)
    assert found == pytest.approx((math.log(2), 0.5, 0.0, 1))


def test_the_order_of_the_columns_says_nothing():
    scorer = make_scorer()
    turned = [{key: value if key == "prompt" else value[::-1] for key, value in row.items()} for row in RAGGED]
    assert one_step(scorer, turned).loss == pytest.approx(one_step(scorer, RAGGED).loss, rel=1e-6)


def test_pad_may_be_eos():
    found = []
    for pad in ("<pad>", "</s>"):
        state = reward_model_start(make_settings(), make_scorer(), make_tokenizer(pad=pad), RAGGED)
        found.append(next(reward_model_steps(state)).loss)
    assert found[0] == found[1]


def test_a_long_prompt_is_cut_from_the_left():
    scorer, tokenizer = make_scorer(), make_tokenizer()
    long, short = "w5 w6 w7 w8 w2 w3", "w2 w3"
    cut = score_replies(scorer, tokenizer, [long], ["w4"], max_length=4)
    assert cut.tolist() == pytest.approx([plain_score(scorer, short, "w4")], abs=1e-5)
    with pytest.raises(LabError, match="too short"):
        score_replies(scorer, tokenizer, [long], ["w4 w5 w6"], max_length=4)


# ---- Learning

# The reply with w3 is better, wherever it stands and whatever surrounds it.
LEARNABLE = [
    {
        "prompt": f"w{2 + row % 12}",
        "completions": [f"w3 w{4 + row % 10}", f"w{13 - row % 9} w5"][:: 1 if row % 2 else -1],
        "ranks": [0, 1][:: 1 if row % 2 else -1],
    }
    for row in range(96)
]
TRAIN, HELD_OUT = LEARNABLE[:64], LEARNABLE[64:]


def trained(**changes) -> tuple[float, list[float]]:
    """Held-out accuracy after training, and the losses."""
    scorer, tokenizer = make_scorer(initializer_range=0.1), make_tokenizer()
    config = RewardModelConfig(**({"epochs": 4, "batch_size": 8, "lr": 1e-2, "precision": "fp32"} | changes))
    losses = [stats.loss for stats in reward_model_steps(reward_model_start(config, scorer, tokenizer, TRAIN))]
    return evaluate_reward_model(scorer, tokenizer, HELD_OUT, max_length=32).accuracy, losses


def test_it_learns_what_is_better():
    accuracy, losses = trained()
    assert accuracy > 0.9
    assert sum(losses[-8:]) < sum(losses[:8]) / 2


def test_reversed_it_learns_what_is_worse():
    accuracy, losses = trained(reverse=True)
    assert accuracy < 0.1
    assert sum(losses[-8:]) < sum(losses[:8]) / 2


def test_steps_order_and_schedule():
    config = make_settings(epochs=3, batch_size=10, lr=1e-3, warmup_ratio=0.25)
    state = reward_model_start(config, make_scorer(), make_tokenizer(), TRAIN)
    assert state.steps == 3 * 7  # 64 prompts: six batches of ten and one of four
    for epoch in range(3):
        seen = torch.cat(list(state.order[7 * epoch : 7 * epoch + 7])).tolist()
        assert sorted(seen) == list(range(64))
    rates = [stats.lr for stats in reward_model_steps(state)]
    assert rates[:5] == pytest.approx([1e-3 * step / 5 for step in (1, 2, 3, 4, 5)])  # 21 / 4 = 5 steps of warm-up
    assert rates[5] == pytest.approx(1e-3)
    assert rates[13] == pytest.approx(1e-3 * (0.1 + 0.45 * (1 + math.cos(math.pi * 0.5))))  # half of 16
    assert rates[5:] == sorted(rates[5:], reverse=True)
    assert 1e-4 < rates[-1] < 1.2e-4


def test_closed_and_called_again_it_goes_on():
    ends = []
    for pauses in (0, 3):
        state = reward_model_start(make_settings(lr=1e-3, batch_size=16), make_scorer(), make_tokenizer(), TRAIN)
        for _ in range(pauses):
            next(reward_model_steps(state))
        list(reward_model_steps(state))
        assert state.step == state.steps == 4
        ends.append(weights_of(state.scorer))
    assert same(*ends)


def test_the_gradient_is_clipped_and_reported_before():
    scorer = make_scorer()
    free = one_step(scorer, RAGGED).grad_norm
    assert one_step(scorer, RAGGED, max_grad_norm=1e-3).grad_norm == pytest.approx(free)
    left = math.sqrt(sum(float(p.grad.square().sum()) for p in scorer.parameters()))
    assert left == pytest.approx(1e-3, rel=1e-2)
    assert free > 0.1


@pytest.mark.parametrize("precision", ["auto", "bf16"])
def test_other_precisions(precision):
    full = one_step(make_scorer(), RAGGED).loss
    assert one_step(make_scorer(), RAGGED, precision=precision).loss == pytest.approx(full, rel=0.05)


# ---- The shift


def test_demonstrations_score_0_on_average_and_the_loss_is_as_before(tmp_path):
    scorer, tokenizer = make_scorer(), make_tokenizer()
    demonstrations = Dataset.from_dict(
        {
            "prompt": [f"w{2 + row % 12}" for row in range(70)],
            "completion": [f"w{13 - row % 12} w2" for row in range(70)],
        }
    )
    scores = [plain_score(scorer, row["prompt"], row["completion"]) for row in demonstrations]
    before = evaluate_reward_model(scorer, tokenizer, RAGGED, max_length=32)
    mean = shift_to_demonstrations(scorer, tokenizer, demonstrations)
    assert mean == pytest.approx(sum(scores) / 70, abs=1e-5)
    assert abs(mean) > 0.01
    shifted = score_replies(scorer, tokenizer, demonstrations["prompt"], demonstrations["completion"])
    assert shifted.mean().item() == pytest.approx(0, abs=1e-5)
    assert shifted.tolist() == pytest.approx([score - mean for score in scores], abs=1e-4)
    assert evaluate_reward_model(scorer, tokenizer, RAGGED, max_length=32) == pytest.approx(before, abs=1e-5)
    assert shift_to_demonstrations(scorer, tokenizer, demonstrations) == pytest.approx(0, abs=1e-5)
    scorer.save(tmp_path / "saved", tokenizer)
    again = score_replies(load_scorer(tmp_path / "saved"), tokenizer, ["w2"], ["w3"])
    assert again.tolist() == pytest.approx([plain_score(scorer, "w2", "w3") - mean], abs=1e-5)


# ---- What is refused


@pytest.mark.parametrize("rankings", [[], [RAGGED[3]]])
def test_nothing_to_compare(rankings):
    with pytest.raises(LabError, match=r"^reward model: no comparisons; give at least one"):
        reward_model_start(make_settings(), make_scorer(), make_tokenizer(), rankings)
    with pytest.raises(LabError, match=r"^reward model: no comparisons; give at least one"):
        evaluate_reward_model(make_scorer(), make_tokenizer(), rankings, max_length=32)


def test_no_demonstrations_to_shift_by():
    nothing = Dataset.from_dict({"prompt": [], "completion": []})
    with pytest.raises(LabError, match=r"^reward model: no demonstrations .*give at least one"):
        shift_to_demonstrations(make_scorer(), make_tokenizer(), nothing)


def test_a_loss_that_is_no_number_fails():
    scorer = make_scorer()
    with torch.no_grad():
        scorer.head.weight[0, 0] = math.nan
    before = weights_of(scorer.model.base_model)
    with pytest.raises(RunFailed, match=r"^reward model step 1: the loss is nan; lower 'lr'"):
        one_step(scorer, RAGGED, lr=1e-3)
    assert same(weights_of(scorer.model.base_model), before)


def test_a_gradient_that_is_no_number_fails_and_leaves_the_weights():
    scorer = make_scorer()
    scorer.head.weight.register_hook(lambda gradient: gradient * math.inf)
    before = weights_of(scorer)
    with pytest.raises(RunFailed, match=r"^reward model step 1: the gradient's norm is (nan|inf); lower 'lr'"):
        one_step(scorer, RAGGED, lr=1e-3)
    assert same(weights_of(scorer), before)


def test_the_oracle_reads_the_last_token():
    """`plain_score` relies on transformers reading the last of a row without padding."""
    scorer = make_scorer()
    ids = torch.tensor([[2, 3, EOS]])
    hidden = scorer.model.base_model(input_ids=ids).last_hidden_state[0, -1]
    assert isinstance(scorer.model, transformers.PreTrainedModel)
    assert plain_score(scorer, "w2", "w3") == pytest.approx((scorer.head.weight[0] @ hidden).item(), abs=1e-5)


def test_what_is_read_together_changes_no_output():
    scorer, tokenizer = make_scorer(), make_tokenizer()
    texts = [("w2 w3 w4 w5 w6 w7", "w8 w9"), ("w2", "w3"), ("w4 w5", "w6 w7 w8")]
    ids = [[tokenizer.encode(part) for part in pair] for pair in texts]
    together = head_outputs(scorer, PAD, *zip(*ids, strict=True))
    alone = torch.cat([head_outputs(scorer, PAD, [prompt], [reply]) for prompt, reply in ids])
    torch.testing.assert_close(together, alone, atol=1e-6, rtol=1e-5)
