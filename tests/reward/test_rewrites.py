"""Every rule of the tables does what its example says; units are compared on request."""

import re

import pytest

from reward.answers.dress import PLAIN, TYPED
from reward.answers.equality import same, same_with_units
from reward.answers.extract import extract
from reward.answers.phrases import WORDS
from reward.answers.statements import CHOSEN, chosen


@pytest.mark.parametrize("row", [*TYPED.rows, *PLAIN.rows, *WORDS.rows], ids=lambda row: row[2])
def test_each_rewrite_makes_of_its_example_what_it_says_and_says_why(row):
    pattern, replacement, example, becomes, why = row
    assert re.sub(pattern, replacement, example) == becomes != example and why


@pytest.mark.parametrize(("pattern", "example"), CHOSEN)
def test_each_way_to_choose_an_option_finds_it_in_its_example(pattern, example):
    assert re.search(pattern, example) and chosen(example).words.strip(".() ") == extract(example, "auto").strip("() ") == "B"


@pytest.mark.parametrize(
    ("reference", "answer", "equal"),
    [
        ("3 cm", r"3\text{ cm}", True), ("3 cm", "3 centimetres", True), ("3 cm", "0.03 m", True), ("3 cm", "3 m", False),
        ("3 cm", "3", False), ("3", "3 cm", True), ("9 (apples)", "9 apple", True), ("9 (apples)", "9 pears", False),
        ("36 km/h", "10 m/s", True), ("36 km/h", "36 m/s", False), ("5 kJ", "5000 J", True), (r"\$5", "5 dollars", True),
        ("$5", "5 euros", False), ("3米", "300 cm", True), ("1 square meter", "10000 cm^2", True), ("4 cm", "5 cm", False),
        (r"90^\circ", "90 degrees", True), (r"90^\circ", "90", False), (r"2\pi\text{ m}", r"200\pi\text{ cm}", True),
        ("2 hours", "120 minutes", True), ("2 hours", "2 minutes", False), ("3 berries", "3 berry", True), ("B", "B", True),
    ],
)  # fmt: skip
def test_units_are_compared_on_request(reference, answer, equal):
    assert same_with_units(reference, answer) is equal
    assert same(reference, answer) or reference.split()[0] != answer.split()[0]
