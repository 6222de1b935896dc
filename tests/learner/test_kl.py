"""KL estimators against exact enumeration on a five-token softmax: what each is worth as a number and as a gradient."""

from dataclasses import replace

import pytest
import torch

from learner.algorithms.gae import GAE
from learner.algorithms.weighting import Clipped
from learner.types import PolicyBatch
from tests.learner.builders import credit, scored, signals


def softmaxes() -> list[torch.Tensor]:
    """Log-probabilities of the current policy (from logits with gradient), the old one and the reference."""
    logits = torch.randn(3, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    return [*(logits * 0.7).unbind()]


@pytest.fixture
def policies():
    logits, old, reference = softmaxes()
    logits = logits.clone().requires_grad_()
    return logits, logits.log_softmax(-1), old.log_softmax(-1), reference.log_softmax(-1)


def kl(p: torch.Tensor, q: torch.Tensor) -> torch.Tensor:
    return (p.exp() * (p - q)).sum()


def gradient(value: torch.Tensor, logits: torch.Tensor) -> torch.Tensor:
    return torch.autograd.grad(value, logits, retain_graph=True)[0]


def close(found: torch.Tensor, expected: torch.Tensor) -> None:
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)


def every_token(old_N: torch.Tensor, reference_N: torch.Tensor) -> PolicyBatch:
    """One trained token for each of the five, without advantage, so that KL is all that acts."""
    tokens, none = torch.arange(5), torch.empty(0)
    return PolicyBatch(
        **dict.fromkeys(("input_ids_BT", "position_ids_BT", "segment_BT", "source_N", "index_N"), none),
        **dict.fromkeys(("target_N", "sample_N", "group_N", "slot_N"), tokens),
        **dict.fromkeys(("behaviour_logprob_N", "old_logprob_N"), old_N),
        advantage_N=torch.zeros(5, dtype=torch.float64),
        token_weight_N=torch.ones(5, dtype=torch.float64),
        reference_logprob_N=reference_N,
    )


def test_the_papers_kl_term_is_worth_kl_to_the_reference_and_pulls_along_the_other_one(policies):
    logits, now, _, reference = policies
    micro = every_token(now.detach(), reference)
    coefficient_N, _ = Clipped(kl=1.0)(now.detach(), micro)
    expected_gradient = gradient((now.exp().detach() * coefficient_N * now).sum(), logits)
    close(expected_gradient, -gradient(kl(reference, now), logits))
    values = [Clipped(kl=1.0)(now.detach()[n : n + 1], _token(micro, n))[1]["kl"] for n in range(5)]
    close((now.exp() * torch.stack(values)).sum(), kl(now, reference))


def _token(micro: PolicyBatch, n: int) -> PolicyBatch:
    fields = {name: x for name in micro.__dataclass_fields__ if isinstance(x := getattr(micro, name), torch.Tensor)}
    return replace(micro, **{name: x[n : n + 1] for name, x in fields.items()})


def test_with_the_ratio_its_gradient_is_that_of_kl_to_the_reference_however_old_the_samples(policies):
    logits, now, old, reference = policies
    coefficient_N, sums = Clipped(kl=1.0, kl_ratio=True)(now.detach(), every_token(old, reference))
    close(gradient((old.exp() * coefficient_N * now).sum(), logits), -gradient(kl(now, reference), logits))
    without_N, _ = Clipped(kl=1.0)(now.detach(), every_token(old, reference))
    for divergence in (kl(now, reference), kl(reference, now)):
        pull = gradient((old.exp() * without_N * now).sum(), logits)
        assert (pull + gradient(divergence, logits)).abs().max() > 1e-3


def test_with_the_ratio_the_penalty_is_worth_kl_however_old_the_samples(policies):
    _, now, old, reference = policies
    micro = every_token(old, reference)
    cell = Clipped(kl=1.0, kl_ratio=True)
    penalties = [-cell(now.detach()[n : n + 1], _token(micro, n))[1]["objective"] for n in range(5)]
    close((old.exp() * torch.stack(penalties)).sum(), kl(now, reference))


def test_the_penalty_in_the_reward_is_worth_kl_over_samples_of_the_old_policy(policies):
    _, _, old, reference = policies
    batch = [scored("g", n, [5], [n], reward=0.0) for n in range(5)]
    logprobs = {"old": [(x,) for x in old.tolist()], "reference": [(x,) for x in reference.tolist()]}
    advantages = credit(GAE(kl=0.5, whiten=False), batch, signals(5, values=[(0.0,)] * 5, **logprobs))
    rewards = torch.tensor([row[0] for row in advantages], dtype=torch.float64)
    close((old.exp() * rewards).sum(), -0.5 * kl(old, reference))
