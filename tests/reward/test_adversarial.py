"""Answers and outputs made to be judged wrongly: taken for right, or for an error, or never judged at all."""

import time

import pytest

from reward.answers import formulas
from reward.answers.equality import canonical, same
from reward.judging.rule import judge

WRONG = [
    # Variables are no units, and words that compute are none either.
    ("2ab", "2cd"), ("2xy", "2"), ("6xy", "6"), ("6ab^2", "6"), (r"\frac{1}{2}bh", r"\frac12"), ("-2xy", "-2"), ("6s^2", "6"),
    (r"2\sqrt{3}ab", r"2\sqrt3"), ("5g", "5h"), ("12", "12 squared"), ("12", "12 fifths"), ("12", "12 hundredths"),
    ("12", "12 divided by three"), ("12", "12 crore"), ("12", "12 bn"), ("12", "12 factorial"), ("12", "12 not"),
    ("12", "12 is wrong"), ("10", "10分之一"), ("10", "10分之3"), ("10", "10除以二"), ("10", "10减去三"), ("10", "10个半"),
    ("10", "10以上"), ("3000", "3千克"),
    # Near is not equal, and what is equal for some numbers is not so for all.
    (r"\frac{1}{2^{50}}", "0"), (r"\frac{1}{20!}", "0"), (r"(\frac12)^{99}", r"(\frac12)^{98}"), ("2^{60}+1", "2^{60}"),
    ("50!", "50!+1"), ("10^{99}+1", "10^{99}"), ("|x|", "x"), (r"\sqrt{(x-3)^2}", "3-x"), ("|x-5|", "5-x"),
    (r"\frac{|x|}{x}", "1"), ("x=1,y=2", "x=2,y=1"), ("x=1 or x=2", "2"), ("12", "1'2"), ("x", "x'"),
    (r"\sin 30", r"\sin 30^\circ"),
    (r"\begin{vmatrix}1&2\\3&4\end{vmatrix}", r"\begin{pmatrix}1&2\\3&4\end{pmatrix}"),
]  # fmt: skip
RIGHT = [
    ("3", "3千克"), ("3", "3千米"), ("3", r"3\text{千克}"), ("3", "3平方千米"), ("60", "60（分钟）"), ("三千克", "3"),
    ("12", r"12^\circ C"), ("12", "12℃"),
    ("0.5", "½"), ("1.5", "1½"), (r"\frac\pi2", r"\pi/2"), (r"\frac\pi{4}", r"\frac{\pi}{4}"), (r"0.\overline{13}", "13/99"),
    (r"\text{June 20}", "June 20"), (r"\cos 60^\circ", "0.5"), (r"\frac{\sin 30^\circ}{\cos{60^{\circ}}}", "1"),
    (r"\tan 15^\circ", r"2-\sqrt3"), (r"11\sqrt2", "11√2"),
    ("1.5 million people", "1500000"), ("5 billion dollars", "5000000000"), ("18", "18 dollars per day"), ("5", "5cm^2"),
    ("x=1,y=2", "y=2, x=1"), ("x=1 or x=2", "x=2 or x=1"), (r"\log_2 8", "3"), (r"\dbinom{5}{2}", "10"), ("5!", "120"),
    ("xyz", "x y z"), ("2^{1000}", r"2^{999}\cdot 2"), ("x^{100}", "x^{50}x^{50}"), ("|x-1|", "|1-x|"),
    (r"\sqrt{2}\sqrt{3}-\sqrt{6}", "0"), (r"e^{i\pi}", "-1"), ("(1+i)^2", "2i"), ("(2+i)(2-i)", "5"), (r"\frac{1}{i}", "-i"),
    (r"\sqrt{-1}", "i"), (r"\sqrt{17}", "4.123105625617661"), ("8", "5 + 3 = 8"),
    (r"\frac{1}{5}", r"\\frac{1}{5}"), ("2ab", r"ab\cdot 2"), (r"\frac{1}{2}bh", r"\frac{bh}{2}"), ("4ac-b^2", "-b^2+4ac"),
    (r"2\sqrt{3}ab", r"2ab\sqrt{3}"), (r"\sin x \cos y", r"\cos y\sin x"), ("3R^2", r"R^2 \cdot 3"), ("2g", r"g \cdot 2"),
]  # fmt: skip


@pytest.mark.parametrize(("gold", "answer"), WRONG)
def test_answers_with_another_value_are_wrong(gold, answer):
    assert not same(gold, answer) and not same(answer, gold)


@pytest.mark.parametrize(("gold", "answer"), RIGHT)
def test_answers_with_the_same_value_are_right(gold, answer):
    assert same(gold, answer) and same(answer, gold)


@pytest.mark.parametrize(
    ("gold", "output"),
    [
        ("5", "The answer is either 5 or 6."), ("5", "The answer is not 5."), ("5", "The answer is between 5 and 10."),
        ("18", "The answer is one of 18, 19, 20."), ("18", "The answer is 18, or maybe 20."), ("3", "The answer is 3; 4; 5"),
        ("1", "The answer is 1 2 3 4 5 6 7 8 9 10"), ("3", "The answer is 3, or 4"), ("3", "The answer is x=3, x=4"),
        ("5", "答案是5或6"), ("5", "答案不是5"), ("3", "答案是3小时20分钟"), (r"\text{(A)}", "The answer is A, B, or C."),
        ("5", r"\boxed{5"), ("yes", "The answer is yes, yes, no."),
        ("48", "The answer is 48 + 24 = 72 clips"), ("2", "#### 2\n\\boxed{7}"), ("18", r"\boxed{18=18}"),
        ("5", "#### 6 (not 5)"), ("10", "#### 10 hours 30 minutes"),
    ],
)  # fmt: skip
def test_candidates_headings_and_workings_are_no_answer(gold, output):
    assert judge(output, gold, "auto")["correct"] is False


@pytest.mark.parametrize(
    ("gold", "output"),
    [
        ("72", "The answer is 48 + 24 = 72 clips"), ("8", "The answer is 5 + 3 = 8"), ("20", "So the answer is 10*2=20"),
        ("36", "The answer is: 18 eggs * $2 = $36"), ("72", "The total is 72. I am confident this answer is correct."),
        ("7", "#### n = 3\n... \\boxed{7}"), ("7", "#### (a)\n\\boxed{7}"), ("7", "\\boxed{3}\n#### 7"),
        ("x-2y+z-1=0", "The final answer is $x-2y+z-1=0$. I hope so."), ("2,3", "The answer is 2 and 3."),
    ],
)  # fmt: skip
def test_the_answer_is_found_among_workings(gold, output):
    assert judge(output, gold, "auto")["correct"] is True


@pytest.mark.parametrize(
    "text",
    [
        r"2\begin{pmatrix}1\\2\end{pmatrix}", r"(9^{99})^{99}", r"{9^{99}}^{99}", "亿" * 900, "5" + "亿" * 900,
        r"\exp(\exp(\exp(\exp(9))))", r"5 \mod 3", r"\frac{d}{dx} \int_0^1 x dx", "(99!)!", "(2^{99})!", "99^{99}!",
        r"2^{(10\cdot10\cdot10\cdot10\cdot10\cdot10\cdot10)}", r"\int_0^{10}\sin(x^x)dx", r"\Gamma(10^{10})", "9^{9^{9}}",
        "((9^{9999})^{9999})", "A: x" + " " * 60000 + "y z", "the answer is " + r"\(" * 30000, "1+" * 8000 + "x=3",
    ],
)  # fmt: skip
def test_texts_beyond_the_libraries_are_wrong_answers_soon_and_no_errors(text):
    start = time.monotonic()
    for output in (rf"\boxed{{{text}}}", text):
        assert judge(output, "7", "auto")["correct"] is False
    assert same("7", text) is False and canonical(text) != canonical("7")
    # Seconds, where it was for ever.
    assert time.monotonic() - start < 20


# At most 300 characters each, and up to minutes of reading or of arithmetic with numbers of 100,000 digits.
COSTLY = [
    "+".join(rf"\frac{{{c}}}{{{c}^{{9999}}+1}}" for c in "abcdfghjkmnpq"),
    "+".join(rf"\frac{{x^{{9999}}}}{{y^{{999{i}}}}}" for i in range(9)),
    "".join(f"|x+{i}|" for i in range(30)), r"\sqrt{x^{9999}+1}" * 15, r"\ln(" * 18 + "x" + ")" * 18,
    r"\tan(" * 12 + "5" + ")" * 12,
    "{" * 19 + "x" + "}" * 19, "x_{1}" * 50, "x<y<" * 40 + "z", r"\arcsin(x)" * 12, r"\sqrt{x}" * 20,
]  # fmt: skip


@pytest.mark.parametrize("text", COSTLY, ids=lambda text: text[:20])
def test_formulas_that_are_costly_to_read_or_to_evaluate_are_refused_before_either(text, monkeypatch):
    assert len(text) <= formulas.LONGEST_EXPRESSION
    monkeypatch.setattr(formulas.math_verify, "parse", lambda *_, **__: pytest.fail("it was read"))
    formulas._reading.cache_clear()
    assert not formulas.readable(text) and not same("7", text)


def test_formulas_below_these_limits_are_read():
    assert same("x^8+x^7+x^6+x^5+x^4+x^3+x^2+x+1", r"\frac{x^9-1}{x-1}") and same("x^{5000}", "x^{2500}x^{2500}")
    assert same(r"\sin x\cos y+\cos x\sin y", r"\sin(x+y)") and same("|x-1||x+1|", "|x^2-1|")


@pytest.mark.parametrize("text", [r"\frac{1}{0}", r"\frac{3}{2-2}", "0^{-1}", r"\frac{0}{0}"])
def test_what_is_not_finite_equals_nothing(text):
    assert not same(r"\frac{2}{0}", text) and not same("12:00", text) and not formulas.readable(r"\frac{1}{0}")


REPEATED = [
    "5 " + "cm/" * 300 + "!", "5 " + "cm " * 5000, "A, " * 5000, "A " * 5000, "答案：" * 3000, "answer is " * 3000,
    "【答案】" * 3000,
    "3 and " * 3000, "1," * 9000, "x" * 20000, "\n" * 20000 + "x", "twenty " * 2000, "the square root of " * 600,
    "(A) x " * 2000,
    r"\text{a b}" * 1500 + "!", "Step 1 " * 3000, "\n1." * 3000, "三个" * 4000, "3 to " * 4000, "9 (" + "apples " * 900 + ")",
]  # fmt: skip


@pytest.mark.parametrize("text", REPEATED, ids=lambda text: text[:12].strip())
def test_texts_that_repeat_what_the_rules_look_for_are_read_in_one_pass(text):
    start = time.process_time()
    for output in (text, f"#### {text}", rf"\boxed{{{text}}}", f"The answer is {text}"):
        judge(output, "77", "auto")
    judge("77", text, "auto")
    # About a second, where it was for ever.
    assert time.process_time() - start < 20
