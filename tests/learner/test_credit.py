"""Credit against hand-computed tables."""

import math
import random

import pytest

from learner.credit import GroupRelative, Ones
from rollout.types import FinishReason
from tests.learner.builders import scored


def group(rewards, name="g", **changes):
    return [scored(name, i, [5], [6, 7], reward=reward, **changes) for i, reward in enumerate(rewards)]


def test_ones_credits_every_token():
    assert Ones()([scored("g", 0, [5], [6, 7, 8])]) == [(1.0, 1.0, 1.0)]


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
    advantages = GroupRelative(ddof=ddof)(group(rewards))
    assert [row[0] for row in advantages] == pytest.approx(expected, abs=1e-15)
    assert all(row[0] == row[1] for row in advantages)


def test_without_normalisation_only_the_mean_leaves():
    assert GroupRelative(normalize_std=False)(group([2.0, 0.0, 1.0])) == [(1.0, 1.0), (-1.0, -1.0), (0.0, 0.0)]


@pytest.mark.parametrize("reward", [0.1, 0.3, 0.35, 0.7])
@pytest.mark.parametrize("size", [2, 3, 7, 64])
def test_equal_rewards_give_exactly_zero(reward, size):
    assert GroupRelative()(group([reward] * size)) == [(0.0, 0.0)] * size


def test_process_rewards_share_one_baseline_and_accumulate_from_the_end():
    a = scored("g", 0, [5], [1, 1, 1, 1], events=[(1, 1.0), (3, 0.0)])
    b = scored("g", 1, [5], [1, 1, 1], events=[(0, 1.0), (1, 1.0)])
    mean, std = 3 / 4, math.sqrt(3) / 4
    good, bad = (1 - mean) / std, (0 - mean) / std
    first, second = GroupRelative()([a, b])
    assert first == pytest.approx((good + bad, good + bad, bad, bad))
    assert second == pytest.approx((2 * good, good, 0.0))


def test_samples_without_a_score_leave_loss_and_baseline():
    assert GroupRelative()(group([1.0, 0.0, None, 1.0])) == [
        *GroupRelative()(group([1.0, 0.0, 1.0]))[:2],
        None,
        GroupRelative()(group([1.0, 0.0, 1.0]))[2],
    ]


def test_truncated_outputs_are_kept_masked_or_dropped_by_name():
    batch = [*group([1.0, 0.0]), scored("g", 2, [5], [6, 7], reward=0.0, finish=FinishReason.LENGTH)]
    of_three, of_two = GroupRelative()(group([1.0, 0.0, 0.0])), GroupRelative()(group([1.0, 0.0]))
    assert GroupRelative(truncated="keep")(batch) == of_three
    assert GroupRelative(truncated="mask")(batch) == [*of_three[:2], None]
    assert GroupRelative(truncated="drop")(batch) == [*of_two, None]


def test_a_group_of_one_is_refused_and_a_group_that_shrank_to_one_is_dropped():
    with pytest.raises(ValueError, match="group g has one member"):
        GroupRelative()(group([1.0]))
    assert GroupRelative()(group([1.0, None, None])) == [None, None, None]


def test_groups_are_held_together_by_their_id_in_any_order():
    batch = group([1.0, 0.0, 0.5], "a") + group([3.0, 0.0], "b") + group([0.2, 0.9, None], "c")
    expected = dict(zip([(s.sample.group_id, s.sample.index) for s in batch], GroupRelative()(batch), strict=True))
    random.Random(3).shuffle(batch)
    for item, advantage in zip(batch, GroupRelative()(batch), strict=True):
        assert advantage == pytest.approx(expected[item.sample.group_id, item.sample.index])


def test_a_reward_outside_its_output_is_refused():
    with pytest.raises(ValueError, match="group g, index 0: a reward at position 2, but the output has 2 tokens"):
        GroupRelative()([scored("g", 0, [5], [6, 7], events=[(2, 1.0)]), *group([1.0])])


def test_an_empty_output_counts_in_the_baseline():
    batch = [*group([1.0, 1.0]), scored("g", 2, [5], [], events=[(-1, 0.0)])]
    of_three = GroupRelative()(group([1.0, 1.0, 0.0]))
    assert GroupRelative()(batch) == [*of_three[:2], ()]
