"""Gradient coefficients against the derivative of the textbook losses, by autograd in float64."""

import pytest
import torch

from learner.objectives import policy_loss
from learner.types import MicroBatch
from learner.weighting import Clipped, Plain

LENGTHS = (1, 7, 20, 2, 13, 30)
"""Two groups of three outputs."""


def tokens(seed: int) -> MicroBatch:
    """Random trained tokens of ragged outputs, with ratios far outside the clipping range on both sides for both signs."""
    draw = torch.Generator().manual_seed(seed)
    count, options = sum(LENGTHS), {"generator": draw, "dtype": torch.float64}
    sample_N = torch.repeat_interleave(torch.arange(len(LENGTHS)), torch.tensor(LENGTHS))
    old_N = -2 + torch.randn(count, **options)
    empty = torch.empty(0)
    return MicroBatch(
        input_ids_BT=empty,
        position_ids_BT=empty,
        segment_BT=empty,
        source_N=empty,
        target_N=empty,
        advantage_N=(torch.randn(len(LENGTHS), **options).abs() * torch.tensor([1, -1] * 3))[sample_N],
        token_weight_N=1 / (2 * 3 * torch.tensor(LENGTHS, dtype=torch.float64)[sample_N]),
        behaviour_logprob_N=old_N,
        old_logprob_N=old_N,
        reference_logprob_N=old_N + 0.5 * torch.randn(count, **options),
        sample_N=sample_N,
        slot_N=torch.arange(count),
    )


def current(micro: MicroBatch, seed: int) -> torch.Tensor:
    noise = torch.randn(len(micro.old_logprob_N), generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return (micro.old_logprob_N + 0.5 * noise).requires_grad_()


def per_output_mean(value_N: torch.Tensor) -> torch.Tensor:
    """1/groups sum over groups of 1/G sum over outputs of 1/|o| sum over tokens."""
    outputs = [chunk.mean() for chunk in value_N.split(LENGTHS)]
    return torch.stack([torch.stack(outputs[:3]).mean(), torch.stack(outputs[3:]).mean()]).mean()


def textbook_grpo(logprob_N, micro, clip, kl):
    ratio = torch.exp(logprob_N) / torch.exp(micro.old_logprob_N)
    clipped = torch.clip(ratio, 1 - clip, 1 + clip)
    reference_ratio = torch.exp(micro.reference_logprob_N) / torch.exp(logprob_N)
    divergence = reference_ratio - torch.log(reference_ratio) - 1
    return per_output_mean(torch.min(ratio * micro.advantage_N, clipped * micro.advantage_N) - kl * divergence)


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize(("clip", "kl"), [(0.2, 0.04), (0.2, 0.0), (0.05, 1.0)])
def test_the_grpo_coefficient_is_the_derivative_of_equation_3(seed, clip, kl):
    micro = tokens(seed)
    logprob_N = current(micro, seed + 100)
    objective = textbook_grpo(logprob_N, micro, clip, kl)
    (expected,) = torch.autograd.grad(objective, logprob_N)
    coefficient_N, sums = Clipped(clip=clip, kl=kl)(logprob_N.detach(), micro)
    torch.testing.assert_close(micro.token_weight_N * coefficient_N, expected, rtol=0, atol=1e-9)
    assert not coefficient_N.requires_grad
    assert sums["objective"].item() == pytest.approx(objective.item(), abs=1e-12)

    ratio = (logprob_N - micro.old_logprob_N).exp().detach()
    above = (ratio > 1 + clip) & (micro.advantage_N > 0)
    below = (ratio < 1 - clip) & (micro.advantage_N < 0)
    assert above.any() and below.any()
    assert sums["clipped"] == (above | below).sum()
    assert sums["ratio"].item() == pytest.approx(ratio.sum().item())


def test_the_sft_coefficient_is_the_derivative_of_the_mean_logprob():
    micro = tokens(0)
    logprob_N = current(micro, 1)
    objective = per_output_mean(micro.advantage_N * logprob_N)
    (expected,) = torch.autograd.grad(objective, logprob_N)
    coefficient_N, sums = Plain()(logprob_N.detach(), micro)
    torch.testing.assert_close(micro.token_weight_N * coefficient_N, expected, rtol=0, atol=1e-9)
    assert sums["objective"].item() == pytest.approx(objective.item(), abs=1e-12)


def test_the_coefficient_agrees_with_finite_differences():
    micro, clip, kl = tokens(3), 0.2, 0.04
    logprob_N, step = current(micro, 4).detach(), 1e-6
    coefficient_N, _ = Clipped(clip=clip, kl=kl)(logprob_N, micro)
    for n in range(0, len(logprob_N), 5):
        nudge = torch.zeros_like(logprob_N)
        nudge[n] = step
        rise = textbook_grpo(logprob_N + nudge, micro, clip, kl) - textbook_grpo(logprob_N - nudge, micro, clip, kl)
        assert (micro.token_weight_N * coefficient_N)[n].item() == pytest.approx(rise.item() / (2 * step), abs=1e-9)


def test_the_loss_has_the_gradient_of_the_textbook_loss():
    micro = tokens(5)
    logprob_N = current(micro, 6)
    (expected,) = torch.autograd.grad(-textbook_grpo(logprob_N, micro, 0.2, 0.04), logprob_N)
    coefficient_N, _ = Clipped()(logprob_N.detach(), micro)
    (found,) = torch.autograd.grad(policy_loss(coefficient_N, logprob_N, micro.token_weight_N), logprob_N)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-9)


def test_without_kl_the_reference_is_not_read():
    micro = tokens(0)
    _, sums = Clipped(kl=0.0)(micro.old_logprob_N, micro)
    assert set(sums) == {"objective", "ratio", "clipped"}


def test_kl_is_never_negative_and_zero_at_the_reference():
    micro = tokens(2)
    assert Clipped()(current(micro, 9).detach(), micro)[1]["kl"] > 0
    coefficient_N, sums = Clipped(kl=1.0)(micro.reference_logprob_N, micro)
    assert sums["kl"] == 0
    without, _ = Clipped(kl=0.0)(micro.reference_logprob_N, micro)
    assert torch.equal(coefficient_N, without)
