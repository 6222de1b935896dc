"""The GPU benchmark, as far as it runs without a GPU: its parts at tiny shapes, and what becomes of one that goes wrong."""

import inspect
import json
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest
import torch
from transformers import AutoTokenizer

from cluster.run import launch
from learner.algorithms.table import TABLE
from rollout.leftovers import running
from tests.learner import ranks

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
sys.path.append(str(BENCHMARKS))

import gpu  # noqa: E402
import gpu_exact  # noqa: E402
import gpu_runs  # noqa: E402
import gpu_shapes  # noqa: E402
import gpu_speed  # noqa: E402

pytestmark = pytest.mark.slow

MACHINE = {"gpus": 1, "gpu": "none, in a test"}


@pytest.fixture(autouse=True)
def one_thread():
    """Several, for operations this small, wait for each other."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def test_without_a_gpu_it_says_so_and_exits_2_before_anything_heavy_is_imported(tmp_path):
    if torch.cuda.is_available():
        pytest.skip("here is a GPU")
    code = (
        "import gpu, sys; code = gpu.main(sys.argv[1:]); print(code, *{'torch', 'ray', 'vllm', 'pydantic'} & set(sys.modules))"
    )
    command = [sys.executable, "-c", code, "--out", str(tmp_path / "gpu.json")]
    done = subprocess.run(command, cwd=BENCHMARKS, capture_output=True, text=True, timeout=60)
    assert done.stdout.split() == ["2"] and "no GPU" in done.stderr
    assert not list(tmp_path.iterdir())


def part(function: str, deadline_s: float = 60, **more) -> gpu.Part:
    return gpu.Part(name=function, function=f"tests.gpu_parts:{function}", expected_s=0, deadline_s=deadline_s, **more)


def test_what_goes_wrong_in_one_part_takes_nothing_from_the_others_and_leaves_nothing_behind(tmp_path, capsys):
    parts = [
        part("raises"), part("crashes"), part("wrong"), part("hangs", 8, arguments={"pid_file": str(tmp_path / "pid")}),
        part("well"),
    ]  # fmt: skip
    assert gpu.measure(parts, MACHINE, 5, tmp_path / "gpu.json", {"earlier": {"passed": True}}) == 1
    report = json.loads((tmp_path / "gpu.json").read_text())
    assert [(name, result["passed"]) for name, result in report.items()] == [
        ("earlier", True), ("raises", False), ("crashes", False), ("wrong", False), ("hangs", False), ("well", True),
    ]  # fmt: skip
    for each in parts:
        assert report[each.name]["lines"][0] == {"name": "one", "passed": True, "text": "right", "figures": {"x": 1.5}}
        assert report[each.name]["on"] == MACHINE
    ends = {name: result["lines"][-1]["text"] for name, result in report.items() if name != "earlier"}
    assert ends == {
        "raises": "exit 1", "crashes": "exit -6", "wrong": "wrong", "hangs": "killed after 8 s", "well": "does not fit",
    }  # fmt: skip
    assert report["raises"]["logs"]["part.log"][-1] == "RuntimeError: no kernel image"
    assert not running(int((tmp_path / "pid").read_text()))
    printed = capsys.readouterr().out
    assert "FAIL    hangs end: killed after 8 s" in printed and "NOT RUN well two: does not fit" in printed
    assert printed.splitlines()[-1] == "gpu: FAIL; failed: raises, crashes, wrong, hangs; not run: none"


def test_what_the_machine_or_the_time_does_not_give_is_not_run_and_has_not_passed(tmp_path, capsys):
    lacking = [part("well", gpus=2), part("well", modules=("no_such_module",))]
    late = gpu.Part(name="late", function="tests.gpu_parts:well", expected_s=400, deadline_s=500)
    assert gpu.measure(lacking, MACHINE, 5, tmp_path / "gpu.json", {}) == 0
    assert gpu.measure([*lacking, late], MACHINE, 5, tmp_path / "gpu.json", {}) == 1
    report = json.loads((tmp_path / "gpu.json").read_text())
    assert {result["passed"] for result in report.values()} == {None}
    printed = capsys.readouterr().out
    assert "NOT RUN well start: needs 2 GPUs, and there is 1" in printed
    assert "NOT RUN well start: there is no no_such_module" in printed
    assert "s were left, and it takes 400" in printed and "gpu: INCOMPLETE; failed: none; not run: well, well, late" in printed


def test_every_part_can_be_called_and_they_fit_the_eight_minutes():
    for each in gpu.PARTS:
        module, _, name = each.function.partition(":")
        inspect.signature(getattr(import_module(module), name)).bind(**each.arguments)
        assert each.arguments.get("shape", "tiny") in gpu_shapes.SHAPES
    assert sum(each.expected_s for each in gpu.PARTS if each.gpus == 1) <= 8 * 60


def test_speed_is_measured_and_what_is_too_large_is_said_to_be(monkeypatch):
    assert gpu_speed.matmul_peak(torch.device("cpu"), size=16) > 0
    cards = {"H100 80GB HBM3": 989, "H100 PCIe": 756, "H200": 989, "A100-SXM4-80GB": 312, "GB200": 2450, "L40S": 362, "L40": 0}
    assert {card: (gpu_speed.nominal_peak(f"NVIDIA {card}") or 0) / 1e12 for card in cards} == cards
    monkeypatch.setattr(gpu_speed, "matmul_peak", lambda device: 1e12)
    lines = list(gpu_speed.speed("tiny", tokens=(16, 64)))
    assert [line.passed for line in lines] == [True, True]
    assert all(0 < line.figures["share_of_peak"] < 1 for line in lines)

    def full(*_):
        raise torch.OutOfMemoryError("tried to allocate 20 GiB\nmore")

    monkeypatch.setattr(gpu_speed.Trainer, "step", full)
    (line,) = gpu_speed.speed("tiny", tokens=(16,))
    assert (line.passed, line.text) == (None, "does not fit: tried to allocate 20 GiB")


def test_the_operations_of_an_update_by_hand():
    policy = gpu_speed.PolicyModel(gpu_shapes.build("tiny", torch.float32, torch.device("cpu")), chunk=64)
    queries, keys, mlp, norms = 64 * 64, 64 * 64, 3 * 64 * 128, 2 * 64
    layers = 2 * (queries + 2 * keys + 64 * 64 + mlp + norms)
    positions, trained, seen = 4 * 16, 4 * 14, 4 * 16 * 17 / 2
    expected = 6 * layers * positions + 6 * 512 * 64 * trained + 12 * 2 * 64 * seen
    assert gpu_speed.operations(policy, gpu_speed.batch_of(512, 16, torch.device("cpu"))) == expected


def test_the_learner_agrees_with_float64_and_an_error_would_be_seen(monkeypatch):
    for module in (gpu_exact, ranks):
        monkeypatch.setattr(module, "TABLE", {name: TABLE[name] for name in ("sft", "ppo")})
    small = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2}
    lines = list(gpu_exact.exact(**small))
    assert [(line.name, line.passed) for line in lines] == [
        *[("FSDP2", True), ("logprobs", True), ("gradients", True)] * 2, ("checkpoint", True),
    ]  # fmt: skip
    errors = lines[2].figures["errors"]
    assert {"sft policy", "ppo policy", "ppo critic", "outcome_model x 1", "process_model x 3"} <= errors.keys()
    assert 0 < max(errors.values()) < 1e-5
    right = {"a": torch.tensor([1.0, -4.0]), "b": torch.zeros(2)}
    assert gpu_exact.relative(right, {name: x.double() for name, x in right.items()}) == 0
    assert gpu_exact.relative({**right, "a": torch.tensor([1.0, -4.5])}, right) == 0.125
    assert gpu_exact.relative({"a": right["a"]}, right) == float("inf")


def test_a_written_model_speaks_the_task_and_has_a_word_for_every_token(tmp_path):
    gpu_shapes.write(tmp_path, "tiny", torch.device("cpu"))
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    assert len(tokenizer) == gpu_shapes.SHAPES["tiny"]["vocab_size"]
    text = "12 + 7 - 3\n#### 16"
    assert tokenizer.decode(tokenizer(text).input_ids[1:]) == text
    assert tokenizer.decode([511, 5]) == "<511>" + tokenizer.decode([5])


def finished(monkeypatch, digests, mismatch=1e-4, transport="ipc"):
    """A run's end without the run: what it wrote and returned."""
    asked = []

    def train(config, stop):
        asked.append(config)
        config.output.mkdir(parents=True)
        phases = {f"seconds_{phase}": 1.0 for phase in ("generate", "score", "train", "sync")}
        row = {"stage": "grpo", "canary_mean": 1e-5, "mismatch_mean": mismatch, "mismatch_p99": 1e-3, "reward": 0.5, **phases}
        (config.output / "metrics.jsonl").write_text("".join(json.dumps({"step": i, **row}) + "\n" for i in (1, 2)))
        actors = {"rollout-0": {"device": "cuda", "transport": transport}, "learner-0": {"device": "cuda"}}
        versions = {str(i): digest for i, digest in enumerate(digests)}
        return {"actors": actors, "versions": versions, "seconds": {"start": 40.0}, "tokens_per_second": 1000.0}

    monkeypatch.setattr(launch, "train", train)
    return asked


def test_a_run_passes_by_new_weights_at_every_step_and_agreement(monkeypatch):
    asked = finished(monkeypatch, ["a", "b"])
    (line,) = gpu_runs.quickstart("ipc", steps=2)
    assert line.passed and "mismatch 0.0001" in line.text and asked[0].rollout.transport == "ipc"
    for how in ({"digests": ["a", "a"]}, {"digests": ["a"]}, {"digests": ["a", "b"], "mismatch": 0.01}):
        finished(monkeypatch, **how)
        (line,) = gpu_runs.quickstart("ipc", steps=2)
        assert not line.passed
    asked = finished(monkeypatch, ["a", "b"], mismatch=0.01)
    (line,) = gpu_runs.random_policy("tiny", steps=2, overrides=["rollout.sleep=true"])
    assert line.passed and "asleep" in line.text
    assert [stage.algorithm for stage in asked[0].stages] == ["grpo"] and asked[0].rollout.sleep
    finished(monkeypatch, ["a", "b"], transport="shm")
    assert not next(gpu_runs.random_policy("tiny", "ipc", steps=2)).passed
