import json
import shutil
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file
from transformers import AutoTokenizer

from cluster.config.run_config import load
from cluster.run.preflight import check
from rollout.config import SourceConfig
from rollout.tasks.arithmetic import make_small_llama

pytestmark = pytest.mark.slow

QUICKSTART = Path(__file__).parents[2] / "deploy/recipes/quickstart.yaml"
SMALL = [
    "data.questions.rows=64",
    "data.demonstrations.rows=32",
    "data.hold_out=16",
    "evaluation.questions=16",
    "stages.sft.questions_per_step=16",
]


@pytest.fixture
def report(tmp_path, monkeypatch):
    """The report on the quickstart with small data and the given overrides."""
    monkeypatch.chdir(tmp_path)
    return lambda *overrides: check(load(QUICKSTART, [*SMALL, *overrides]))


def test_a_good_recipe_has_no_problem_and_its_arithmetic_is_shown(report, tmp_path):
    found = report("stages.grpo.steps=3", "stages.grpo.updates_per_batch=2")
    assert (found.problems, found.warnings) == ([], [])
    text = "\n".join(found.facts)
    assert "stage grpo: 3 steps x 16 questions x 16 outputs = 256 outputs a step, 6 updates in all" in text
    assert "questions: 64 to train on, 16 held out" in text
    assert "prompt of chained-arithmetic/questions:" in text and "'<bos>" in text
    assert list(tmp_path.iterdir()) == [], "a check leaves nothing behind"


def test_a_task_with_fewer_questions_than_its_default_number_is_said_to_give_them_all(report):
    found = report("data.questions={task: chained-arithmetic, operations: 1}", "data.hold_out=null")
    assert found.problems == []
    assert "data.questions: all 233 questions of chained-arithmetic that are not held out" in found.facts
    assert any(fact.startswith("questions: 233 to train on, 37 held out") for fact in found.facts)


def test_a_run_directory_that_holds_something_is_refused(report, tmp_path):
    (tmp_path / "runs/quickstart").mkdir(parents=True)
    (tmp_path / "runs/quickstart/config.yaml").touch()
    (problem,) = report().problems
    assert problem.startswith(f"output: {tmp_path}/runs/quickstart is not empty; expected a new directory, or `cohort resume")


def test_a_run_directory_that_cannot_be_made_is_refused(report, tmp_path):
    (tmp_path / "file").touch()
    assert report("output=file").problems == [f"output: {tmp_path}/file is a file; expected a directory"]
    assert report("output=file/run").problems[0].startswith(f"output: {tmp_path}/file/run cannot be made")


def test_a_run_directory_that_goes_with_its_job_is_refused(report, tmp_path):
    (problem,) = report(f"output={tmp_path}/runtime_resources/working_dir_files/_ray_pkg_1/run").problems
    assert "in Ray's copy of the job's working directory" in problem and problem.endswith("expected an absolute path")


def test_sequences_longer_than_the_model_takes_are_refused_and_equality_passes(report):
    assert report("data.max_prompt_tokens=160", "rollout.max_new_tokens=96").problems == []
    (problem,) = report("data.max_prompt_tokens=161", "rollout.max_new_tokens=96").problems
    assert problem == "data.max_prompt_tokens 161 + rollout.max_new_tokens 96 = 257; expected at most the model's 256"


def test_an_adapter_is_counted_and_one_that_the_model_has_no_place_for_is_refused_by_name(report):
    lora = "learner.lora={rank: 4, targets: [q_proj, down_proj]}"
    assert "learner.lora: an adapter of rank 4 with" in "\n".join(report(lora).facts)
    (problem,) = report("learner.lora={targets: [q_proj, wq]}").problems
    names = "down_proj, gate_proj, k_proj, o_proj, q_proj, up_proj, v_proj"
    assert problem == f"learner.lora.targets: wq is not in LlamaForCausalLM; expected some of {names}"


def test_a_step_larger_than_the_data_is_a_warning(report):
    (warning,) = report("stages.sft.questions_per_step=33").warnings
    assert warning == "stage sft: a step takes 33 of 32 rows, some of them twice"


def test_checkpoints_that_do_not_fit_on_the_disk_are_refused(report):
    (problem,) = report("keep_checkpoints=1000000000").problems
    assert problem.startswith("checkpoints: ") and problem.endswith("expected room for them")


def test_demonstrations_without_the_asked_form_are_a_warning(report):
    (warning,) = report("reward.answer_format=boxed").warnings
    assert warning == "0% of 32 demonstrations state an answer as reward.answer_format: boxed asks"


def test_a_model_directory_that_is_none_is_named_with_the_way_to_make_one(report, tmp_path):
    (problem,) = report("model={path: models/absent}").problems
    assert problem.startswith(
        f"model.path: {tmp_path}/models/absent: found no config.json; expected a Hugging Face model directory; `cohort"
    )
    (tmp_path / "half").mkdir()
    (tmp_path / "half/config.json").write_text("{}")
    (problem,) = report("model={path: half}").problems
    assert problem.startswith(f"model.path: {tmp_path}/half: found no .safetensors file")


def test_what_ends_an_output_is_shown_and_a_template_that_does_not_say_is_refused(report, tmp_path, tiny_model_dir):
    shutil.copytree(tiny_model_dir, tmp_path / "model")
    question = "data.prompt.template=chat"
    tokenizer = AutoTokenizer.from_pretrained(tiny_model_dir)
    (tmp_path / "q.jsonl").write_text('{"question": "1 + 1", "answer": "2"}\n{"question": "1 + 2", "answer": "3"}\n')
    asked = ["model={path: model}", "data.questions={file: q.jsonl}", "data.demonstrations=null", "data.hold_out=1"]
    stage = "algorithm: grpo, reward: rule, steps: 1, questions_per_step: 1, samples_per_question: 2"
    asked += [f"stages=[{{{stage}, optimizer: {{learning_rate: 0.1}}}}]"]
    tokenizer.chat_template = "{% for message in messages %}{{ message['content'] }} w7 {% endfor %}"
    tokenizer.save_pretrained("model")
    (problem,) = report(*asked, question).problems
    assert "no control token behind an assistant's words" in problem
    tokenizer.add_special_tokens({"additional_special_tokens": ["w7"]})
    tokenizer.save_pretrained("model")
    assert "an output ends with any of: '</s>' (2), '<end>' (3), 'w7' (24)" in report(*asked, question).facts
    (tmp_path / "model/generation_config.json").write_text('{"eos_token_id": 4000}')
    (problem,) = report(*asked, question).problems
    assert "token 4000 is declared to end an output, and the model knows 100" in problem


@pytest.fixture
def given(report, tmp_path, tiny_model_dir):
    """The report on a copy of the tiny model with a changed config, asked in the plain form."""

    def check_changed(*overrides, without=(), **changes):
        shutil.copytree(tiny_model_dir, tmp_path / "model", dirs_exist_ok=True)
        tensors = {name: x for name, x in load_file(tiny_model_dir / "model.safetensors").items() if name not in without}
        save_file(tensors, tmp_path / "model/model.safetensors", metadata={"format": "pt"})
        path = tmp_path / "model/config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | changes))
        rows = [{"question": f"1 + w{i}", "answer": str(i + 1)} for i in range(40)]
        (tmp_path / "q.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        stage = "algorithm: grpo, reward: rule, steps: 1, questions_per_step: 1, samples_per_question: 2"
        asked = [
            "model={path: model}",
            "data={questions: {file: q.jsonl}, prompt: {template: plain}, hold_out: 16, max_prompt_tokens: 270}",
        ]
        return report(*asked, f"stages=[{{{stage}, optimizer: {{learning_rate: 0.1}}}}]", *overrides)

    return check_changed


def test_what_the_config_tells_of_a_model_is_told_before_a_start(given):
    assert given().problems == []
    cut = {
        "rope_parameters": {"rope_type": "longrope", "rope_theta": 1e4, "short_factor": [1.0] * 16, "long_factor": [2.0] * 16}
    }
    cut["rope_parameters"]["original_max_position_embeddings"] = 300
    for changes, problem in (
        ({"layer_types": ["full_attention", "linear_attention"]}, "layer_types has linear_attention; supported are dense"),
        ({"attention_dropout": 0.1}, "attention_dropout is 0.1"),
        ({"quantization_config": {"quant_method": "fp8"}}, "quantised"),
        ({"num_experts": 8}, "num_experts is 8, a mixture of experts"),
        ({"model_type": "llamma"}, "llamma"),
    ):
        (found,) = given(**changes).problems
        assert found.startswith("model.path: ") and problem in found and found.endswith("docs/models.md")
    assert [p for p in given(**cut).problems if "expected at most 300" in p] == given(**cut).problems != []
    assert given("data.max_prompt_tokens=100", "rollout.max_new_tokens=200", **cut).problems == []


def test_a_dense_family_that_no_test_has_trained_is_a_warning(given):
    assert [warning for warning in given().warnings if "no test" in warning] == []
    (warning,) = (warning for warning in given(model_type="ministral").warnings if "no test" in warning)
    assert warning.endswith("model: no test has trained a ministral model; docs/models.md lists those")


def test_heads_divide_among_the_ranks_and_have_a_size_that_a_cpu_engine_knows(given):
    assert given("rollout.tensor_parallel_size=2").problems == [], "one key-value head is held by both"
    (problem,) = (p for p in given("rollout.tensor_parallel_size=3").problems if "tensor" in p)
    assert problem == "rollout.tensor_parallel_size: 3 does not divide the model's 2 attention heads"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("cluster.run.preflight_model.CPU_HEAD_SIZES", (64,))
        (problem,) = given().problems
        assert problem == "model.path: attention heads of size 32; vLLM on the CPU has kernels for 64"
        patch.setenv("RAY_ADDRESS", "elsewhere:1")
        assert given().problems == [], "the cluster may have GPUs"


def test_a_model_directory_with_a_tensor_left_out_is_refused(given):
    (problem,) = given(without=["model.layers.0.mlp.up_proj.weight"]).problems
    assert problem.endswith("the tensors of LlamaForCausalLM: missing: model.layers.0.mlp.up_proj.weight")


def test_a_missing_export_is_named_with_the_run_that_it_comes_from(report, tmp_path):
    (problem,) = report("model={path: runs/sft/policy}").problems
    run = tmp_path / "runs/sft"
    assert problem.endswith(f"`cohort train sft.yaml && cohort export {run} {run}/policy` makes it (deploy/recipes)")
    run.mkdir(parents=True)
    (run / "config.yaml").touch()
    (problem,) = report("model={path: runs/sft/policy}").problems
    assert problem.endswith(f"`cohort export {run} {run}/policy` makes it from the run's checkpoint")


def test_a_model_that_guesses_has_the_policys_tokens_and_is_counted(report, tmp_path, tiny_model_dir):
    make_small_llama(tmp_path / "draft", 7, "small-llama")
    alone, guessed = report(), report("rollout.speculative={model: draft}")
    assert guessed.problems == [] and "rollout.speculative.model: 2.4 M parameters, which stay as they are" in guessed.facts
    assert [fact for fact in alone.facts if fact.startswith("memory")] != [f for f in guessed.facts if f.startswith("memory")]
    tokens, head = report(f"rollout.speculative={{model: {tiny_model_dir}}}").problems
    assert tokens.startswith("rollout.speculative.model: its tokenizer has other ids for")
    assert head.startswith("rollout.speculative.model: its head has 100 rows and the policy's")
    (problem,) = report("rollout.speculative={model: nowhere}").problems
    assert problem.startswith(f"rollout.speculative.model: {tmp_path}/nowhere: found no config.json")


def test_a_bad_row_is_named_with_its_file_and_line(report, tmp_path, tiny_model_dir):
    rows = [{"question": "1 + 1", "answer": "2"}, {"question": "1 + 2", "answer": "no number here"}] * 3
    (tmp_path / "q.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (problem,) = report(f"model={{path: {tiny_model_dir}}}", "data.questions={file: q.jsonl}", "data.hold_out=1").problems
    assert problem.startswith("3 rows: the reference answer cannot be judged") and "q.jsonl:2" in problem


def test_texts_of_a_benchmark_in_the_training_data_are_named(tmp_path, report):
    facts = report().facts
    asked = next(fact for fact in facts if fact.startswith("prompt of")).split("<bos>")[1].split("\\n")[0]
    (tmp_path / "bench.jsonl").write_text(json.dumps({"q": f"What is {asked}?"}) + "\n" + json.dumps({"q": asked}) + "\n")
    found = check(load(QUICKSTART, SMALL), [SourceConfig(file=tmp_path / "bench.jsonl", question="{q}")])
    (fact,) = (fact for fact in found.facts if fact.startswith("contamination"))
    held = [line for line in found.warnings if "bench.jsonl:2" in line]
    assert held and int(fact.split()[1]) == len(held) and not any("bench.jsonl:1" in line for line in found.warnings)
