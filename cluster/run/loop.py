"""The loop of a run.

    questions --lease--> rollout actors --Groups--> reward actors --ScoredGroups--> buffer --a step's groups--+
        ^                (vLLM, version v)          (rule, or reward model w)                                 |
        |                                                                                                     v
        +-- version v+1 serves <-- canary <-- commit <-- prepare <-- new weights <-- updates <-- credit <-- learner group

    lease     takes the ordinals of a wave (a step's) that the buffer admits, orders G outputs each
    rollout   consumes a wave of leases in order, a part a slot; a slot that dies is replaced and its part ordered again
    reward    consumes whole groups as they come; an output that cannot be judged has no score, never 0
    buffer    begins waves as the bound on staleness allows, and hands each out whole, in the order of their steps
    learner   consumes the step's batch on all ranks: credit once, packing once, `updates_per_batch` updates
    sync      sends the weights as one transaction; nothing is leased until every engine holds the new version
    ledger    records every sample's way through the above; a checkpoint is taken between steps, with what is sampled ahead

A stage whose outputs do not follow the policy takes the same way; its weights go out at its end. A stage that trains a reward
model labels the groups instead of crediting them, and its weights go to the reward actors. Iterative training is stages
repeated: a stage's reference is the policy that it starts from.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from cluster.config.run_config import RunConfig
from cluster.config.stages import StageConfig
from cluster.evaluation.held_out import HeldOut
from cluster.fibers import HUB, Stuck
from cluster.fleet.calls import RoleFailed
from cluster.fleet.roles import Roles
from cluster.fleet.sampler import Bound, Sampler, Unscored
from cluster.fleet.versions import Serving
from cluster.fleet.weight_update import UpdateFailed
from cluster.records.clock import Clock
from cluster.records.records import Records
from cluster.records.samples import batch_metrics, by_reason, sample_rows, staleness, whole_directory
from cluster.records.state import State
from cluster.run.boundary import Boundary, sampled_ahead
from cluster.run.buffer import Buffer
from cluster.run.checkpoints import Checkpoints
from cluster.run.collector import Collector, Took
from cluster.run.labelling import Labeller, used
from cluster.run.progress import Progress
from cluster.run.scaling import Scaling
from cluster.run.sources import source_of
from cluster.stopping import RunFailed, Stopped
from learner.algorithms.cells import Need
from learner.types import StepReport
from reward.types import LabelledGroup, ScoredGroup, samples_of
from rollout.data.datasets import Data
from rollout.types import Group, Sampling

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


class Loop:
    """One life of a run: from a checkpoint's state (or none) to the last step of the last stage."""

    def __init__(
        self, config: RunConfig, data: Data, tokenizer: "PreTrainedTokenizerBase", roles: Roles, records: Records, clock: Clock
    ):
        """Raises RunFailed where the engines do not answer, and CanaryFailed where they hold another model than the learner."""
        self.config, self.data, self.roles, self.records, self.clock = config, data, roles, records, clock
        self.dir, self.stop = records.dir, clock.stop
        self.progress = Progress(config.stages)
        self.serving = Serving(roles, data.evaluation, clock, records.ledger)
        bound = Bound(config.reward.max_unscored_share)
        sampler = Sampler(roles, bound, self.serving)
        sampling = Sampling(temperature=config.rollout.temperature, max_new_tokens=config.rollout.max_new_tokens)
        self.collector = Collector(sampler, sampling, self.serving, records.ledger, self.progress, clock)
        self.scaling = Scaling(config, roles, sampler, self.serving, records, self.progress)
        self.labeller = Labeller(config.reward, config.seed, tokenizer, self.collector, bound, data.labelled_steps)
        self.held_out = HeldOut(config, data.evaluation, sampler, self.serving, records)
        checkpoints = Checkpoints(self.dir, keep=config.keep_checkpoints)
        self.boundary = Boundary(checkpoints, self.progress, records.ledger, roles.learner, self._state)
        self._kept: Sequence[Group] = ()
        """Sampled ahead by an earlier life of the run."""

    def run(self, resume_from: tuple[Path, dict] | None = None) -> None:
        """Take up the state, then run every stage to its end, evaluating between. Raises Stopped after a signal."""
        self.stop.hold()
        self.clock.started()
        try:
            self._run(resume_from)
            self.boundary.finish()
        except KeyboardInterrupt:
            if not self.stop.asked:
                raise
            raise Stopped(self.boundary.keep(in_time=not self.stop.over)) from None
        except (RunFailed, RoleFailed, UpdateFailed, Stuck) as error:
            self.boundary.fail(error)
            raise
        finally:
            HUB.close()
            self.scaling.close()

    def _run(self, resume_from: tuple[Path, dict] | None) -> None:
        if resume_from is None:
            self.serving.begin()
        else:
            self._restore(*resume_from)
        if self.progress.step == 0 and (self.config.stages[0].given != "demonstrations" or len(self.config.stages) == 1):
            self._evaluate()
        while True:
            stage = self.progress.stage
            if self.progress.done == 0:
                self.roles.learner.begin_stage(stage.spec(self.config.reward.model, self.config.seed))
            self._run_stage(stage)
            if stage.trains_policy:
                self.serving.publish()
                self._evaluate()
            else:
                self._finish_reward_model(stage)
            if self.progress.at_last:
                return
            self.progress.next_stage()

    def _run_stage(self, stage: StageConfig) -> None:
        self._unless_stopped()
        source = source_of(self.config, self.data, self.collector, self.progress, self.serving.identity)
        buffer = Buffer(stage, source, self.progress, self.serving)
        self._evaluate_between(stage)
        buffer.admit(self._kept)
        self._kept = ()
        while self.progress.done < stage.steps:
            try:
                self._step(stage, buffer)
            except Unscored as failed:
                step, metrics = self.progress.step + 1, {"stage": stage.name, **self.serving.served}
                self.records.sampled(step, sample_rows(failed.groups, self.serving.lives))
                self.records.sinks.write(step, metrics | batch_metrics(failed.groups))
                raise
            self._after_step(stage, buffer)

    def _step(self, stage: StageConfig, buffer: Buffer) -> None:
        """One step, from its questions to its line of metrics. Raises Unscored when too little of it can be judged."""
        took, version = Took(self.clock, self.collector), self.serving.version
        buffer.admit()
        metrics = {"stage": stage.name, "stage_number": self.progress.index + 1, **self.serving.served}
        metrics |= {"waves_waiting": buffer.waiting, **self.scaling.counts(), **self.records.ledger.states()}
        with self.stop.breakable(), took.waiting():
            groups = buffer.take()
        self.boundary.leave()
        if stage.trains_policy:
            report = self._learn(stage, groups)
            self.serving.trained()
            advantages = report.advantages
        else:
            examples = self.labeller.examples(stage, groups, self.progress.step)
            report = self._learn(stage, examples)
            self.labeller.count(report.tokens)
            advantages = [0.0 if trained else None for trained in used(examples, report.advantages, groups)]
        self._settle(groups, advantages)
        self.progress.finish_step()
        step = self.progress.step
        metrics |= batch_metrics(groups) | report.metrics
        # Written while the next wave is sampled: between its end and the beginning of the one after it engines are idle.
        self.records.sampled(step, sample_rows(groups, self.serving.lives, advantages, report))
        if stage.follows_policy:
            metrics |= staleness(groups, version) | {"staleness_bound": stage.max_staleness}
            with took.waiting():
                buffer.quiet()
            metrics["canary_mean"] = self.serving.publish()
            metrics |= {f"seconds_sync_{part}": seconds for part, seconds in self.roles.split.items()}
        self.records.sinks.write(step, metrics | took.metrics())

    def _learn(self, stage: StageConfig, batch: Sequence[ScoredGroup] | Sequence[LabelledGroup]) -> StepReport:
        """A step of the learner."""
        with self.clock.timed("train"):
            self.roles.rest()
            name = f"train step {self.progress.step + 1} v{self.serving.version}"
            return self.roles.learner.named(name).step(batch, stage.updates_per_batch, self._temperature(stage))

    def _evaluate(self) -> None:
        """Held-out accuracy of the serving version, once per step of the run."""
        with self.clock.timed("evaluate"):
            self.held_out.evaluate(self.progress.step, self.progress.stage.name)

    def _finish_reward_model(self, stage: StageConfig) -> None:
        """The trained reward model serves, is measured on held-out outputs, and is written for transformers."""
        if not self.labeller.trained:
            raise RunFailed(f"stage {stage.name}: no output had a label or made a pair, so no reward model was trained")
        self.serving.publish_reward_model()
        with self.clock.timed("evaluate"):
            examples = self.labeller.held_out(stage, self.held_out.sampled())
            scalars = self.roles.learner.scalars(examples)
            self.held_out.assess(self.progress.step, stage, examples, scalars)
        self.labeller.finish(stage)
        with self.clock.timed("other"), whole_directory(self.dir / "reward_model") as folder:
            self.roles.learner.export_reward_model(folder)
            self.labeller.write(folder)

    def _after_step(self, stage: StageConfig, buffer: Buffer) -> None:
        self.boundary.mark(buffer.sampled_ahead())
        self.stop.expect(self.boundary.seconds)
        self.scaling.between_steps()
        self._evaluate_between(stage)
        if self.progress.done == stage.steps or self.progress.step % self.config.checkpoint_every == 0:
            with self.clock.timed("other"):
                self.boundary.save()
        self._unless_stopped()

    def _unless_stopped(self) -> None:
        """Raises KeyboardInterrupt between steps."""
        if self.stop.asked:
            raise KeyboardInterrupt

    def _evaluate_between(self, stage: StageConfig) -> None:
        every = self.config.evaluation.every
        if 0 < self.progress.done < stage.steps and stage.trains_policy and every and self.progress.step % every == 0:
            self.serving.publish()
            self._evaluate()

    def _temperature(self, stage: StageConfig) -> float:
        """A ratio compares with the distribution that outputs were drawn from; what is only fitted, is fitted at 1."""
        ratio = stage.trains_policy and {Need.BEHAVIOUR_LOGPROBS, Need.OLD_LOGPROBS} & stage.resolved().needs
        return self.config.rollout.temperature if ratio or stage.follows_policy else 1.0

    def _settle(self, groups: Sequence[ScoredGroup], advantages: Sequence[float | None]) -> None:
        """The end of every sample's life: trained, or dropped because it has no score or no credit."""
        settled, step = list(zip(samples_of(groups), advantages, strict=True)), self.progress.step + 1
        self.collector.book("trained", (s.sample for s, a in settled if a is not None), step=step)
        for reason, samples in by_reason((s for s, a in settled if a is None), "no credit").items():
            self.collector.book("dropped", samples, step=step, reason=reason)

    def _state(self) -> State:
        """For a checkpoint: what only a step of the learner changes, and what may be later than the boundary."""
        return {
            "serving": self.serving.state(),
            "labels": self.labeller.state(),
            "seconds": self.clock.spent(),
            "sampled_tokens": self.collector.tokens,
        }

    def _restore(self, folder: Path, state: State) -> None:
        """The learner takes its state, and engines and reward actors the same versions with the same bytes as before."""
        self.progress.restore(state)
        self.clock.restore(state["seconds"])
        self.collector.restore(state["sampled_tokens"])
        self.labeller.restore(state["labels"])
        stage = self.progress.stage
        self.roles.learner.load(folder / "learner", stage.spec(self.config.reward.model, self.config.seed))
        # While a reward model is trained, nobody is judged by it.
        self.serving.restore(state["serving"], judged=stage.trains_policy)
        self._kept = sampled_ahead(state)
        self.records.ledger.take_up(s for group in self._kept for s in group.samples)
        self.boundary.restored(self._kept)
