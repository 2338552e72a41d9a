"""A head on a language model that gives one score: the reward model scores replies, the critic states.

The head has one output, or one for each of several bins, whose mean is the score. A causal model can be either. An
encoder (BERT and its kin) sees the whole text at once, so it can only score replies.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from rlhf_lab.errors import LabError
from rlhf_lab.maths.value_distribution import expected_value
from rlhf_lab.models.adapter_files import adapter_base, holds_head, merge_into
from rlhf_lab.models.hidden import hidden_states, like_length, spread
from rlhf_lab.models.inputs import context_length, model_inputs
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
from rlhf_lab.models.shards import save_options, writes_models


class Scorer(nn.Module):
    """A Hugging Face sequence classifier with one label or bins, read at every position or at the last real one.

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
        return self.model.get_submodule(self.head_name)

    @property
    def head_name(self) -> str:
        return _head_name(self.model)

    @property
    def shift(self) -> float:
        """What is subtracted from the head's output or the mean of its bins; kept in the config as `reward_shift`."""
        return float(getattr(self.config, "reward_shift", 0.0))

    @shift.setter
    def shift(self, value: float) -> None:
        self.config.reward_shift = float(value)

    @property
    def gain(self) -> float:
        """What is multiplied with after the shift: score = gain (output - shift); in the config as `reward_gain`."""
        return float(getattr(self.config, "reward_gain", 1.0))

    @gain.setter
    def gain(self, value: float) -> None:
        self.config.reward_gain = float(value)

    @property
    def bins(self) -> list[float] | None:
        """The centres of the head's bins, before shift and gain; in the config as `reward_bins`. None: one output."""
        return getattr(self.config, "reward_bins", None)

    @property
    def centres(self) -> Tensor:
        """(n,) the centres of the bins in units of reward. Errors: `LabError` for a head of one output."""
        if self.bins is None:
            raise LabError("this head has one output and no bins; load the model with head='zero' and bins")
        return self.gain * (torch.tensor(self.bins, device=self.device) - self.shift)

    def limit(self, max_length: int | None = None) -> int | None:
        """How many tokens of prompt and reply it reads: `max_length`, or as many as in its training; None = any number.

        Never more than its context. Training and scoring both ask here, so that both cut long prompts alike.
        """
        asked = max_length if max_length is not None else getattr(self.config, "reward_max_length", None)
        return min((n for n in (asked, context_length(self.model)) if n is not None), default=None)

    def trained_with(self, max_length: int | None) -> None:
        """Note how many tokens it was trained to read; kept in the config as `reward_max_length`."""
        self.config.reward_max_length = max_length

    def forward(self, input_ids: Tensor, mask: Tensor, wanted: Tensor | None = None) -> Tensor:
        """The same as `token_scores`, for wrappers that go through forward."""
        wanted = mask if wanted is None else wanted
        return spread(self.scores(self._head(self._hidden(input_ids, mask, wanted))), wanted)

    def scores(self, outputs: Tensor) -> Tensor:
        """The head's outputs (..., n) as scores (...): of bins the mean, then shift and gain. Deterministic."""
        value = outputs.squeeze(-1)
        if self.bins is not None:
            value = expected_value(outputs, torch.tensor(self.bins, device=outputs.device))
        return self.gain * (value - self.shift)

    def token_scores(self, input_ids: Tensor, mask: Tensor, wanted: Tensor | None = None) -> Tensor:
        """The score at every position: (B, L) ids, (B, L) bool mask -> (B, L), 0 where masked.

        wanted (B, L) bool: at these real positions only, and 0 elsewhere. Padded on either side. In units of reward,
        float32 under any autocast, differentiable.
        Errors: `LabError` if a row is longer than the model's context, or the model is an encoder.
        """
        self._needs_causal()
        return self(input_ids, mask, wanted)

    def token_outputs(self, input_ids: Tensor, mask: Tensor, wanted: Tensor | None = None) -> Tensor:
        """The head's outputs at every position: (B, L), (B, L) -> (B, L, n), the logits of the bins where it has such.

        wanted as in `token_scores`. float32 under any autocast, differentiable; 0 elsewhere. Errors as there.
        """
        self._needs_causal()
        wanted = mask if wanted is None else wanted
        return spread(self._head(self._hidden(input_ids, mask, wanted)), wanted)

    def sequence_scores(self, input_ids: Tensor, mask: Tensor) -> Tensor:
        """The score at each row's last real token: (B, L), (B, L) -> (B,). ValueError if there is none.

        An encoder's score is that of the whole row. In units of reward, float32 under any autocast.
        """
        return self.scores(self.sequence_outputs(input_ids, mask))

    def sequence_outputs(self, input_ids: Tensor, mask: Tensor) -> Tensor:
        """The head's outputs at each row's last real token: (B, L), (B, L) -> (B, n). Otherwise `sequence_scores`."""
        if not bool(mask.any(dim=1).all()):
            raise ValueError("a row has no real token: there is nothing to score")
        if not self.causal:
            return self._whole_outputs(input_ids, mask)
        width = mask.shape[1]
        last = (torch.arange(width, device=mask.device) * mask).amax(dim=1)
        at_last = torch.arange(width, device=mask.device) == last[:, None]
        return self._head(self._hidden(input_ids, mask, at_last))

    def reply_scores(self, prompt_ids: Tensor, prompt_mask: Tensor, reply_ids: Tensor, reply_mask: Tensor) -> Tensor:
        """The score of each reply, read at its last real token, which is its EOS when it has one: -> (B,).

        prompt_ids, prompt_mask (B, P); reply_ids, reply_mask (B, T); padded on either side. An empty reply
        is read at the prompt's last token. Source: Huang et al. 2024 (arXiv:2403.17031), detail 12.
        """
        ids = torch.cat([prompt_ids, reply_ids], dim=1)
        return self.sequence_scores(ids, torch.cat([prompt_mask, reply_mask], dim=1))

    def save(self, directory, tokenizer) -> None:
        """Save head, backbone and tokenizer as a directory that `load_scorer` and plain transformers read.

        Plain transformers knows nothing of `reward_shift`, `reward_gain` and `reward_bins`. It looks for the padding
        id to find the last token, so the id is written only where it is not EOS: without one, it scores single rows
        rightly and refuses batches.
        """
        pad, eos = tokenizer.pad_token_id, tokenizer.eos_token_id
        self.config.pad_token_id = None if pad == eos else pad
        options = save_options(self.model)
        if not writes_models():
            return
        with whole_directory(directory) as folder, quiet():
            self._write(folder, options)
            tokenizer.save_pretrained(folder)

    def _write(self, folder, options: dict) -> None:
        self.model.save_pretrained(folder, **options)

    def _whole_outputs(self, ids: Tensor, mask: Tensor) -> Tensor:
        order = (~mask).long().argsort(dim=1, stable=True)  # encoders count positions from the left: pad on the right
        ids, mask = ids.gather(1, order), mask.gather(1, order)
        found, groups = [], like_length(self.model, mask)
        for rows in groups:
            width = int(mask[rows].sum(dim=1).max())
            inputs = model_inputs(self.model, ids[rows, :width], mask[rows, :width])
            inputs.pop("position_ids", None)  # an encoder's own count starts where its embeddings do
            found.append(self._head(self._head_input(inputs)))
        return torch.cat(found)[torch.cat(groups).argsort()]

    def _head_input(self, inputs: dict[str, Tensor]) -> Tensor:
        """(B, H) what a classifier's forward gives its head: encoders differ in how they pool."""
        seen: list[Tensor] = []
        watch = self.head.register_forward_pre_hook(lambda _, given: seen.append(given[0]))
        try:
            self.model(**inputs)
        finally:
            watch.remove()
        return seen[0]

    def _hidden(self, ids: Tensor, mask: Tensor, wanted: Tensor) -> Tensor:
        return hidden_states(self.model.base_model, ids, mask, wanted)

    def _head(self, hidden: Tensor) -> Tensor:
        with torch.autocast(hidden.device.type, enabled=False):
            return self.head(hidden.float())

    def _needs_causal(self) -> None:
        if not self.causal:
            name = type(self.model).__name__
            raise LabError(
                f"{name} reads in both directions, so it scores whole texts only; start the critic from a causal model"
            )


def load_scorer(
    path, *, head: str = "keep", bins: Sequence[float] | None = None, trainable: bool = True, lora=None
) -> Scorer:
    """A reward model or critic from a language model or a sequence classifier, by hub id or directory.

    head: "keep" keeps the head that the files hold, else makes a new one; "new" draws it from N(0, 1/(d+1)),
    d the hidden size (torch's global generator); "zero" starts from 0, as a critic made from a policy should.
    bins: centres, ascending, for a new head that predicts a distribution over them; a kept head keeps its own.
    An encoder becomes a reward model only: its pooler counts as part of the head where the files hold none.
    A directory with an adapter comes merged with its base. lora: a `LoraConfig` trains a new adapter on it instead.
    Errors: `LabError` if the path holds no such model, a classifier of several labels without bins, or other bins.
    Source: Huang et al. 2024 (arXiv:2403.17031), detail 11: standard deviation 1/sqrt(d+1), no bias.
    """
    if head not in ("keep", "new", "zero"):
        raise LabError(f"head is {head!r}; choose 'keep', 'new' or 'zero'")
    if lora is not None:
        from rlhf_lab.models.adapters import SharedBase  # which is built on this module

        return SharedBase(path).scorer(lora, name="reward", head="new" if head == "keep" else head, bins=bins)
    bins = [float(centre) for centre in bins] if bins is not None else None
    labels, stored = stored_head(path)
    if head == "keep" and labels is not None:
        if bins not in (None, stored):
            raise LabError(f"{path}: its head has bins {stored}, not {bins}; make a new one with head='new'")
        bins = stored
    if adapter_base(path):
        scorer = _merged(path, head, bins, trainable)
    else:
        scorer = _with_head(path, len(bins) if bins else 1, labels, trainable)
    if head != "keep" or scorer.new_head:
        set_head(scorer, "new" if head == "keep" else head, bins=bins)
    return scorer.train(trainable)


def set_head(scorer: Scorer, head: str, *, bins: Sequence[float] | None = None) -> None:
    """Make the head anew, "new" or "zero" as in `load_scorer`, and forget what the old one's scores were scaled by."""
    if (len(bins) if bins else 1) != scorer.head.out_features:
        raise LabError(
            f"an adapter's head has {scorer.head.out_features} output and takes no other bins; merge it first"
        )
    width = scorer.head.in_features
    nn.init.normal_(scorer.head.weight, std=0.0 if head == "zero" else 1 / math.sqrt(width + 1))
    if scorer.head.bias is not None:
        nn.init.zeros_(scorer.head.bias)
    scorer.shift, scorer.gain, scorer.new_head = 0.0, 1.0, True
    scorer.trained_with(None)
    scorer.config.reward_bins = list(bins) if bins else None


def _merged(path, head: str, bins: list[float] | None, trainable: bool) -> Scorer:
    """An adapter directory merged with its base: with the adapter's own head where it brings one."""
    own = holds_head(path)
    scorer = load_scorer(adapter_base(path), head="zero" if own else head, bins=stored_head(path)[1] if own else bins)
    scorer.model = merge_into(scorer.model, path)
    if own:
        learned_head(scorer, path)
    return scorer.requires_grad_(trainable)


def learned_head(scorer: Scorer, path) -> None:
    """Note that the head came from `path`, and take what is stored beside it there."""
    from transformers import AutoConfig

    saved = AutoConfig.from_pretrained(path)
    for name in ("reward_shift", "reward_gain", "reward_bins", "reward_max_length"):
        if hasattr(saved, name):
            setattr(scorer.config, name, getattr(saved, name))
    scorer.new_head = False


def _with_head(path, outputs: int, stored: int | None, trainable: bool) -> Scorer:
    """The model with a head of that many outputs; the files' own where they hold one of this size."""
    from transformers import AutoModelForSequenceClassification

    other_size = stored not in (None, outputs)
    options = {"num_labels": outputs} | ({"ignore_mismatched_sizes": True} if other_size else {})
    model, info = read_pretrained(AutoModelForSequenceClassification, path, "a reward model", **options)
    prepare(model, path, trainable, encoder=True)
    missing, backbone = list(info["missing_keys"]), f"{model.base_model_prefix}."
    if other_size:  # a trunk of another size is no trunk
        missing += [key for key, *_ in info["mismatched_keys"]]
    head = f"{_head_name(model)}."
    new_head = f"{head}weight" in missing
    if other_size:
        missing = [key for key in missing if not key.startswith(head)]
    if new_head:
        missing = [key for key in missing if key.startswith(backbone) and ".pooler." not in key]
    refuse_missing(path, missing)
    return Scorer(model, new_head=new_head, causal=is_causal(model))


def shared_scorer(path, policy, *, bins: Sequence[float] | None = None) -> Scorer:
    """A critic on the policy's own trunk: a head of zeros beside the language-model head, saved as a whole scorer.

    path: where the policy was loaded from. What trains the critic then trains the trunk too. bins: as in `load_scorer`.
    Errors: `LabError` if the policy's architecture has no sequence classifier on the same trunk.
    """
    scorer = load_scorer(path, head="zero", bins=bins)
    trunk = policy.base_model_prefix
    if trunk != scorer.model.base_model_prefix or type(getattr(policy, trunk)) is not type(scorer.model.base_model):
        raise LabError(
            f"critic: {type(policy).__name__} and its classifier share no trunk; choose 'policy' or 'reward'"
        )
    setattr(scorer.model, trunk, getattr(policy, trunk))
    return scorer


def _head_name(model) -> str:
    """The name of the linear layer from hidden state to score or bins: architectures differ in it."""
    backbone = f"{model.base_model_prefix}."
    names = [
        name
        for name, child in model.named_modules()
        if not name.startswith(backbone)
        and isinstance(child, nn.Linear)
        and child.out_features == model.config.num_labels
    ]
    if len(names) != 1:
        raise LabError(f"{type(model).__name__} has no single linear head to read scores from; give another model")
    return names[0]


def stored_head(path) -> tuple[int | None, list[float] | None]:
    """How many outputs the head in the files has, and its bins; (None, None) where they hold a language model.

    Errors: `LabError` for a classifier of several labels without bins.
    """
    from transformers import AutoConfig

    if (base := adapter_base(path)) is not None and not holds_head(path):
        return stored_head(base)
    source = local_or_hub(path, needs="config.json")
    try:
        with quiet():
            config = AutoConfig.from_pretrained(source, trust_remote_code=trusts_remote_code())
    except Exception:
        return None, None  # loading the model will say what is wrong
    if not any(name.endswith("ForSequenceClassification") for name in config.architectures or []):
        return None, None
    bins = getattr(config, "reward_bins", None)
    if config.num_labels != (len(bins) if bins else 1):
        raise LabError(f"{path}: a classifier of {config.num_labels} labels; a reward model has one score")
    return config.num_labels, bins
