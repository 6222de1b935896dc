"""Gradient coefficients of every row against the derivative of its textbook loss, by autograd in float64."""

from dataclasses import replace
from functools import partial

import pytest
import torch
from pydantic import ValidationError

from learner.algorithms.table import TABLE, Algorithm, resolve
from learner.algorithms.weighting import Cispo, Clipped, Plain, Preference, SequenceClipped
from learner.training.objectives import policy_loss
from learner.types import PolicyBatch
from tests.learner import textbook
from tests.learner.builders import credit, scored, signals
from tests.learner.textbook import LOSSES, Output

VARIANTS = [
    ("grpo", {"weighting": {"kl_ratio": True}}, lambda o: textbook.grpo(o, kl_ratio=True)),
    ("grpo", {"weighting": {"clip": 0.05, "clip_high": 0.5}}, lambda o: textbook.grpo(o, low=0.05, high=0.5)),
    ("rft", {"credit": {"over": "kept"}}, textbook.rft_of_kept),
    ("dpo", {"weighting": {"average": "sum", "beta": 0.5}}, lambda o: textbook.dpo(o, beta=0.5, reduce=torch.sum)),
    ("grpo_process", {"weighting": {"cell": "sequence_clipped"}}, textbook.gspo_token),
]
SAMPLED = {name: row for name, row in TABLE.items() if not row.weighting.tokens}
"""The rows whose coefficients are of the sampled tokens alone."""
CASES = [pytest.param(name, {}, LOSSES[name], id=name) for name in SAMPLED]
CASES += [pytest.param(*variant, id=f"{variant[0]}-{i}") for i, variant in enumerate(VARIANTS)]


def corrected(name: str, loss, bound, cell: str, *, of="token", bounds=(), **options):
    """A case with a behaviour weight, whose textbook bound is given."""
    how = {"old": "learner", "behaviour": {"cell": cell, "unit": of, **dict(bounds)}, **options}
    weight = partial(textbook.behaviour, unit=of, bound=bound)
    return pytest.param(name, {"weighting": how}, partial(loss, weight=weight, **options), id=f"{name}-{cell}-{of}")


ICEPOP = {"low": 0.5, "high": 5.0}
CASES += [
    corrected("grpo", textbook.grpo, lambda w: w.clip(max=2.0), "truncated"),
    corrected("grpo", textbook.grpo, lambda w: w * ((w >= 0.5) & (w <= 5.0)), "masked", of="sequence", bounds=ICEPOP),
    corrected("grpo_process", textbook.grpo, lambda w: w, "truncated", bounds={"high": None}, kl_ratio=True),
    corrected("dapo", textbook.dapo, lambda w: w, "truncated", of="sequence", bounds={"high": None}),
    corrected("dapo", textbook.dapo, lambda w: w * ((w >= 0.8) & (w <= 1.2)), "masked", bounds={"low": 0.8, "high": 1.2}),
    corrected("gspo", textbook.gspo, lambda w: w.clip(max=2.0), "truncated", of="sequence"),
    corrected("gspo", textbook.gspo_token, lambda w: w * ((w >= 0.5) & (w <= 5.0)), "masked", bounds=ICEPOP),
    corrected("cispo", textbook.cispo, lambda w: w * (w <= 2.0), "masked", of="sequence"),
]
STOPPED = ("cispo", "grpo_process-4", "gspo-masked-token", "cispo-masked-sequence")
"""Their textbook losses stop a gradient, so a difference quotient of the loss is not its derivative."""


def outputs_of(row: Algorithm, seed: int) -> list[Output]:
    """Ragged outputs, one-token ones and tool tokens among them; one is unscorable, one group has equal rewards."""
    draw, beside, teaching = (torch.Generator().manual_seed(seed + more) for more in (0, 1000, 2000))
    size, found = (2 if row.weighting.unit == "pair" else 5), []
    for g in range(6):
        for index in range(size):
            length = 1 if index == g % size else int(torch.randint(2, 16, (), generator=draw))
            mask = (torch.rand(length, generator=draw) > 0.25).tolist()
            mask[int(torch.randint(length, (), generator=draw))] = True
            ends = sorted({int(torch.randint(length, (), generator=draw)) for _ in range(2)} | {length - 1})
            values = torch.rand(len(ends), generator=draw, dtype=torch.float64).tolist()
            steps = list(zip(ends, values, strict=True)) if row.reward == "process_model" else [(length - 1, values[0])]
            if row.reward == "rule":
                steps = [(length - 1, float((index + g) % 2))]
            if g == 2 and row.weighting.unit != "pair":
                steps = [(length - 1, 1.0)]
            if (g, index) == (3, 1):
                steps = []
            item = scored(f"g/{g}", index, [5, 6], [7] * length, events=steps, mask=mask)
            logprob, apart, further, value = torch.randn(4, length, generator=draw, dtype=torch.float64)
            numbers = {"old": logprob - 2, "logprob": logprob - 2 + apart, "reference": logprob - 2 + 0.5 * further}
            numbers["mu"] = numbers["old"] + 0.6 * torch.randn(length, generator=beside, dtype=torch.float64)
            numbers["teacher"] = numbers["old"] + torch.randn(length, generator=teaching, dtype=torch.float64)
            found.append(Output(item=item, value=value, **numbers))
    return found


def micro_of(row: Algorithm, outputs: list[Output]) -> tuple[PolicyBatch, torch.Tensor]:
    """All trained tokens in one micro-batch of float64, and which of all sampled tokens these are."""
    batch = [output.item for output in outputs]
    said = {name: [tuple(getattr(o, name).tolist()) for o in outputs] for name in ("old", "reference", "teacher")}
    values = [tuple(o.value.tolist()) for o in outputs]
    advantages = credit(row.credit, batch, signals(len(batch), values=values, **said))
    kept = [(i, outputs[i], advantage) for i, advantage in enumerate(advantages) if advantage is not None]
    groups = [o.item.sample.group_id for _, o, _ in kept]
    lengths = [int(o.mask.sum()) for _, o, _ in kept]
    counts = [(len(set(groups)), groups.count(g), length, sum(lengths)) for g, length in zip(groups, lengths, strict=True)]
    joined = {name: torch.cat([getattr(o, name)[o.mask] for _, o, _ in kept]) for name in ("old", "mu", "reference")}

    def spread(values, dtype=torch.int64):
        return torch.repeat_interleave(torch.tensor(values, dtype=dtype), torch.tensor(lengths))

    unread = dict.fromkeys(("input_ids_BT", "position_ids_BT", "segment_BT", "source_N", "index_N", "target_N"), torch.empty(0))
    micro = PolicyBatch(
        **unread,
        advantage_N=torch.cat([torch.tensor(advantage, dtype=torch.float64)[o.mask] for _, o, advantage in kept]),
        token_weight_N=spread([row.weighting.token_weight(*count) for count in counts], torch.float64),
        behaviour_logprob_N=joined["mu"],
        old_logprob_N=joined["old"],
        reference_logprob_N=joined["reference"],
        sample_N=spread([i for i, _, _ in kept]),
        group_N=spread([int(g.removeprefix("g/")) for g in groups]),
        slot_N=torch.arange(sum(lengths)),
    )
    return micro, torch.cat([o.mask[o.mask] & (advantages[i] is not None) for i, o in enumerate(outputs)])


def flat(outputs: list[Output]) -> torch.Tensor:
    """The log-probabilities of all sampled tokens."""
    return torch.cat([o.logprob[o.mask] for o in outputs])


def at(outputs: list[Output], logprob: torch.Tensor) -> list[Output]:
    """The outputs with these log-probabilities."""
    pieces = logprob.split([int(o.mask.sum()) for o in outputs])
    return [replace(o, logprob=o.logprob.masked_scatter(o.mask, x)) for o, x in zip(outputs, pieces, strict=True)]


def derivative(row: Algorithm, outputs: list[Output], logprob: torch.Tensor) -> torch.Tensor:
    """Coefficient times token weight at every sampled token, 0 out of the loss."""
    micro, trained = micro_of(row, outputs)
    coefficient_N, _ = row.weighting(logprob[trained], micro)
    return torch.zeros_like(logprob).masked_scatter(trained, coefficient_N * micro.token_weight_N)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(("name", "overrides", "loss"), CASES)
def test_coefficient_times_weight_is_the_negative_derivative_of_the_textbook_loss(name, overrides, loss, seed):
    row = resolve(name, **overrides)
    outputs = outputs_of(row, seed)
    logprob = flat(outputs).requires_grad_()
    value = loss(at(outputs, logprob))
    (expected,) = torch.autograd.grad(-value, logprob)
    found = derivative(row, outputs, logprob.detach())
    assert found.abs().max() > 1e-4 and not found.requires_grad
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-9)

    micro, trained = micro_of(row, outputs)
    coefficient_N, sums = row.weighting(logprob.detach()[trained], micro)
    assert sums["objective"].item() == pytest.approx(-value.item(), abs=1e-9)
    logprob_N = logprob.detach()[trained].requires_grad_()
    (gradient,) = torch.autograd.grad(policy_loss(coefficient_N, logprob_N, micro.token_weight_N), logprob_N)
    torch.testing.assert_close(gradient, -expected[trained], rtol=0, atol=1e-9)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "overrides", "loss"), [case for case in CASES if case.id not in STOPPED])
def test_coefficients_agree_with_finite_differences(name, overrides, loss):
    row, step = resolve(name, **overrides), 1e-6
    outputs = outputs_of(row, 7)
    logprob = flat(outputs)
    found = derivative(row, outputs, logprob)
    for n in range(0, len(logprob), 9):
        nudge = torch.zeros_like(logprob).index_fill(0, torch.tensor([n]), step)
        rise = loss(at(outputs, logprob - nudge)) - loss(at(outputs, logprob + nudge))
        assert found[n].item() == pytest.approx(rise.item() / (2 * step), abs=1e-9)


@pytest.mark.parametrize(
    ("name", "low", "high"), [("ppo", 0.2, 0.2), ("grpo", 0.2, 0.2), ("dapo", 0.2, 0.28), ("gspo", 3e-4, 4e-4)]
)
@pytest.mark.parametrize("seed", range(3))
def test_tokens_are_clipped_on_both_sides_and_counted(name, low, high, seed):
    row = resolve(name)
    outputs = outputs_of(row, seed)
    micro, trained = micro_of(row, outputs)
    logprob_N = flat(outputs)[trained]
    log_ratio_N = logprob_N - micro.old_logprob_N
    if row.weighting.unit == "sequence":
        log_ratio_N = torch.stack([log_ratio_N[micro.sample_N == i].mean() for i in micro.sample_N])
    above = (log_ratio_N.exp() > 1 + high) & (micro.advantage_N > 0)
    below = (log_ratio_N.exp() < 1 - low) & (micro.advantage_N < 0)
    coefficient_N, sums = row.weighting(logprob_N, micro)
    assert above.any() and below.any() and not (above | below).all()
    assert sums["clipped"] == (above | below).sum()
    assert sums["ratio"].item() == pytest.approx(log_ratio_N.exp().sum().item())
    if "kl" not in sums:
        assert (coefficient_N[above | below] == 0).all()


def test_cispo_bounds_the_weight_from_above_and_leaves_no_token_out():
    row = resolve("cispo", weighting={"clip_high": 0.5})
    outputs = outputs_of(row, 0)
    micro, trained = micro_of(row, outputs)
    micro = replace(micro, advantage_N=torch.ones_like(micro.advantage_N))
    weight_N, sums = row.weighting(flat(outputs)[trained], micro)
    ratio_N = (flat(outputs)[trained] - micro.old_logprob_N).exp()
    torch.testing.assert_close(weight_N, ratio_N.clip(max=1.5))
    assert 0 < weight_N.min() < 0.5 and sums["clipped"] == (ratio_N > 1.5).sum() > 0


def test_the_margin_and_the_share_of_pairs_ranked_right_are_means_over_pairs():
    row = resolve("dpo")
    outputs = outputs_of(row, 1)
    micro, trained = micro_of(row, outputs)
    sums = row.weighting(flat(outputs)[trained], micro)[1]
    margins = []
    for pair in (pair for pair in textbook.groups_of(outputs) if len(pair) == 2):
        minus, plus = (0.1 * (o.logprob - o.reference)[o.mask].mean().item() for o in sorted(pair, key=lambda o: o.reward))
        margins.append(plus - minus)
    assert sums["margin"].item() == pytest.approx(sum(margins) / len(margins))
    assert sums["ranked"].item() == pytest.approx(sum(m > 0 for m in margins) / len(margins))
    assert 0 < sums["ranked"] < 1


def test_the_log_sigmoid_of_a_large_margin_neither_overflows_nor_vanishes():
    row = resolve("dpo", weighting={"beta": 1e4})
    outputs = outputs_of(row, 1)
    micro, trained = micro_of(row, outputs)
    coefficient_N, sums = row.weighting(flat(outputs)[trained], micro)
    assert torch.isfinite(coefficient_N).all() and -1e5 < sums["objective"] < -1


def test_a_micro_batch_without_tokens_gives_empty_coefficients_and_the_same_sums():
    for row in SAMPLED.values():
        micro, trained = micro_of(row, outputs_of(row, 0))
        fields = {name: x for name in micro.__dataclass_fields__ if isinstance(x := getattr(micro, name), torch.Tensor)}
        empty = replace(micro, **{name: x[:0] for name, x in fields.items()})
        coefficient_N, sums = row.weighting(torch.empty(0, dtype=torch.float64), empty)
        assert coefficient_N.shape == (0,) and all(x == 0 for x in sums.values())
        assert sums.keys() == row.weighting(flat(outputs_of(row, 0))[trained], micro)[1].keys()


@pytest.mark.parametrize(
    ("cell", "expected"),
    [
        (Plain(), 1 / (3 * 4 * 5)),
        (Plain(average="token"), 1 / 70),
        (Plain(average="sum"), 1 / (3 * 4)),
        (Clipped(average="constant", constant_length=100), 1 / (3 * 4 * 100)),
        (SequenceClipped(), 1 / (3 * 4 * 5)),
        (Cispo(), 1 / 70),
        (Preference(), 1 / (3 * 5)),
        (Preference(average="sum"), 1 / 3),
    ],
)
def test_a_token_weighs_what_its_average_says(cell, expected):
    assert cell.token_weight(3, 4, 5, 70) == pytest.approx(expected, rel=1e-15)


def test_a_setting_that_nothing_would_read_is_refused():
    for fields in ({"average": "constant"}, {"constant_length": 5}, {"average": "token", "constant_length": 5}):
        with pytest.raises(ValidationError, match="constant_length is needed by average: constant, and read by no other"):
            Clipped(**fields)
    with pytest.raises(ValidationError, match="kl_ratio: found true, but kl is 0"):
        Clipped(kl=0.0, kl_ratio=True)
    with pytest.raises(ValidationError):
        SequenceClipped(average="token")
