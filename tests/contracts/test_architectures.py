"""The whole slice on every architecture: tokenizers, SFT, reward model, sampling, PPO, checkpoints.

What holds of single forward passes (padding, positions, values) is tested model by model in tests/models; here each
architecture has a real tokenizer of its own sort, and what the parts hand to each other is looked at.
"""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import pytest
import torch
import transformers
from architectures import (
    CHATML,
    COLOURS,
    CORPUS,
    DEMONSTRATIONS,
    ENCODERS,
    NO_SYSTEM,
    POLICIES,
    PROMPTS,
    Case,
    ids_of,
    make_bert_tokenizer,
    make_tokenizer,
    plain_scores,
    save_model,
)
from datasets import Dataset

from rlhf_lab.data import encode_pair, encode_prompt, left_pad, load_rankings, right_pad, to_text
from rlhf_lab.errors import LabError
from rlhf_lab.models import (
    Scorer,
    generate,
    generation,
    load_policy,
    load_scorer,
    load_tokenizer,
    response_logprobs,
    response_values,
    save_policy,
)
from rlhf_lab.models.precision import speedup
from rlhf_lab.rewards import ModelReward, load_reward
from rlhf_lab.sandbox.labelers import LabelerConfig
from rlhf_lab.sandbox.world import World
from rlhf_lab.training.ppo import PPOConfig, ppo_start, ppo_updates
from rlhf_lab.training.reward_model import (
    RewardModelConfig,
    evaluate_reward_model,
    reward_model_start,
    reward_model_steps,
    score_replies,
)
from rlhf_lab.training.rollouts import rollout
from rlhf_lab.training.sft import SFTConfig, quiet, sft_trainer
from rlhf_lab.workbench import artefacts, roles
from rlhf_lab.workbench.exporting import export

KINDS = ("bytes", "unigram", "wordpiece")
NEVER = -1  # an EOS id that no token has


class Model(NamedTuple):
    """A saved policy."""

    folder: Path
    tokenizer: Any
    case: Case


@pytest.fixture(scope="module", params=POLICIES, ids=ids_of)
def saved(request, tmp_path_factory) -> Model:
    folder = save_model(tmp_path_factory.mktemp(request.param.architecture), request.param)
    return Model(folder, load_tokenizer(folder), request.param)


def close(values, relative=1e-5):
    return pytest.approx(values, rel=relative, abs=1e-5)


# ---- Tokenizers


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("pad", [None, "</s>", "<pad>"])
@pytest.mark.parametrize("bos", [True, False])
@pytest.mark.parametrize("kind", KINDS)
def test_texts_come_back_whatever_the_tokenizers_ways(kind, bos, pad, side, tmp_path):
    make_tokenizer(kind, bos=bos, pad=pad, side=side).save_pretrained(tmp_path)
    tokenizer = load_tokenizer(tmp_path)  # what is read back must do as what was saved
    encoded = [encode_pair(tokenizer, row["prompt"], row["completion"]) for row in DEMONSTRATIONS]
    prompts = left_pad([pair.prompt_ids for pair in encoded], tokenizer.pad_token_id)
    replies = right_pad([pair.reply_ids for pair in encoded], tokenizer.pad_token_id)
    for row, demonstration in enumerate(DEMONSTRATIONS):
        ids = prompts.ids[row][prompts.mask[row]].tolist() + replies.ids[row][replies.mask[row]].tolist()
        assert (ids.count(0), ids[0] == 0) == (int(bos), bos)
        assert (ids.count(1), ids[-1]) == (1, 1)
        text = tokenizer.decode(ids, skip_special_tokens=True)
        assert text == demonstration["prompt"] + demonstration["completion"]
    assert prompts.mask[:, -1].all()
    assert replies.mask[:, 0].all()


@pytest.mark.parametrize("system", [True, False])
@pytest.mark.parametrize("kind", KINDS)
def test_chat_templates_with_and_without_a_system_turn(kind, system):
    tokenizer = make_tokenizer(kind, bos=True, template=CHATML)
    turn = [{"role": "system", "content": "Every day ."}] if system else []
    rows = [
        {"prompt": [*turn, {"role": "user", "content": "say"}], "completion": [{"role": "assistant", "content": "red"}]}
    ]
    (row,) = to_text(Dataset.from_list(rows), tokenizer)
    said = "Every day ." if system else "Be brief ."
    assert row == {"prompt": f"<|system|>{said}</s>\n<|user|>say</s>\n<|assistant|>", "completion": "red"}
    prompt, reply = encode_pair(tokenizer, **row)
    assert (prompt[0], prompt.count(0), prompt.count(1)) == (0, 1, 2)  # one BOS; the EOS of two turns
    assert (reply.count(1), reply[-1]) == (1, 1)


@pytest.mark.parametrize("kind", KINDS)
def test_a_template_that_writes_the_bos_and_refuses_a_system_turn(kind):
    tokenizer = make_tokenizer(kind, bos=True, template=NO_SYSTEM)
    user, system = {"role": "user", "content": "say"}, {"role": "system", "content": "Be brief ."}
    (row,) = to_text(Dataset.from_list([{"prompt": [user]}]), tokenizer)
    assert encode_prompt(tokenizer, row["prompt"]).count(0) == 1
    with pytest.raises(LabError, match=r"^row 2: the chat template refuses the messages: System role not supported"):
        to_text(Dataset.from_list([{"prompt": [user]}, {"prompt": [system, user]}]), tokenizer)


def test_cls_and_sep_are_bos_and_eos_where_there_are_none(tmp_path):
    make_bert_tokenizer().save_pretrained(tmp_path / "bert")
    tokenizer = load_tokenizer(tmp_path / "bert")
    sky = tokenizer.convert_tokens_to_ids(["the", "sky", "is"])
    assert encode_pair(tokenizer, "The sky is", "sky") == ([2, *sky], [sky[1], 3])
    assert encode_pair(tokenizer, "The sky is", "sky", finished=False) == ([2, *sky], [sky[1]])
    assert encode_pair(tokenizer, "The sky is", "sky", max_length=4) == ([2, sky[2]], [sky[1], 3])
    assert tokenizer("the sky").input_ids == [2, *sky[:2], 3]  # its own way with texts is as before
    endless = make_tokenizer("bytes")
    endless.eos_token = None
    endless.save_pretrained(tmp_path / "endless")
    with pytest.raises(LabError, match="the tokenizer has no EOS token, so no reply could end; set its 'eos_token'"):
        load_tokenizer(tmp_path / "endless")


# ---- Supervised fine-tuning


def plain_nll(folder, tokenizer) -> tuple[float, float]:
    """By transformers alone, row by row: nats per token of the demonstrations' replies, and of their EOS."""
    model = transformers.AutoModelForCausalLM.from_pretrained(folder).eval()
    found = []
    for row in DEMONSTRATIONS:
        prompt, reply = encode_pair(tokenizer, row["prompt"], row["completion"])
        with torch.no_grad():
            logits = model(input_ids=torch.tensor([prompt + reply])).logits[0, len(prompt) - 1 : -1]
        found.append(-logits.log_softmax(-1)[range(len(reply)), reply])
    return torch.cat(found).mean().item(), torch.stack([row[-1] for row in found]).mean().item()


def test_sft_learns_the_replies_and_their_eos(saved, tmp_path):
    policy, tokenizer = load_policy(saved.folder), saved.tokenizer
    settings = SFTConfig(epochs=40, batch_size=6, lr=2e-2, precision="fp32", max_length=512)  # more than its context
    logs = []
    trainer = sft_trainer(settings, policy, tokenizer, Dataset.from_list(DEMONSTRATIONS), on_log=logs.append)
    quiet(trainer.train)
    save_policy(tmp_path / "sft", policy, tokenizer)
    before, after = plain_nll(saved.folder, tokenizer), plain_nll(tmp_path / "sft", tokenizer)
    assert logs[0]["train/loss"] > 1
    assert max(after) < 0.2 < min(before)
    # What it says is what it was shown, up to and with the EOS.
    pairs = [encode_pair(tokenizer, row["prompt"], row["completion"]) for row in DEMONSTRATIONS]
    ids, mask = left_pad([pair.prompt_ids for pair in pairs], tokenizer.pad_token_id)
    special = {"eos_id": tokenizer.eos_token_id, "pad_id": tokenizer.pad_token_id}
    said = generate(policy, ids, mask, max_new_tokens=20, temperature=0, **special)
    assert said.finished.all()
    assert [row[real].tolist() for row, real in zip(*said[:2], strict=True)] == [pair.reply_ids for pair in pairs]


def test_a_demonstration_longer_than_the_context_is_cut_to_it(tmp_path):
    policy = load_policy(save_model(tmp_path, POLICIES[1]))
    tokenizer = load_tokenizer(tmp_path)
    rows = [{"prompt": " and ".join(PROMPTS * 2), "completion": " red ."}]
    settings = SFTConfig(precision="fp32", max_length=512)  # the context has 64 positions
    (row,) = sft_trainer(settings, policy, tokenizer, Dataset.from_list(rows)).train_dataset
    whole, reply = encode_pair(tokenizer, **rows[0])
    assert len(whole) > 64
    assert row["input_ids"] == [*whole[-(64 - len(reply)) :], *reply]


# ---- Sampling


def test_greedy_in_a_batch_is_greedy_alone_and_that_of_transformers(saved):
    policy = load_policy(saved.folder)
    plain = transformers.AutoModelForCausalLM.from_pretrained(saved.folder).eval()
    rows = [encode_prompt(saved.tokenizer, prompt) for prompt in PROMPTS[::2]]
    ids, mask = left_pad(rows, saved.tokenizer.pad_token_id)
    options = {"max_new_tokens": 10, "temperature": 0, "pad_id": saved.tokenizer.pad_token_id}
    free = generate(policy, ids, mask, eos_id=NEVER, **options).response_ids
    eos = free[:, 4:8].flatten().mode().values.item()  # a token that ends some replies early, so that rows leave
    batch = generate(policy, ids, mask, eos_id=eos, **options)
    assert batch.finished.sum() > 0
    for row, prompt in enumerate(rows):
        alone = generate(
            policy, torch.tensor([prompt]), torch.ones(1, len(prompt), dtype=torch.bool), eos_id=eos, **options
        )
        found = batch.response_ids[row][batch.response_mask[row]].tolist()
        assert found == alone.response_ids[0].tolist()
        inputs = {"inputs": torch.tensor([prompt]), "attention_mask": torch.ones(1, len(prompt), dtype=torch.long)}
        theirs = plain.generate(**inputs, do_sample=False, max_new_tokens=10, eos_token_id=eos, pad_token_id=0)
        assert found == theirs[0, len(prompt) :].tolist()


def test_training_sees_the_probability_that_sampling_saw(saved, monkeypatch):
    seen = []

    def recorded(logits, draws, **options):
        token = pick(logits, draws, **options)
        seen.append((logits / options["temperature"]).log_softmax(-1).gather(-1, token[:, None])[:, 0])
        return token

    pick = generation.pick_tokens
    monkeypatch.setattr(generation, "pick_tokens", recorded)
    policy = load_policy(saved.folder)
    ids, mask = left_pad([encode_prompt(saved.tokenizer, text) for text in PROMPTS], saved.tokenizer.pad_token_id)
    options = {"eos_id": NEVER, "pad_id": saved.tokenizer.pad_token_id}
    sampled = generate(policy, ids, mask, max_new_tokens=10, temperature=0.8, **options)
    logp = response_logprobs(policy, ids, mask, *sampled[:2], temperature=0.8).logp
    assert torch.stack(seen, dim=1).tolist() == [close(row) for row in logp.tolist()]


# ---- Padding and batches


def test_neither_padding_nor_company_changes_a_number(saved):
    tokenizer, policy = saved.tokenizer, load_policy(saved.folder)
    torch.manual_seed(1)
    scorer = load_scorer(saved.folder, head="new")
    pairs = [
        encode_pair(tokenizer, p, f" {c} and {c} ."[: 4 + 3 * n])
        for n, (p, c) in enumerate(zip(PROMPTS[::2], COLOURS.values(), strict=True))
    ]
    prompts, replies = zip(*pairs, strict=True)
    assert len({len(row) for row in prompts}) > 1
    assert len({len(row) for row in replies}) > 2

    def read(prompts, replies, left=0, right=0, junk=0):
        ids, mask = left_pad(prompts, tokenizer.pad_token_id)
        reply_ids, reply_mask = right_pad(replies, tokenizer.pad_token_id)
        grow = torch.nn.functional.pad
        mask, reply_mask = grow(mask, (left, 0)), grow(reply_mask, (0, right))
        ids, reply_ids = (
            grow(ids, (left, 0)).masked_fill(~mask, junk),
            grow(reply_ids, (0, right)).masked_fill(~reply_mask, junk),
        )
        tensors = (ids, mask, reply_ids, reply_mask)
        with torch.no_grad():
            logp, values = response_logprobs(policy, *tensors).logp, response_values(scorer, *tensors)
            scores = scorer.reply_scores(*tensors)
        assert not logp[~reply_mask].any()
        assert not values[~reply_mask].any()
        return [
            (logp[i][real].tolist(), values[i][real].tolist(), scores[i].item()) for i, real in enumerate(reply_mask)
        ]

    alone = [read([prompt], [reply])[0] for prompt, reply in pairs]
    for left, right, junk in ((0, 0, 0), (3, 0, 5), (0, 4, tokenizer.eos_token_id), (2, 5, len(tokenizer) + 9)):
        for found, wanted in zip(read(prompts, replies, left, right, junk), alone, strict=True):
            assert found[:2] == (close(wanted[0]), close(wanted[1]))
            assert found[2] == close(wanted[2])


# ---- Reward models

PREFERENCES = [  # the true colour is better
    {
        "prompt": prompt,
        "completions": [f" {good} .", f" {bad} ."][:: 1 if n % 2 else -1],
        "ranks": [0, 1][:: 1 if n % 2 else -1],
    }
    for n, prompt in enumerate(PROMPTS)
    for good, bad in (("red", "black"), ("red", "white"), ("blue", "black"), ("blue", "white"))
]


def trained_reward_model(folder, target) -> tuple[Scorer, object, float]:
    """A reward model trained on three of four preferences and saved -> it, its tokenizer, its held-out accuracy."""
    torch.manual_seed(0)
    scorer, tokenizer = load_scorer(folder), load_tokenizer(folder)
    held_out = PREFERENCES[::4]
    config = RewardModelConfig(epochs=4, batch_size=6, lr=5e-3, precision="fp32", max_length=40)
    seen = [row for row in PREFERENCES if row not in held_out]
    state = reward_model_start(config, scorer, tokenizer, seen)
    assert all(stats.loss > 0 for stats in reward_model_steps(state))
    scorer.shift = 0.25
    scorer.save(target, tokenizer)
    return scorer, tokenizer, evaluate_reward_model(scorer, tokenizer, held_out).accuracy


@pytest.mark.parametrize("case", POLICIES + ENCODERS, ids=ids_of)
def test_a_reward_model_learns_is_saved_and_scores_alike(case, tmp_path):
    auto = transformers.AutoModelForMaskedLM if case in ENCODERS else transformers.AutoModelForCausalLM
    folder = save_model(tmp_path / "start", case, auto, initializer_range=0.1)
    scorer, tokenizer, accuracy = trained_reward_model(folder, tmp_path / "rm")
    assert accuracy > 0.9
    prompts, replies, finished = PROMPTS[:4], [" red .", " blue and red", " black", ""], [True, False, True, False]
    wanted = score_replies(scorer, tokenizer, prompts, replies, finished=finished).tolist()
    reward = load_reward(tmp_path / "rm")
    given = {"prompts": prompts, "completions": replies, "finished": finished}
    assert reward(**given) == close(wanted)
    assert ModelReward(reward.scorer, reward.tokenizer, batch_size=1)(**given) == close(wanted)
    pairs = [encode_pair(tokenizer, *row[:2], finished=row[2]) for row in zip(prompts, replies, finished, strict=True)]
    plain = plain_scores(tmp_path / "rm", [prompt + reply for prompt, reply in pairs])
    assert wanted == close([score - 0.25 for score in plain])
    assert len({round(score, 3) for score in wanted}) == 4


@pytest.mark.parametrize("case", ENCODERS, ids=ids_of)
def test_the_card_of_an_exported_encoder_gives_the_labs_score(case, tmp_path, monkeypatch):
    folder = save_model(
        tmp_path / "start", case, transformers.AutoModelForSequenceClassification, num_labels=1, initializer_range=0.2
    )
    scorer, tokenizer = load_scorer(folder), load_tokenizer(folder)
    scorer.shift, scorer.gain = 0.75, 2.5
    scorer.save(tmp_path / "model", tokenizer)
    export(str(tmp_path / "model"), tmp_path / "out")
    monkeypatch.chdir(tmp_path)
    card = (tmp_path / "out" / "README.md").read_text()
    code, found = card.partition("```python\n")[2].partition("```")[0], {}
    exec(code.replace('prompt = "..."', f"prompt = {PROMPTS[0]!r}").replace('reply = "..."', 'reply = " red ."'), found)
    assert "rlhf_lab" not in code
    (ours,) = score_replies(scorer, tokenizer, PROMPTS[:1], [" red ."], finished=[True]).tolist()
    assert found["score"].item() == pytest.approx(ours, rel=1e-4)


@pytest.mark.parametrize("case", ENCODERS, ids=ids_of)
def test_an_encoder_reads_the_whole_row_however_it_is_padded(case, tmp_path):
    auto = transformers.AutoModelForSequenceClassification
    folder = save_model(tmp_path, case, auto, num_labels=1, initializer_range=0.2, max_position_embeddings=24)
    scorer, tokenizer = load_scorer(folder), load_tokenizer(folder)
    assert scorer.train().model.training
    pairs = [encode_pair(tokenizer, prompt, " red and red"[: 4 + n]) for n, prompt in enumerate(PROMPTS)]
    wanted = plain_scores(folder, [prompt + reply for prompt, reply in pairs])
    ids, mask = left_pad([pair.prompt_ids for pair in pairs], 0)
    reply_ids, reply_mask = right_pad([pair.reply_ids for pair in pairs], 0)
    grow = torch.nn.functional.pad
    for left, right in ((0, 0), (3, 20)):  # of more columns than there are positions
        tensors = (
            grow(ids, (left, 0)),
            grow(mask, (left, 0)),
            grow(reply_ids, (0, right)),
            grow(reply_mask, (0, right)),
        )
        tensors[0].masked_fill_(~tensors[1], 7)
        assert scorer.reply_scores(*tensors).tolist() == close(wanted)
        with torch.autocast("cpu", dtype=torch.bfloat16):  # the body in bf16, the head in float32
            lowered = scorer.reply_scores(*tensors)
        assert lowered.tolist() == pytest.approx(wanted, rel=0.05, abs=0.02)
        assert lowered.tolist() != close(wanted)
        assert lowered.dtype == torch.float32 and (lowered.bfloat16() != lowered).any()
    assert speedup(scorer) > 0  # what precision "auto" measures
    assert scorer.limit() == (24 - 3 if case.architecture == "roberta" else 24)  # its padding id is 2
    with pytest.raises(LabError, match="reads in both directions, so it scores whole texts only"):
        response_values(scorer, ids, mask, reply_ids, reply_mask)
    with pytest.raises(
        LabError, match="not a policy; give a causal language model|has none of the architecture DistilBert"
    ):
        load_policy(folder)


# ---- The reward model reads what it was trained to read


@pytest.fixture
def read(monkeypatch):
    """The rows of token ids that a scorer was given, without padding, in order."""
    rows = []
    original = Scorer.sequence_outputs

    def recorded(self, input_ids, mask):
        rows.extend(ids[real].tolist() for ids, real in zip(input_ids, mask, strict=True))
        return original(self, input_ids, mask)

    monkeypatch.setattr(Scorer, "sequence_outputs", recorded)
    return rows


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Save a classifier of random weights -> (scorer, tokenizer, directory)."""

    def make(case, **changes):
        folder = tmp_path_factory.mktemp("rm")
        auto = transformers.AutoModelForSequenceClassification
        save_model(folder, case, auto, num_labels=1, initializer_range=0.2, **changes)
        return load_scorer(folder, trainable=False), load_tokenizer(folder), folder

    return make


def draw(saved, reward, prompts=PROMPTS):
    policy = load_policy(saved.folder, trainable=False)
    settings = PPOConfig(batch_size=len(prompts), max_new_tokens=6, precision="fp32")
    generator = torch.Generator().manual_seed(0)
    return rollout(policy, policy, None, reward, saved.tokenizer, prompts, settings, generator)


@pytest.mark.parametrize("case", [POLICIES[1], POLICIES[4], ENCODERS[0]], ids=ids_of)
def test_policy_and_reward_model_of_two_tokenizers_meet_in_text(saved, case, made):
    scorer, own, folder = made(case)
    reward, told = ModelReward(scorer, own, saved.tokenizer), []

    def listening(prompts, completions, finished, **given):
        told.extend(zip(prompts, completions, finished, strict=True))
        half = [row % 2 == 0 for row in range(len(finished))]  # random weights seldom end a reply
        return reward(prompts=prompts, completions=completions, finished=half, **given)

    batch = draw(saved, listening)
    assert reward.reads_ids == ((saved.case.tokenizer, saved.case.bos) == (case.tokenizer, case.bos))
    if reward.reads_ids:
        wanted = [[*p[m].tolist(), *r[n].tolist()] for p, m, r, n in zip(*batch[:4], strict=True)]
    else:
        wanted = [
            [*encode_prompt(own, prompt), *own.encode(text, add_special_tokens=False), *[own.eos_token_id][row % 2 :]]
            for row, (prompt, text, _) in enumerate(told)
        ]
    assert batch.scores.tolist() == close(plain_scores(folder, wanted))
    if not reward.reads_ids:
        with pytest.raises(LabError, match="reward model: cannot read these replies"):
            reward(prompt_ids=[[5]], completion_ids=[[6]])


def test_the_same_words_but_another_way_of_beginning_go_through_text(made):
    """A reward model whose tokenizer puts a BOS was trained with one; the policy's ids have none."""
    scorer, own, folder = made(Case("llama", "bytes", bos=True, pad="<pad>"))
    plain, alike = make_tokenizer("bytes", pad="<pad>"), make_tokenizer("bytes", bos=True, pad="</s>", side="left")
    text = {"prompts": ["The sky is"], "completions": [" blue"], "finished": [True]}
    wanted = close(plain_scores(folder, [[0, *plain.encode("The sky is"), *plain.encode(" blue"), 1]]))
    for policy, reads_ids in ((plain, False), (alike, True)):
        ids = {"prompt_ids": [encode_prompt(policy, "The sky is")], "completion_ids": [[*plain.encode(" blue"), 1]]}
        reward = ModelReward(scorer, own, policy)
        assert reward.reads_ids == reads_ids
        assert reward(**text, **ids) == wanted


def test_special_tokens_of_the_policys_template_that_the_reward_model_lacks_are_refused(made):
    scorer, own, folder = made(ENCODERS[0])
    policy = make_tokenizer("unigram", bos=True, template=NO_SYSTEM)
    reward = ModelReward(scorer, own, policy)
    given = {"completions": ["blue"], "finished": [True]}
    # The BOS that a template wrote is the policy's way to begin; the reward model has its own.
    assert reward(prompts=["<s>The sky is"], **given) == reward(prompts=["The sky is"], **given)
    with pytest.raises(LabError, match=r"^reward model: the prompt 'The sky</s> is' holds '</s>', a special token of"):
        reward(prompts=["The sky</s> is"], **given)
    assert ModelReward(scorer, own)(prompts=["The sky</s> is"], **given)  # of ids nothing is known, so it is words


@pytest.mark.parametrize("case", [Case("gpt2", "bytes", bos=True), ENCODERS[0]], ids=ids_of)
@pytest.mark.parametrize(("max_length", "longest"), [(20, 20), (256, 32)])  # of the training, or of the context
def test_a_long_prompt_is_cut_alike_in_training_and_in_scoring(case, max_length, longest, made, read, tmp_path):
    scorer, tokenizer, _ = made(case, max_position_embeddings=32)
    prompt, replies = " and ".join(PROMPTS[:8]), [" red .", " blue"]
    rankings = [{"prompt": prompt, "completions": replies, "ranks": [0, 1], "finished": [True, False]}]
    config = RewardModelConfig(lr=0, precision="fp32", max_length=max_length)
    list(reward_model_steps(reward_model_start(config, scorer.requires_grad_(True), tokenizer, rankings)))
    in_training = list(read)
    assert [len(row) for row in in_training] == [longest, longest]
    assert {row[0] for row in in_training} == {tokenizer.bos_token_id}
    assert [row[-1] == tokenizer.eos_token_id for row in in_training] == [True, False]
    scorer.save(tmp_path / "rm", tokenizer)

    text = {"prompts": [prompt] * 2, "completions": replies, "finished": [True, False]}
    ids = [
        encode_pair(tokenizer, prompt, reply, finished=end) for reply, end in zip(replies, (True, False), strict=True)
    ]
    by_ids = {"prompt_ids": [pair[0] for pair in ids], "completion_ids": [pair[1] for pair in ids]}
    for reward, given in (
        (load_reward(tmp_path / "rm"), text),
        (load_reward(tmp_path / "rm", policy_tokenizer=tokenizer), by_ids),
    ):
        read.clear()
        reward(**given)
        assert sorted(read) == sorted(in_training)
    read.clear()
    score_replies(load_scorer(tmp_path / "rm"), tokenizer, [prompt], [" red ."])
    assert read == in_training[:1]
    with pytest.raises(LabError, match=rf"^reward model: .*reply \d+: a reply is never cut, and max_length {longest}"):
        reward(
            prompts=["The sky is"], completions=[prompt], finished=[True], **{k: [v[0] * 20] for k, v in by_ids.items()}
        )
    assert load_scorer(tmp_path / "rm", head="new").limit() == 32  # a new head was trained on nothing


# ---- One step of PPO


def test_the_first_minibatch_of_ppo_has_ratio_1(saved):
    settings = transformers.AutoConfig.from_pretrained(saved.folder).to_dict()
    assert {value for name, value in settings.items() if "drop" in name or "pdrop" in name} >= {0.2}
    template = saved.case.template
    rows = [{"prompt": [{"role": "user", "content": text}] if template else text} for text in PROMPTS]
    prompts = to_text(Dataset.from_list(rows), saved.tokenizer)["prompt"]
    sizes = {"updates": 1, "batch_size": 12, "minibatches": 1, "micro_batch_size": 5, "epochs": 1, "max_new_tokens": 8}
    config = PPOConfig(**sizes, lr=1e-2, kl_coef=0.1, precision="fp32")
    state = ppo_start(
        config,
        policy=load_policy(saved.folder),
        critic=load_scorer(saved.folder, head="zero"),
        reward=lambda completions: [len(set(text)) / 10 for text in completions],
        tokenizer=saved.tokenizer,
        prompts=list(prompts),
    )
    batch, stats, *_ = next(ppo_updates(state))
    assert stats.optimizer_steps == 1  # so that all figures are those of the first minibatch
    assert len({int(n) for n in batch.prompt_mask.sum(1)}) > 1
    assert abs(stats.ratio - 1) <= 1e-5
    assert stats.approx_kl <= 1e-8
    assert stats.clip_fraction == 0
    with torch.no_grad():
        moved = response_logprobs(state.policy, *batch[:4]).logp - batch.old_logp
    assert moved.abs().max() > 1e-2  # and then it learned


# ---- Checkpoints


def test_a_saved_policy_is_the_same_here_and_in_plain_transformers(saved, tmp_path):
    policy = load_policy(saved.folder)
    with torch.no_grad():  # so that it is not the files it came from that are read
        for weight in policy.parameters():
            weight.mul_(1.05)
    save_policy(tmp_path / "kept", policy, saved.tokenizer)
    again, plain = load_policy(tmp_path / "kept"), transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "kept")
    ids = torch.tensor([encode_prompt(saved.tokenizer, PROMPTS[0])])
    with torch.no_grad():
        wanted = policy(input_ids=ids).logits
        assert torch.equal(again(input_ids=ids).logits, wanted)
        assert torch.allclose(plain.eval()(input_ids=ids).logits, wanted, rtol=1e-5, atol=1e-5)
        assert not torch.allclose(load_policy(saved.folder)(input_ids=ids).logits, wanted, rtol=1e-3)
    tokenizer = load_tokenizer(tmp_path / "kept")
    assert [encode_prompt(tokenizer, text) for text in CORPUS] == [encode_prompt(saved.tokenizer, t) for t in CORPUS]
    assert (tokenizer.chat_template, tokenizer.eos_token_id) == (saved.case.template, saved.tokenizer.eos_token_id)


# ---- A critic for this policy


def test_a_reward_model_that_cannot_be_this_policys_critic(made, tmp_path, capsys):
    policy = save_model(tmp_path / "policy", POLICIES[1])
    for case, what in ((POLICIES[0], "has another tokenizer"), (ENCODERS[1], "is an encoder")):
        *_, folder = made(case)
        cfg = SimpleNamespace(reward=str(folder), critic="reward", needs_critic=True, critic_bins=None)
        critic = roles.critic(cfg, str(policy), None)
        assert f"critic: the reward model {what}" in capsys.readouterr().out
        assert critic.causal
        assert not critic.head.weight.any()
        with pytest.raises(LabError, match=f"^critic {folder}: {what}.*or 'policy'$"):
            roles.critic(
                SimpleNamespace(reward="gold", critic=str(folder), needs_critic=True, critic_bins=None),
                str(policy),
                None,
            )
    *_, folder = made(POLICIES[1])
    critic = roles.critic(
        SimpleNamespace(reward=str(folder), critic="reward", needs_critic=True, critic_bins=None), str(policy), None
    )
    assert critic.head.weight.any()


# ---- Replies that never finished


def test_the_rankings_of_the_sandbox_say_which_replies_finished(tmp_path):
    world = World.load()
    tokenizer, policy = load_tokenizer(world.base_model), load_policy(world.base_model, trainable=False)
    cfg = SimpleNamespace(labeler=LabelerConfig(), seed=0, n_prompts=20, n_heldout=20, k=2, max_new_tokens=8)
    cfg.preferences = cfg.heldout = "sandbox"
    files = artefacts.sandbox_comparisons(cfg, SimpleNamespace(file=lambda name: tmp_path), world, policy, tokenizer)
    rows = [json.loads(line) for line in files["comparisons"].read_text().splitlines()]
    for row in rows:  # eight tokens, the EOS among them: a finished reply has at most seven words
        for text, finished in zip(row["completions"], row["finished"], strict=True):
            assert finished == (len(tokenizer.encode(text)) < 8)
    flags = [flag for row in rows for flag in row["finished"]]
    assert 0 < sum(flags) < len(flags)
    assert load_rankings(files["comparisons"])["finished"] == [row["finished"] for row in rows]
