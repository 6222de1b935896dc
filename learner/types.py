"""The vocabulary of the learner stage. Shape suffixes:

    _B rows of a micro-batch      _T positions of a row (prompt, outputs, padding)
    _N trained tokens             _D hidden size      _V vocabulary
    _M some tokens of a position  _O these, and all others as one more outcome

Several outputs of a group share a row with their prompt, [prompt | o_1 | o_2 ...], so the tokens that carry gradient are a flat
list of N rather than a rectangle.
"""

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Generic, Self, TypeVar

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True, kw_only=True)
class MicroBatch:
    """The tokens that one forward pass works on. Its subclasses add, per trained token, what a kind of model learns from.

    Example: prompt (7, 8) with outputs (5, 2) and (6,), all sampled, is one row of 5 positions: input_ids_BT = [[7, 8, 5, 2,
    6]], position_ids_BT = [[0, 1, 2, 3, 2]], segment_BT = [[0, 0, 1, 1, 2]], source_N = [1, 2, 1], index_N = [2, 3, 4],
    target_N = [5, 2, 6].
    """

    input_ids_BT: Tensor
    """int64; padding has id 0."""
    position_ids_BT: Tensor
    """int64; every output continues from the prompt's length."""
    segment_BT: Tensor
    """int64: 0 for the prompt, k for the row's k-th output, -1 for padding. A position sees the prompt and its own segment."""
    source_N: Tensor
    """int64: b * T + t of the position that predicts the token; an output's first token is predicted by the prompt's last."""
    index_N: Tensor
    """int64: b * T + t of the token itself, where a reward model reads what ends with it."""
    target_N: Tensor
    """int64: the token ids."""
    token_weight_N: Tensor
    """Normalised over the whole batch, 1 / (groups * G * |o|) in the paper: losses of micro-batches and ranks are summed."""
    sample_N: Tensor
    """int64: index of the token's sample in the batch."""
    group_N: Tensor
    """int64: index of the token's group in the batch."""
    slot_N: Tensor
    """int64: position of the token among all trained tokens of the batch, ordered by sample."""
    shared: bool = True
    """Whether any row has several outputs; else a position simply sees all before it."""

    @property
    def device(self) -> torch.device:
        return self.input_ids_BT.device

    def to(self, device: torch.device) -> Self:
        """The same micro-batch with every tensor on `device`."""
        tensors = {f.name: x for f in fields(self) if isinstance(x := getattr(self, f.name), Tensor)}
        return replace(self, **{name: x.to(device, non_blocking=True) for name, x in tensors.items()})


@dataclass(frozen=True, slots=True, kw_only=True)
class PolicyBatch(MicroBatch):
    """What a policy is trained on."""

    advantage_N: Tensor
    behaviour_logprob_N: Tensor
    """log mu, as recorded while sampling; NaN for demonstrations, which were not sampled."""
    old_logprob_N: Tensor
    """log pi_old, the denominator of the ratio: as recorded, or recomputed by the learner before the first update."""
    reference_logprob_N: Tensor
    """Under the frozen reference; NaN where the row needs none."""


@dataclass(frozen=True, slots=True, kw_only=True)
class OutcomeBatch(PolicyBatch):
    """What a policy is trained on that learns from more of a position than its sampled token."""

    token_NM: Tensor
    """int64: the tokens that the policy found most likely before the batch's first update."""
    teacher_logprob_NO: Tensor
    """log p_T of each of them, and of all others together."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ValueBatch(MicroBatch):
    """What a critic is trained on."""

    old_value_N: Tensor
    """What it said before the first update."""
    return_N: Tensor


@dataclass(frozen=True, slots=True, kw_only=True)
class LabelBatch(MicroBatch):
    """What a reward model is trained on; the trained tokens are the labelled ones."""

    label_N: Tensor


Micro = TypeVar("Micro", bound=MicroBatch, covariant=True)
Kind = TypeVar("Kind", bound=MicroBatch)
Columns = Sequence[Tensor]
"""Of every micro-batch, (N,) or (K, N) numbers of its trained tokens."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PackedBatch(Generic[Micro]):
    """One rank's share of a batch. Every rank has the same number of micro-batches, since their collectives must match."""

    micro_batches: tuple[Micro, ...]
    trained_tokens: int
    """Of the whole batch, all ranks."""
    padding_share: float
    """Share of padding among the positions of all ranks' micro-batches."""

    def to_train(self, kind: type[Kind], **columns: Columns) -> "PackedBatch[Kind]":
        """The same tokens as micro-batches of `kind`, with the fields that it adds."""
        shared = [{f.name: getattr(micro, f.name) for f in fields(micro)} for micro in self.micro_batches]
        added = [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]
        micros = tuple(kind(**a, **b) for a, b in zip(shared, added, strict=True))
        return PackedBatch(micro_batches=micros, trained_tokens=self.trained_tokens, padding_share=self.padding_share)


@dataclass(frozen=True, slots=True, kw_only=True)
class StepReport:
    """What a learner step did; the same on every rank."""

    metrics: dict[str, float]
    advantages: list[float | None]
    """Per sample of the batch: the advantage of its first token; None when the sample was out of the loss."""
    tokens: int
    """Trained tokens of the batch."""
    token_advantages: Sequence[Sequence[float] | None] = ()
    """Per sample, of each of its tokens, 0 where it is not trained; empty for a reward model."""
    mismatch: Sequence[Sequence[float] | None] = ()
    """The same of log pi_learner - log pi_engine before the first update; empty where the stage compares none."""

    @classmethod
    def of(cls, packed: PackedBatch, metrics: dict[str, float], advantages: list[float | None]) -> Self:
        """With the metrics of the packing."""
        tokens = packed.trained_tokens
        more = {"trained_tokens": tokens, "padding_share": packed.padding_share}
        return cls(metrics=metrics | more, advantages=advantages, tokens=tokens)
