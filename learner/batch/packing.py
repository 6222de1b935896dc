"""Packing: the outputs of a batch -> each rank's micro-batches.

Outputs of a group share rows with their prompt, [prompt | o_1 | o_2 ...], so a prompt is computed a few times instead of G
times. Rows of similar width go together, so little is padding. Every rank computes the same plan from the same batch and
takes its part. How rows and micro-batches fall never changes the mathematics: a token's weight is fixed over the whole batch
beforehand. What is known of every token besides travels as a flat list in slot order, and is handed out as `columns`.
"""

import math
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from learner.algorithms.cells import PerToken
from learner.algorithms.credit import name_of
from learner.algorithms.weighting import output_mean
from learner.types import MicroBatch, PackedBatch
from rollout.types import Sample

ATTENTION_BALANCE = 2048
"""Keys at which attending costs a token as much as its matrix products: 6 x hidden size in theory, and the optimum is flat."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Output:
    """What packing needs to know of an output."""

    name: str
    """In a message: `group grpo/17, index 2`."""
    group: int
    """Outputs of a group that have the same prompt may share a row."""
    prompt_ids: tuple[int, ...]
    output_ids: tuple[int, ...]
    mask: tuple[bool, ...]
    """Which of its tokens are trained, or read."""
    in_loss: bool = True
    """Whether it counts in the averages, and its tokens are packed at all."""


def output_of(sample: Sample, group: int, mask: tuple[bool, ...], in_loss: bool) -> Output:
    ids = {"prompt_ids": sample.prompt_ids, "output_ids": sample.output_ids}
    return Output(name=name_of(sample), group=group, mask=mask, in_loss=in_loss, **ids)


def plain_output(group: int, prompt_ids: tuple[int, ...], output_ids: tuple[int, ...]) -> Output:
    """Given tokens, all of the output's read."""
    mask = (True,) * len(output_ids)
    return Output(name=f"sequence {group}", group=group, prompt_ids=prompt_ids, output_ids=output_ids, mask=mask)


@dataclass(frozen=True, slots=True)
class Row:
    """Outputs behind their prompt."""

    samples: list[int]
    width: int
    seen: float
    """Pairs of a position and one that it sees."""


def pack(
    outputs: Sequence[Output],
    *,
    weigh: Callable[[int, int, int, int], float] = output_mean,
    together: bool = False,
    max_tokens: int,
    of_rank: tuple[int, int] = (0, 1),
) -> PackedBatch[MicroBatch]:
    """The micro-batches of one rank, each of at most `max_tokens` positions (padding included) unless one output is longer.

    `of_rank`: the rank, and of how many. Only masked tokens of outputs in the loss are trained. A token weighs
    weigh(groups, G, |o|, tokens): groups, G and tokens count what is in the loss, |o| the output's masked tokens. `together`
    keeps a whole group in one row, however long.
    Raises ValueError for an empty prompt, a mask of another length, and a group of several prompts kept together.
    """
    kept = [i for i, output in enumerate(outputs) if output.in_loss]
    members = Counter(outputs[i].group for i in kept)
    trained = {i: sum(outputs[i].mask) for i in kept if any(outputs[i].mask)}
    tokens, fields, slot = sum(trained.values()), {}, 0
    for i, count in trained.items():
        group = outputs[i].group
        whole = {"token_weight_N": weigh(len(members), members[group], count, tokens), "sample_N": i, "group_N": group}
        fields[i] = _fields(outputs[i], slot) | {name: np.full(count, x) for name, x in whole.items()}
        slot += count
    plan = _deal(_rows(outputs, trained, max_tokens, together), max_tokens, of_rank[1])
    positions = sum(len(rows) * rows[0].width for mine in plan for rows in mine if rows)
    used = sum(row.width for mine in plan for rows in mine for row in rows)
    micros, padding = tuple(_micro_batch(rows, outputs, fields) for rows in plan[of_rank[0]]), positions - used
    return PackedBatch(micro_batches=micros, trained_tokens=tokens, padding_share=padding / max(positions, 1))


def layout(groups: Sequence[tuple[int, Sequence[int]]], max_tokens: int, world_size: int) -> list[list[list[Row]]]:
    """Rows of every micro-batch of every rank, from lengths alone: of each group its prompt and its outputs."""
    rows = [row for prompt, lengths in groups for row in _split(prompt, dict(enumerate(lengths)), max_tokens)]
    plan = _deal(sorted(rows, key=lambda row: -row.width), max_tokens, world_size)
    return [[rows for rows in mine if rows] for mine in plan]


def columns(packed: PackedBatch, outputs: Sequence[Output], values: PerToken) -> list[Tensor]:
    """Of a value for every output token: the float32 values of each micro-batch's trained tokens."""
    device = next((micro.device for micro in packed.micro_batches), None)
    flat = torch.from_numpy(by_slot(outputs, values).astype(np.float32)).to(device)
    return [flat[micro.slot_N] for micro in packed.micro_batches]


def by_slot(outputs: Sequence[Output], values: PerToken) -> np.ndarray:
    """A value for every output token, as one array of the trained tokens in slot order; those out of the loss are left out.

    Raises ValueError unless an output has as many values as tokens.
    """
    parts = [np.empty(0)]
    for output, row in zip(outputs, values, strict=True):
        if output.in_loss:
            found, expected = 0 if row is None else len(row), len(output.output_ids)
            if found != expected:
                raise ValueError(f"{output.name}: found {found} values, expected {expected}, one per token")
            parts.append(np.array(row or (), dtype=np.float64)[np.array(output.mask, dtype=bool)])
    return np.concatenate(parts)


def by_sample(outputs: Sequence[Output], flat: Sequence[float]) -> list[tuple[float, ...] | None]:
    """The inverse of `by_slot`: 0.0 at tokens that are not trained, None for outputs out of the loss.

    Raises ValueError unless there is a value for every trained token.
    """
    expected = sum(sum(output.mask) for output in outputs if output.in_loss)
    if len(flat) != expected:
        raise ValueError(f"found {len(flat)} values, expected {expected}, one per trained token of the batch")
    rest = iter(flat)
    return [tuple(next(rest) if here else 0.0 for here in output.mask) if output.in_loss else None for output in outputs]


def _rows(outputs: Sequence[Output], trained: dict[int, int], max_tokens: int, together: bool) -> list[Row]:
    """Outputs with the same group and prompt in shared rows, the widest row first."""
    shared = defaultdict(list)
    for i in trained:
        shared[outputs[i].group, outputs[i].prompt_ids].append(i)
    if together and len(shared) > len({group for group, _ in shared}):
        group = Counter(group for group, _ in shared).most_common(1)[0][0]
        name = next(outputs[i].name for i in trained if outputs[i].group == group)
        raise ValueError(f"{name}: found several prompts in its group, expected one: its outputs are compared in one row")
    rows = []
    for (_, prompt), indices in shared.items():
        lengths = {i: len(outputs[i].output_ids) for i in indices}
        if together:
            rows.append(_row(len(prompt), lengths))
        else:
            rows += _split(len(prompt), lengths, max_tokens)
    return sorted(rows, key=lambda row: (-row.width, row.samples[0]))


def _row(prompt: int, lengths: dict[int, int]) -> Row:
    seen = (prompt**2 + sum(length * (2 * prompt + length) for length in lengths.values())) / 2
    return Row(list(lengths), prompt + sum(lengths.values()), seen)


def _split(prompt: int, lengths: dict[int, int], max_tokens: int) -> list[Row]:
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
    return [_row(prompt, {i: lengths[i] for i in indices}) for indices in bins]


def _deal(rows: list[Row], max_tokens: int, world_size: int) -> list[list[list[Row]]]:
    """Rows of every micro-batch of every rank: ranks balanced by positions, the same number of micro-batches on each."""
    ranks: list[list[list[Row]]] = [[] for _ in range(world_size)]
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


def _fits(rows: list[Row], row: Row, max_tokens: int) -> bool:
    """Whether one more row keeps the budget, and does not pad much where the micro-batch is already of a good size."""
    width = rows[0].width
    similar = row.width >= 0.8 * width or len(rows) * width < max_tokens / 4
    return similar and (len(rows) + 1) * width <= max_tokens


def _fields(output: Output, slot: int) -> dict[str, np.ndarray]:
    """The per-token fields of one output's trained tokens; `index_N` is relative to where the output starts."""
    if not output.prompt_ids or len(output.mask) != len(output.output_ids):
        found = f"{len(output.prompt_ids)} prompt tokens, and a mask of length {len(output.mask)}"
        raise ValueError(f"{output.name}: found {found}; expected a prompt, and {len(output.output_ids)} entries of the mask")
    mask = np.array(output.mask, dtype=bool)
    return {
        "index_N": np.flatnonzero(mask),
        "target_N": np.array(output.output_ids, dtype=np.int64)[mask],
        "slot_N": np.arange(slot, slot + int(mask.sum())),
    }


def _micro_batch(rows: list[Row], outputs: Sequence[Output], fields: dict[int, dict[str, np.ndarray]]) -> MicroBatch:
    """Tensors of some rows. No rows give one position and no trained token, to keep a rank's collectives in step."""
    width = max((row.width for row in rows), default=1)
    ids, positions = np.zeros((2, max(1, len(rows)), width), dtype=np.int64)
    segments = np.full_like(ids, -1)
    parts = defaultdict(list)
    for b, row in enumerate(rows):
        prompt = outputs[row.samples[0]].prompt_ids
        start = len(prompt)
        ids[b, :start], positions[b, :start], segments[b, :start] = prompt, np.arange(start), 0
        for segment, i in enumerate(row.samples, start=1):
            output = outputs[i].output_ids
            here = slice(start, start + len(output))
            ids[b, here], segments[b, here] = output, segment
            positions[b, here] = np.arange(len(prompt), len(prompt) + len(output))
            here_N = fields[i]["index_N"] + start
            source = np.where(here_N == start, len(prompt), here_N) - 1
            for name, column in (fields[i] | {"index_N": here_N + b * width, "source_N": source + b * width}).items():
                parts[name].append(column)
            start += len(output)
    integers = ("source_N", "index_N", "target_N", "sample_N", "group_N", "slot_N")
    return MicroBatch(
        input_ids_BT=torch.from_numpy(ids),
        position_ids_BT=torch.from_numpy(positions),
        segment_BT=torch.from_numpy(segments),
        token_weight_N=_joined(parts["token_weight_N"], np.float32),
        shared=any(len(row.samples) > 1 for row in rows),
        **{name: _joined(parts[name], np.int64) for name in integers},
    )


def _joined(parts: list[np.ndarray], dtype: type) -> torch.Tensor:
    return torch.from_numpy(np.concatenate(parts).astype(dtype, copy=False) if parts else np.empty(0, dtype))
