"""A stage's teacher before a run: whether it reads the policy's tokens, and what it takes."""

import json
import shutil
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file, save_file

from cluster.config.run_config import load
from cluster.planning import memory
from cluster.planning.fit import Cluster
from cluster.planning.plan import Planner
from cluster.planning.workload import workload_of
from tests.cluster.test_plan import H100, LENGTHS, recipe  # noqa: F401
from tests.cluster.test_planning import QWEN_7B, SMOLLM2, shape  # noqa: F401
from tests.cluster.test_preflight import report  # noqa: F401

pytestmark = pytest.mark.slow


@pytest.fixture
def taught(report, tmp_path, tiny_model_dir):  # noqa: F811
    """The report on the tiny model with a copy of it as the teacher, whose config and tokenizer are changed."""

    def check_changed(words=(), rows=None, ends=(2, 3), row="algorithm: distill", **changes):
        shutil.copytree(tiny_model_dir, tmp_path / "teacher", dirs_exist_ok=True)
        path, weights = tmp_path / "teacher/config.json", tmp_path / "teacher/model.safetensors"
        if rows is not None:
            changes, tensors = {"vocab_size": rows}, load_file(weights)
            outer = {name: x for name, x in tensors.items() if "embed" in name or "lm_head" in name}
            wider = {name: torch.cat([x, x])[:rows].clone() for name, x in outer.items()}
            save_file(tensors | wider, weights, metadata={"format": "pt"})
        path.write_text(json.dumps(json.loads(path.read_text()) | {"eos_token_id": ends[-1]} | changes))
        path.with_name("generation_config.json").write_text(json.dumps({"eos_token_id": ends}))
        for name in ("tokenizer.json", "tokenizer_config.json"):
            text = (tiny_model_dir / name).read_text()
            for old, new in words:
                text = text.replace(old, new)
            path.with_name(name).write_text(text)
        rows = [{"question": f"1 + w{i}", "answer": str(i + 1)} for i in range(40)]
        (tmp_path / "q.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        stage = f"{row}, teacher: teacher, steps: 1, questions_per_step: 1, optimizer: {{learning_rate: 0.1}}"
        data = "data={questions: {file: q.jsonl}, prompt: {template: plain}, hold_out: 16, max_prompt_tokens: 270}"
        return report(f"model={{path: {tiny_model_dir}}}", data, f"stages=[{{{stage}}}]")

    return check_changed


def test_a_teacher_is_checked_as_the_model_is_and_must_read_the_same_tokens(taught, tmp_path):
    found = taught()
    assert found.problems == [] and any(fact.startswith("stages.0.teacher: ") for fact in found.facts)
    (problem,) = taught(words=[('"w7"', '"x7"')]).problems
    ids = "'w7' is none there and 24 in the policy's; expected the policy's tokenizer"
    assert problem == f"stages.0.teacher: its tokenizer has other ids for 2 tokens: {ids}"
    (warning,) = taught(ends=[2, 9]).warnings
    assert warning.startswith(
        "stages.0.teacher: tokens [3] end an output of the policy, and [2, 9] one of the teacher's; expected"
    )
    (problem,) = taught(ends=[9], words=[('"eos_token": "</s>"', '"eos_token": "w7"')]).problems
    assert problem.startswith("stages.0.teacher: tokens [2, 3] end an output of the policy, and [9, 24] one of the teacher's")
    (problem,) = taught(max_position_embeddings=300).problems
    assert problem.startswith("stages.0.teacher: its sequences have up to 300 tokens; expected 310, a prompt with its output")
    (problem,) = taught(quantization_config={"quant_method": "fp8"}).problems
    assert problem.startswith(f"stages.0.teacher: {tmp_path}/teacher: config.json: the weights are quantised")
    (problem,) = taught(vocab_size=99).problems
    assert problem.startswith(f"stages.0.teacher: {tmp_path}/teacher: the files do not hold") and "otherwise shaped" in problem


def test_a_teachers_head_may_have_more_rows_and_not_fewer(taught):
    assert taught(rows=104).problems == []
    (problem,) = taught(rows=98).problems
    assert problem == "stages.0.teacher: its head has 98 rows and the policy's 100; expected at least as many"


def test_a_position_has_more_tokens_than_are_told_apart(taught):
    assert taught(row="algorithm: distill_top_k, weighting: {k: 99}").problems == []
    (problem,) = taught(row="algorithm: distill_top_k, weighting: {k: 100}").problems
    assert problem == "stages.0.weighting.k: found 100; expected less than the model's 100 tokens"


def test_a_teacher_that_is_not_there_is_named_with_its_key(report, tmp_path):  # noqa: F811
    stage = "algorithm: distill, steps: 1, questions_per_step: 1, optimizer: {learning_rate: 0.1}"
    (problem,) = report(f"stages.1={{{stage}, teacher: runs/sft/policy}}").problems
    assert problem.startswith(
        f"stages.1.teacher: {tmp_path}/runs/sft/policy: found no config.json; expected a Hugging Face model"
    )
    assert problem.endswith("makes it (deploy/recipes)")


def test_a_teacher_is_planned_with_its_own_size(recipe, shape, tmp_path):  # noqa: F811
    (tmp_path / "teacher").mkdir()
    (tmp_path / "teacher/config.json").write_text(json.dumps(QWEN_7B))
    stage = "algorithm: distill, steps: 9, questions_per_step: 32, samples_per_question: 8, optimizer: {learning_rate: 0.1}"
    asked = recipe(SMOLLM2, f"stages.1={{{stage}, teacher: {tmp_path}/teacher}}", "learner.ranks=2")
    config = load(asked[0], asked[1:])
    found = workload_of(config, config.stages[1], LENGTHS)
    assert found.teacher == shape(QWEN_7B) and (found.reads, found.reference) == (0, False)
    top_k = load(asked[0], [*asked[1:], "stages.1.algorithm=distill_top_k"])
    assert workload_of(top_k, top_k.stages[1], LENGTHS).reads == 1, "the policy's likeliest tokens"
    alone, taught = (memory.learner(shape(SMOLLM2), work, 2) for work in (replace(found, teacher=None), found))
    assert taught["teacher"] == 2 * 7_615_616_512 / 2 and alone["teacher"] == 0
    assert taught["gathered"] > 4 * alone["gathered"], "its layers are the larger ones"
    cluster = Cluster(device=H100, per_node=8)
    alone, taught = (Planner(shape(SMOLLM2), work, cluster).training(2) for work in (replace(found, teacher=None), found))
    read = Planner(shape(QWEN_7B), replace(found, teacher=None, reads=1), cluster).training(2)
    read -= Planner(shape(QWEN_7B), replace(found, teacher=None, reads=0), cluster).training(2)
    assert taught - alone == pytest.approx(read) and read > 0
