"""Where roles run: their placement group, and each worker's cores on its node.

Feasibility is decided per node before Ray is asked, so nothing waits for what cannot come.
"""

import math
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import ray
from ray._private.state import available_resources_per_node
from ray.util.placement_group import PlacementGroup, placement_group, remove_placement_group

from cluster.config.contradictions import unread_here
from cluster.config.run_config import RunConfig
from cluster.fleet.demand import WIDTH, demands, size_of, too_many
from rollout.config import RolloutConfig
from rollout.leftovers import sweep

KINDS = ("GPU", "CPU", "memory")
"""Of resources, in the order in which bundles are placed by size."""
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
    place: int
    """Number of the placement group's bundle that it is in; actors on the same GPUs are in one."""
    memory: float = 0.0
    """Bytes; 0 where they are not counted."""


def shares_gpus(config: RunConfig) -> bool:
    """Whether engine k has the GPUs of the learner ranks k * tensor_parallel_size and on."""
    return (config.rollout.sleep or config.rollout.transport == "ipc") and config.learner.ranks > 0


def settled(config: RunConfig, *, gpus: bool) -> RolloutConfig:
    """With the transport that `auto` stands for in a cluster with or without GPUs."""
    rollout, lora = config.rollout, config.learner.lora
    small = lora is not None and lora.send == "adapter"
    auto = "ipc" if rollout.sleep else "nccl" if gpus and not small else "shm"
    return rollout.model_copy(update={"transport": auto if rollout.transport == "auto" else rollout.transport})


def bundles(config: RunConfig, *, cpus: Sequence[float], gpus: float) -> list[Bundle]:
    """One bundle an actor. Without GPUs the roles share the cores, so each claims a fraction; with GPUs each has its own.

    `cpus`: the cores of each node.
    """
    roles = [("rollout", i) for i in range(config.rollout.workers)]
    roles += [("learner", i) for i in range(config.learner.ranks)] + [("reward", i) for i in range(config.reward.workers)]
    if gpus == 0 and config.reward.model and config.reward.model.gpus_per_worker:
        raise PlacementError(
            f"reward.model.gpus_per_worker: {config.reward.model.gpus_per_worker:g}, and the cluster has no GPU"
        )
    if gpus == 0:
        share = share_of_core(len(roles), cpus)
        return [Bundle(role=role, slot=slot, cpus=share, gpus=0, place=i) for i, (role, slot) in enumerate(roles)]
    reward = config.reward.model.gpus_per_worker if config.reward.model else 0.0
    size, engines = config.rollout.tensor_parallel_size, config.rollout.workers
    if not shares_gpus(config):
        wanted = {"rollout": float(size), "learner": 1.0, "reward": reward}
        return [Bundle(role=role, slot=slot, cpus=1.0, gpus=wanted[role], place=i) for i, (role, slot) in enumerate(roles)]
    wanted = {"rollout": 0.0, "learner": 1.0, "reward": reward}
    places = {"rollout": lambda slot: slot, "learner": lambda rank: rank // size, "reward": lambda slot: engines + slot}
    return [Bundle(role=role, slot=slot, cpus=1.0, gpus=wanted[role], place=places[role](slot)) for role, slot in roles]


def share_of_core(count: int, cpus: Sequence[float]) -> float:
    """The largest part of a core, one at most, that so many actors can have each where no node gives more than CPU_SHARE."""
    shares = [min(1.0, CPU_SHARE * cores / n) for cores in cpus for n in range(1, count + 1) if cores]
    enough = [share for share in shares if sum(int(CPU_SHARE * cores / share + 1e-6) for cores in cpus) >= count]
    return int(max(enough, default=0.0) * 1e4) / 1e4  # Ray counts in ten-thousandths


def resources(wanted: list[Bundle]) -> list[dict[str, float]]:
    """What each bundle of the placement group holds, for the actors in it together."""
    out: list[dict[str, float]] = [{} for _ in range(1 + max(b.place for b in wanted))]
    for b in wanted:
        for name, amount in (("CPU", b.cpus), ("GPU", b.gpus), ("memory", int(b.memory))):
            if amount:
                out[b.place][name] = out[b.place].get(name, 0.0) + amount
    return out


def fit(wanted: list[Bundle], nodes: dict[str, dict[str, float]]) -> list[str]:
    """Node of each bundle, largest first into the fullest node that holds it. Raises PlacementError with both tables."""
    unlimited = dict.fromkeys(KINDS, 0.0) | {"memory": math.inf}
    free = {name: [(unlimited | r)[kind] for kind in KINDS] for name, r in nodes.items()}
    needs = [[r.get(kind, 0.0) for kind in KINDS] for r in resources(wanted)]
    where: dict[int, str] = {}
    for i in sorted(range(len(needs)), key=lambda i: [-x for x in needs[i]]):
        rooms = [n for n, room in free.items() if all(a <= b + 1e-6 for a, b in zip(needs[i], room, strict=True))]
        if not rooms:
            together = " with ".join(f"{b.role}-{b.slot}" for b in wanted if b.place == i)
            table = "\n".join(f"  {b.role}-{b.slot}: {_shown((b.gpus, b.cpus, b.memory))}" for b in wanted)
            have = "\n".join(f"  {n}: {_shown([(unlimited | r)[kind] for kind in KINDS])} free" for n, r in nodes.items())
            raise PlacementError(f"{together} fits on no node. Wanted:\n{table}\nNodes:\n{have}")
        where[i] = min(rooms, key=lambda n: free[n])
        free[where[i]] = [room - n for room, n in zip(free[where[i]], needs[i], strict=True)]
    return [where[b.place] for b in wanted]


def _shown(amounts: Sequence[float]) -> str:
    gpus, cpus, memory = amounts
    return f"{cpus:g} CPU, {gpus:g} GPU" + (f", {memory / 1e9:.3g} GB" if 0 < memory < math.inf else "")


def on_cpus(config: RunConfig, wanted: list[Bundle], model_dir: Path, cores: float) -> list[Bundle]:
    """The bundles with their memory. Raises PlacementError for more processes of a role than the cluster has cores."""
    size = size_of(model_dir, config.learner.lora, config.teachers, config.draft)
    # Of what a micro-batch takes only the order is known here: that of the weights. `cohort check` counts it.
    needed = demands(config, size, activations=WIDTH["float32"] * size.parameters)
    if problems := too_many(needed, cores, "the cluster"):
        raise PlacementError("\n".join(problems))
    each = {demand.role: demand.bytes for demand in needed}
    return [replace(b, memory=each[b.role]) for b in wanted]


def _nodes() -> dict[str, dict[str, float]]:
    """What each node has. Ray counts the memory of its object store, which is given out as it is used, apart."""
    found = {n["NodeID"][:12]: n["Resources"] for n in ray.nodes() if n["Alive"]}
    return {
        n: r | {"memory": r["memory"] + r.get("object_store_memory", 0.0)} if "memory" in r else r for n, r in found.items()
    }


def fitting(config: RunConfig, model_dir: Path) -> list[Bundle]:
    """A bundle for every actor. Raises PlacementError when they cannot fit."""
    total = ray.cluster_resources()
    if problems := unread_here(config, gpus=total.get("GPU", 0.0) > 0):
        raise PlacementError("\n".join(problems))
    wanted = bundles(config, cpus=[node.get("CPU", 0.0) for node in _nodes().values()], gpus=total.get("GPU", 0.0))
    if not total.get("GPU"):
        wanted = on_cpus(config, wanted, model_dir, total.get("CPU", 0.0))
    fit(wanted, _nodes())
    return wanted


def added(config: RunConfig, model_dir: Path, role: str, slot: int) -> Bundle:
    """What one more worker asks of a node, in a placement group of its own; `config` counts it. Where the cluster is too small,
    that is a whole core: a demand that brings another node where Ray scales the cluster."""
    total = ray.cluster_resources()
    wanted = bundles(config, cpus=[node.get("CPU", 0.0) for node in _nodes().values()], gpus=total.get("GPU", 0.0))
    one = replace(next(b for b in wanted if b.role == role), slot=slot, place=0)
    if total.get("GPU"):
        return one
    try:
        fitting(config, model_dir)
    except PlacementError:
        return replace(one, cpus=1.0)
    # The roles take turns on the same cores, nearly all of which those that run have claimed.
    free = max(node.get("CPU", 0.0) for node in available_resources_per_node().values())
    return replace(one, cpus=max(1, int(min(one.cpus, free / 2) * 1e4)) / 1e4)


def place(config: RunConfig, model_dir: Path) -> tuple[PlacementGroup, list[Bundle]]:
    """Reserve a bundle for every actor. Raises PlacementError when they cannot fit, or do not come before the deadline."""
    wanted = fitting(config, model_dir)
    # Memory is counted and not reserved: of a node's, Ray gives out only what its object store leaves.
    reserved = resources([replace(b, memory=0.0) for b in wanted])
    group = placement_group(reserved, strategy="PACK")
    if not group.wait(config.cluster.start_deadline_s):
        remove_placement_group(group)
        raise PlacementError(f"not placed in {config.cluster.start_deadline_s:g} s; free now: {ray.available_resources()}")
    return group, wanted


def node_id() -> str:
    return ray.get_runtime_context().get_node_id()


def arrived() -> dict[str, object]:
    """`whereabouts`, where what dead processes left is removed: the driver's own sweep sees its node only."""
    sweep()
    return whereabouts()


def whereabouts() -> dict[str, object]:
    """This actor, its process and its node, for the watch and the run's summary."""
    return {"actor_id": ray.get_runtime_context().get_actor_id(), "pid": os.getpid(), "node_id": node_id()}


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


def stay_on_this_node() -> None:
    """gloo, of this process and of those that it starts, listens on loopback only, unless the user names an interface.

    It would take the address that the host's name stands for.
    """
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")


def position(slot: int, nodes: dict[int, str]) -> tuple[int, int]:
    """(this one's place, how many) among the actors of a role on the slot's node."""
    here = sorted(s for s, node in nodes.items() if node == nodes[slot])
    return here.index(slot), len(here)


def shared_devices(gpus: dict[int, str], slot: int, size: int) -> dict[str, str]:
    """The environment of an engine that asks Ray for no GPU, and sees those of its learner ranks; `gpus` by rank."""
    seen = ",".join(gpus[rank] for rank in range(slot * size, (slot + 1) * size))
    return {"CUDA_VISIBLE_DEVICES": seen, "RAY_EXPERIMENTAL_NOSET_CUDA_VISIBLE_DEVICES": "1"}
