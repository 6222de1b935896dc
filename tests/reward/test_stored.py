"""Stored responses: read, judged and summed up, against figures worked by hand."""

import json
import math

import pytest

from reward.config import RewardConfig
from reward.judging.stored import StoredRow, judge_stored, measures, read
from reward.statistics.figures import WITHOUT, Judged, accuracy
from tests.reward.builders import judge_here

COLUMNS = {"question": "q", "response": "r", "gold": "g", "score": None}


def written(path, *rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def judged(rows, form="auto"):
    counted = []
    found = judge_stored(rows, judge_here, RewardConfig(answer_format=form), counted.append)
    assert sum(counted) == sum(x is not None for row in rows for x in row.responses)
    return found


def test_one_response_or_a_list_a_row_of_jsonl_and_of_parquet(tmp_path):
    import pyarrow
    from pyarrow import parquet

    single = written(tmp_path / "a.jsonl", {"q": "1+1", "r": "#### 2", "g": 2}, {"q": "1+2", "r": 3, "g": 3.0})
    assert [(row.responses, row.gold) for row in read(single, **COLUMNS)] == [(("#### 2",), "2"), (("3",), "3.0")]
    parquet.write_table(
        pyarrow.table({"q": ["1+1"], "r": [["#### 2", None]], "s": [[0.5, 1]], "g": ["2"]}), tmp_path / "b.parquet"
    )
    (row,) = read(tmp_path / "b.parquet", **(COLUMNS | {"score": "s"}))
    assert row.responses == ("#### 2", None) and row.scores == (0.5, 1.0) and row.where.endswith("b.parquet:1")


@pytest.mark.parametrize(
    ("row", "columns", "message"),
    [
        ({"q": "x", "r": "y"}, {}, r"a.jsonl:1: the gold template '{g}' needs column 'g'"),
        ({"q": "x", "r": "y", "g": None}, {}, "a.jsonl:1: 'g' is None"),
        ({"q": "x", "r": [], "g": "1"}, {}, "a.jsonl:1: 'r' is an empty list"),
        ({"q": "x", "r": [{}], "g": "1"}, {}, "a.jsonl:1: 'r' has {}, expected text"),
        ({"q": "x", "r": ["y"], "g": "1", "s": [1, 2]}, {"score": "s"}, "a.jsonl:1: 2 scores for 1 responses"),
        ({"q": "x", "r": ["y"], "g": "1", "s": ["1"]}, {"score": "s"}, "a.jsonl:1: 's' has '1', expected a finite number"),
        ({"q": "x", "rr": ["y"], "g": "1"}, {}, "needs column 'r'; present: g, q, rr; did you mean 'rr'"),
    ],
)
def test_rows_that_cannot_be_used_are_named(tmp_path, row, columns, message):
    with pytest.raises(ValueError) as refused:
        read(written(tmp_path / "a.jsonl", row), **(COLUMNS | columns))
    assert message in str(refused.value)


def rows(*items):
    return [
        StoredRow(where=f"f:{i}", question=q, gold="7", responses=tuple(responses), scores=scores)
        for i, (q, responses, scores) in enumerate(items)
    ]


def test_figures_worked_by_hand():
    given = rows(("a", ["7", "8", "7.0", None], (3, 2, 1, 9)), ("b", ["6", "7"], (1, 0)))
    found = measures(given, judged(given))
    assert (found["rows"], found["questions"], found["responses"], found["missing"], found["unscorable"]) == (2, 2, 6, 1, 0)
    assert found["accuracy"] == pytest.approx(3 / 6)
    assert found["pass_at_k"] == pytest.approx({1: (2 / 4 + 1 / 2) / 2, 2: (5 / 6 + 1) / 2, 4: 1.0})
    # a: of (7, 8), (7, 7.0), (8, 7.0) the first of a tie wins, and none with the missing one; b: 6 comes first.
    assert found["maj_at_k"] == pytest.approx({1: (2 / 4 + 1 / 2) / 2, 2: (2 / 6 + 0) / 2, 4: 0.0})
    # a: the best of (3, 2), (3, 1), (2, 1) is right, right, wrong, the missing one above all; b: the wrong one scores higher.
    assert found["rm_at_k"] == pytest.approx({1: (2 / 4 + 1 / 2) / 2, 2: (2 / 6 + 0) / 2, 4: 0.0})


def test_rows_of_one_question_are_one_question_and_ks_can_be_chosen():
    given = rows(("a", ["7"], None), ("b", ["8"], None), ("a", ["8"], None))
    found = measures(given, judged(given), [2, 64])
    assert found["questions"] == 2 and found["pass_at_k"] == {2: 1.0} and found["rm_at_k"] == {}


def test_what_has_no_verdict_is_counted_and_wrong_but_where_the_reference_has_no_value():
    (row,) = rows(("a", ["7"] * 4, None))
    right = Judged(correct=True, extracted="7", value="7", status="score", reason="")
    lost = {s: Judged(correct=None, extracted=None, value=None, status=s, reason="why") for s in WITHOUT}
    found = measures([row], [[right, lost["error"], lost["killed"], lost["unscorable"]]])
    assert {s: found[s] for s in WITHOUT} == {"rejected": 0, "unscorable": 1, "killed": 1, "error": 1, "missing": 0}
    assert found["accuracy"] == pytest.approx(1 / 3) and found["pass_at_k"] == pytest.approx({1: 1 / 3, 2: 2 / 3})
    nothing = measures([row], [[lost["unscorable"]] * 4])
    assert nothing["accuracy"] is None and nothing["pass_at_k"] == {}


def test_a_reference_without_a_value_makes_its_responses_unscorable():
    row = StoredRow(where="f:1", question="a", gold="seven or so", responses=("#### 7",), scores=None)
    ((one,),) = judged([row])
    assert one.correct is None and one.extracted == "7" and "seven or so" in one.reason


def marked(*marks):
    """The accuracy of outputs, by question, that are right or not."""
    known = {"extracted": None, "value": None, "status": "score", "reason": ""}
    return accuracy([[Judged(correct=mark, **known) for mark in group] for group in marks])


def test_unequal_rows_do_not_change_an_average_and_the_interval_is_over_questions():
    marks = [[True, False, True], [False], [True, True]]
    found = marked(*marks)
    assert found.share == pytest.approx(4 / 6) == marked(*marks[::-1]).share
    share = 4 / 6
    error = math.sqrt(((2 - 3 * share) ** 2 + share**2 + (2 - 2 * share) ** 2) * 3 / 2) / 6
    assert found.interval == pytest.approx([max(0, share - 1.96 * error), min(1, share + 1.96 * error)])
    alone = marked(*[[True]] * 30, *[[False]] * 70).interval
    assert alone == pytest.approx([0.3 - 1.96 * math.sqrt(0.21 / 99), 0.3 + 1.96 * math.sqrt(0.21 / 99)])
    assert marked(*[[True]] * 10).interval == pytest.approx([0.722, 1], abs=1e-3)
    for n in range(2, 60):
        low, high = marked(*[[False]] * n).interval
        assert f"{low:.3f}" == "0.000" and high == pytest.approx(1.96**2 / (n + 1.96**2)), "not -0.000"
    assert marked([True]).interval is None and marked() is None
