"""What passes through models are made of: tokens, FLOPs, and what else takes time. Pure arithmetic on shapes."""

from typing import NamedTuple, Self

from rlhf_lab.workbench.costs.shapes import Shape

BACKWARD = 2.0  # matrix products of a backward over those of its forward: one for the inputs, one for the weights
ATTENTION_BACKWARD = 2.5  # of attention, which makes its weights anew: five products over two
READ_AT_ONCE = 64  # replies that a reward model reads in one pass


class Work(NamedTuple):
    """What some passes consist of. Two add up to what both are.

    tokens: that go through a model
    kernels: calls of the library, in layers passed
    flops: of linear layers, a multiply-add is two
    attention: flops of queries with keys and weights with values
    elements: read and written by linear layers, which is in proportion to all that is done element by element
    logits: of the vocabulary
    weights: read, each once a pass
    cached: keys and values read back in generation
    updated: weights that an optimizer step changes
    """

    tokens: float = 0.0
    kernels: float = 0.0
    flops: float = 0.0
    attention: float = 0.0
    elements: float = 0.0
    logits: float = 0.0
    weights: float = 0.0
    cached: float = 0.0
    updated: float = 0.0

    def plus(self, *others: Self) -> Self:
        """The sum with others."""
        return type(self)(*map(sum, zip(self, *others, strict=True)))

    def times(self, factor: float) -> Self:
        """So often."""
        return type(self)(*(factor * part for part in self))


def forward(shape: Shape, rows: float, length: float, read: float) -> Work:
    """One pass of `rows` texts of `length` tokens whose head is read at `read` positions of each."""
    tokens = rows * length
    passed = tokens - rows * (length - read) * shape.last / shape.matrix  # in whole trunks
    return Work(
        tokens=tokens,
        kernels=shape.layers + 2,
        flops=2 * (passed * shape.matrix + rows * read * shape.head),
        attention=4 * rows * length**2 * shape.layers * shape.queries,
        elements=passed * shape.through,
        logits=rows * read * (shape.outputs if shape.outputs > 1 else 0),
        weights=shape.parameters,
    )


def training(shape: Shape, rows: float, length: float, read: float, *, adapter: int = 0) -> Work:
    """A forward and its backward. adapter: weights of a LoRA adapter, which alone learns; 0 = the whole model does.

    A frozen weight has no product of its own in the backward; the adapter's own layers have all three.
    """
    once = forward(shape, rows, length, read)
    if not adapter:
        return once._replace(flops=once.flops * (1 + BACKWARD), attention=once.attention * (1 + ATTENTION_BACKWARD))
    low_rank = 2 * once.tokens * adapter
    return once._replace(
        kernels=2 * once.kernels,
        flops=once.flops * BACKWARD + low_rank * (1 + BACKWARD),
        attention=once.attention * (1 + ATTENTION_BACKWARD),
        elements=2 * once.elements,
    )


def generation(shape: Shape, rows: float, prompt: float, reply: float) -> Work:
    """Prompts read once, then a pass for each further token with what came before in the cache."""
    steps = reply - 1
    shape = shape._replace(last=0)  # the cache is filled by the model's own forward
    step = forward(shape, rows, 1, 1)._replace(attention=0.0)
    seen = steps * prompt + steps * (steps + 1) / 2  # tokens that the steps look back at, one's own included
    return forward(shape, rows, prompt, 1).plus(
        step.times(steps),
        Work(
            attention=4 * rows * seen * shape.layers * shape.queries,
            cached=2 * rows * seen * shape.layers * shape.keys,
        ),
    )


class Role(NamedTuple):
    """One of the models of an update, as it lies in memory.

    weights: of its own, in memory; trained: of these, which get gradients and moments; largest: tensor of these
    adapter: weights of a LoRA adapter on a base that others share; 0 = a model of its own
    on_trunk: a critic on the policy's trunk, which learns together with the policy
    """

    name: str
    shape: Shape
    weights: int
    trained: int
    largest: int = 0
    adapter: int = 0
    on_trunk: bool = False


class Update(NamedTuple):
    """One PPO update: numbers of replies and tokens. Lengths are means, `longest` that of the longest reply."""

    replies: int
    prompt: float
    reply: float
    longest: int
    epochs: int
    minibatches: int
    micro: int  # replies in one pass of training
    scored: int  # replies in one pass that only reads
    kept: bool = False  # that pass is the first of training too

    @property
    def passes(self) -> int:
        """Forward passes of a model in one epoch."""
        minibatch = -(-self.replies // self.minibatches)
        return self.minibatches * -(-minibatch // self.micro)


class Phases(NamedTuple):
    """The work of an update, by the names of `PPOUpdate.seconds`."""

    rollout: Work
    score: Work
    train: Work


def update_work(roles: list[Role], update: Update) -> Phases:
    """What an update consists of. roles: named policy, and as there are reference, critic, reward.

    A critic on the policy's trunk takes a pass of its own. Several reward models each read all replies.
    """
    named = {role.name: role for role in roles}
    length = update.prompt + update.reply - 1  # the last token of a reply is no state
    policy, critic = named["policy"].shape, named.get("critic")
    score = Work()
    for shape in (policy, policy, *([critic.shape] if critic else [])):  # the reference is as large as the policy
        score = score.plus(_passes(forward(shape, update.replies, length, update.reply), update, update.scored))
    for role in roles:
        if role.name == "reward":
            one = forward(role.shape, update.replies, length + 1, 1)
            score = score.plus(_passes(one, update, READ_AT_ONCE))
    rows = update.replies / update.passes
    train = Work()
    for role in (named["policy"], critic):
        if role is not None:
            once = training(role.shape, rows, length, update.reply, adapter=role.adapter)
            train = train.plus(once.times(update.epochs * update.passes))
            if update.kept:
                read = forward(role.shape, update.replies, length, update.reply)
                train = train.plus(read._replace(weights=0.0).times(-1))
    updated = update.epochs * update.minibatches * sum(role.trained for role in roles)
    return Phases(
        generation(policy, update.replies, update.prompt, update.reply), score, train._replace(updated=updated)
    )


def _passes(whole: Work, update: Update, at_once: int) -> Work:
    """The same work in passes of so many replies: more calls, and the weights are read more often."""
    passes = -(-update.replies // at_once)
    return whole._replace(kernels=passes * whole.kernels, weights=passes * whole.weights)
