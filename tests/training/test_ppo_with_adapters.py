"""PPO, SFT and reward models with adapters on one base: against PEFT's own models, and what may not move."""

import peft
import pytest
import torch
from tiny import PROMPTS, make_config, make_policy, make_tokenizer, same, start, weights_of

from rlhf_lab.errors import LabError
from rlhf_lab.models import LoraConfig, SharedBase, load_policy, load_scorer, response_logprobs, save_policy
from rlhf_lab.rewards import ModelReward
from rlhf_lab.training.checkpoints import load_training, save_training
from rlhf_lab.training.ppo import ppo_updates
from rlhf_lab.training.reward_model import RewardModelConfig, reward_model_start, reward_model_steps
from rlhf_lab.training.sft import SFTConfig, quiet, sft_trainer
from rlhf_lab.workbench import roles
from rlhf_lab.workbench.stages import PPOStage, RewardModelStage, SFTStage

LORA = LoraConfig(rank=2, alpha=4)


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """A tiny policy on disk."""
    folder = tmp_path_factory.mktemp("base")
    save_policy(folder, make_policy(), make_tokenizer())
    return folder


def stir(role, seed: int) -> None:
    """Weights that matter: at first B and the head are 0."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for weight in role.parameters():
            weight.copy_(0.2 * torch.randn(weight.shape, generator=generator))


def four_roles(base):
    """Policy, reference, critic and reward on one base."""
    shared = SharedBase(base)
    policy, critic = shared.policy(LORA), shared.scorer(LORA, name="critic")
    reward = shared.scorer(LORA, name="reward").requires_grad_(False)
    for seed, role in enumerate((policy, critic, reward)):
        stir(role, seed)
    return policy, shared.reference(), critic, reward


def four_models(base):
    """The same as four models of their own, adapted by PEFT."""
    settings = peft.LoraConfig(r=2, lora_alpha=4, target_modules="all-linear")
    policy = peft.get_peft_model(load_policy(base), settings)
    scorers = []
    for _ in range(2):
        scorer = load_scorer(base, head="zero")
        settings = peft.LoraConfig(r=2, lora_alpha=4, target_modules="all-linear", modules_to_save=["score"])
        wrapped = peft.inject_adapter_in_model(settings, scorer.model.base_model)
        assert wrapped is scorer.model.base_model
        scorer.head.requires_grad_(True)
        scorers.append(scorer)
    critic, reward = scorers
    for seed, model in enumerate((policy, critic, reward)):
        generator = torch.Generator().manual_seed(seed)
        for weight in trained(model):
            weight.data.copy_(0.2 * torch.randn(weight.shape, generator=generator))
    reward.requires_grad_(False)
    return policy, load_policy(base, trainable=False), critic, reward


def trained(model) -> list[torch.Tensor]:
    return [weight for weight in model.parameters() if weight.requires_grad]


def begin(config, policy, reference, critic, reward):
    paid = ModelReward(reward, make_tokenizer(), make_tokenizer())
    return start(config, policy=policy, critic=critic, reference=reference, reward=paid)


def train(config, *roles):
    state = begin(config, *roles)
    return state, list(ppo_updates(state))


def test_ppo_on_one_base_equals_ppo_with_four_models(base):
    config = make_config(updates=2, ema=0.5, ptx_coef=0.0)
    ours, theirs = four_roles(base), four_models(base)
    (state, updates), (other, expected) = train(config, *ours), train(config, *theirs)
    for update, wanted in zip(updates, expected, strict=True):
        assert torch.equal(update.rollout.response_ids, wanted.rollout.response_ids)
        for name in ("old_logp", "ref_logp", "values", "scores"):
            assert torch.equal(getattr(update.rollout, name), getattr(wanted.rollout, name)), name
        assert update.stats == wanted.stats
    for role, model in zip(ours[::2], theirs[::2], strict=True):  # policy and critic
        assert same(trained(role), trained(model))
    adapter = [a for a, p in zip(other.average, theirs[0].parameters(), strict=True) if p.requires_grad]
    assert same(state.average, adapter)


def test_four_roles_cost_one_model_and_their_adapters(base):
    policy, reference, critic, reward = four_roles(base)
    state, _ = train(make_config(updates=1), policy, reference, critic, reward)
    # Two layers; q, k, v, o 16x16, gate and up 16x24, down 24x16: inputs + outputs times the rank. Head: 16.
    adapter, head = 2 * 2 * (4 * 32 + 3 * 40), 16
    full = sum(p.numel() for p in make_policy().parameters())
    inside = {id(p): p.numel() for m in (policy, reference, critic, reward) for p in m.parameters()}
    assert sum(inside.values()) == full + 3 * adapter + 2 * head
    # no weights beside those: what the base's modules hold is what the roles are made of
    assert {id(p) for p in policy.shared.model.parameters()} <= inside.keys()
    with_gradient = sum(p.numel() for p in trained(policy) + trained(critic) if p.grad is not None)
    moments = sum(s[name].numel() for s in state.optimizer.state.values() for name in ("exp_avg", "exp_avg_sq"))
    assert with_gradient == adapter + head  # the critic's: the policy's are gone before these come
    assert moments == 2 * (2 * adapter + head)
    assert all(p.grad is None for p in [*reference.parameters(), *reward.parameters()])


def test_ppo_moves_policy_and_critic_and_no_bit_of_reference_and_reward(base):
    roles = four_roles(base)
    kept = [weights_of(role) for role in roles]
    train(make_config(updates=1), *roles)
    moved = [not same(weights_of(role), before) for role, before in zip(roles, kept, strict=True)]
    assert moved == [True, False, True, False]

    roles = four_roles(base)  # while the critic warms up, it moves alone
    kept = [weights_of(role) for role in roles]
    next(ppo_updates(begin(make_config(updates=2, critic_warmup=1), *roles)))
    moved = [not same(weights_of(role), before) for role, before in zip(roles, kept, strict=True)]
    assert moved == [False, False, True, False]


def test_a_policy_trained_by_ppo_is_saved_merged_and_trained_further(base, tmp_path):
    policy, reference, critic, reward = four_roles(base)
    _, updates = train(make_config(updates=1), policy, reference, critic, reward)
    tokenizer, read = make_tokenizer(), updates[0].rollout[:4]
    logp = response_logprobs(policy, *read).logp
    save_policy(tmp_path / "policy", policy, tokenizer)
    critic.save(tmp_path / "critic", tokenizer)
    again = SharedBase(base)
    back = again.load_policy(tmp_path / "policy"), again.load_scorer(tmp_path / "critic", name="critic")
    assert same(weights_of(*back), weights_of(policy, critic))

    merged = load_policy(tmp_path / "policy", trainable=False)
    torch.testing.assert_close(response_logprobs(merged, *read).logp, logp, atol=1e-5, rtol=0)
    further = SharedBase(tmp_path / "policy")  # the merged policy is the new base, and the new reference
    second = further.policy(LORA)
    _, updates = train(make_config(updates=1, batch_size=4), second, further.reference(), critic, reward)
    assert torch.equal(updates[0].rollout.old_logp, updates[0].rollout.ref_logp)
    assert same(weights_of(further.reference()), weights_of(merged))


def test_fine_tuning_an_adapter_leaves_the_base_alone(base):
    policy = load_policy(base, lora=LoraConfig(rank=2, dropout=0.1))
    reference = policy.shared.reference()
    before, plain = weights_of(reference), weights_of(policy)
    demonstrations = [{"prompt": prompt, "completion": " w3 w4"} for prompt in PROMPTS]
    config = SFTConfig(epochs=8, batch_size=4, lr=2e-2, precision="fp32")
    losses = []
    trainer = sft_trainer(config, policy, make_tokenizer(), demonstrations, on_log=losses.append)
    quiet(trainer.train)
    assert same(weights_of(reference), before)
    assert not any(torch.equal(a, b) for a, b in zip(weights_of(policy), plain, strict=True))
    found = [figures["train/loss"] for figures in losses if "train/loss" in figures]
    assert found[-1] < 0.5 * found[0]


def test_a_reward_model_s_adapter_learns_and_serves_ppo_on_the_policy_s_base(base, tmp_path):
    tokenizer, reward = make_tokenizer(), load_scorer(base, head="new", lora=LORA)
    before = weights_of(reward.shared.reference())
    rankings = [{"prompt": p, "completions": ["w3 w3", "w5"], "ranks": [0, 1]} for p in PROMPTS]
    config = RewardModelConfig(epochs=6, batch_size=8, lr=3e-2, precision="fp32")
    steps = list(reward_model_steps(reward_model_start(config, reward, tokenizer, rankings)))
    assert steps[-1].accuracy == 1.0 and steps[-1].loss < 0.5 * steps[0].loss
    assert same(weights_of(reward.shared.reference()), before)
    reward.save(tmp_path / "reward", tokenizer)

    policy = load_policy(base, lora=LORA)
    cfg = PPOStage(lora={"rank": 2}, critic="reward", reward=str(tmp_path / "reward"), precision="bf16")
    shared = roles.reward(cfg, None, tokenizer, None, policy)
    assert shared.precision == "bf16"
    critic = roles.adapter_critic(cfg, policy, str(tmp_path / "reward"))
    assert shared.scorer.shared is critic.shared is policy.shared
    assert same(weights_of(shared.scorer), weights_of(reward)) and same(weights_of(critic), weights_of(reward))
    assert not trained(shared.scorer) and len(trained(critic)) == len(trained(reward))
    assert roles.reference(str(base), policy).shared is policy.shared
    assert roles.shared_reward(str(base), tokenizer, policy) is None  # no adapter
    assert roles.shared_reward("file.py:name", tokenizer, policy) is None


def test_a_critic_that_cannot_stand_on_the_base(base, capsys):
    policy = load_policy(base, lora=LORA)
    critic = roles.adapter_critic(PPOStage(lora={"rank": 3}), policy, str(base))
    assert "no adapter of the policy's base, so the critic starts from the policy" in capsys.readouterr().out
    assert next(critic.parameters()).shape[0] == 3
    with pytest.raises(LabError, match=f"critic {base}: is no adapter of the policy's base; choose 'reward' or"):
        roles.adapter_critic(PPOStage(lora={"rank": 3}, critic=str(base)), policy, str(base))


@pytest.mark.parametrize(
    ("stage", "parameters", "message"),
    [
        (PPOStage, {"lora": {"rank": 0}}, "parameter 'lora.rank' is 0"),
        (SFTStage, {"lora": {"rang": 4}}, "unknown parameter 'lora.rang'"),
        (SFTStage, {"lora": {"dropout": 1.0}}, "parameter 'lora.dropout' is 1.0"),
        (PPOStage, {"lora": {"dropout": 0.1}}, "lora.dropout 0.1 would make .* it must be 0 here"),
        (RewardModelStage, {"lora": {"dropout": 0.1}}, "lora.dropout 0.1 would make .* it must be 0 here"),
        (PPOStage, {"lora": {"rank": 4}, "critic": "shared"}, "critic 'shared' with lora"),
        (PPOStage, {"lora": 8}, "parameter 'lora' is 8"),
    ],
)
def test_settings_that_make_no_sense_are_refused_when_read(stage, parameters, message):
    with pytest.raises(LabError, match=message) as caught:
        stage.parse(parameters)
    assert "\n" not in str(caught.value)


def test_an_empty_mapping_trains_the_whole_model(base):
    for stage in (SFTStage, RewardModelStage, PPOStage):
        assert stage.parse({"lora": {}}) == stage()
    assert SFTStage.parse({"lora": {"rank": "4"}}).lora == LoraConfig(rank=4)
    assert type(load_policy(base, lora=None)) is type(make_policy())


def test_training_of_adapters_resumes_as_if_it_had_not_stopped(base, tmp_path):
    config, roles = make_config(updates=2), four_roles(base)
    state = begin(config, *roles)
    next(ppo_updates(state))
    save_training(tmp_path, state, step=1)
    (wanted,) = ppo_updates(state)
    fresh = four_roles(base)
    resumed = begin(config, *fresh)
    assert load_training(tmp_path, resumed) == 1
    (update,) = ppo_updates(resumed)
    assert update.stats == wanted.stats
    assert same(weights_of(*fresh), weights_of(*roles))
