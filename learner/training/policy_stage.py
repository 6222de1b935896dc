"""A stage that trains the policy by one row of the table: what is computed once per batch, and the updates that follow."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from learner.algorithms.cells import Need, PerToken, Signals
from learner.algorithms.credit import Advantages, has_score
from learner.algorithms.table import Algorithm, DataSource
from learner.batch.packing import Output, by_sample, columns, output_of
from learner.models.logprobs import OutcomeLogprobs, TopTokens
from learner.models.scalars import scalars
from learner.models.sharding import gather_by_slot, read_all
from learner.stage import StageSpec
from learner.training.objectives import OutcomeObjective, PolicyObjective, ValueObjective
from learner.training.trainer import Trainer
from learner.types import Columns, MicroBatch, OutcomeBatch, PackedBatch, PolicyBatch, StepReport, ValueBatch
from reward.types import ScoredGroup, samples_of

Batch = Sequence[ScoredGroup]
Pack = Callable[..., PackedBatch[MicroBatch]]
"""`packing.pack` for this rank, onto its device: (outputs, weigh=..., together=...)."""


def _logprobs(model: Any, micro: MicroBatch, temperature: float) -> Tensor:
    return model(micro, temperature)[0]


def _values(model: Any, micro: MicroBatch, temperature: float) -> Tensor:
    return scalars(model, micro, micro.source_N)[0]


READ = {
    Need.REFERENCE: ("reference", _logprobs),
    Need.OLD_LOGPROBS: ("policy", _logprobs),
    Need.CRITIC: ("critic", _values),
    Need.TEACHER: ("teacher", _logprobs),
}
"""Of what is read from a model: from which one, and how."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Credited:
    """A batch with its credit, as it is trained."""

    batch: Batch
    signals: Signals
    advantages: Advantages
    outputs: list[Output]
    packed: PackedBatch[MicroBatch]
    read: Mapping[Need, Columns]
    mismatch: list[tuple[float, ...] | None] = field(default_factory=list)
    """See `StepReport.mismatch`; known after the first update."""

    def column(self, rows: PerToken) -> Columns:
        return columns(self.packed, self.outputs, rows)


class PolicyStage:
    """Policy, and as the row needs them a frozen reference, a teacher, and a critic with an optimizer of its own."""

    def __init__(self, spec: StageSpec, row: Algorithm, pack: Pack, models: Mapping[str, nn.Module]):
        self._row, self._pack, self._value_clip, self.models = row, pack, spec.value_clip, models
        self.trainers = {name: Trainer(models[name], x, spec.total_updates) for name, x in spec.optimizers.items()}
        self._train = {"policy": self._train_policy, "critic": self._train_critic}

    def step(self, batch: Batch, updates: int, temperature: float) -> StepReport:
        """Credit, packing, and what is read from models are computed once; then come the updates."""
        credited = self.credit(batch, temperature)
        metrics = self._row.credit.metrics(batch, credited.signals)
        for name in self.trainers:
            metrics |= self._train[name](credited, updates, temperature)
        report = StepReport.of(credited.packed, metrics, [row[0] if row else None for row in credited.advantages])
        return replace(report, token_advantages=credited.advantages, mismatch=credited.mismatch)

    def credit(self, batch: Batch, temperature: float) -> Credited:
        """What a credit hears of models is carried on, so that it is read once; the rest is read where it is trained.

        The latter comes from the very micro-batches that are trained, so that ratios start at exactly 1.
        """
        heard = self._heard(batch, temperature)
        nothing = [None] * len(samples_of(batch))
        signals = Signals(
            old_logprobs=heard.get(Need.OLD_LOGPROBS, _recorded(batch)),
            reference_logprobs=heard.get(Need.REFERENCE, nothing),
            values=heard.get(Need.CRITIC, nothing),
            teacher_logprobs=heard.get(Need.TEACHER, nothing),
        )
        advantages = self._row.credit(batch, signals)
        outputs = outputs_of(batch, [row is not None for row in advantages])
        packed = self._packed(outputs)
        read = {need: columns(packed, outputs, rows) for need, rows in heard.items()}
        # A weighting asks the teacher for more than the sampled token.
        read |= self._read(packed, self._row.weighting.needs - heard.keys() - {Need.TEACHER}, temperature)
        return Credited(batch=batch, signals=signals, advantages=advantages, outputs=outputs, packed=packed, read=read)

    def _heard(self, batch: Batch, temperature: float) -> dict[Need, PerToken]:
        """What models say of all judged outputs, for a credit that needs any: who is in the loss, it says only then."""
        if not self._row.credit.needs:
            return {}
        outputs = outputs_of(batch, [has_score(item) for item in samples_of(batch)])
        packed = self._packed(outputs)
        said = self._read(packed, self._row.needs, temperature)
        return {need: by_sample(outputs, gather_by_slot(values, packed).tolist()) for need, values in said.items()}

    def _read(self, packed: PackedBatch[MicroBatch], needs: frozenset[Need], temperature: float) -> dict[Need, Columns]:
        return {
            need: read_all(self.models[name], packed, lambda model, micro, how=how: how(model, micro, temperature))
            for need, (name, how) in READ.items()
            if need in needs
        }

    def _packed(self, outputs: Sequence[Output]) -> PackedBatch[MicroBatch]:
        weighting = self._row.weighting
        return self._pack(outputs, weigh=weighting.token_weight, together=weighting.unit == "pair")

    def _train_policy(self, credited: Credited, updates: int, temperature: float) -> dict[str, float]:
        recorded = zip(_recorded(credited.batch), credited.outputs, strict=True)
        behaviour = credited.column([row or (math.nan,) * len(output.output_ids) for row, output in recorded])
        unknown = [torch.full_like(x, math.nan) for x in behaviour]
        packed = credited.packed.to_train(
            PolicyBatch,
            advantage_N=credited.column(credited.advantages),
            behaviour_logprob_N=behaviour,
            old_logprob_N=credited.read.get(Need.OLD_LOGPROBS, behaviour),
            reference_logprob_N=credited.read.get(Need.REFERENCE, unknown),
        )
        # Outputs that were made before the stage began are of other weights than the learner's.
        current = self._row.data_source is DataSource.POLICY_SAMPLES
        how = {"weighting": self._row.weighting, "temperature": temperature}
        kind, count = PolicyObjective, self._row.weighting.tokens
        if count:
            kind, packed = OutcomeObjective, self._outcomes(packed, count, temperature)
        objectives = [kind(**how, compare_behaviour=current and update == 0) for update in range(updates)]
        metrics = self.trainers["policy"].train(packed, objectives)
        if gaps := objectives[0].gaps:
            credited.mismatch.extend(by_sample(credited.outputs, gaps))
        return metrics

    def _outcomes(self, packed: PackedBatch[PolicyBatch], count: int, temperature: float) -> PackedBatch[OutcomeBatch]:
        """With the tokens that the policy finds most likely, and what the teacher says of them."""
        tokens = read_all(self.models["policy"], packed, lambda model, micro: model(micro, temperature, TopTokens(count)))
        each = map(OutcomeLogprobs, tokens)
        said = read_all(self.models["teacher"], packed, lambda model, micro: model(micro, temperature, next(each))[0])
        return packed.to_train(OutcomeBatch, token_NM=tokens, teacher_logprob_NO=said)

    def _train_critic(self, credited: Credited, updates: int, temperature: float) -> dict[str, float]:
        returns = self._row.credit.returns(credited.batch, credited.signals)
        packed = credited.packed.to_train(ValueBatch, old_value_N=credited.read[Need.CRITIC], return_N=credited.column(returns))
        report = self.trainers["critic"].train(packed, [ValueObjective(clip=self._value_clip)] * updates)
        return {f"critic_{name}": value for name, value in report.items()}


def outputs_of(batch: Batch, in_loss: Sequence[bool]) -> list[Output]:
    """The outputs of a batch, their sampled tokens to be trained."""
    samples = [(item.sample, g) for g, group in enumerate(batch) for item in group.scored]
    return [output_of(sample, g, sample.sampled_mask, here) for (sample, g), here in zip(samples, in_loss, strict=True)]


def _recorded(batch: Batch) -> list[tuple[float, ...] | None]:
    """The engine's log-probabilities; None for a demonstration."""
    return [item.sample.logprobs or None for item in samples_of(batch)]
