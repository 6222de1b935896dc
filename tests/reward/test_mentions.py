"""Numbers that stand in mathematics or beside words are not cut out of them; labels are no answers. Each row of the tables."""

import re
import time
from fractions import Fraction

import pytest

from reward.answers import mentions, phrases
from reward.answers.equality import same
from reward.answers.phrases import BEFORE, BEHIND, LABELS, any_of
from reward.answers.values import parse
from reward.judging.rule import judge

TABLES = {
    "_LEFT": (BEFORE, lambda rows: rf"(?:{mentions._BEFORE}|{any_of(rows)})+\Z"),
    "_RIGHT": (BEHIND, lambda rows: rf"(?:{mentions._BEHIND}|{any_of(rows)})+"),
    "_SERIES": (LABELS, any_of),
}
ROWS = [(name, row) for name, (rows, _) in TABLES.items() for row in rows]


def ends_in_a_number(text):
    last = max(mentions.mentions(text), key=lambda mention: mention.end, default=None)
    return last is not None and isinstance(parse(last.text), Fraction)


@pytest.mark.parametrize(("name", "row"), ROWS, ids=lambda value: value if isinstance(value, str) else value[1])
def test_the_number_of_an_example_is_cut_out_without_its_row_and_not_with_it(monkeypatch, name, row):
    (rows, pattern), (_, example, why) = TABLES[name], row
    assert why and not ends_in_a_number(example)
    monkeypatch.setattr(mentions, name, re.compile(pattern(tuple(other for other in rows if other is not row))))
    assert ends_in_a_number(example)


def test_every_table_is_tried():
    tables = {id(table) for table in vars(phrases).values() if isinstance(table, tuple)}
    assert tables == {id(rows) for rows, _ in TABLES.values()}


CUT = [
    (r"Hence \frac{1}{3}", "3"), (r"Hence \frac{1}{3}", "1"), (r"so \sqrt{3}", "3"), ("thus 3x + 2", "2"), ("we get 2^x", "2"),
    ("we get 2^{x}", "2"), ("This gives 3/x", "3"), ("so (x+1)/3", "3"), ("so x + 3", "3"), ("so 3 + x", "3"),
    ("so x * 3", "3"), ("so 3*x", "3"), (r"so 3\pi", "3"), (r"so 3 \pi", "3"), (r"so 3\cdot x", "3"), ("so 2+3i", "3"),
    ("so 3i", "3"), ("so 3ab", "3"), ("so 3/4x", "3/4"), ("so f(3)", "3"), ("so sqrt(3)", "3"), (r"so \log_2 8", "8"),
    (r"so \sin(30)", "30"), (r"so \binom{5}{2}", "2"), (r"so \sqrt[3]{5}", "5"), (r"so \foo{3}", "3"), ("so 10**3", "3"),
    ("so 3 × 4", "4"), ("so 3 x 4", "4"), (r"so 3 \times 4", "4"), ("so 3 + 4", "4"), ("so the 3rd", "3"),
    ("so the 21st", "21"),
    ("so between 3 and 5", "5"), ("so 3 or 4", "4"), ("so 3 or 4", "3"), ("so 3 apples or 4", "4"), ("so 3, 4 or 5", "5"),
    ("so 3 and 4", "4"), (r"$\frac{1}{3}$", "3"), (r"so $\frac{1}{3}$", "3"), ("so 5M", "5"), ("so 2^", "2"),
    # Words that change a number.
    ("The answer is never 4.", "4"), ("The answer isn't 4.", "4"), ("The answer isn’t 4.", "4"),
    ("The answer can't be 4.", "4"),
    ("The answer cannot be 4.", "4"), ("The answer won't be 4.", "4"), ("The answer is anything but 4.", "4"),
    ("The answer is other than 4.", "4"), ("The answer is no longer 4.", "4"), ("The answer does not equal 4.", "4"),
    ("The answer is not exactly 4.", "4"), ("The answer is different from 4.", "4"), ("The answer is neither 3 nor 4.", "4"),
    ("The answer is everything except 4.", "4"), ("The answer is a factor of 4.", "4"), ("The answer is a power of 2.", "2"),
    ("The answer is the log of 3.", "3"), ("The answer is the sine of 3.", "3"), ("The answer is the remainder of 7.", "7"),
    ("The answer is the nearest integer to 3.7.", "3.7"), ("The answer is the absolute value of -3.", "-3"),
    ("The answer is the floor of 3.7.", "3.7"), ("The answer is the sum of 3 and 4.", "4"), ("The answer is 10% of 30.", "30"),
    ("The answer is congruent to 4.", "4"), ("The answer is coprime to 4.", "4"), ("so it can't be 4", "4"),
    ("so x is a power of 2", "2"), ("so x is the absolute value of -3", "-3"),
    # Labels.
    ("1. Add 2. Remove 3.", "3"), ("1. Add 2. Remove 3.", "2"), ("a. foo\nb. bar\n2.", "2"), ("### 3.", "3"), ("# 3", "3"),
    ("Thought 3:", "3"), ("Round 2:", "2"), ("Attempt 2:", "2"), ("**Attempt 2:**", "2"), ("## Round 2", "2"),
    ("page 10", "10"),
    ("see p. 10", "10"), ("[1] https://x", "1"), ("https://x.org/3", "3"), ("Action Input 3:", "3"), ("No. 3", "3"),
    # Dates, ranges and telephone numbers.
    (r"\boxed{2024-01-02}", "2021"), ("#### 2024-01-02", "2021"), (r"\boxed{10-5-2020}", "-2015"), ("#### 10-5-2020", "2020"),
    (r"\boxed{555-1234}", "-679"), (r"\boxed{3-1-1}", "1"),
]  # fmt: skip
WHOLE = [
    (r"Hence \frac{1}{3}", "1/3"), (r"so -\frac{1}{3}.", "-1/3"), (r"so 2\frac{1}{3}", "7/3"), (r"so \frac12", "1/2"),
    (r"$\frac{1}{3}$", "1/3"), (r"so 2\sqrt{3}", r"2\sqrt{3}"), (r"so \frac{\sqrt{3}}{2}", r"\frac{\sqrt{3}}{2}"),
    (r"so \sqrt[3]{5}", r"\sqrt[3]{5}"), (r"so it costs \frac{1}{3} dollars.", "1/3"), ("thus 3x + 2", "3x+2"),
    ("so x^2 + 1", "x^2+1"), (r"so \log_2 8", "3"), ("so 3 * 4", "12"), (r"so \frac{16}{2} = 8", "8"),
    (r"so \sqrt{64} = 8", "8"),
    (r"so it is 90^\circ.", "90"), (r"so $90^\circ$", "90"), ("so 3cm", "3"), ("so 12km/h", "12"), ("500g of flour", "500"),
    ("so 72Mb per hour", "72"), ("She has 3apples", "3"), ("so 5pm", "5 pm"), (r"so $3\text{ cm}$", "3"),
    (r"so \textbf{3}", "3"),
    ("expressed as 7-1=6th place", "6"), ("so 0.60 or 60% off", "60"), (r"so 1+3 \equiv 4 \pmod{7}", "4"), ("so '8'", "8"),
    ("He has 10 * 2 = 20 apples", "20"), ("9 * 2 = $<<9*2=18>>18 a day", "18"), ("=> 15", "15"), ("**3** a day", "3"),
    ("He has 3 and she has 5", "5"), ("They have 12 (5 + 7) left", "12"), ("He isn't 5, he is 8", "8"), ("a sum of 8", "8"),
    ("with a remainder of 8", "8"), ("Attempt 2: 5 + 3 = 8", "8"), ("### 8 apples are left. It is 8", "8"), ("#### 8", "8"),
    ("1. He has 3.\n2. He buys 5.\n3. So he has 8.", "8"), ("a. one\nb. two\nSo 8", "8"), ("Plan A - 8 apples", "8"),
    (r"\boxed{2024-01-02}", "2024-01-02"), ("#### 10-5-2020", "10-5-2020"), ("so 555-1234", "555-1234"),
]  # fmt: skip


@pytest.mark.parametrize("form", ["auto", "last-number"])
def test_a_number_is_not_cut_out_of_what_changes_or_labels_it(form):
    assert [(output, gold) for output, gold in CUT if judge(output, gold, form)["correct"]] == []


@pytest.mark.parametrize("form", ["auto", "last-number"])
def test_a_number_is_read_with_the_mathematics_at_it_and_without_what_leaves_it_as_it_is(form):
    assert [(output, gold) for output, gold in WHOLE if not judge(output, gold, form)["correct"]] == []


DATED = [("2021", "2024-01-02"), ("-679", "555-1234"), ("-2015", "10-5-2020"), ("1012", "2024/01/02")]


@pytest.mark.parametrize(("number", "date"), DATED)
def test_a_date_is_no_arithmetic_on_either_side(number, date):
    assert not same(number, date) and not same(date, number) and same(date, date)


OPTIONS = [
    'The answer is "B"', "The answer is “B”.", "The answer is `B`.", "the answer is option b", "The answer is option (b).",
    "The correct answer is choice b", "So A is wrong and B is the answer.", "So B is the answer.", "(B) is the answer.",
    "A: no\nB: yes\nAnswer B", "answer B.", "The final answer B", "**Answer** B",
]  # fmt: skip
NO_OPTION = [
    "B is not the answer", "So A and B are the answers", "A or B is the answer", "Answer A or B", "Answer B is wrong.",
    "I don't think B is the answer", 'The answer is "A"', "the answer is option a", "Neither A nor B is the answer.",
    "Options A and B are correct", "So B is wrong and A is the answer.", "the answer is a big one", "The answer isn't B",
    "If B is the answer, C is not", 'The answer is not "B"', "the answer is option a or b",
]  # fmt: skip


def test_an_option_may_be_stated_plainly():
    assert [output for output in OPTIONS if not judge(output, "B", "auto")["correct"]] == []
    assert [output for output in NO_OPTION if judge(output, "B", "auto")["correct"]] == []


REPEATED = [
    r"\frac{" * 6000, r"\frac{1}{" * 6000, "3x+" * 8000, "not the " * 3000, "never the 4 " * 3000, "\na. x" * 5000,
    "1. A 2. B 3. " * 3000, "3^" * 9000, "x_{" * 8000, "3(x" * 8000, "3 or " * 5000, r"\pi " * 6000, "3 * " * 6000,
    "Wave 2 " * 5000,
    "https://" * 5000, "and A " * 5000, "so answer " * 5000, r"\foo{{" * 5000, "3-" * 9000, "3^{3^{3^{" * 3000, "\n#" * 9000,
]  # fmt: skip


@pytest.mark.parametrize("text", REPEATED, ids=lambda text: text[:12].strip())
def test_texts_that_repeat_what_the_tables_look_for_are_read_in_one_pass(text):
    start = time.process_time()
    for form in ("auto", "last-number"):
        judge(text, "77", form)
        judge(f"The answer is {text}", "77", form)
    # About a second, where two passes within each other would take minutes.
    assert time.process_time() - start < 20
