"""What the driver asks of the workers, each call with a deadline."""

import logging
from collections.abc import Callable, Mapping, Sequence
from typing import cast

from ray.actor import ActorHandle

from cluster.config.run_config import RunConfig
from cluster.fibers import HUB
from cluster.fleet.actors import RewardActor, RolloutActor
from cluster.fleet.calls import ask, follow, stream
from cluster.fleet.pace import PUBLISH_DEADLINES
from cluster.fleet.publisher import STREAMING, Model
from cluster.fleet.receivers import Receiver, Receivers
from cluster.fleet.weight_update import Moved, transact
from cluster.fleet.workers import Handles, Workers
from cluster.records.clock import taking
from reward.judging.judges import judging_seconds
from reward.types import By, ScoredGroup
from rollout.patience import longest
from rollout.types import Group, Lease, PolicyVersion, Sampling

log = logging.getLogger("cohort")


def patience(config: RunConfig) -> tuple[float, float]:
    """Seconds that one wait for other work of the driver takes at most: where nobody fails, every role being called once, and
    where all of the crash budget goes into it, and into the waves and refills before it."""
    times, stages = config.cluster, config.stages
    outputs = max((stage.questions_per_step * stage.samples_per_question for stage in stages), default=1)
    sampling = allowed_s(config, outputs) + judging_seconds(config.reward, outputs)
    once = sampling + times.train_deadline_s + times.start_deadline_s + PUBLISH_DEADLINES * times.sync_deadline_s
    rounds = max(((1 + stage.max_staleness) * (1 + stage.max_refills) for stage in stages), default=1)
    return once, once * (times.worker_restarts + 1) * rounds


def allowed_s(config: RunConfig, outputs: int) -> float:
    """Seconds within which an engine samples so many outputs, with their programs or environments and the engine's deadline."""
    tools = config.rollout.tools
    programs = longest(outputs * tools.max_programs, tools.seconds, tools.at_once) if tools else 0.0
    if environment := config.rollout.environment:  # it is made, replies to each turn, and says what the episode is worth
        programs = longest(outputs * (environment.max_turns + 2), environment.seconds, environment.at_once)
    return config.cluster.generate_deadline_s + programs + 10


class Roles(Workers):
    """The driver's hold on all actors of one run."""

    def generate(
        self,
        waves: Mapping[int, Sequence[Lease]],
        sampling: Sampling,
        name: str,
        each: Callable[[Lease, Group], None],
        failed: Callable[[int, str], None],
    ) -> dict[int, str]:
        """One wave a slot. `each` gets every group as it comes, and `failed` a slot that fails while others go on; what is
        returned are errors by slot."""
        deadline = self.config.cluster.generate_deadline_s
        calls = {
            slot: stream(self.rollout[slot], RolloutActor.generate, name)(list(leases), sampling, deadline)
            for slot, leases in waves.items()
        }

        def arrived(slot: int, made: tuple[int, Group]) -> None:
            each(waves[slot][made[0]], made[1])

        def ended(slot: int, why: str) -> None:
            failed(slot, self.watch.explain("rollout", {slot: why})[slot])

        return self.watch.explain("rollout", follow(calls, self.allowed_s(waves), arrived, ended, what=f"rollout: {name}"))

    def allowed_s(self, waves: Mapping[int, Sequence[Lease]]) -> float:
        """Of the longest of these waves."""
        return allowed_s(self.config, max(sum(len(lease.indices) for lease in leases) for leases in waves.values()))

    def score(
        self, parts: Mapping[int, Sequence[Group]], by: By, name: str
    ) -> tuple[dict[int, list[ScoredGroup]], dict[int, str]]:
        """A part of the groups a slot -> ({slot: scored groups}, {slot: error})."""
        calls = {slot: ask(self.reward[slot], RewardActor.score, name)(list(part), by) for slot, part in parts.items()}
        most = max(sum(len(group.samples) for group in part) for part in parts.values())
        judging, began = judging_seconds(self.config.reward, most), HUB.world.now()
        deadline = self.paces[by].deadline_s(self.config.cluster.generate_deadline_s + judging, most, judging)
        answers, errors = self.watch.gather("reward", calls, deadline, name)
        if not errors:
            self.paces[by].took(HUB.world.now() - began, most)
        return answers, errors

    def learner_logprobs(self, sequences: Sequence[Sequence[int]]) -> list[list[float]]:
        with taking(self.split, "canary_learner"):
            return self.learner.named("canary").logprobs(sequences)

    def engine_logprobs(
        self, slots: Sequence[int], sequences: Sequence[Sequence[int]]
    ) -> tuple[dict[int, list[list[float]]], dict[int, str]]:
        calls = {slot: ask(self.rollout[slot], RolloutActor.logprobs, "canary")(sequences) for slot in slots}
        with taking(self.split, "canary"):
            return self.watch.gather("rollout", calls, self.config.cluster.sync_deadline_s, "canary")

    def publish(self, version: PolicyVersion, slots: Sequence[int]) -> tuple[str, dict[int, str], bool]:
        engines = self._receivers(self.rollout, self.nodes, slots)
        return self._send("policy", version, engines, f"publish v{version}")

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
        streaming = model == "policy" and self.rollout_config.transport in STREAMING

        def move(ready: list[int]) -> Moved:
            moved = learner.publish(model, version, receivers.only(ready))
            self.split |= moved.seconds
            return moved

        done = transact(receivers, move, list(receivers.members), version, streaming=streaming)
        self.split |= receivers.seconds
        return done

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
