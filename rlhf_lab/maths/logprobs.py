"""What a language model's logits say about tokens: their log-probability, and the entropy of the choice.

Logits are by far the largest tensor of a step, so no function here makes a second one of their size but the gradient
itself: what lies between is made for some positions at a time.
"""

from collections.abc import Iterator

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from rlhf_lab.maths.shapes import check_shapes

_PIECE = 2**18  # logits in a piece: what lies between fits into a processor's cache
_PIECE_GPU = 2**26  # where each piece costs a launch


def _pieces(logits: Tensor, *others: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """Views (1, n, V) of the logits (B, T, V), with those (1, n) of the others (B, T)."""
    n = max(1, (_PIECE if logits.device.type == "cpu" else _PIECE_GPU) // logits.shape[-1])
    for rows in zip(logits.split(1), *(other.split(1) for other in others), strict=True):
        yield from zip(*(part.split(n, dim=1) for part in rows), strict=True)


def _widened(logits: Tensor) -> Tensor:
    return logits.float() if logits.dtype in (torch.float16, torch.bfloat16) else logits


def token_logprobs(logits: Tensor, tokens: Tensor) -> Tensor:
    """Log-probability of each token: its logit minus the logsumexp of the logits at its position.

    `logits[:, t]` predicts `tokens[:, t]`: the caller has already moved the logits by one position and
    divided them by the temperature.

    Shapes: logits (B, T, V), tokens (B, T) integer -> (B, T).
    Units: nats, at most 0. float32 for half-precision logits, otherwise the dtype of the logits.
    Errors: ValueError when the shapes do not fit; an id outside 0..V-1 is torch's error, at masked positions
    too.
    Source: log pi(a_t | s_t), the quantity in the ratio of PPO (1707.06347) section 3.

    >>> token_logprobs(torch.zeros(1, 1, 4), torch.tensor([[2]]))  # log(1/4)
    tensor([[-1.3863]])
    """
    if logits.dim() != 3 or logits.shape[:2] != tokens.shape:
        found = f"logits {tuple(logits.shape)}, tokens {tuple(tokens.shape)}"
        raise ValueError(f"token_logprobs: wants logits (B, T, V) and tokens (B, T), got {found}")
    return _TokenLogprobs.apply(logits, tokens)


class _TokenLogprobs(torch.autograd.Function):
    """The gradient by its formula, (1[v = token] - p_v) dL/dlogp: autograd would make several tensors of this size."""

    @staticmethod
    def forward(ctx, logits: Tensor, tokens: Tensor) -> Tensor:
        whole = torch.empty(tokens.shape, dtype=_kind(logits), device=logits.device)
        for piece, into in _pieces(logits, whole):
            into.copy_(_widened(piece).logsumexp(-1))
        ctx.save_for_backward(logits, tokens, whole)
        return _widened(logits.gather(-1, tokens.unsqueeze(-1)).squeeze(-1)) - whole

    @staticmethod
    @once_differentiable
    def backward(ctx, gradient: Tensor) -> tuple[Tensor, None]:
        logits, tokens, whole = ctx.saved_tensors
        out = torch.empty_like(logits)
        for (piece, token, total, g), (into,) in zip(
            _pieces(logits, tokens, whole, gradient), _pieces(out), strict=True
        ):
            p = _widened(piece).sub(total.unsqueeze(-1)).exp_()
            p.mul_(-g.unsqueeze(-1)).scatter_add_(-1, token.unsqueeze(-1), g.unsqueeze(-1).to(p.dtype))
            into.copy_(p)
        return out, None


def _kind(logits: Tensor) -> torch.dtype:
    return torch.float32 if logits.dtype in (torch.float16, torch.bfloat16) else logits.dtype


def token_entropy(logits: Tensor) -> Tensor:
    """Entropy of the choice of the next token, -sum_v p_v log p_v.

    Tokens of probability 0 (logit -inf, as top-p leaves them) add nothing.

    Shapes: logits (B, T, V) -> (B, T).
    Units: nats, from 0 to log V. float32 for half-precision logits, otherwise the dtype of the logits.
    Errors: ValueError when logits has not three axes.
    Source: Shannon 1948; the bonus S of PPO (1707.06347) eq. 9.

    >>> token_entropy(torch.zeros(1, 1, 4))  # log 4
    tensor([[1.3863]])
    """
    check_shapes("token_entropy", "BTV", logits=logits)
    rows = [[_row_entropy(_widened(piece)) for (piece,) in _pieces(row)] for row in logits.split(1)]
    return torch.cat([torch.cat(pieces, dim=1) for pieces in rows])


def _row_entropy(logits: Tensor) -> Tensor:
    logp = logits.log_softmax(-1)
    p = logp.exp()
    return -(p * torch.where(p > 0, logp, 0)).sum(-1)
