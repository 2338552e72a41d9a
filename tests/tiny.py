"""What the tests of training share: a tokenizer of twelve words, random small models, and a bigram policy."""

import copy
from collections.abc import Callable
from types import SimpleNamespace

import torch
import transformers
from tokenizers import Tokenizer, pre_tokenizers
from tokenizers.models import WordLevel

from rlhf_lab.models import Scorer
from rlhf_lab.models.loading import prepare
from rlhf_lab.training.ppo import PPOConfig, PPOState, PPOStats, ppo_start, ppo_updates
from rlhf_lab.training.rollouts import Rollout, rollout

EOS, PAD = 0, 1
WORDS = ["</s>", "<pad>", *(f"w{number}" for number in range(2, 14))]
PROMPTS = [
    " ".join(WORDS[2 + (7 * row + 3 * place) % 12] for place in range(1 + row % 5)) for row in range(16)
]  # of one to five words

DROPOUT = {
    "gpt2": ("resid_pdrop", "embd_pdrop", "attn_pdrop"),
    "llama": ("attention_dropout",),
}


def make_tokenizer(words: list[str] = WORDS, *, pad: str = "<pad>"):
    """One token per word, in this order; nothing is put before or after a text."""
    core = Tokenizer(WordLevel({word: number for number, word in enumerate(words)}, unk_token=words[-1]))
    core.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return transformers.PreTrainedTokenizerFast(tokenizer_object=core, eos_token="</s>", pad_token=pad)


def build_config(architecture: str, *, dropout: float = 0.1, **changes):
    """The config of a model of a few thousand weights whose choices are far from uniform."""
    common = {"vocab_size": len(WORDS), "max_position_embeddings": 48, "initializer_range": 0.3}
    common |= {"bos_token_id": None, "eos_token_id": EOS, "pad_token_id": PAD}
    common |= dict.fromkeys(DROPOUT[architecture], dropout)
    if architecture == "gpt2":
        return transformers.GPT2Config(n_embd=16, n_layer=2, n_head=2, **(common | changes))
    sizes = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2}
    return transformers.LlamaConfig(**sizes, **(common | changes))


def make_policy(architecture: str = "llama", *, seed: int = 0, **changes):
    """A causal language model of random weights, made ready as `load_policy` does. Equal seeds, equal weights."""
    torch.manual_seed(seed)
    model = transformers.AutoModelForCausalLM.from_config(build_config(architecture, **changes))
    return prepare(model, "tiny", True)


def make_scorer(architecture: str = "llama", *, seed: int = 1, trainable: bool = True, **changes) -> Scorer:
    """A reward model or critic of random weights."""
    torch.manual_seed(seed)
    config = build_config(architecture, num_labels=1, **changes)
    model = transformers.AutoModelForSequenceClassification.from_config(config)
    return Scorer(prepare(model, "tiny", trainable)).train(trainable)


class Bigram(torch.nn.Module):
    """The smallest policy: the logits of the next token are a row of a table. For numbers worked by hand."""

    def __init__(self, table: torch.Tensor):
        super().__init__()
        self.table = torch.nn.Parameter(table.clone().float())
        self.config = SimpleNamespace()

    @property
    def device(self) -> torch.device:
        return self.table.device

    def forward(self, input_ids, attention_mask=None, past_key_values=None, use_cache=None):
        cache = SimpleNamespace(reorder_cache=lambda rows: None)
        return SimpleNamespace(logits=self.table[input_ids], past_key_values=cache)


class TableCritic(torch.nn.Module):
    """The smallest critic: the value of a state is that of its last token."""

    def __init__(self, table: list[float]):
        super().__init__()
        self.table = torch.nn.Parameter(torch.tensor(table))

    def token_scores(self, input_ids, mask, wanted):
        return self.table[input_ids].masked_fill(~wanted, 0.0)


def chain(successors: dict[int, int], size: int = len(WORDS)) -> Bigram:
    """A bigram policy that always says the given next token."""
    table = torch.zeros(size, size)
    for token, following in successors.items():
        table[token, following] = 100.0
    return Bigram(table)


def count_words(completions: list[str], **_) -> list[float]:
    """A reward that varies: w3 is good, w5 is bad, and so is length."""
    return [text.split().count("w3") - text.split().count("w5") - 0.1 * len(text.split()) for text in completions]


def make_config(**changes) -> PPOConfig:
    """A small PPO run in float32."""
    small = {"updates": 3, "batch_size": 8, "minibatches": 2, "epochs": 2, "max_new_tokens": 8}
    return PPOConfig(**(small | {"lr": 1e-3, "critic_lr": 1e-3, "precision": "fp32"} | changes))


def start(config: PPOConfig, *, reward: Callable = count_words, prompts=PROMPTS, pad="<pad>", **models) -> PPOState:
    """`ppo_start` with a policy, and a critic where the method has one, of known weights, unless others are given."""
    models = {"policy": None, "critic": None} | models
    policy, critic = models.pop("policy") or make_policy(), models.pop("critic")
    if critic is None and config.needs_critic:
        critic = make_scorer()
    tokenizer = make_tokenizer(pad=pad)
    return ppo_start(
        config, policy=policy, critic=critic, reward=reward, tokenizer=tokenizer, prompts=prompts, **models
    )


ARMS = {"left": 1.0, "middle": 0.0, "right": -1.0}
"""The three-armed bandit of DESIGN 4: one token, and what it is worth."""


def learn_bandit(config: PPOConfig) -> torch.Tensor:
    """(3,) the probabilities of the arms after sampled learning from uniform, without a critic."""
    policy = Bigram(torch.zeros(3, 3))
    state = ppo_start(
        config,
        policy=policy,
        critic=None,
        reward=lambda completions: [ARMS[text] for text in completions],
        tokenizer=make_tokenizer([*ARMS, "</s>", "<pad>"]),
        prompts=["left"] * config.batch_size,
    )
    for _ in ppo_updates(state):
        pass
    return policy.table.detach()[0].softmax(0)


def sample(policy, critic, config: PPOConfig, *, reference=None, pad: str = "<pad>", prompts=None) -> Rollout:
    """A rollout on the first prompts, drawn with a fixed seed."""
    prompts = prompts or PROMPTS[: config.batch_size]
    generator = torch.Generator().manual_seed(3)
    reference = reference if reference is not None else make_policy(seed=9)
    return rollout(policy, reference, critic, count_words, make_tokenizer(pad=pad), prompts, config, generator)


class Steps:
    """The steps that an optimizer takes with a gradient for each model, and the gradients of the last.

    Policy and critic take theirs apart, and one's gradients are freed for the other's.
    """

    def __init__(self, optimizer, *models):
        self.models, self.taken, self.last = models, [0] * len(models), [[] for _ in models]
        optimizer.register_step_pre_hook(self._note)

    def _note(self, *_):
        for place, model in enumerate(self.models):
            if any(p.grad is not None for p in model.parameters()):
                self.taken[place] += 1
                self.last[place] = [p.grad.clone() for p in model.parameters() if p.grad is not None]


def weights_of(*models) -> list[torch.Tensor]:
    """Copies of all their weights."""
    return [p.detach().clone() for model in models if model is not None for p in model.parameters()]


def same(ours: list[torch.Tensor], theirs: list[torch.Tensor]) -> bool:
    """Equal bit for bit."""
    return all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))


def figures_of(stats: PPOStats) -> dict[str, float]:
    """The fields of a NamedTuple of numbers."""
    return stats._asdict()


def copy_of(model):
    """A model of one's own with the same weights."""
    return copy.deepcopy(model)
