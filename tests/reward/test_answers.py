import threading
import time

import pytest

from reward.answers.equality import same
from reward.answers.extract import extract, reference
from reward.answers.values import parse


@pytest.mark.parametrize(
    ("text", "form", "answer"),
    [
        ("3+4=7\n#### 7", "hash", "7"),
        ("#### 5\nno, wait\n#### 6 ", "hash", "6"),
        ("a #### 5 dollars\nb", "hash", "5 dollars"),
        ("#### ", "hash", None),
        ("####\n7", "hash", None),
        ("##### 5", "hash", None),
        ("the answer is 7", "hash", None),
        (r"\boxed{1} then \boxed{\frac{1}{2}}.", "boxed", r"\frac{1}{2}"),
        (r"\boxed{a\}b}", "boxed", r"a\}b"),
        (r"\boxed{1} then \boxed{2", "boxed", None),
        (r"\boxed{}", "boxed", None),
        ("66-19=47", "last-number", "47"),
        ("it is -5", "last-number", "-5"),
        ("she pays $1,234.50.", "last-number", "$1,234.50"),
        ("he ate 1 1/2 cakes", "last-number", "1 1/2"),
        ("a half, 50%", "last-number", "50%"),
        ("答案是１８。", "last-number", "18"),
        ("none", "last-number", None),
        (r"\boxed{3} and 4" + "\n#### 5", "auto", "5"),
        (r"\boxed{3} and 4", "auto", "3"),
        ("3 and 4", "auto", "3 and 4"),
        ("", "auto", None),
        (None, "auto", None),
    ],
)
def test_the_last_final_answer_in_the_asked_form_is_found(text, form, answer):
    assert extract(text, form) == answer


EQUAL = [
    ("1,234", "1234"), ("1\\,234", "1234"), ("10{,}000", "10000"), ("007", "7"), ("+7", "7"), ("- 7", "-7"), ("−5", "-5"),
    ("18.00", "18"), ("18.", "18"), (".5", "0.5"), ("0", "0.00"), ("-0", "0"), ("**18**", "18"),
    ("$18.00", "18"), ("-$5", "-5"), ("US$5", "5"), ("€1,000", "1000"), ("25%", "25"), ("25\\%", "25"), ("25 percent", "25"),
    ("0.50", "1/2"), ("12/4", "3"), ("1 1/2", "1.5"), ("-1 1/2", "-1.5"), ("1\\frac{1}{2}", "3/2"), ("\\dfrac{3}{4}", "0.75"),
    ("18 dollars", "18"), ("5 cm^2", "5"), ("30 km/h", "30"), ("5 apples per day", "5"), ("5 m", "5"), ("5元", "5"),
    ("864 \\mbox{ inches}^2", "864"), ("\\text{18 dollars}", "18"), ("45^\\circ", "45"), ("$x = 5$", "5"),
    ("28 pct", "28%"), ("28 percentage", "28%"), ("x = 5 + 5 + 1 = 11", "11"), ("x = 1/3 \\approx 0.33", "1/3"),
    ("x \\approx 11", "11"), ("0.0833333333333333", "1/12"), ("0.30000000000000004", "0.3"), ("5\\textnormal{ miles}", "5"),
    ("４２", "42"), ("٤٢", "42"), ("1e3", "1000"), ("1e400", "1" + "0" * 400), ("0.1", "1e-1"),
]  # fmt: skip


@pytest.mark.parametrize(("a", "b"), EQUAL)
def test_numbers_are_equal_by_value_whatever_their_dress(a, b):
    assert same(a, b) and same(b, a)


DIFFERENT = [
    ("0.333", "1/3"), ("0.33333333333", "1/3"), ("1e400", "1e401"), ("4²", "42"), ("5x", "5"), ("2i", "2"),
    ("5π", "5"), ("5 million", "5"), ("5万", "5"), ("0.25", "26%"), ("12,34", "1234"), ("5 or 6", "5"), ("5 times 3", "5"),
    ("0.123456789012345", "0.12345679"), ("1.0000000001", "1"), ("a = 1, b = 2, c = 3", "3"), ("123456789012", "123456789013"),
    ("12 hours and 30 minutes", "30"), ("1.2.3", "1.2"), ("5, 5", "5"), ("5", "-5"), ("nan", "1"), ("[1,2)", "[1,2]"),
]  # fmt: skip


@pytest.mark.parametrize(("a", "b"), DIFFERENT)
def test_answers_of_different_value_are_different(a, b):
    assert not same(a, b) and not same(b, a)


RELATIONS = [
    (r"x \leq 5", r"5 \geq x"), ("x < 1", "-x > -1"), ("x <= 1", "2 - 2x >= 0"), ("x != 3", r"x \neq 3"),
    ("2x + 4y - 3 = 0", r"y = -\frac{1}{2}x + \frac{3}{4}"), (r"\frac{x^2}{4} + y^2 = 1", "x^2 + 4y^2 = 4"),
]  # fmt: skip
OTHER_RELATIONS = [
    (r"x \leq 5", r"x \geq 5"), (r"x \leq 5", "x < 5"), ("x < 1", "x > -1"), ("x < 1", "-x > 1"), ("2x + z = 1", "1"),
    ("a + 3z = 0", "0"), ("y = 2x + 3", "y = 2x - 3"), ("2x - y = 3", "y = 2x + 3"), ("x < 3", "3"), ("x = 3", "x < 3"),
]  # fmt: skip


@pytest.mark.parametrize(("a", "b"), RELATIONS)
def test_equations_and_inequalities_are_equal_however_they_are_solved(a, b):
    assert same(a, b) and same(b, a)


@pytest.mark.parametrize(("a", "b"), OTHER_RELATIONS)
def test_other_equations_and_inequalities_are_different(a, b):
    assert not same(a, b) and not same(b, a)


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        (r"\frac{10}{9}", r"\frac{10}{9}"), ("1 000", "1 000"), (r"Thus $k = \frac{1}{3}$.", r"k = \frac{1}{3}"),
        ("so $x <= 2$ is it", "x <= 2"), (r"It is \[ \n 9 \n \] then", r"\n 9 \n"), 
        ("She spends 3 of $5, so $2 are left of it", "$2"),
        ("He pays $18 for 2, so $9.", "$9"), (r"not $-[0,1)$", "-[0,1)"), (r"first $\frac{1}{3}$, then 7", "7"),
        (r"a matrix $\begin{pmatrix}1 & 2\end{pmatrix}$", r"\begin{pmatrix}1 & 2\end{pmatrix}"), ("17, 18, 19", "17, 18, 19"),
    ],
)  # fmt: skip
def test_without_a_mark_the_answer_is_the_whole_text_or_the_formula_or_number_it_ends_in(text, answer):
    assert extract(text, "auto") == answer


@pytest.mark.parametrize("other", ["", "0", "1", None])
@pytest.mark.parametrize("nothing", ["", "  ", None, "$", "\\boxed{}"])
def test_no_answer_equals_nothing_not_even_itself(nothing, other):
    assert not same(nothing, other) and not same(other, nothing)


@pytest.mark.parametrize(
    ("gold", "answer", "equal"),
    [
        (r"\frac{\pi}{2}", r"\pi/2", True),
        (r"2\sqrt{3}", r"\sqrt{12}", True),
        ("2x+3", "3+2x", True),
        (r"\{1,2\}", r"\{2,1\}", True),
        ("(1,2)", "(1, 2)", True),
        ("(1,2)", "(2,1)", False),
        (r"\sqrt{4}", "2", True),
        (r"3 \times 10^5", "300000", True),
        (r"\begin{pmatrix} 1/5 \\ -18/5 \end{pmatrix}", r"\begin{pmatrix} 0.2 \\ -3.6 \end{pmatrix}", True),
        (r"\begin{pmatrix} 1/5 \\ -18/5 \end{pmatrix}", r"\begin{pmatrix} 0.2 \\ 3.6 \end{pmatrix}", False),
        ("9", "9**99", False),
    ],
)
def test_formulas_are_compared_as_mathematics(gold, answer, equal):
    assert same(gold, answer) is equal


ENDLESS = [
    "9^{9^{9}}",
    "9^9^9",
    "9**9**9",
    "9^(9^9)",
    "9^99999999",
    "9^{9}^{9}",
    "99999999!",
    "9!!",
    "1e999999999",
    "1e-999999999",
]
BROKEN = ["1/0", "((", r"\frac{1}{", r"\frac" * 30, "9" * 5000, "\x00", "🙂", "nan", r"\text{" * 300, " " * 10_000, "e" * 150]


@pytest.mark.parametrize("text", ENDLESS + BROKEN)
def test_what_has_no_value_that_can_be_found_safely_is_wrong_and_quick(text):
    start = time.monotonic()
    assert parse(text) is None and not same("1", text)
    assert time.monotonic() - start < 5


def test_formulas_are_compared_off_the_main_thread_too():
    answers = []
    thread = threading.Thread(target=lambda: answers.append(same(r"\sqrt{8}", r"2\sqrt{2}")))
    thread.start()
    thread.join(30)
    assert answers == [True]


def test_a_reference_may_be_a_worked_answer():
    assert reference("48/2 = 24\n#### 24") == "24"
    assert reference(r"so \boxed{\frac{3}{4}}") == r"\frac{3}{4}"
    assert reference("3/4") == "3/4"
