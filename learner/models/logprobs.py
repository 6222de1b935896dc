"""Log-probabilities of selected tokens, and the entropy, without ever holding the logits of more than one chunk of positions.

The output head is where a language model's memory goes: N trained tokens times V vocabulary entries. Here a chunk's logits
exist while the chunk is worked on, in the forward pass and, computed again, in the backward pass.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

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


@dataclass(frozen=True, slots=True, eq=False)
class OutcomeLogprobs:
    """Called as `selected_logprobs` is: (N, M + 1) log-probabilities of M different tokens of each position, fewer than V, and
    in the last column of all others together; and, without gradient, what `selected_logprobs` gives.

    The last column is summed over the other tokens: one less the sum of M would be lost in rounding where that is nearly one.
    """

    token_NM: Tensor

    def __call__(
        self, hidden_ND: Tensor, head_VD: Tensor, target_N: Tensor, *, temperature: float, chunk: int, cap: float | None = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        return _OutcomeLogprobs.apply(hidden_ND, head_VD, (target_N, self.token_NM), chunk, (temperature, cap))


@dataclass(frozen=True, slots=True)
class TopTokens:
    """Called as `selected_logprobs` is: (N, count) ids of the most likely tokens of each position."""

    count: int

    @torch.no_grad()
    def __call__(
        self, hidden_ND: Tensor, head_VD: Tensor, target_N: Tensor, *, temperature: float, chunk: int, cap: float | None = None
    ) -> Tensor:
        with _products(head_VD.dtype):
            chunks = _Chunks(hidden_ND, _wide(head_VD), chunk, temperature, cap)
            found = [logits.topk(self.count, -1).indices for _, _, logits in chunks]
        return torch.cat([target_N.new_empty(0, self.count), *found])


def _wide(tensor: Tensor) -> Tensor:
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))


@contextmanager
def _products(dtype: torch.dtype) -> Iterator[None]:
    """Products of widened tensors, as fast as the hardware multiplies what they were, added up in float32.

    What was bfloat16 is exact in bfloat16 (AMX and AVX512 of a CPU) and in TF32 (a GPU's tensor cores), so that logits are the
    same. What their gradients are multiplied by is rounded to eight or ten bits there, as finely as the result will be.
    """
    mkldnn: Any = torch.backends.mkldnn
    backends = {torch.backends.cuda.matmul: "tf32", mkldnn.matmul: "bf16"}
    before = {backend: backend.fp32_precision for backend in backends}
    try:
        for backend, precision in backends.items():
            if dtype == torch.bfloat16:
                backend.fp32_precision = precision
        yield
    finally:
        for backend, precision in before.items():
            backend.fp32_precision = precision


class _Chunks:
    """The chunks' logits, in one place: what is as large costs more to get from the system than to compute."""

    def __init__(self, hidden_ND: Tensor, head: Tensor, chunk: int, temperature: float, cap: float | None):
        self._hidden_ND, self._head, self._chunk = hidden_ND, head, chunk
        self._temperature, self._cap = temperature, cap
        self._place = head.new_empty(min(chunk, len(hidden_ND)), len(head))

    def __iter__(self) -> Iterator[tuple[slice, Tensor, Tensor]]:
        """(positions, their hidden states widened, their logits); the logits' tensor is overwritten by the next."""
        for start in range(0, len(self._hidden_ND), self._chunk):
            part = slice(start, start + self._chunk)
            hidden = _wide(self._hidden_ND[part])
            logits = torch.mm(hidden, self._head.T, out=self._place[: len(hidden)])
            if self._cap is not None:
                logits.div_(self._cap).tanh_().mul_(self._cap)
            yield part, hidden, logits if self._temperature == 1 else logits.div_(self._temperature)


def _read(logits: Tensor, target_n: Tensor, place: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Of a chunk: (n, 1) log of the sum, (n,) log-probability of the target and (n,) entropy; `place` has the logits' shape."""
    p_nV = torch.softmax(logits, -1, out=place)
    top = logits.max(-1, keepdim=True)
    lse = top.values - p_nV.gather(-1, top.indices).log_()
    return lse, (logits.gather(-1, target_n[:, None]) - lse)[:, 0], lse[:, 0] - p_nV.mul_(logits).sum(-1)


def _slope(logits: Tensor, temperature: float, cap: float | None) -> Tensor | None:
    """Of c tanh(z / c) by z: 1 - tanh^2."""
    return None if cap is None else (logits * (temperature / cap)).square_().neg_().add_(1)


class _SelectedLogprobs(torch.autograd.Function):
    @staticmethod
    def forward(ctx, hidden_ND, head_VD, target_N, chunk, scale):
        ctx.save_for_backward(hidden_ND, head_VD, target_N)
        ctx.chunk, ctx.scale = chunk, scale
        head = _wide(head_VD)
        logprob_N = torch.empty(len(target_N), dtype=head.dtype, device=head.device)
        entropy_N = torch.empty_like(logprob_N)
        p = head.new_empty(min(chunk, len(target_N)), len(head))
        with _products(head_VD.dtype):
            for part, hidden, logits in _Chunks(hidden_ND, head, chunk, *scale):
                _, logprob_N[part], entropy_N[part] = _read(logits, target_N[part], p[: len(hidden)])
        ctx.mark_non_differentiable(entropy_N)
        return logprob_N, entropy_N

    @staticmethod
    def backward(ctx, grad_N, _):
        hidden_ND, head_VD, target_N = ctx.saved_tensors
        temperature, cap = ctx.scale
        head = _wide(head_VD)
        grad_hidden_ND = torch.empty_like(hidden_ND)
        grad_head_VD = torch.zeros_like(head) if ctx.needs_input_grad[1] else None
        with _products(head_VD.dtype):
            for part, hidden, logits in _Chunks(hidden_ND, head, ctx.chunk, temperature, cap):
                slope = _slope(logits, temperature, cap)
                grad_logits = torch.softmax(logits, -1, out=logits)
                grad_logits[torch.arange(len(hidden), device=head.device), target_N[part]] -= 1
                grad_logits = grad_logits if slope is None else grad_logits.mul_(slope)
                outer = grad_N[part, None] / -temperature
                grad_hidden_ND[part] = (grad_logits @ head).mul_(outer)
                if grad_head_VD is not None:
                    grad_head_VD.addmm_(grad_logits.T, hidden * outer)
        return grad_hidden_ND, None if grad_head_VD is None else grad_head_VD.to(head_VD.dtype), None, None, None


class _OutcomeLogprobs(torch.autograd.Function):
    @staticmethod
    def forward(ctx, hidden_ND, head_VD, tokens, chunk, scale):
        target_N, token_NM = tokens
        ctx.save_for_backward(hidden_ND, head_VD, token_NM)
        ctx.chunk, ctx.scale = chunk, scale
        head, count = _wide(head_VD), token_NM.shape[1]
        outcome_NO = torch.empty(len(target_N), count + 1, dtype=head.dtype, device=head.device)
        logprob_N, entropy_N = torch.empty_like(outcome_NO[:, 0]), torch.empty_like(outcome_NO[:, 0])
        p = head.new_empty(min(chunk, len(target_N)), len(head))
        with _products(head_VD.dtype):
            for part, hidden, logits in _Chunks(hidden_ND, head, chunk, *scale):
                lse, logprob_N[part], entropy_N[part] = _read(logits, target_N[part], p[: len(hidden)])
                outcome_NO[part, :count] = logits.gather(-1, token_NM[part]) - lse
                others = logits.scatter_(-1, token_NM[part], -torch.inf)
                outcome_NO[part, count:] = others.logsumexp(-1, keepdim=True) - lse
        ctx.mark_non_differentiable(logprob_N, entropy_N)
        return outcome_NO, logprob_N, entropy_N

    @staticmethod
    def backward(ctx, grad_NO, *_):
        """By a logit z_v: grad of v's own outcome times v's probability in it, less the sum of all grads times p_v."""
        hidden_ND, head_VD, token_NM = ctx.saved_tensors
        (temperature, cap), count = ctx.scale, token_NM.shape[1]
        head = _wide(head_VD)
        grad_hidden_ND = torch.empty_like(hidden_ND)
        grad_head_VD = torch.zeros_like(head) if ctx.needs_input_grad[1] else None
        with _products(head_VD.dtype):
            for part, hidden, logits in _Chunks(hidden_ND, head, ctx.chunk, temperature, cap):
                slope, grad = _slope(logits, temperature, cap), grad_NO[part] / temperature
                whole = torch.softmax(logits, -1).mul_(grad.sum(-1, keepdim=True))
                others = torch.softmax(logits.scatter_(-1, token_NM[part], -torch.inf), -1, out=logits)
                grad_logits = others.mul_(grad[:, count:]).scatter_(-1, token_NM[part], grad[:, :count]).sub_(whole)
                grad_logits = grad_logits if slope is None else grad_logits.mul_(slope)
                grad_hidden_ND[part] = grad_logits @ head
                if grad_head_VD is not None:
                    grad_head_VD.addmm_(grad_logits.T, hidden)
        grad_head = None if grad_head_VD is None else grad_head_VD.to(head_VD.dtype)
        return grad_hidden_ND, grad_head, None, None, None
