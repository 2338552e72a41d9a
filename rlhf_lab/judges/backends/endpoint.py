"""An OpenAI-compatible endpoint as the backend of a judge."""

import itertools
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal, Self
from urllib.parse import urlsplit

from pydantic import (
    ConfigDict,
    Field,
    ModelWrapValidatorHandler,
    SecretStr,
    ValidationError,
    field_validator,
    model_validator,
)
from pydantic_core import InitErrorDetails, PydanticCustomError

from rlhf_lab.config import Config
from rlhf_lab.errors import LabError
from rlhf_lab.judges.backends.answers import Failure
from rlhf_lab.judges.backends.budget import Prices
from rlhf_lab.judges.backends.calls import Calls
from rlhf_lab.judges.backends.completions import Completion, Request
from rlhf_lab.judges.backends.pacing import Pace

ADDRESS_VARIABLE, MODEL_VARIABLE = "OPENAI_BASE_URL", "RLHF_LAB_JUDGE_MODEL"
_OPENAI = "https://api.openai.com/v1"
_PATIENCE = 10  # requests that fail one after the other before the endpoint itself is doubted
_TRIAL = Request((("user", "Answer with the word OK."),))
_ADVICE = {
    400: "check the model's name and the settings sent with it (temperature, max_tokens, seed, top_logprobs)",
    401: "check the key in the environment variable {key}",
    402: "the account has no credit left: fill it up, or name another endpoint",
    403: "check what the key in the environment variable {key} may use",
    404: "check base_url, which mostly ends in /v1, and the model's name",
}


class EndpointConfig(Config):
    """Which model is asked, how, and how fast. The key is in the environment and never here."""

    model_config = ConfigDict(hide_input_in_errors=True)  # somebody may write a key into the wrong field

    base_url: str | None = None  # None: OPENAI_BASE_URL, then OpenAI's own
    model: str | None = None  # None: RLHF_LAB_JUDGE_MODEL
    key_variable: str = "OPENAI_API_KEY"  # the environment variable that holds the key; many local servers need none
    temperature: float | None = Field(default=0.0, ge=0)  # None: not sent, as some models want it
    max_tokens: int = Field(default=512, ge=1)  # of the answer, what a model thinks beforehand included
    max_tokens_name: Literal["max_tokens", "max_completion_tokens"] | None = None  # None: as OpenAI or others call it
    seed: int | None = None  # repeat r is asked with seed + r
    top_logprobs: int | None = Field(default=None, ge=0, le=20)  # None: no log-probabilities
    concurrency: int = Field(default=8, ge=1, le=1000)  # requests on their way at a time
    requests_per_minute: float | None = Field(default=None, gt=0)  # evenly spaced; None: no limit
    tokens_per_minute: float | None = Field(default=None, gt=0)  # counting max_tokens for each answer
    timeout: float = Field(default=60.0, gt=0)  # seconds, for each attempt as a whole
    max_retries: int = Field(default=5, ge=0)  # after 408, 409, 429, 5xx, a cut connection, no answer in time
    backoff: float = Field(default=1.0, ge=0)  # seconds before the first retry; doubled for each further one
    price_in: float | None = Field(default=None, ge=0)  # per million tokens of the questions (prompt tokens)
    price_out: float | None = Field(default=None, ge=0)  # the same, of answers; without both no cost is known

    @model_validator(mode="wrap")
    @classmethod
    def _without_the_values(cls, values: Any, handler: ModelWrapValidatorHandler[Self]) -> Self:
        """The same errors with nothing of what was given: `parse` shows values, and a key may be one."""
        try:
            return handler(values)
        except ValidationError as error:
            problems = [
                InitErrorDetails(type=_not_shown(item), loc=item["loc"], input="(not shown)")
                for item in error.errors(include_url=False, include_input=False, include_context=False)
            ]
            raise ValidationError.from_exception_data(cls.__name__, problems, hide_input=True) from None

    @field_validator("base_url")
    @classmethod
    def _no_secret_in_the_address(cls, value: str | None) -> str | None:
        return value if value is None else check_address(value, "base_url")

    @field_validator("key_variable")
    @classmethod
    def _the_name_of_a_variable(cls, value: str) -> str:
        if not re.fullmatch(r"[A-Z][A-Z0-9]*(_[A-Z0-9]+)+", value):
            # Not shown: it may be the key itself.
            raise LabError(
                "key_variable is not the name of an environment variable, in capitals with an underscore such as "
                "OPENAI_API_KEY; put the key into that variable, not into the configuration"
            )
        return value

    def limit_name(self, address: str) -> str:
        """What the server calls max_tokens: OpenAI's newer models refuse the name that all others know."""
        openai = urlsplit(address).hostname == urlsplit(_OPENAI).hostname
        return self.max_tokens_name or ("max_completion_tokens" if openai else "max_tokens")


def _not_shown(item: Mapping[str, Any]) -> str | PydanticCustomError:
    kept = item["type"] in ("extra_forbidden", "missing")
    return item["type"] if kept else PydanticCustomError("wrong", "{why}", {"why": item["msg"]})


class Endpoint:
    """Asks a model behind an OpenAI-compatible address. A `Backend`.

    At most `concurrency` requests are on their way, and the next one is sent when the answer to an earlier one
    has been taken: whoever keeps each answer before taking the next loses no more than these. A text that came
    is kept even if empty or cut off, and `reason` says so. A request that brings none, after retries, is a
    Completion without text.

    Errors: `LabError` where nothing can come of the run: no model named, no key or a wrong one, nobody at the
    address, an empty account, or every request refused or failing. The last is found out with one short
    question of our own, so that requests at fault themselves, such as too long ones, do not stop the others.
    """

    def __init__(self, config: EndpointConfig):
        self.config = config
        self.address = check_address(
            config.base_url or os.environ.get(ADDRESS_VARIABLE) or _OPENAI, ADDRESS_VARIABLE
        ).rstrip("/")
        self.model = config.model or os.environ.get(MODEL_VARIABLE, "")
        if not self.model:
            raise LabError(f"judge endpoint {self.address}: no model is named; set model, or {MODEL_VARIABLE}")
        self._paces = (Pace(config.requests_per_minute), Pace(config.tokens_per_minute))
        self._answers = False  # it has answered a request
        self._failed = 0  # requests without an answer since

    def __repr__(self) -> str:
        return f"Endpoint({self.model!r} at {self.address})"

    @property
    def identity(self) -> Mapping[str, object]:
        """The model, where it is, and what is sent with each request. How fast it is asked is no part of it."""
        settings = self.config.model_dump(include={"temperature", "max_tokens", "seed", "top_logprobs"})
        return {"backend": "endpoint", "base_url": self.address, "model": self.model, **settings}

    @property
    def prices(self) -> Prices | None:
        """Per million tokens; None unless both are known."""
        known = None not in (self.config.price_in, self.config.price_out)
        return Prices(self.config.price_in, self.config.price_out) if known else None

    def complete(self, requests: Sequence[Request]) -> Iterator[tuple[int, Completion]]:
        """The answers, as they come."""
        if not requests:
            return
        with Calls(self.config, self.address, self.model, self._key(), self._paces) as calls:
            yield from self._drive(calls, requests)

    def _drive(self, calls: Calls, requests: Sequence[Request]) -> Iterator[tuple[int, Completion]]:
        waiting = iter(enumerate(requests))
        on_their_way, problem = 0, None
        for number, request in itertools.islice(waiting, self.config.concurrency):
            calls.start(number, request)
            on_their_way += 1
        while on_their_way:
            number, outcome = calls.wait()
            on_their_way -= 1
            if isinstance(outcome, Failure) and problem is None and (problem := self._doubt(outcome, calls)):
                calls.hurry()
            if isinstance(outcome, Completion):
                self._answers, self._failed = True, 0
                yield number, outcome  # after a problem too: it is paid for
            elif problem is None:
                yield number, Completion(None, outcome.reason)
            if problem is None and (following := next(waiting, None)):
                calls.start(*following)
                on_their_way += 1
        if problem is not None:
            raise problem

    def _doubt(self, failure: Failure, calls: Calls) -> LabError | None:
        """Why no request will be answered, if so. Until one was, the first failure raises the doubt; later, ten do."""
        self._failed += 1
        if not failure.useless:
            if self._failed < (_PATIENCE if self._answers else 1):
                return None
            if isinstance(calls.try_out(_TRIAL, 0 if failure.again else self.config.max_retries), Completion):
                self._answers, self._failed = True, 0
                return None
        if not failure.connected:
            advice = "is the server running, and is base_url right?"
        else:
            advice = _ADVICE.get(failure.status, "try again later, perhaps with less concurrency or a longer timeout")
        advice = advice.format(key=self.config.key_variable)
        return LabError(f"judge endpoint {self.address}, model '{self.model}': {failure.reason}; {advice}")

    def _key(self) -> SecretStr:
        """The key, read when it is needed, so that nothing that lasts holds it."""
        name = self.config.key_variable
        key = os.environ.get(name, "").strip()
        if not key and self.address == _OPENAI:
            raise LabError(f"judge endpoint {self.address}: no key; put it into the environment variable {name}")
        if not re.fullmatch("[!-~]*", key):
            raise LabError(f"the environment variable {name} does not hold a key: it has spaces or odd characters")
        return SecretStr(key)


def check_address(address: str, source: str) -> str:
    """The address of a server if it is one and holds no secret. Errors: `LabError`, which does not show it."""
    try:
        parts = urlsplit(address)
        good = parts.scheme in ("http", "https") and bool(parts.hostname)
        secret = "@" in parts.netloc or bool(parts.query or parts.fragment)
        parts.port  # noqa: B018 (raises where it is no number)
    except ValueError:
        good = secret = False
    if secret:
        raise LabError(
            f"{source} holds a user, a password or a query, which would end up in files; "
            "leave them out and put the key into the environment variable that key_variable names"
        )
    if not good:
        raise LabError(f"{source} is no address of a server; expected something like http://localhost:8000/v1")
    return address
