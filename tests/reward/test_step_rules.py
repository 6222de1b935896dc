import random
from fractions import Fraction

import pytest

from reward.labels.step_rules import arithmetic_steps, calculator_steps, evaluate, rule_labels
from rollout.tasks.arithmetic import demonstration, items

SUM = "17 + 8 - 9"


@pytest.mark.parametrize(
    ("steps", "labels"),
    [
        (["17+8=25\n", "25-9=16\n", "#### 16"], [1, 1, 1]),
        (["17+8=15\n", "15-9=6\n", "#### 6"], [0, 0, 0]),  # a mistake, and what follows from it
        (["17+8=25\n", "25-9=6\n", "#### 6"], [1, 0, 0]),
        (["17+8=25\n", "25-9=6\n", "#### 16"], [1, 0, 1]),  # the answer is judged alone
        (["17+8=15\n", "25-9=16\n", "#### 16"], [0, 0, 1]),  # everything from the first mistake on
        (["25-9=16\n", "#### 16"], [0, 1]),  # a step is missing
        (["17-9=8\n", "8+8=16\n", "#### 16"], [0, 0, 1]),  # another order
        (["17+8=25\n", "25-9=16\n", "16+0=16\n", "#### 16"], [1, 1, 0, 1]),
        (["17 + 8 = 25\n", "25 - 9 = 16\n", "####16"], [1, 1, 1]),
        (["17+8=25\n25-9=16\n", "#### 16"], [1, 1]),  # two lines in a step
        (["17+8=25\n25-9=16\n#### 16"], [1]),
        (["17+8=25\n25-9=15\n#### 16"], [0]),
        (["17+8=25\n", "25-9="], [1, 0]),
        (["17+8=25\n", "#### "], [1, 0]),
        (["", "x\n"], [0, 0]),
        ([], []),
    ],
)
def test_a_step_of_a_sum_is_right_if_it_is_the_next_operation_from_the_true_value(steps, labels):
    assert arithmetic_steps(SUM, steps) == labels


def test_demonstrations_of_the_task_are_labelled_from_their_first_forgotten_carry_on():
    rng, wrong = random.Random(0), 0
    for item in items(0, 200, held_out=True, lengths=(2, 4)):
        lines = demonstration(item, 0.5, rng).split("\n")
        right = item.output.split("\n")
        first = next((k for k, (a, b) in enumerate(zip(lines, right, strict=True)) if a != b), len(right))
        steps = [float(k < first) for k in range(len(right) - 1)]
        assert arithmetic_steps(item.question, lines) == [*steps, float(lines[-1] == right[-1])]
        wrong += first < len(right)
    assert wrong > 40


def test_a_question_that_is_no_sum_is_refused():
    with pytest.raises(ValueError, match="expected a sum"):
        arithmetic_steps("How many?", ["1+1=2"])


@pytest.mark.parametrize(
    ("steps", "labels"),
    [
        (["48/2 = <<48/2=24>>24.\n", "48+24 = <<48+24=72>>72.\n", "#### 72"], [1, 1, 1]),
        (["<<48/2=23>>\n", "<<48+24=72>>\n", "#### 72"], [0, 0, 1]),
        (["First.\n", "<<48/2=24>>\n", "So.\n", "<<1+1=3>>\n", "So.\n", "#### 72"], [None, 1, 1, 0, 0, 1]),
        (["<<48/2=24>> and <<24*3=70>>\n", "#### 70"], [0, 0]),
        (["<<48/2=24>>\n", "<<48+24=72>> 72"], [1, 0]),  # no answer was stated
        (["Hm.\n", "#### 72"], [None, 1]),
        ([], []),
    ],
)
def test_marks_must_hold_and_the_last_step_is_the_answer(steps, labels):
    assert calculator_steps("48/2 = <<48/2=24>>24\n#### 72", steps) == labels


@pytest.mark.parametrize(
    ("expression", "value"),
    [
        ("48/2", Fraction(24)),
        ("0.1+0.2", Fraction(3, 10)),
        (".5*20", Fraction(10)),
        ("5.", Fraction(5)),
        ("1/3", Fraction(1, 3)),
        ("-(2-5)*1,000", Fraction(3000)),
        (" 2 * (3 + 4) ", Fraction(14)),
        ("9" * 150, Fraction(int("9" * 150))),
        ("1/0", None),
        ("2**9999999", None),
        ("7//2", None),
        ("1e9", None),
        ("5(3)", None),
        ("1 2", None),
        ("05", None),
        ("(" * 90 + "1" + ")" * 90, Fraction(1)),
        ("-" * 150 + "1", Fraction(1)),
        ("(" * 200, None),
        ("1+" * 200 + "1", None),
        ("__import__('os')", None),
        ("10%", None),
        ("", None),
    ],
)
def test_formulas_are_exact_and_anything_else_has_no_value(expression, value):
    assert evaluate(expression) == value


@pytest.mark.parametrize(
    ("mark", "holds"), [("10/4=2.5", 1), ("1/3=0.33", 0), ("1+1=2=2", 0), ("5", 0), ("2=2.0", 1), ("=", 0), ("x=x", 0)]
)
def test_a_mark_is_one_true_equation(mark, holds):
    assert calculator_steps("#### 1", [f"<<{mark}>>", "#### 1"])[0] == holds


def test_the_rule_is_chosen_by_what_is_in_the_text():
    assert rule_labels(SUM, "16", ["17+8=25\n", "#### 16"], "hash") == [1, 1]
    assert rule_labels("How many?", "#### 24", ["<<48/2=24>>", "#### 24"], "hash") == [1, 1]
    assert rule_labels("How many?", "<<48/2=24>>\n#### 24", ["24 of them\n", "#### 24"], "hash") == [None, 1]
    assert rule_labels("How many?", "24", ["24 of them\n", "#### 24"], "hash") == [None, None]
