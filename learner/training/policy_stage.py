"""A stage that trains the policy by one row of the table: what is computed once per batch, and the updates that follow."""

import math
from collections.abc import Callable, Sequence
from dataclasses import replace

from torch import Tensor

from learner.algorithms.credit import Advantages, PerToken, judged
from learner.algorithms.gae import Signals
from learner.algorithms.table import DataSource, Need
from learner.batch.packing import by_sample, by_slot
from learner.models.policy import PolicyModel
from learner.models.scalars import explained_variance, scalars
from learner.models.sharding import attach_by_slot, gather_by_slot, score
from learner.stage import StageSpec
from learner.training.objectives import PolicyObjective, ValueObjective
from learner.training.trainer import Trainer
from learner.types import PackedBatch, StepReport
from reward.models.scalar_model import ScalarModel
from reward.types import ScoredSample

Pack = Callable[..., PackedBatch]
"""`packing.pack` for this rank, onto its device: (batch, advantages, weigh=..., together=...)."""


class PolicyStage:
    """Policy, and as the row needs them a frozen reference and a critic with an optimizer of its own."""

    def __init__(
        self, spec: StageSpec, pack: Pack, policy: PolicyModel, reference: PolicyModel | None, critic: ScalarModel | None
    ):
        self._spec, self._row, self._pack = spec, spec.row, pack
        held = {"policy": policy, "reference": reference, "critic": critic}
        self.models = {name: model for name, model in held.items() if model is not None}
        self.trainers = {"policy": Trainer(policy, spec.optimizer, spec.total_updates)}
        if critic is not None:
            self.trainers["critic"] = Trainer(critic, spec.critic_optimizer, spec.total_updates)

    def step(self, batch: Sequence[ScoredSample], updates: int, temperature: float) -> StepReport:
        """Credit, packing, reference, old log-probabilities and values are computed once; then come the updates."""
        if "critic" in self.models:
            advantages, packed, metrics = self._valued(batch, temperature)
        else:
            advantages, metrics = self._row.credit(batch), {}
            packed = self._scored(self._packed(batch, advantages), temperature)
        # Outputs that were made before the stage began are of other weights than the learner's.
        current = self._row.data_source is DataSource.POLICY_SAMPLES
        objectives = [
            PolicyObjective(weighting=self._row.weighting, temperature=temperature, compare_behaviour=current and update == 0)
            for update in range(updates)
        ]
        metrics |= self.trainers["policy"].train(packed, objectives)
        if "critic" in self.models:
            report = self.trainers["critic"].train(packed, [ValueObjective(clip=self._spec.value_clip)] * updates)
            metrics |= {f"critic_{name}": value for name, value in report.items()}
        return StepReport(
            metrics=metrics | {"trained_tokens": packed.trained_tokens, "padding_share": packed.padding_share},
            advantages=[row[0] if row else None for row in advantages],
            tokens=packed.trained_tokens,
        )

    def _packed(self, batch: Sequence[ScoredSample], advantages: Advantages) -> PackedBatch:
        weighting = self._row.weighting
        return self._pack(batch, advantages, weigh=weighting.token_weight, together=weighting.unit == "pair")

    def _scored(self, packed: PackedBatch, temperature: float) -> PackedBatch:
        """The batch with the log-probabilities that the row needs, from its own micro-batches, so that ratios start at 1."""

        def logprobs(model: PolicyModel) -> list[Tensor]:
            return score(model, packed, lambda model, micro: model(micro, temperature)[0])

        micros = packed.micro_batches
        if Need.REFERENCE in self._row.needs:
            found = zip(micros, logprobs(self.models["reference"]), strict=True)
            micros = tuple(replace(micro, reference_logprob_N=x) for micro, x in found)
        if Need.OLD_LOGPROBS in self._row.needs:
            found = zip(micros, logprobs(self.models["policy"]), strict=True)
            micros = tuple(replace(micro, old_logprob_N=x) for micro, x in found)
        return replace(packed, micro_batches=micros)

    def _valued(self, batch: Sequence[ScoredSample], temperature: float) -> tuple[Advantages, PackedBatch, dict[str, float]]:
        """Advantages and returns of the critic's values, the batch with both, and metrics.

        Models are read on all judged outputs, since who is in the loss is known only once the credit has spoken.
        """
        judgeable: PerToken = [(0.0,) * len(item.sample.output_ids) if judged(item) else None for item in batch]
        packed = self._scored(self._packed(batch, judgeable), temperature)

        def per_token(values: list[Tensor]) -> PerToken:
            return by_sample(batch, judgeable, gather_by_slot(values, packed).tolist())

        values = per_token(score(self.models["critic"], packed, lambda model, micro: scalars(model, micro, micro.source_N)[0]))
        old = per_token([micro.old_logprob_N for micro in packed.micro_batches])
        columns, reference = {"old_logprob_N": old, "old_value_N": values}, None
        if Need.REFERENCE in self._row.needs:
            reference = per_token([micro.reference_logprob_N for micro in packed.micro_batches])
            columns["reference_logprob_N"] = reference
        signals = Signals(values=values, old_logprobs=old, reference_logprobs=reference)
        advantages = self._row.credit(batch, signals)
        columns["value_target_N"] = self._row.credit.returns(batch, signals)
        trained = {
            name: by_slot(batch, [x if row is not None else None for x, row in zip(column, advantages, strict=True)])
            for name, column in columns.items()
        }
        metrics = _of_values(trained)
        return advantages, attach_by_slot(self._packed(batch, advantages), **trained), metrics


def _of_values(trained: dict[str, list[float]]) -> dict[str, float]:
    """Before the first update, over all trained tokens: the critic's explained variance, and the mean of log pi_old/pi_ref."""
    metrics, old, reference = {}, trained["old_logprob_N"], trained.get("reference_logprob_N")
    explained = explained_variance(trained["old_value_N"], trained["value_target_N"])
    if explained is not None:
        metrics["critic_explained_variance"] = explained
    if reference:
        metrics["reward_kl"] = math.fsum(o - r for o, r in zip(old, reference, strict=True)) / len(old)
    return metrics
