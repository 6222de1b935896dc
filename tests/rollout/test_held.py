"""What an engine holds against what was sent to it, by sums of bits."""

import os
from threading import Thread

import torch

from rollout.weights.held import differing, sum_of_bits
from rollout.weights.threads import on_all_cores


def test_what_is_held_is_compared_through_stacks_shards_and_replicas():
    sums = {"a.q_proj.weight": 5, "a.k_proj.weight": 2, "a.v_proj.weight": 1, "norm": 7, "expert.w1": 3}
    stacked = {"qkv_proj": ["q_proj", "k_proj", "v_proj"]}
    for qkv in ([[8]], [[3], [5]], [[8], [8]], [[5], [6]]):  # whole, sharded, on each, key-value heads on both
        held = [{"a.qkv_proj.weight": copies, "norm": [7]} for copies in qkv]
        assert differing(held, sums, stacked) == ([], {"expert.w1"})
    assert differing([{"a.qkv_proj.weight": [8, 9], "norm": [7]}], sums, stacked)[0] == ["a.qkv_proj.weight"]
    assert differing([{"a.qkv_proj.weight": [4], "norm": [7]}] * 2, sums, stacked)[0] == []
    assert differing([{"norm": [7]}, {"norm": [6]}], sums, stacked)[0] == ["norm"]
    assert differing([{"a.qkv_proj.weight": [8]}], sums, {}) == ([], {"norm", "expert.w1"}), "stacked as most models do"
    assert differing([{"a.gate_up_proj.weight": [3]}], {"a.gate_up_proj.weight": 4}, {})[0] == ["a.gate_up_proj.weight"]


def test_what_experts_hold_is_compared_with_the_sum_of_their_layers():
    sent = {
        f"mlp.experts.{e}.{layer}_proj.weight": 10**e * i for e in (0, 1) for i, layer in enumerate(("gate", "up", "down"), 1)
    }
    other = {"mlp.shared_expert.up_proj.weight": 1000}
    names = [f"mlp.experts.routed_experts.{held}" for held in ("w13_weight", "w2_weight")]
    for up, down in ([33], [33]), ([30, 3], [3, 30]):  # whole, and sharded over two ranks
        held = [dict(zip(names, ([a], [b]), strict=True)) for a, b in zip(up, down, strict=True)]
        assert differing(held, sent | other, {}) == ([], set(other))
        held[0][names[1]] = [4]
        assert differing(held, sent, {})[0] == [names[1]]
    mixtral = {f"moe.experts.0.w{i}.weight": i for i in (1, 2, 3)}
    held = {"moe.experts.routed_experts.w13_weight": [4], "moe.experts.routed_experts.w2_weight": [2]}
    assert differing([held], mixtral, {}) == ([], set())


def test_sums_see_one_bit_of_bfloat16_and_no_order():
    weights = torch.randn(8, 12, generator=torch.Generator().manual_seed(0)).bfloat16()
    assert sum_of_bits(weights) == sum_of_bits(weights.T) == sum(map(sum_of_bits, weights.split(3)))
    moved = weights.clone()
    moved[5, 3] = torch.nextafter(moved[5, 3], torch.tensor(9.0, dtype=torch.bfloat16))
    assert sum_of_bits(moved) != sum_of_bits(weights)
    assert sum_of_bits(torch.tensor([-0.0])) == sum_of_bits(torch.tensor([0.0])) == 0


def test_sums_of_many_parts_are_those_of_the_whole():
    weights = torch.randn(300_001, generator=torch.Generator().manual_seed(0)).bfloat16()
    weights[::7] = -0.0
    bits = weights.view(torch.int16).tolist()
    assert sum_of_bits(weights) == sum(value for value in bits if value != -(2**15))


def test_threads_have_all_cores_though_their_starter_is_bound_to_one():
    cores, found = os.sched_getaffinity(0), []

    def bound():
        os.sched_setaffinity(0, {min(cores)})
        with on_all_cores() as pool:
            found.append(pool.submit(os.sched_getaffinity, 0).result())

    starter = Thread(target=bound)
    starter.start()
    starter.join()
    assert found == [cores]
