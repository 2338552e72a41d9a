"""The bytes of an update: what each role keeps, and what comes on top while it samples, reads, learns and steps."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from rlhf_lab.workbench.costs.work import Role, Update, forward

FLOAT = 4  # bytes: weights, gradients and moments are float32 in every precision
SLACK = 1.1  # the C library keeps some of what is freed: processes grew by 1.03 to 1.29 times their tensors


class Kept(NamedTuple):
    """Bytes of one role that stay from update to update."""

    weights: int
    gradients: int
    moments: int


class Transient(NamedTuple):
    """Bytes that come and go, at their largest. Policy and critic learn one after the other.

    activations, logits: of the one that needs more; of both where they share a trunk
    scoring: what is read without gradients
    cache: keys and values of generation
    stepping: copies that the optimizer makes
    """

    activations: float
    logits: float
    scoring: float
    cache: float
    stepping: float


class Memory(NamedTuple):
    """Bytes of a run at its peak. libraries: of the process before it has a model."""

    libraries: float
    kept: dict[str, Kept]
    transient: Transient

    @property
    def peak(self) -> float:
        """All of it at the worst moment."""
        return self.libraries + SLACK * self.tensors

    @property
    def tensors(self) -> float:
        """The part of the peak that is tensors. One learner's gradients are there at a time, until the next one's."""
        activations, logits, scoring, cache, stepping = self.transient
        keeps = sum(role.weights + role.moments for role in self.kept.values())
        gradients = max(role.gradients for role in self.kept.values())
        return keeps + max(activations + logits, gradients + max(scoring, cache, stepping))


def kept(roles: Sequence[Role]) -> dict[str, Kept]:
    """What each role keeps: weights, and where it learns a gradient and Adam's two moments. Two of a name add up."""
    found: dict[str, Kept] = {}
    for role in roles:
        more = Kept(FLOAT * role.weights, FLOAT * role.trained, 2 * FLOAT * role.trained)
        found[role.name] = Kept(*map(sum, zip(found.get(role.name, (0, 0, 0)), more, strict=True)))
    return found


def transient(roles: Sequence[Role], update: Update, bytes_of: Mapping[str, float]) -> Transient:
    """What an update with the longest replies needs besides.

    bytes_of: bytes of an element, logit, cached number or weight, by `Constants`. Counted with the activations: copies
    of the weights in bf16, and gradients that wait for further micro-batches.
    """
    policy, *others = [role for role in roles if role.name in ("policy", "critic")]
    minibatch = -(-update.replies // update.minibatches)
    rows, length = min(update.micro, minibatch), update.prompt + update.longest - 1
    learning = []
    for role in (policy, *others):
        one = forward(role.shape, rows, length, update.longest)
        waiting = FLOAT * role.trained if minibatch > rows else 0
        copies = bytes_of["cast"] * role.shape.parameters
        activations = bytes_of["held"] * one.elements + waiting + copies
        learning.append((activations, bytes_of["held_logits"] * one.logits))
    together = update.kept or any(role.on_trunk for role in others)
    activations, logits = map(sum, zip(*learning, strict=True)) if together else max(learning, key=sum)
    shape = policy.shape
    read = forward(shape, min(update.scored, update.replies), length, update.longest)
    cached = 2 * shape.layers * shape.keys * update.replies * (update.prompt + update.longest)
    return Transient(
        activations=activations,
        logits=logits,
        scoring=max(bytes_of["passing"] * read.elements / shape.layers, bytes_of["passing_logits"] * read.logits),
        cache=bytes_of["cached"] * cached,
        stepping=bytes_of["stepping"] * max(role.largest for role in roles),
    )
