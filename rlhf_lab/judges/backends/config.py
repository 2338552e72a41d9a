"""Any judge by its settings, so that a parameter of a notebook or a file can name it."""

from collections.abc import Mapping
from typing import Literal

from pydantic import Field

from rlhf_lab.config import Config
from rlhf_lab.errors import LabError
from rlhf_lab.judges.backends.budget import Budgeted
from rlhf_lab.judges.backends.cache import Cached
from rlhf_lab.judges.backends.completions import Backend
from rlhf_lab.judges.backends.endpoint import Endpoint, EndpointConfig
from rlhf_lab.judges.backends.kinds import one_of
from rlhf_lab.judges.backends.language_model import LanguageModelJudge
from rlhf_lab.judges.backends.local import LocalModel
from rlhf_lab.judges.backends.panel import Panel, Vote
from rlhf_lab.judges.backends.prompted import PromptedJudge
from rlhf_lab.judges.backends.recorded import RecordedJudge
from rlhf_lab.judges.backends.scorers import ScoreJudge
from rlhf_lab.judges.backends.simulated import SimulatedJudge, SimulatedJudgeConfig
from rlhf_lab.judges.backends.templates import load_template
from rlhf_lab.judges.protocol import Judge
from rlhf_lab.judges.readers.replay import ReplayConfig, read_verdicts
from rlhf_lab.models import load_policy, load_tokenizer
from rlhf_lab.rewards import Reward, load_reward

_TOP = 20  # first tokens that are asked for where a template reads their probabilities


class EndpointJudgeConfig(EndpointConfig):
    """A model behind an OpenAI-compatible endpoint, asked by a template."""

    kind: Literal["endpoint"] = "endpoint"  # to be given: it says which judge this is
    template: str = "plain"  # one of the package, or the path of a YAML file
    max_tokens: int | None = Field(None, ge=1)  # None: the template's
    cache: str | None = None  # an SQLite file in which answers are kept
    max_cost: float | None = Field(None, ge=0)  # asking stops before this is exceeded, in the currency of the prices
    max_calls: int | None = Field(None, ge=0)  # asking stops after so many questions; None: no limit


class LocalJudgeConfig(Config):
    """A local Hugging Face model, asked by a template and read by what it writes, or by its verdicts' probabilities."""

    kind: Literal["local"] = "local"  # to be given: it says which judge this is
    model: str  # a directory or hub id
    template: str = "plain"  # one of the package, or the path of a YAML file
    read: Literal["text", "probability"] = "text"  # what it writes, or how probable its verdicts are
    chat: bool | None = None  # None: by the tokenizer's chat template, if it has one
    max_new_tokens: int | None = Field(None, ge=1)  # None: the template's max_tokens
    temperature: float = Field(0.0, ge=0)  # of answers in text; 0: the likeliest token at every step
    top_p: float = Field(1.0, gt=0, le=1)  # of answers in text: the likeliest tokens of this mass; 1: all
    min_mass: float = Field(0.0, ge=0, le=1)  # read by probability: below it a verdict is invalid
    batch_size: int = Field(16, ge=1)  # questions in one forward
    seed: int = 0
    cache: str | None = None  # for answers in text


class RewardJudgeConfig(Config):
    """A reward as a judge: a reward model's directory or hub id, or a function as "file.py:name"."""

    kind: Literal["reward"] = "reward"  # to be given: it says which judge this is
    reward: str  # see above
    tie_margin: float = Field(0.0, ge=0)  # scores no further apart are a tie
    temperature: float | None = Field(1.0, gt=0)  # None: no probabilities


class GoldJudgeConfig(Config):
    """Gold itself, where it is known."""

    kind: Literal["gold"] = "gold"  # to be given: it says which judge this is
    tie_margin: float = Field(0.0, ge=0)  # gold no further apart is a tie
    temperature: float | None = Field(None, gt=0)  # in units of gold; None: no probabilities


class SimulatedKindConfig(SimulatedJudgeConfig):
    """Gold with planted biases."""

    kind: Literal["simulated"] = "simulated"  # to be given: it says which judge this is


class ReplayJudgeConfig(ReplayConfig):
    """A judge that was recorded."""

    kind: Literal["replay"] = "replay"  # to be given: it says which judge this is
    judge: str | None = None  # its name in the file; None: there is but one


class PanelConfig(Config):
    """Several of the others, by name."""

    kind: Literal["panel"] = "panel"  # to be given: it says which judge this is
    members: dict[str, "JudgeConfig"] = Field(min_length=1)  # name -> kind and settings
    vote: Vote = "majority"  # what decides: most verdicts, the mean p_first, or the mean scores


JudgeConfig = one_of(
    EndpointJudgeConfig,
    LocalJudgeConfig,
    RewardJudgeConfig,
    GoldJudgeConfig,
    SimulatedKindConfig,
    ReplayJudgeConfig,
    PanelConfig,
)
PanelConfig.model_rebuild()


class _Holder(Config):
    judge: JudgeConfig


def parse_judge(values: Mapping[str, object], source: str = "judge") -> Config:
    """The configuration that the values are, by their `kind`. Errors: `LabError` in one line that names `source`."""
    return _Holder.parse({"judge": values}, source).judge


def make_judge(config: Config | Mapping[str, object], *, gold: Reward | None = None, policy_tokenizer=None) -> Judge:
    """The judge that a configuration names. Models are loaded, files are read; nobody is asked yet.

    gold: the reward that the kinds gold and simulated judge by. policy_tokenizer: as `load_reward` takes it.
    Errors: `LabError` for settings, models or files that are wrong, and for a judge by gold where none is known.
    """
    if isinstance(config, Mapping):
        config = parse_judge(config)
    if isinstance(config, GoldJudgeConfig | SimulatedKindConfig) and gold is None:
        raise LabError(
            f"a judge of kind '{config.kind}' needs gold, which is not known here; use the sandbox, or another"
        )
    match config:
        case PanelConfig():
            known = {"gold": gold, "policy_tokenizer": policy_tokenizer}
            members = {name: make_judge(member, **known) for name, member in config.members.items()}
            return Panel(members, vote=config.vote)
        case EndpointJudgeConfig():
            return _endpoint(config)
        case LocalJudgeConfig():
            return _local(config)
        case RewardJudgeConfig():
            reward = load_reward(config.reward, policy_tokenizer=policy_tokenizer)
            return ScoreJudge(reward, tie_margin=config.tie_margin, temperature=config.temperature)
        case GoldJudgeConfig():
            return ScoreJudge(gold, tie_margin=config.tie_margin, temperature=config.temperature)
        case SimulatedKindConfig():
            return SimulatedJudge(config, gold)
        case ReplayJudgeConfig():
            return _recorded(config)
    raise LabError(f"{type(config).__name__} names no judge; give one of the kinds of JudgeConfig")


def _endpoint(config: EndpointJudgeConfig) -> PromptedJudge:
    template = load_template(config.template)
    settings = {name: getattr(config, name) for name in EndpointConfig.model_fields}
    settings["max_tokens"] = config.max_tokens or template.max_tokens
    if template.verdict_tokens and config.top_logprobs is None:
        settings["top_logprobs"] = _TOP
    endpoint = Endpoint(EndpointConfig(**settings))
    backend: Backend = endpoint
    if config.max_cost is not None or config.max_calls is not None:
        if config.cache is None:
            raise LabError(
                "judge: a budget that stops without a cache loses what was paid; give 'cache', an SQLite file"
            )
        backend = Budgeted(endpoint, max_cost=config.max_cost, max_calls=config.max_calls)
    return PromptedJudge(_cached(backend, config.cache), template, prices=endpoint.prices)


def _local(config: LocalJudgeConfig) -> Judge:
    template = load_template(config.template)
    by_probability = template.as_judge_template() if config.read == "probability" else None
    tokenizer, model = load_tokenizer(config.model), load_policy(config.model, trainable=False)
    if by_probability:
        chat = bool(tokenizer.chat_template) if config.chat is None else config.chat
        options = {"min_mass": config.min_mass, "batch_size": config.batch_size, "chat": chat}
        return LanguageModelJudge(model, tokenizer, by_probability, **options)
    backend = LocalModel(
        model,
        tokenizer,
        max_new_tokens=config.max_new_tokens or template.max_tokens,
        temperature=config.temperature,
        top_p=config.top_p,
        seed=config.seed,
        chat=config.chat,
        top_tokens=_TOP if template.verdict_tokens else 0,
        batch_size=config.batch_size,
    )
    return PromptedJudge(_cached(backend, config.cache), template, name=f"{config.model} / {template.name}")


def _cached(backend: Backend, path: str | None) -> Backend:
    return backend if path is None else Cached(backend, path)


def _recorded(config: ReplayJudgeConfig) -> RecordedJudge:
    how = {name: getattr(config, name) for name in ReplayConfig.model_fields}
    verdicts = read_verdicts(**{**how, "judge": config.judge or "judge"}).verdicts
    return RecordedJudge(verdicts, config.judge)
