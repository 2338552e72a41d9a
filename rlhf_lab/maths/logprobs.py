"""What a language model's logits say about tokens: their log-probability, and the entropy of the choice.

Logits are by far the largest tensor of a step, so no function here makes a second one of their size but the gradient
itself: what lies between is made for one row of the batch at a time.
"""

import torch
from torch import Tensor

from rlhf_lab.maths.shapes import check_shapes


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
        whole = torch.cat([_widened(row).logsumexp(-1) for row in logits.split(1)])
        ctx.save_for_backward(logits, tokens, whole)
        return _widened(logits.gather(-1, tokens.unsqueeze(-1)).squeeze(-1)) - whole

    @staticmethod
    def backward(ctx, gradient: Tensor) -> tuple[Tensor, None]:
        logits, tokens, whole = (saved.split(1) for saved in ctx.saved_tensors)
        out = torch.empty_like(ctx.saved_tensors[0])
        for row, token, total, g, into in zip(logits, tokens, whole, gradient.split(1), out.split(1), strict=True):
            p = _widened(row).sub(total.unsqueeze(-1)).exp_()
            p.mul_(-g.unsqueeze(-1)).scatter_add_(-1, token.unsqueeze(-1), g.unsqueeze(-1).to(p.dtype))
            into.copy_(p)
        return out, None


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
    return torch.cat([_row_entropy(_widened(row)) for row in logits.split(1)])


def _row_entropy(logits: Tensor) -> Tensor:
    logp = logits.log_softmax(-1)
    p = logp.exp()
    return -(p * torch.where(p > 0, logp, 0)).sum(-1)
