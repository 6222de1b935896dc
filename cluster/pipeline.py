"""The loop of a run.

    questions --lease--> rollout actors --Samples--> reward actors --ScoredSamples--> buffer --a step's groups--+
        ^                (vLLM, version v)                                                                     |
        |                                                                                                      v
        +-- version v+1 serves <-- canary <-- commit <-- prepare <-- new weights <-- updates <-- credit <-- learner group

    lease     takes ordinals that the buffer admits (staleness bound), orders G outputs each; waits for nothing
    rollout   consumes a wave of leases in order, one wave a slot; a slot that dies is replaced and its wave ordered again
    reward    consumes whole groups; an output that cannot be judged has no score, never 0
    buffer    holds groups until a whole step's are there, and hands them out in the order of their ordinals
    learner   consumes the step's batch on all ranks: credit once, packing once, `updates_per_batch` updates
    sync      sends the weights as one transaction; nothing is sampled until every engine holds the new version
    ledger    records every sample's way through the above; a checkpoint is taken between steps, when nothing is under way

A stage that trains on demonstrations takes the same way without rollout and reward; its weights go out at its end.
"""

import logging
import time
from collections.abc import Callable, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from cluster.buffer import Buffer
from cluster.config import RunConfig, StageConfig
from cluster.ledger import Ledger
from cluster.metrics import Sinks
from cluster.records import attempts, batch_metrics, evaluation_rows, sample_rows, write_rows
from cluster.resume import Checkpoints
from cluster.roles import Roles
from cluster.sync import Canary, publish
from learner.algorithms import DataSource
from reward.types import ScoredSample, Verdict
from rollout.data import Data
from rollout.types import Lease, Question, Sample, Sampling

log = logging.getLogger("cohort")


class RunFailed(RuntimeError):
    """The run cannot go on; its newest checkpoint stands."""


class Stopped(RuntimeError):
    """A signal ended the run after a checkpoint."""


class Loop:
    """One driver's life in a run: from a checkpoint's state (or none) to the last step of the last stage."""

    def __init__(self, config: RunConfig, data: Data, roles: Roles, ledger: Ledger, sinks: Sinks, stopping: Callable[[], bool]):
        self.config, self.data, self.roles, self.ledger, self.sinks = config, data, roles, ledger, sinks
        self.stopping = stopping
        self.dir = config.output
        self.checkpoints = Checkpoints(config.output, keep=config.keep_checkpoints)
        self.stage, self.done = 0, 0
        """The stage under way, and how many of its steps are finished."""
        self.version, self.published = 0, True
        """The version that serves, and whether it is the learner's weights."""
        self.digests: dict[str, str] = {}
        self.seconds = dict.fromkeys(("generate", "score", "train", "sync", "other", "evaluate", "start"), 0.0)
        self.sampled_tokens = 0

    @property
    def step(self) -> int:
        """Finished steps of the run, over all stages."""
        return sum(s.steps for s in self.config.stages[: self.stage]) + self.done

    def run(self, resume_from: tuple[Path, dict] | None = None) -> None:
        """Take up the state, then run every stage to its end, evaluating between."""
        self.canary = self._calibrate()
        if resume_from is not None:
            self._restore(*resume_from)
        first = self.config.stages[0].resolved().data_source
        if self.step == 0 and (first is not DataSource.DEMONSTRATIONS or len(self.config.stages) == 1):
            self.evaluate()
        while True:
            stage = self.config.stages[self.stage]
            if self.done == 0:
                self.roles.learn("begin_stage", stage.resolved(), stage.optimizer, stage.steps * stage.updates_per_batch)
            self.run_stage(stage)
            self._publish()
            self.evaluate()
            if self.stage + 1 == len(self.config.stages):
                return
            self.stage, self.done = self.stage + 1, 0

    def run_stage(self, stage: StageConfig) -> None:
        samples_policy = stage.resolved().data_source is DataSource.POLICY_SAMPLES
        buffer = Buffer(
            questions_per_step=stage.questions_per_step, max_staleness=self.config.cluster.max_staleness,
            steps=stage.steps, done=self.done,
        )  # fmt: skip
        while buffer.done < stage.steps:
            began, before = time.monotonic(), dict(self.seconds)
            version = self.version
            for ordinal, group in (self.policy_groups if samples_policy else self.demonstrations)(stage, buffer.admit()):
                buffer.put(ordinal, group)
            batch = buffer.take()
            with self.timed("train"):
                name = f"train step {self.step + 1} v{version}"
                report = self.roles.learn("step", batch, stage.updates_per_batch, self._temperature(stage), name=name)[0]
            self.published = False
            fates = self._settle(batch, report.advantages)
            buffer.finish_step()
            self.done = buffer.done
            metrics = {"stage": stage.name, "version": version} | batch_metrics(batch) | report.metrics
            if samples_policy:
                metrics["canary_mean"] = self._publish()
            write_rows(self.dir / "samples" / f"step_{self.step}.jsonl", sample_rows(batch, report.advantages, fates))
            took = {f"seconds_{k}": v - before[k] for k, v in self.seconds.items() if k not in ("evaluate", "start")}
            took["seconds_step"] = time.monotonic() - began
            took["seconds_other"] = took["seconds_step"] - sum(
                took[f"seconds_{k}"] for k in ("generate", "score", "train", "sync")
            )
            self.seconds["other"] += took["seconds_other"]
            if samples_policy:
                metrics["tokens_per_second"] = sum(len(s.sample.output_ids) for s in batch) / took["seconds_generate"]
            self.sinks.write(self.step, metrics | took)
            self._after_step(stage)

    def policy_groups(self, stage: StageConfig, ordinals: Sequence[int]):
        """Sample and judge the groups of these ordinals; yields (ordinal, scored group)."""
        questions = [self.data.train.question(n) for n in ordinals]
        members = tuple(range(stage.samples_per_question))
        leases = [Lease(question=q, group_id=f"{stage.name}/{q.ordinal}", indices=members, attempt=0) for q in questions]
        sampling = Sampling(temperature=self.config.rollout.temperature, max_new_tokens=self.config.rollout.max_new_tokens)
        with self.timed("generate"):
            samples = self.sample(leases, sampling, f"generate step {self.step + 1} v{self.version}", self.ledger)
        self.sampled_tokens += sum(len(s.output_ids) for s in samples)
        with self.timed("score"):
            scored = self.judge(questions, samples)
        self._stop_on_judge_errors(scored)
        groups: dict[int, list[ScoredSample]] = {n: [] for n in ordinals}
        for one in sorted(scored, key=lambda s: s.sample.index):
            groups[one.sample.ordinal].append(one)
        for one in attempts(samples):
            self.ledger.record("scored", **one)
        return groups.items()

    def demonstrations(self, stage: StageConfig, ordinals: Sequence[int]):
        """The demonstrations of these ordinals as groups of one; nobody judges them."""
        verdict = Verdict(status="unscorable", reward=None, components={}, extracted=None, reason="a demonstration")
        samples = [self.data.demonstrations.sample(n, stage.name) for n in ordinals]
        for event in ("leased", "generated", "scored"):
            self.ledger.record(event, {s.group_id: [s.index] for s in samples})
        return [(s.ordinal, [ScoredSample(sample=s, events=(), verdict=verdict)]) for s in samples]

    def sample(self, leases: list[Lease], sampling: Sampling, name: str, ledger: Ledger | None = None) -> list[Sample]:
        """All outputs of the leases. An ordinal always goes to the same slot, so that a wave can be repeated token for token.

        A slot that fails is replaced, brought to the serving version, and given its whole wave again under the next attempt.
        """
        slots = self.roles.slots()
        waves: dict[int, list[Lease]] = {}
        for lease in leases:
            waves.setdefault(slots[lease.question.ordinal % len(slots)], []).append(lease)
        out: list[Sample] = []
        if ledger:
            ledger.record("leased", {x.group_id: x.indices for x in leases}, version=self.version)
        while waves:
            answers, errors = self.roles.generate(waves, sampling, name)
            for samples, rejections in answers.values():
                out += samples
                if ledger:
                    self._accept(ledger, samples, rejections)
                elif rejections:
                    raise RunFailed(f"{name}: {rejections[0].reason}")
            waves = {slot: [replace(x, attempt=x.attempt + 1) for x in waves[slot]] for slot in errors}
            for slot, why in errors.items():
                self.roles.replace(slot, why)
                if self.version:
                    with self.timed("sync"):
                        publish(self.roles, self.version, self.canary, [slot])
                if ledger:
                    again = {x.group_id: x.indices for x in waves[slot]}
                    ledger.record("leased", again, attempt=waves[slot][0].attempt, version=self.version, why=why[:200])
        return out

    def judge(self, questions: Sequence[Question], samples: Sequence[Sample]) -> list[ScoredSample]:
        return self.roles.judge(questions, samples, f"score step {self.step + 1}")

    def evaluate(self) -> None:
        """Held-out accuracy of the serving version, once per step of the run; the file outlives a crash."""
        from cluster.evaluation import evaluate

        if self.step in {row["step"] for row in evaluation_rows(self.dir)}:
            return
        settings = self.config.evaluation
        questions = self.data.evaluation[: settings.questions]
        with self.timed("evaluate"):
            result, records = evaluate(
                questions, samples=settings.samples_per_question, label="held-out", score=self.judge,
                sampling=Sampling(temperature=settings.temperature, max_new_tokens=self.config.rollout.max_new_tokens),
                generate=lambda leases, sampling: self.sample(leases, sampling, f"evaluate v{self.version}"),
            )  # fmt: skip
        write_rows(self.dir / "evaluations" / f"step_{self.step}.jsonl", records)
        row = {"step": self.step, "version": self.version, "stage": self.config.stages[self.stage].name, **result.summary()}
        write_rows(self.dir / "evaluations.jsonl", [*evaluation_rows(self.dir), row])
        log.info("step %d, v%d: %s", self.step, self.version, result.line())

    @contextmanager
    def timed(self, phase: str):
        """Adds the block's wall-clock seconds to the phase; time of a phase within it is not counted twice."""
        began, before = time.monotonic(), sum(self.seconds.values())
        yield
        self.seconds[phase] += time.monotonic() - began - (sum(self.seconds.values()) - before)

    def save(self) -> None:
        state = {
            "stage": self.stage, "done": self.done, "step": self.step, "version": self.version, "published": self.published,
            "ledger_offset": self.ledger.offset(), "incarnation": self.ledger.incarnation, "digests": self.digests,
            "seconds": self.seconds, "sampled_tokens": self.sampled_tokens,
        }  # fmt: skip
        self.checkpoints.save(self.step, lambda directory: self.roles.learn("save", directory), state)

    def _restore(self, place: Path, state: dict) -> None:
        """The learner takes its state, and the engines the same version with the same bytes as before."""
        self.stage, self.done, self.digests = state["stage"], state["done"], dict(state["digests"])
        self.seconds, self.sampled_tokens = state["seconds"], state["sampled_tokens"]
        stage = self.config.stages[self.stage]
        updates = stage.steps * stage.updates_per_batch
        self.roles.learn("load", place / "learner", stage.resolved(), stage.optimizer, updates)
        self.published = state["published"]
        if state["version"]:
            self.version = state["version"] - 1
            serving, self.published = self.published, False
            self._publish()
            if serving and self.digests[str(self.version)] != state["digests"][str(self.version)]:
                raise RunFailed(f"{place}: version {self.version} does not have the digest that was published before")
            self.published, self.digests = serving, dict(state["digests"])

    def _publish(self) -> float:
        """Make the learner's weights the serving version, if they are not; returns the canary's mean difference in nats."""
        if self.published:
            return 0.0
        with self.timed("sync"):
            digest, difference = publish(self.roles, self.version + 1, self.canary)
        self.version, self.published = self.version + 1, True
        self.digests[str(self.version)] = digest
        return difference

    def _calibrate(self) -> Canary:
        """The canary's tolerance, from the weights on disk that engines and learner both start with."""
        vocabulary = 1 + max(max(q.prompt_ids) for q in self.data.evaluation)
        spread = [[(7919 * (i + 1) * (j + 1)) % vocabulary for i in range(32)] for j in range(2)]
        sequences = [list(q.prompt_ids[-64:]) for q in self.data.evaluation[:4] if len(q.prompt_ids) > 1] + spread
        engines, errors = self.roles.score(self.roles.slots(), sequences)
        if errors:
            raise RunFailed(f"the engines do not answer: {errors}")
        return Canary.calibrate(sequences, engines, self.roles.learner_logprobs(sequences), self.config.rollout.dtype)

    def _after_step(self, stage: StageConfig) -> None:
        last = self.done == stage.steps
        if last or self.step % self.config.checkpoint_every == 0 or self.stopping():
            with self.timed("other"):
                self.save()
        if self.stopping():
            raise Stopped(f"stopped by a signal after step {self.step}; `cohort resume {self.dir}` goes on from here")
        if not last and self.config.evaluation.every and self.step % self.config.evaluation.every == 0:
            self._publish()
            self.evaluate()

    def _accept(self, ledger: Ledger, samples: list[Sample], rejections) -> None:
        """Book what a slot delivered; an answer that is not awaited under its attempt is a bug, and raises."""
        for one in attempts(samples):
            ledger.record("generated", **one)
        for r in rejections:
            ledger.record("dropped", {r.group_id: [r.index]}, attempt=r.attempt, reason=r.reason)

    def _settle(self, batch: Sequence[ScoredSample], advantages: Sequence[float | None]) -> list[str]:
        """The end of every sample's life: trained, or dropped because it has no credit. Returns the fates."""
        fates = ["trained" if a is not None else "dropped" for a in advantages]
        for fate in ("trained", "dropped"):
            chosen = [s.sample for s, f in zip(batch, fates, strict=True) if f == fate]
            for one in attempts(chosen):
                self.ledger.record(fate, **one, step=self.step + 1, **({"reason": "no credit"} if fate == "dropped" else {}))
        return fates

    def _stop_on_judge_errors(self, scored: Sequence[ScoredSample]) -> None:
        errors = [s.verdict.reason for s in scored if s.verdict.status == "error"]
        if len(errors) > self.config.reward.max_error_share * len(scored):
            raise RunFailed(f"{len(errors)} of {len(scored)} judgements failed; the first:\n{errors[0]}")

    def _temperature(self, stage: StageConfig) -> float:
        """Demonstrations are fitted by the model itself, samples by the distribution they were drawn from."""
        offline = stage.resolved().data_source is DataSource.DEMONSTRATIONS
        return 1.0 if offline else self.config.rollout.temperature
