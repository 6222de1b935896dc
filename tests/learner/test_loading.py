"""Models built on the meta device and read shard by shard, against transformers' own loading."""

import shutil
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch.distributed.fsdp import CPUOffloadPolicy, FSDPModule
from transformers import (
    AutoModelForCausalLM,
    Gemma2Config,
    Gemma3TextConfig,
    GPT2Config,
    GPTNeoXConfig,
    LlamaConfig,
    Phi3Config,
    Qwen2Config,
    Qwen3MoeConfig,
    Starcoder2Config,
)

from learner.algorithms.table import resolve
from learner.models.loading import materialise, read
from learner.models.policy import blank_policy
from learner.models.sharding import accumulating
from tests.learner.builders import adamw, groups, write_model
from tests.learner.ranks import load_all, peak, run_ranks
from tests.learner.slow import batch_of
from tests.learner.stages import assert_equal, stage, weights
from tests.learner.test_supported import GROUPED, NO_IDS, SMALL, written

LLAMA3 = {"rope_type": "llama3", "rope_theta": 10000.0, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
LONG = {"rope_type": "longrope", "rope_theta": 10000.0, "short_factor": [1.0] * 4, "long_factor": [2.0] * 4}
NO_DROPOUT = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}
FAMILIES = {
    "llama3": LlamaConfig(**GROUPED, rope_parameters=LLAMA3 | {"original_max_position_embeddings": 64}),
    "tied": LlamaConfig(**GROUPED, tie_word_embeddings=True),
    "uneven": LlamaConfig(**(GROUPED | {"vocab_size": 63, "intermediate_size": 45})),
    "gemma2": Gemma2Config(**GROUPED, head_dim=8),
    "gemma3": Gemma3TextConfig(**GROUPED, head_dim=8),
    "qwen2": Qwen2Config(**GROUPED),
    "phi3": Phi3Config(**GROUPED, rope_parameters=LONG | {"original_max_position_embeddings": 64}),
    "starcoder2": Starcoder2Config(**GROUPED, use_bias=True),
    "gpt2": GPT2Config(n_embd=32, n_layer=2, n_head=2, vocab_size=64, summary_first_dropout=0.0, **NO_IDS, **NO_DROPOUT),
    "experts": Qwen3MoeConfig(**GROUPED, num_experts=4, num_experts_per_tok=2, moe_intermediate_size=16, head_dim=8),
    "renamed": GPTNeoXConfig(**SMALL, **NO_IDS, classifier_dropout=0.0),
}


@pytest.fixture(scope="module")
def families(tmp_path_factory):
    """A directory with one of every family, one in bfloat16, one in several files, and one without its backbone's prefix."""
    folder = tmp_path_factory.mktemp("families") / "models"
    for name, config in FAMILIES.items():
        written(config, folder / name)
    model = AutoModelForCausalLM.from_pretrained(folder / "tied")
    model.to(torch.bfloat16).save_pretrained(folder / "bfloat16")
    model.save_pretrained(folder / "files", max_shard_size="20KB")
    assert len(list((folder / "files").glob("*.safetensors"))) == 2
    shutil.copytree(folder / "qwen2", folder / "bare")
    tensors = load_file(folder / "qwen2" / "model.safetensors")
    bare = {name.removeprefix("model."): tensor for name, tensor in tensors.items()}
    save_file(bare, folder / "bare" / "model.safetensors", metadata={"format": "pt"})
    shutil.copytree(folder / "tied", folder / "twice")
    tensors = load_file(folder / "tied" / "model.safetensors")
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].clone()
    save_file(tensors, folder / "twice" / "model.safetensors", metadata={"format": "pt"})
    names = load_file(folder / "renamed" / "model.safetensors").keys()
    assert "embed_out.weight" in names and "lm_head.weight" not in names
    return folder


def check(found: dict, folder) -> None:
    assert found.keys() == {path.name for path in folder.iterdir()}
    for name, (parameters, buffers) in found.items():
        model = AutoModelForCausalLM.from_pretrained(folder / name, dtype=torch.float32)
        for mine, theirs in ((parameters, model.named_parameters()), (buffers, model.named_buffers())):
            expected = dict(theirs)
            assert mine.keys() == expected.keys(), name
            for key, tensor in expected.items():
                assert mine[key].dtype == tensor.dtype and torch.equal(mine[key], tensor), (name, key)


def test_every_weight_and_buffer_is_what_transformers_loads(start, model_dir, families):
    found = load_all(start(model_dir), families.parent)
    check(found, families)
    assert "model.embed_tokens.embed_scale" in found["gemma3"][1]


@pytest.mark.slow
def test_two_ranks_have_the_same_together(model_dir, families):
    for found in run_ranks(load_all, model_dir, families.parent):
        check(found, families)


def test_a_tied_weight_with_two_values_is_refused_and_so_is_one_that_is_not_there(start, model_dir, families, tmp_path):
    worker, folder = start(model_dir), tmp_path / "model"
    shutil.copytree(families / "twice", folder)
    tensors = load_file(folder / "model.safetensors")
    tensors["lm_head.weight"][5, 7] += 1
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    model = worker._sharded(blank_policy(folder, torch.float32, 8))
    with pytest.raises(ValueError, match="is tied by config.json .*and has values of its own"):
        read(model.causal_lm, folder)
    del tensors["model.layers.1.mlp.up_proj.weight"], tensors["lm_head.weight"]
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match="LlamaForCausalLM: missing: model.layers.1.mlp.up_proj.weight"):
        read(model.causal_lm, folder)


def test_offloaded_weights_are_kept_on_the_host_and_buffers_where_it_computes(start, model_dir):
    worker = start(model_dir)
    model = worker._sharded(blank_policy(model_dir, torch.float32, 8))
    materialise(model, torch.device("cpu"), torch.device("meta"))
    assert {p.device.type for p in model.parameters()} == {"cpu"} and {b.device.type for b in model.buffers()} == {"meta"}


def test_offloading_changes_no_bit_and_every_state_is_on_the_host(start, model_dir):
    found = []
    for offload in (False, True):
        worker = start(model_dir, offload=offload, max_tokens_per_microbatch=48)
        worker.begin_stage(stage(resolve("ppo"), adamw(), 4, critic_optimizer=adamw()))
        reports = [worker.step(groups(batch_of("token", seed=i)), updates=2, temperature=1.0) for i in range(2)]
        found.append((reports, weights(worker), worker.logprobs([[5, 6, 7]])))
    assert found[0][0] == found[1][0] and found[0][2] == found[1][2]
    assert_equal(found[1][1], found[0][1])
    for model in (worker._policy, *worker._stage.models.values()):
        parts = [m._get_fsdp_state()._fsdp_param_groups for m in model.modules() if isinstance(m, FSDPModule)]
        policies = {type(part.offload_policy) for group in parts for part in group}
        assert policies == {CPUOffloadPolicy}
    for trainer in worker._stage.trainers.values():
        assert {x.device.type for state in trainer.optimizer.state.values() for x in state.values()} == {"cpu"}


def test_a_rank_alone_keeps_no_gathered_weights_where_they_are_offloaded(start, model_dir, monkeypatch):
    model, kept = start(model_dir)._policy, []
    monkeypatch.setattr(FSDPModule, "set_reshard_after_backward", lambda self, value: kept.append(value))
    for device, expected in (("cpu", [False, True]), ("meta", [])):
        micros = [SimpleNamespace(device=torch.device(device))] * 2
        with accumulating(model, micros) as each:
            assert list(each) == micros
        assert kept == expected
        kept.clear()


@pytest.mark.slow
def test_a_rank_needs_memory_for_its_own_part_only(tmp_path):
    big = write_model(tmp_path / "big", hidden_size=512, intermediate_size=2048, num_hidden_layers=6, vocab_size=32000)
    size = (big / "model.safetensors").stat().st_size
    small = write_model(tmp_path / "small", hidden_size=512, intermediate_size=64, num_hidden_layers=2)
    found = [run_ranks(peak, folder, tmp_path, max_tokens_per_microbatch=48) for folder in (big, small)]
    grown = [(with_it - without) / size for with_it, without in zip(*found, strict=True)]
    print(f"{size / 1e6:.0f} MB: a rank of two grew by {grown} of it")
    assert all(0.4 < share < 0.75 for share in grown)
