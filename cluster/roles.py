"""The driver's hold on the actors: starting them, calling them with deadlines, replacing those that fail, stopping them all."""

import logging
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import ray
from ray.util.placement_group import remove_placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from cluster.actors import LearnerActor, Model, Receivers, RewardActor, RolloutActor
from cluster.calls import gather
from cluster.config import RunConfig
from cluster.contradictions import supervision
from cluster.placement import place
from cluster.sync import publish_reward_model
from learner.algorithms import RewardSource
from reward.judges import judging_seconds
from reward.types import ScoredSample
from rollout.patience import longest
from rollout.types import Lease, PolicyVersion, Question, Sample, Sampling

log = logging.getLogger("cohort")
PUBLISH_DEADLINES = 4
"""Calls of a publish that are awaited one after another, each for `cluster.sync_deadline_s`."""
ENVIRONMENT = {
    "VLLM_LOGGING_LEVEL": "WARNING",
    "TOKENIZERS_PARALLELISM": "false",
}


class RoleFailed(RuntimeError):
    """A role failed in a way that the run cannot outlive; names the actor and its error."""


class Roles:
    """All actors of one run. Names in the dashboard: `<run>/rollout-0`, `<run>/reward-0`, `<run>/learner-0`."""

    def __init__(self, config: RunConfig, model_dir: Path, *, max_model_len: int, incarnation: int):
        self.config, self.model_dir, self.max_model_len = config, model_dir, max_model_len
        self.prefix = f"{config.name}-{incarnation}"
        self.deaths = 0
        self.rollout: dict[int, Any] = {}
        self.reward: dict[int, Any] = {}
        self.reward_version = 0
        """Of the reward model that the reward actors hold; 0 is the one from reward.model.path, or none."""
        self.stale: set[int] = set()
        """Reward slots that lack the reward model which the run trained."""
        self.learner: dict[int, Any] = {}
        self.nodes: dict[int, str] = {}
        self.judge_nodes: dict[int, str] = {}
        self.info: dict[str, dict[str, Any]] = {}
        self._spawned: Counter = Counter()
        self.placement, self.bundles = place(config)
        gpus = any(b.gpus for b in self.bundles)
        self.transport = {"auto": "nccl" if gpus else "shm"}.get(config.rollout.transport, config.rollout.transport)

    def start(self) -> None:
        """Start every actor at once and wait for them. Raises RoleFailed with the first error."""
        count = {"rollout": self.config.rollout.workers, "reward": self.config.reward.workers}
        for rank in range(self.config.learner.ranks):
            args = (self.config.learner, self.model_dir, rank, self._longest_wait)
            self.learner[rank] = self._spawn("learner", rank, LearnerActor, *args)
        for slot in range(count["rollout"]):
            self._spawn_rollout(slot)
        for slot in range(count["reward"]):
            self._spawn_judge(slot)
        self.nodes = self._all({s: h.locate.remote() for s, h in self.rollout.items()}, "rollout")
        places = self._all({r: h.locate.remote() for r, h in self.learner.items()}, "learner")
        on = {rank: node for rank, (node, _) in places.items()}
        pending = {s: self._start_rollout(s) for s in self.rollout}
        learners = {
            r: h.start.remote(places[0][1], *_position(r, on), self.config.rollout, self.transport)
            for r, h in self.learner.items()
        }
        self.judge_nodes = self._all({s: h.locate.remote() for s, h in self.reward.items()}, "reward")
        judges = {s: self._start_judge(s) for s in self.reward}
        for role, calls in (("rollout", pending), ("learner", learners), ("reward", judges)):
            self.info |= {f"{role}-{slot}": info for slot, info in self._all(calls, role).items()}

    def stop(self) -> None:
        """End every actor; engines are asked first so that their processes and memory go in order."""
        gather({s: h.stop.remote() for s, h in self.rollout.items()}, 20)
        for handle in (*self.rollout.values(), *self.reward.values(), *self.learner.values()):
            ray.kill(handle)
        remove_placement_group(self.placement)

    def slots(self) -> list[int]:
        return sorted(self.rollout)

    def generate(
        self, waves: dict[int, Sequence[Lease]], sampling: Sampling, name: str
    ) -> tuple[dict[int, list[Sample]], dict[int, str]]:
        """One wave a slot -> ({slot: samples}, {slot: error})."""
        deadline, tools = self.config.cluster.generate_deadline_s, self.config.rollout.tools
        calls = {
            slot: self.rollout[slot].generate.options(name=name).remote(list(leases), sampling, deadline)
            for slot, leases in waves.items()
        }
        outputs = max(sum(len(lease.indices) for lease in leases) for leases in waves.values())
        programs = longest(outputs * tools.max_programs, tools.seconds, tools.at_once) if tools else 0.0
        return gather(calls, deadline + programs + 10)

    def judge(
        self, questions: Sequence[Question], samples: Sequence[Sample], name: str, reward: RewardSource
    ) -> list[ScoredSample]:
        """Scores in the order of the samples. Groups go to the reward actors in turn; a dead actor's to the next one."""
        by = "rule" if reward == "rule" else "model"
        groups: dict[str, list[Sample]] = {}
        for sample in samples:
            groups.setdefault(sample.group_id, []).append(sample)
        todo = {i: groups[g] for i, g in enumerate(groups)}
        asked = {q.ordinal: q for q in questions}
        scored: dict[tuple[str, int], ScoredSample] = {}
        turn = 0
        while todo:
            if by == "model" and self.stale and self.reward_version:
                publish_reward_model(self, self.reward_version, sorted(self.stale))
            parts = {s: [x for i, g in todo.items() if (i + turn) % len(self.reward) == s for x in g] for s in self.reward}
            calls = {
                slot: self.reward[slot].score.options(name=name).remote(
                    [asked[n] for n in sorted({x.ordinal for x in part})], part, by
                )
                for slot, part in parts.items() if part
            }  # fmt: skip
            work = judging_seconds(self.config.reward, max(map(len, parts.values())))
            answers, errors = gather(calls, self.config.cluster.generate_deadline_s + work)
            scored |= {(x.sample.group_id, x.sample.index): x for part in answers.values() for x in part}
            for slot, why in errors.items():
                self.replace_judge(slot, why)
            todo = {i: g for i, g in todo.items() if any((x.group_id, x.index) not in scored for x in g)}
            turn += 1
        if by == "model" and (wrong := {x.verdict.reward_version for x in scored.values()} - {self.reward_version}):
            raise RoleFailed(f"{name}: judged by reward model {sorted(wrong, key=str)}, and {self.reward_version} serves")
        return [scored[x.group_id, x.index] for x in samples]

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
        args, wait = (model, version, receivers, self.prefix, deadline), PUBLISH_DEADLINES * deadline
        return self.learn("publish", *args, name=name, deadline_s=wait)[0]

    def replace(self, slot: int, why: str) -> None:
        """A fresh engine in the slot. Its weights are those on disk, so it must be brought up to date before it serves."""
        self._bury("rollout", slot, self.rollout[slot], why)
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

    def _spawn(self, role: str, slot: int, cls: type, *args):
        """A remote instance in the role's bundle. A replacement's name carries its number: Ray frees names late."""
        bundle = next(i for i, b in enumerate(self.bundles) if (b.role, b.slot) == (role, slot))
        number, self._spawned[role, slot] = self._spawned[role, slot], self._spawned[role, slot] + 1
        strategy = PlacementGroupSchedulingStrategy(self.placement, placement_group_bundle_index=bundle)
        return ray.remote(cls).options(
            name=f"{self.prefix}/{role}-{slot}" + (f".{number}" if number else ""), namespace="cohort",
            num_cpus=self.bundles[bundle].cpus, num_gpus=self.bundles[bundle].gpus, scheduling_strategy=strategy,
            max_restarts=0, max_task_retries=0, runtime_env={"env_vars": ENVIRONMENT},
        ).remote(*args)  # fmt: skip

    def _spawn_rollout(self, slot: int) -> None:
        options = {
            "prompt": self.config.data.prompt, "run_seed": self.config.seed, "max_model_len": self.max_model_len,
            "prefix": f"{self.prefix}-{slot}", "sync_deadline_s": self.config.cluster.sync_deadline_s,
        }  # fmt: skip
        self.rollout[slot] = self._spawn("rollout", slot, RolloutActor, self.config.rollout, self.model_dir, options)

    def _spawn_judge(self, slot: int) -> None:
        options = f"{self.prefix}-reward-{slot}", self.config.cluster.sync_deadline_s
        log = self.config.output / "logs" / f"reward-{slot}.log"
        self.reward[slot] = self._spawn("reward", slot, RewardActor, self.config.reward, *options, log)

    def _start_judge(self, slot: int):
        kind = supervision(self.config)
        if kind is None:
            return self.reward[slot].describe.remote()
        return self.reward[slot].load_model.remote(self.model_dir, kind, *_position(slot, self.judge_nodes))

    def _start_rollout(self, slot: int):
        return self.rollout[slot].start.options(name=f"start engine {slot}").remote(*_position(slot, self.nodes))

    def _all(self, calls: dict[int, Any], role: str, deadline_s: float | None = None) -> dict[int, Any]:
        answers, errors = gather(calls, deadline_s or self.config.cluster.start_deadline_s, grace_s=10)
        if errors:
            # The rank that failed by itself is told apart from those that only waited for it.
            slot = min(errors, key=lambda s: ("no answer" in errors[s], s))
            raise RoleFailed(f"{role}-{slot}: {errors[slot]}")
        return answers


def _position(slot: int, nodes: dict[int, str]) -> tuple[int, int]:
    """(this one's place, how many) among the actors of a role on the slot's node."""
    here = sorted(s for s, node in nodes.items() if node == nodes[slot])
    return here.index(slot), len(here)
