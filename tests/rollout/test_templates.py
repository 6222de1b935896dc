"""Templates over columns: what they reach, and what they say of rows that do not fit."""

from decimal import Decimal

import pytest

from rollout.data.rows import Row
from rollout.data.templates import column, fill, fill_questions, text_of


def rows_of(*columns):
    return [Row(where=f"train.jsonl:{number}", columns=value) for number, value in enumerate(columns, start=1)]


def test_templates_take_formats_and_places_inside_columns():
    rows = rows_of({"Body": "Two", "n": 14.0, "turns": [{"content": "Hi"}]})
    assert fill(rows, "{Body} {turns[0][content]}", "question") == ["Two Hi"]
    assert fill(rows, "{n:g}", "answer") == ["14"]
    assert fill(rows_of({"n": Decimal("1.50")}), "{n}", "answer") == ["1.50"], "as parquet may hold numbers"


@pytest.mark.parametrize(
    "template",
    ["{a.b}", "{a[b]}", "{turns[-1][content]}", "{turns[1].content}", "{turns.1.content}", "{dotted.name}", "{x.y[z]}"],
)
def test_a_place_leads_into_mappings_and_lists_from_either_end(template):
    row = {"a": {"b": "7"}, "turns": [{"content": "6"}, {"content": "7"}], "dotted.name": 7, "dotted": {}, "x.y": {"z": 7}}
    assert fill(rows_of(row), template, "answer") == ["7"]


@pytest.mark.parametrize(
    ("template", "message"),
    [
        ("{a.c}", "'a.c' leads nowhere: {'b': '7'} has no 'c'; it has b"),
        ("{turns[2]}", "'turns[2]' leads nowhere: [1, 2] has no '2'; it has 2 items"),
        ("{turns[-3]}", "'turns[-3]' leads nowhere: [1, 2] has no '-3'; it has 2 items"),
        ("{turns[x]}", "'turns[x]' leads nowhere: [1, 2] has no 'x'; it has 2 items"),
        ("{a.b.c}", "'a.b.c' leads nowhere: '7' has no 'c'"),
        ("{n.x}", "'n.x' leads nowhere: None is null"),
        ("{a}", "'a' is {'b': '7'}; expected text or a number"),
        ("{turns.append}", "'turns.append' leads nowhere: [1, 2] has no 'append'"),
    ],
)
def test_a_place_that_leads_nowhere_says_where_the_way_ends(template, message):
    with pytest.raises(ValueError) as caught:
        fill(rows_of({"a": {"b": "7"}, "turns": [1, 2], "n": None}), template, "answer")
    assert str(caught.value).split("\n")[1].startswith(f"  train.jsonl:1: {message}")


def test_a_column_or_a_place_in_one_is_taken_as_it_is():
    rows = rows_of({"a.b": [1], "c": {"d": ["x", None]}}, {"a.b": None, "c": {"d": "y"}})
    assert column(rows, "c[d]", "response") == [["x", None], "y"]
    assert column(rows, "a.b", "response") == [[1], None]
    with pytest.raises(
        ValueError, match="1 row: the response column 'c\\[d\\]' cannot be read\n  train.jsonl:1: .* leads nowhere"
    ):
        column(rows_of({"c": {"e": 1}}), "c[d]", "response")
    with pytest.raises(ValueError, match="needs column 'f'"):
        column(rows, "f[d]", "response")


def test_a_missing_column_is_named_with_those_present_and_the_nearest():
    with pytest.raises(ValueError) as caught:
        fill(rows_of({"Question": "a", "Answer": 1}, {"Question": "b", "Answer": 2}), "{Qestion}", "question")
    assert str(caught.value) == (
        "train.jsonl:1: the question template '{Qestion}' needs column 'Qestion'; present: Answer, Question;"
        " did you mean 'Question'? (2 in all)"
    )


def test_bad_answers_are_counted_and_the_first_five_listed():
    bad = [None, True, [1], float("nan"), {}, "", None]
    with pytest.raises(ValueError) as caught:
        fill(rows_of({"answer": 1}, *({"answer": value} for value in bad)), "{answer}", "answer")
    lines = str(caught.value).split("\n")
    assert lines[0] == "7 rows: the answer template '{answer}' does not fit"
    assert lines[1] == "  train.jsonl:2: 'answer' is None; expected text or a number"
    assert lines[4] == "  train.jsonl:5: 'answer' is nan; expected a finite number"
    assert lines[5].startswith("  train.jsonl:6") and lines[6:] == ["  and 2 more"]


def test_a_format_that_does_not_fit_the_value_names_the_row():
    with pytest.raises(ValueError, match="train.jsonl:2: Unknown format code 'g'"):
        fill(rows_of({"n": 1.0}, {"n": "two"}), "{n:g}", "answer")


def test_a_column_that_some_rows_lack_is_named_with_the_rows():
    with pytest.raises(ValueError) as caught:
        fill(rows_of({"q": "a", "answer": 1}, {"q": "b"}), "{answer}", "answer")
    assert str(caught.value).split("\n")[1] == "  train.jsonl:2: 'answer' leads nowhere: {'q': 'b'} has no 'answer'; it has q"


def said(*turns):
    return [{"role": role, "content": content} for role, content in turns]


def test_a_list_of_messages_is_a_question():
    single, chat = said(("user", "1 + 2")), said(("system", "be brief"), ("user", "2"), ("assistant", "3"), ("user", "4"))
    asked = fill_questions(rows_of({"p": single}, {"p": chat}, {"p": "text"}, {"p": [{**single[0], "name": None}]}), "{p}")
    assert asked == ["1 + 2", tuple(chat), "text", "1 + 2"]
    assert [text_of(question) for question in asked] == ["1 + 2", "2\n3\n4", "text", "1 + 2"]
    assert fill_questions(rows_of({"a": {"p": single}}), "{a.p}") == ["1 + 2"]


@pytest.mark.parametrize(
    ("messages", "message"),
    [
        ([], "the messages are of nobody; expected user and assistant in turn, the user last"),
        (said(("system", "a")), "the messages are of system; expected user"),
        (said(("user", "a"), ("assistant", "b")), "the messages are of user, assistant; expected user and assistant in turn"),
        (said(("user", "a"), ("user", "b")), "the messages are of user, user; expected"),
        (said(("user", "a"), ("system", "b"), ("user", "c")), "the messages are of user, system, user; expected"),
        (said(("tool", "a")), "found {'role': 'tool', 'content': 'a'}; expected a list of messages"),
        (said(("user", " ")), "the user message is blank"),
        ([{"role": "user", "content": [{"text": "a"}]}], "found {'role': 'user', 'content': [{'text': 'a'}]}; expected a list"),
        ([{"role": "user"}], "found {'role': 'user'}; expected a list"),
        ([{"role": "user", "content": "a", "tool_calls": [1]}], "found {'role': 'user'"),
        (["a"], "found 'a'; expected a list of messages"),
    ],
)
def test_a_list_that_is_no_prompt_is_refused_with_its_row(messages, message):
    with pytest.raises(ValueError) as caught:
        fill_questions(rows_of({"p": "good"}, {"p": messages}), "{p}")
    assert str(caught.value).split("\n")[1].startswith(f"  train.jsonl:2: {message}")


@pytest.mark.parametrize("template", ["{", "{}", "no column", "{n:{width}}", "{0}", "{n[}", "{n[0}", "{n..x}", "{.n}", "{n]}"])
def test_a_malformed_template_is_refused(template):
    with pytest.raises(ValueError, match="answer"):
        fill(rows_of({"n": 1}), template, "answer")
