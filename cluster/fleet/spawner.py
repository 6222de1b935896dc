"""Actors in their bundles: those that a run begins with in a placement group for each role, one that is added in its own."""

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import ParamSpec, TypeVar, cast

import ray
from ray.actor import ActorHandle
from ray.util.placement_group import PlacementGroup, remove_placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from cluster.config.run_config import RunConfig
from cluster.fleet.bundles import Bundle, resources
from cluster.fleet.calls import RoleFailed, gather
from cluster.fleet.placement import added, lacking, place, reserve

A = TypeVar("A")
P = ParamSpec("P")
ENVIRONMENT = {"VLLM_LOGGING_LEVEL": "WARNING", "TOKENIZERS_PARALLELISM": "false", "PYTHONFAULTHANDLER": "1"}
JEMALLOC = Path(ray.__file__).parent / "core" / "libjemalloc.so"
"""Ray's own."""
LARGE = {
    "LD_PRELOAD": str(JEMALLOC),
    "MALLOC_CONF": "thp:always,narenas:1,oversize_threshold:0,dirty_decay_ms:-1,muzzy_decay_ms:-1",
}
"""For large tensors on CPUs: what one leaves behind is kept for the next, and got from the system in large pages. The C
library's own allocator gets every one of more than 32 MB page by page and gives it back, which takes a quarter of a training
step's time, and a third of a weight update's in an engine; told not to, it grows without end."""


class Spawner:
    """Holds the placement groups of a run, and starts actors in them."""

    def __init__(self, config: RunConfig, model_dir: Path, prefix: str):
        """Raises PlacementError where the roles do not fit."""
        self.prefix, self._model_dir = prefix, model_dir
        placed = place(config, model_dir)
        self._first = [group for group, _ in placed]
        self._rooms: dict[tuple[str, int], tuple[PlacementGroup, Bundle]] = {
            (b.role, b.slot): (group, b) for group, wanted in placed for b in wanted
        }
        """By role and slot."""
        self._spawned: Counter = Counter()
        self._handles: list[ActorHandle] = []

    @property
    def gpus(self) -> bool:
        """Whether any role has one."""
        return any(bundle.gpus for _, bundle in self._rooms.values())

    def reserve(self, role: str, slot: int, config: RunConfig) -> None:
        """Wait for room for one more worker, which `config` counts; it is the cluster's to find it, or to grow. Raises
        RoleFailed."""
        if (role, slot) in self._rooms:  # the run began with it
            return
        bundle = added(config, self._model_dir, role, slot)
        group = reserve([bundle], name=f"{self.prefix}/{role}-{slot}")
        self._rooms[role, slot] = group, bundle
        _, errors = gather({slot: group.ready()}, config.cluster.start_deadline_s, what=f"{role}: placement")
        if errors:
            free = {name: amount for name, amount in ray.available_resources().items() if name in ("CPU", "GPU")}
            asked = resources([replace(bundle, memory=0.0)])[0]
            found = f"no node has room for {role}-{slot} ({asked}; free now: {free}): {errors[slot]}"
            raise RoleFailed(f"{found}\n{lacking([bundle])}")

    def release(self, role: str, slot: int) -> None:
        """Give back what was reserved; the room of those that the run began with stays, for others in their slot."""
        group, _ = self._rooms.get((role, slot), (None, None))
        if group is not None and group not in self._first:
            del self._rooms[role, slot]
            remove_placement_group(group)

    def spawn(
        self, role: str, slot: int, cls: Callable[P, A], *, environment: Mapping[str, str] | None = None
    ) -> Callable[P, ActorHandle[A]]:
        """Function of the class's arguments, which starts an instance as an actor in the role's bundle.

        A replacement's name carries its number: Ray frees names late. One whose bundle has no GPU sees none, unless
        `environment` says which.
        """
        group, bundle = self._rooms[role, slot]
        number, self._spawned[role, slot] = self._spawned[role, slot], self._spawned[role, slot] + 1
        strategy = PlacementGroupSchedulingStrategy(group, placement_group_bundle_index=bundle.place)
        if not environment and not bundle.gpus:
            environment = {"CUDA_VISIBLE_DEVICES": ""}  # Ray would let it see all of its node's
            environment |= LARGE if role in ("learner", "rollout") and JEMALLOC.exists() else {}
        options = ray.remote(cast(type, cls)).options
        remote = options(
            name=f"{self.prefix}/{role}-{slot}" + (f".{number}" if number else ""),
            num_cpus=bundle.cpus,
            num_gpus=bundle.gpus,
            resources=dict(bundle.resources),
            scheduling_strategy=strategy,
            max_restarts=0,
            max_task_retries=0,
            runtime_env={"env_vars": ENVIRONMENT | dict(environment or {})},
        ).remote

        def start(*args: P.args, **kwargs: P.kwargs) -> ActorHandle[A]:
            actor = cast(ActorHandle[A], remote(*args, **kwargs))
            self._handles.append(actor)
            return actor

        return start

    def close(self) -> None:
        """End every actor."""
        for handle in self._handles:
            ray.kill(handle)
        for group in {id(group): group for group, _ in self._rooms.values()}.values():
            remove_placement_group(group)
