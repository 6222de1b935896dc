"""Packing: a batch of scored samples and their advantages -> each rank's micro-batches.

Outputs of a group share rows with their prompt, [prompt | o_1 | o_2 ...], so a prompt is computed a few times instead of G
times. Rows of similar width go together, so little is padding. Every rank computes the same plan from the same batch and
takes its part. How rows and micro-batches fall never changes the mathematics: a token's weight is fixed over the whole batch
beforehand. What is known of every token besides (values, returns) travels as a flat list in slot order: `flat[micro.slot_N]`.
"""

import math
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from learner.algorithms.credit import Advantages, PerToken, place
from learner.algorithms.weighting import output_mean
from learner.types import MicroBatch, PackedBatch
from reward.types import ScoredSample
from rollout.types import Sample

ATTENTION_BALANCE = 2048
"""Keys at which attending costs a token as much as its matrix products: 6 x hidden size in theory, and the optimum is flat."""


@dataclass(frozen=True, slots=True)
class _Row:
    samples: list[int]
    width: int


def pack(
    batch: Sequence[ScoredSample],
    advantages: Advantages,
    *,
    weigh: Callable[[int, int, int, int], float] = output_mean,
    together: bool = False,
    max_tokens: int,
    of_rank: tuple[int, int] = (0, 1),
) -> PackedBatch:
    """The micro-batches of one rank, each of at most `max_tokens` positions (padding included) unless one output is longer.

    `of_rank`: the rank, and of how many. Only sampled tokens of samples with advantages are trained. A token weighs
    weigh(groups, G, |o|, tokens): groups, G and tokens count what is in the loss, |o| the output's sampled tokens. `together`
    keeps a whole group in one row, however long.
    Raises ValueError for an empty prompt, output fields of unequal length, and a group of several prompts kept together.
    """
    samples = [item.sample for item in batch]
    kept = [i for i, advantage in enumerate(advantages) if advantage is not None]
    members = Counter(samples[i].group_id for i in kept)
    trained = {i: sum(samples[i].sampled_mask) for i in kept if any(samples[i].sampled_mask)}
    tokens, order = sum(trained.values()), {}
    for sample in samples:
        order.setdefault(sample.group_id, len(order))
    columns, slot = {}, 0
    for i, count in trained.items():
        group = samples[i].group_id
        whole = {"token_weight_N": weigh(len(members), members[group], count, tokens), "sample_N": i, "group_N": order[group]}
        columns[i] = _columns(samples[i], advantages[i], slot) | {name: np.full(count, x) for name, x in whole.items()}
        slot += count
    plan = _deal(_rows(samples, trained, max_tokens, together), max_tokens, of_rank[1])
    positions = sum(len(rows) * rows[0].width for mine in plan for rows in mine if rows)
    used = sum(row.width for mine in plan for rows in mine for row in rows)
    return PackedBatch(
        micro_batches=tuple(_micro_batch(rows, samples, columns) for rows in plan[of_rank[0]]),
        trained_tokens=tokens,
        padding_share=1 - used / positions if positions else 0.0,
    )


def by_slot(batch: Sequence[ScoredSample], values: PerToken) -> list[float]:
    """A value for every output token, as the flat list of trained tokens in slot order; None for a sample out of the loss.

    Raises ValueError unless an output has as many values as tokens.
    """
    flat = []
    for item, row in zip(batch, values, strict=True):
        if row is not None:
            expected = len(item.sample.output_ids)
            if len(row) != expected:
                raise ValueError(f"{place(item)}: found {len(row)} values, expected {expected}, one per token")
            flat += [value for value, sampled in zip(row, item.sample.sampled_mask, strict=True) if sampled]
    return flat


def by_sample(batch: Sequence[ScoredSample], advantages: Advantages, flat: Sequence[float]) -> PerToken:
    """The inverse of `by_slot` for the samples with advantages: 0.0 at tokens that were not sampled.

    Raises ValueError unless there is a value for every trained token.
    """
    kept = [row is not None for row in advantages]
    expected = sum(sum(item.sample.sampled_mask) for item, here in zip(batch, kept, strict=True) if here)
    if len(flat) != expected:
        raise ValueError(f"found {len(flat)} values, expected {expected}, one per trained token of the batch")
    rest = iter(flat)
    return [
        tuple(next(rest) if sampled else 0.0 for sampled in item.sample.sampled_mask) if here else None
        for item, here in zip(batch, kept, strict=True)
    ]


def _rows(samples: list[Sample], trained: dict[int, int], max_tokens: int, together: bool) -> list[_Row]:
    """Outputs with the same group and prompt in shared rows, the widest row first."""
    shared = defaultdict(list)
    for i in trained:
        shared[samples[i].group_id, samples[i].prompt_ids].append(i)
    if together and len(shared) > len({group for group, _ in shared}):
        group = Counter(group for group, _ in shared).most_common(1)[0][0]
        raise ValueError(f"group {group}: found several prompts, expected one: its outputs are compared, so they share a row")
    rows = []
    for (_, prompt), indices in shared.items():
        lengths = {i: len(samples[i].output_ids) for i in indices}
        if together:
            rows.append(_Row(indices, len(prompt) + sum(lengths.values())))
        else:
            rows += _split(len(prompt), lengths, max_tokens)
    return sorted(rows, key=lambda row: (-row.width, row.samples[0]))


def _split(prompt: int, lengths: dict[int, int], max_tokens: int) -> list[_Row]:
    """Rows of similar width for one group.

    A wide row computes the prompt fewer times and attends over more keys. With the cost W (balance + W) of a row of width W
    that holds W - prompt output tokens, the cost of an output token is least at prompt + sqrt(prompt^2 + balance * prompt).
    """
    room = max(1, math.isqrt(prompt * (prompt + ATTENTION_BALANCE)))
    longest_first = sorted(lengths, key=lambda i: (-lengths[i], i))
    per_row = max(1, round(len(lengths) * room / sum(lengths.values())))
    for count in range(math.ceil(len(lengths) / per_row), len(lengths) + 1):
        bins, filled = [[] for _ in range(count)], [prompt] * count
        for i in longest_first:
            emptiest = filled.index(min(filled))
            bins[emptiest].append(i)
            filled[emptiest] += lengths[i]
        if max(filled) <= max_tokens:
            break
    return [_Row(indices, width) for indices, width in zip(bins, filled, strict=True)]


def _deal(rows: list[_Row], max_tokens: int, world_size: int) -> list[list[list[_Row]]]:
    """Rows of every micro-batch of every rank: ranks balanced by positions, the same number of micro-batches on each."""
    ranks: list[list[list[_Row]]] = [[] for _ in range(world_size)]
    loads = [0] * world_size
    for row in rows:
        emptiest = loads.index(min(loads))
        loads[emptiest] += row.width
        mine = ranks[emptiest]
        if mine and _fits(mine[-1], row, max_tokens):
            mine[-1].append(row)
        else:
            mine.append([row])
    most = max(map(len, ranks))
    return [mine + [[]] * (most - len(mine)) for mine in ranks]


def _fits(rows: list[_Row], row: _Row, max_tokens: int) -> bool:
    """Whether one more row keeps the budget, and does not pad much where the micro-batch is already of a good size."""
    width = rows[0].width
    similar = row.width >= 0.8 * width or len(rows) * width < max_tokens / 4
    return similar and (len(rows) + 1) * width <= max_tokens


def _columns(sample: Sample, advantage: Sequence[float], slot: int) -> dict[str, np.ndarray]:
    """The per-token fields of one sample's trained tokens; `place` is relative to where its output starts."""
    lengths = {len(sample.output_ids), len(sample.sampled_mask), len(advantage), len(sample.logprobs) or len(advantage)}
    if not sample.prompt_ids or len(lengths) > 1:
        where = f"group {sample.group_id}, index {sample.index}"
        found = f"{len(sample.prompt_ids)} prompt tokens, and output fields of lengths {sorted(lengths)}"
        raise ValueError(f"{where}: found {found}; expected a prompt, and one entry per output token in every field")
    mask = np.array(sample.sampled_mask, dtype=bool)
    behaviour = np.array(sample.logprobs or [math.nan] * len(mask), dtype=np.float32)[mask]
    return {
        "place_N": np.flatnonzero(mask),
        "target_N": np.array(sample.output_ids, dtype=np.int64)[mask],
        "advantage_N": np.array(advantage, dtype=np.float32)[mask],
        "behaviour_logprob_N": behaviour,
        "old_logprob_N": behaviour,
        "slot_N": np.arange(slot, slot + int(mask.sum())),
    }


def _micro_batch(rows: list[_Row], samples: list[Sample], columns: dict[int, dict[str, np.ndarray]]) -> MicroBatch:
    """Tensors of some rows. No rows give one position and no trained token, to keep a rank's collectives in step."""
    width = max((row.width for row in rows), default=1)
    ids, positions = np.zeros((2, max(1, len(rows)), width), dtype=np.int64)
    segments = np.full_like(ids, -1)
    parts = defaultdict(list)
    for b, row in enumerate(rows):
        prompt = samples[row.samples[0]].prompt_ids
        start = len(prompt)
        ids[b, :start], positions[b, :start], segments[b, :start] = prompt, np.arange(start), 0
        for segment, i in enumerate(row.samples, start=1):
            output = samples[i].output_ids
            here = slice(start, start + len(output))
            ids[b, here], segments[b, here] = output, segment
            positions[b, here] = np.arange(len(prompt), len(prompt) + len(output))
            here_N = columns[i]["place_N"] + start
            source = np.where(here_N == start, len(prompt), here_N) - 1
            for name, column in (columns[i] | {"place_N": here_N + b * width, "source_N": source + b * width}).items():
                parts[name].append(column)
            start += len(output)
    integers = ("source_N", "place_N", "target_N", "sample_N", "group_N", "slot_N")
    reals = ("advantage_N", "token_weight_N", "behaviour_logprob_N", "old_logprob_N")
    return MicroBatch(
        input_ids_BT=torch.from_numpy(ids),
        position_ids_BT=torch.from_numpy(positions),
        segment_BT=torch.from_numpy(segments),
        reference_logprob_N=None,
        value_target_N=None,
        old_value_N=None,
        **{name: _joined(parts[name], np.int64) for name in integers},
        **{name: _joined(parts[name], np.float32) for name in reals},
    )


def _joined(parts: list[np.ndarray], dtype: type) -> torch.Tensor:
    return torch.from_numpy(np.concatenate(parts).astype(dtype, copy=False) if parts else np.empty(0, dtype))
