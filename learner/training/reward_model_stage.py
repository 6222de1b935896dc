"""A stage that trains a reward model on labelled outputs, and how one is read on them.

An example is a scored sample whose events are its labels. The trained tokens of a batch are the labelled ones.
"""

import hashlib
import math
from collections import defaultdict
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, replace

import torch

from learner.algorithms.credit import Advantages, Signed, at_tokens, place
from learner.algorithms.table import CrossEntropy, Ranking
from learner.batch.packing import by_slot
from learner.models.scalars import scalars
from learner.models.sharding import attach_by_slot, gather_by_slot, score
from learner.stage import StageSpec
from learner.training.objectives import LabelObjective, RankingObjective
from learner.training.policy_stage import Pack
from learner.training.trainer import Trainer
from learner.types import StepReport
from reward.models.scalar_model import ScalarModel
from reward.types import ScoredSample

Batch = Sequence[ScoredSample]


class RewardModelStage:
    """A reward model of one or several members, and its optimizer."""

    def __init__(self, spec: StageSpec, pack: Pack, model: ScalarModel):
        self._pack, self._model, self._seed = pack, model, spec.seed
        self._loss = LOSSES[type(spec.row.objective)]
        self.models = {}
        self.trainers = {"reward_model": Trainer(model, spec.optimizer, spec.total_updates)}

    def step(self, batch: Batch, updates: int, temperature: float) -> StepReport:
        """Updates on the labels of a batch; scores have no temperature. An example in the loss has the advantage 0.

        Raises ValueError for labels that the objective cannot read.
        """
        batch = at_labels(batch)
        trained = self._loss.in_loss(batch)
        labels = [at_tokens(item, [event.value for event in item.events]) for item in batch]
        targets = by_slot(batch, [row if here is not None else None for row, here in zip(labels, trained, strict=True)])
        packed = self._pack(batch, trained, weigh=mean, together=self._loss.together)
        packed = attach_by_slot(packed, value_target_N=targets)
        counts = bootstrap(self._loss.examples(batch), len(self._model.members), self._seed)
        weight_KS = torch.tensor(counts, dtype=torch.float32, device=self._model.heads[0].weight.device)
        metrics = self.trainers["reward_model"].train(packed, [self._loss.objective(weight_KS=weight_KS)] * updates)
        return StepReport(
            metrics=metrics | {"trained_tokens": packed.trained_tokens, "padding_share": packed.padding_share},
            advantages=[None if row is None else 0.0 for row in trained],
            tokens=packed.trained_tokens,
        )


def scores(model: ScalarModel, pack: Pack, batch: Batch) -> list[tuple[tuple[float, ...], ...]]:
    """Per example, per event, the K scalars at the event's token; nothing for an example without events. A collective."""
    packed = pack(at_labels(batch), _zeros(batch))
    read = score(model, packed, lambda model, micro: scalars(model, micro, micro.place_N))
    flat = iter(gather_by_slot(read, packed).movedim(-1, 0).tolist())
    found = []
    for item in batch:
        at = {position: tuple(next(flat)) for position in sorted(event.position for event in item.events)}
        found.append(tuple(at[event.position] for event in item.events))
    return found


def at_labels(batch: Batch) -> list[ScoredSample]:
    """The batch with the labelled tokens, and no others, as those to train.

    Raises ValueError for a label outside its output, and for two at one token.
    """
    found = []
    for item in batch:
        positions = [event.position for event in item.events]
        length = len(item.sample.output_ids)
        if len(set(positions)) < len(positions) or not all(0 <= position < length for position in positions):
            raise ValueError(f"{place(item)}: labels at tokens {positions}, expected different ones of 0 to {length - 1}")
        mask = tuple(t in positions for t in range(length))
        found.append(replace(item, sample=replace(item.sample, sampled_mask=mask)))
    return found


def mean(groups: int, group_size: int, length: int, total_tokens: int) -> float:
    """The weight of a label: all count the same, however they are spread over outputs and groups."""
    return 1.0 / total_tokens


def ranked(batch: Batch) -> Advantages:
    """Which outputs are in a pair of a better and a worse one. Raises ValueError unless labels stand at last tokens only."""
    for item in batch:
        positions = [event.position for event in item.events]
        if positions and positions != [len(item.sample.output_ids) - 1]:
            raise ValueError(f"{place(item)}: labels at tokens {positions}, expected one at the last token, to rank it by")
    return Signed()(batch)


def labelled(batch: Batch) -> Advantages:
    """Which outputs have labels. Raises ValueError for a label outside [0, 1]."""
    for item in batch:
        wrong = [event.value for event in item.events if not 0.0 <= event.value <= 1.0]
        if wrong:
            raise ValueError(f"{place(item)}: found label {wrong[0]}, expected a probability in [0, 1]")
    return _zeros(batch)


def _zeros(batch: Batch) -> Advantages:
    return [(0.0,) * len(item.sample.output_ids) if item.events else None for item in batch]


def outputs(batch: Batch) -> list[Hashable]:
    """Every output is an example."""
    return [(item.sample.prompt_ids, item.sample.output_ids) for item in batch]


def pairs(batch: Batch) -> list[Hashable]:
    """Every pair is one example, which both of its outputs stand for."""
    members = defaultdict(list)
    for item, output in zip(batch, outputs(batch), strict=True):
        members[item.sample.group_id].append(output)
    return [tuple(sorted(members[item.sample.group_id])) for item in batch]


def bootstrap(examples: Sequence[Hashable], members: int, seed: int) -> list[list[int]]:
    """Per member, how often it sees each example: draws from Poisson(1), the limit of drawing with replacement.

    A draw depends on the seed, the member and the example's tokens alone, so a member keeps its sample for the whole run, over
    updates, stages and replay. A single member sees everything once.
    """
    if members == 1:
        return [[1] * len(examples)]
    return [[_poisson(_uniform(f"{seed}/{member}/{example!r}")) for example in examples] for member in range(members)]


def _uniform(key: str) -> float:
    return int.from_bytes(hashlib.blake2b(key.encode(), digest_size=8).digest(), "little") / 2**64


def _poisson(uniform: float) -> int:
    """The inverse of Poisson(1)'s distribution function."""
    count, term = 0, math.exp(-1)
    reached = term
    while uniform > reached and term > 0:
        count += 1
        term /= count
        reached += term
    return count


@dataclass(frozen=True, slots=True, kw_only=True)
class _Loss:
    """What belongs to one cell: its torch objective, which examples are in the loss, and what one example is."""

    objective: type[RankingObjective] | type[LabelObjective]
    in_loss: Callable[[Batch], Advantages]
    examples: Callable[[Batch], list[Hashable]]
    together: bool


LOSSES = {
    Ranking: _Loss(objective=RankingObjective, in_loss=ranked, examples=pairs, together=True),
    CrossEntropy: _Loss(objective=LabelObjective, in_loss=labelled, examples=outputs, together=False),
}
