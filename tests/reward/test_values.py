"""Values by kind: what is equal and what is not; Chinese numerals; and the reference answers of real question sets."""

import importlib
from fractions import Fraction
from pathlib import Path

import pytest

from reward.answers.chinese import chinese_number
from reward.answers.equality import same
from reward.answers.extract import extract, reference
from reward.answers.notations import Time
from reward.answers.values import Percent, parse

ROOT = Path(__file__).parents[2]
DATA = ROOT.parent / "shared" / "data"

EQUAL = [
    ("20%", "20"), ("20%", "0.2"), ("20%", "20 \\%"), ("27.3%", "27.3 percent"), ("50%", "1/2"),
    ("5 million", "5000000"), ("5万", "50000"), ("1.5亿", "150,000,000"), ("十八", "18"), ("百分之二十", "20%"),
    ("三分之一", "1/3"), ("十八个", "18"), ("18个苹果", "18"), ("一又二分之一", "1.5"), ("RMB 18", "18"),
    (r"\{1,2\}", "2, 1"), (r"1 \pm \sqrt{2}", r"1-\sqrt{2}, 1+\sqrt{2}"), ("1,-2", "-2 and 1"), (r"1 \text{ or } -2", "1, -2"),
    ("(1,2]", r"\left(1, 2\right]"), ("(1/2, 3)", r"(0.5,3)"), (r"(-\infty,2)\cup(3,\infty)", r"(3,\infty) \cup (-\infty,2)"),
    (r"x \in [1,2]", "[1,2]"), (r"\begin{pmatrix}1\\2\end{pmatrix}", r"\begin{bmatrix} 1.0 \\ 2 \end{bmatrix}"),
    (r"\text{(C)}", "C"), (r"\text{Evelyn}", "evelyn"), ("2516_8", "2516_{8}"), (r"\frac43", "4/3"), (r"\sqrt3", r"\sqrt{3}"),
    ("5x-7y+4=0", "10x - 14y + 8 = 0"), ("y=2x+3", "2x+3"), ("(x+1)(x+2)", "x^2+3x+2"),
    (r"\frac{\sqrt3}{3}", r"\frac{1}{\sqrt{3}}"),
    (r"288\pi \text{ cm}^3", r"288 \pi"), ("6-5i", "-5i+6"), (r"\sin^2 x+\cos^2 x", "1"), ("about 5", "5"),
    (r"90^\circ", "90 degrees"),
    ("10 000", "10,000"), ("(1,2)", "(x,y) = (1, 2)"), (r"\emptyset", r"\varnothing"), (r"(0,9)\cup(9,36)", "(0, 9) U (9, 36)"),
    # Typed without LaTeX.
    (r"12\pi", "12*pi"), (r"12\pi", "12pi"), (r"3\sqrt{13}", "3 sqrt(13)"), (r"\frac{1+\sqrt5}{2}", "(1 + sqrt(5))/2"),
    (r"\sqrt{2}", "√(2)"),
    (r"(-\infty,3)", "(-inf, 3)"), (r"\log_2 3", "log_2(3)"), (r"\sin x", "sin(x)"), ("e^2", "exp(2)"),
    (r"\sqrt{\sin(2x)}", "sqrt(sin(2*x))"),
    # An inequality is an interval.
    ("[-2,7]", r"-2 \le x \le 7"), ("(-2,7]", r"7 \geq t > -2"), (r"(-\infty,3)", "x < 3"), ("3 > x", "x<3"),
    (r"[0,\infty)", "y ≥ 0"),
    (r"(-\infty,-8)\cup(8,\infty)", r"m < -8 \text{ or } m > 8"), (r"(-\infty,2)\cup(2,\infty)", r"x \neq 2"),
    (r"(-1,2]\cup[3,\infty)", r"-1<x\leq 2 \text{ or } x \geqslant 3"), (r"(-\infty,\infty)", r"\mathbb{R}"),
    (r"[-\frac12, \frac12]", r"-0.5 \leq \theta \leq 0.5"), ("2x < 6", "x < 3"), (r"2x \leq 6", r"x \le 3"),
    # A point by its coordinates' names, and names of more than one letter.
    ("(6,31,-1)", "a = 6, b = 31, c = -1"), ("(1,-2)", r"x = 1 \text{ and } y = -2"), ("(6,31,-1)", "6, 31, -1"),
    ("60", r"\angle ABC = 60^\circ"), ("60", r"m\angle A = 60"), ("60", r"\alpha = 60^o"), ("5", "x_1 = 5"), ("5", "f(2) = 5"),
    ("5", "f^{-1}(3) = 5"), ("5", r"\text{Area} = 5\text{ cm}^2"), ("0.5", r"P(\text{heads}) = \frac12"), ("5", "f(g(2)) = 5"),
    ("2x^2+3", r"(f \circ g)(x) = 2x^2+3"), ("2,3", "x_1 = 2, x_2 = 3"), ("2,3", "2; 3"), (r"0.25", r"{1 \over 4}"),
    ("36", r"36\text{ in.}^2"), ("5.4", "5.4¢"), ("5", r"5^{\text{th}}"), ("5", "5th"), ("1001_2", "(1001)_{2}"),
    (r"\text{(E)}", r"(\text{E})"), (r"\text{B}", r"\text{B)}"), (r"\text{ellipse}", r"\text{An ellipse}"),
    (r"\text{(B)}", "(b)"), (r"4:30\text{ p.m.}", "4:30"), (r"\text{A, B}", r"\text{A,B}"),
]  # fmt: skip

DIFFERENT = [
    ("20%", "2"), ("20", "0.2"), ("5 million", "5"), ("十八", "80"), ("三分之一", "0.333"), ("五", "五百"),
    (r"\{1,2\}", "1,2,3"), (r"\{5\}", "5"), ("(1,2)", "1,2"), ("(1,2)", r"\{1,2\}"), (r"\{1,2\}", r"\{1,1\}"),
    ("1,1,2", "1,2,2"),
    ("(1,2]", "[1,2)"), ("(2,12)", "212"), ("(2,102)", "2102"), (r"(-\infty,2)\cup(3,\infty)", r"(-\infty,2)"),
    (r"\begin{pmatrix}1\\2\end{pmatrix}", r"\begin{pmatrix}2\\1\end{pmatrix}"), (r"\begin{pmatrix}1\\2\end{pmatrix}", "(1,2)"),
    (r"\begin{pmatrix}1&2\end{pmatrix}", r"\begin{pmatrix}1\\2\end{pmatrix}"), (r"\text{(C)}", r"\text{(D)}"),
    (r"\text{Evelyn}", "Navin"), (r"\text{even}", "0"), ("2516_8", "2516"), ("5x-7y+4=0", "5x-7y-4=0"), ("x^2", "x^3"),
    ("x", "y"), ("12", "1 2"), ("1818", "18 18"), ("1 1/2", "11/2"),
    (r"\sqrt{2}", "1.41421356237"), ("2x+3", "2x"), ("i", "-i"), (r"\infty", r"-\infty"), ("3, 5, 7", "357"), ("x+y", "x"),
    ("[-2,7]", "-2 < x < 7"), (r"(-\infty,3)", "x > 3"), (r"(-\infty,3)", r"x \le 3"), ("(-2,7)", "-2 < x > 7"), ("3", "x > 3"),
    ("(1,4)", "1 < x+y < 4"), (r"(-\infty,2)\cup(2,\infty)", r"x \neq 3"), (r"(2,5)", r"x > 2 \text{ and } x > 5"),
    ("(1,4)", "1,4"), (r"(2,\infty)", "a < x > 2"), ("(6,31,-1)", "31, 6, -1"), ("(1,-2)", "x = -2, y = 1"),
    ("[1,2]", "x = 1, y = 2"),
    ("[1,2,3]", "1,2,3"), (r"4:30\text{ p.m.}", "4:31"), ("5", "2x = 5"), ("5", "15 = 5"), ("5", r"\frac{x}{2} = 5"),
    ("5", "5!"), ("5", "5^2"), (r"\text{(B)}", "(c)"), ("2,3", "x_1 = 3, x_2 = 4"),
]  # fmt: skip


@pytest.mark.parametrize(("a", "b"), EQUAL)
def test_equal_values(a, b):
    assert same(a, b) and same(b, a)


@pytest.mark.parametrize(("a", "b"), DIFFERENT)
def test_different_values(a, b):
    assert not same(a, b) and not same(b, a)


@pytest.mark.parametrize(
    ("gold", "answer"),
    [
        ("5", "a+b+c = 5"), ("5", "x^2 + y^2 = 5"), ("5", r"|z| = 5"), ("5", r"\frac{a}{b} = 5"), ("5", r"\log_2 32 = 5"),
        ("5", r"\gcd(a,b) = 5"), (r"\frac12", r"\sin\theta = 0.5"), (r"-\sqrt3", r"\tan 120^\circ = -\sqrt{3}"),
        (r"\frac12", r"\frac{1}{2} = 0.5"),
        ("5", r"5 \pmod{7}"), ("5", r"x \equiv 5 \pmod 7"), ("5", r"5 \text{ (mod 7)}"),
        (r"\frac12", r"\frac12 \text{ or } 50\%"),
    ],
)  # fmt: skip
def test_an_answer_may_say_what_has_the_value_and_a_reference_may_not(gold, answer):
    assert same(gold, answer) and not same("7", answer)


def test_a_reference_that_is_an_equation_is_not_its_right_side():
    assert not same("x+y = 5", "5") and same("x+y = 5", "x = 5-y")


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        (r"so $x=\boxed{2}$ or $x = \boxed{-3}$.", "2, -3"), (r"\boxed{1}, \boxed{2}\text{ and }\boxed{3}", "1, 2, 3"),
        (r"\boxed{5}, \boxed{5.0}", "5.0"), (r"first \boxed{3}, then \boxed{4}", "4"), (r"\boxed{1}\boxed{2}", "1, 2"),
        (r"\boxed{5} and \boxed{", None), (r"\boxed{\boxed{5}}", "5"),
    ],
)  # fmt: skip
def test_boxes_joined_by_a_word_are_one_answer(text, answer):
    assert extract(text, "auto") == extract(text, "boxed") == answer


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("零", 0), ("十", 10), ("二十", 20), ("一百零五", 105), ("一百五", 150), ("两千三百", 2300), ("一万零五十", 10050),
        ("三千零二十万", 30_200_000), ("一亿", 10**8), ("二〇二四", 2024), ("三点一四", Fraction("3.14")), ("负五", -5),
        ("二又三分之一", Fraction(7, 3)), ("3万", 30000),
    ],
)  # fmt: skip
def test_chinese_numerals(text, value):
    assert chinese_number(text) == (value, "1") and parse(text) == value


@pytest.mark.parametrize("text", ["", "点五", "五点", "苹果", "分之", "负", "三点百"])
def test_what_is_no_chinese_numeral(text):
    assert chinese_number(text) is None


def test_a_percentage_in_chinese_is_one():
    assert parse("百分之十二点五") == Percent(Fraction(25, 2))


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("So the answer is 18.", "18"), ("**Answer:** 18 dollars", "18 dollars"), ("The final answer is: $x = 3$.", "$x = 3$"),
        ("答案是：18。", "18"), ("答案：三分之一", "三分之一"), ("The answer is 18 apples because 9 + 9 is that.", "18 apples"),
        ("The answer is that she has 18 left", "18"),
        ("Final Answer: The volume of $ABCD$ is 120. I hope it is correct.", "120"),
        (r"The answer is $\boxed{\frac12}$.", r"\frac12"),
        ("I do not know", None),
        ("The answer is 3.5, as said", "3.5"), ("answer: 5\nthe answer is 6", "6"),
        ("9 + 9 = 18\nA: 18\n", "18"), ("so\n\n# Answer\n\n\\frac{1}{2}", r"\frac{1}{2}"),
        ("# Answer\n\n3\n\n# Answer\n\n(3, 4]\n", "(3, 4]"),
        ("**Final Answer**\nEvelyn", "Evelyn"), ("<answer>\n5 \n</answer>", "5"), ("# Answer\n\n(3, pi/2)", "(3, pi/2)"),
        ("the answer\nby 5 is 6", None),
        ("The answer is\n\\[\nx^2\n\\]", "\\[\nx^2\n\\]"), ("The answer is 72 clips (48 + 24).", "72 clips"),
        ("# Answer\n\n12,\\!345", r"12,\!345"), ("The answer is 5! It is", "5"), (r"The answer is $\frac12$</s>", r"$\frac12$"),
        ("A: 90,000", "90,000"), ("A: 12\nB: 15", None), ("a: 12", None),
    ],
)  # fmt: skip
def test_the_answer_that_a_sentence_states(text, answer):
    assert extract(text, "answer-is") == answer


def test_a_reference_is_what_its_mark_or_its_last_line_says():
    assert reference("9 * 2 = 18\n#### 18") == reference("9 * 2 = $18\nA: 18") == reference(r"So it is $\boxed{18}$.") == "18"
    assert reference("A: 12\nB: 15") == "A: 12\nB: 15"


def test_a_time_of_day_is_no_ratio():
    assert parse(r"6\text{:}15\text{ p.m.}") == parse("6:15 PM") == Time(18, 15, 0, "p", bare=False)
    assert not same(r"6:15\text{ p.m.}", "6:15 a.m.") and not same("6:10 pm", "3:05 pm")


def test_auto_prefers_a_mark_and_does_not_take_a_heading_for_one():
    assert extract("#### Step 1\nthe answer is 7, not 8", "auto") == "7"
    assert extract("#### 5\nthe answer is 7", "auto") == "7"
    assert extract("#### So she has 72 apples", "auto") == extract("#### 48 + 24 apples = 72", "auto") == "72"
    assert extract(r"\boxed 5 is it", "auto") == "5"
    assert extract(r"\boxed{255} so far. Final Answer: The final answer is $10,455$. I hope so.", "auto") == "$10,455$"
    assert extract("<think>\\boxed{4}</think>\n<answer>5</answer>", "auto") == "5"
    assert extract(r"\fbox{5} is it", "auto") == "5"
    assert extract(r"\boxed{255}. The final answer is correct.", "auto") == "255"


NO_ANSWER = ["", " ", r"\boxed{}", r"\boxed{18", "I think it is eighteen", r"#### \boxed{}", "#### "]
HACKS = [
    "17, 18, 19",
    "18 or 19",
    "17 < 18",
    "print(18)",
    "assert True  # 18 == 18",
    "18 18",
    "{18}",
    "[18, 19]",
    "x",
    "18=18",
    "1e400",
]


@pytest.mark.parametrize("text", [*NO_ANSWER, *(f"#### {hack}" for hack in HACKS), *(rf"\boxed{{{hack}}}" for hack in HACKS)])
def test_what_only_looks_like_an_answer_is_wrong(text):
    form = "boxed" if "boxed" in text and "####" not in text else "hash"
    assert not same("18", extract(text, form))


def test_the_answer_inside_the_reasoning_only_is_none():
    assert not same("18", extract("9 + 9 = 18, so\n#### 17", "hash"))
    assert extract("9 + 9 = 18", "hash") is None and extract("9 + 9 = 18", "boxed") is None


@pytest.mark.slow
@pytest.mark.parametrize("name", ["gsm8k", "math500", "mgsm_zh", "cmath", "svamp"])
def test_real_references_against_texts_of_the_same_and_of_other_values(name, monkeypatch):
    if not DATA.exists():
        pytest.skip("the question sets are not beside this checkout")
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    answers = importlib.import_module("answers")
    found = answers.judged(answers.read(DATA, name), chinese=name in ("mgsm_zh", "cmath"))
    assert found.wrong == [] and found.unparsed == [] and found.rows >= 250
