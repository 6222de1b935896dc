"""`cohort check` on data in the layouts that people have."""

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from cluster.cli.main import app
from rollout.tasks.arithmetic import make_small_llama

pytestmark = pytest.mark.slow

CASES = Path(__file__).parents[2].parent / "shared/cases/data"
RECIPE = """\
name: case
model: {path: model}
data: {questions: {file: data.jsonl}, hold_out: 3, max_prompt_tokens: 200}
rollout: {max_new_tokens: 40}
stages:
  - {algorithm: grpo, reward: rule, steps: 1, questions_per_step: 2, samples_per_question: 2, optimizer: {learning_rate: 1e-4}}
"""
VERL = ["data.questions.question={prompt}", "data.questions.answer={reward_model.ground_truth}"]
DROP = "data.drop_unjudgeable=true"


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """Knows every printable character; its chat template puts one message behind the other."""
    directory = tmp_path_factory.mktemp("model")
    make_small_llama(directory, 0, "small-llama-code")
    return directory


@pytest.fixture
def checked(model, tmp_path, monkeypatch):
    """(exit code, what is printed, errors) of `cohort check` on a file."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "case.yaml").write_text(RECIPE)

    def check(file, *overrides):
        arguments = ["check", "case.yaml", f"model.path={model}", f"data.questions.file={file}", *overrides]
        done = CliRunner().invoke(app, arguments)
        return done.exit_code, done.stdout, done.stderr

    return check


def case(name):
    if not (CASES / name).exists():
        pytest.skip("the shared cases are not beside the project")
    return CASES / name


def rows(*changes, count=8):
    """Rows of sums, some of them changed: {row: columns}."""
    made = [{"question": f"{n} + 1?", "answer": str(n + 1)} for n in range(count)]
    for place, columns in changes:
        made[place] = {key: value for key, value in (made[place] | columns).items() if value is not ...}
    return made


def written(made, name="data.jsonl"):
    path = Path(name).absolute()
    path.write_text("".join(json.dumps(row) + "\n" for row in made))
    return path


@pytest.mark.parametrize(
    ("name", "overrides", "found", "prompt"),
    [
        ("verl.parquet", VERL, "21 to train on, 3 held out", "'<bos>What is "),
        ("verl_sys.parquet", VERL, "21 to train on, 3 held out", "'<bos>You are a careful solver.\\nWhat is "),
        ("array.jsonl", [], "21 to train on, 3 held out", "'<bos>What is "),
        ("times.jsonl", [], "21 to train on, 3 held out", "'<bos>What is "),
        ("unit_paren.jsonl", [], "21 to train on, 3 held out", "'<bos>What is "),
        ("none.jsonl", [DROP], "16 to train on, 3 held out", "'<bos>What is "),
        ("blankgold.jsonl", [DROP], "20 to train on, 3 held out", "'<bos>What is "),
    ],
)
def test_the_files_that_people_have_are_read(checked, name, overrides, found, prompt):
    code, out, errors = checked(case(name), *overrides)
    assert (code, "error" in errors) == (0, False), errors
    assert f"questions: {found}" in out and f": {prompt}" in out


@pytest.mark.parametrize(("name", "count", "line"), [("none.jsonl", 5, ":1: 'answer' is None"), ("blankgold.jsonl", 1, ":5: ")])
def test_absent_answers_of_the_shared_cases_are_counted(checked, name, count, line):
    code, _, errors = checked(case(name))
    assert code == 2 and f"error: {count} row" in errors and f"{name}{line}" in errors and DROP.replace("=", ": ") in errors
    assert f"warning: {count} questions are left out" in checked(case(name), DROP)[2]


ABSENT = ((1, {"answer": None}), (2, {"answer": ""}), (4, {"answer": "  "}), (5, {"answer": ...}), (7, {"answer": "no number"}))


def test_absent_answers_are_refused_by_line_or_dropped_and_counted(checked):
    path = written(rows(*ABSENT, count=12))
    code, _, errors = checked(path)
    lines = [f"  {path}:{n}" for n in (2, 3, 5, 6)]
    assert code == 2 and errors.count("\n  ") == 4 and all(line in errors for line in lines)
    assert f"error: 4 rows: the answer template '{{answer}}' does not fit; {DROP.replace('=', ': ')} leaves" in errors
    code, out, errors = checked(path, DROP)
    assert code == 0 and "questions: 4 to train on, 3 held out" in out
    assert "5 questions are left out: their reference answer is absent or cannot be judged" in errors
    code, _, errors = checked(written([row | {"answer": None} for row in rows()]), DROP)
    assert code == 2 and "error: 8 rows: the answer template" in errors
    code, _, errors = checked(written([{"question": row["question"]} for row in rows()]), DROP)
    assert code == 2 and "needs column 'answer'; present: question (8 in all)" in errors


def test_messages_texts_and_system_messages_mix_in_one_file(checked):
    made = rows(count=12)
    for n, row in enumerate(made):
        user = {"role": "user", "content": row["question"]}
        system = {"role": "system", "content": "Be brief."}
        row["question"] = [[user], [system, user], row["question"]][n % 3]
    path = written(made, "mixed.json")
    code, out, errors = checked(path, "data.prompt.suffix=Why?")
    assert code == 0 and "questions: 9 to train on, 3 held out" in out
    assert "error" not in errors and "warning" not in errors
    code, _, errors = checked(path, "data.prompt.template=plain")
    assert code == 2 and "error: 4 rows: cannot be put into tokens" in errors
    assert f"{path}:2: the prompt has messages of system, user, and the plain form has one of the user" in errors


def test_a_prompt_with_text_beside_its_messages_is_refused_with_the_form_that_works(checked):
    path = written([row | {"p": [{"role": "user", "content": row["question"]}]} for row in rows()])
    code, _, errors = checked(path, "data.questions.question=Q: {p}")
    assert code == 2 and "'p' is [{'role': 'user'" in errors and "expected text or a number, such as {p[-1][content]}" in errors
    assert checked(path, "data.questions.question=Q: {p[-1][content]}")[0] == 0
