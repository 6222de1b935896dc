"""The vocabulary of the learner stage. Shape suffixes:

    _B rows of a micro-batch      _T positions of a row (prompt, outputs, padding)
    _N trained tokens             _D hidden size      _V vocabulary

Several outputs of a group share a row with their prompt, [prompt | o_1 | o_2 ...], so the tokens that carry gradient are a flat
list of N rather than a rectangle.
"""

from dataclasses import dataclass, fields, replace

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True, kw_only=True)
class MicroBatch:
    """What one forward and backward pass works on.

    Example: prompt (7, 8) with outputs (5, 2) and (6,), all sampled, is one row of 5 positions: input_ids_BT = [[7, 8, 5, 2,
    6]], position_ids_BT = [[0, 1, 2, 3, 2]], segment_BT = [[0, 0, 1, 1, 2]], source_N = [1, 2, 1], place_N = [2, 3, 4],
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
    place_N: Tensor
    """int64: b * T + t of the token itself, where a reward model scores what ends with it."""
    target_N: Tensor
    """int64: the token ids."""
    advantage_N: Tensor
    token_weight_N: Tensor
    """Normalised over the whole batch, 1 / (groups * G * |o|) in the paper: losses of micro-batches and ranks are summed."""
    behaviour_logprob_N: Tensor
    """As recorded while sampling; NaN for demonstrations, which were not sampled."""
    old_logprob_N: Tensor
    """The denominator of the ratio: the behaviour's, unless the weighting has the learner recompute it."""
    reference_logprob_N: Tensor | None
    """Under the frozen reference; None unless the weighting needs it."""
    value_target_N: Tensor | None
    """A critic's return, or a reward model's label where one stands and NaN elsewhere; None for a policy."""
    old_value_N: Tensor | None
    """The critic's value when the batch was sampled; None unless a critic trains."""
    sample_N: Tensor
    """int64: index of the token's sample in the batch."""
    group_N: Tensor
    """int64: index of the token's group in the batch."""
    slot_N: Tensor
    """int64: place of the token among all trained tokens of the batch, ordered by sample."""

    @property
    def device(self) -> torch.device:
        return self.input_ids_BT.device

    def to(self, device: torch.device) -> "MicroBatch":
        """The same micro-batch with every tensor on `device`."""
        moved = {f.name: getattr(self, f.name) for f in fields(self)}
        return replace(self, **{name: x.to(device, non_blocking=True) for name, x in moved.items() if x is not None})


@dataclass(frozen=True, slots=True, kw_only=True)
class PackedBatch:
    """One rank's share of a batch. Every rank has the same number of micro-batches, since their collectives must match."""

    micro_batches: tuple[MicroBatch, ...]
    trained_tokens: int
    """Of the whole batch, all ranks."""
    padding_share: float
    """Share of padding among the positions of all ranks' micro-batches."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StepReport:
    """What a learner step did; the same on every rank."""

    metrics: dict[str, float]
    advantages: list[float | None]
    """Per sample of the batch: the advantage of its first token; None when the sample was out of the loss."""
    tokens: int
    """Trained tokens of the batch."""
