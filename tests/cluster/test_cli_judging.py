"""`cohort score` as a user runs it: exit codes, the JSON object, the file it writes."""

import json

import pytest

from tests.cluster.test_cli import invoke

ROWS = [
    {"q": "1+1", "r": ["the answer is 2", "#### 3"], "g": 2, "s": [1, 0.5]},
    {"q": "1+3", "r": ["#### 4", "\\boxed{4}"], "g": "4", "s": [0, 0]},
]
NAMES = ("--question", "q", "--response", "r", "--gold", "g")


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "stored.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    return path


def test_stored_responses_are_scored_as_one_json_object_and_a_row_for_each_row(file, tmp_path):
    done = invoke("score", file, *NAMES, "--score-field", "s", "--json", "--out", tmp_path / "out.jsonl", "--judges", 1)
    assert done.exit_code == 0, done.output
    found = json.loads(done.stdout)
    assert (found["rows"], found["responses"], found["accuracy"], found["unscorable"], found["errors"]) == (2, 4, 0.75, 0, 0)
    assert found["pass_at_k"] == {"1": 0.75, "2": 1.0} and found["rm_at_k"] == {"1": 0.75, "2": 1.0}
    assert found["maj_at_k"] == {"1": 0.75, "2": 1.0}
    written = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert [row["scores"] for row in written] == [[1, 0], [1, 1]]
    assert [row["extracted"] for row in written] == [["2", "3"], ["4", "4"]]


def test_the_convention_is_what_was_asked_for_and_a_table_is_for_people(file):
    done = invoke("score", file, *NAMES, "--answer-format", "hash", "--judges", 1)
    assert done.exit_code == 0 and "accuracy" in done.stdout and "0.250" in done.stdout and "pass@2" in done.stdout


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (("--gold", "gg"), "did you mean 'g'?"),
        (("--answer-format", "bxed"), "did you mean 'boxed'?"),
        (("--k", "1,x"), "expected positive numbers such as 1,8,64"),
        (("--score-field", "r"), "expected a finite number"),
    ],
)
def test_wrong_input_ends_with_2(file, wrong, message):
    done = invoke("score", file, *NAMES, *wrong)
    assert done.exit_code == 2 and message in done.output


def test_a_response_without_a_score_is_warned_of_with_its_place(file):
    file.write_text(json.dumps({"q": "1", "r": ["7", None], "g": "7"}) + "\n")
    done = invoke("score", file, *NAMES, "--json", "--judges", 1)
    assert done.exit_code == 0 and f"first at {file}:1: the response is missing" in done.output


def test_how_responses_are_read_is_an_option_of_the_names_in_a_recipe(file):
    file.write_text(json.dumps({"q": "1", "r": "<mull>#### 7", "g": "7"}) + "\n")
    tags = ("--reading", "reasoning_tags=[[<mull>, </mull>]]")
    for extra, accuracy in (((), 1.0), (tags, 0.0)):
        done = invoke("score", file, *NAMES, "--json", "--judges", 1, *extra)
        assert json.loads(done.stdout)["accuracy"] == accuracy
    for wrong, message in (("reasoning_tgs=[]", "did you mean 'reasoning_tags'?"), ("end_marks=7", "found 7")):
        done = invoke("score", file, *NAMES, "--reading", wrong)
        assert done.exit_code == 2 and message in done.output, done.output
