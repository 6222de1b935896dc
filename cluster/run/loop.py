"""The loop of a run.

    questions --lease--> rollout actors --Samples--> reward actors --ScoredSamples--> buffer --a step's groups--+
        ^                (vLLM, version v)           (rule, or reward model w)                                 |
        |                                                                                                      v
        +-- version v+1 serves <-- canary <-- commit <-- prepare <-- new weights <-- updates <-- credit <-- learner group

    lease     takes ordinals that the buffer admits (a step's), orders G outputs each; waits for nothing
    rollout   consumes a wave of leases in order, one wave a slot; a slot that dies is replaced and its wave ordered again
    reward    consumes whole groups; an output that cannot be judged has no score, never 0
    buffer    holds groups until a whole step's are there, and hands them out in the order of their ordinals
    learner   consumes the step's batch on all ranks: credit once, packing once, `updates_per_batch` updates
    sync      sends the weights as one transaction; nothing is sampled until every engine holds the new version
    ledger    records every sample's way through the above; a checkpoint is taken between steps, when nothing is under way

A stage whose outputs do not follow the policy takes the same way; its weights go out at its end. A stage that trains a reward
model labels the groups instead of crediting them, and its weights go to the reward actors. Iterative training is stages
repeated: a stage's reference is the policy that it starts from.
"""

import time
from collections.abc import Iterable, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cluster.config.run_config import RunConfig
from cluster.config.stages import StageConfig
from cluster.evaluation.held_out import HeldOut
from cluster.fleet.roles import Roles
from cluster.fleet.sampler import Bound, RunFailed, Sampler, Unscored
from cluster.fleet.versions import Serving
from cluster.records.ledger import Ledger
from cluster.records.metrics import Sinks
from cluster.records.samples import attempts, batch_metrics, by_reason, leave, sample_rows, whole_directory
from cluster.run.boundary import Boundary
from cluster.run.buffer import Buffer
from cluster.run.checkpoints import Checkpoints
from cluster.run.labelling import Labeller, used
from cluster.run.sources import Source, source_of
from cluster.stopping import Stop, Stopped
from learner.algorithms.table import Need, RewardSource
from reward.types import ScoredSample
from rollout.data.datasets import Data
from rollout.types import Lease, Question, Sample, Sampling

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

PHASES = ("generate", "score", "train", "sync")
BREAKABLE = {"generate", "score", "evaluate"}
"""Phases that a stop breaks off at once: the learner holds what the last step made of it."""


class Loop:
    """One driver's life in a run: from a checkpoint's state (or none) to the last step of the last stage."""

    def __init__(
        self, config: RunConfig, data: Data, tokenizer: "PreTrainedTokenizerBase", roles: Roles, ledger: Ledger, sinks: Sinks
    ):
        self.config, self.data, self.roles, self.ledger, self.sinks = config, data, roles, ledger, sinks
        self.dir = config.output.resolve()  # the actors have working directories of their own
        self.checkpoints = Checkpoints(self.dir, keep=config.keep_checkpoints)
        self.bound = Bound(config.reward.max_unscored_share)
        self.sampler = Sampler(roles, ledger, self._bring_up, self.bound)
        self.sampling = Sampling(temperature=config.rollout.temperature, max_new_tokens=config.rollout.max_new_tokens)
        self.labeller, self.held_out, self.boundary = Labeller(self, tokenizer), HeldOut(self), Boundary(self)
        self.stage, self.done = 0, 0
        """The stage under way, and how many of its steps are finished."""
        self.memory: dict[str, Any] = {}
        """What the stage's source of groups keeps from step to step."""
        self.seconds = dict.fromkeys((*PHASES, "other", "evaluate", "start"), 0.0)
        self.sampled_tokens = 0
        """Sampled to train on, evaluations left out."""

    @property
    def step(self) -> int:
        """Finished steps of the run, over all stages."""
        return sum(s.steps for s in self.config.stages[: self.stage]) + self.done

    def run(self, stop: Stop, resume_from: tuple[Path, dict] | None = None) -> None:
        """Take up the state, then run every stage to its end, evaluating between. Raises Stopped after a signal."""
        self.stop = stop
        stop.hold()
        try:
            self._run(resume_from)
        except KeyboardInterrupt:
            if not stop.asked:
                raise
            raise Stopped(self.boundary.keep()) from None

    def _run(self, resume_from: tuple[Path, dict] | None) -> None:
        self.serving = Serving(self.roles, self.data.evaluation)
        if resume_from is not None:
            self.boundary.restore(*resume_from)
        if self.step == 0 and (self.config.stages[0].given != "demonstrations" or len(self.config.stages) == 1):
            self.evaluate()
        while True:
            stage = self.config.stages[self.stage]
            if self.done == 0:
                self.roles.learn("begin_stage", stage.spec(self.config.reward.model, self.config.seed))
            self.run_stage(stage)
            if stage.trains_policy:
                self._publish()
                self.evaluate()
            else:
                self._finish_reward_model(stage)
            if self.stage + 1 == len(self.config.stages):
                return
            self.stage, self.done, self.memory = self.stage + 1, 0, {}

    def run_stage(self, stage: StageConfig) -> None:
        source = source_of(self, stage, self.memory)
        buffer = Buffer(questions_per_step=stage.questions_per_step, done=self.done)
        self._evaluate_between(stage)
        while buffer.done < stage.steps:
            try:
                self._step(stage, source, buffer)
            except Unscored as failed:
                step, metrics = self.step + 1, {"stage": stage.name, "version": self.serving.version}
                leave(self.sinks, self.dir / f"samples/step_{step}.jsonl", sample_rows(failed.scored, failed.questions))
                self.sinks.write(step, metrics | batch_metrics(failed.scored))
                raise
            self._after_step(stage)

    def _step(self, stage: StageConfig, source: Source, buffer: Buffer) -> None:
        """One step, from its questions to its line of metrics. Raises Unscored when too little of it can be judged."""
        began, before, sampled = time.monotonic(), dict(self.seconds), self.sampled_tokens
        version = self.serving.version
        for ordinal, group in source.groups(buffer.admit()):
            buffer.put(ordinal, group)
        batch = buffer.take()
        self.boundary.leave()
        examples = batch if stage.trains_policy else self.labeller.examples(stage, batch, source.questions, self.step)
        with self.timed("train"):
            self.roles.rest()
            name = f"train step {self.step + 1} v{version}"
            report = self.roles.learn("step", examples, stage.updates_per_batch, self._temperature(stage), name=name)[0]
        self.serving.published = self.serving.published and not stage.trains_policy
        advantages = report.advantages
        if not stage.trains_policy:
            advantages = [0.0 if trained else None for trained in used(examples, report.advantages, batch)]
            self.labeller.trained += report.tokens
        self._settle(batch, advantages)
        buffer.finish_step()
        self.done = buffer.done
        metrics = {"stage": stage.name, "version": version} | batch_metrics(batch) | report.metrics
        if stage.follows_policy:
            metrics["canary_mean"] = self._publish()
        rows = sample_rows(batch, source.questions.values(), advantages)
        leave(self.sinks, self.dir / f"samples/step_{self.step}.jsonl", rows)
        took = {phase: self.seconds[phase] - before[phase] for phase in PHASES}
        took["step"] = time.monotonic() - began
        took["other"] = took["step"] - sum(took[phase] for phase in PHASES)
        self.seconds["other"] += took["other"]
        if tokens := self.sampled_tokens - sampled:
            metrics["tokens_per_second"] = tokens / took["generate"]
        self.sinks.write(self.step, metrics | {f"seconds_{phase}": s for phase, s in took.items()})

    def ask(self, leases: Sequence[Lease], what: str, *, booked: bool = True) -> list[Sample]:
        """All outputs of the leases at the run's temperature, sampled by the serving version, which must be the learner's."""
        version = self.serving.version
        if not self.serving.published:
            raise RunFailed(f"{what}: the engines hold version {version}, and the learner has gone on from it")
        name = f"{what} step {self.step + 1} v{version}"
        with self.timed("generate"):
            samples = self.sampler.sample(leases, self.sampling, name, version=version, booked=booked)
        self.sampled_tokens += sum(sum(s.sampled_mask) for s in samples)
        return samples

    def judge(self, questions: Sequence[Question], samples: Sequence[Sample], reward: RewardSource) -> list[ScoredSample]:
        """Scores in the order of the samples."""
        with self.timed("score"):
            return self.sampler.judge(questions, samples, f"score step {self.step + 1}", reward)

    def record(self, event: str, samples: Iterable[Sample], **fields) -> None:
        """Book an event of these samples."""
        for one in attempts(samples):
            self.ledger.record(event, **one, **fields)

    def evaluate(self) -> None:
        """Held-out accuracy of the serving version, once per step of the run."""
        if self.step not in {row["step"] for row in self.held_out.rows}:
            with self.timed("evaluate"):
                self.held_out.evaluate()

    @property
    def policy(self) -> str:
        """Identifies the serving weights, the policy's and the reward model's."""
        return self.serving.identity

    @contextmanager
    def timed(self, phase: str):
        """Adds the block's wall-clock seconds to the phase; time of a phase within it is not counted twice."""
        began, before = time.monotonic(), sum(self.seconds.values())
        with self.stop.breakable() if phase in BREAKABLE else nullcontext():
            yield
        self.seconds[phase] += time.monotonic() - began - (sum(self.seconds.values()) - before)

    def _finish_reward_model(self, stage: StageConfig) -> None:
        """The trained reward model serves, is measured on held-out outputs, and is written for transformers."""
        if not self.labeller.trained:
            raise RunFailed(f"stage {stage.name}: no output had a label or made a pair, so no reward model was trained")
        with self.timed("sync"):
            self.serving.publish_reward_model()
        with self.timed("evaluate"):
            self.held_out.assess(stage)
        self.labeller.finish(stage)
        with self.timed("other"), whole_directory(self.dir / "reward_model") as place:
            self.roles.learn("export_reward_model", place)
            self.labeller.write(place)

    def _publish(self) -> float:
        """Make the learner's weights the serving version; returns the canary's mean difference in nats."""
        with self.timed("sync"):
            return self.serving.publish()

    def _bring_up(self, slot: int) -> None:
        with self.timed("sync"):
            self.serving.bring_up(slot)

    def _after_step(self, stage: StageConfig) -> None:
        self.boundary.mark()
        self._evaluate_between(stage)
        if self.done == stage.steps or self.step % self.config.checkpoint_every == 0:
            with self.timed("other"):
                self.boundary.save()
        if self.stop.asked:
            raise KeyboardInterrupt

    def _evaluate_between(self, stage: StageConfig) -> None:
        every = self.config.evaluation.every
        if 0 < self.done < stage.steps and stage.trains_policy and every and self.step % every == 0:
            self._publish()
            self.evaluate()

    def _temperature(self, stage: StageConfig) -> float:
        """A ratio compares with the distribution that outputs were drawn from; what is only fitted, is fitted at 1."""
        ratio = stage.trains_policy and {Need.BEHAVIOUR_LOGPROBS, Need.OLD_LOGPROBS} & stage.resolved().needs
        return self.config.rollout.temperature if ratio or stage.follows_policy else 1.0

    def _settle(self, batch: Sequence[ScoredSample], advantages: Sequence[float | None]) -> None:
        """The end of every sample's life: trained, or dropped because it has no score or no credit."""
        pairs = list(zip(batch, advantages, strict=True))
        self.record("trained", (s.sample for s, a in pairs if a is not None), step=self.step + 1)
        for reason, samples in by_reason((s for s, a in pairs if a is None), "no credit").items():
            self.record("dropped", samples, step=self.step + 1, reason=reason)
