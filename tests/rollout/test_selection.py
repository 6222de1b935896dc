import math
from collections import Counter

import pytest

from rollout.selection import ByDifficulty, Prioritised, Selector


def test_the_same_step_and_state_choose_the_same_rows_and_another_step_others():
    selector = Selector(Prioritised(), 50, "seed", {})
    assert selector.rows(3, 10) == Selector(Prioritised(), 50, "seed", {}).rows(3, 10) != selector.rows(4, 10)
    assert len(set(selector.rows(3, 50))) == 50


def test_a_questions_chance_is_proportional_to_the_spread_of_its_group():
    selector = Selector(Prioritised(floor=0.1), 3, "seed", {"0": 0.5, "1": 1.0, "2": 0.1})
    first = Counter(selector.rows(step, 1)[0] for step in range(6000))
    weights = [0.5, 0.1, math.sqrt(0.09)]
    for row, weight in enumerate(weights):
        assert first[row] / 6000 == pytest.approx(weight / sum(weights), abs=0.02)


def test_difficulty_keeps_what_is_neither_solved_nor_hopeless_and_asks_the_unknown_first():
    selector = Selector(ByDifficulty(least=0.2, most=0.8), 5, "seed", {"0": 0.0, "1": 0.5, "2": 1.0, "3": 0.8})
    for step in range(20):
        rows = selector.rows(step, 3)
        assert rows[0] == 4 and set(rows[1:]) == {1, 3}
    assert set(selector.rows(0, 5)) == set(range(5)), "the rest only when nothing else is left"


def test_what_is_observed_replaces_what_was():
    shares = {}
    selector = Selector(ByDifficulty(), 2, "seed", shares)
    selector.observe([0, 1], [1.0, 0.5])
    selector.observe([0], [0.25])
    assert shares == {"0": 0.25, "1": 0.5}
