"""Credit against hand-computed tables."""

import math
import random
from dataclasses import replace

import pytest
from pydantic import ValidationError

from learner.algorithms.credit import Accepted, GroupRelative, LeaveOneOut, Ones, Signed
from learner.algorithms.decoupled import DecoupledGroupRelative
from learner.algorithms.denoised import DenoisedGroupRelative
from rollout.types import FinishReason
from tests.learner.builders import credit, scored

WITHIN_GROUP = [GroupRelative(), GroupRelative(normalize_std=False), GroupRelative(ddof=1), LeaveOneOut()]
FLIPPED = DenoisedGroupRelative(flip_to_right=0.1, flip_to_wrong=0.2)


def group(rewards, name="g", **changes):
    return [scored(name, i, [5], [6, 7], reward=reward, **changes) for i, reward in enumerate(rewards)]


def test_ones_credits_every_token():
    assert credit(Ones(), [scored("g", 0, [5], [6, 7, 8])]) == [(1.0, 1.0, 1.0)]


def test_accepted_outputs_get_one_and_rejected_ones_zero_or_leave():
    batch = group([1.0, 0.0, 0.5, None]) + [scored("g", 4, [5], [6, 7], events=[(0, 0.3), (1, 0.3)])]
    assert credit(Accepted(), batch) == [(1.0, 1.0), (0.0, 0.0), (0.0, 0.0), None, (1.0, 1.0)]
    assert credit(Accepted(over="kept"), batch) == [(1.0, 1.0), None, None, None, (1.0, 1.0)]
    assert credit(Accepted(threshold=0.4), batch)[2] == (1.0, 1.0)


def test_the_better_output_of_a_pair_gets_plus_one_and_the_worse_minus_one():
    pairs = group([0.2, 0.7], "a") + group([3.0, -1.0], "b")
    assert credit(Signed(), pairs) == [(-1.0, -1.0), (1.0, 1.0), (1.0, 1.0), (-1.0, -1.0)]


def test_a_pair_without_a_better_output_is_out_of_the_loss():
    unchosen = [scored("c", 0, [5], [6], reward=1.0), scored("c", 1, [5], [6], reward=0.0, mask=[False])]
    assert credit(Signed(), group([0.3, 0.3], "a") + group([1.0, None], "b") + unchosen) == [None] * 6


@pytest.mark.parametrize("size", [1, 3])
def test_what_is_not_a_pair_is_refused(size):
    with pytest.raises(ValueError, match=f"group g: found {size} outputs, expected a pair"):
        credit(Signed(), group([1.0] * size))


@pytest.mark.parametrize(
    ("ddof", "rewards", "expected"),
    [
        (0, [1.0, 0.0], [1.0, -1.0]),
        (1, [1.0, 0.0], [math.sqrt(0.5), -math.sqrt(0.5)]),
        (0, [1.0, 0.0, 0.0, 0.0], [math.sqrt(3)] + [-1 / math.sqrt(3)] * 3),
        (1, [3.0, 1.0, 2.0], [1.0, -1.0, 0.0]),
    ],
)
def test_rewards_are_divided_by_the_named_standard_deviation(ddof, rewards, expected):
    advantages = credit(GroupRelative(ddof=ddof), group(rewards))
    assert [row[0] for row in advantages] == pytest.approx(expected, abs=1e-15)
    assert all(row[0] == row[1] for row in advantages)


def test_without_normalisation_only_the_mean_leaves():
    assert credit(GroupRelative(normalize_std=False), group([2.0, 0.0, 1.0])) == [(1.0, 1.0), (-1.0, -1.0), (0.0, 0.0)]


def test_leaving_one_out_compares_with_the_mean_of_the_others():
    # 3 - (1 + 2) / 2 = 1.5, 1 - (3 + 2) / 2 = -1.5, 2 - (3 + 1) / 2 = 0.
    assert credit(LeaveOneOut(), group([3.0, 1.0, 2.0])) == [(1.5, 1.5), (-1.5, -1.5), (0.0, 0.0)]
    steps = [scored("g", 0, [5], [6, 7], events=[(0, 1.0), (1, 2.0)]), *group([1.0, 2.0])]
    assert credit(LeaveOneOut(), steps) == credit(LeaveOneOut(), group([3.0, 1.0, 2.0]))


@pytest.mark.parametrize("reward", [0.1, 0.3, 0.35, 0.7])
@pytest.mark.parametrize("size", [2, 3, 7, 64])
@pytest.mark.parametrize("cell", WITHIN_GROUP)
def test_equal_rewards_give_exactly_zero(cell, reward, size):
    assert credit(cell, group([reward] * size)) == [(0.0, 0.0)] * size


@pytest.mark.parametrize("reward", [0.1, 0.3, 0.7])
def test_equal_step_rewards_give_exactly_zero(reward):
    steps = [[(1, reward)], [(0, reward), (1, reward)], [(0, reward), (1, reward), (2, reward)]]
    batch = [scored("g", i, [5], [6, 7, 8], events=events) for i, events in enumerate(steps)]
    assert credit(GroupRelative(), batch) == [(0.0,) * 3] * 3


def test_outcome_supervision_of_a_group_of_four_worked_by_hand():
    rewards, lengths = (0.9, 0.1, 0.5, 0.1), (1, 2, 3, 4)
    batch = [scored("g", i, [5], [6] * n, reward=r) for i, (r, n) in enumerate(zip(rewards, lengths, strict=True))]
    # Mean 0.4; squared distances 0.25, 0.09, 0.01, 0.09 have the mean 0.11; std 0.33166247903554.
    z = (1.507556722888818, -0.904534033733291, 0.301511344577764, -0.904534033733291)
    assert credit(GroupRelative(), batch) == [pytest.approx((a,) * n, abs=1e-14) for a, n in zip(z, lengths, strict=True)]


def test_process_supervision_of_a_group_of_four_with_one_to_three_steps_worked_by_hand():
    batch = [
        scored("g", 0, [5], [6] * 3, events=[(2, 0.2)]),
        scored("g", 1, [5], [6] * 4, events=[(1, 0.9), (3, 0.5)]),
        scored("g", 2, [5], [6] * 6, events=[(0, 0.9), (3, 0.9), (5, 0.1)]),
        scored("g", 3, [5], [6] * 2, events=[(0, 0.1), (1, 0.4)]),
    ]
    # R = {0.2 | 0.9, 0.5 | 0.9, 0.9, 0.1 | 0.1, 0.4}: sum 4.0, mean 0.5.
    # Distances -0.3, 0.4, 0, 0.4, 0.4, -0.4, -0.4, -0.1: squares 0.09 + 5 * 0.16 + 0.01 = 0.9; std = sqrt(0.9 / 8).
    # z: -0.3 -> -0.894427190999916, 0.4 -> 1.192569587999888, -0.4 -> -1.192569587999888, -0.1 -> -0.298142396999972.
    expected = [
        (-0.894427190999916,) * 3,
        (1.192569587999888, 1.192569587999888, 0.0, 0.0),
        (1.192569587999888, 0.0, 0.0, 0.0, -1.192569587999888, -1.192569587999888),
        (-1.49071198499986, -0.298142396999972),
    ]
    assert credit(GroupRelative(), batch) == [pytest.approx(row, abs=1e-14) for row in expected]


def test_tokens_after_the_last_step_get_nothing():
    batch = [scored("g", i, [5], [6] * 3, events=[(1, float(i))]) for i in range(2)]
    assert credit(GroupRelative(), batch) == [(-1.0, -1.0, 0.0), (1.0, 1.0, 0.0)]


def test_outcome_supervision_is_process_supervision_with_one_step():
    draw = random.Random(0)
    for _ in range(20):
        rewards = [draw.random() for _ in range(4)]
        one_step = [scored("g", i, [5], [6, 7], events=[(1, r)]) for i, r in enumerate(rewards)]
        mean = sum(rewards) / 4
        std = math.sqrt(sum((r - mean) ** 2 for r in rewards) / 4)
        assert credit(GroupRelative(), one_step) == credit(GroupRelative(), group(rewards))
        assert [row[0] for row in credit(GroupRelative(), one_step)] == pytest.approx([(r - mean) / std for r in rewards])


@pytest.mark.parametrize("cell", [*WITHIN_GROUP, FLIPPED])
def test_samples_without_a_score_leave_loss_and_baseline(cell):
    of_three = credit(cell, group([1.0, 0.0, 1.0]))
    assert credit(cell, group([1.0, 0.0, None, 1.0])) == [*of_three[:2], None, of_three[2]]


@pytest.mark.parametrize("cell", [GroupRelative, LeaveOneOut, DenoisedGroupRelative])
def test_truncated_outputs_are_kept_masked_or_dropped_by_name(cell):
    batch = [*group([1.0, 0.0]), scored("g", 2, [5], [6, 7], reward=0.0, finish=FinishReason.LENGTH)]
    of_three, of_two = credit(cell(), group([1.0, 0.0, 0.0])), credit(cell(), group([1.0, 0.0]))
    assert of_three[:2] != of_two
    assert credit(cell(truncated="keep"), batch) == of_three
    assert credit(cell(truncated="mask"), batch) == [*of_three[:2], None]
    assert credit(cell(truncated="drop"), batch) == [*of_two, None]


@pytest.mark.parametrize("cell", [*WITHIN_GROUP, FLIPPED])
def test_a_group_with_fewer_than_two_scored_members_has_no_credit(cell):
    assert cell.smallest_group == 2
    for rewards in ([1.0], [1.0, None, None], [None, None]):
        assert credit(cell, group(rewards)) == [None] * len(rewards)


@pytest.mark.parametrize("cell", [*WITHIN_GROUP, FLIPPED])
def test_groups_are_held_together_by_their_id_in_any_order(cell):
    batch = group([1.0, 0.0, 1.0], "a") + group([1.0, 0.0], "b") + group([0.0, 1.0, None], "c") + group([0.0, 0.0], "d")
    expected = dict(zip([(s.sample.group_id, s.sample.index) for s in batch], credit(cell, batch), strict=True))
    random.Random(3).shuffle(batch)
    for item, advantage in zip(batch, credit(cell, batch), strict=True):
        assert advantage == pytest.approx(expected[item.sample.group_id, item.sample.index])


def test_a_reward_outside_its_output_is_refused():
    with pytest.raises(ValueError, match="group g, index 0: a reward at position 2, but the output has 2 tokens"):
        credit(GroupRelative(), [scored("g", 0, [5], [6, 7], events=[(2, 1.0)]), *group([1.0])])


@pytest.mark.parametrize("cell", WITHIN_GROUP)
def test_an_empty_output_counts_in_the_baseline(cell):
    batch = [*group([1.0, 1.0]), scored("g", 2, [5], [], events=[(-1, 0.0)])]
    of_three = credit(cell, group([1.0, 1.0, 0.0]))
    assert credit(cell, batch) == [*of_three[:2], ()]


def test_denoised_rewards_worked_by_hand():
    # Mean 0.5; share (0.5 - 0.1) / 0.7 = 4/7. Right given 1: 4/7 * 0.8 / (4/7 * 0.8 + 3/7 * 0.1) = 32/35.
    # Right given 0: 4/7 * 0.2 / (4/7 * 0.2 + 3/7 * 0.9) = 8/35. Their mean is the share again, 20/35.
    high, low = 12 / 35, -12 / 35
    assert credit(FLIPPED, group([1.0, 0.0, 0.0, 1.0])) == [pytest.approx((x, x), abs=1e-15) for x in (high, low, low, high)]


def test_without_flips_denoising_changes_nothing():
    draw = random.Random(1)
    for size in (2, 3, 7, 16):
        batch = group([float(draw.random() > 0.4) for _ in range(size)])
        assert credit(DenoisedGroupRelative(), batch) == credit(GroupRelative(normalize_std=False), batch)
        assert credit(DenoisedGroupRelative(normalize_std=True), batch) == credit(GroupRelative(), batch)


def test_denoising_shrinks_each_group_by_one_factor_and_to_zero_what_may_be_noise_alone():
    factors = []
    for right in range(11):
        batch = group([1.0] * right + [0.0] * (10 - right))
        pairs = zip(credit(FLIPPED, batch), credit(GroupRelative(normalize_std=False), batch), strict=True)
        ratios = [denoised[0] / plain[0] for denoised, plain in pairs if plain[0]]
        assert not ratios or max(ratios) == pytest.approx(min(ratios), abs=1e-12)
        factors.append(ratios[0] if ratios else 0.0)
    assert [right for right, factor in enumerate(factors) if factor == 0.0] == [0, 1, 8, 9, 10]
    assert max(factors) < 1 and factors[4] > factors[2] > 0


def test_what_may_be_noise_alone_is_not_blown_up_by_a_standard_deviation():
    batch = group([1.0] + [0.0] * 9)
    assert credit(DenoisedGroupRelative(flip_to_right=0.1, normalize_std=True), batch) == [(0.0, 0.0)] * 10


@pytest.mark.parametrize("events", [[(1, 0.5)], [(1, 2.0)], [(0, 1.0), (1, 0.0)]])
def test_denoising_refuses_rewards_other_than_one_of_0_or_1(events):
    with pytest.raises(ValueError, match="group g, index 0: found rewards .*, expected one, of 0 or 1"):
        credit(FLIPPED, [scored("g", 0, [5], [6, 7], events=events), *group([1.0])])


@pytest.mark.parametrize(
    "flips", [{"flip_to_right": -0.1}, {"flip_to_wrong": 1.0}, {"flip_to_right": 0.5, "flip_to_wrong": 0.5}]
)
def test_flips_that_leave_no_information_are_refused(flips):
    with pytest.raises(ValidationError, match="flip_to"):
        DenoisedGroupRelative(**flips)


def named(*components, group_id="g"):
    """A group whose members have these components."""
    plain = group([0.0] * len(components), group_id)
    return [replace(item, verdict=replace(item.verdict, components=c)) for item, c in zip(plain, components, strict=True)]


def test_components_normalised_apart_worked_by_hand():
    # right: 1, 0, 1, 0 -> 1, -1, 1, -1; length: 10, 10, 30, 30 -> -1, -1, 1, 1; with weights 1 and 0.5: 0.5, -1.5, 1.5, -0.5.
    parts = [{"right": r, "length": n, "unread": 7.0} for r, n in ((1.0, 10.0), (0.0, 10.0), (1.0, 30.0), (0.0, 30.0))]
    spread = math.sqrt((0.5**2 + 1.5**2) / 2)
    cell = DecoupledGroupRelative(weights={"right": 1.0, "length": 0.5})
    assert [a[0] for a in credit(cell, named(*parts))] == pytest.approx(
        [0.5 / spread, -1.5 / spread, 1.5 / spread, -0.5 / spread]
    )
    # Summed, right and short (1 + 0) is like wrong and long (0 + 1); apart they differ by their weights.
    short = named({"right": 1.0, "length": 0.0}, {"right": 0.0, "length": 1.0})
    assert credit(cell, short)[0][0] == pytest.approx(1.0)


def test_components_that_are_equal_in_a_group_give_exactly_zero_and_missing_ones_are_refused():
    cell = DecoupledGroupRelative(weights={"a": 1.0, "b": 1.0})
    assert credit(cell, named(*[{"a": 0.1, "b": 0.7}] * 3)) == [(0.0, 0.0)] * 3
    with pytest.raises(ValueError, match="group g, index 1: found components a, expected 'b' among them"):
        credit(cell, named({"a": 0.0, "b": 1.0}, {"a": 1.0}))
    with pytest.raises(ValidationError, match="weights"):
        DecoupledGroupRelative(weights={})
