"""A scalar head on a language model: the reward model scores replies, the critic states.

A causal model can be either. An encoder (BERT and its kin) sees the whole text at once, so it can only score replies.
"""

import math

import torch
from torch import Tensor, nn

from rlhf_lab.errors import LabError
from rlhf_lab.models.forward import context_length, model_inputs
from rlhf_lab.models.loading import (
    is_causal,
    local_or_hub,
    prepare,
    quiet,
    read_pretrained,
    refuse_missing,
    trusts_remote_code,
)
from rlhf_lab.models.saving import whole_directory


class Scorer(nn.Module):
    """A Hugging Face sequence classifier with one label, read at every position or at the last real one.

    The classifier's own forward finds "the last token" by looking for the padding id, and so skips the EOS
    wherever EOS pads. Here the backbone and the head are run apart, and positions come from masks alone.
    An encoder's head reads the whole text by its own first token, wherever the score is asked for.
    `new_head` tells that the head was made here, not read from the files: it has learned nothing yet.
    """

    def __init__(self, model, *, new_head: bool = False, causal: bool = True):
        super().__init__()
        self.model = model
        self.new_head = new_head
        self.causal = causal

    @property
    def config(self):
        return self.model.config

    @property
    def device(self) -> torch.device:
        return self.model.device

    @property
    def head(self) -> nn.Linear:
        return self.model.get_submodule(_head_name(self.model))

    @property
    def shift(self) -> float:
        """What is subtracted from the head's output; kept in the config as `reward_shift`."""
        return float(getattr(self.config, "reward_shift", 0.0))

    @shift.setter
    def shift(self, value: float) -> None:
        self.config.reward_shift = float(value)

    def limit(self, max_length: int | None = None) -> int | None:
        """How many tokens of prompt and reply it reads: `max_length`, or as many as in its training; None = any number.

        Never more than its context. Training and scoring both ask here, so that both cut long prompts alike.
        """
        asked = max_length if max_length is not None else getattr(self.config, "reward_max_length", None)
        return min((n for n in (asked, context_length(self.model)) if n is not None), default=None)

    def trained_with(self, max_length: int | None) -> None:
        """Note how many tokens it was trained to read; kept in the config as `reward_max_length`."""
        self.config.reward_max_length = max_length

    def forward(self, input_ids: Tensor, mask: Tensor) -> Tensor:
        """The same as `token_scores`, for wrappers that go through forward."""
        return self._score(self._hidden(input_ids, mask)).masked_fill(~mask, 0.0)

    def token_scores(self, input_ids: Tensor, mask: Tensor) -> Tensor:
        """The score at every position: (B, L) ids, (B, L) bool mask -> (B, L), 0 where masked.

        Padded on either side. In units of reward, float32 under any autocast, differentiable.
        Errors: `LabError` if a row is longer than the model's context, or the model is an encoder.
        """
        if not self.causal:
            name = type(self.model).__name__
            raise LabError(
                f"{name} reads in both directions, so it scores whole texts only; start the critic from a causal model"
            )
        return self(input_ids, mask)

    def sequence_scores(self, input_ids: Tensor, mask: Tensor) -> Tensor:
        """The score at each row's last real token: (B, L), (B, L) -> (B,). ValueError if there is none.

        An encoder's score is that of the whole row. In units of reward, float32 under any autocast.
        """
        if not bool(mask.any(dim=1).all()):
            raise ValueError("a row has no real token: there is nothing to score")
        if not self.causal:
            return self._whole_scores(input_ids, mask)
        width = mask.shape[1]
        last = (torch.arange(width, device=mask.device) * mask).amax(dim=1)
        hidden = self._hidden(input_ids, mask)
        return self._score(hidden[torch.arange(len(hidden), device=mask.device), last])

    def reply_scores(self, prompt_ids: Tensor, prompt_mask: Tensor, reply_ids: Tensor, reply_mask: Tensor) -> Tensor:
        """The score of each reply, read at its last real token, which is its EOS when it has one: -> (B,).

        prompt_ids, prompt_mask (B, P); reply_ids, reply_mask (B, T); padded on either side. An empty reply
        is read at the prompt's last token. Source: Huang et al. 2024 (arXiv:2403.17031), detail 12.
        """
        ids = torch.cat([prompt_ids, reply_ids], dim=1)
        return self.sequence_scores(ids, torch.cat([prompt_mask, reply_mask], dim=1))

    def save(self, directory, tokenizer) -> None:
        """Save head, backbone and tokenizer as a directory that `load_scorer` and plain transformers read.

        Plain transformers knows nothing of `reward_shift`. It looks for the padding id to find the last
        token, so the id is written only where it is not EOS: without one, it scores single rows rightly and
        refuses batches.
        """
        pad, eos = tokenizer.pad_token_id, tokenizer.eos_token_id
        self.config.pad_token_id = None if pad == eos else pad
        with whole_directory(directory) as folder, quiet():
            self.model.save_pretrained(folder)
            tokenizer.save_pretrained(folder)

    def _whole_scores(self, ids: Tensor, mask: Tensor) -> Tensor:
        order = (~mask).long().argsort(dim=1, stable=True)  # encoders count positions from the left: pad on the right
        order = order[:, : int(mask.sum(dim=1).max())]
        inputs = model_inputs(self.model, ids.gather(1, order), mask.gather(1, order))
        inputs.pop("position_ids", None)  # an encoder's own count starts where its embeddings do
        with torch.autocast(ids.device.type, enabled=False):  # the head is inside, and scores are float32
            return self.model(**inputs).logits.squeeze(-1) - self.shift

    def _hidden(self, ids: Tensor, mask: Tensor) -> Tensor:
        backbone = self.model.base_model
        return backbone(**model_inputs(backbone, ids, mask), use_cache=False).last_hidden_state

    def _score(self, hidden: Tensor) -> Tensor:
        with torch.autocast(hidden.device.type, enabled=False):
            return self.head(hidden.float()).squeeze(-1) - self.shift


def load_scorer(path, *, head: str = "keep", trainable: bool = True) -> Scorer:
    """A reward model or critic from a language model or a sequence classifier, by hub id or directory.

    head: "keep" keeps the head that the files hold, else makes a new one; "new" draws it from N(0, 1/(d+1)),
    d the hidden size (torch's global generator); "zero" starts from 0, as a critic made from a policy should.
    An encoder becomes a reward model only: its pooler counts as part of the head where the files hold none.
    Errors: `LabError` if the path holds no such model, or a classifier of several labels.
    Source: Huang et al. 2024 (arXiv:2403.17031), detail 11: standard deviation 1/sqrt(d+1), no bias.
    """
    from transformers import AutoModelForSequenceClassification

    if head not in ("keep", "new", "zero"):
        raise LabError(f"head is {head!r}; choose 'keep', 'new' or 'zero'")
    _refuse_several_labels(path)
    model, info = read_pretrained(AutoModelForSequenceClassification, path, "a reward model", num_labels=1)
    prepare(model, path, trainable, encoder=True)
    missing, backbone = info["missing_keys"], f"{model.base_model_prefix}."
    new_head = f"{_head_name(model)}.weight" in missing
    if new_head:
        missing = [key for key in missing if key.startswith(backbone) and ".pooler." not in key]
    refuse_missing(path, missing)
    scorer = Scorer(model, new_head=new_head, causal=is_causal(model))
    if head != "keep" or scorer.new_head:
        width = scorer.head.in_features
        nn.init.normal_(scorer.head.weight, std=0.0 if head == "zero" else 1 / math.sqrt(width + 1))
        if scorer.head.bias is not None:
            nn.init.zeros_(scorer.head.bias)
        scorer.shift, scorer.new_head = 0.0, True
        scorer.trained_with(None)
    return scorer.train(trainable)


def shared_scorer(path, policy) -> Scorer:
    """A critic on the policy's own trunk: a head of zeros beside the language-model head, saved as a whole scorer.

    path: where the policy was loaded from. What trains the critic then trains the trunk too.
    Errors: `LabError` if the policy's architecture has no sequence classifier on the same trunk.
    """
    scorer = load_scorer(path, head="zero")
    trunk = policy.base_model_prefix
    if trunk != scorer.model.base_model_prefix or type(getattr(policy, trunk)) is not type(scorer.model.base_model):
        raise LabError(
            f"critic: {type(policy).__name__} and its classifier share no trunk; choose 'policy' or 'reward'"
        )
    setattr(scorer.model, trunk, getattr(policy, trunk))
    return scorer


def _head_name(model) -> str:
    """The name of the linear layer from hidden state to score: architectures differ in it."""
    backbone = f"{model.base_model_prefix}."
    names = [
        name
        for name, child in model.named_modules()
        if not name.startswith(backbone) and isinstance(child, nn.Linear) and child.out_features == 1
    ]
    if len(names) != 1:
        raise LabError(f"{type(model).__name__} has no single linear head to read scores from; give another model")
    return names[0]


def _refuse_several_labels(path) -> None:
    from transformers import AutoConfig

    source = local_or_hub(path, needs="config.json")
    try:
        with quiet():
            config = AutoConfig.from_pretrained(source, trust_remote_code=trusts_remote_code())
    except Exception:
        return  # loading the model will say what is wrong
    classifier = any(name.endswith("ForSequenceClassification") for name in config.architectures or [])
    if classifier and config.num_labels != 1:
        raise LabError(f"{path}: a classifier of {config.num_labels} labels; a reward model has one score")
