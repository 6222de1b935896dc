"""A world whose clock is a number, and engines, judges and a learner that are numbers: they take time, fail, answer twice and
die, as a seed says."""

import math
import random
from collections import Counter
from dataclasses import dataclass, field

from cluster.fibers import HUB
from cluster.fleet.calls import LATE, RoleFailed
from reward.types import RewardEvent, ScoredGroup, ScoredSample, Verdict
from rollout.types import FinishReason, Group, Sample, sample_seed
from tests.cluster.elastic import Elastic, Violated
from tests.cluster.fleet import LearnerCalls
from tests.cluster.simulated_learner import Learner

MIXTURE = -1
"""Weights that are none."""


class Clockwork:
    """Answers that are ready at given seconds; waiting moves the clock."""

    def __init__(self):
        self._seconds, self._due = 0.0, {}

    def now(self):
        return self._seconds

    def answer(self, ref, after):
        """The reference, ready in so many seconds."""
        self._due[ref] = self._seconds + after
        return ref

    def wait(self, refs, seconds):
        first = min((self._due[ref] for ref in refs), default=math.inf)
        self._seconds = min(max(first, self._seconds), self._seconds + seconds)
        return [ref for ref in refs if self._due[ref] <= self._seconds]


@dataclass
class World:
    """What outlives a driver: the weights that each version has stood for."""

    repeats: bool
    """Whether a version stands for the same weights in every life of the run."""
    published: dict[int, set[int]] = field(default_factory=lambda: {0: {0}})
    """Weights by version, over all lives."""


@dataclass
class Engine:
    """A slot: the version that it says it holds, and the weights that it holds."""

    version: int = 0
    weights: int = 0
    broken: bool = False
    """Out of service, as after a commit that failed."""
    gone: bool = False
    """With its node."""
    slow: int = 1
    """How many times as long as others it samples."""

    @property
    def serves(self):
        return not (self.broken or self.gone)


class Roles(Learner, Elastic):
    """Engines, judges and a learner; two, two and one at first. Workers with an even slot, and the learner, are on one node,
    the others on another; those that replace lost ones are elsewhere."""

    def __init__(self, world: World, tokenizer, rng: random.Random, faults: float, workers=(2, 2)):
        self.world, self.rng, self.faults = world, rng, faults
        self.tokenizer = tokenizer
        self.engines, self.dark = {slot: self._engine() for slot in range(workers[0])}, set()
        self.begin(*workers)
        self.stale, self.info, self.deaths, self.lives, self.canary, self.split = set(), {}, 0, Counter(), None, {}
        self.learner = LearnerCalls(self._learn)
        self.learn_anew()

    def _engine(self):
        return Engine(slow=10 if self.rng.random() < self.faults / 2 else 1)

    def lose(self, node):
        """A node, with all that is on it."""
        for slot, engine in self.engines.items():
            engine.gone |= slot % 2 == node
        self.dark |= {slot for slot in self.reward_slots() if slot % 2 == node}
        self.dead |= node == 0

    def starts(self, role, slot):
        """It may never do."""
        if role == "rollout":
            self.engines[slot] = self._engine()
        self._pass(self._seconds())
        if self.rng.random() < self.faults:
            raise RoleFailed(f"{role}-{slot}: killed")

    def dismiss(self, role, slot):
        self._pass(self._seconds())
        super().dismiss(role, slot)

    def rest(self):
        pass

    def allowed_s(self, waves):
        return 610.0

    def generate(self, waves, sampling, name, each, failed):
        """Groups come one by one, in any order; a slot may die or hang on the way, and answer twice."""
        with self.asked("rollout", waves):
            return self._generated(waves, each, failed)

    def _generated(self, waves, each, failed):
        events, errors, begun = [], {}, {slot: self.engines[slot].version for slot in waves}
        engines = {slot: self.engines[slot] for slot in waves}
        for slot, leases in waves.items():
            times = sorted(engines[slot].slow * self._seconds() for _ in leases)
            order = self.rng.sample(leases, len(leases))
            dies = self.rng.random() < self.faults
            last = self.rng.randrange(len(leases)) if dies else sum(at <= self.allowed_s(waves) for at in times)
            events += [(at, slot, lease) for at, lease in list(zip(times, order, strict=True))[:last]]
            if dies:
                events.append((times[last] + self._seconds(), slot, None))
            elif last < len(leases):
                events.append((self.allowed_s(waves), slot, None))
            elif self.rng.random() < self.faults:
                events.append((times[-1], slot, order[0]))
        now = HUB.world.now()
        for at, slot, lease in sorted(events, key=lambda event: event[0]):
            self._pass(at - (HUB.world.now() - now))
            if lease is None or self.engines[slot] is not engines[slot] or not engines[slot].serves:
                why = self.rng.choice(["killed", f"{LATE} 600 s", "OutOfMemoryError: 2 GB"])
                if slot not in errors:
                    errors[slot] = why
                    failed(slot, why)
            elif slot not in errors:
                each(lease, self._group(self.engines[slot], begun[slot], lease))
        return errors

    def _group(self, engine, begun, lease):
        spans = ((begun, 0),) if engine.version == begun else ((begun, 0), (engine.version, 1))
        samples = (self._sample(engine, spans, lease, i) for i in lease.indices)
        return Group(question=lease.question, samples=tuple(samples))

    def _sample(self, engine, spans, lease, i):
        ids = (sample_seed(0, lease.group_id, i) % 1000, 7)
        return Sample(
            ordinal=lease.question.ordinal, group_id=lease.group_id, index=i, attempt=lease.attempt, text=str(engine.weights),
            prompt_ids=lease.question.prompt_ids, output_ids=ids, sampled_mask=(True, True), logprobs=(-0.5, -0.5),
            versions=spans, finish_reason=FinishReason.STOP,
        )  # fmt: skip

    def score(self, parts, by, name):
        with self.asked("reward", parts):
            self._pass(self._seconds())
        errors = {slot: "killed" for slot in parts if self.rng.random() < self.faults or slot in self.dark}
        return {slot: list(map(_judged, part)) for slot, part in parts.items() if slot not in errors}, errors

    def replace_reward_actor(self, slot, why):
        self.deaths, self.lives["reward", slot] = self.deaths + 1, self.lives["reward", slot] + 1
        self.dark.discard(slot)
        self._pass(self._seconds())

    def replace(self, slot, why):
        self.deaths, self.lives["rollout", slot] = self.deaths + 1, self.lives["rollout", slot] + 1
        self.engines[slot] = self._engine()
        self._pass(self._seconds())

    def engine_logprobs(self, slots, sequences):
        self._pass(self._seconds())
        errors = {slot: f"gone at {HUB.world.now()}" for slot in slots if self.engines[slot].gone}
        return {slot: [[-self.engines[slot].weights / 1e3]] for slot in slots if slot not in errors}, errors

    def publish(self, version, slots):
        """Staged everywhere, then committed: either may fail, and a commit may leave a mixture without a word."""
        self.sound()
        if version not in self.kept and self.weights in self.kept.values():
            raise Violated(f"versions up to {version} stand for the same weights")
        # What goes wrong twice in a row ends a run, as it should.
        fresh = version not in self.kept
        weights = self.kept.setdefault(version, self.weights)
        seen = self.world.published.setdefault(version, set())
        seen.add(weights)
        if self.world.repeats and len(seen) > 1:
            raise Violated(f"version {version} stands for other weights than before")
        self._pass(self._seconds())
        fails = {slot for slot in slots if self.rng.random() < self.faults or self.engines[slot].gone}
        failed = {slot: f"failed at {HUB.world.now()}" for slot in sorted(fails)}
        mixed = self.rng.random() < 0.5
        if failed and not mixed:
            return "", failed, False
        for slot in slots:
            engine = self.engines[slot]
            engine.version, engine.broken = version, slot in failed
            silent = fresh and self.rng.random() < self.faults / 3
            engine.weights = MIXTURE if slot in failed or silent else weights
        return str(weights), failed, bool(failed)

    def _seconds(self):
        """How long something takes: mostly a second, sometimes ten or a hundred times that."""
        return self.rng.random() * self.rng.choice([1, 1, 1, 10, 100])

    def _pass(self, seconds):
        if seconds > 0:
            HUB.wait([HUB.world.answer(object(), seconds)])


def _judged(group):
    reward = [float(s.output_ids[0] % 2) for s in group.samples]
    verdicts = [
        Verdict(status="score", reward=r, components={"correct": r}, extracted=None, reason="", reward_version=None)
        for r in reward
    ]
    scored = zip(group.samples, verdicts, reward, strict=True)
    made = [ScoredSample(sample=s, events=(RewardEvent(position=1, value=r),), verdict=v) for s, v, r in scored]
    return ScoredGroup(question=group.question, scored=tuple(made))
