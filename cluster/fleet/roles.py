"""The driver's hold on the actors: starting them, calling them with deadlines, replacing those that fail, stopping them all."""

import logging
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TypeVar, cast

import ray
from ray import ObjectRef
from ray.actor import ActorHandle

from cluster.config.contradictions import supervision
from cluster.config.run_config import RunConfig
from cluster.fleet.actors import RewardActor, RolloutActor
from cluster.fleet.calls import RoleFailed, all_answers, ask, follow, gather, stream
from cluster.fleet.learner_group import LearnerGroup, Ranks
from cluster.fleet.placement import position, settled, shared_devices, shares_gpus
from cluster.fleet.publisher import STREAMING, Model
from cluster.fleet.receivers import Receiver, Receivers
from cluster.fleet.spawner import Spawner
from cluster.fleet.watch import Watch
from cluster.fleet.weight_update import Canary, transact
from reward.judging.judges import judging_seconds
from reward.types import By, ScoredGroup
from rollout.patience import longest
from rollout.types import Group, Lease, PolicyVersion, Sampling

R = TypeVar("R")
Handles = Mapping[int, ActorHandle]
log = logging.getLogger("cohort")
PUBLISH_DEADLINES = 4
"""Calls of a publish that are awaited one after another, each for `cluster.sync_deadline_s`."""


class Roles:
    """All actors of one run. Names in the dashboard: `<run>/rollout-0`, `<run>/reward-0`, `<run>/learner-0`."""

    def __init__(self, config: RunConfig, model_dir: Path, *, max_model_len: int, incarnation: int):
        self.config, self.model_dir, self.max_model_len = config, model_dir, max_model_len
        self.prefix = f"{config.name}-{incarnation}"
        self.deaths = 0
        self.lives: Counter[tuple[str, int]] = Counter()
        """By role and slot, how many workers have been buried there."""
        self.rollout: dict[int, ActorHandle[RolloutActor]] = {}
        self.reward: dict[int, ActorHandle[RewardActor]] = {}
        self.stale: set[int] = set()
        """Reward slots that lack the reward model which the run trained."""
        self.canary: Canary | None = None
        """Calibrated when all hold the weights on disk, which is but once."""
        self.nodes: dict[int, str] = {}
        self.reward_nodes: dict[int, str] = {}
        self.info: dict[str, dict[str, object]] = {}
        """What every actor says of itself, for the run's summary."""
        self._spawner = Spawner(config, model_dir, self.prefix)
        wait_s = max(config.cluster.train_deadline_s, PUBLISH_DEADLINES * config.cluster.sync_deadline_s)
        self._ranks = Ranks(config, model_dir, self._spawner, wait_s)
        self.watch = Watch(config.cluster.heartbeat_s, config.output / "logs" / "stacks.txt")
        self.learner = LearnerGroup(self._ranks.actors, config.cluster.train_deadline_s, self.watch.why)
        self.rollout_config = settled(config.rollout, gpus=self._spawner.gpus)
        """With the transport that everyone uses."""
        self.shared = shares_gpus(config)

    def start(self) -> None:
        """Start every actor at once and wait for them. Raises RoleFailed with the first error.

        On GPUs that they share, engines start before the learner: vLLM measures what is free.
        """
        self._ranks.spawn()
        if self.shared:
            self._ranks.locate()
        for slot in range(self.config.rollout.workers):
            self._spawn_rollout(slot)
        for slot in range(self.config.reward.workers):
            self._spawn_reward(slot)
        self.nodes = self._all({s: ask(actor, RolloutActor.locate)() for s, actor in self.rollout.items()}, "rollout")
        engines = {s: self._start_rollout(s) for s in self.rollout}
        if self.shared:
            self._started(engines, "rollout")
        else:
            self._ranks.locate()
        learners, rewards = self._ranks.start(self.rollout_config, self.prefix), self._start_reward_actors()
        for role, calls in (("rollout", engines), ("learner", learners), ("reward", rewards)):
            self._started(calls, role)

    def restart_learner(self, why: str) -> None:
        """A fresh learner group after a rank failed, with the weights on disk; and fresh reward actors where a model judges, as
        theirs may be one that the learner has no more. Engines stay, and end what they sample. Raises RoleFailed."""
        self._bury("learner", {f"learner-{rank}": actor for rank, actor in self._ranks.actors.items()}, why)
        self._ranks.spawn()
        waves = {slot: ask(actor, RolloutActor.abandon)() for slot, actor in self.rollout.items()}
        _, errors = gather(waves, self.config.cluster.sync_deadline_s, what="rollout: abandon")
        for slot in errors:
            self.watch.end(f"rollout-{slot}", self.rollout[slot])  # the next update finds it dead, and replaces it
        if supervision(self.config):
            for slot, actor in self.reward.items():
                self.watch.end(f"reward-{slot}", actor)
                self._spawn_reward(slot)
        self._ranks.locate()
        learners, rewards = self._ranks.start(self.rollout_config, self.prefix), self._start_reward_actors()
        self._started(learners, "learner")
        self._started(rewards, "reward")
        self.stale.clear()

    def _started(self, calls: Mapping[int, ObjectRef[dict[str, object]]], role: str) -> None:
        actors: dict[str, Handles] = {"rollout": self.rollout, "reward": self.reward, "learner": self._ranks.actors}
        for slot, info in self._all(calls, role).items():
            self.info[f"{role}-{slot}"] = info
            pulse = ask(self.rollout[slot], RolloutActor.pulse) if role == "rollout" else None
            self.watch.add(f"{role}-{slot}", actors[role][slot], info, pulse)

    def stop(self, deadline_s: float) -> None:
        """End every actor; engines are asked first so that their processes and memory go in order."""
        self.watch.close()
        try:
            for actor in (*self._ranks.actors.values(), *self.reward.values()):
                ray.kill(actor)
            gather({s: ask(actor, RolloutActor.stop)() for s, actor in self.rollout.items()}, deadline_s, what="stop")
        finally:
            self._spawner.close()
            self.watch.end_all()

    def slots(self) -> list[int]:
        return sorted(self.rollout)

    def generate(
        self, waves: Mapping[int, Sequence[Lease]], sampling: Sampling, name: str, each: Callable[[Lease, Group], None]
    ) -> dict[int, str]:
        """One wave a slot. `each` gets every group as it comes; what is returned are errors by slot."""
        deadline, tools = self.config.cluster.generate_deadline_s, self.config.rollout.tools
        calls = {
            slot: stream(self.rollout[slot], RolloutActor.generate, name)(list(leases), sampling, deadline)
            for slot, leases in waves.items()
        }
        outputs = max(sum(len(lease.indices) for lease in leases) for leases in waves.values())
        programs = longest(outputs * tools.max_programs, tools.seconds, tools.at_once) if tools else 0.0
        deadline += programs + 10
        errors = follow(calls, deadline, lambda slot, made: each(waves[slot][made[0]], made[1]), what=f"rollout: {name}")
        return self.watch.explain("rollout", errors)

    def score(
        self, parts: Mapping[int, Sequence[Group]], by: By, name: str
    ) -> tuple[dict[int, list[ScoredGroup]], dict[int, str]]:
        """A part of the groups a slot -> ({slot: scored groups}, {slot: error})."""
        calls = {slot: ask(self.reward[slot], RewardActor.score, name)(list(part), by) for slot, part in parts.items()}
        most = max(sum(len(group.samples) for group in part) for part in parts.values())
        deadline = self.config.cluster.generate_deadline_s + judging_seconds(self.config.reward, most)
        return self.watch.gather("reward", calls, deadline, name)

    def learner_logprobs(self, sequences: Sequence[Sequence[int]]) -> list[list[float]]:
        return self.learner.named("canary").logprobs(sequences)

    def engine_logprobs(
        self, slots: Sequence[int], sequences: Sequence[Sequence[int]]
    ) -> tuple[dict[int, list[list[float]]], dict[int, str]]:
        calls = {slot: ask(self.rollout[slot], RolloutActor.logprobs, "canary")(sequences) for slot in slots}
        return self.watch.gather("rollout", calls, self.config.cluster.sync_deadline_s, "canary")

    def publish(self, version: PolicyVersion, slots: Sequence[int]) -> tuple[str, dict[int, str], bool]:
        engines = self._receivers(self.rollout, self.nodes, slots)
        return self._send("policy", version, engines, f"publish v{version}")

    def reward_slots(self) -> list[int]:
        return sorted(self.reward)

    def send_reward_model(self, version: int, slots: Sequence[int]) -> tuple[str, dict[int, str]]:
        actors = self._receivers(self.reward, self.reward_nodes, slots)
        digest, failed, _ = self._send("reward_model", version, actors, f"publish reward model {version}")
        self.stale -= actors.members.keys() - failed.keys()
        return digest, failed

    def _receivers(self, actors: Handles, nodes: dict[int, str], slots: Sequence[int]) -> Receivers:
        members = {slot: cast(ActorHandle[Receiver], actors[slot]) for slot in slots}
        return Receivers(members=members, nodes=nodes, deadline_s=self.config.cluster.sync_deadline_s)

    def _send(self, model: Model, version: int, receivers: Receivers, name: str) -> tuple[str, dict[int, str], bool]:
        learner = self.learner.named(name, PUBLISH_DEADLINES * receivers.deadline_s)
        streaming, slots = model == "policy" and self.rollout_config.transport in STREAMING, list(receivers.members)
        return transact(
            receivers, lambda ready: learner.publish(model, version, receivers.only(ready)), slots, version, streaming=streaming
        )

    def rest(self) -> None:
        """The engines leave their GPUs to the learner, where the run has them take turns."""
        if not self.rollout_config.sleep:
            return
        calls = {slot: ask(actor, RolloutActor.sleep)() for slot, actor in self.rollout.items()}
        _, errors = self.watch.gather("rollout", calls, self.config.cluster.sync_deadline_s, "sleep")
        for slot, why in errors.items():
            # It holds the memory that the learner needs. The next update finds it dead, and replaces it.
            log.warning("rollout-%d is ended, since it does not sleep: %s", slot, why)
            self.watch.end(f"rollout-{slot}", self.rollout[slot])

    def replace(self, slot: int, why: str) -> None:
        """A fresh engine in the slot. Its weights are those on disk, so it must be brought up to date before it serves."""
        self.lives["rollout", slot] += 1
        self._bury(name := f"rollout-{slot}", {name: self.rollout[slot]}, why)
        if self.shared:
            self.learner.leave_gpu()  # vLLM starts only where enough memory is free
        self._spawn_rollout(slot)
        self.nodes |= self._all({slot: ask(self.rollout[slot], RolloutActor.locate)()}, "rollout")
        self._started({slot: self._start_rollout(slot)}, "rollout")

    def replace_reward_actor(self, slot: int, why: str) -> None:
        """A fresh reward actor in the slot; a reward model that the run trained must be sent to it before it is asked."""
        self.lives["reward", slot] += 1
        self._bury(name := f"reward-{slot}", {name: self.reward[slot]}, why)
        self.stale.add(slot)
        self._spawn_reward(slot)
        self.reward_nodes |= self._all({slot: ask(self.reward[slot], RewardActor.locate)()}, "reward")
        self._started({slot: self._start_reward(slot)}, "reward")

    def _bury(self, name: str, actors: Mapping[str, ActorHandle], why: str) -> None:
        budget, self.deaths = self.config.cluster.worker_restarts, self.deaths + 1
        why = self.watch.why(name) or why
        log.warning("%s is taken out of service (%d of %d): %s", name, self.deaths, budget, why)
        self.watch.testify(why, list(actors))
        for each, actor in actors.items():
            self.watch.end(each, actor)
        if self.deaths > budget:
            raise RoleFailed(f"{name} failed and the crash budget of {budget} is spent: {why}")

    def _spawn_rollout(self, slot: int) -> None:
        seen = shared_devices(self._ranks.gpus, slot, self.config.rollout.tensor_parallel_size) if self.shared else {}
        spawn = self._spawner.spawn("rollout", slot, RolloutActor, environment=seen)
        prefix = f"{self.prefix}-{slot}"
        self.rollout[slot] = spawn(self.config, self.rollout_config, self.model_dir, prefix, self.max_model_len)

    def _spawn_reward(self, slot: int) -> None:
        log = self.config.output / "logs" / f"reward-{slot}.log"
        self.reward[slot] = self._spawner.spawn("reward", slot, RewardActor)(self.config, f"{self.prefix}-reward-{slot}", log)

    def _start_rollout(self, slot: int) -> ObjectRef[dict[str, object]]:
        return ask(self.rollout[slot], RolloutActor.start, f"start engine {slot}")(*position(slot, self.nodes))

    def _start_reward(self, slot: int) -> ObjectRef[dict[str, object]]:
        kind = supervision(self.config)
        if kind is None:
            return ask(self.reward[slot], RewardActor.describe)()
        return ask(self.reward[slot], RewardActor.load_model)(self.model_dir, kind, *position(slot, self.reward_nodes))

    def _start_reward_actors(self) -> dict[int, ObjectRef[dict[str, object]]]:
        self.reward_nodes = self._all({s: ask(actor, RewardActor.locate)() for s, actor in self.reward.items()}, "reward")
        return {slot: self._start_reward(slot) for slot in self.reward}

    def _all(self, calls: Mapping[int, ObjectRef[R]], role: str) -> dict[int, R]:
        return all_answers(calls, role, self.config.cluster.start_deadline_s, "start")
