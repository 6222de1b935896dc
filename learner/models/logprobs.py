"""Log-probabilities of selected tokens, and the entropy, without ever holding the logits of more than one chunk of positions.

The output head is where a language model's memory goes: N trained tokens times V vocabulary entries. Here a chunk's logits
exist while the chunk is worked on, in the forward pass and, computed again, in the backward pass.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor


def selected_logprobs(
    hidden_ND: Tensor, head_VD: Tensor, target_N: Tensor, *, temperature: float, chunk: int, cap: float | None = None
) -> tuple[Tensor, Tensor]:
    """Log-probability of each target, and the entropy in nats of each position's distribution (no gradient), both (N,).

    Logits are divided by the temperature before the log-softmax, as the engine does when it samples, and are float32 (float64
    for float64 inputs) whatever the compute dtype: half-precision logits are wrong by more than a clipped ratio forgives.
    `cap`: logits z are cap tanh(z / cap) before that (Gemma 2).
    """
    return _SelectedLogprobs.apply(hidden_ND, head_VD, target_N, chunk, (temperature, cap))


def _wide(tensor: Tensor) -> Tensor:
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))


@contextmanager
def _products(dtype: torch.dtype) -> Iterator[None]:
    """Products of widened tensors. What was bfloat16 is exact in TF32 too, so that a GPU's tensor cores give the same logits.

    Their gradient is rounded to TF32's ten bits there, finer than what it becomes: bfloat16.
    """
    before = torch.backends.cuda.matmul.fp32_precision
    if dtype == torch.bfloat16:
        torch.backends.cuda.matmul.fp32_precision = "tf32"
    try:
        yield
    finally:
        torch.backends.cuda.matmul.fp32_precision = before


def _logits(hidden: Tensor, head: Tensor, temperature: float, cap: float | None) -> Tensor:
    product = hidden @ head.T
    return product.div_(temperature) if cap is None else product.div_(cap).tanh_().mul_(cap / temperature)


class _SelectedLogprobs(torch.autograd.Function):
    @staticmethod
    def forward(ctx, hidden_ND, head_VD, target_N, chunk, scale):
        ctx.save_for_backward(hidden_ND, head_VD, target_N)
        ctx.chunk, ctx.scale = chunk, scale
        head = _wide(head_VD)
        logprob_N = torch.empty(len(target_N), dtype=head.dtype, device=head.device)
        entropy_N = torch.empty_like(logprob_N)
        with _products(head_VD.dtype):
            for start in range(0, len(target_N), chunk):
                part = slice(start, start + chunk)
                logits = _logits(_wide(hidden_ND[part]), head, *scale)
                logits -= logits.logsumexp(-1, keepdim=True)
                logprob_N[part] = logits.gather(-1, target_N[part, None])[:, 0]
                entropy_N[part] = -torch.linalg.vecdot(logits.exp(), logits)
        ctx.mark_non_differentiable(entropy_N)
        return logprob_N, entropy_N

    @staticmethod
    def backward(ctx, grad_N, _):
        hidden_ND, head_VD, target_N = ctx.saved_tensors
        temperature, cap = ctx.scale
        head = _wide(head_VD)
        grad_hidden_ND, grad_head_VD = torch.empty_like(hidden_ND), torch.zeros_like(head)
        with _products(head_VD.dtype):
            for start in range(0, len(target_N), ctx.chunk):
                part = slice(start, start + ctx.chunk)
                hidden = _wide(hidden_ND[part])
                logits = _logits(hidden, head, temperature, cap)
                grad_logits = logits.softmax(-1).neg_()
                rows = torch.arange(len(hidden), device=head.device)
                grad_logits[rows, target_N[part]] += 1
                grad_logits *= grad_N[part, None] / temperature
                if cap is not None:  # c tanh(z / c) has the slope 1 - tanh^2
                    grad_logits *= 1 - logits.mul_(temperature / cap).square_()
                grad_hidden_ND[part] = grad_logits @ head
                grad_head_VD.addmm_(grad_logits.T, hidden)
        return grad_hidden_ND, grad_head_VD.to(head_VD.dtype), None, None, None
