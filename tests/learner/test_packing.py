"""Packing: what is in the micro-batches, and that the plan never changes a token's weight."""

import math

import pytest
import torch

from learner.algorithms.credit import GroupRelative, Ones
from learner.algorithms.weighting import Cispo, Clipped, Plain, Preference, SequenceClipped
from learner.batch.packing import by_sample, by_slot
from tests.learner.builders import credit, outputs, pack, random_batch, scored


def tokens_of(packed_ranks):
    """Every trained token of all ranks as {slot: its fields, itself at its index, and the id and position that predict it}."""
    found = {}
    for packed in packed_ranks:
        for micro in packed.micro_batches:
            ids, positions = micro.input_ids_BT.flatten(), micro.position_ids_BT.flatten()
            for n, slot in enumerate(micro.slot_N.tolist()):
                source = micro.source_N[n]
                fields = (micro.target_N, micro.advantage_N, micro.token_weight_N, micro.behaviour_logprob_N, micro.sample_N)
                fields += (micro.group_N, ids[micro.index_N], positions[micro.index_N])
                assert slot not in found
                found[slot] = (*(x[n].item() for x in fields), ids[source].item(), positions[source].item())
    return found


def paper(groups, members, length, tokens):
    return 1 / groups / members / length


def expected_tokens(batch, advantages, weight=paper):
    """The same, one token at a time from the definition."""
    kept = [i for i, row in enumerate(advantages) if row is not None]
    groups = {batch[i].sample.group_id for i in kept}
    tokens = sum(sum(batch[i].sample.sampled_mask) for i in kept)
    order = list(dict.fromkeys(item.sample.group_id for item in batch))
    found, slot = {}, 0
    for i in kept:
        sample = batch[i].sample
        in_group = sum(batch[j].sample.group_id == sample.group_id for j in kept)
        for t, token in enumerate(sample.output_ids):
            if sample.sampled_mask[t]:
                index = len(sample.prompt_ids) + t
                before = (sample.prompt_ids + sample.output_ids)[index - 1]
                weighs = weight(len(groups), in_group, sum(sample.sampled_mask), tokens)
                reals = (advantages[i][t], weighs, sample.logprobs[t])
                where = (i, order.index(sample.group_id), token, index, before, index - 1)
                found[slot] = (token, *map(pytest.approx, reals), *where)
                slot += 1
    return found


@pytest.mark.parametrize("world_size", [1, 2, 5])
@pytest.mark.parametrize("max_tokens", [1, 20, 64, 4096])
def test_every_sampled_token_is_trained_once_with_its_weight_and_predictor(max_tokens, world_size):
    batch = random_batch()
    advantages = credit(GroupRelative(), batch)
    advantages[4] = None
    ranks = [pack(batch, advantages, max_tokens=max_tokens, of_rank=(r, world_size)) for r in range(world_size)]
    expected = expected_tokens(batch, advantages)
    assert tokens_of(ranks) == expected
    assert {packed.trained_tokens for packed in ranks} == {len(expected)}
    assert len({len(packed.micro_batches) for packed in ranks}) == 1


WEIGHTS = [
    (Plain(), paper),
    (SequenceClipped(), paper),
    (Cispo(), lambda groups, members, length, tokens: 1 / tokens),
    (Plain(average="sum"), lambda groups, members, length, tokens: 1 / groups / members),
    (Clipped(average="constant", constant_length=50), lambda groups, members, length, tokens: 1 / groups / members / 50),
    (Preference(), lambda groups, members, length, tokens: 1 / groups / length),
    (Preference(average="sum"), lambda groups, members, length, tokens: 1 / groups),
]


@pytest.mark.parametrize(("weighting", "weight"), WEIGHTS)
@pytest.mark.parametrize("together", [False, True])
def test_a_weight_is_that_of_its_average_over_the_whole_batch_however_it_is_packed(weighting, weight, together):
    batch = random_batch(seed=3, groups=5)
    advantages = credit(GroupRelative(), batch)
    for out in (2, 7, 8, 9, 10, 11):
        advantages[out] = None
    expected = expected_tokens(batch, advantages, weight)
    for max_tokens, world_size in ((1, 1), (30, 2), (200, 3), (4096, 1)):
        options = {"weigh": weighting.token_weight, "together": together, "max_tokens": max_tokens}
        ranks = [pack(batch, advantages, **options, of_rank=(r, world_size)) for r in range(world_size)]
        assert tokens_of(ranks) == expected


@pytest.mark.parametrize("world_size", [1, 2, 3, 7])
@pytest.mark.parametrize("max_tokens", [1, 10, 17, 25, 64, 4096])
def test_pairs_are_never_split(max_tokens, world_size):
    batch = random_batch(seed=1, groups=9, size=2)
    order = torch.randperm(len(batch), generator=torch.Generator().manual_seed(0)).tolist()
    batch = [batch[i] for i in order]
    options = {"together": True, "max_tokens": max_tokens}
    ranks = [pack(batch, credit(Ones(), batch), **options, of_rank=(r, world_size)) for r in range(world_size)]
    homes = {}
    for r, packed in enumerate(ranks):
        for m, micro in enumerate(packed.micro_batches):
            rows, width = micro.input_ids_BT.shape
            assert rows * width <= max_tokens or rows == 1
            for group, index in zip(micro.group_N.tolist(), micro.index_N.tolist(), strict=True):
                homes.setdefault(group, set()).add((r, m, index // width))
    assert sorted(homes) == list(range(9))
    assert all(len(indices) == 1 for indices in homes.values())
    assert tokens_of(ranks) == expected_tokens(batch, credit(Ones(), batch))


def test_a_group_of_several_prompts_cannot_be_kept_together():
    batch = [scored("a", 0, [5], [6]), scored("a", 1, [5], [7]), scored("b", 0, [5], [6]), scored("b", 1, [8], [7])]
    with pytest.raises(ValueError, match="group b, index 0: found several prompts in its group, expected one"):
        pack(batch, credit(Ones(), batch), together=True, max_tokens=100)
    assert pack(batch, credit(Ones(), batch), max_tokens=100).trained_tokens == 4


def test_values_of_tokens_go_to_slots_and_back():
    batch = random_batch()
    advantages = credit(GroupRelative(), batch)
    advantages[4] = None
    values = [row and tuple(10.0 * i + t for t in range(len(row))) for i, row in enumerate(advantages)]
    made = outputs(batch, advantages)
    flat = by_slot(made, values)
    back = by_sample(made, flat)
    masks = [item.sample.sampled_mask for item in batch]
    assert back == [
        row and tuple(x if s else 0.0 for x, s in zip(row, m, strict=True)) for row, m in zip(values, masks, strict=True)
    ]
    whole = torch.tensor(flat)
    for micro in pack(batch, advantages, max_tokens=40).micro_batches:
        assert torch.equal((whole[micro.slot_N] // 10).long(), micro.sample_N)
        tokens = [batch[i].sample.output_ids[t] for i, t in zip(micro.sample_N, (whole[micro.slot_N] % 10).int(), strict=True)]
        assert tokens == micro.target_N.tolist()


def test_values_that_do_not_fit_the_batch_are_refused():
    batch = [scored("a", 3, [5], [6, 7], mask=[True, False])]
    with pytest.raises(ValueError, match="group a, index 3: found 1 values, expected 2, one per token"):
        by_slot(outputs(batch, [(1.0,)]), [(1.0,)])
    with pytest.raises(ValueError, match="found 2 values, expected 1, one per trained token of the batch"):
        by_sample(outputs(batch, [(1.0, 1.0)]), [1.0, 2.0])


def test_the_worked_example_of_the_type_holds():
    batch = [scored("g", 0, [7, 8], [5, 2]), scored("g", 1, [7, 8], [6])]
    (micro,) = pack(batch, credit(Ones(), batch), max_tokens=100).micro_batches
    assert micro.input_ids_BT.tolist() == [[7, 8, 5, 2, 6]]
    assert micro.position_ids_BT.tolist() == [[0, 1, 2, 3, 2]]
    assert micro.segment_BT.tolist() == [[0, 0, 1, 1, 2]]
    assert micro.source_N.tolist() == [1, 2, 1]
    assert micro.index_N.tolist() == [2, 3, 4]
    assert micro.target_N.tolist() == [5, 2, 6]
    assert micro.token_weight_N.tolist() == [0.25, 0.25, 0.5]
    assert micro.behaviour_logprob_N.isnan().all()


def test_the_budget_bounds_a_micro_batch_unless_one_output_is_longer():
    batch = [*random_batch(groups=6, size=8), scored("long", 0, [5] * 10, [6] * 90)]
    for micro in pack(batch, credit(Ones(), batch), max_tokens=64).micro_batches:
        rows, width = micro.input_ids_BT.shape
        assert rows * width <= 64 or (rows, width) == (1, 100)


def test_a_prompt_is_shared_by_outputs_of_its_group_only():
    batch = [scored(g, i, [5] * 50, [6] * 10) for g in ("a", "b") for i in range(4)]
    packed = pack(batch, credit(Ones(), batch), max_tokens=4096)
    assert sorted(len(row) for micro in packed.micro_batches for row in micro.input_ids_BT) == [90, 90]
    assert packed.padding_share == 0


def test_rows_of_long_outputs_are_split_and_of_similar_width():
    batch = [scored("a", i, [5] * 50, [6] * (200 + i)) for i in range(6)]
    packed = pack(batch, credit(Ones(), batch), max_tokens=100_000)
    (micro,) = packed.micro_batches
    assert 1 < len(micro.input_ids_BT) < 6
    assert packed.padding_share < 0.02


def test_padding_is_counted_over_all_ranks():
    batch = [scored("a", 0, [5] * 3, [6] * 5), scored("b", 0, [5], [6])]
    assert pack(batch, credit(Ones(), batch), max_tokens=100).padding_share == pytest.approx(6 / 16)
    assert pack(batch, credit(Ones(), batch), max_tokens=100, of_rank=(1, 2)).padding_share == 0


def test_ranks_get_similar_shares():
    batch = random_batch(groups=16, size=8)
    sizes = [
        sum(m.input_ids_BT.numel() for m in pack(batch, credit(Ones(), batch), max_tokens=128, of_rank=(r, 2)).micro_batches)
        for r in range(2)
    ]
    assert max(sizes) / min(sizes) < 1.15


def test_a_rank_without_rows_gets_a_micro_batch_without_tokens():
    batch = [scored("a", 0, [5], [6, 7])]
    (micro,) = pack(batch, credit(Ones(), batch), max_tokens=100, of_rank=(1, 2)).micro_batches
    assert micro.input_ids_BT.shape == (1, 1)
    assert len(micro.source_N) == len(micro.token_weight_N) == 0


def test_nothing_to_train_gives_no_micro_batches():
    batch = [scored("a", 0, [5], [6, 7], mask=[False, False]), scored("a", 1, [5], [])]
    packed = pack(batch, credit(Ones(), batch), max_tokens=100)
    assert (packed.micro_batches, packed.trained_tokens, packed.padding_share) == ((), 0, 0.0)


def test_an_output_out_of_the_loss_changes_no_weight_and_an_empty_one_counts():
    batch = [scored("a", 0, [5], [6, 7]), scored("a", 1, [5], [6]), scored("b", 0, [5], [9])]
    (micro,) = pack(batch, [(1.0, 1.0), None, None], max_tokens=100).micro_batches
    assert micro.token_weight_N.tolist() == [0.5, 0.5]
    batch[1] = scored("a", 1, [5], [])
    (micro,) = pack(batch, [(1.0, 1.0), (), None], max_tokens=100).micro_batches
    assert micro.token_weight_N.tolist() == [0.25, 0.25]
    assert math.isclose(sum(micro.token_weight_N.tolist()), 1 / 2)


def test_malformed_samples_are_named():
    with pytest.raises(ValueError, match="group a, index 3: found 0 prompt tokens"):
        pack([scored("a", 3, [], [6])], [(1.0,)], max_tokens=100)
    with pytest.raises(ValueError, match="group a, index 1: .*a mask of length 1; expected a prompt, and 2 entries"):
        pack([scored("a", 1, [5], [6, 7], mask=[True])], [(1.0, 1.0)], max_tokens=100)
    with pytest.raises(ValueError, match="group a, index 0: found 3 values, expected 2"):
        pack([scored("a", 0, [5], [6, 7], logprobs=[-1.0] * 3)], [(1.0, 1.0)], max_tokens=100)
