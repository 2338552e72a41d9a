"""What a policy did and what it was worth: sampling replies, reading them by every model, and scoring them."""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch

from rlhf_lab.data import encode_prompt, left_pad
from rlhf_lab.models import autocast, generate, resolve_precision, response_logprobs, response_values
from rlhf_lab.models.forward import TokenLogprobs
from rlhf_lab.models.generation import uniforms
from rlhf_lab.rewards import Reward, WeightedReward, call_reward
from rlhf_lab.training.processes import ALONE, Processes


class Rollout(NamedTuple):
    """A batch of sampled replies. B replies, P prompt tokens, T response tokens. Log-probabilities are in nats.

    Prompts are padded on the left, responses on the right. Masks are bool, True = a real token, and come from lengths.
    """

    prompt_ids: torch.Tensor  # (B, P)
    prompt_mask: torch.Tensor  # (B, P) bool
    response_ids: torch.Tensor  # (B, T)
    response_mask: torch.Tensor  # (B, T) bool, up to and including the EOS
    finished: torch.Tensor  # (B,) bool, the reply ended by EOS
    group: torch.Tensor  # (B,) long, replies to the same prompt share a number
    old_logp: torch.Tensor  # (B, T) of the policy that sampled, by the forward that trains; 0 where masked
    ref_logp: torch.Tensor  # (B, T) of the frozen reference; 0 where masked
    values: torch.Tensor  # (B, T) V(s_t), read before token t is known; 0 where masked
    scores: torch.Tensor  # (B,) what the reward said of the whole reply

    def take(self, rows: torch.Tensor) -> "Rollout":
        """Those rows, without the columns in which none of them has a token."""
        part = Rollout(*(field[rows] for field in self))
        start = int((~part.prompt_mask).all(0).sum())  # left padding: the empty columns come first
        width = int(part.response_mask.sum(1).max())
        return part._replace(
            **{name: getattr(part, name)[:, start:] for name in ("prompt_ids", "prompt_mask")},
            **{
                name: getattr(part, name)[:, :width]
                for name in ("response_ids", "response_mask", "old_logp", "ref_logp", "values")
            },
        )


def micro_batches(response_mask: torch.Tensor, rows: torch.Tensor, most: int) -> list[torch.Tensor]:
    """Those rows, at most `most` at a time, 0 = all at once. Like lengths lie together, longest first."""
    order = response_mask[rows].sum(1).argsort(descending=True, stable=True)
    return list(rows[order.to(rows.device)].split(most or len(rows)))


@dataclass
class FirstPass:
    """What policy and critic said of a whole rollout, with the gradient. `rollout` fills it, the first step uses it.

    The activations of both lie in memory from the scoring on.
    """

    logp: torch.Tensor | None = None  # (B, T)
    entropy: torch.Tensor | None = None  # (B, T), without a gradient
    values: torch.Tensor | None = None  # (B, T); None without a critic


class Texts(NamedTuple):
    """The words of a rollout, for rewards that read text and for people."""

    prompts: list[str]
    completions: list[str]


def decode_replies(tokenizer, response_ids: torch.Tensor, response_mask: torch.Tensor) -> list[str]:
    """(B, T) ids and mask -> B texts without special tokens."""
    rows = [ids[mask].tolist() for ids, mask in zip(response_ids, response_mask, strict=True)]
    return tokenizer.batch_decode(rows, skip_special_tokens=True)


@torch.no_grad()
def sample_replies(
    policy, tokenizer, prompts: Sequence[str], *, max_new_tokens, temperature=1.0, batch_size=128, seed=0
):
    """One reply to each prompt, as text, in batches. Returns (completions, finished), lists of equal length."""
    generator = torch.Generator(device=policy.device).manual_seed(seed)
    completions: list[str] = []
    finished: list[bool] = []
    for start in range(0, len(prompts), batch_size):
        rows = [encode_prompt(tokenizer, prompt) for prompt in prompts[start : start + batch_size]]
        ids, mask = (t.to(policy.device) for t in left_pad(rows, tokenizer.pad_token_id))
        out = generate(
            policy,
            ids,
            mask,
            max_new_tokens=max_new_tokens,
            temperature=temperature,
            eos_id=tokenizer.eos_token_id,
            pad_id=tokenizer.pad_token_id,
            generator=generator,
        )
        completions += decode_replies(tokenizer, out.response_ids, out.response_mask)
        finished += out.finished.tolist()
    return completions, finished


@torch.no_grad()
def rollout(
    policy,
    reference,
    critic,
    reward: Reward,
    tokenizer,
    prompts: Sequence[str],
    config,
    generator=None,
    columns=None,
    seconds: dict[str, float] | None = None,
    *,
    processes: Processes = ALONE,
    first: FirstPass | None = None,
) -> Rollout:
    """Sample `config.samples_per_prompt` replies to each prompt, read them by every model, and score them.

    `critic` may be None: values are then 0. `columns` are further columns of the prompts that the reward may ask for.
    `seconds`, if given, gets the time it took: `rollout` to sample, `score` to read and score.
    Of several `processes` each takes some prompts, the reward sees their replies, and all get the whole rollout.
    first, if given, keeps what the first optimizer step would otherwise compute again; only for one process.
    Source: Ouyang et al. 2022 (InstructGPT), 3.5; the temperature divides the logits of policy and reference alike.
    """
    # All processes draw the numbers of all prompts, so that what is said does not depend on who says it.
    draws = uniforms(len(prompts) * config.samples_per_prompt, config.max_new_tokens, generator)
    mine = processes.share(torch.arange(len(prompts))).tolist()
    prompts, columns = [prompts[i] for i in mine], {name: [v[i] for i in mine] for name, v in (columns or {}).items()}
    draws = draws.view(-1, config.samples_per_prompt, config.max_new_tokens)[mine].flatten(0, 1)
    seconds = {} if seconds is None else seconds

    def work() -> tuple[Rollout, dict]:
        part = _sample_and_read(
            policy, reference, critic, reward, tokenizer, prompts, config, draws, columns, seconds, processes, first
        )
        return part, dict(reward.last) if isinstance(reward, WeightedReward) else {}

    if processes.count == 1:
        return work()[0]
    parts = processes.together(lambda: _on_cpu(*work()))
    if isinstance(reward, WeightedReward):
        reward.last = {name: [value for _, last in parts for value in last[name]] for name in reward.last}
    return _joined([part for part, _ in parts], tokenizer.pad_token_id, policy.device)


def _sample_and_read(
    policy, reference, critic, reward, tokenizer, prompts, config, draws, columns, seconds, processes, first
) -> Rollout:
    """The rollout of this process's prompts."""
    started = time.perf_counter()
    repeats = config.samples_per_prompt
    prompts = [prompt for prompt in prompts for _ in range(repeats)]
    columns = {name: [v for v in values for _ in range(repeats)] for name, values in columns.items()}
    rows = [encode_prompt(tokenizer, prompt) for prompt in prompts]
    prompt_ids, prompt_mask = (t.to(policy.device) for t in left_pad(rows, tokenizer.pad_token_id))
    with autocast(resolve_precision(config.precision, policy), policy):
        sampled = generate(
            policy,
            prompt_ids,
            prompt_mask,
            max_new_tokens=config.max_new_tokens,
            temperature=config.temperature,
            eos_id=tokenizer.eos_token_id,
            pad_id=tokenizer.pad_token_id,
            draws=draws,
            agree=processes.everyone if processes.sharded else None,
        )
        read = (prompt_ids, prompt_mask, sampled.response_ids, sampled.response_mask)
        drawn = time.perf_counter()
        torch.clear_autocast_cache()  # its casts of the weights were made without a gradient
        parts = micro_batches(read[3], torch.arange(len(rows), device=policy.device), config.micro_batch_size)
        options = {"temperature": config.temperature}
        ref_logp, _ = _in_parts(parts, read, lambda *part: response_logprobs(reference, *part, **options))
        with torch.set_grad_enabled(first is not None):
            entropy = {"with_entropy": "no_grad"} if first else {}
            ours = TokenLogprobs(
                *_in_parts(parts, read, lambda *part: response_logprobs(policy, *part, **options, **entropy))
            )
            values = torch.zeros_like(ref_logp)
            if critic is not None:
                (values,) = _in_parts(parts, read, lambda *part: (response_values(critic, *part),))
        if first is not None:
            first.logp, first.entropy, first.values = ours.logp, ours.entropy, values
    scores = call_reward(
        reward,
        prompts=prompts,
        completions=decode_replies(tokenizer, sampled.response_ids, sampled.response_mask),
        prompt_ids=rows,
        completion_ids=[i[m].tolist() for i, m in zip(sampled.response_ids, sampled.response_mask, strict=True)],
        finished=sampled.finished.tolist(),
        **columns,
    )
    seconds |= {"rollout": drawn - started, "score": time.perf_counter() - drawn}
    return Rollout(
        *read,
        finished=sampled.finished,
        group=torch.arange(len(prompts), device=policy.device) // repeats,
        old_logp=ours.logp.detach(),
        ref_logp=ref_logp,
        values=values.detach(),
        scores=torch.tensor(scores, dtype=torch.float32, device=policy.device),
    )


def _in_parts(parts: list[torch.Tensor], read: tuple, numbers) -> list[torch.Tensor | None]:
    """(B, T) of each of the `numbers` said of a part's prompts, replies and masks."""
    said = zip(*(numbers(*(field[rows] for field in read)) for rows in parts), strict=True)
    order = torch.cat(parts).argsort()
    return [None if one[0] is None else torch.cat(one)[order] for one in said]


def _on_cpu(part: Rollout, last: dict) -> tuple[Rollout, dict]:
    return Rollout(*(field.cpu() for field in part)), last


def _joined(parts: list[Rollout], pad_id: int, device) -> Rollout:
    """Rollouts of some prompts each, one below the other as if sampled at once."""
    prompts, replies = (max(getattr(p, name).shape[1] for p in parts) for name in ("prompt_ids", "response_ids"))
    rows: dict[str, list[torch.Tensor]] = {name: [] for name in Rollout._fields}
    groups = 0
    for part in parts:
        for name, field in part._asdict().items():
            if field.dim() == 2:
                left = name.startswith("prompt")
                missing = (prompts if left else replies) - field.shape[1]
                field = torch.nn.functional.pad(
                    field, (missing, 0) if left else (0, missing), value=pad_id if name.endswith("_ids") else 0
                )
            rows[name].append(field + groups if name == "group" else field)
        groups += int(part.group.max()) + 1
    return Rollout(**{name: torch.cat(fields).to(device) for name, fields in rows.items()})


def texts_of(rollout: Rollout, tokenizer) -> Texts:
    """The prompts and replies of a rollout as text."""
    prompts = [
        tokenizer.decode(i[m], skip_special_tokens=True)
        for i, m in zip(rollout.prompt_ids, rollout.prompt_mask, strict=True)
    ]
    return Texts(prompts, decode_replies(tokenizer, rollout.response_ids, rollout.response_mask))


def tokens_of(rollout: Rollout, tokenizer, row: int) -> list[str]:
    """The tokens of one reply, as text, its EOS included."""
    ids = rollout.response_ids[row][rollout.response_mask[row]].tolist()
    return [tokenizer.decode([token]) for token in ids]
