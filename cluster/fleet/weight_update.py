"""The weight update as a transaction, decided on the driver, and the canary that checks what the engines then hold.

    start     every receiver is asked to begin: who receives is settled here, once, for all learner ranks
    move      the learner's ranks gather together and send; with shm every engine stages all buckets beside its live weights and
              checks names, shapes, dtypes and digests
    finish    with shm only when all are prepared: load, compare what is held, drop the prefix cache, serve the new version

With shm a failure before `finish` leaves the old version serving everywhere. A failure in it, or anywhere in a streaming
transport (nccl, ipc: bytes go straight into the live weights), takes that engine out of service: it is replaced.
"""

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Protocol

from cluster.fibers import HUB
from rollout.types import PolicyVersion

if TYPE_CHECKING:
    from cluster.fleet.receivers import Receivers, TransferInfo

log = logging.getLogger("cohort")


class UpdateFailed(RuntimeError):
    """A weight update fails the same way on every engine."""


class CanaryFailed(UpdateFailed):
    """An engine's log-probabilities are not the learner's."""


class FanOut:
    """A sender's client over several engines (rollout.weights.senders.Client). Whoever fails is left out from then on."""

    def __init__(self, slots: Sequence[int], receivers: "Receivers", *, tensor_parallel_size: int):
        self.slots, self.receivers = list(slots), receivers
        self.tensor_parallel_size = tensor_parallel_size
        self.failed: dict[int, str] = {}
        self.processes = len(self.slots) * tensor_parallel_size

    def init_weight_transfer_engine(self, init_info: "TransferInfo") -> None:
        from rollout.weights.senders import init_infos

        infos = init_infos(init_info, [self.tensor_parallel_size] * len(self.slots))
        _, errors = self.receivers.init(dict(zip(self.slots, infos, strict=True)))
        self.failed |= errors

    def update_weights(self, update_info: "TransferInfo") -> None:
        digests, errors = self.receivers.update([slot for slot in self.slots if slot not in self.failed], update_info)
        self.failed |= errors
        if "manifest" in update_info:
            sent = update_info["manifest"]["digest"]
            self.failed |= {slot: f"received digest {d}, sent {sent}" for slot, d in digests.items() if d != sent}


@dataclass(frozen=True, slots=True, kw_only=True)
class Moved:
    """What a collective of the learner's ranks sent."""

    digest: str
    """Of the bytes sent; empty where nobody could be reached."""
    sums: dict[str, int]
    """Of each tensor's bits (see rollout.weights.held)."""
    failed: dict[int, str]
    """Why each receiver that failed did, by slot."""
    seconds: dict[str, float] = field(default_factory=dict)
    """By part of the work (see METRICS, `seconds_sync_`)."""


def transact(
    receivers: "Receivers", move: Callable[[list[int]], Moved], slots: Sequence[int], version: int, *, streaming: bool
) -> tuple[str, dict[int, str], bool]:
    """One version to these slots. Returns (digest, failures by slot, whether those that failed may hold a mixture)."""
    _, failed = receivers.begin(slots)
    ready = [slot for slot in slots if slot not in failed]
    if not ready or failed and not streaming:
        return "", failed, streaming
    moved = move(ready)
    failed = failed | moved.failed
    if failed and not streaming:
        return moved.digest, failed, False
    _, errors = receivers.finish([slot for slot in ready if slot not in failed], version, moved.sums)
    failed |= errors
    return moved.digest, failed, bool(failed)


FLOOR = {"float32": 2e-4, "bfloat16": 1e-2}
"""Mean |difference| of log-probabilities that arithmetic alone may cause, whatever was measured at version 0 (nats)."""
ALARM = {"float32": 5e-3, "bfloat16": 0.1}
"""A mean |difference| at version 0 above this is not noise: engine and learner compute different models."""
CEILING = {"float32": 1e-2, "bfloat16": 0.2}
"""Of the tolerance, whatever was measured at version 0."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Canary:
    """Fixed token sequences that learner and engine must read alike, within a tolerance set by the noise at version 0."""

    sequences: tuple[tuple[int, ...], ...]
    tolerance: float
    """Bound on the mean |difference| in nats; a single token may differ by 20 times as much."""

    @classmethod
    def calibrate(cls, sequences, engines: Mapping[int, list[list[float]]], learner: list[list[float]], dtype: str) -> "Canary":
        """From log-probabilities (engine by slot, and learner) of the same weights; `dtype` is the coarser of the two.

        Raises CanaryFailed past ALARM.
        """
        noise = max(sum(d) / len(d) for d in (differences(e, learner) for e in engines.values()))
        if not noise <= ALARM[dtype]:
            found = f"engine and learner differ by {noise:.3g} nats a token on the same weights"
            raise CanaryFailed(f"{found} (at most {ALARM[dtype]:g} in {dtype}): they compute different models")
        return cls(sequences=tuple(map(tuple, sequences)), tolerance=min(max(4 * noise, FLOOR[dtype]), CEILING[dtype]))

    def check(self, slot: int, engine: list[list[float]], learner: list[list[float]]) -> float:
        """Mean |difference| in nats. Raises CanaryFailed above the tolerance, or for one token far off, or for NaN."""
        diffs = differences(engine, learner)
        mean, worst = sum(diffs) / len(diffs), max(diffs)
        if not (mean <= self.tolerance and worst <= 20 * self.tolerance):
            raise CanaryFailed(
                f"rollout-{slot} does not hold the published weights: log-probabilities differ from the learner's by {mean:.3g}"
                f" nats a token, at worst {worst:.3g} (tolerance {self.tolerance:.3g} and {20 * self.tolerance:.3g})"
            )
        return mean


def differences(engine: list[list[float]], learner: list[list[float]]) -> list[float]:
    """|difference| of every token, in order."""
    rows = zip(engine, learner, strict=True)
    return [abs(a - b) for row_a, row_b in rows for a, b in zip(row_a, row_b, strict=True)]


class Fleet(Protocol):
    """What a weight update needs of the roles; `cluster.fleet.roles.Roles` is the real one."""

    def slots(self) -> list[int]: ...

    def publish(self, version: PolicyVersion, slots: Sequence[int]) -> tuple[str, dict[int, str], bool]:
        """Send the learner's weights. Returns (digest, failures by slot, whether those engines may hold a mixture)."""
        ...

    def engine_logprobs(self, slots: Sequence[int], sequences) -> tuple[dict[int, list[list[float]]], dict[int, str]]:
        """Log-probabilities of the sequences by slot, and errors by slot."""
        ...

    def replace(self, slot: int, why: str) -> None:
        """A fresh engine in this slot, with the weights on disk. Raises when the crash budget is spent."""
        ...


class RewardActors(Protocol):
    """What an update of the reward model needs of the roles."""

    def reward_slots(self) -> list[int]: ...

    def send_reward_model(self, version: int, slots: Sequence[int]) -> tuple[str, dict[int, str]]:
        """Send the learner's reward model. Returns (digest, failures by slot)."""
        ...

    def replace_reward_actor(self, slot: int, why: str) -> None:
        """A fresh reward actor in this slot, without weights. Raises when the crash budget is spent."""
        ...


def publish_reward_model(
    actors: RewardActors, version: int, slots: Sequence[int] | None = None, *, replaces: bool = True
) -> str:
    """Bring the reward slots (all, unless named) to `version` = the learner's reward model; returns its digest.

    The transaction is the policy's: staged and verified everywhere before it is loaded anywhere. Nobody is judged meanwhile.
    Whoever fails is replaced; without `replaces`, UpdateFailed is raised.
    """
    todo = list(actors.reward_slots() if slots is None else slots)
    while True:
        digest, failed = actors.send_reward_model(version, todo)
        if not failed:
            return digest
        if not replaces:
            raise UpdateFailed("; ".join(f"reward-{slot}: {why}" for slot, why in sorted(failed.items())))
        HUB.together({f"renew reward-{s}": partial(actors.replace_reward_actor, s, why) for s, why in failed.items()})


def publish(
    fleet: Fleet,
    version: PolicyVersion,
    canary: Canary,
    learner: list[list[float]],
    slots: Sequence[int] | None = None,
    *,
    replaces: bool = True,
) -> tuple[str, float]:
    """Bring the slots (all, unless named) to `version`. Returns (digest, canary's mean difference). `learner`: its
    log-probabilities of the canary's sequences under that version.

    Every engine that fails is replaced and brought to the same version before anything is sampled; the fleet's crash
    budget bounds the tries. A fresh engine that fails as the one before it did will not be mended by a third: CanaryFailed,
    or UpdateFailed, which without `replaces` the first failure is.
    """
    todo = list(fleet.slots() if slots is None else slots)
    worst, before = 0.0, {}
    while True:
        digest, failed, mixed = fleet.publish(version, todo)
        if not failed or mixed:
            # Those that committed are judged by the canary; a failed one is replaced and served alone.
            answers, errors = fleet.engine_logprobs([s for s in todo if s not in failed], canary.sequences)
            failed = failed | errors
            for slot, answer in answers.items():
                try:
                    worst = max(worst, canary.check(slot, answer, learner))
                except CanaryFailed as error:
                    if slot in before:
                        raise CanaryFailed(f"a fresh engine is refused too: {error}") from None
                    failed[slot] = str(error)
            todo = list(failed)
        for slot, why in failed.items():
            if not replaces:
                raise UpdateFailed(f"rollout-{slot}: {why}")
            if before.get(slot) == why:
                raise UpdateFailed(f"rollout-{slot}: a fresh engine fails as the one before it did: {why}")
        HUB.together({f"renew rollout-{slot}": partial(fleet.replace, slot, why) for slot, why in failed.items()})
        before |= failed
        if not failed:
            for slot in before:
                log.warning("rollout-%d serves again, version %d", slot, version)
            return digest, worst
