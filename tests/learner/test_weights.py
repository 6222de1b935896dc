"""The weight stream is what a weight-transfer engine expects."""

import pytest
import torch
from safetensors.torch import load_file

from learner.algorithms.table import resolve, resolve_reward_model
from learner.models.weights import trained
from reward.models.scalar_model import build
from tests.learner.builders import adamw, groups, random_batch
from tests.learner.families import write_family
from tests.learner.stages import assert_equal, stage


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_metadata_and_iteration_agree_and_repeat(start, model_dir, dtype):
    source = start(model_dir).source(str(dtype).removeprefix("torch."))
    declared = [(meta.name, meta.dtype, meta.shape) for meta in source.metadata()]
    for _ in range(2):
        assert [(name, x.dtype, tuple(x.shape)) for name, x in source] == declared


def test_names_and_values_are_those_of_the_checkpoint(start, model_dir):
    on_disk = load_file(model_dir / "model.safetensors")
    streamed = dict(start(model_dir).source("float32"))
    assert streamed.keys() == on_disk.keys()
    assert all(torch.equal(streamed[name], x) for name, x in on_disk.items())


@pytest.mark.parametrize("family", ["mixtral", "qwen3_moe"])
def test_experts_are_sent_one_by_one_under_the_names_of_the_checkpoint(family, start, tmp_path):
    source = start(write_family(family, tmp_path)).source("float32")
    on_disk, streamed = load_file(tmp_path / "model.safetensors"), dict(source)
    assert_equal(streamed, on_disk)
    assert sum(".experts.3." in name for name in streamed) == 2 * 3
    assert {meta.name: meta.shape for meta in source.metadata()} == {name: tuple(x.shape) for name, x in on_disk.items()}


def test_an_adapter_of_a_mixture_is_of_its_attention(start, tmp_path):
    worker = start(write_family("qwen3_moe", tmp_path), lora={"rank": 2, "send": "merged"})
    assert {name.split(".")[-4] for name in trained(worker._policy)} == {"q_proj", "k_proj", "v_proj", "o_proj"}
    assert_equal(dict(worker.source("float32")), load_file(tmp_path / "model.safetensors"))


def test_a_tied_head_is_sent_under_its_own_name(start, tied_dir):
    worker = start(tied_dir)
    worker.begin_stage(stage(resolve("sft", {}, {}), adamw(), 3))
    worker.step(groups(random_batch()), updates=1, temperature=1.0)
    streamed = dict(worker.source("float32"))
    assert "lm_head.weight" not in load_file(tied_dir / "model.safetensors")
    assert torch.equal(streamed["lm_head.weight"], streamed["model.embed_tokens.weight"])


def test_the_stream_is_current_after_scoring_and_training(start, model_dir):
    worker = start(model_dir)
    worker.begin_stage(stage(resolve("sft", {}, {}), adamw(), 3))
    source = worker.source("float32")
    before = dict(source)["model.norm.weight"].clone()
    worker.logprobs([[5, 6]])
    assert torch.equal(dict(source)["model.norm.weight"], before)
    worker.step(groups(random_batch()), updates=1, temperature=1.0)
    assert not torch.equal(dict(source)["model.norm.weight"], before)


def test_a_reward_model_streams_the_same_way_under_the_names_that_load_it(start, model_dir):
    worker = start(model_dir)
    worker.begin_stage(stage(resolve_reward_model("outcome_model"), adamw(), 3, members=2, seed=4))
    source = worker.source("bfloat16", "reward_model")
    declared = [(meta.name, meta.dtype, meta.shape) for meta in source.metadata()]
    assert [(name, x.dtype, tuple(x.shape)) for name, x in source] == declared
    built = build(model_dir, "outcome", members=2, seed=4, dtype=torch.bfloat16).state_dict()
    assert_equal(dict(source), built)


def test_a_worker_without_a_reward_model_has_no_stream_of_one(start, model_dir):
    with pytest.raises(RuntimeError, match="no reward model"):
        start(model_dir).source("float32", "reward_model")
