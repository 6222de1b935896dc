"""A stage that trains a reward model on labelled outputs, and how one is read on them. The trained tokens are the labelled."""

import hashlib
import math
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass

import torch

from learner.algorithms.credit import name_of
from learner.algorithms.labels import CrossEntropy, Ranking
from learner.algorithms.table import RewardModelRow
from learner.batch.packing import Output, columns, output_of
from learner.models.scalars import scalars
from learner.models.sharding import gather_by_slot, read_all
from learner.stage import StageSpec
from learner.training.objectives import LabelObjective, RankingObjective
from learner.training.policy_stage import Pack
from learner.training.trainer import Trainer
from learner.types import LabelBatch, StepReport
from reward.models.scalar_model import ScalarModel
from reward.types import Labelled, LabelledGroup
from rollout.rounding import apart

Batch = Sequence[LabelledGroup]


class RewardModelStage:
    """A reward model of one or several members, and its optimizer."""

    def __init__(self, spec: StageSpec, row: RewardModelRow, pack: Pack, model: ScalarModel):
        self._pack, self._model, self._seed = pack, model, spec.seed
        self._loss = LOSSES[type(row.objective)]
        self.models = {}
        self.trainers = {"reward_model": Trainer(model, spec.optimizer, spec.total_updates)}

    def step(self, batch: Batch, updates: int, temperature: float) -> StepReport:
        """Updates on the labels of a batch; scalars have no temperature. An example in the loss has the advantage 0.

        Raises ValueError for labels that the objective cannot read.
        """
        outputs = outputs_of(batch, self._loss.in_loss(batch))
        packed = self._pack(outputs, weigh=mean, together=self._loss.together)
        labels = packed.to_train(LabelBatch, label_N=columns(packed, outputs, [_labels(item) for item in _flat(batch)]))
        counts = bootstrap(self._loss.examples(batch), len(self._model.members), self._seed)
        weight_KS = torch.tensor(counts, dtype=torch.float32, device=self._model.heads[0].weight.device)
        metrics = self.trainers["reward_model"].train(labels, [self._loss.objective(weight_KS=weight_KS)] * updates)
        return StepReport.of(packed, metrics, [0.0 if output.in_loss else None for output in outputs])


def scalars_at_targets(model: ScalarModel, pack: Pack, batch: Batch) -> list[tuple[tuple[float, ...], ...]]:
    """Per example, per target, the K scalars at the target's token; nothing for an example without one. A collective."""
    packed = pack(outputs_of(batch, [bool(item.targets) for item in _flat(batch)]))
    read = read_all(model, packed, lambda model, micro: scalars(model, micro, micro.index_N))
    flat = iter(gather_by_slot(read, packed).movedim(-1, 0).tolist())
    found = []
    for item in _flat(batch):
        at = {position: tuple(next(flat)) for position in sorted(target.position for target in item.targets)}
        found.append(tuple(at[target.position] for target in item.targets))
    return found


def outputs_of(batch: Batch, in_loss: Sequence[bool]) -> list[Output]:
    """The outputs of a batch, their labelled tokens to be trained.

    Raises ValueError for a label outside its output, and for two at one token.
    """
    items, found = [(g, item) for g, group in enumerate(batch) for item in group.labelled], []
    for (g, item), here in zip(items, in_loss, strict=True):
        positions, length = [target.position for target in item.targets], len(item.sample.output_ids)
        if len(set(positions)) < len(positions) or not all(0 <= position < length for position in positions):
            name = name_of(item.sample)
            raise ValueError(f"{name}: labels at tokens {positions}, expected different ones of 0 to {length - 1}")
        found.append(output_of(item.sample, g, tuple(t in positions for t in range(length)), here))
    return found


def mean(groups: int, group_size: int, length: int, total_tokens: int) -> float:
    """The weight of a label: all count the same, however they are spread over outputs and groups."""
    return 1.0 / total_tokens


def ranked(batch: Batch) -> list[bool]:
    """Which outputs are in a pair of a better and a worse one. Raises ValueError unless labels stand at last tokens only."""
    found = []
    for group in batch:
        for item in group.labelled:
            positions = [target.position for target in item.targets]
            if positions and positions != [len(item.sample.output_ids) - 1]:
                raise ValueError(f"{name_of(item.sample)}: labels at tokens {positions}, expected one at the last token")
        if (count := len(group.labelled)) != 2:
            raise ValueError(f"{name_of(group.labelled[0].sample)}: found {count} outputs in its group, expected a pair")
        labels = [target.value for item in group.labelled for target in item.targets]
        found += [len(labels) == 2 and apart(labels)] * 2
    return found


def labelled(batch: Batch) -> list[bool]:
    """Which outputs have labels. Raises ValueError for a label outside [0, 1]."""
    for item in _flat(batch):
        wrong = [target.value for target in item.targets if not 0.0 <= target.value <= 1.0]
        if wrong:
            raise ValueError(f"{name_of(item.sample)}: found label {wrong[0]}, expected a probability in [0, 1]")
    return [bool(item.targets) for item in _flat(batch)]


def outputs(batch: Batch) -> list[Hashable]:
    """Every output is an example."""
    return [_tokens(item) for item in _flat(batch)]


def pairs(batch: Batch) -> list[Hashable]:
    """Every pair is one example, which both of its outputs stand for."""
    return [tuple(sorted(_tokens(each) for each in group.labelled)) for group in batch for _ in group.labelled]


def _tokens(item: Labelled) -> tuple[tuple[int, ...], tuple[int, ...]]:
    return item.sample.prompt_ids, item.sample.output_ids


def _flat(batch: Batch) -> list[Labelled]:
    return [item for group in batch for item in group.labelled]


def _labels(item: Labelled) -> tuple[float, ...]:
    """The label of every token; 0 where none stands, which nothing reads."""
    at = {target.position: target.value for target in item.targets}
    return tuple(at.get(t, 0.0) for t in range(len(item.sample.output_ids)))


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
    in_loss: Callable[[Batch], list[bool]]
    examples: Callable[[Batch], list[Hashable]]
    together: bool


LOSSES = {
    Ranking: _Loss(objective=RankingObjective, in_loss=ranked, examples=pairs, together=True),
    CrossEntropy: _Loss(objective=LabelObjective, in_loss=labelled, examples=outputs, together=False),
}
