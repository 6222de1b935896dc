"""The actors that receive weights, asked together; and what a sender ships to other nodes."""

import copy
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any, Concatenate, ParamSpec, Protocol, TypeVar

import ray
import ray.exceptions
from ray import ObjectRef
from ray.actor import ActorHandle

from cluster.fleet.calls import LATE, ask, gather
from cluster.fleet.placement import node_id

R = TypeVar("R")
P = ParamSpec("P")
TransferInfo = dict[str, Any]
"""What vLLM's sender tells its receivers, for a rendezvous or of one update; with shm that holds a Manifest as a dictionary."""
Buckets = dict[str, ObjectRef[bytes]]
"""What is shipped to other nodes, by segment."""


class Receiver(Protocol):
    """What rollout and reward actors answer alike, as their caller sees it: whether as coroutines is theirs."""

    def init_weight_transfer_engine(self, init_info: TransferInfo, /) -> None: ...

    def start_weight_update(self) -> None: ...

    def update_weights(self, update_info: TransferInfo, buckets: Buckets, /) -> str: ...

    def finish_weight_update(self, version: int, sums: dict[str, int], /) -> dict[str, float]: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Receivers:
    """Actors by slot. Each call gives (answers, errors) by slot within the deadline; an error names the method."""

    members: Mapping[int, ActorHandle[Receiver]]
    nodes: Mapping[int, str]
    deadline_s: float
    grace_s: float | None = None
    """For the others, once one has failed (see `calls.gather`)."""
    seconds: dict[str, float] = field(default_factory=dict)
    """That the slowest took to finish, by part of the work."""

    def only(self, slots: Sequence[int]) -> "Receivers":
        return replace(self, members={slot: self.members[slot] for slot in slots})

    def init(self, infos: Mapping[int, TransferInfo]) -> tuple[dict[int, None], dict[int, str]]:
        """Meet the sender, each with its own information."""
        method = Receiver.init_weight_transfer_engine
        return self._answers(method, {slot: self._ask(slot, method)(info) for slot, info in infos.items()})

    def begin(self, slots: Sequence[int]) -> tuple[dict[int, None], dict[int, str]]:
        """Expect an update."""
        method = Receiver.start_weight_update
        return self._answers(method, {slot: self._ask(slot, method)() for slot in slots})

    def update(self, slots: Sequence[int], info: TransferInfo) -> tuple[dict[int, str], dict[int, str]]:
        """Stage or stream; the answers are digests. Shared memory of this node is shipped to the slots on others."""
        here, shipped, method = node_id(), {}, Receiver.update_weights
        if "manifest" in info and any(self.nodes[slot] != here for slot in slots):
            from rollout.weights.transfer import read_bucket

            shipped = {b["segment"]: ray.put(read_bucket(b["segment"])) for b in info["manifest"]["buckets"]}
        buckets = {slot: {} if self.nodes[slot] == here else shipped for slot in slots}
        return self._answers(method, {slot: self._ask(slot, method)(info, buckets[slot]) for slot in slots})

    def finish(
        self, slots: Sequence[int], version: int, sums: dict[str, int]
    ) -> tuple[dict[int, dict[str, float]], dict[int, str]]:
        """Load and serve what was prepared."""
        method = Receiver.finish_weight_update
        answers, errors = self._answers(method, {slot: self._ask(slot, method)(version, sums) for slot in slots})
        for part, seconds in ((part, seconds) for took in answers.values() for part, seconds in took.items()):
            self.seconds[part] = max(seconds, self.seconds.get(part, 0.0))
        return answers, errors

    def _ask(self, slot: int, method: Callable[Concatenate[Receiver, P], R]) -> Callable[P, ObjectRef[R]]:
        return ask(self.members[slot], method, f"{method.__name__} of slot {slot}")

    def _answers(self, method: Callable, pending: dict[int, ObjectRef[R]]) -> tuple[dict[int, R], dict[int, str]]:
        answers, errors = gather(pending, self.deadline_s, grace_s=self.grace_s, what=method.__name__)
        return answers, {slot: f"{method.__name__}: {error}" for slot, error in errors.items()}


def fetched(buckets: Buckets, deadline_s: float) -> dict[str, bytes]:
    """What a sender on another node shipped. Raises RuntimeError where it does not come."""
    until = time.monotonic() + deadline_s
    try:
        return {segment: ray.get(ref, timeout=max(0.0, until - time.monotonic())) for segment, ref in buckets.items()}
    except ray.exceptions.GetTimeoutError:
        raise RuntimeError(f"weights of the sender's node: {LATE} {deadline_s:g} s") from None


@contextmanager
def on_this_node(manifest: TransferInfo, buckets: Mapping[str, bytes], prefix: str) -> Iterator[TransferInfo]:
    """The manifest of another node's sender with its buckets in this node's shared memory, while the block lasts."""
    from rollout.weights.transfer import Manifest, release, write_bucket

    local = copy.deepcopy(manifest)
    names = {segment: f"cohort_{prefix}_{os.getpid()}_v{manifest['version']}_{i}" for i, segment in enumerate(buckets)}
    for bucket in local["buckets"]:
        bucket["segment"] = names[bucket["segment"]]
    try:
        for segment, data in buckets.items():
            write_bucket(names[segment], data)
        yield local
    finally:
        release(Manifest.from_dict(local))
