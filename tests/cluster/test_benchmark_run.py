"""`cohort evaluate` on real workers: every generation stored, a killed run goes on, other settings are refused."""

import json
import signal
import subprocess
import time

import pytest

from cluster.benchmark_run import summarise
from cluster.metrics import read_jsonl
from rollout.benchmarks import BENCHMARKS
from rollout.tasks import items, make_small_llama
from tests.cluster.clusters import COHORT
from tests.cluster.test_cli import invoke


def row(ordinal, marks, extras=None, asked=None):
    outputs = [
        {
            "index": i, "text": str(mark), "extracted": str(mark), "value": str(mark), "correct": mark == "7", "reason": "",
            "status": "score", "tokens": 3 + i, "finish_reason": "length" if i else "stop",
        }
        for i, mark in enumerate(marks)
    ]  # fmt: skip
    names = {"id": f"f:{ordinal}", "ordinal": ordinal, "question": "same", "gold": "7"}
    return names | {"extras": extras or {}, "asked": asked or len(marks), "outputs": outputs}


def test_figures_and_breakdown_worked_by_hand():
    rows = [row(0, "78", {"level": 2}), row(1, "77", {"level": 10}), row(2, "8", {"level": 2}, asked=2)]
    found = summarise(rows, [1, 2], ("level", "subject"))
    assert (found["rows"], found["responses"], found["missing"]) == (3, 5, 1)
    assert found["accuracy"] == pytest.approx(3 / 5) and found["tokens"] == pytest.approx((3 + 4 + 3 + 4 + 3) / 5)
    assert found["pass_at_k"] == pytest.approx({1: (0.5 + 1 + 0) / 3, 2: 1.0})
    assert list(found["breakdown"]) == ["level"] and list(found["breakdown"]["level"]) == ["2", "10"]
    assert found["breakdown"]["level"]["2"]["accuracy"] == pytest.approx(1 / 3)
    assert found["breakdown"]["level"]["2"]["questions"] == 2 and found["truncated"] == pytest.approx(2 / 5)


def test_the_prompts_are_the_papers():
    assert BENCHMARKS["math"].instruction["cot"] == r"Please reason step by step, and put your final answer within \boxed{}."
    assert BENCHMARKS["cmath"].instruction["cot"] == r"请通过逐步推理来解答问题，并把最终答案放置于\boxed{}中。"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--benchmark", "gsm9k", "--data", "x.jsonl"), "did you mean 'gsm8k'?"),
        (("--benchmark", "gsm8k"), "Missing option '--data'"),
        (("--benchmark", "gsm8k", "--data", "x.jsonl", "--k", "4", "--temperature", "0"), "expected a temperature above 0"),
        (("--benchmark", "gsm8k", "--data", "x.jsonl", "--mode", "cott"), "did you mean 'cot'?"),
        (("rollout.wrkers=2", "--benchmark", "gsm8k", "--data", "x.jsonl"), "did you mean 'workers'?"),
    ],
)
def test_wrong_input_is_told_before_anything_starts(tmp_path, arguments, message):
    done = invoke("evaluate", tmp_path, *arguments)
    assert done.exit_code == 2 and message in done.output


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A small model and a file with 40 questions that it can read."""
    here = tmp_path_factory.mktemp("benchmark")
    make_small_llama(here / "model", 0)
    rows = [{"question": x.question, "answer": x.answer, "level": i % 2} for i, x in enumerate(items("b", 40, True))]
    (here / "data.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    return here


def command(place, *more):
    settings = ['data.prompt.suffix=""', "rollout.max_new_tokens=16", "data.max_prompt_tokens=32", "rollout.kv_cache_gb=0.25"]
    options = ["--benchmark", "gsm8k", "--data", place / "data.jsonl", "--k", "1,2", "--out", place / "out", "--json"]
    return [str(x) for x in (COHORT, "evaluate", place / "model", *settings, *options, *more)]


@pytest.mark.cluster
@pytest.mark.timeout(600)
def test_a_killed_evaluation_goes_on_and_ends_with_what_an_unbroken_one_has(place, monkeypatch):
    driver = subprocess.Popen(command(place), start_new_session=True, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    until = time.monotonic() + 240
    stored = place / "out" / "generations.jsonl"
    while not (stored.exists() and stored.read_text()) and driver.poll() is None and time.monotonic() < until:
        time.sleep(0.05)
    driver.send_signal(signal.SIGTERM)
    driver.wait(timeout=120)
    # As a kill in the middle of a write leaves it: some whole rows, and a part of one.
    rows = read_jsonl(stored)
    kept = "".join(json.dumps(r) + "\n" for r in rows[:12])
    stored.write_text(kept + json.dumps(rows[12])[:50])
    done = subprocess.run(command(place), capture_output=True, text=True, timeout=400, check=True)
    found = json.loads(done.stdout)
    rows = read_jsonl(stored)
    assert sorted(r["ordinal"] for r in rows) == list(range(40)) and all(len(r["outputs"]) == 2 for r in rows)
    assert stored.read_text().startswith(kept) and found["rows"] == 40 and found["responses"] == 80
    assert (place / "out" / "at_k.png").stat().st_size > 1000
    assert json.loads((place / "out" / "results.json").read_text()) == found
    again = subprocess.run(command(place), capture_output=True, text=True, timeout=100, check=True)
    assert json.loads(again.stdout) == found, "nothing is left to do"
    other = subprocess.run(command(place, "--temperature", "0.3"), capture_output=True, text=True, timeout=100)
    assert other.returncode == 2 and "evaluation.temperature: 0.7 -> 0.3" in other.stderr
