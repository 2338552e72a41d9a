"""The reward model's other losses, rated replies, and the scale of its scores."""

import itertools
import math

import pytest
import torch
import transformers
from tiny import EOS, build_config, make_policy, make_scorer, make_tokenizer, same, weights_of

from rlhf_lab.errors import LabError
from rlhf_lab.models import load_scorer
from rlhf_lab.rewards import ModelReward
from rlhf_lab.training.reward_model import (
    RewardModelConfig,
    evaluate_ratings,
    evaluate_reward_model,
    normalise_to_reference,
    reward_model_start,
    reward_model_steps,
    score_replies,
    shift_to_demonstrations,
)

ROWS = [
    {"prompt": "w2", "completions": ["w3", "w4 w5", "w6 w7 w8"], "ranks": [1, 0, 2], "margin": 0.5},
    {"prompt": "w9 w10 w11", "completions": ["w12", "w13 w2"], "ranks": [1, 0], "margin": 2.0},
]
RATED = [
    {"prompt": "w2 w3", "completion": "w4 w5", "rating": 1.0},
    {"prompt": "w6", "completion": "w7", "rating": 4.5, "finished": False},
    {"prompt": "w8 w9", "completion": "w2 w2 w2", "rating": 3},
]
FIVE = [1.0, 2.0, 3.0, 4.0, 5.0]


def one_step(scorer, rows, **changes):
    config = RewardModelConfig(**({"lr": 0, "precision": "fp32", "max_grad_norm": 1e6, "batch_size": 64} | changes))
    (stats,) = reward_model_steps(reward_model_start(config, scorer, make_tokenizer(), rows))
    return stats


def plain_outputs(scorer, prompt: str, reply: str, *, finished: bool = True) -> list[float]:
    """transformers' own forward of one row without padding, which reads the last token."""
    ids = make_tokenizer().encode(f"{prompt} {reply}") + [EOS] * finished
    with torch.no_grad():
        found = scorer.model(input_ids=torch.tensor([ids]), attention_mask=torch.ones(1, len(ids), dtype=torch.long))
    return found.logits[0].tolist()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A tiny policy and its tokenizer, as plain transformers saves them."""
    path = tmp_path_factory.mktemp("policy")
    make_policy(initializer_range=0.1).save_pretrained(path)
    make_tokenizer().save_pretrained(path)
    return path


def new_scorer(folder, bins=None, seed: int = 0):
    torch.manual_seed(seed)
    return load_scorer(folder, head="new", bins=bins)


# ---- Losses on rankings


def ranked_scores(scorer) -> list[list[float]]:
    """For each prompt the scores from best to worst."""
    return [
        [
            plain_outputs(scorer, row["prompt"], row["completions"][row["ranks"].index(rank)])[0]
            for rank in sorted(row["ranks"])
        ]
        for row in ROWS
    ]


def choices(scores: list[float]) -> list[float]:
    """-log of the softmax of each among itself and those behind it."""
    return [math.log(sum(math.exp(s) for s in scores[i:])) - scores[i] for i in range(len(scores) - 1)]


@pytest.mark.parametrize("reverse", [False, True])
def test_plackett_luce_and_best_of_k_by_hand(reverse):
    scorer = make_scorer()
    ordered = [row[::-1] if reverse else row for row in ranked_scores(scorer)]
    found = one_step(scorer, ROWS, loss="plackett_luce", reverse=reverse)
    assert found.loss == pytest.approx(sum(sum(choices(row)) for row in ordered) / 2, rel=1e-5)
    best = one_step(scorer, ROWS, loss="best_of_k", reverse=reverse)
    assert best.loss == pytest.approx(sum(choices(row)[0] for row in ordered) / 2, rel=1e-5)
    gaps = [a - b for row in ordered for a, b in itertools.combinations(row, 2)]
    assert (found.gap, best.gap) == pytest.approx((sum(gaps) / 4,) * 2, rel=1e-4)


@pytest.mark.parametrize(("margin", "margins"), [("column", [0.5, 2.0]), (0.75, [0.75, 0.75])])
def test_margins_of_the_data_and_smoothing_by_hand(margin, margins):
    scorer = make_scorer()
    cost = []
    for row, m in zip(ranked_scores(scorer), margins, strict=True):
        gaps = [a - b for a, b in itertools.combinations(row, 2)]
        pairs = [0.8 * math.log1p(math.exp(m - g)) + 0.2 * math.log1p(math.exp(m + g)) for g in gaps]
        cost.append(sum(pairs) / len(pairs))
    found = one_step(scorer, ROWS, margin=margin, label_smoothing=0.2)
    assert found.loss == pytest.approx(sum(cost) / 2, rel=1e-5)


# The reply with w3 is better, wherever it stands and whatever surrounds it.
LEARNABLE = [
    {
        "prompt": f"w{2 + row % 12}",
        "completions": [f"w3 w{4 + row % 10}", f"w{13 - row % 9} w5", f"w{6 + row % 5} w7"],
        "ranks": [0, 1, 2],
    }
    for row in range(48)
]


@pytest.mark.parametrize("loss", ["plackett_luce", "best_of_k"])
def test_they_learn_what_is_better(loss):
    scorer, tokenizer = make_scorer(initializer_range=0.1), make_tokenizer()
    config = RewardModelConfig(loss=loss, epochs=4, batch_size=8, lr=1e-2, precision="fp32")
    list(reward_model_steps(reward_model_start(config, scorer, tokenizer, LEARNABLE[:32])))
    found = [row | {"ranks": [0, 1, 1]} for row in LEARNABLE[32:]]  # best_of_k knows of the best alone
    assert evaluate_reward_model(scorer, tokenizer, found, max_length=32).accuracy > 0.9


# ---- Losses on ratings


def test_regression_by_hand(folder):
    scorer = make_scorer()
    outputs = [plain_outputs(scorer, r["prompt"], r["completion"], finished=r.get("finished", True))[0] for r in RATED]
    ratings = [row["rating"] for row in RATED]
    found = one_step(scorer, RATED, loss="regression")
    assert found.loss == pytest.approx(sum((o - r) ** 2 for o, r in zip(outputs, ratings, strict=True)) / 3, rel=1e-5)
    gaps = [outputs[i] - outputs[j] for i, j in itertools.permutations(range(3), 2) if ratings[i] > ratings[j]]
    assert found.gap == pytest.approx(sum(gaps) / 3, rel=1e-4)
    assert found.accuracy == pytest.approx(sum(gap > 0 for gap in gaps) / 3)
    mirrored = [1.0 + 4.5 - rating for rating in ratings]  # reversed: the best rating is the worst
    turned = one_step(scorer, RATED, loss="regression", reverse=True)
    assert turned.loss == pytest.approx(sum((o - r) ** 2 for o, r in zip(outputs, mirrored, strict=True)) / 3, rel=1e-5)


def test_a_fresh_head_starts_from_the_mean_rating(folder):
    scorer = new_scorer(folder)
    before = score_replies(scorer, make_tokenizer(), ["w2"], ["w3"]).item()
    one_step(scorer, RATED, loss="regression")
    after = score_replies(scorer, make_tokenizer(), ["w2"], ["w3"]).item()
    assert after - before == pytest.approx((1 + 4.5 + 3) / 3, rel=1e-5)
    kept = make_scorer()  # its head has learned something, and keeps its zero
    one_step(kept, RATED, loss="regression")
    assert kept.shift == 0


def test_bins_by_hand(folder):
    scorer = new_scorer(folder, FIVE)
    places = [[(0, 1.0)], [(3, 0.5), (4, 0.5)], [(2, 1.0)]]  # of ratings 1, 4.5 and 3
    cost, means = [], []
    for row, place in zip(RATED, places, strict=True):
        logits = plain_outputs(scorer, row["prompt"], row["completion"], finished=row.get("finished", True))
        total = math.log(sum(map(math.exp, logits)))
        cost.append(sum(share * (total - logits[i]) for i, share in place))
        means.append(sum(centre * math.exp(x - total) for centre, x in zip(FIVE, logits, strict=True)))
    assert one_step(scorer, RATED, loss="bins").loss == pytest.approx(sum(cost) / 3, rel=1e-5)
    texts = [row["prompt"] for row in RATED], [row["completion"] for row in RATED]
    scores = score_replies(scorer, make_tokenizer(), *texts, finished=[True, False, True])
    assert scores.tolist() == pytest.approx(means, rel=1e-5)


def rated_rows() -> list[dict]:
    """The rating is 1 and one more for each w3 among the four words."""
    rows = []
    for row in range(96):
        words = ["w3" if row >> place & 1 else f"w{4 + (row + place) % 10}" for place in range(4)]
        rows.append({"prompt": f"w{2 + row % 12}", "completion": " ".join(words), "rating": 1 + words.count("w3")})
    return rows


@pytest.mark.parametrize("loss", ["regression", "bins"])
def test_ratings_are_learned_and_saved(loss, folder, tmp_path):
    config = RewardModelConfig(loss=loss, epochs=12, batch_size=8, lr=1e-2, precision="fp32")
    scorer, tokenizer, rows = new_scorer(folder, config.head_bins), make_tokenizer(), rated_rows()
    before = evaluate_ratings(scorer, tokenizer, rows[72:])
    list(reward_model_steps(reward_model_start(config, scorer, tokenizer, rows[:72])))
    after = evaluate_ratings(scorer, tokenizer, rows[72:])
    assert before.explained_variance < 0.3
    assert after.explained_variance > 0.7
    ratings = torch.tensor([float(row["rating"]) for row in rows[72:]])
    wanted = score_replies(scorer, tokenizer, [r["prompt"] for r in rows[72:]], [r["completion"] for r in rows[72:]])
    assert after.squared_error == pytest.approx((wanted - ratings).square().mean().item(), rel=1e-4)
    scorer.shift, scorer.gain = scorer.shift + 0.5, 2.0
    scorer.save(tmp_path / "rm", tokenizer)
    again = load_scorer(tmp_path / "rm", trainable=False)
    assert again.bins == config.head_bins
    assert not again.new_head
    reward = ModelReward(again, tokenizer)
    texts = {"prompts": [rows[80]["prompt"]], "completions": [rows[80]["completion"]], "finished": [True]}
    assert reward(**texts) == pytest.approx([2 * (wanted[8].item() - 0.5)], rel=1e-4)
    assert reward(**texts) == reward(**texts)  # nothing is sampled from the bins


def test_reversed_ratings_teach_the_opposite(folder):
    config = RewardModelConfig(loss="bins", epochs=12, batch_size=8, lr=1e-2, precision="fp32", reverse=True)
    scorer, tokenizer = new_scorer(folder, FIVE), make_tokenizer()
    list(reward_model_steps(reward_model_start(config, scorer, tokenizer, rated_rows()[:72])))
    pair = [{"prompt": "w2", "completions": ["w3 w3 w3 w5", "w6 w7 w8 w9"], "ranks": [0, 1]}]
    assert evaluate_reward_model(scorer, tokenizer, pair).accuracy == 0


# ---- Heads of bins


def test_heads_of_bins_are_made_kept_and_replaced(folder, tmp_path):
    tokenizer = make_tokenizer()
    scorer = new_scorer(folder, FIVE)
    assert scorer.head.out_features == 5
    assert scorer.centres.tolist() == FIVE
    scorer.shift, scorer.gain = 3.0, 0.5
    assert scorer.centres.tolist() == [-1, -0.5, 0, 0.5, 1]
    scorer.save(tmp_path / "rm", tokenizer)
    for bins in (None, FIVE):
        assert same(weights_of(load_scorer(tmp_path / "rm", bins=bins)), weights_of(scorer))
    for bins, size in ((None, 1), ([0.0, 1.0, 2.0], 3)):
        other = load_scorer(tmp_path / "rm", head="zero", bins=bins)
        assert (other.head.out_features, other.bins, other.shift, other.gain) == (size, bins, 0.0, 1.0)
        assert not other.head.weight.any()
        assert same(weights_of(other.model.base_model), weights_of(scorer.model.base_model))
        other.save(tmp_path / f"{size}", tokenizer)
        assert load_scorer(tmp_path / f"{size}").bins == bins
    with pytest.raises(LabError, match=r"its head has bins \[1\.0, .*\], not \[0\.0, 9\.0\]; make a new one"):
        load_scorer(tmp_path / "rm", bins=[0.0, 9.0])
    with pytest.raises(LabError, match="has one output and no bins"):
        _ = make_scorer().centres


def test_an_encoder_may_have_bins_too(tmp_path):
    config = transformers.BertConfig(
        vocab_size=14, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=24, pad_token_id=1
    )
    torch.manual_seed(0)
    transformers.BertModel(config).save_pretrained(tmp_path)
    scorer = load_scorer(tmp_path, head="new", bins=[0.0, 10.0])
    logits = plain_outputs(scorer, "w2", "w3")
    share = 1 / (1 + math.exp(logits[0] - logits[1]))
    assert score_replies(scorer, make_tokenizer(), ["w2"], ["w3"]).item() == pytest.approx(10 * share, rel=1e-5)


def test_a_trunk_of_another_size_is_not_filled_with_noise(folder, tmp_path):
    """A head may be exchanged for one of another size; a layer that does not fit is damage."""
    scorer = new_scorer(folder, FIVE)
    scorer.save(tmp_path / "rm", make_tokenizer())
    config = build_config("llama", num_labels=5)
    config.intermediate_size = 32
    config.architectures, config.reward_bins = ["LlamaForSequenceClassification"], FIVE
    config.save_pretrained(tmp_path / "rm")
    with pytest.raises(LabError, match=r"mlp|could not be loaded"):
        load_scorer(tmp_path / "rm", head="zero")


# ---- The scale


REPLIES = ([f"w{2 + row % 12}" for row in range(40)], [f"w{13 - row % 12} w{2 + row % 7}" for row in range(40)])


def test_the_references_replies_get_mean_0_and_deviation_1(tmp_path):
    scorer, tokenizer = make_scorer(), make_tokenizer()
    scores = torch.tensor([plain_outputs(scorer, *texts)[0] for texts in zip(*REPLIES, strict=True)])
    found = normalise_to_reference(scorer, tokenizer, *REPLIES)
    assert found == pytest.approx((scores.mean().item(), scores.std().item()), rel=1e-4)
    expected = ((scores - scores.mean()) / scores.std()).tolist()
    assert score_replies(scorer, tokenizer, *REPLIES).tolist() == pytest.approx(expected, abs=1e-4)
    again = normalise_to_reference(scorer, tokenizer, *REPLIES)  # after more training it is done once more
    assert again == pytest.approx((0, 1), abs=1e-5)
    with torch.no_grad():
        scorer.head.weight.mul_(3)
    assert normalise_to_reference(scorer, tokenizer, *REPLIES).std == pytest.approx(3, rel=1e-4)
    assert score_replies(scorer, tokenizer, *REPLIES).tolist() == pytest.approx(expected, abs=1e-4)
    scorer.save(tmp_path / "rm", tokenizer)
    saved = load_scorer(tmp_path / "rm")
    assert score_replies(saved, tokenizer, *REPLIES).tolist() == pytest.approx(expected, abs=1e-4)


def test_the_shift_to_demonstrations_minds_the_gain():
    scorer, tokenizer = make_scorer(), make_tokenizer()
    scorer.gain = 4.0
    demos = [{"prompt": p, "completion": c} for p, c in zip(*REPLIES, strict=True)]
    table = {name: [row[name] for row in demos] for name in ("prompt", "completion")}

    class Columns(dict):
        def __len__(self):
            return len(demos)

    mean = shift_to_demonstrations(scorer, tokenizer, Columns(table))
    assert abs(mean) > 0.01
    assert score_replies(scorer, tokenizer, *REPLIES).mean().item() == pytest.approx(0, abs=1e-5)


def test_replies_that_give_no_scale():
    scorer, tokenizer = make_scorer(), make_tokenizer()
    with pytest.raises(LabError, match=r"at least two replies; raise 'reference_replies'"):
        normalise_to_reference(scorer, tokenizer, ["w2"], ["w3"])
    with pytest.raises(LabError, match=r"score alike, so normalise 'reference' has no unit"):
        normalise_to_reference(scorer, tokenizer, ["w2", "w2"], ["w3", "w3"])


# ---- What is refused


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"loss": "hinge"}, "'loss' is 'hinge'"),
        ({"margin": -0.5}, "'margin' is -0.5: .*must be 0 or more"),
        ({"margin": "columns"}, "margin"),
        ({"margin": True}, "'margin' is True: a number is expected"),
        ({"label_smoothing": 0.5}, "'label_smoothing' is 0.5"),
        ({"label_smoothing": -0.1}, "'label_smoothing' is -0.1"),
        ({"bins": [1.0]}, "'bins' is .*at least two numbers in ascending order"),
        ({"bins": [2.0, 1.0]}, "'bins' is .*at least two numbers in ascending order"),
        ({"loss": "best_of_k", "margin": 1.0}, "margin belongs to loss 'pairwise'"),
        ({"loss": "bins", "label_smoothing": 0.1}, "label_smoothing belongs to loss 'pairwise'"),
    ],
)
def test_settings_that_make_no_sense(settings, words):
    with pytest.raises(LabError, match=words) as caught:
        RewardModelConfig.parse(settings)
    assert "\n" not in str(caught.value)


TIED = {"prompt": "w2", "completions": ["w3", "w4", "w5"], "ranks": [0, 0, 1]}


@pytest.mark.parametrize(
    ("rows", "settings", "words"),
    [
        ([ROWS[0], TIED], {"loss": "plackett_luce"}, r"^rankings, row 2: ranks tie, .*'plackett_luce'"),
        ([ROWS[0], TIED], {"loss": "best_of_k"}, r"^rankings, row 2: no single best, .*'best_of_k'"),
        ([ROWS[0] | {"margin": -1.0}], {}, r"^rankings, row 1: margin is -1.0; give 0 or more"),
        (
            [{k: v for k, v in ROWS[0].items() if k != "margin"}],
            {"margin": "column"},
            r"margin is 'column' but the data",
        ),
        (RATED, {"loss": "bins"}, r"^reward model: loss 'bins' needs a head of bins"),
        (ROWS, {"loss": "regression"}, r"^reward model: losses 'regression' and 'bins' learn from a column 'rating'"),
        ([], {"loss": "regression"}, r"^reward model: no rated replies"),
    ],
)
def test_data_that_do_not_fit_the_loss(rows, settings, words):
    with pytest.raises(LabError, match=words):
        one_step(make_scorer(), rows, **settings)


def test_ratings_outside_the_bins_are_named_with_their_row(folder):
    scorer = new_scorer(folder, [1.0, 4.0])
    with pytest.raises(LabError, match=r"^ratings, row 2: rating 4.5 lies outside 'bins' \[1.0, 4.0\]"):
        one_step(scorer, RATED, loss="bins", bins=[1.0, 4.0])
