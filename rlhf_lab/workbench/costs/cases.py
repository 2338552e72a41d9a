"""Updates of models of random weights, of any size: what is measured in place of a run."""

from typing import NamedTuple

import torch

from rlhf_lab.models import Scorer
from rlhf_lab.models.loading import prepare, quiet
from rlhf_lab.rewards import ModelReward
from rlhf_lab.training.ppo import PPOConfig, PPOState, ppo_start, ppo_updates
from rlhf_lab.workbench.costs.shapes import Shape, shape_of
from rlhf_lab.workbench.costs.work import Role, Update


class Case(NamedTuple):
    """A Llama of random weights, and an update of it whose replies all have `reply` tokens. Sizes in tokens."""

    width: int
    layers: int
    vocabulary: int
    replies: int
    prompt: int
    reply: int
    micro: int = 0
    feed_forward: int = 0  # 0 = four times the width
    epochs: int = 1

    @property
    def config(self):
        """The model's configuration."""
        from transformers import LlamaConfig

        return LlamaConfig(
            vocab_size=self.vocabulary,
            hidden_size=self.width,
            intermediate_size=self.feed_forward or 4 * self.width,
            num_hidden_layers=self.layers,
            num_attention_heads=max(1, self.width // 64),
            max_position_embeddings=4096,
            bos_token_id=None,
            eos_token_id=None,
            pad_token_id=None,
        )

    @property
    def update(self) -> Update:
        """Its sizes."""
        at_once = self.micro or self.replies
        return Update(self.replies, self.prompt, self.reply, self.reply, self.epochs, 1, at_once, at_once)

    def roles(self) -> list[Role]:
        """Four whole models, of which two learn."""
        return whole_models(shape_of(self.config), shape_of(self.config, outputs=1))


def whole_models(policy: Shape, critic: Shape) -> list[Role]:
    """Policy, reference, critic and reward model, each a model of its own."""
    return [
        Role("policy", policy, policy.parameters, policy.parameters, policy.largest),
        Role("reference", policy, policy.parameters, 0),
        Role("critic", critic, critic.parameters, critic.parameters, critic.largest),
        Role("reward", critic, critic.parameters, 0),
    ]


def begun(case: Case, precision: str, *, updates: int = 2) -> tuple[PPOState, list[dict[str, float]]]:
    """A run of that many updates with models of random weights, and the seconds of the phases of each."""
    state = ppo_start(
        PPOConfig(
            updates=updates,
            batch_size=case.replies,
            max_new_tokens=case.reply,
            epochs=case.epochs,
            minibatches=1,
            micro_batch_size=case.micro or case.replies,  # in micro-batches, so that training reads for itself
            precision=precision,
        ),
        **_models(case, precision),
    )
    return state, [update.seconds for update in ppo_updates(state)]


def seconds_of(case: Case, precision: str, *, updates: int = 3) -> dict[str, float]:
    """Seconds of each phase of an update: the fastest of all but the first, which sets things up."""
    _, seconds = begun(case, precision, updates=updates)
    return {phase: min(one[phase] for one in seconds[1:]) for phase in seconds[0]}


def _models(case: Case, precision: str) -> dict:
    from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

    config, classifier = case.config, case.config
    classifier.num_labels = 1
    with torch.random.fork_rng():
        torch.manual_seed(0)
        with quiet():
            policy, reference = (AutoModelForCausalLM.from_config(config) for _ in range(2))
            critic, reward = (AutoModelForSequenceClassification.from_config(classifier) for _ in range(2))
    tokenizer = _tokenizer(case.vocabulary)
    words = [f"w{number % case.vocabulary}" for number in range(case.prompt + case.replies)]
    return {
        "policy": prepare(policy, "random", True),
        "reference": prepare(reference, "random", False),
        "critic": Scorer(prepare(critic, "random", True)),
        "reward": ModelReward(Scorer(prepare(reward, "random", False)), tokenizer, tokenizer, precision=precision),
        "tokenizer": tokenizer,
        "prompts": [" ".join(words[row : row + case.prompt]) for row in range(case.replies)],
    }


def _tokenizer(vocabulary: int):
    """One token a word. Its EOS lies beyond the model's vocabulary, so that no reply ends before its time."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    core = Tokenizer(models.WordLevel({f"w{number}": number for number in range(vocabulary)}, unk_token="w0"))
    core.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=core, eos_token="</s>", pad_token="</s>")
