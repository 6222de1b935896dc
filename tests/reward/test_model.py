import json
import shutil
from itertools import pairwise

import pytest
import torch
import torch.distributed as dist
from safetensors.torch import load_file, save_file
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    AutoTokenizer,
    LlamaConfig,
    LlamaForSequenceClassification,
)

from reward.models.scalar_model import ScalarModel, build, load, member_directories, read_scalars, save
from tests.reward.builders import random_ids, write_gpt2

F32 = torch.float32


def made(model_dir, kind="outcome", members=1, seed=0) -> ScalarModel:
    return build(model_dir, kind, members=members, seed=seed, dtype=F32)


def last(sequences):
    return [[len(ids) - 1] for ids in sequences]


def flat(scalars):
    return torch.tensor([value for rows in scalars for row in rows for value in row])


def padded(directory, sequences) -> dict[str, torch.Tensor]:
    """As a user of the exported directory would pad."""
    return AutoTokenizer.from_pretrained(directory).pad({"input_ids": sequences}, padding_side="right", return_tensors="pt")


def test_an_exported_outcome_model_scores_alike_in_transformers_also_outputs_that_end_in_eos(tiny_model_dir, tmp_path):
    model, sequences = made(tiny_model_dir), random_ids(0, 12)
    save(model, tmp_path, tiny_model_dir)
    theirs = AutoModelForSequenceClassification.from_pretrained(tmp_path)
    mine = flat(read_scalars(model, sequences, last(sequences), max_tokens=64))
    with torch.no_grad():
        torch.testing.assert_close(theirs(**padded(tmp_path, sequences)).logits[:, 0], mine, atol=1e-5, rtol=0)
    assert mine.std() > 0.1
    assert theirs.config.pad_token_id != 2, "padding is the eos in the policy's own config"
    torch.testing.assert_close(flat(read_scalars(load([tmp_path], F32), sequences, last(sequences), max_tokens=64)), mine)


@pytest.mark.parametrize("gpt2", [False, True])
def test_an_exported_process_model_scores_alike_in_transformers_at_every_token(tiny_model_dir, tmp_path, gpt2):
    source = write_gpt2(tmp_path / "policy") if gpt2 else tiny_model_dir
    model, sequences = made(source, "process"), random_ids(1, 6)
    with torch.no_grad():
        model.heads[0].bias.fill_(0.75)
    save(model, tmp_path / "out", source)
    theirs = AutoModelForTokenClassification.from_pretrained(tmp_path / "out")
    mine = read_scalars(model, sequences, [range(len(ids)) for ids in sequences], max_tokens=64)
    for ids, scalars in zip(sequences, mine, strict=True):
        with torch.no_grad():
            alone = theirs(torch.tensor([ids])).logits[0]
        torch.testing.assert_close(torch.tensor(scalars), alone, atol=1e-5, rtol=0)
    assert theirs.dropout.p == 0


def close(scalars, others) -> bool:
    """Equal but for the order of sums, which the number of threads decides: that may change from call to call."""
    return torch.allclose(torch.tensor(scalars), torch.tensor(others), rtol=0, atol=1e-5)


def test_members_are_written_apart_and_load_in_their_order(tiny_model_dir, tmp_path):
    model, sequences = made(tiny_model_dir, members=11), random_ids(2, 3)
    save(model, tmp_path, tiny_model_dir)
    assert [folder.name for folder in member_directories(tmp_path)] == [f"member-{k}" for k in range(11)]
    mine = read_scalars(model, sequences, last(sequences), max_tokens=64)
    assert close(read_scalars(load([tmp_path], F32), sequences, last(sequences), max_tokens=64), mine)
    two = load([tmp_path / "member-3", tmp_path / "member-0"], F32)
    assert close(read_scalars(two, sequences, last(sequences), max_tokens=64), [[[r[0][3], r[0][0]]] for r in mine])


def test_heads_come_from_the_seed_alone_and_backbones_from_the_policy(tiny_model_dir):
    torch.manual_seed(1)
    first = made(tiny_model_dir, members=2, seed=5)
    torch.manual_seed(2)
    again, other = made(tiny_model_dir, members=2, seed=5), made(tiny_model_dir, members=2, seed=6)
    heads = [head.weight for model in (first, again, other) for head in model.heads]
    assert torch.equal(heads[0], heads[2]) and torch.equal(heads[1], heads[3])
    assert not any(torch.equal(a, b) for a, b in [(heads[0], heads[1]), (heads[0], heads[4]), (heads[1], heads[4])])
    policy = AutoModelForCausalLM.from_pretrained(tiny_model_dir).base_model.state_dict()
    for member in first.members:
        assert {n: x.tolist() for n, x in member.base_model.state_dict().items()} == {n: x.tolist() for n, x in policy.items()}
    assert not first.training


def test_scores_do_not_depend_on_batching(tiny_model_dir):
    model, sequences = made(tiny_model_dir, "process", members=2), random_ids(3, 17)
    positions = [[] if k == 4 else [0, len(ids) - 1, len(ids) // 2] for k, ids in enumerate(sequences)]
    alone = read_scalars(model, sequences, positions, max_tokens=1)
    assert alone[4] == [] and [len(rows) for rows in alone] == [len(wanted) for wanted in positions]
    for max_tokens in (40, 100, 10_000):
        batched = read_scalars(model, sequences, positions, max_tokens=max_tokens)
        torch.testing.assert_close(flat(batched), flat(alone), atol=1e-5, rtol=0)
    back = read_scalars(model, sequences[::-1], positions[::-1], max_tokens=100)[::-1]
    torch.testing.assert_close(flat(back), flat(alone), atol=1e-5, rtol=0)


def test_equal_outputs_score_equally_to_the_last_bit_however_they_are_batched(tiny_model_dir):
    model, (ids, *others) = made(tiny_model_dir, "process"), random_ids(3, 7)
    sequences = [x for other in others for x in (ids, ids, [*other, *ids])] + [ids] * 4
    positions = [[0, len(ids) - 1] for _ in sequences]
    for max_tokens in (1, 40, 64, 10_000):
        scalars = read_scalars(model, sequences, positions, max_tokens=max_tokens)
        assert len({str(s) for x, s in zip(sequences, scalars, strict=True) if x == ids}) == 1
        assert len({str(s) for s in scalars}) == 7
    ends = read_scalars(model, [ids, ids], [[0], [len(ids) - 1]], max_tokens=64)
    assert ends[0] != ends[1], "the same sequence read elsewhere is another question"


def test_outputs_in_one_row_under_a_mask_of_four_dimensions_score_as_alone(tiny_model_dir):
    model = made(tiny_model_dir, members=2)
    prompt, outputs = [1, 7, 8], [[9, 10, 11], [12, 2]]
    segments = torch.tensor([0, 0, 0, 1, 1, 1, 2, 2])
    seen = ((segments[:, None] == segments) | (segments == 0)).tril()
    mask = torch.zeros(1, 1, 8, 8).masked_fill(~seen, -torch.inf)
    ids, position_ids = torch.tensor([prompt + outputs[0] + outputs[1]]), torch.tensor([[0, 1, 2, 3, 4, 5, 3, 4]])
    with torch.no_grad():
        row = model(ids, mask, position_ids, torch.tensor([5, 7]))
    alone = read_scalars(model, [prompt + output for output in outputs], [[5], [4]], max_tokens=64)
    torch.testing.assert_close(row.T, torch.tensor(alone)[:, 0], atol=1e-5, rtol=0)
    assert model(ids, mask, position_ids, torch.tensor([], dtype=torch.int64)).shape == (2, 0)


def test_a_sharded_model_scores_alike_and_is_saved_from_its_gathered_weights(tiny_model_dir, tmp_path):
    sequences = random_ids(4, 3)
    model = made(tiny_model_dir, members=2)
    before = read_scalars(model, sequences, last(sequences), max_tokens=64)
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/meet", rank=0, world_size=1)
    try:
        mesh = init_device_mesh("cpu", (1,))
        layers = [m for m in model.modules() if type(m).__name__ == "LlamaDecoderLayer"]
        assert len(layers) == 4
        for module in (*layers, model):
            fully_shard(module, mesh=mesh)
        assert close(read_scalars(model, sequences, last(sequences), max_tokens=64), before)
        gathered = {name: tensor.full_tensor() for name, tensor in model.state_dict().items()}
        save(model, tmp_path / "out", tiny_model_dir, gathered)
    finally:
        dist.destroy_process_group()
    assert close(read_scalars(load([tmp_path / "out"], F32), sequences, last(sequences), max_tokens=64), before)


def test_a_narrow_model_answers_in_float32(tiny_model_dir):
    narrow = build(tiny_model_dir, "outcome", members=1, seed=0, dtype=torch.bfloat16)
    out = narrow(torch.tensor([[1, 5, 6]]), torch.ones(1, 3), torch.arange(3)[None], torch.tensor([2]))
    (wide,) = read_scalars(made(tiny_model_dir), [[1, 5, 6]], [[2]], max_tokens=8)
    assert out.dtype == torch.float32 and abs(out.item() - wide[0][0]) < 0.05


def test_what_is_not_a_reward_model_is_refused_by_name(tiny_model_dir, tmp_path):
    for kind in ("outcome", "process"):
        save(made(tiny_model_dir, kind), tmp_path / kind, tiny_model_dir)
    labels = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "vocab_size": 20}
    LlamaForSequenceClassification(LlamaConfig(**labels, num_labels=2)).save_pretrained(tmp_path / "two")
    with pytest.raises(ValueError, match="LlamaForCausalLM.*expected one of"):
        load([tiny_model_dir], F32)
    with pytest.raises(ValueError, match="with 2 labels"):
        load([tmp_path / "two"], F32)
    with pytest.raises(ValueError, match="of one kind"):
        load([tmp_path / "outcome", tmp_path / "process"], F32)
    with pytest.raises(ValueError, match="no config.json"):
        load([tmp_path / "nowhere"], F32)
    with pytest.raises(ValueError, match="found no directory"):
        load([], F32)


def test_a_directory_that_lacks_weights_is_refused(tiny_model_dir, tmp_path):
    shutil.copytree(tiny_model_dir, tmp_path / "policy")
    save(made(tiny_model_dir), tmp_path / "reward", tiny_model_dir)
    for name, key in (("policy", "model.norm.weight"), ("reward", "score.weight")):
        file = tmp_path / name / "model.safetensors"
        save_file({n: x for n, x in load_file(file).items() if n != key}, file, metadata={"format": "pt"})
        with pytest.raises(ValueError, match=f"{name}: 1 weights of .* such as {key}"):
            made(tmp_path / name) if name == "policy" else load([tmp_path / name], F32)


@pytest.mark.parametrize("position", [-1, 3])
def test_a_position_outside_its_sequence_is_refused(tiny_model_dir, position):
    with pytest.raises(ValueError, match="sequence 1: positions"):
        read_scalars(made(tiny_model_dir), [[1, 2, 3], [1, 2, 3]], [[0], [position]], max_tokens=8)


def test_exports_are_float32_with_one_label_and_the_class_of_their_kind(tiny_model_dir, tmp_path):
    save(made(tiny_model_dir, "process"), tmp_path, tiny_model_dir)
    config = json.loads((tmp_path / "config.json").read_text())
    assert (config["architectures"], config["dtype"]) == (["LlamaForTokenClassification"], "float32")
    assert len(config["id2label"]) == 1


def test_a_longer_output_does_not_change_what_was_read_before(tiny_model_dir):
    model, ids = made(tiny_model_dir, "process"), random_ids(5, 1)[0]
    read = [flat(read_scalars(model, [ids[:n]], [[0]], max_tokens=64)) for n in range(1, len(ids) + 1)]
    assert max((a - b).abs().item() for a, b in pairwise(read)) < 1e-5
