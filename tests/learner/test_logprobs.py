"""Chunked log-probabilities against log_softmax in float64."""

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from learner.models.logprobs import OutcomeLogprobs, TopTokens, selected_logprobs


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


@pytest.mark.parametrize("chunk", [1, 4, 100])
@pytest.mark.parametrize(("temperature", "cap"), [(1.0, None), (0.6, None), (0.6, 1.7)])
@pytest.mark.parametrize("count", [1, 5, 16])
def test_outcomes_are_the_tokens_asked_for_and_all_others_with_their_gradients(chunk, temperature, cap, count):
    hidden, head, target = problem()
    how = {"temperature": temperature, "chunk": chunk, "cap": cap}
    logits = hidden @ head.T if cap is None else cap * (hidden @ head.T / cap).tanh()
    whole = (logits / temperature).log_softmax(-1)
    token_NM = TopTokens(count)(hidden, head, target, **how)
    assert torch.equal(token_NM, whole.topk(count).indices)
    others = whole.scatter(-1, token_NM, -torch.inf).logsumexp(-1, keepdim=True)
    expected = torch.cat([whole.gather(-1, token_NM), others], -1)
    weight = torch.randn(expected.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    expected_grads = torch.autograd.grad((weight * expected).sum(), (hidden, head))
    outcome, *selected = OutcomeLogprobs(token_NM)(hidden, head, target, **how)
    grads = torch.autograd.grad((weight * outcome).sum(), (hidden, head))
    torch.testing.assert_close(outcome, expected, rtol=0, atol=1e-12)
    for found, wanted in zip(
        (*grads, *selected), (*expected_grads, *selected_logprobs(hidden, head, target, **how)), strict=True
    ):
        torch.testing.assert_close(found, wanted, rtol=0, atol=1e-12)
    assert not any(x.requires_grad for x in selected)


def test_the_rest_is_exact_where_nearly_all_is_on_the_tokens_asked_for():
    hidden, head = torch.ones(1, 1), torch.tensor([[40.0], [2.0], [1.0], [0.5]], requires_grad=True)
    token_NM = torch.tensor([[0]])
    outcome, _, _ = OutcomeLogprobs(token_NM)(hidden, head, torch.tensor([1]), temperature=1.0, chunk=4)
    rest = head.double().log_softmax(0)[1:].logsumexp(0).item()
    assert outcome[0].tolist() == [0.0, pytest.approx(rest, rel=1e-6)] and rest < -37
    (grad,) = torch.autograd.grad(outcome[0, 1], head)
    expected = torch.cat([torch.tensor([-1.0]), head.detach()[1:, 0].softmax(0)])
    torch.testing.assert_close(grad[:, 0], expected, rtol=1e-6, atol=1e-6)


def test_no_positions_have_no_outcomes():
    hidden, head, target = problem(count=0)
    how = {"temperature": 1.0, "chunk": 4}
    token_NM = TopTokens(3)(hidden, head, target, **how)
    outcome, *_ = OutcomeLogprobs(token_NM)(hidden, head, target, **how)
    assert (token_NM.shape, token_NM.dtype, outcome.shape) == ((0, 3), torch.int64, (0, 4))
    assert torch.equal(torch.autograd.grad(outcome.sum(), head)[0], torch.zeros_like(head))


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
        outcome, _, _ = OutcomeLogprobs(target[:, None])(hidden, head, target, temperature=1.0, chunk=8)
        outcome.sum().backward()
    assert 8 * 50 <= largest.elements < 64 * 50 / 4
