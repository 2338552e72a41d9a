"""What one stage of an experiment will need, from its settings alone."""

from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from rlhf_lab.data import column_names, encode_pair
from rlhf_lab.models import load_tokenizer
from rlhf_lab.sandbox.world import World
from rlhf_lab.training.ppo_step import one_pass
from rlhf_lab.training.processes import ALONE
from rlhf_lab.workbench.costs.constants import Constants, beyond
from rlhf_lab.workbench.costs.memory import Memory, kept, transient
from rlhf_lab.workbench.costs.named import SAMPLE, Model, lengths, named_model
from rlhf_lab.workbench.costs.shapes import Shape, adapter_parameters, shape_of
from rlhf_lab.workbench.costs.work import Role, Update, Work, generation, training, update_work
from rlhf_lab.workbench.stages import PPOStage, PretrainStage, RewardModelStage, SFTStage

AT_ONCE = 128  # replies sampled in one batch, outside of PPO's rollouts
PLANNED = (PretrainStage, SFTStage, RewardModelStage, PPOStage)


class Asked(NamedTuple):
    """What a cost is worked out with: measured constants, what earlier stages leave, and given lengths in tokens."""

    constants: Constants
    earlier: Mapping[str, Model]
    prompt: float | None = None
    reply: float | None = None


class Cost(NamedTuple):
    """What a stage needs. tokens: of the texts that it learns from; leaves: for later stages."""

    tokens: float
    flops: float
    seconds: float
    memory: Memory
    assumed: str
    beyond: list[str]
    compared: bool  # with measurements, as PPO updates of four whole models in fp32 were
    leaves: Model


def cost_of(cfg, asked: Asked) -> Cost:
    """The cost of a stage of one of the kinds `PLANNED`. Errors: `LabError` for a model that cannot be found."""
    works = zip(PLANNED, (_pretrain, _sft, _reward_model, _ppo), strict=True)
    return next(work for kind, work in works if isinstance(cfg, kind))(cfg, asked)


def _ppo(cfg: PPOStage, asked: Asked) -> Cost:
    model = named_model(cfg.policy, cfg, asked.earlier, "sft")
    long = lengths(cfg, model, longest=cfg.max_new_tokens, prompt=asked.prompt, reply=asked.reply, prompts=cfg.prompts)
    roles = ppo_roles(cfg, model, asked.earlier)
    replies = cfg.batch_size * cfg.samples_per_prompt
    micro = cfg.micro_batch_size or -(-replies // cfg.minibatches)
    scored = cfg.micro_batch_size or replies
    tokens = (long.prompt, long.reply, cfg.max_new_tokens)
    update = Update(replies, *tokens, cfg.epochs, cfg.minibatches, micro, scored, kept=one_pass(cfg, ALONE))
    phases = update_work(roles, update)
    if cfg.ptx_coef:
        length = long.prompt + long.reply
        texts = training(roles[0].shape, cfg.ptx_batch_size, length, length).times(cfg.epochs * cfg.minibatches)
        phases = phases._replace(train=phases.train.plus(texts))
    looks = 1 + -(-cfg.updates // cfg.eval_every)
    share = looks * cfg.eval_prompts / replies  # a measurement samples and reads as an update does
    whole = phases._replace(
        rollout=phases.rollout.times(cfg.updates + share),
        score=phases.score.times(cfg.updates + share),
        train=phases.train.times(cfg.updates),
    )
    sizes = {"replies": replies, "prompt tokens": long.prompt, "reply tokens": cfg.max_new_tokens}
    plain = [role.name for role in roles] == ["policy", "reference", "critic", "reward"] and cfg.critic != "shared"
    return _cost(
        asked,
        tokens=cfg.updates * replies * (long.prompt + long.reply),
        works=whole._asdict(),
        memory=Memory(asked.constants.libraries, kept(roles), transient(roles, update, asked.constants.bytes)),
        assumed=long.told,
        sizes=sizes | _sizes(roles[0].shape),
        leaves=model._replace(adapter=cfg.lora is not None),
        compared=plain and not cfg.ptx_coef and asked.constants.precision == "fp32",
    )


def ppo_roles(cfg: PPOStage, model: Model, earlier: Mapping[str, Model]) -> list[Role]:
    """The models of a PPO run as they lie in memory, the policy first: whole ones, or adapters on a shared base."""
    policy, bins = shape_of(model.config), len(cfg.critic_bins or [0])
    value = shape_of(model.config, outputs=bins)
    if cfg.lora is None:
        roles = [
            Role("policy", policy, policy.parameters, policy.parameters, policy.largest),
            Role("reference", policy, policy.parameters, 0),
        ]
        if cfg.needs_critic:
            if cfg.critic == "shared":
                roles.append(Role("critic", value, value.head, value.head, on_trunk=True))
            else:
                roles.append(Role("critic", value, value.parameters, value.parameters, value.largest))
    else:
        size = adapter_parameters(model.config, cfg.lora)
        roles = [
            Role("policy", policy, size, size, adapter=size),
            Role("base", policy, policy.parameters, 0),
        ]
        if cfg.needs_critic:
            roles.append(Role("critic", value, size + value.head, size + value.head, adapter=size))
    if cfg.ema:
        roles.append(Role("average", policy, roles[0].trained, 0))
    names = [cfg.reward] if isinstance(cfg.reward, str) else list(cfg.reward)
    for name in names:
        if name in ("gold", "yours") or ":" in name:
            continue
        found = named_model(name, cfg, earlier, "reward_model")
        shape = shape_of(found.config, outputs=1)
        shared = cfg.lora is not None and found.adapter and found.config.to_dict() == model.config.to_dict()
        weights = adapter_parameters(model.config, cfg.lora) + shape.head if shared else shape.parameters
        roles += [Role("reward", shape, weights, 0)] * found.members
    return roles


def _sft(cfg: SFTStage, asked: Asked) -> Cost:
    model = named_model(cfg.model, cfg, asked.earlier, "sft")
    shape = shape_of(model.config)
    size = adapter_parameters(model.config, cfg.lora) if cfg.lora else 0
    length, told = _text_length(cfg, model, asked)
    steps = cfg.epochs * -(-cfg.n_demonstrations // cfg.batch_size)
    trained = size or shape.parameters
    roles = [Role("policy", shape, shape.parameters + size, trained, 0 if size else shape.largest)]
    work = training(shape, cfg.batch_size, length, length, adapter=size)._replace(updated=trained)
    long = lengths(cfg, model, longest=cfg.max_new_tokens, prompt=asked.prompt, reply=asked.reply, prompts=cfg.prompts)
    return _cost(
        asked,
        tokens=cfg.epochs * cfg.n_demonstrations * length,
        works={"train": work.times(steps), "rollout": _sampled(shape, 2 * cfg.eval_prompts, long)},
        memory=_learning(asked, roles, cfg.batch_size, length),
        assumed=f"{cfg.n_demonstrations} demonstrations of {told}",
        sizes=_sizes(shape),
        leaves=model._replace(adapter=size > 0),
    )


def _reward_model(cfg: RewardModelStage, asked: Asked) -> Cost:
    model = named_model(cfg.model or cfg.policy, cfg, asked.earlier, "sft")
    shape = shape_of(model.config, outputs=len(cfg.head_bins or [0]))
    size = adapter_parameters(model.config, cfg.lora) if cfg.lora else 0
    length, told = _text_length(cfg, model, asked)
    trained = size + shape.head if size else shape.parameters
    runs = cfg.members + cfg.reversed_too + sum(cfg.learning_curve) / cfg.n_prompts
    steps = runs * cfg.epochs * -(-cfg.n_prompts // cfg.batch_size)
    replies = 1 if cfg.rated else _ranked(cfg)
    rows = cfg.batch_size * replies
    roles = [Role("reward", shape, shape.parameters + size, trained, 0 if size else shape.largest)]
    work = training(shape, rows, length, 1, adapter=size)._replace(updated=trained)
    works = {"train": work.times(steps)}
    if cfg.needs_policy:
        policy = named_model(cfg.policy, cfg, asked.earlier, "sft")
        speaker = shape_of(policy.config)
        roles.append(Role("policy", speaker, speaker.parameters, 0))
        prompts = "sandbox" if cfg.sandbox else ""  # of one's own: not known before they are split
        long = lengths(cfg, policy, longest=cfg.max_new_tokens, prompt=asked.prompt, reply=asked.reply, prompts=prompts)
        said = cfg.reference_replies if cfg.normalise == "reference" else 0
        said += cfg.n_prompts * cfg.k if cfg.preferences == "sandbox" else 0
        said += 2 * cfg.n_heldout if cfg.heldout == "sandbox" else 0
        works["rollout"] = _sampled(speaker, said, long)
    return _cost(
        asked,
        tokens=runs * cfg.epochs * cfg.n_prompts * replies * length,
        works=works,
        memory=_learning(asked, roles, rows, length),
        assumed=f"{cfg.n_prompts} prompts with {replies} replies, texts of {told}",
        sizes={"width": shape.width, "layers": shape.layers},
        leaves=model._replace(members=cfg.members, adapter=size > 0),
    )


def _ranked(cfg: RewardModelStage) -> int:
    """Replies to a prompt that are compared: of rankings `k`, else two."""
    if cfg.preferences == "sandbox":
        return cfg.k
    names = column_names(cfg.preferences) if Path(cfg.preferences).is_file() else cfg.columns
    return cfg.k if "completions" in {*names, *cfg.columns} else 2


def _pretrain(cfg: PretrainStage, asked: Asked) -> Cost:
    from transformers import LlamaConfig

    vocabulary, length, tokenizer = cfg.vocab_size, float(cfg.context), ""
    told = f"pieces of {cfg.context} tokens, the longest"
    if cfg.text == "sandbox":
        world = World.load(cfg.sandbox or "default")
        read, tokenizer = load_tokenizer(world.base_model), world.base_model
        documents = [len(ids) for ids in read(world.corpus(SAMPLE, read.eos_token))["input_ids"]]
        vocabulary, length = len(read), sum(documents) / len(documents)
        told = f"documents of {length:.0f} tokens, the mean of some"
    config = LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=cfg.hidden_size,
        intermediate_size=cfg.feed_forward,
        num_hidden_layers=cfg.layers,
        num_attention_heads=cfg.heads,
        max_position_embeddings=cfg.context,
        tie_word_embeddings=True,
    )
    shape = shape_of(config)
    rows = cfg.batch_tokens / length
    roles = [Role("policy", shape, shape.parameters, shape.parameters, shape.largest)]
    work = training(shape, rows, length, length)._replace(updated=shape.parameters)
    return _cost(
        asked,
        tokens=cfg.steps * cfg.batch_tokens,
        works={"train": work.times(cfg.steps)},
        memory=_learning(asked, roles, rows, length),
        assumed=f"{told}; without its measuring",
        sizes=_sizes(shape),
        leaves=Model(config, tokenizer),
    )


def _text_length(cfg, model: Model, asked: Asked) -> tuple[float, str]:
    """Tokens of a text of prompt and reply to learn from: as given, of the sandbox's, or as long as may be."""
    if asked.prompt is not None and asked.reply is not None:
        length = min(asked.prompt + asked.reply, cfg.max_length)
        return length, f"{length:g} tokens"
    if (
        model.tokenizer
        and cfg.sandbox
        and "sandbox" in (getattr(cfg, "demonstrations", ""), getattr(cfg, "preferences", ""))
    ):
        tokenizer = load_tokenizer(model.tokenizer)
        rows = World.load(cfg.sandbox).demonstrations(SAMPLE)
        pairs = [encode_pair(tokenizer, row["prompt"], row["completion"], max_length=cfg.max_length) for row in rows]
        length = max(len(pair.prompt_ids) + len(pair.reply_ids) for pair in pairs)
        return length, f"{length} tokens (the longest of some)"
    return cfg.max_length, f"{cfg.max_length} tokens (max_length; --prompt-tokens and --reply-tokens give means)"


def _sampled(shape: Shape, replies: int, long) -> Work:
    return generation(shape, AT_ONCE, long.prompt, long.reply).times(replies / AT_ONCE)


def _learning(asked: Asked, roles: list[Role], rows: float, length: float) -> Memory:
    """The memory of a model that learns from whole texts, as if these were replies to prompts of one token."""
    learns, at_once = [roles[0]._replace(name="policy")], max(1, round(rows))
    update = Update(at_once, 1, length, round(length), 1, 1, at_once, at_once)
    return Memory(asked.constants.libraries, kept(roles), transient(learns, update, asked.constants.bytes))


def _sizes(shape: Shape) -> dict[str, float]:
    """What of a language model `CHECKED` has a range of."""
    return {"width": shape.width, "layers": shape.layers, "vocabulary": shape.outputs}


def _cost(
    asked: Asked, *, works: Mapping[str, Work], sizes: Mapping[str, float], compared: bool = False, **known
) -> Cost:
    every = Work().plus(*works.values())
    seconds = sum(asked.constants.time(phase, work) for phase, work in works.items())
    flops = every.flops + every.attention
    return Cost(flops=flops, seconds=seconds, beyond=beyond(sizes), compared=compared, **known)
