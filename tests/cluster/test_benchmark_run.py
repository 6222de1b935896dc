"""`cohort evaluate` on real workers: every generation stored, a killed run goes on, other settings are refused."""

import json
import os
import signal
import subprocess
from collections import Counter
from contextlib import nullcontext

import psutil
import pytest

from cluster.records.metrics import read_jsonl
from cluster.run import benchmark_run
from cluster.run.benchmark_run import summarise
from reward.config import RewardConfig
from reward.scorer import RuleScorer
from rollout.data.benchmarks import BENCHMARKS
from rollout.tasks.arithmetic import items, make_small_llama
from rollout.types import Group
from tests.cluster.clusters import COHORT, until
from tests.cluster.outside import look_from_outside
from tests.cluster.test_cli import invoke
from tests.cluster.test_evaluation import sample
from tests.reward.builders import judge_here


def row(ordinal, marks, extras=None):
    outputs = [
        {
            "index": i, "text": str(mark), "extracted": str(mark), "value": str(mark), "correct": mark == "7", "reason": "",
            "status": "score", "tokens": 3 + i, "finish_reason": "length" if i else "stop",
        }
        for i, mark in enumerate(marks)
    ]  # fmt: skip
    names = {"id": f"f:{ordinal}", "ordinal": ordinal, "question": "same", "gold": "7"}
    return names | {"extras": extras or {}, "outputs": outputs}


def test_figures_and_breakdown_worked_by_hand():
    rows = [row(0, "78", {"level": 2}), row(1, "77", {"level": 10}), row(2, "8", {"level": 2})]
    found = summarise(rows, [1, 2], ("level", "subject"))
    assert (found["rows"], found["responses"], found["rejected"]) == (3, 5, 0)
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


def test_a_file_of_another_benchmark_is_one_error_and_leaves_nothing(tmp_path):
    make_small_llama(tmp_path / "model", 0)
    (tmp_path / "gsm8k.jsonl").write_text('{"question": "1 + 1", "answer": "#### 2"}\n')
    out = tmp_path / "out"
    done = invoke("evaluate", tmp_path / "model", "--benchmark", "math", "--data", tmp_path / "gsm8k.jsonl", "--out", out)
    assert done.exit_code == 2 and not out.exists()
    assert done.output.count("\n") == 1 and "--question" in done.output
    assert "needs column 'problem'; present: answer, question" in done.output


class Slots:
    """One engine that answers every question with `#### 1`, unless it is to be rejected, and the rule."""

    rejected, lives = frozenset(), Counter()

    def slots(self):
        return [0]

    def allowed_s(self, waves):
        return 610.0

    def generate(self, waves, sampling, name, each, failed):
        for x in waves[0]:
            each(x, self._group(x, "NaN" if x.question.ordinal in self.rejected else ""))
        return {}

    def _group(self, lease, why):
        return Group(question=lease.question, samples=tuple(sample(lease, i, "#### 1", why) for i in lease.indices))

    def reward_slots(self):
        return [0]

    def score(self, parts, by, name):
        return {0: RuleScorer(RewardConfig(answer_format="auto"), judge_here).score(parts[0])}, {}


@pytest.fixture
def slots(monkeypatch):
    """`evaluate_benchmark` without Ray and engines."""
    here = Slots()
    monkeypatch.setattr(benchmark_run, "started", lambda *_: nullcontext(here))
    return here


def test_accuracy_is_broken_down_by_the_fields_of_the_questions_own_row(tmp_path, slots):
    make_small_llama(tmp_path / "model", 0)
    golds = ["no number", "1", "see below", "1", "2"]
    rows = [{"problem": f"{i} + 1", "answer": gold, "level": f"Level {i}"} for i, gold in enumerate(golds)]
    (tmp_path / "math.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    options = ("--benchmark", "math", "--data", tmp_path / "math.jsonl", "--out", tmp_path / "out", "--json")
    settings = ('data.prompt.suffix=""', "data.max_prompt_tokens=32", "data.drop_unjudgeable=true")
    done = invoke("evaluate", tmp_path / "model", *settings, *options)
    assert done.exit_code == 0, done.output
    parts = json.loads((tmp_path / "out" / "results.json").read_text())["breakdown"]["level"]
    assert {level: part["accuracy"] for level, part in parts.items()} == {"Level 1": 1.0, "Level 3": 1.0, "Level 4": 0.0}


@pytest.mark.parametrize(("rejected", "code"), [({0, 1}, 0), (set(range(20)), 3)])
def test_an_output_without_a_verdict_counts_as_wrong_and_too_many_end_with_3(tmp_path, slots, rejected, code):
    make_small_llama(tmp_path / "model", 0)
    (tmp_path / "gsm8k.jsonl").write_text('{"question": "1 + 0", "answer": "1"}\n' * 20)
    slots.rejected = rejected
    options = ("--benchmark", "gsm8k", "--data", tmp_path / "gsm8k.jsonl", "--out", tmp_path / "out")
    done = invoke("evaluate", tmp_path / "model", 'data.prompt.suffix=""', "data.max_prompt_tokens=32", *options)
    assert done.exit_code == code, done.output
    if code:
        assert "20 of 20 outputs have no score (20 rejected)" in done.output and "NaN" in done.output
        assert not (tmp_path / "out" / "results.json").exists()
        return
    found = json.loads((tmp_path / "out" / "results.json").read_text())
    assert (found["responses"], found["rejected"], found["accuracy"]) == (20, 2, 0.9)
    assert "rejected" in done.output and "2, count as wrong" in done.output


def test_an_evaluation_is_not_lost_for_want_of_a_picture(tmp_path, slots, monkeypatch, caplog):
    make_small_llama(tmp_path / "model", 0)
    (tmp_path / "gsm8k.jsonl").write_text('{"question": "1 + 0", "answer": "1"}\n' * 2)
    monkeypatch.setattr("cluster.records.report.plot_at_k", lambda *_: (tmp_path / "no font").read_text())
    options = ("--benchmark", "gsm8k", "--data", tmp_path / "gsm8k.jsonl", "--k", "1,2", "--out", tmp_path / "out")
    done = invoke("evaluate", tmp_path / "model", 'data.prompt.suffix=""', "data.max_prompt_tokens=32", *options)
    assert done.exit_code == 0 and "accuracy" in done.output, done.output
    assert f"{tmp_path / 'out' / 'at_k.png'} cannot be written" in caplog.text and "no font" in caplog.text


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A small model and a file with 40 questions that it can read."""
    here = tmp_path_factory.mktemp("benchmark")
    make_small_llama(here / "model", 0)
    rows = [{"question": x.question, "answer": x.answer, "level": i % 2} for i, x in enumerate(items("b", 40, True))]
    (here / "data.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    return here


def asked(folder):
    settings = ['data.prompt.suffix=""', "rollout.max_new_tokens=16", "data.max_prompt_tokens=32", "rollout.kv_cache_gb=0.25"]
    options = ["--benchmark", "gsm8k", "--data", folder / "data.jsonl", "--k", "1,2", "--out", folder / "out", "--json"]
    return [str(x) for x in ("evaluate", folder / "model", *settings, *options)]


@pytest.mark.cluster
@pytest.mark.timeout(600)
def test_a_killed_evaluation_goes_on_and_ends_with_what_an_unbroken_one_has(folder, tmp_path):
    command, stored = [COHORT, *asked(folder)], folder / "out" / "generations.jsonl"
    driver = subprocess.Popen(command, start_new_session=True, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    until(lambda: (stored.exists() and stored.read_text()) or driver.poll() is not None, 240, "a generation", every=0.05)
    driver.send_signal(signal.SIGSTOP)
    try:
        private = look_from_outside(driver, tmp_path)
        apart = {p.name(): os.getpgid(p.pid) != driver.pid for p in psutil.Process(driver.pid).children()}
    finally:
        os.killpg(driver.pid, signal.SIGTERM)
        driver.send_signal(signal.SIGCONT)
    driver.wait(timeout=120)
    assert not private.exists()
    assert apart["raylet"] and apart["gcs_server"], "Ray ends with the driver, not with its group"
    # As a kill in the middle of a write leaves it: some whole rows, and a part of one.
    rows = read_jsonl(stored)
    kept = "".join(json.dumps(r) + "\n" for r in rows[:12])
    stored.write_text(kept + json.dumps(rows[12])[:50])
    done = subprocess.run(command, capture_output=True, text=True, timeout=400, check=True)
    found = json.loads(done.stdout)
    rows = read_jsonl(stored)
    assert sorted(r["ordinal"] for r in rows) == list(range(40)) and all(len(r["outputs"]) == 2 for r in rows)
    assert stored.read_text().startswith(kept) and found["rows"] == 40 and found["responses"] == 80
    assert (folder / "out" / "at_k.png").stat().st_size > 1000
    assert json.loads((folder / "out" / "results.json").read_text()) == found
    again = invoke(*asked(folder))
    assert again.exit_code == 0 and json.loads(again.stdout) == found, "nothing is left to do"
    other = invoke(*asked(folder), "--temperature", "0.3")
    assert other.exit_code == 2 and "evaluation.temperature: 0.7 -> 0.3" in other.stderr


@pytest.mark.slow
def test_another_file_or_another_model_in_the_same_place_is_not_gone_on_with(tmp_path, slots):
    make_small_llama(tmp_path / "model", 0)
    file, out = tmp_path / "q.jsonl", tmp_path / "out"
    file.write_text('{"question": "1 + 0", "answer": "#### 1"}\n')
    settings = ('data.prompt.suffix=""', "data.max_prompt_tokens=32")
    asked = ("evaluate", tmp_path / "model", *settings, "--benchmark", "gsm8k", "--data", file, "--out", out)
    assert invoke(*asked).exit_code == 0 and invoke(*asked).exit_code == 0
    make_small_llama(tmp_path / "model", 1)
    done = invoke(*asked)
    assert done.exit_code == 2 and f"model.path: {tmp_path}/model/model.safetensors has changed" in done.output
    make_small_llama(tmp_path / "model", 0)
    file.write_text('{"question": "1 + 0", "answer": "#### 2"}\n')
    done = invoke(*asked)
    assert done.exit_code == 2 and f"data.questions: {file} has changed since the run began" in done.output
