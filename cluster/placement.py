"""Where roles run: their placement group, and each worker's cores on its node.

Feasibility is decided per node before Ray is asked, so nothing waits for what cannot come.
"""

import os
import sys
from dataclasses import dataclass

import ray
from ray.util.placement_group import PlacementGroup, placement_group, remove_placement_group

from cluster.config import RunConfig
from cluster.contradictions import unread_here
from rollout.leftovers import sweep

CPU_SHARE = 0.9
"""Part of the cluster's cores that the roles claim where they take turns on the same cores; the rest is the driver's."""


class PlacementError(ValueError):
    """The roles do not fit on the nodes; shows wanted bundles beside what each node has free."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Bundle:
    """What one actor asks of its node."""

    role: str
    slot: int
    cpus: float
    gpus: float


def bundles(config: RunConfig, *, cpus: float, gpus: float) -> list[Bundle]:
    """One bundle an actor. Without GPUs the roles share the cores, so each claims a fraction; with GPUs each has its own."""
    roles = [("rollout", i) for i in range(config.rollout.workers)]
    roles += [("learner", i) for i in range(config.learner.ranks)] + [("reward", i) for i in range(config.reward.workers)]
    if gpus == 0 and config.reward.model and config.reward.model.gpus_per_worker:
        raise PlacementError(
            f"reward.model.gpus_per_worker: {config.reward.model.gpus_per_worker:g}, and the cluster has no GPU"
        )
    if gpus == 0:
        # Ray counts in ten-thousandths of a core.
        share = int(min(1.0, CPU_SHARE * cpus / len(roles)) * 1e4) / 1e4
        return [Bundle(role=role, slot=slot, cpus=share, gpus=0) for role, slot in roles]
    # With ipc, learner rank and engine hold one GPU together.
    share = 0.5 if config.rollout.transport == "ipc" else 1.0
    judge = config.reward.model.gpus_per_worker if config.reward.model else 0.0
    wanted = {"rollout": config.rollout.tensor_parallel_size * share, "learner": share, "reward": judge}
    return [Bundle(role=role, slot=slot, cpus=1.0, gpus=wanted[role]) for role, slot in roles]


def fit(wanted: list[Bundle], nodes: dict[str, dict[str, float]]) -> list[str]:
    """Node of each bundle, largest first into the fullest node that holds it. Raises PlacementError with both tables."""
    free = {name: [r.get("GPU", 0.0), r.get("CPU", 0.0)] for name, r in nodes.items()}
    where: dict[int, str] = {}
    for i in sorted(range(len(wanted)), key=lambda i: (-wanted[i].gpus, -wanted[i].cpus)):
        need = (wanted[i].gpus, wanted[i].cpus)
        rooms = [n for n, room in free.items() if all(a <= b + 1e-6 for a, b in zip(need, room, strict=True))]
        if not rooms:
            table = "\n".join(f"  {b.role}-{b.slot}: {b.cpus:g} CPU, {b.gpus:g} GPU" for b in wanted)
            have = "\n".join(f"  {n}: {r.get('CPU', 0):g} CPU, {r.get('GPU', 0):g} GPU free" for n, r in nodes.items())
            raise PlacementError(f"{wanted[i].role}-{wanted[i].slot} fits on no node. Wanted:\n{table}\nNodes:\n{have}")
        where[i] = min(rooms, key=lambda n: free[n])
        free[where[i]] = [room - n for room, n in zip(free[where[i]], need, strict=True)]
    return [where[i] for i in range(len(wanted))]


def place(config: RunConfig) -> tuple[PlacementGroup, list[Bundle]]:
    """Reserve a bundle for every actor. Raises PlacementError when they cannot fit, or do not come before the deadline."""
    nodes = {n["NodeID"][:12]: n["Resources"] for n in ray.nodes() if n["Alive"]}
    total = ray.cluster_resources()
    if problems := unread_here(config, gpus=total.get("GPU", 0.0) > 0):
        raise PlacementError("\n".join(problems))
    wanted = bundles(config, cpus=total.get("CPU", 0.0), gpus=total.get("GPU", 0.0))
    fit(wanted, nodes)
    group = placement_group([{"CPU": b.cpus} | ({"GPU": b.gpus} if b.gpus else {}) for b in wanted], strategy="PACK")
    if not group.wait(config.cluster.start_deadline_s):
        remove_placement_group(group)
        raise PlacementError(f"not placed in {config.cluster.start_deadline_s:g} s; free now: {ray.available_resources()}")
    return group, wanted


def node_id() -> str:
    return ray.get_runtime_context().get_node_id()


def arrived() -> str:
    """This node, on which what dead processes left is removed: the driver's own sweep sees its node only."""
    sweep()
    return node_id()


def whereabouts() -> dict[str, str]:
    """This actor and its node, for the run's summary."""
    return {"actor_id": ray.get_runtime_context().get_actor_id(), "node_id": node_id()}


def share_of_cores(index: int, count: int, cores: int | None) -> list[int]:
    """This worker's cores on a node where `count` of its role run: contiguous, disjoint, none left idle."""
    mine = sorted(os.sched_getaffinity(0))
    if cores is not None:
        return [mine[(index * cores + i) % len(mine)] for i in range(cores)]
    return mine[index * len(mine) // count : (index + 1) * len(mine) // count] or [mine[index % len(mine)]]


def take_threads(index: int, count: int, cores: int | None) -> None:
    """As many threads for torch as this worker has cores, in a process that has not loaded it yet.

    Ray says 1, and what torch is told once it is loaded holds for one thread only, not for backward's.
    """
    assert "torch" not in sys.modules
    os.environ["OMP_NUM_THREADS"] = str(len(share_of_cores(index, count, cores)))
