"""The planner's formulas against values worked by hand."""

import json
from dataclasses import replace

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from cluster.planning import cost, memory
from cluster.planning.cost import Learning, Load
from cluster.planning.hardware import GPUS, ON_CPU, Device, Reached, parse_gpus
from cluster.planning.shapes import read_shape, shape_of
from cluster.planning.workload import Lengths, Workload
from learner.batch.packing import pack, plain_output
from learner.config import LearnerConfig
from learner.models.policy import PolicyModel

LLAMA = {"model_type": "llama", "hidden_act": "silu", "rms_norm_eps": 1e-5, "max_position_embeddings": 4096}
SMOLLM2 = LLAMA | {
    "hidden_size": 576, "intermediate_size": 1536, "num_hidden_layers": 30, "num_attention_heads": 9,
    "num_key_value_heads": 3, "vocab_size": 49152, "tie_word_embeddings": True,
}  # fmt: skip
LLAMA_7B = LLAMA | {
    "hidden_size": 4096, "intermediate_size": 11008, "num_hidden_layers": 32, "num_attention_heads": 32,
    "num_key_value_heads": 32, "vocab_size": 32000, "tie_word_embeddings": False,
}  # fmt: skip
QWEN_7B = {
    "model_type": "qwen2", "hidden_size": 3584, "intermediate_size": 18944, "num_hidden_layers": 28,
    "num_attention_heads": 28, "num_key_value_heads": 4, "vocab_size": 152064, "tie_word_embeddings": False,
}  # fmt: skip
MIXTURE = QWEN_7B | {"model_type": "qwen3_moe", "num_experts": 4, "num_experts_per_tok": 3, "moe_intermediate_size": 24000}
EVEN = Reached(
    products={"float32": 1.0, "bfloat16": 0.5}, stream=1.0, send=0.5, layer_s=0.0, engine_s=0.0, request_s=0.0, reduce_s=0.0,
    update_s=2.0,
)  # fmt: skip
DEVICE = Device(
    name="round", narrow=1e12, wide=1e11, memory=1e11, bandwidth=1e12, link=1e11, network=1e10, reached=EVEN
)  # fmt: skip


@pytest.fixture
def shape(tmp_path):
    def read(config):
        (tmp_path / "config.json").write_text(json.dumps(config))
        return read_shape(tmp_path)

    return read


def work(**given):
    lengths = given.pop("lengths", Lengths(prompt=100, output=200, limit=400))
    return Workload(**{"lengths": lengths, "questions": 8, "group": 4} | given)


@pytest.mark.parametrize(
    ("config", "parameters", "in_layers", "cached"),
    [
        (SMOLLM2, 134_515_008, 106_202_880, 23_040),  # 30 x (2 x 576^2 + 2 x 576 x 192 + 3 x 576 x 1536 + 2 x 576)
        (LLAMA_7B, 6_738_415_616, 6_476_267_520, 524_288),
        (QWEN_7B, 7_615_616_512, 6_525_618_176, 57_344),
    ],
    ids=["smollm2-135m", "llama-7b", "qwen2.5-7b"],
)
def test_parameters_and_the_cache_of_a_token(shape, config, parameters, in_layers, cached):
    found = shape(config)
    assert (found.parameters, found.in_layers, found.cached(2)) == (parameters, in_layers, cached)
    assert found.head == config["vocab_size"] * config["hidden_size"]
    embeddings = found.head * (1 if config["tie_word_embeddings"] else 2)
    assert found.parameters == found.in_layers + embeddings + config["hidden_size"], "and the last norm"


def test_operations_are_six_a_weight_and_token_and_those_of_attention(shape):
    found = shape(LLAMA_7B)
    weights = 6_476_267_520 + 32000 * 4096
    assert found.useful(1, 0, 1) == 6 * weights
    # Of 1,024 tokens, each of which looks at 512 keys in the mean: 12 x layers x width of the queries for each.
    assert found.useful(1024, 1024 * 512, 1024) == 6 * weights * 1024 + 12 * 32 * 4096 * 1024 * 512


def test_what_is_no_dense_text_model_is_refused(tmp_path, shape):
    with pytest.raises(ValueError, match="found no config.json; a plan needs nothing else"):
        read_shape(tmp_path / "nowhere")
    with pytest.raises(ValueError, match="num_experts is 8, a mixture of experts"):
        shape(QWEN_7B | {"model_type": "qwen2_moe", "num_experts": 8})
    with pytest.raises(ValueError, match="_experts is 4, a mixture of experts; a plan knows dense models"):
        shape(MIXTURE)
    met = "of a mixture, that of the experts which a position meets"
    assert shape_of(AutoConfig.for_model(**MIXTURE)).inner == 3 * 24_000, met


def test_seconds_of_training_worked_by_hand(shape):
    model, load = shape(SMOLLM2), Load(positions=1000, pairs=50_000, trained=800, micro_batches=2)
    body = (2 * 106_202_880 * 1000 + 4 * 30 * 576 * 50_000) / 5e11
    head = 2 * 49152 * 576 * 800 / 2.5e11  # TF32
    adam = 28 * 134_515_008 / 1e12
    one = cost.train(model, load, Learning(reads=1, updates=2), DEVICE, (1, 8))
    assert one == pytest.approx((body + head) + 2 * (3 * body + 4 * head + adam))
    again = cost.train(model, load, Learning(reads=0, updates=1, recompute=True), DEVICE, (1, 8))
    assert again == pytest.approx(4 * body + 4 * head + adam)
    small = cost.train(model, load, Learning(reads=0, updates=1, adapter=10**6), DEVICE, (1, 8))
    assert small == pytest.approx(2 * body + 3 * head + 28 * 10**6 / 1e12), "no gradient of a frozen weight"
    wide = cost.train(model, load, Learning(reads=0, updates=1, dtype="float32"), DEVICE, (1, 8))
    assert wide == pytest.approx(3 * 5 * body + 4 * 2.5 * head + adam)
    assert (DEVICE.head("bfloat16"), replace(DEVICE, reached=ON_CPU).head("bfloat16")) == (2.5e11, 0.3e12)


def test_training_waits_for_gathered_weights_and_for_launches(shape):
    model, load = shape(SMOLLM2), Load(positions=1, pairs=1, trained=1, micro_batches=3)
    moved = 134_515_008 * 3 / 4 * 3
    far = cost.train(model, load, Learning(reads=1, updates=1), DEVICE, (4, 2))
    # 2 bytes to gather each way and 4 to reduce, over the network, at half of its rate.
    assert far == pytest.approx(moved * (2 + 2 + 2 + 4) / 5e9 + 28 * 134_515_008 / 4 / 1e12)
    slow = replace(DEVICE, reached=replace(EVEN, layer_s=1.0))
    assert cost.train(model, load, Learning(reads=1, updates=1), slow, (1, 1)) == pytest.approx(3 * 30 * (1 + 3), rel=1e-3)


def test_seconds_of_an_engine_worked_by_hand(shape):
    model, each = shape(LLAMA_7B), {"engines": 1, "tensor_parallel": 2}
    found = cost.engine(model, work(), DEVICE, **each)
    weights = 6_476_267_520 + 32000 * 4096
    assert found.weights == pytest.approx(2 * weights / 2 / 1e12)
    assert found.product == pytest.approx(2 * weights / 2 / 5e11)
    assert found.key == pytest.approx(524_288 / 2 / 1e12)
    few, many = found.step(1, 0), found.step(100, 0)
    assert few == pytest.approx(found.product * 1 if found.product > found.weights else found.weights)
    assert many == pytest.approx(100 * found.product)
    assert found.step(100, 1e6) - many == pytest.approx(1e6 * found.key)
    three = cost.engine(model, work(), replace(DEVICE, reached=replace(EVEN, engine_s=0.5, layer_s=0.1, reduce_s=0.01)), **each)
    assert three.fixed == pytest.approx(0.5 + 32 * 0.11)
    assert cost.engine(shape(QWEN_7B), work(), DEVICE, 8).key == pytest.approx(57_344 / 4 / 1e12), "4 key heads, 8 ranks"


def test_seconds_of_a_weight_update_and_of_scoring(shape):
    model = shape(SMOLLM2)
    size = cost.sent(model, work())
    assert size == 2 * 134_515_008 == cost.sent(model, work(engine_dtype="float32")) / 2
    assert cost.sync(size, DEVICE, within_node=True) == pytest.approx(2 + size / 5e10)
    assert cost.sync(size, DEVICE, within_node=False) == pytest.approx(2 + size / 5e9)
    lora = {"rank": 8, "send": "adapter"}
    assert cost.sent(model, work(learner=LearnerConfig(lora=lora))) == 2 * model.adapter(8) < 0.03 * size
    assert cost.sent(model, work(learner=LearnerConfig(lora=lora | {"send": "merged"}))) == size
    assert cost.sync(size, DEVICE, within_node=True, asleep=1e9) == pytest.approx(2 + size / 1e12 + 2e9 / 25e9)
    assert cost.score(model, work(judges=4), DEVICE) == pytest.approx(32 * cost.JUDGE_S / 4)
    by_model = cost.score(model, work(judged_by=2, reward_gpus=1.0), DEVICE)
    assert by_model == pytest.approx(2 * 2 * 106_202_880 * 32 * 300 / 1e11)


def test_cores_are_shared_by_the_programs_that_compute_at_once(shape):
    model, cpu = shape(SMOLLM2), replace(DEVICE, reached=ON_CPU)
    load = Load(positions=1000, pairs=1000, trained=1000, micro_batches=1)
    one, two = (cost.train(model, load, Learning(reads=0, updates=1), cpu, (ranks, 1)) for ranks in (1, 2))
    # Twice as long for the products; AdamW's states are halved too.
    assert two == pytest.approx(2 * one, rel=0.1) and two < 2 * one


def test_memory_of_a_learner_rank_worked_by_hand(shape):
    model = shape(LLAMA_7B)
    asked = work(reference=True, learner=LearnerConfig(compute_dtype="bfloat16", max_tokens_per_microbatch=1000))
    parts = memory.learner(model, asked, 4)
    n = 6_738_415_616
    assert parts["weights"] == parts["gradients"] == parts["optimizer"] / 2 == 4 * n / 4
    assert parts["reference"] == 2 * n / 4
    saved = 32 * (2 * 8 * 4096 + 8 * 4096 + 8 * 11008)
    assert parts["activations"] == 1000 * saved + 2 * 1000 * 500 + 12 * 512 * 32000
    assert parts["gathered"] == 2 * 2 * 6_476_267_520 / 32 + 8 * 32000 * 4096
    assert memory.learner(model, replace(asked, trained=2), 4)["optimizer"] == 2 * parts["optimizer"]
    assert memory.learner(model, asked, 1)["gathered"] == 0
    assert memory.on_cpu(model, asked.learner, 500) == 2 * parts["activations"], "measured"


def test_of_an_adapter_a_rank_holds_the_base_once_and_states_of_the_adapter_alone(shape):
    model, adapter = shape(LLAMA_7B), 8 * 32 * (8 * 4096 + 3 * (4096 + 11008))
    asked = work(reference=True, learner=LearnerConfig(compute_dtype="bfloat16", lora={"rank": 8}))
    parts = memory.learner(model, asked, 4)
    assert parts["optimizer"] == 2 * parts["gradients"] == 2 * parts["reference"] == 8 * adapter / 4
    assert parts["weights"] == 6_738_415_616 + adapter


def test_checkpointing_leaves_one_layer_whole_and_of_the_others_less(shape):
    model, layer = shape(LLAMA_7B), 2 * 8 * 4096 + 8 * 4096 + 8 * 11008

    def saved(how):
        return memory.saved(model, LearnerConfig(compute_dtype="bfloat16", activation_checkpointing=how))

    assert saved("none") == 32 * layer
    assert saved("full") == layer + 31 * 2 * 4096
    assert saved("selective") == layer + 31 * 2 * (7 * 4096 + 2 * 11008)
    how = work(learner=LearnerConfig(activation_checkpointing="full"))
    assert cost.learning_of(model, how).recompute and not cost.learning_of(model, work()).recompute


def test_an_engines_cache_is_what_is_left_and_holds_so_many_outputs(shape):
    model = shape(LLAMA_7B)
    parts = memory.engine(model, work(), 1, 80e9, 0.5)
    assert sum(parts.values()) == pytest.approx(40e9)
    assert parts["weights"] == 2 * 6_738_415_616
    # Of prompts a group's share, of outputs half: 100 / 4 + 200 / 2 tokens each, 524,288 bytes a token.
    assert memory.room(model, work(), 524_288 * 12_500, 1) == 100
    assert memory.room(model, work(), 524_288 * 499, 1) == 0, "the longest, 100 + 400, does not fit"
    assert memory.room(model, work(concurrent=7), 80e9, 1) == 7
    guessed = memory.engine(model, work(draft=model), 1, 80e9, 0.5)
    assert (guessed["draft"], guessed["cache"]) == (2 * 6_738_415_616, parts["cache"] - 2 * 6_738_415_616)
    assert memory.room(model, work(draft=model), 524_288 * 12_500, 1) == 50, "both have keys and values"


def test_gpus_are_named_as_number_and_kind():
    assert parse_gpus("8xH100") == (GPUS["H100"], 8) and parse_gpus("4090") == (GPUS["4090"], 1)
    assert parse_gpus("2xa100-80") == (GPUS["A100-80"], 2)
    for text in ("8xH10", "0xH100", "8 H100", ""):
        with pytest.raises(ValueError, match="expected a number and a kind, as in 8xH100, of H100, H200"):
            parse_gpus(text)


@pytest.mark.parametrize(("dtype", "off"), [("float32", 0.08), ("bfloat16", 0.15)])
def test_what_a_layer_saves_for_backward_is_what_the_learner_saves(shape, dtype, off):
    """Counted on the learner itself: every storage that autograd keeps, but for the weights."""
    torch.manual_seed(0)
    sizes = {"hidden_size": 64, "intermediate_size": 256, "num_hidden_layers": 4, "num_attention_heads": 2}
    config = LLAMA | sizes | {"num_key_value_heads": 1, "vocab_size": 64, "tie_word_embeddings": False}
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(**config), dtype=getattr(torch, dtype))
    outputs = [plain_output(i // 4, (1,) * 8, (2,) * 64) for i in range(16)]
    (micro,) = pack(outputs, max_tokens=4096).micro_batches
    weights, kept = {p.untyped_storage().data_ptr() for p in model.parameters()}, {}

    def keep(tensor):
        kept[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        PolicyModel(model, chunk=64)(micro, 1.0)
    found = sum(tensor.untyped_storage().nbytes() for storage, tensor in kept.items() if storage not in weights)
    learner = LearnerConfig(compute_dtype=dtype, max_tokens_per_microbatch=micro.input_ids_BT.numel())
    assert found == pytest.approx(memory.activations(shape(config), learner, micro.input_ids_BT.shape[1]), rel=off)
