"""The driver's hold on the actors: starting them, calling them with deadlines, replacing those that fail, stopping them all."""

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import ray

from cluster.config.contradictions import supervision
from cluster.config.run_config import RunConfig
from cluster.fleet.actors import LearnerActor, RewardActor, RolloutActor
from cluster.fleet.calls import RoleFailed, all_answers, asking, gather
from cluster.fleet.placement import position, settled, shared_devices, shares_gpus
from cluster.fleet.publisher import STREAMING, Model, Receivers, Way
from cluster.fleet.spawner import Spawner
from cluster.fleet.weight_update import Moved, transact
from reward.judging.judges import judging_seconds
from reward.types import By, ScoredGroup
from rollout.patience import longest
from rollout.types import Group, Lease, PolicyVersion, Sampling

log = logging.getLogger("cohort")
PUBLISH_DEADLINES = 4
"""Calls of a publish that are awaited one after another, each for `cluster.sync_deadline_s`."""


class Roles:
    """All actors of one run. Names in the dashboard: `<run>/rollout-0`, `<run>/reward-0`, `<run>/learner-0`."""

    def __init__(self, config: RunConfig, model_dir: Path, *, max_model_len: int, incarnation: int):
        self.config, self.model_dir, self.max_model_len = config, model_dir, max_model_len
        self.prefix = f"{config.name}-{incarnation}"
        self.deaths = 0
        self.rollout: dict[int, Any] = {}
        self.reward: dict[int, Any] = {}
        self.stale: set[int] = set()
        """Reward slots that lack the reward model which the run trained."""
        self.learner: dict[int, Any] = {}
        self.nodes: dict[int, str] = {}
        self.judge_nodes: dict[int, str] = {}
        self.info: dict[str, dict[str, Any]] = {}
        self._spawner = Spawner(config, model_dir, self.prefix)
        self.rollout_config = settled(config.rollout, gpus=self._spawner.gpus)
        """With the transport that everyone uses."""
        self.shared = shares_gpus(config)

    def start(self) -> None:
        """Start every actor at once and wait for them. Raises RoleFailed with the first error.

        On GPUs that they share, engines start before the learner: vLLM measures what is free.
        """
        for rank in range(self.config.learner.ranks):
            args = (self.config.learner, self.model_dir, rank, self._longest_wait)
            self.learner[rank] = self._spawner.spawn("learner", rank, LearnerActor, *args)
        if self.shared:
            self._locate_learner()
        for slot in range(self.config.rollout.workers):
            self._spawn_rollout(slot)
        for slot in range(self.config.reward.workers):
            self._spawn_judge(slot)
        self.nodes = self._all({s: h.locate.remote() for s, h in self.rollout.items()}, "rollout")
        engines = {s: self._start_rollout(s) for s in self.rollout}
        if self.shared:
            self.info |= self._described(engines, "rollout")
        else:
            self._locate_learner()
        way = Way(prefix=self.prefix, deadline_s=self.config.cluster.sync_deadline_s)
        learners = {
            r: h.start.remote(self._rendezvous, *position(r, self._learner_nodes), self.rollout_config, way)
            for r, h in self.learner.items()
        }
        self.judge_nodes = self._all({s: h.locate.remote() for s, h in self.reward.items()}, "reward")
        judges = {s: self._start_judge(s) for s in self.reward}
        for role, calls in (("rollout", engines), ("learner", learners), ("reward", judges)):
            self.info |= self._described(calls, role)

    def _locate_learner(self) -> None:
        places = self._all({r: h.locate.remote() for r, h in self.learner.items()}, "learner")
        self._learner_nodes = {rank: node for rank, (node, _, _) in places.items()}
        self._rendezvous = next((address for _, address, _ in places.values()), "")
        self._gpus = {rank: gpus for rank, (_, _, gpus) in places.items()}

    def _described(self, calls: dict[int, Any], role: str) -> dict[str, dict[str, Any]]:
        return {f"{role}-{slot}": info for slot, info in self._all(calls, role).items()}

    def stop(self, deadline_s: float) -> None:
        """End every actor; engines are asked first so that their processes and memory go in order."""
        try:
            gather({s: h.stop.remote() for s, h in self.rollout.items()}, deadline_s)
        finally:
            self._spawner.close()

    def slots(self) -> list[int]:
        return sorted(self.rollout)

    def generate(
        self, waves: Mapping[int, Sequence[Lease]], sampling: Sampling, name: str
    ) -> tuple[dict[int, list[Group]], dict[int, str]]:
        """One wave a slot -> ({slot: groups}, {slot: error})."""
        deadline, tools = self.config.cluster.generate_deadline_s, self.config.rollout.tools
        calls = {
            slot: self.rollout[slot].generate.options(name=name).remote(list(leases), sampling, deadline)
            for slot, leases in waves.items()
        }
        outputs = max(sum(len(lease.indices) for lease in leases) for leases in waves.values())
        programs = longest(outputs * tools.max_programs, tools.seconds, tools.at_once) if tools else 0.0
        return gather(calls, deadline + programs + 10)

    def judge(
        self, parts: Mapping[int, Sequence[Group]], by: By, name: str
    ) -> tuple[dict[int, list[ScoredGroup]], dict[int, str]]:
        """A part of the groups a slot -> ({slot: scored groups}, {slot: error})."""
        calls = {slot: self.reward[slot].score.options(name=name).remote(list(part), by) for slot, part in parts.items()}
        most = max(sum(len(group.samples) for group in part) for part in parts.values())
        return gather(calls, self.config.cluster.generate_deadline_s + judging_seconds(self.config.reward, most))

    def learn(self, method: str, *args, name: str | None = None, deadline_s: float | None = None) -> list[Any]:
        """Call every rank and return the answers by rank. Raises RoleFailed when a rank fails: the group is one machine."""
        calls = {r: getattr(h, method).options(name=name or method).remote(*args) for r, h in self.learner.items()}
        answers = self._all(calls, "learner", deadline_s or self.config.cluster.train_deadline_s)
        return [answers[rank] for rank in sorted(answers)]

    def learner_logprobs(self, sequences) -> list[list[float]]:
        return self.learn("logprobs", sequences, name="canary")[0]

    def score(self, slots: Sequence[int], sequences):
        calls = {s: self.rollout[s].score.options(name="canary").remote(sequences) for s in slots}
        return gather(calls, self.config.cluster.sync_deadline_s)

    def publish(self, version: PolicyVersion, slots: Sequence[int]) -> tuple[str, dict[int, str], bool]:
        engines = {slot: (self.rollout[slot], self.nodes[slot]) for slot in slots}
        return self._send("policy", version, engines, f"publish v{version}")

    def reward_slots(self) -> list[int]:
        return sorted(self.reward)

    def send_reward_model(self, version: int, slots: Sequence[int]) -> tuple[str, dict[int, str]]:
        judges = {slot: (self.reward[slot], self.judge_nodes[slot]) for slot in slots}
        digest, failed, _ = self._send("reward_model", version, judges, f"publish reward model {version}")
        self.stale -= judges.keys() - failed.keys()
        return digest, failed

    def _send(self, model: Model, version: int, receivers: Receivers, name: str) -> tuple[str, dict[int, str], bool]:
        deadline = self.config.cluster.sync_deadline_s

        def move(slots: list[int]) -> Moved:
            members = {slot: receivers[slot] for slot in slots}
            return self.learn("publish", model, version, members, name=name, deadline_s=PUBLISH_DEADLINES * deadline)[0]

        ask = asking({slot: handle for slot, (handle, _) in receivers.items()}, deadline)
        streaming = model == "policy" and self.rollout_config.transport in STREAMING
        return transact(ask, move, list(receivers), version, streaming=streaming)

    def rest(self) -> None:
        """The engines leave their GPUs to the learner, where the run has them take turns."""
        if not self.rollout_config.sleep:
            return
        _, errors = asking(self.rollout, self.config.cluster.sync_deadline_s)("sleep", self.rollout)
        for slot, why in errors.items():
            # It holds the memory that the learner needs. The next update finds it dead, and replaces it.
            log.warning("rollout-%d is ended, since it does not sleep: %s", slot, why)
            ray.kill(self.rollout[slot])

    def replace(self, slot: int, why: str) -> None:
        """A fresh engine in the slot. Its weights are those on disk, so it must be brought up to date before it serves."""
        self._bury("rollout", slot, self.rollout[slot], why)
        if self.shared:
            self.learn("leave_gpu")  # vLLM starts only where enough memory is free
        self._spawn_rollout(slot)
        self.nodes |= self._all({slot: self.rollout[slot].locate.remote()}, "rollout")
        self.info[f"rollout-{slot}"] = self._all({slot: self._start_rollout(slot)}, "rollout")[slot]

    def replace_judge(self, slot: int, why: str) -> None:
        """A fresh reward actor in the slot; a reward model that the run trained must be sent to it before it is asked."""
        self._bury("reward", slot, self.reward[slot], why)
        self.stale.add(slot)
        self._spawn_judge(slot)
        self.judge_nodes |= self._all({slot: self.reward[slot].locate.remote()}, "reward")
        self.info[f"reward-{slot}"] = self._all({slot: self._start_judge(slot)}, "reward")[slot]

    def _bury(self, role: str, slot: int, handle, why: str) -> None:
        self.deaths += 1
        log.warning("%s-%d is taken out of service (%d of %d): %s", role, slot, self.deaths, self._budget, why)
        ray.kill(handle)
        if self.deaths > self._budget:
            raise RoleFailed(f"{role}-{slot} failed and the crash budget of {self._budget} is spent: {why}")

    @property
    def _longest_wait(self) -> float:
        """Of `learn`, in seconds: the ranks' collectives must not give up before it."""
        return max(self.config.cluster.train_deadline_s, PUBLISH_DEADLINES * self.config.cluster.sync_deadline_s)

    @property
    def _budget(self) -> int:
        return self.config.cluster.worker_restarts

    def _spawn_rollout(self, slot: int) -> None:
        options = {
            "prompt": self.config.data.prompt, "run_seed": self.config.seed, "max_model_len": self.max_model_len,
            "prefix": f"{self.prefix}-{slot}", "sync_deadline_s": self.config.cluster.sync_deadline_s,
        }  # fmt: skip
        seen = shared_devices(self._gpus, slot, self.config.rollout.tensor_parallel_size) if self.shared else {}
        arguments = self.rollout_config, self.model_dir, options
        self.rollout[slot] = self._spawner.spawn("rollout", slot, RolloutActor, *arguments, environment=seen)

    def _spawn_judge(self, slot: int) -> None:
        options = f"{self.prefix}-reward-{slot}", self.config.cluster.sync_deadline_s
        log = self.config.output / "logs" / f"reward-{slot}.log"
        self.reward[slot] = self._spawner.spawn("reward", slot, RewardActor, self.config.reward, *options, log)

    def _start_judge(self, slot: int):
        kind = supervision(self.config)
        if kind is None:
            return self.reward[slot].describe.remote()
        return self.reward[slot].load_model.remote(self.model_dir, kind, *position(slot, self.judge_nodes))

    def _start_rollout(self, slot: int):
        return self.rollout[slot].start.options(name=f"start engine {slot}").remote(*position(slot, self.nodes))

    def _all(self, calls: dict[int, Any], role: str, deadline_s: float | None = None) -> dict[int, Any]:
        return all_answers(calls, role, deadline_s or self.config.cluster.start_deadline_s)
