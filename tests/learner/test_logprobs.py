"""Chunked log-probabilities against log_softmax in float64."""

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from learner.models.logprobs import selected_logprobs


def problem(count=11, width=6, vocabulary=17, dtype=torch.float64):
    draw = torch.Generator().manual_seed(0)
    hidden = torch.randn(count, width, generator=draw, dtype=torch.float64).to(dtype).requires_grad_()
    head = torch.randn(vocabulary, width, generator=draw, dtype=torch.float64).to(dtype).requires_grad_()
    return hidden, head, torch.randint(vocabulary, (count,), generator=draw)


@pytest.mark.parametrize("chunk", [1, 4, 11, 100])
@pytest.mark.parametrize("temperature", [1.0, 0.6])
@pytest.mark.parametrize("cap", [None, 1.7])
def test_values_and_gradients_are_those_of_log_softmax(chunk, temperature, cap):
    hidden, head, target = problem()
    weight = torch.linspace(-1, 2, len(target), dtype=torch.float64)
    logits = hidden @ head.T if cap is None else cap * (hidden @ head.T / cap).tanh()
    whole = (logits / temperature).log_softmax(-1)
    expected = whole.gather(-1, target[:, None])[:, 0]
    expected_grads = torch.autograd.grad((weight * expected).sum(), (hidden, head))
    logprob, entropy = selected_logprobs(hidden, head, target, temperature=temperature, chunk=chunk, cap=cap)
    grads = torch.autograd.grad((weight * logprob).sum(), (hidden, head))
    torch.testing.assert_close(logprob, expected, rtol=0, atol=1e-12)
    torch.testing.assert_close(entropy, -(whole.exp() * whole).sum(-1).detach(), rtol=0, atol=1e-12)
    for found, wanted in zip(grads, expected_grads, strict=True):
        torch.testing.assert_close(found, wanted, rtol=0, atol=1e-12)


def test_entropy_carries_no_gradient():
    hidden, head, target = problem()
    assert not selected_logprobs(hidden, head, target, temperature=1.0, chunk=4)[1].requires_grad


def test_no_tokens_give_no_logprobs_and_zero_gradients():
    hidden, head, target = problem(count=0)
    logprob, entropy = selected_logprobs(hidden, head, target, temperature=1.0, chunk=4)
    grads = torch.autograd.grad(logprob.sum(), (hidden, head))
    assert logprob.shape == entropy.shape == (0,)
    assert torch.equal(grads[1], torch.zeros_like(head))


def test_half_precision_inputs_get_float32_logits():
    hidden, head, target = problem(dtype=torch.bfloat16)
    exact = (hidden.double() @ head.double().T).log_softmax(-1).gather(-1, target[:, None])[:, 0]
    logprob, _ = selected_logprobs(hidden, head, target, temperature=1.0, chunk=4)
    assert logprob.dtype == torch.float32
    torch.testing.assert_close(logprob.double(), exact, rtol=0, atol=1e-5)
    grads = torch.autograd.grad(logprob.sum(), (hidden, head))
    assert [grad.dtype for grad in grads] == [torch.bfloat16] * 2


class Precisions(TorchDispatchMode):
    """Remembers what a GPU would compute products of float32 matrices in."""

    def __init__(self):
        super().__init__()
        self.seen = set()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if "mm" in function.overloadpacket.__name__:
            self.seen.add(torch.backends.cuda.matmul.fp32_precision)
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize(("dtype", "expected"), [(torch.bfloat16, "tf32"), (torch.float32, "none")])
def test_tensor_cores_work_on_what_they_hold_exactly_and_on_nothing_else(dtype, expected):
    hidden, head, target = problem(dtype=dtype)
    with Precisions() as precisions:
        selected_logprobs(hidden, head, target, temperature=0.6, chunk=4)[0].sum().backward()
    assert precisions.seen == {expected} and torch.backends.cuda.matmul.fp32_precision == "none"


class LargestTensor(TorchDispatchMode):
    """Remembers the most elements any operation's result had."""

    def __init__(self):
        super().__init__()
        self.elements = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        leaves = result if isinstance(result, tuple | list) else (result,)
        self.elements = max([self.elements, *(x.numel() for x in leaves if isinstance(x, torch.Tensor))])
        return result


def test_no_tensor_of_all_tokens_by_vocabulary_is_made_forward_or_backward():
    hidden, head, target = problem(count=64, width=4, vocabulary=50)
    with LargestTensor() as largest:
        logprob, _ = selected_logprobs(hidden, head, target, temperature=1.0, chunk=8)
        logprob.sum().backward()
    assert 8 * 50 <= largest.elements < 64 * 50 / 4
