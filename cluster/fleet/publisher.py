"""Where weights leave a learner rank: the LearnerWorker's tensors, a sender of `rollout.weights.senders`, and a client over the
handles of the actors that receive."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import ray

from cluster.fleet.calls import gather
from cluster.fleet.placement import node_id
from cluster.fleet.weight_update import FanOut, Moved
from rollout.config import RolloutConfig
from rollout.types import PolicyVersion

if TYPE_CHECKING:
    from learner.worker import LearnerWorker

STREAMING = {"nccl", "ipc"}
NCCL_GRACE_S = 10
"""The members of an nccl group cannot go on without each other."""
Model = Literal["policy", "reward_model"]
Receivers = dict[int, tuple[Any, str]]
"""Slot -> (actor handle, node)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Way:
    """What all publishes of a run have in common."""

    prefix: str
    """Names the run in shared memory."""
    deadline_s: float
    """For one call to an engine."""


class Publisher:
    """One rank's. Its publishes are collectives, which end on all ranks together, whichever receiver fails."""

    def __init__(self, worker: "LearnerWorker", rollout: RolloutConfig, rank: int, way: Way):
        self.worker, self.rollout, self.rank, self.way = worker, rollout, rank, way
        self._senders: dict[Model, tuple[Any, Any]] = {}
        """Per model its sender, and the receivers that it was made for."""

    def forget(self, model: Model) -> None:
        """The model's tensors are others from here on."""
        self._senders.pop(model, None)

    def publish(self, model: Model, version: PolicyVersion, receivers: Receivers) -> Moved:
        from rollout.weights.senders import make_trainer

        transport, dtype = (self.rollout.transport, self.rollout.dtype) if model == "policy" else ("shm", "float32")
        client = self._client(receivers, transport)
        members = sorted((slot, handle._actor_id.hex()) for slot, (handle, _) in receivers.items())
        sender, before = self._senders.pop(model, (None, None))
        if members != before:
            if sender is not None:
                sender.shutdown()
            source, address = self.worker.source(dtype, model), ray.util.get_node_ip_address()
            where = {"rank": self.rank, "prefix": self.way.prefix, "address": address}
            try:
                sender = make_trainer(transport, source=source, client=client, **where)
            except Exception:
                if not client.failed:
                    raise
                for _ in source:  # the other ranks are in its collectives
                    pass
                return Moved(digest="", sums={}, failed=client.failed)
        sender.client, sender.version = client, version
        sender.send_weights()
        # Whoever failed is replaced by another member. The old group, of nccl in particular, is of no use then.
        self._senders[model] = sender, None if client.failed else members
        return Moved(digest=sender.digest, sums=sender.sums, failed=client.failed)

    def _client(self, receivers: Receivers, transport: str) -> FanOut:
        from rollout.weights.transfer import read_bucket

        here, shipped = node_id(), {}

        def invoke(slot: int, method: str, arguments: tuple[Any, ...]):
            handle, node = receivers[slot]
            if method == "update_weights" and transport == "shm" and node != here:
                for bucket in arguments[0]["manifest"]["buckets"]:
                    if bucket["segment"] not in shipped:
                        shipped[bucket["segment"]] = ray.put(read_bucket(bucket["segment"]))
                arguments = (*arguments, shipped)
            return getattr(handle, method).options(name=f"{method} of slot {slot}").remote(*arguments)

        grace_s = NCCL_GRACE_S if transport == "nccl" else None
        return FanOut(
            list(receivers), invoke, lambda pending: gather(pending, self.way.deadline_s, grace_s=grace_s),
            tensor_parallel_size=self.rollout.tensor_parallel_size,
        )  # fmt: skip
