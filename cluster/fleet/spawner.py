"""Actors in their bundles of the run's placement group."""

from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import ParamSpec, TypeVar, cast

import ray
from ray.actor import ActorHandle
from ray.util.placement_group import remove_placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from cluster.config.run_config import RunConfig
from cluster.fleet.placement import place

A = TypeVar("A")
P = ParamSpec("P")
ENVIRONMENT = {"VLLM_LOGGING_LEVEL": "WARNING", "TOKENIZERS_PARALLELISM": "false", "PYTHONFAULTHANDLER": "1"}


class Spawner:
    """Holds the placement group of a run, and starts actors in it."""

    def __init__(self, config: RunConfig, model_dir: Path, prefix: str):
        """Raises PlacementError where the roles do not fit."""
        self.prefix = prefix
        self._group, self._bundles = place(config, model_dir)
        self._spawned: Counter = Counter()
        self._handles: list[ActorHandle] = []

    @property
    def gpus(self) -> bool:
        """Whether any role has one."""
        return any(bundle.gpus for bundle in self._bundles)

    def spawn(
        self, role: str, slot: int, cls: Callable[P, A], *, environment: Mapping[str, str] | None = None
    ) -> Callable[P, ActorHandle[A]]:
        """Function of the class's arguments, which starts an instance as an actor in the role's bundle.

        A replacement's name carries its number: Ray frees names late. One whose bundle has no GPU sees none, unless
        `environment` says which.
        """
        bundle = next(b for b in self._bundles if (b.role, b.slot) == (role, slot))
        number, self._spawned[role, slot] = self._spawned[role, slot], self._spawned[role, slot] + 1
        strategy = PlacementGroupSchedulingStrategy(self._group, placement_group_bundle_index=bundle.place)
        if not environment and not bundle.gpus:
            environment = {"CUDA_VISIBLE_DEVICES": ""}  # Ray would let it see all of its node's
        options = ray.remote(cast(type, cls)).options
        remote = options(
            name=f"{self.prefix}/{role}-{slot}" + (f".{number}" if number else ""),
            namespace="cohort",
            num_cpus=bundle.cpus,
            num_gpus=bundle.gpus,
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
        remove_placement_group(self._group)
