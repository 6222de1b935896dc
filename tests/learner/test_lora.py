"""Adapters: what is trained, what it is measured from, and what of it is sent, saved and exported."""

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from torch.distributed.tensor import distribute_tensor
from transformers import AutoModelForCausalLM, GPT2Config, GPT2LMHeadModel

from learner.algorithms.credit import GroupRelative
from learner.algorithms.table import resolve
from learner.config import LoraConfig
from learner.models.lora import adapter_size, targets
from learner.models.weights import ModelWeights, trained
from learner.training.description import Reader
from tests.learner.builders import adamw, credit, groups, grpo, random_batch, slow_gradients
from tests.learner.ranks import adapter, adapter_stages, continue_adapter, run_ranks
from tests.learner.slow import batch_of
from tests.learner.stages import assert_close, assert_equal, gradients, stage

LORA = {"rank": 4, "alpha": 6}
SCALE = 1.5
IDS = [5, 6, 7, 2, 40]


@pytest.fixture
def adapted(start, model_dir):
    """Function: a worker that trains an adapter."""
    return lambda directory=model_dir, **changes: start(directory, **({"lora": LORA} | changes))


def base(worker) -> dict[str, torch.Tensor]:
    parameters = worker._policy.named_parameters()
    return {name: p.full_tensor().clone() for name, p in parameters if not p.requires_grad}


def by_hand(directory, sides) -> dict[str, torch.Tensor]:
    """W + s B A in float64, by name."""
    model = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float64)
    weights = dict(model.named_parameters())
    for name in [name for name in sides if name.endswith("lora_A.weight")]:
        module = name.removesuffix(".lora_A.weight")
        a, b = (sides[f"{module}.lora_{side}.weight"].double() for side in "AB")
        weights[f"{module}.weight"].data += SCALE * b @ a
    return {name: p.detach() for name, p in weights.items()}


@torch.no_grad()
def randomise(worker, seed=0) -> None:
    """An adapter far from zero, in both of its sides."""
    draw = torch.Generator().manual_seed(seed)
    for p in trained(worker._policy).values():
        p.copy_(distribute_tensor(0.2 * torch.randn(p.shape, generator=draw), p.device_mesh, p.placements))


def step(worker, seed=0, updates=1):
    return worker.step(groups(random_batch(seed)), updates=updates, temperature=1.0)


@pytest.mark.parametrize("checkpointing", ["none", "full"])
def test_gradients_are_those_of_the_merged_weights_in_float64(adapted, model_dir, tmp_path, checkpointing):
    worker = adapted(activation_checkpointing=checkpointing, max_tokens_per_microbatch=48)
    worker.begin_stage(stage(grpo(), adamw(learning_rate=0.0, max_grad_norm=1e9), 1))
    randomise(worker)  # the reference stays the base
    sides, whole = adapter(worker), AutoModelForCausalLM.from_pretrained(model_dir, dtype=torch.float64)
    whole.load_state_dict(by_hand(model_dir, sides))
    whole.save_pretrained(tmp_path)
    batch = random_batch()
    advantages = credit(GroupRelative(), batch)
    dense = slow_gradients(tmp_path, model_dir, batch, advantages)
    expected = {}
    for name, grad in dense.items():
        module = name.removesuffix(".weight")
        if f"{module}.lora_A.weight" in sides:
            a, b = (sides[f"{module}.lora_{side}.weight"].double() for side in "AB")
            expected |= {
                f"{module}.lora_A.default.weight": SCALE * b.T @ grad,
                f"{module}.lora_B.default.weight": SCALE * grad @ a.T,
            }
    assert step(worker).metrics["kl"] > 0.01
    assert len(expected) == 2 * 2 * 7
    assert_close(gradients(worker), expected, 1e-4)
    ids = torch.tensor([IDS])
    exact = whole(ids).logits[0, :-1].log_softmax(-1)[range(len(IDS) - 1), IDS[1:]].tolist()
    assert worker.logprobs([IDS])[0] == pytest.approx(exact, abs=1e-4)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_only_the_adapter_is_trained_and_the_base_keeps_its_bits(adapted, model_dir, dtype):
    worker = adapted(compute_dtype=dtype)
    worker.begin_stage(stage(grpo(), adamw(), 10))
    before, first = base(worker), adapter(worker)
    fresh = worker.logprobs([IDS])
    assert step(worker).metrics["kl"] == 0
    assert step(worker, updates=2).metrics["kl"] > 1e-5
    dict(ModelWeights(worker._policy.causal_lm, torch.bfloat16))
    assert_equal(base(worker), before)
    assert all(not torch.equal(tensor, first[name]) for name, tensor in adapter(worker).items())
    assert worker.logprobs([IDS]) != fresh
    held = [p for group in worker._stage.trainers["policy"].optimizer.param_groups for p in group["params"]]
    assert sum(p.numel() for p in held) == sum(x.numel() for x in first.values())
    assert {p.dtype for p in held} == {torch.float32}


def test_a_fresh_adapter_changes_nothing(adapted, start, model_dir):
    found = adapted().logprobs([IDS])
    assert found == start(model_dir).logprobs([IDS])


def test_a_later_stage_is_measured_from_the_adapter_as_it_was(adapted):
    worker = adapted()
    worker.begin_stage(stage(grpo(), adamw(), 10))
    step(worker), step(worker)
    worker.begin_stage(stage(grpo(), adamw(), 10))
    kept = adapter(worker)
    assert step(worker).metrics["kl"] == 0
    assert step(worker).metrics["kl"] > 1e-5
    reference = [p.full_tensor() for p in worker._stage.models["reference"].parameters()]
    assert all(torch.equal(a, b) for a, b in zip(reference, kept.values(), strict=True))


def test_merged_weights_are_a_copy_and_under_the_names_of_the_checkpoint(adapted, tied_dir):
    worker = adapted(tied_dir, lora=LORA | {"send": "merged"})
    randomise(worker)
    source = worker.source("float32")
    found, expected = dict(source), by_hand(tied_dir, adapter(worker))
    assert torch.equal(found.pop("lm_head.weight"), found["model.embed_tokens.weight"])
    assert_close(found, expected, 1e-6)
    assert [(m.name, m.shape) for m in source.metadata()] == [(name, tuple(x.shape)) for name, x in source]
    untouched = AutoModelForCausalLM.from_pretrained(tied_dir, dtype=torch.float32)
    assert all(torch.equal(x, untouched.get_parameter(n.removeprefix("causal_lm.").replace(".base_layer", "")))
               for n, x in base(worker).items())  # fmt: skip


@pytest.mark.parametrize("send", ["adapter", "merged"])
def test_kept_weights_are_those_of_the_moment(adapted, send):
    worker = adapted(lora=LORA | {"send": send})
    worker.begin_stage(stage(grpo(), adamw(), 10))
    step(worker)
    source = worker.source("bfloat16")
    then = {name: x.clone() for name, x in source}
    source.keep()
    step(worker)
    assert_equal(dict(source), then)
    now = dict(worker.source("bfloat16"))
    assert any(not torch.equal(now[name], x) for name, x in then.items())


def test_the_adapter_alone_is_sent_with_its_scale(adapted):
    worker = adapted()
    source = worker.source("bfloat16")
    assert source.adapter_scale == SCALE
    sent = {meta.name: meta.shape for meta in source.metadata()}
    assert sent == {name: tuple(x.shape) for name, x in source} and len(sent) == 2 * 2 * 7
    assert sent["model.layers.1.mlp.down_proj.lora_A.weight"] == (4, 48)
    assert sent["model.layers.1.mlp.down_proj.lora_B.weight"] == (32, 4)


def test_a_critic_grows_from_the_merged_weights(adapted, model_dir):
    worker = adapted()
    randomise(worker)
    worker.begin_stage(stage(resolve("ppo"), adamw(), 2, critic_optimizer=adamw()))
    expected = by_hand(model_dir, adapter(worker))
    critic = {name.removeprefix("members.0."): x for name, x in ModelWeights(worker._stage.models["critic"], torch.float32)}
    body = {name: x for name, x in critic.items() if name in expected}
    assert len(body) == len(expected) - 1  # the head
    assert_close(body, {name: expected[name] for name in body}, 1e-6)
    worker.step(groups(batch_of("token")), updates=1, temperature=1.0)
    assert len(worker._stage.trainers["critic"].optimizer.state) == len(critic)


def test_a_kill_resumes_to_the_bit_from_a_checkpoint_without_the_base(adapted, tmp_path):
    worker = adapted()
    for _ in range(2):
        worker.begin_stage(stage(grpo(), adamw(), 6))
        step(worker)
    worker.save(tmp_path)
    worker.writing(wait=True)
    reports, expected = [step(worker, seed, updates=2) for seed in (1, 2)], adapter(worker)
    stored = Reader(tmp_path).read_metadata().state_dict_metadata
    assert not [name for name in stored if "base_layer" in name or "embed_tokens" in name]
    resumed = adapted()
    resumed.load(tmp_path, stage(grpo(), adamw(), 6))
    assert [step(resumed, seed, updates=2) for seed in (1, 2)] == reports
    assert_equal(adapter(resumed), expected)


def test_exports_are_alike_merged_and_as_peft_reads_them_on_the_base(adapted, tied_dir, tmp_path):
    from peft import PeftModel

    worker = adapted(tied_dir)
    randomise(worker)
    worker.export(tmp_path / "merged")
    worker.export(tmp_path / "adapter", adapter=True)
    ids = torch.tensor([IDS])
    whole = AutoModelForCausalLM.from_pretrained(tmp_path / "merged", dtype=torch.float32)
    on_base = PeftModel.from_pretrained(
        AutoModelForCausalLM.from_pretrained(tied_dir, dtype=torch.float32), tmp_path / "adapter"
    )
    torch.testing.assert_close(on_base(ids).logits, whole(ids).logits, rtol=1e-4, atol=1e-4)
    logprobs = whole(ids).logits[0, :-1].log_softmax(-1)[range(len(IDS) - 1), IDS[1:]]
    torch.testing.assert_close(torch.tensor(worker.logprobs([IDS])[0]), logprobs, rtol=0, atol=1e-4)
    with safe_open(tmp_path / "merged" / "model.safetensors", "pt") as file:
        assert not [name for name in file.keys() if "lora" in name or "base_layer" in name]  # noqa: SIM118
    assert sum(p.numel() for p in on_base.parameters()) > sum(p.numel() for p in whole.parameters())


def test_targets_are_all_linear_layers_or_those_that_are_named_and_known(model_dir):
    model = AutoModelForCausalLM.from_pretrained(model_dir)
    names = ["down_proj", "gate_proj", "k_proj", "o_proj", "q_proj", "up_proj", "v_proj"]
    assert targets(model, LoraConfig()) == names
    assert targets(model, LoraConfig(targets=("v_proj", "q_proj"))) == ["q_proj", "v_proj"]
    assert adapter_size(model, LoraConfig(rank=2, targets=("down_proj", "k_proj"))) == 2 * (2 * (48 + 32) + 2 * (32 + 16))
    with pytest.raises(
        ValueError, match="learner.lora.targets: qkv, wo are not in LlamaForCausalLM; expected some of down_proj, "
    ):
        targets(model, LoraConfig(targets=("wo", "q_proj", "qkv")))
    with pytest.raises(ValueError, match="GPT2LMHeadModel has no linear layers"):
        targets(GPT2LMHeadModel(GPT2Config(n_layer=1, n_embd=8, n_head=1, vocab_size=16)), LoraConfig())


def test_the_scale_is_two_unless_alpha_is_given():
    assert (LoraConfig(rank=8).scale, LoraConfig(rank=8, alpha=8).scale) == (2, 1)


@pytest.mark.slow
def test_two_ranks_train_save_and_export_what_one_does(start, tied_dir, tmp_path):
    config = {"lora": LORA | {"send": "merged"}}
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
    one = adapter_stages(start(tied_dir, **config), tmp_path / "one")
    two = run_ranks(adapter_stages, tied_dir, tmp_path / "two", **config)
    for each in two:
        for name in ("gradients", "weights", "adapter", "critic"):
            assert_close(each[name], one[name], 1e-4)
        for found, expected in zip(each["reports"], one["reports"], strict=True):
            metrics = {name: value for name, value in expected.metrics.items() if name != "padding_share"}
            assert {name: found.metrics[name] for name in metrics} == pytest.approx(metrics, rel=1e-3, abs=1e-5)
        assert each["reports"][0].metrics["kl"] == 0 and each["reports"][2].metrics["kl"] > 0
        assert each["continued"]["report"] == each["reports"][-1]
        assert_equal(each["continued"]["weights"], each["weights"])
    exported = load_file(tmp_path / "two" / "merged" / "model.safetensors")
    assert_equal(exported, {name: two[0]["weights"][name] for name in exported})
    found = load_file(tmp_path / "two" / "adapter" / "adapter_model.safetensors")
    assert_equal(found, {f"base_model.model.{name}": x for name, x in two[0]["adapter"].items()})
    assert_close(continue_adapter(start(tied_dir, **config), tmp_path / "two")["weights"], two[0]["weights"], 1e-4)
