"""`cohort score` as a user runs it: exit codes, the JSON object, the file it writes."""

import json
from contextlib import nullcontext
from pathlib import Path
from typing import get_type_hints

import pytest

from cluster.cli import judging
from cluster.cli.ends import home
from cluster.cli.main import app
from cluster.records.metrics import read_jsonl
from cluster.records.samples import sample_rows, write_rows
from reward.judging.pool import Outcome
from reward.types import ScoredGroup, without_score
from rollout.types import FinishReason, Question, Sample
from tests.cluster.test_cli import invoke

ROWS = [
    {"q": "1+1", "r": ["the answer is 2", "#### 3"], "g": 2, "s": [1, 0.5]},
    {"q": "1+3", "r": ["#### 4", "\\boxed{4}"], "g": "4", "s": [0, 0]},
]
NAMES = ("--question", "q", "--response", "r", "--gold", "g")


def output(text, index):
    return Sample(
        ordinal=3, group_id="grpo/3", index=index, attempt=0, prompt_ids=(1,), output_ids=(2,), sampled_mask=(True,),
        logprobs=(-1.0,), text=text, versions=((0, 0),), finish_reason=FinishReason.STOP,
    )  # fmt: skip


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "stored.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    return path


def test_stored_responses_are_scored_as_one_json_object_and_a_row_for_each_row(file, tmp_path):
    done = invoke("score", file, *NAMES, "--score-field", "s", "--json", "--out", tmp_path / "out.jsonl", "--judges", 1)
    assert done.exit_code == 0, done.output
    found = json.loads(done.stdout)
    assert (found["rows"], found["responses"], found["accuracy"], found["unscorable"], found["error"]) == (2, 4, 0.75, 0, 0)
    assert found["pass_at_k"] == {"1": 0.75, "2": 1.0} and found["rm_at_k"] == {"1": 0.75, "2": 1.0}
    assert found["maj_at_k"] == {"1": 0.75, "2": 1.0}
    written = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert [row["scores"] for row in written] == [[1, 0], [1, 1]]
    assert [row["extracted"] for row in written] == [["2", "3"], ["4", "4"]]


def test_a_home_is_found_where_the_shell_did_not(file, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    done = invoke("score", f"~/{file.name}", *NAMES, "--json", "--out=~/out.jsonl", "--judges", 1)
    assert done.exit_code == 0 and (tmp_path / "out.jsonl").exists() and not Path("~").exists(), done.output


def test_the_paths_of_all_commands_are_expanded():
    commands = [*app.registered_commands, *judging.app.registered_commands]
    hints = [hint for c in commands for hint in get_type_hints(c.callback, include_extras=True).values()]
    paths = [hint.__metadata__[0] for hint in hints if "Path" in str(getattr(hint, "__origin__", ""))]
    assert len(paths) >= 12 and all(each.callback is home for each in paths)


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
    assert json.loads(done.stdout)["accuracy"] == 0.5, "it counts as wrong"


def test_the_rows_of_a_runs_samples_are_read_as_they_are(tmp_path):
    asked = Question(ordinal=3, id="f:1", text="1 + 1", gold="2", prompt_ids=(1,))
    batch = [without_score(output(f"#### {2 + i % 2}", i), "killed", "it was") for i in range(4)]
    write_rows(tmp_path / "step_3.jsonl", sample_rows([ScoredGroup(question=asked, scored=tuple(batch))], {"0": 0}))
    done = invoke("score", tmp_path / "step_3.jsonl", "--json", "--judges", 1)
    found = json.loads(done.stdout)
    assert (found["rows"], found["questions"], found["accuracy"], found["pass_at_k"]["2"]) == (4, 1, 0.5, pytest.approx(5 / 6))
    (row, *_) = read_jsonl(tmp_path / "step_3.jsonl")
    assert (row["id"], row["verdict"], row["reason"], row["fate"]) == ("f:1", "killed", "it was", "dropped")


def test_a_judge_that_fails_too_often_ends_with_3_and_says_so(file, monkeypatch):
    killed = Outcome(status="killed", value=None, reason="killed: no answer within 10 s", seconds=10.0)
    monkeypatch.setattr("reward.judging.judges.rule_pool", lambda config: nullcontext(lambda rows: [killed] * len(rows)))
    done = invoke("score", file, *NAMES, "--json")
    assert done.exit_code == 3 and "4 without a score, the first at" in done.output and "no answer within 10 s" in done.output
    assert "the judge failed on 4 of 4 responses" in done.output and json.loads(done.stdout)["accuracy"] == 0.0


@pytest.mark.slow
def test_how_responses_are_read_is_an_option_of_the_names_in_a_recipe(file):
    file.write_text(json.dumps({"q": "1", "r": "<mull>#### 7", "g": "7"}) + "\n")
    tags = ("--reading", "reasoning_tags=[[<mull>, </mull>]]")
    for extra, accuracy in (((), 1.0), (tags, 0.0)):
        done = invoke("score", file, *NAMES, "--json", "--judges", 1, *extra)
        assert json.loads(done.stdout)["accuracy"] == accuracy
    for wrong, message in (("reasoning_tgs=[]", "did you mean 'reasoning_tags'?"), ("end_marks=7", "found 7")):
        done = invoke("score", file, *NAMES, "--reading", wrong)
        assert done.exit_code == 2 and message in done.output, done.output
