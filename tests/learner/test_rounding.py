"""Rewards that are equal but for rounding: no advantage, no pair, no spread; checked against exact fractions."""

import math
import random
from dataclasses import replace
from fractions import Fraction

import pytest

from cluster.records.samples import batch_metrics
from learner.algorithms.credit import GroupRelative, LeaveOneOut, Signed, has_spread
from learner.algorithms.decoupled import DecoupledGroupRelative
from learner.algorithms.gae import GAE
from reward.labels.examples import pairs
from rollout.data.selection import Prioritised
from rollout.rounding import apart
from tests.learner.builders import credit, scored, signals
from tests.reward.builders import scored_groups

SUMS = [0.1 + 0.2, 0.3, sum([0.1] * 3), 0.7 - 0.4, 1.1 - 0.8]
"""0.3 five times, no two of them with the same bits by design."""
CELLS = [GroupRelative(), GroupRelative(normalize_std=False), GroupRelative(ddof=1), LeaveOneOut()]


def group(rewards, name="g", components=None):
    items = [scored(name, i, [5], [6 + i, 7], reward=reward) for i, reward in enumerate(rewards)]
    parts = components or [{}] * len(items)
    return [
        replace(x, verdict=replace(x.verdict, components=c, summands=tuple(c.values())))
        for x, c in zip(items, parts, strict=True)
    ]


def of_parts(draw, size):
    """A group of rewards that are sums of decimal parts in double precision, and the sums exactly."""
    chosen = [[draw.choice((-3, -2, -1, 1, 2, 3, 4)) for _ in range(draw.randint(1, 8))] for _ in range(size)]
    components = [{f"part {k}": n / 10 for k, n in enumerate(parts)} for parts in chosen]
    return group([sum(c.values()) for c in components], components=components), [Fraction(sum(x), 10) for x in chosen]


@pytest.mark.parametrize("cell", CELLS)
def test_sums_that_are_equal_but_for_rounding_have_exactly_no_advantage(cell):
    assert len(set(SUMS)) > 2
    assert credit(cell, group(SUMS)) == [(0.0, 0.0)] * len(SUMS)
    steps = [scored("g", i, [5], [6, 7], events=[(0, a), (1, b)]) for i, (a, b) in enumerate([SUMS[:2], SUMS[2:4]])]
    assert credit(GroupRelative(), steps) == credit(LeaveOneOut(), steps) == [(0.0, 0.0)] * 2
    cancelled = group([0.1 + 0.2 - 0.3, 0.0], components=[{"a": 0.1, "b": 0.2, "c": -0.3}, {"a": 0.0, "b": 0.0, "c": 0.0}])
    assert credit(cell, cancelled) == [(0.0, 0.0)] * 2, "the reward is rounding as a whole"


@pytest.mark.parametrize("seed", range(60))
def test_advantages_are_those_of_exact_arithmetic(seed):
    draw = random.Random(seed)
    batch, exact = of_parts(draw, draw.choice((2, 3, 8)))
    mean = sum(exact) / len(exact)
    variance = sum((r - mean) ** 2 for r in exact) / len(exact)
    z = [float(r - mean) / math.sqrt(variance) if variance else 0.0 for r in exact]
    others = [float(r - (sum(exact) - r) / (len(exact) - 1)) for r in exact]
    for cell, expected in ((GroupRelative(), z), (LeaveOneOut(), others)):
        found = [row[0] for row in credit(cell, batch)]
        assert found == pytest.approx(expected, rel=1e-9, abs=1e-12)
        assert variance or found == [0.0] * len(found)
    assert has_spread(batch) == (variance > 0)


@pytest.mark.parametrize("scale", [1e-200, 1e-6, 1e6, 1e200])
@pytest.mark.parametrize("cell", CELLS)
def test_neither_order_nor_scale_of_the_rewards_matters(cell, scale):
    rewards = [0.1, 0.7, 0.7, 0.2 + 0.1, -1.3, 0.0]
    before = [row[0] for row in credit(cell, group(rewards))]
    if getattr(cell, "normalize_std", False):
        assert [row[0] for row in credit(cell, group([scale * r for r in rewards]))] == pytest.approx(before, rel=1e-12)
    else:
        assert [row[0] / scale for row in credit(cell, group([scale * r for r in rewards]))] == pytest.approx(before, rel=1e-12)
    assert credit(cell, group([scale * r for r in SUMS])) == [(0.0, 0.0)] * len(SUMS)
    order = random.Random(1).sample(range(6), 6)
    shuffled = [credit(cell, group(rewards))[i] for i in order]
    assert credit(cell, [group(rewards)[i] for i in order]) == shuffled


def test_a_small_difference_between_large_rewards_is_one():
    assert [row[0] for row in credit(GroupRelative(), group([1e6, 1e6 + 1e-3]))] == pytest.approx([-1.0, 1.0], abs=1e-6)
    assert not apart([1e6, 1e6 + 1e-9]) and not apart([]) and not apart([0.0, 0.0])


def test_components_that_cancel_over_the_whole_batch_give_exactly_nothing():
    draw = random.Random(0)
    cell = DecoupledGroupRelative(weights={"a": 1.0, "b": 1.0})
    batch = []
    for g in range(4):
        values = [1000 + draw.randint(0, 30) / 10 for _ in range(6)]
        batch += group([0.0] * 6, f"g/{g}", [{"a": value, "b": 7.1 - value / 3} for value in values])
    assert credit(cell, batch) == [(0.0, 0.0)] * 24
    assert credit(cell, group([0.0] * 5, components=[{"a": value, "b": value} for value in SUMS])) == [(0.0, 0.0)] * 5
    real = group([0.0] * 2, "real", [{"a": 1.0, "b": 0.0}, {"a": 0.0, "b": 0.0}])
    found = [row[0] for row in credit(cell, [*batch, *real])]
    assert found[:24] == [0.0] * 24 and found[24:] == pytest.approx([math.sqrt(13), -math.sqrt(13)])


def test_whitening_leaves_rounding_alone():
    batch = group(SUMS)
    rows = credit(GAE(kl=0.0, lam=1.0), batch, signals(5, values=[(0.0, 0.0)] * 5))
    assert [row[1] for row in rows] == SUMS
    large = signals(5, values=[(0.0, 1e4 + reward) for reward in SUMS])
    rows = credit(GAE(kl=0.0, lam=0.0, gamma=0.0), group([1e4 + 0.3] * 5), large)
    assert all(abs(a) < 1e-9 for row in rows for a in row), "a value that is right but for rounding"


def test_pairs_spread_refills_and_selection_see_no_difference():
    assert credit(Signed(), group(SUMS[:2])) == [None, None]
    assert pairs(scored_groups(group(SUMS)), per_group=10, rng=random.Random(0)) == []
    assert len(pairs(scored_groups(group([*SUMS, 0.5])), per_group=10, rng=random.Random(0))) == len(SUMS)
    assert batch_metrics(scored_groups(group(SUMS) + group([0.1, 0.2], "h")))["zero_variance_share"] == 0.5
    assert not has_spread(group(SUMS)) and has_spread(group([*SUMS, 0.5]))
    assert Prioritised().observed([], SUMS) == 0.0 and Prioritised().observed([], [0.0, 1.0]) == 0.5
