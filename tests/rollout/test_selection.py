from collections import Counter

import pytest

from rollout.data.selection import ByDifficulty, Prioritised, Selector


def test_the_same_step_and_state_choose_the_same_rows_and_another_step_others():
    selector = Selector(Prioritised(), 50, "seed", {})
    assert selector.rows(3, 10) == Selector(Prioritised(), 50, "seed", {}).rows(3, 10) != selector.rows(4, 10)
    assert len(set(selector.rows(3, 50))) == 50


def test_a_questions_chance_is_proportional_to_the_spread_of_its_group():
    seen = {}
    selector = Selector(Prioritised(floor=0.2), 4, "seed", seen)
    for row, rewards in enumerate(([2.0, -2.0], [3.0, 3.0], [1.0, -0.2])):
        selector.observe(row, [1.0, 1.0], rewards)
    assert seen == {"0": 2.0, "1": 0.0, "2": pytest.approx(0.6)}, "of the rewards, whatever was right"
    first = Counter(selector.rows(step, 1)[0] for step in range(6000))
    weights = [2.0, 0.4, 0.6, 2.0]  # the second has the floor's share of the largest, the last was not asked yet
    for row, weight in enumerate(weights):
        assert first[row] / 6000 == pytest.approx(weight / sum(weights), abs=0.02)


def test_difficulty_keeps_what_is_neither_solved_nor_hopeless_and_asks_the_unknown_first():
    selector = Selector(ByDifficulty(least=0.2, most=0.8), 5, "seed", {"0": 0.0, "1": 0.5, "2": 1.0, "3": 0.8})
    for step in range(20):
        rows = selector.rows(step, 3)
        assert rows[0] == 4 and set(rows[1:]) == {1, 3}
    assert set(selector.rows(0, 5)) == set(range(5)), "the rest only when nothing else is left"


def test_what_is_observed_replaces_what_was_and_a_group_without_judgement_says_nothing():
    seen = {}
    selector = Selector(ByDifficulty(), 3, "seed", seen)
    for row, right in ((0, [1.0, 1.0]), (1, [1.0, 0.0]), (0, [1.0, 0.0, 0.0, 0.0]), (2, [])):
        selector.observe(row, right, [0.3])
    assert seen == {"0": 0.25, "1": 0.5}
