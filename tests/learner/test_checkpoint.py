"""Save, load and export are exact."""

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from learner.algorithms import resolve
from tests.learner.builders import adamw, grpo, random_batch

PLAN = adamw(learning_rate=3e-3, warmup_updates=2, schedule="cosine")


def trained(worker, seeds):
    return [worker.step(random_batch(seed), updates=2, temperature=0.9) for seed in seeds]


def weights(worker):
    return {name: tensor.clone() for name, tensor in worker.source("float32")}


def test_three_steps_equal_one_step_a_checkpoint_and_two_steps(start, model_dir, tmp_path):
    unbroken = start(model_dir)
    unbroken.begin_stage(grpo(), PLAN, 6)
    expected = trained(unbroken, [0, 1, 2])
    expected_weights = weights(unbroken)

    first = start(model_dir)
    first.begin_stage(grpo(), PLAN, 6)
    trained(first, [0])
    first.save(tmp_path)
    second = start(model_dir)
    second.load(tmp_path, grpo(), PLAN, 6)
    assert trained(second, [1, 2]) == expected[1:]
    found = weights(second)
    assert all(torch.equal(found[name], x) for name, x in expected_weights.items())


def test_a_checkpoint_before_the_first_update_is_exact(start, tied_dir, tmp_path):
    worker = start(tied_dir)
    worker.begin_stage(grpo(), PLAN, 6)
    worker.save(tmp_path)
    expected = trained(worker, [0])
    resumed = start(tied_dir)
    resumed.load(tmp_path, grpo(), PLAN, 6)
    assert trained(resumed, [0]) == expected


def test_a_stage_without_reference_saves_none(start, model_dir, tmp_path):
    worker = start(model_dir)
    worker.begin_stage(resolve("sft", {}, {}), PLAN, 6)
    trained(worker, [0])
    worker.save(tmp_path)
    expected = trained(worker, [1])
    resumed = start(model_dir)
    resumed.load(tmp_path, resolve("sft", {}, {}), PLAN, 6)
    assert trained(resumed, [1]) == expected


def test_an_export_loads_in_transformers_with_the_same_logprobs(start, tied_dir, tmp_path):
    worker = start(tied_dir)
    worker.begin_stage(grpo(), PLAN, 6)
    trained(worker, [0])
    worker.export(tmp_path / "out")
    ids = [5, 6, 7, 2]
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype=torch.float32)
    whole = model(torch.tensor([ids])).logits[0, :-1].log_softmax(-1)
    found = torch.tensor(worker.logprobs([ids])[0])
    torch.testing.assert_close(found, whole[range(3), ids[1:]], rtol=0, atol=1e-5)
    assert AutoTokenizer.from_pretrained(tmp_path / "out")("7").input_ids == [7]
    again = start(tmp_path / "out")
    torch.testing.assert_close(torch.tensor(again.logprobs([ids])[0]), found, rtol=0, atol=1e-6)
