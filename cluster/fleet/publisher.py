"""Where weights leave a learner rank: the LearnerWorker's tensors, a sender of `rollout.weights.senders`, and a client over the
actors that receive."""

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

import ray

from cluster.fleet.receivers import Receivers
from cluster.fleet.weight_update import FanOut, Moved
from rollout.config import RolloutConfig
from rollout.types import PolicyVersion

if TYPE_CHECKING:
    from learner.models.weights import ModelWeights
    from learner.worker import LearnerWorker
    from rollout.weights.senders import ShmTrainer, StreamingTrainer

STREAMING = {"nccl", "ipc"}
NCCL_GRACE_S = 10
"""The members of an nccl group cannot go on without each other."""
Model = Literal["policy", "reward_model"]


@dataclass(frozen=True, slots=True)
class _Held:
    """A sender, and the receivers that it can serve again."""

    sender: "ShmTrainer | StreamingTrainer"
    members: list[tuple[int, str]]


class Publisher:
    """One rank's. Its publishes are collectives, which end on all ranks together, whichever receiver fails."""

    def __init__(self, worker: "LearnerWorker", rollout: RolloutConfig, rank: int, prefix: str, *, ahead: bool):
        """`prefix` names the run in shared memory. `ahead`: the learner goes on while a version serves, so a copy of that is
        kept for engines that are replaced."""
        self.worker, self.rollout, self.rank, self.prefix, self._ahead = worker, rollout, rank, prefix, ahead
        self._held: dict[Model, _Held] = {}
        self._policy: ModelWeights | None = None
        self._version: PolicyVersion | None = None
        """Of the policy's weights that are kept."""

    def forget(self, model: Model) -> None:
        """The model's tensors are others from here on."""
        self._held.pop(model, None)

    def publish(self, model: Model, version: PolicyVersion, receivers: Receivers) -> Moved:
        from rollout.weights.senders import make_trainer

        transport, dtype = (self.rollout.transport, self.rollout.dtype) if model == "policy" else ("shm", "float32")
        receivers = replace(receivers, grace_s=NCCL_GRACE_S if transport == "nccl" else None)
        client = FanOut(list(receivers.members), receivers, tensor_parallel_size=self.rollout.tensor_parallel_size)
        members = sorted((slot, actor._actor_id.hex()) for slot, actor in receivers.members.items())
        source = self._source(model, dtype, version)
        held = self._held.pop(model, None)
        if held and held.members == members:
            sender = held.sender
        else:
            if held:
                held.sender.shutdown()
            address = ray.util.get_node_ip_address()
            where = {"rank": self.rank, "prefix": self.prefix, "address": address}
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
        self._held[model] = _Held(sender, [] if client.failed else members)
        return Moved(digest=sender.digest, sums=sender.sums, failed=client.failed, seconds=sender.seconds)

    def _source(self, model: Model, dtype: str, version: PolicyVersion) -> "ModelWeights":
        if model != "policy" or not self._ahead:
            return self.worker.source(dtype, model)
        self._policy = self._policy or self.worker.source(dtype)
        if version != self._version:
            self._policy.keep()
            self._version = version
        return self._policy
