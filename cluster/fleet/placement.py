"""Where roles run: their placement group, and each worker's cores on its node."""

import logging
import os
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import ray
from ray._private.state import available_resources_per_node
from ray.util.placement_group import PlacementGroup, placement_group, remove_placement_group

from cluster.config.contradictions import unread_here
from cluster.config.run_config import RunConfig
from cluster.fleet.bundles import Bundle, Node, PlacementError, bundles, by_role, fit, resources, selectors
from cluster.fleet.demand import WIDTH, demands, size_of, too_many
from rollout.config import RolloutConfig
from rollout.leftovers import sweep

log = logging.getLogger("cohort")

TELL_S = 10.0
"""Between two looks at what a run waits for."""
MANY = 1e6
"""Cores of a cluster that brings as many as it is asked for."""


def settled(config: RunConfig, *, gpus: bool) -> RolloutConfig:
    """With the transport that `auto` stands for in a cluster with or without GPUs."""
    rollout, lora = config.rollout, config.learner.lora
    small = lora is not None and lora.send == "adapter"
    auto = "ipc" if rollout.sleep else "nccl" if gpus and not small else "shm"
    return rollout.model_copy(update={"transport": auto if rollout.transport == "auto" else rollout.transport})


def on_cpus(config: RunConfig, wanted: list[Bundle], model_dir: Path, cores: float) -> list[Bundle]:
    """The bundles with their memory. Raises PlacementError for more processes of a role than the cluster has cores."""
    size = size_of(model_dir, config.learner.lora, config.teachers, config.draft)
    # Of what a micro-batch takes only the order is known here: that of the weights. `cohort check` counts it.
    needed = demands(config, size, activations=WIDTH["float32"] * size.parameters)
    if problems := too_many(needed, cores, "the cluster"):
        raise PlacementError("\n".join(problems))
    each = {demand.role: demand.bytes for demand in needed}
    return [replace(b, memory=each[b.role]) for b in wanted]


def _nodes(*, free: bool = False) -> dict[str, Node]:
    """What each node has, or has `free`. Ray counts the memory of its object store, which is given out as it is used, apart;
    and memory is not reserved, so all of it counts."""
    found, left = {}, available_resources_per_node() if free else {}
    for n in ray.nodes():
        if n["Alive"]:
            has = dict(n["Resources"])
            memory = {"memory": has["memory"] + has.get("object_store_memory", 0.0)} if "memory" in has else {}
            now = dict(left.get(n["NodeID"], {})) if free else has
            now.pop("memory", None)
            found[n["NodeID"]] = Node(resources=now | memory, labels=n.get("Labels") or {})
    return found


def _asked(config: RunConfig) -> tuple[list[Bundle], float, bool]:
    """A bundle for every actor, the cores of the cluster and whether it has GPUs, as it is or as it grows."""
    grows, nodes = config.cluster.grows, _nodes()
    gpus = ray.cluster_resources().get("GPU", 0.0) or float(grows == "gpu")
    cpus = [MANY] if grows == "cpu" else [node.resources.get("CPU", 0.0) for node in nodes.values()]
    return bundles(config, cpus=cpus, gpus=gpus), sum(cpus), gpus > 0


def fitting(config: RunConfig, model_dir: Path) -> list[Bundle]:
    """A bundle for every actor. Raises PlacementError when they cannot fit, where the cluster does not grow."""
    if problems := unread_here(config, gpus=ray.cluster_resources().get("GPU", 0.0) > 0 or config.cluster.grows == "gpu"):
        raise PlacementError("\n".join(problems))
    wanted, cores, gpus = _asked(config)
    if not gpus:
        wanted = on_cpus(config, wanted, model_dir, cores)
    if config.cluster.grows is None:
        fit(wanted, _nodes())
    return wanted


def added(config: RunConfig, model_dir: Path, role: str, slot: int) -> Bundle:
    """What one more worker asks of a node, in a placement group of its own; `config` counts it. Where the cluster is too small,
    or it brings nodes, that is a whole core: a demand that Ray's autoscaler sees."""
    wanted, _, gpus = _asked(config)
    one = replace(next(b for b in wanted if b.role == role), slot=slot, place=0)
    if gpus or config.cluster.grows:
        return one
    try:
        fitting(config, model_dir)
    except PlacementError:
        return replace(one, cpus=1.0)
    # The roles take turns on the same cores, nearly all of which those that run have claimed.
    free = max(node.get("CPU", 0.0) for node in available_resources_per_node().values())
    return replace(one, cpus=max(1, int(min(one.cpus, free / 2) * 1e4)) / 1e4)


Placed = list[tuple[PlacementGroup, list[Bundle]]]


def place(config: RunConfig, model_dir: Path) -> Placed:
    """Reserve a bundle for every actor: ranks packed, engines spread, in a placement group for each role; all in one where Ray
    finds no room for these although there is. What is awaited is told. Raises PlacementError when they cannot fit, or do not
    come before the deadline."""
    wanted, deadline_s = fitting(config, model_dir), config.cluster.start_deadline_s
    until, why, placed = time.monotonic() + deadline_s, "", _reserved(by_role(wanted))
    while not all(group.wait(max(0.1, min(TELL_S, until - time.monotonic()))) for group, _ in placed):
        before, why = why, (lack := lacking(wanted)) or "Ray has not placed what fits"
        if time.monotonic() >= until or (not lack and len(placed) > 1):
            for group, _ in placed:
                remove_placement_group(group)
            if time.monotonic() >= until:
                raise PlacementError(f"not placed in {deadline_s:g} s: {why}")
            placed = _reserved({"all": wanted})
        elif why != before:
            log.warning("waiting for room: %s", why)
    return placed


def _reserved(groups: Mapping[str, list[Bundle]]) -> Placed:
    return [(reserve(wanted, "SPREAD" if role == "rollout" else "PACK"), wanted) for role, wanted in groups.items()]


def reserve(wanted: Sequence[Bundle], strategy: str = "PACK", name: str = "") -> PlacementGroup:
    """Ask for a placement group of these bundles."""
    # Memory is counted and not reserved: of a node's, Ray gives out only what its object store leaves.
    asked = resources([replace(b, memory=0.0) for b in wanted])
    return placement_group(asked, strategy=strategy, name=name, bundle_label_selector=selectors(wanted))


def lacking(wanted: Sequence[Bundle]) -> str:
    """Why the bundles do not fit now; empty where they do."""
    try:
        fit(wanted, _nodes(free=True))
    except PlacementError as error:
        return str(error)
    return ""


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
