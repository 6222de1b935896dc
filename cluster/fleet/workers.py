"""The workers of one run: starting them, replacing those that fail, adding and removing some, ending them all."""

import logging
import os
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import TypeVar

import ray
from ray.actor import ActorHandle

from cluster.config.contradictions import supervision
from cluster.config.run_config import RunConfig
from cluster.fleet.actors import RewardActor, RolloutActor
from cluster.fleet.bundles import shares_gpus
from cluster.fleet.calls import RoleFailed, all_answers, ask, gather
from cluster.fleet.learner_group import LearnerGroup, Ranks
from cluster.fleet.pace import PUBLISH_DEADLINES, Pace
from cluster.fleet.placement import fitting, position, settled, shared_devices
from cluster.fleet.spawner import Spawner
from cluster.fleet.watch import Watch
from cluster.fleet.weight_update import Canary

R = TypeVar("R")
Handles = Mapping[int, ActorHandle]
log = logging.getLogger("cohort")


class Workers:
    """All actors of one run. Names in the dashboard: `<run>/rollout-0`, `<run>/reward-0`, `<run>/learner-0`."""

    def __init__(self, config: RunConfig, model_dir: Path, *, max_model_len: int, incarnation: int):
        self.config, self.model_dir, self.max_model_len = config, model_dir, max_model_len
        self.prefix = f"{config.name}-{incarnation}"
        self.deaths = 0
        self.lives: Counter[tuple[str, int]] = Counter()
        """By role and slot, how many workers have been buried there."""
        self.rollout: dict[int, ActorHandle[RolloutActor]] = {}
        self.reward: dict[int, ActorHandle[RewardActor]] = {}
        self.aside: set[tuple[str, int]] = set()
        """Workers, by role and slot, that are asked for nothing: they start, or are to be ended."""
        self.wanted: dict[str, int] = {}
        """By role, how many workers were last asked for while the run lives."""
        self.stale: set[int] = set()
        """Reward slots that lack the reward model which the run trained."""
        self.canary: Canary | None = None
        """Calibrated when all hold the weights on disk, which is but once."""
        self.split: dict[str, float] = {}  # seconds of the last weight update and its canary, by part
        self.nodes: dict[int, str] = {}
        self.reward_nodes: dict[int, str] = {}
        self.info: dict[str, dict[str, object]] = {}
        """What every actor says of itself, for the run's summary."""
        self._spawner = Spawner(config, model_dir, self.prefix)
        wait_s = max(config.cluster.train_deadline_s, PUBLISH_DEADLINES * config.cluster.sync_deadline_s)
        self._ranks = Ranks(config, model_dir, self._spawner, wait_s)
        self.watch = Watch(config.cluster.heartbeat_s, config.output / "logs" / "stacks.txt")
        self.paces: dict[str, Pace] = {"rule": Pace(), "model": Pace()}
        self.learner = LearnerGroup(self._ranks.actors, config.cluster.train_deadline_s, self.watch.why)
        self.rollout_config = settled(config, gpus=self._spawner.gpus)
        """With the transport that everyone uses."""
        self.shared = shares_gpus(config)

    def start(self) -> None:
        """Start every actor at once and wait for them. Raises RoleFailed with the first error.

        On GPUs that they share, engines start before the learner: vLLM measures what is free.
        """
        self._ranks.spawn()
        if self.shared:
            self._located(self._ranks.locate(), "learner")
        for slot in range(self.config.rollout.workers):
            self._spawn_rollout(slot)
        for slot in range(self.config.reward.workers):
            self._spawn_reward(slot)
        self.nodes = self._locate({s: ask(actor, RolloutActor.locate)() for s, actor in self.rollout.items()}, "rollout")
        engines = {s: self._start_rollout(s) for s in self.rollout}
        if self.shared:
            self._started(engines, "rollout")
        else:
            self._located(self._ranks.locate(), "learner")
        learners, rewards = self._ranks.start(self.rollout_config, self.prefix), self._start_reward_actors()
        for role, calls in (("rollout", engines), ("learner", learners), ("reward", rewards)):
            self._started(calls, role)

    def restart_learner(self, why: str) -> None:
        """A fresh learner group after a rank failed, with the weights on disk; and fresh reward actors where a model judges, as
        theirs may be one that the learner has no more. Engines stay, and end what they sample. Where they do not start, they
        are started again while the crash budget lasts; then RoleFailed is raised."""
        while True:
            self._bury("learner", {f"learner-{rank}": actor for rank, actor in self._ranks.actors.items()}, why)
            try:
                return self._fresh_learner()
            except RoleFailed as error:
                why = str(error)

    def _fresh_learner(self) -> None:
        self._ranks.spawn()
        waves = {slot: ask(actor, RolloutActor.abandon)() for slot, actor in self.rollout.items()}
        _, errors = gather(waves, self.config.cluster.sync_deadline_s, what="rollout: abandon")
        for slot in errors:
            self.watch.end(f"rollout-{slot}", self.rollout[slot])  # the next update finds it dead, and replaces it
        if supervision(self.config):
            for slot, actor in self.reward.items():
                self.watch.end(f"reward-{slot}", actor)
                self._spawn_reward(slot)
        self._located(self._ranks.locate(), "learner")
        learners, rewards = self._ranks.start(self.rollout_config, self.prefix), self._start_reward_actors()
        self._started(learners, "learner")
        self._started(rewards, "reward")
        self.stale.clear()

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
            self._ranks.left()

    def slots(self) -> list[int]:
        return sorted(slot for slot in self.rollout if ("rollout", slot) not in self.aside)

    def reward_slots(self) -> list[int]:
        return sorted(slot for slot in self.reward if ("reward", slot) not in self.aside)

    def replace(self, slot: int, why: str) -> None:
        """A fresh engine in the slot. Its weights are those on disk, so it must be brought up to date before it serves."""
        self.lives["rollout", slot] += 1
        if self.shared:
            self.learner.leave_gpu()  # vLLM starts only where enough memory is free
        self._replaced("rollout", slot, why)

    def replace_reward_actor(self, slot: int, why: str) -> None:
        """A fresh reward actor in the slot; a reward model that the run trained must be sent to it before it is asked."""
        self.lives["reward", slot] += 1
        self.stale.add(slot)
        self._replaced("reward", slot, why)

    def check_room(self, config: RunConfig) -> None:
        """Raises PlacementError where this machine cannot hold the workers of `config`; a cluster may grow."""
        if "RAY_ADDRESS" not in os.environ:
            fitting(config, self.model_dir)

    def add(self, role: str, slot: int, config: RunConfig) -> None:
        """Start one more worker, set aside; `config` counts it. It holds what `replace` and `replace_reward_actor` say of fresh
        ones. Raises RoleFailed where it finds no room, or does not start."""
        self.aside.add((role, slot))
        self._spawner.reserve(role, slot, config)
        self._fresh(role, slot)
        if role == "reward":
            self.stale.add(slot)

    def dismiss(self, role: str, slot: int) -> None:
        """End a worker that is set aside and has nothing to do, in order, so that nothing of it is left on its node."""
        if role == "rollout":
            stopped = ask(self.rollout[slot], RolloutActor.stop)()
            gather({slot: stopped}, self.config.cluster.sync_deadline_s, what=f"rollout-{slot}: stop")
        self.remove(role, slot)

    def remove(self, role: str, slot: int) -> None:
        """End a worker that is set aside at once, and give back its room."""
        actors: dict[int, ActorHandle]
        actors, nodes = (self.rollout, self.nodes) if role == "rollout" else (self.reward, self.reward_nodes)
        if actor := actors.pop(slot, None):
            self.watch.end(f"{role}-{slot}", actor)
        nodes.pop(slot, None)
        self._spawner.release(role, slot)
        self.aside.discard((role, slot))
        if role == "reward":
            self.stale.discard(slot)

    def _replaced(self, role: str, slot: int, why: str) -> None:
        """A new actor in the slot; while the crash budget lasts, another one where it does not start."""
        while True:
            self._bury(name := f"{role}-{slot}", {name: self._actors(role)[slot]}, why)
            try:
                return self._fresh(role, slot)
            except RoleFailed as error:
                why = str(error)

    def _fresh(self, role: str, slot: int) -> None:
        """A new actor in the slot."""
        if role == "rollout":
            self._spawn_rollout(slot)
            self.nodes |= self._locate({slot: ask(self.rollout[slot], RolloutActor.locate)()}, role)
            self._started({slot: self._start_rollout(slot)}, role)
            return
        self._spawn_reward(slot)
        self.reward_nodes |= self._locate({slot: ask(self.reward[slot], RewardActor.locate)()}, role)
        self._started({slot: self._start_reward(slot)}, role)

    def _bury(self, name: str, actors: Mapping[str, ActorHandle], why: str) -> None:
        budget, self.deaths = self.config.cluster.worker_restarts, self.deaths + 1
        why = self.watch.why(name) or why
        log.warning("%s is taken out of service (%d of %d): %s", name, self.deaths, budget, why)
        self.watch.testify(why, list(actors))
        for each, actor in actors.items():
            self.watch.end(each, actor)
        if self.deaths > budget:
            raise RoleFailed(f"{name} failed and the crash budget of {budget} is spent: {why}")

    def _locate(self, calls: Mapping[int, ray.ObjectRef[dict[str, object]]], role: str) -> dict[int, str]:
        """Nodes by slot."""
        return self._located(self._all(calls, role), role)

    def _located(self, found: Mapping[int, Mapping[str, object]], role: str) -> dict[int, str]:
        """Nodes by slot of the actors that said where they are: their own processes are watched while they start."""
        for slot, info in found.items():
            self.watch.add(f"{role}-{slot}", self._actors(role)[slot], info)
        return {slot: str(info["node_id"]) for slot, info in found.items()}

    def _started(self, calls: Mapping[int, ray.ObjectRef[dict[str, object]]], role: str) -> None:
        for slot, info in self._all(calls, role).items():
            self.info[f"{role}-{slot}"] = info
            pulse = ask(self.rollout[slot], RolloutActor.pulse) if role == "rollout" else None
            self.watch.add(f"{role}-{slot}", self._actors(role)[slot], info, pulse)

    def _actors(self, role: str) -> Handles:
        return {"rollout": self.rollout, "reward": self.reward, "learner": self._ranks.actors}[role]

    def _spawn_rollout(self, slot: int) -> None:
        seen = shared_devices(self._ranks.gpus, slot, self.config.rollout.tensor_parallel_size) if self.shared else {}
        spawn = self._spawner.spawn("rollout", slot, RolloutActor, environment=seen)
        prefix = f"{self.prefix}-{slot}"
        self.rollout[slot] = spawn(self.config, self.rollout_config, self.model_dir, prefix, self.max_model_len)

    def _spawn_reward(self, slot: int) -> None:
        log = self.config.output / "logs" / f"reward-{slot}.log"
        self.reward[slot] = self._spawner.spawn("reward", slot, RewardActor)(self.config, f"{self.prefix}-reward-{slot}", log)

    def _start_rollout(self, slot: int) -> ray.ObjectRef[dict[str, object]]:
        return ask(self.rollout[slot], RolloutActor.start, f"start engine {slot}")(*position(slot, self.nodes))

    def _start_reward(self, slot: int) -> ray.ObjectRef[dict[str, object]]:
        kind = supervision(self.config)
        if kind is None:
            return ask(self.reward[slot], RewardActor.describe)()
        return ask(self.reward[slot], RewardActor.load_model)(self.model_dir, kind, *position(slot, self.reward_nodes))

    def _start_reward_actors(self) -> dict[int, ray.ObjectRef[dict[str, object]]]:
        self.reward_nodes = self._locate({s: ask(actor, RewardActor.locate)() for s, actor in self.reward.items()}, "reward")
        return {slot: self._start_reward(slot) for slot in self.reward}

    def _all(self, calls: Mapping[int, ray.ObjectRef[R]], role: str) -> dict[int, R]:
        return all_answers(calls, role, self.config.cluster.start_deadline_s, "start", self.watch.why)
