"""The self-test finds judges and data that a run must not start with."""

import time
from dataclasses import replace

import pytest

from reward.config import RewardConfig
from reward.judging.judges import Function, rule_pool
from reward.judging.selftest import Report, self_test, try_function, try_rule
from tests.reward.builders import judge_here, question

QUESTIONS = [question(i, gold) for i, gold in enumerate(["7", "#### 8", "1/2", "7.0", r"\boxed{\sqrt{2}}"])]


def found(questions=QUESTIONS, form="hash", judge=judge_here):
    findings = Report()
    try_rule(questions, RewardConfig(answer_format=form), judge, findings)
    return findings


@pytest.mark.parametrize("form", ["hash", "boxed", "auto"])
def test_good_data_and_a_good_judge_pass(form):
    assert found(form=form).problems == []
    assert found(form=form).facts == ["the judge: 5 reference answers are right, 20 wrong answers are wrong"]


@pytest.mark.parametrize("form", ["hash", "boxed", "auto", "answer-is"])
@pytest.mark.parametrize(
    "golds",
    [
        ["1:00", "5:00", "12:00"], ["146 (apples)", "9（个）", "7.74 (dollars)"], ["A", "B", "D"],
        ["(A) Paris", "(C) Bonn", "B. Rome"],
        ["AB", "ACD"], ["3:2", "1:2:3"], ["2023-05-01", "May 2, 2023"], ["三棱柱", "三个"], ["1.2.3", "1.2.4"],
        ["10-15", "5-10"],
        ["12.5 N", "300 K"], ["twelve", "two thirds"],
    ],
)  # fmt: skip
def test_references_of_every_kind_pass(golds, form):
    assert found([question(i, gold) for i, gold in enumerate(golds)], form).problems == []


def test_a_format_that_cannot_state_the_references_is_found():
    (problem,) = found([*QUESTIONS, question(5, "(1, 2)")], form="last-number").problems
    assert problem.startswith("1 question: the reference answer itself is not judged right") and "q:5" in problem


def test_references_without_a_value_are_named():
    bad = [question(i, "who knows") for i in range(7)]
    problems = found([*QUESTIONS, *bad]).problems
    assert problems[0].startswith("7 questions: the reference answer itself") and "and 2 more" in problems[0]
    assert "q:0, answer 'who knows'" in problems[0]


def changed(judge_one):
    def judge(rows):
        outcomes = judge_here(rows)
        return [o if (v := judge_one(row)) is None else _with(o, v) for row, o in zip(rows, outcomes, strict=True)]

    return judge


def _with(outcome, correct):
    from dataclasses import replace

    return replace(outcome, value=outcome.value | {"correct": correct})


@pytest.mark.parametrize(
    ("judge_one", "what"),
    [
        (lambda row: True if not row["output"] else None, "no output is not judged wrong"),
        (lambda row: True if row["gold"][-1] in row["output"] else None, "a list of candidates is not judged wrong"),
        (lambda row: row["gold"] in row["output"], "the right answer in the reasoning, another one stated is not judged wrong"),
        (lambda row: False, "the reference answer itself is not judged right"),
        (lambda row: True, "another question's answer is not judged wrong"),
    ],
)
def test_judges_that_can_be_fooled_are_found(judge_one, what):
    assert any(what in problem for problem in found(judge=changed(judge_one)).problems)


def test_a_judge_that_changes_its_mind_is_found():
    turns = iter(range(10**6))
    problems = found(judge=changed(lambda row: next(turns) % 3 > 0 if row["output"] else None)).problems
    assert any("the judge does not say the same twice" in problem for problem in problems)


def tried(function, **config):
    findings = Report()
    try_function(
        QUESTIONS[:3], RewardConfig().model_copy(update=config), Function(judge=changed_into(function)), judge_here, findings
    )
    return findings


def changed_into(function):
    from reward.judging.pool import Outcome

    return lambda rows: [Outcome(status="score", value=function(row), reason="", seconds=0.0) for row in rows]


def test_a_function_is_tried_for_its_components_and_for_saying_the_same_twice():
    good = tried(lambda row: {"length": float(len(row["output"]))})
    assert (good.problems, good.warnings) == ([], []) and good.facts == ["reward.function: length, tried on 3 questions"]
    turns = iter(range(100))
    assert "does not say the same twice" in tried(lambda row: {"a": float(next(turns))}).problems[0]
    assert "expected those of reward.weights, b" in tried(lambda row: {"a": 1.0}, weights={"b": 1.0}).problems[0]
    mixed = tried(lambda row: {"a": 1.0} if row["output"] else {"b": 1.0})
    assert "a; or b; expected the same for every output" in mixed.problems[0]
    assert tried(lambda row: {"a": 1.0}).warnings == ["reward.function gives the reference answers what it gives empty outputs"]


@pytest.mark.slow
def test_in_pools_of_its_own(tmp_path):
    def problems(**config):
        report, asked = Report(), RewardConfig(**config)
        with rule_pool(asked) as rule:
            self_test(QUESTIONS, asked, rule, report)
        return report.problems

    assert problems() == []
    file = tmp_path / "mine.py"
    file.write_text("def score(output):\n    return 1 / len(output)\n")
    (problem,) = problems(function=f"{file}:score")
    assert "gives no score to an empty output" in problem and "ZeroDivisionError" in problem
    (problem,) = problems(function=f"{file}:scroe")
    assert "cannot be loaded" in problem and "scroe" in problem


def of_file(tmp_path, code, questions=QUESTIONS, **config):
    """The report on a reward function, as `check` makes it."""
    report, file = Report(), tmp_path / "mine.py"
    file.write_text(code)
    asked = RewardConfig(function=f"{file}:score", **config)
    self_test(questions, asked, judge_here, report)
    return report


def test_an_exception_is_named_first_and_its_traceback_shown_once(tmp_path):
    code = "def score(output):\n    def deep(n):\n        return deep(n - 1) if n else {}['price']\n    return deep(30)\n"
    (problem,) = of_file(tmp_path, code, judges=3).problems
    first, *rows = problem.splitlines()
    assert first == "3 questions: reward.function gives no score"
    assert [row.rpartition(": ")[2] for row in rows[:3]] == ["'price'"] * 3 and all("KeyError" in row for row in rows[:3])
    assert problem.count("Traceback") == 1 and problem.rstrip().endswith("KeyError: 'price'")
    (problem,) = of_file(tmp_path, "import no_such_module\n").problems
    assert "cannot be loaded:\nModuleNotFoundError: No module named 'no_such_module'\n" in problem


def test_a_function_that_hangs_is_told_after_the_first_row(tmp_path):
    many = [question(i, str(i)) for i in range(400)]
    began = time.monotonic()
    (problem,) = of_file(tmp_path, "import time\ndef score(output):\n    time.sleep(1000)\n", many, judge_seconds=1).problems
    assert time.monotonic() - began < 30
    assert problem.startswith("1 question: reward.function gives no score\n  q:0") and "no answer within 1 s" in problem


@pytest.mark.slow
def test_a_slow_function_is_tried_on_as_many_questions_as_there_is_time_for(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr("reward.judging.selftest.TRIAL_SECONDS", 1.5)
    monkeypatch.setattr("reward.judging.selftest.PROGRESS_SECONDS", 0.3)
    code = "import time\ndef score(output):\n    time.sleep(0.05)\n    return float(len(output))\n"
    with caplog.at_level("INFO", "cohort"):
        report = of_file(tmp_path, code, [question(i, str(i)) for i in range(400)])
    count = int(report.facts[0].split()[4])
    assert report.problems == [] and 1 < count < 200, report.facts
    assert any("tried on" in line and "of 400 questions" in line for line in caplog.messages)


def test_columns_that_are_missing_are_named_with_those_there_are(tmp_path):
    rows = [replace(question(i, str(i)), columns={"level": i, "subject": "x"}) for i in range(4)]
    code = "def score(output, levle, subject, weight=1):\n    print('seen', subject)\n    return len(output)\n"
    (problem,) = of_file(tmp_path, code, rows).problems
    assert problem == (
        "reward.function: parameter 'levle': no such column in 4 of 4 rows, the first q:0; expected question, output, gold "
        "or a column: level, subject; did you mean 'level'?"
    )
    report = of_file(tmp_path, code.replace("levle", "level"), rows)
    assert report.problems == [] and report.facts[0].startswith("reward.function: score, tried on 4")
    assert report.facts[1].splitlines()[:2] == ["reward.function prints (in a run, to RUN/logs):", "  seen x"]
    del rows[2].columns["level"]
    assert "in 1 of 4 rows, the first q:2" in of_file(tmp_path, code.replace("levle", "level"), rows).problems[0]


@pytest.mark.parametrize(
    ("line", "hint"),
    [
        ("os.environ['COHORT_TEST_KEY']", "reward.environment: [COHORT_TEST_KEY]"),
        ("socket.create_connection(('127.0.0.1', 9), 1)", "reward.network: true"),
        ("socket.getaddrinfo('example.invalid', 80)", "reward.network: true"),
    ],
)
def test_what_a_function_was_not_given_is_pointed_out(tmp_path, monkeypatch, line, hint):
    monkeypatch.setenv("COHORT_TEST_KEY", "x")
    (problem,) = of_file(tmp_path, f"import os, socket\ndef score(output):\n    {line}\n").problems
    assert hint in problem
