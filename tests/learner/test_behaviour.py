"""Behaviour weights: which tokens they cut, what they leave alone, and their metrics, on numbers worked out by hand."""

import math
from dataclasses import replace

import pytest
import torch
from pydantic import ValidationError

from learner.algorithms.behaviour import Behaviour
from learner.algorithms.cells import Need, Plan
from learner.algorithms.table import resolve
from learner.algorithms.weighting import Cispo, Clipped, SequenceClipped
from learner.training.objectives import PolicyObjective
from learner.types import PackedBatch, PolicyBatch
from reward.config import RewardConfig
from tests.learner.builders import adamw, groups, random_batch
from tests.learner.stages import assert_close, gradients, stage

BOUNDS = [
    {"cell": "truncated"},
    {"cell": "truncated", "high": None},
    {"cell": "masked"},
    {"cell": "masked", "low": 1, "high": 1},
]
BEHAVIOURS = [Behaviour(unit=unit, **bounds) for unit in ("token", "sequence") for bounds in BOUNDS]


def truncated(**how) -> Behaviour:
    return Behaviour(cell="truncated", **how)


def masked(**how) -> Behaviour:
    return Behaviour(**{"cell": "masked", "low": 0.5, "high": 5.0} | how)


def micro_of(ratios, samples, dtype=torch.float64) -> PolicyBatch:
    """Tokens of these samples with pi_old/mu as given, in a batch whose advantages and reference are not trivial."""
    count = len(ratios)
    mu_N = torch.linspace(-3, -1, count, dtype=dtype)
    return PolicyBatch(
        **dict.fromkeys(("input_ids_BT", "position_ids_BT", "segment_BT", "source_N", "index_N"), torch.empty(0)),
        **dict.fromkeys(("target_N", "group_N", "slot_N"), torch.arange(count)),
        sample_N=torch.tensor(samples),
        token_weight_N=torch.full((count,), 1 / 7, dtype=dtype),
        advantage_N=torch.linspace(-1, 2, count, dtype=dtype),
        behaviour_logprob_N=mu_N,
        old_logprob_N=mu_N + torch.tensor(ratios, dtype=dtype).log(),
        reference_logprob_N=mu_N - 0.5,
    )


RATIOS, SAMPLES = [4.0, 0.2, 1.0, 3.0, 0.55, 6.0, 1.0], [8, 8, 8, 3, 3, 5, 5]
"""The products of the outputs are 0.8, 1.65 and 6."""


@pytest.mark.parametrize(
    ("behaviour", "expected", "cut"),
    [
        (truncated(), [2.0, 0.2, 1.0, 2.0, 0.55, 2.0, 1.0], 3),
        (truncated(unit="sequence"), [0.8, 0.8, 0.8, 1.65, 1.65, 2.0, 2.0], 2),
        (truncated(high=None), RATIOS, 0),
        (masked(), [4.0, 0.0, 1.0, 3.0, 0.55, 0.0, 1.0], 2),
        (masked(low=0.6, high=3.5), [0.0, 0.0, 1.0, 3.0, 0.0, 0.0, 1.0], 4),
        (masked(unit="sequence"), [0.8, 0.8, 0.8, 1.65, 1.65, 0.0, 0.0], 2),
        (masked(unit="sequence", low=1.0, high=10.0), [0.0, 0.0, 0.0, 1.65, 1.65, 6.0, 6.0], 3),
    ],
)
def test_the_weight_is_bounded_by_token_or_by_output_and_what_is_cut_is_counted(behaviour, expected, cut):
    weight_N, sums = behaviour(micro_of(RATIOS, SAMPLES))
    assert weight_N.tolist() == pytest.approx(expected, abs=1e-12)
    assert sums["cut"] == cut and sums["behaviour"].item() == pytest.approx(sum(expected))
    assert sums["behaviour_square"].item() == pytest.approx(sum(w * w for w in expected))


def test_bounds_are_inclusive_and_outputs_whose_probability_vanishes_or_overflows_are_cut():
    far_N = torch.tensor([math.log(2.0), math.log(0.25), -2000.0, 2000.0], dtype=torch.float64)
    micro = replace(micro_of([1.0] * 4, range(4)), behaviour_logprob_N=torch.zeros_like(far_N), old_logprob_N=far_N)
    weight_N, sums = masked(low=0.25, high=2.0)(micro)
    assert weight_N.tolist() == [2.0, 0.25, 0.0, 0.0] and sums["cut"] == 2
    weight_N, sums = truncated(low=0.25)(micro)
    assert weight_N.tolist() == [2.0, 0.25, 0.25, 2.0] and sums["cut"] == 2


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("cell", [Clipped(kl=0.3), Clipped(kl=0.3, kl_ratio=True), SequenceClipped(clip=0.1), Cispo()])
@pytest.mark.parametrize("behaviour", BEHAVIOURS)
def test_where_pi_old_sampled_every_bit_is_that_of_the_plain_cell(cell, behaviour, dtype):
    micro = micro_of([1.0] * 7, SAMPLES, dtype)
    now_N = micro.old_logprob_N + torch.linspace(-0.5, 0.5, 7, dtype=dtype)
    expected_N, expected = cell(now_N, micro)
    found_N, sums = type(cell)(**cell.model_dump() | {"old": "learner", "behaviour": behaviour})(now_N, micro)
    assert torch.equal(found_N, expected_N) and found_N.dtype == dtype
    assert {name: x.item() for name, x in sums.items()} == {
        **{name: x.item() for name, x in expected.items()},
        **{"behaviour": 7, "behaviour_square": 7, "cut": 0},
    }


@pytest.mark.parametrize("kl_ratio", [False, True])
def test_the_pull_to_the_reference_is_not_weighed(kl_ratio):
    micro = micro_of([1.5] * 7, SAMPLES)
    cell = Clipped(kl=0.3, kl_ratio=kl_ratio, old="learner", behaviour=masked(high=1.2))
    now_N = micro.old_logprob_N + 0.1
    found_N, sums = cell(now_N, micro)
    expected_N, plain = Clipped(kl=0.3, kl_ratio=kl_ratio)(now_N, replace(micro, advantage_N=torch.zeros(7)))
    assert sums["cut"] == 7 and found_N.abs().min() > 0.01
    assert torch.equal(found_N, expected_N) and sums["objective"] == plain["objective"] and sums["kl"] == plain["kl"]


def metrics_of(cell: Clipped, micros: list[PolicyBatch]) -> dict[str, float]:
    """The metrics of a batch from the sums of its micro-batches."""
    objective = PolicyObjective(weighting=cell, temperature=1.0, compare_behaviour=False)
    parts = [objective(lambda micro, _: (micro.old_logprob_N, micro.old_logprob_N), micro)[1] for micro in micros]
    count = sum(len(micro.sample_N) for micro in micros)
    packed = PackedBatch(micro_batches=tuple(micros), trained_tokens=count, padding_share=0.0)
    return objective.metrics({name: float(sum(part[name] for part in parts)) for name in parts[0]}, packed, [])


def test_the_effective_and_the_cut_share_are_those_of_the_whole_batch():
    cell = Clipped(kl=0.0, old="learner", behaviour=masked(high=3.5))
    found = metrics_of(cell, [micro_of(RATIOS[:3], SAMPLES[:3]), micro_of([], []), micro_of(RATIOS[3:], SAMPLES[3:])])
    # The weights are 0, 0, 1, 3, 0.55, 0, 1.
    assert found["effective_share"] == pytest.approx(5.55**2 / (1 + 9 + 0.55**2 + 1) / 7)
    assert found["cut_share"] == pytest.approx(3 / 7) and found["behaviour_mean"] == pytest.approx(5.55 / 7)
    assert not {"behaviour", "behaviour_square", "cut"} & found.keys()
    none = metrics_of(Clipped(kl=0.0, old="learner", behaviour=masked(high=1.0)), [micro_of([2.0, 3.0], [1, 1])])
    assert (none["effective_share"], none["cut_share"], none["behaviour_mean"]) == (0, 1, 0)
    assert not {"behaviour_mean", "effective_share", "cut_share"} & metrics_of(Clipped(), [micro_of([1.0], [0])]).keys()


def corrected(**behaviour):
    return resolve("grpo", {}, {"old": "learner", "behaviour": {"cell": "masked", "low": 0.2, "high": 5.0, **behaviour}})


@pytest.mark.parametrize("unit", ["token", "sequence"])
def test_gradient_and_metrics_depend_neither_on_micro_batches_nor_on_the_order_of_the_batch(start, model_dir, unit):
    batch, found = random_batch(noise=0.8), []
    for budget, order in ((1, batch), (4096, batch), (64, batch[::-1])):
        worker = start(model_dir, max_tokens_per_microbatch=budget)
        worker.begin_stage(stage(corrected(unit=unit), adamw(learning_rate=0.0, max_grad_norm=1e9), 1))
        metrics = worker.step(groups(order), updates=1, temperature=1.0).metrics
        found.append((gradients(worker), {name: x for name, x in metrics.items() if name != "padding_share"}))
    for values, metrics in found[1:]:
        assert_close(values, found[0][0])
        assert metrics == pytest.approx(found[0][1], rel=1e-4, abs=1e-6)
    assert 0 < found[0][1]["cut_share"] < 1 and 0.1 < found[0][1]["effective_share"] < 0.95


def test_the_weight_stays_that_of_the_first_update_while_the_policy_moves(start, model_dir):
    reports = []
    for updates in (1, 3):
        worker = start(model_dir)
        worker.begin_stage(stage(corrected(), adamw(learning_rate=1e-2), 3))
        reports.append(worker.step(groups(random_batch()), updates=updates, temperature=1.0).metrics)
    for name in ("behaviour_mean", "effective_share", "cut_share"):
        assert reports[1][name] == pytest.approx(reports[0][name], rel=1e-6)
    assert reports[0]["ratio_mean"] == 1 and abs(reports[1]["ratio_mean"] - 1) > 1e-3


def test_it_needs_what_the_engine_recorded_and_pi_old_from_the_learner():
    assert corrected().needs == {Need.REFERENCE, Need.OLD_LOGPROBS, Need.BEHAVIOUR_LOGPROBS}
    with pytest.raises(
        ValidationError, match="behaviour truncated: found old: engine, which is mu itself; expected old: learner"
    ):
        resolve("grpo", {}, {"behaviour": {"cell": "truncated"}})
    how = {"cell": "clipped", "kl": 0.0, "old": "learner", "behaviour": {"cell": "truncated"}}
    with pytest.raises(
        ValidationError, match="weighting clipped divides by the sampling probability, which demonstrations lack"
    ):
        resolve("sft", {}, how)
    for wrong in ({"high": 2.0}, {"cell": "truncated", "high": 0.9}, {"cell": "masked", "low": 1.1}):
        with pytest.raises(ValidationError):
            resolve("grpo", {}, {"old": "learner", "behaviour": wrong})


def test_a_pi_old_of_the_learner_alone_does_not_know_of_older_outputs():
    plan = Plan(group_size=4, updates_per_batch=2, on_policy=True, reward=RewardConfig(), max_staleness=1)
    ((key, why),) = resolve("grpo", {}, {"old": "learner"}).contradictions(plan)
    assert key == ("max_staleness",) and why.startswith("found 1; expected 0, or old: engine, or a behaviour weight such as")
    assert resolve("grpo", {}, {"old": "learner"}).contradictions(replace(plan, max_staleness=0)) == []
    assert resolve("grpo").contradictions(plan) == corrected().contradictions(plan) == []


@pytest.mark.parametrize(
    ("name", "behaviour", "formula"),
    [
        ("dapo", truncated(), "[not clipped at -0.2, +0.28] (pi/pi_old) truncated(pi_old/mu, 0, 2) A"),
        ("dapo", truncated(high=None), "[not clipped at -0.2, +0.28] (pi/pi_old) truncated(pi_old/mu, 0, inf) A"),
        ("cispo", masked(), "min(pi/pi_old, 5) masked(pi_old/mu, 0.5, 5) A"),
        (
            "gspo",
            truncated(unit="sequence"),
            "[not clipped at -0.0003, +0.0004] s truncated(prod(pi_old/mu), 0, 2) A, s = exp(mean log(pi/pi_old))",
        ),
    ],
)
def test_it_stands_in_the_formula_and_survives_its_dump(name, behaviour, formula):
    row = resolve(name, {}, {"old": "learner", "behaviour": behaviour})
    assert row.weighting.formula == formula
    assert type(row).model_validate_json(row.model_dump_json(), strict=True) == row
