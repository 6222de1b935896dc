"""Texts of a benchmark inside training texts."""

import pytest

from rollout.data.contamination import Overlap, overlaps, words

LONG = "Natalia sold clips to 48 of her friends in April, and then she sold half as many in May."


def found(training, benchmark):
    return overlaps([("t:1", training)], [("b:1", benchmark)])


def test_a_run_of_ten_words_is_found_whatever_stands_around_it_and_however_it_is_written():
    copy = "Question: natalia SOLD clips, to 48 of her  friends - in april! How many?"
    assert found(copy, LONG) == [
        Overlap(training="t:1", benchmark="b:1", words="natalia sold clips to 48 of her friends in april")
    ]
    nine = "natalia sold clips to 48 of her friends in June"
    assert found(nine, LONG) == []


def test_a_short_text_is_found_as_a_whole_and_a_very_short_one_only_alone():
    assert found("He asked: what is 3 + 4? Then he left.", "What is 3+4?")[0].words == "what is 3 + 4"
    assert found("What is 3 of these?", "What is 3+4?") == []
    assert found("What now?", "What now?") and found("3, 4", "3 4")
    assert found("3 - 4", "3+4") == [] and found("3-4", "3 - 4")
    assert found("So what now?", "What now?") == []


def test_chinese_characters_are_words():
    assert words("小明有3.5个苹果") == ["小", "明", "有", "3.5", "个", "苹", "果"]
    assert found("题：一个数的三倍是十八这个数是多少？", "一个数的三倍是十八，这个数是多少")


def test_each_training_text_is_named_once_with_the_first_that_it_holds():
    training = [("t:1", LONG + " " + LONG), ("t:2", "nothing of it"), ("t:3", LONG)]
    both = overlaps(training, [("b:1", "something else entirely that is not there at all, no"), ("b:2", LONG), ("b:3", LONG)])
    assert [(x.training, x.benchmark) for x in both] == [("t:1", "b:2"), ("t:3", "b:2")]


@pytest.mark.parametrize("empty", ["", "?!"])
def test_a_text_without_words_is_in_none(empty):
    assert found(LONG, empty) == [] and found(empty, LONG) == []
