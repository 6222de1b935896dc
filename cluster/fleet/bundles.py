"""What each actor of a run asks of a node, and on which nodes that fits. Knows no Ray: all of it is decided before Ray is
asked, so nothing waits for what cannot come.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from cluster.config.run_config import RunConfig

KINDS = ("GPU", "CPU", "memory")
"""Of resources, in the order in which bundles are placed by size; custom ones come after them."""
CPU_SHARE = 0.9
"""Part of a node's cores that the roles claim where they take turns on the same cores; the rest is the driver's."""
ORDER = ("learner", "rollout", "reward")
"""In which roles choose their nodes."""


class PlacementError(ValueError):
    """The roles do not fit on the nodes; shows wanted bundles beside what each node has free, and what it lacks."""


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
    resources: Mapping[str, float] = field(default_factory=dict)
    """Others, of the cluster's own naming."""
    labels: Mapping[str, str] = field(default_factory=dict)
    """What the labels of its node must be, as Ray's label selectors."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Node:
    """What a node has, or has free."""

    resources: Mapping[str, float]
    labels: Mapping[str, str] = field(default_factory=dict)


def shares_gpus(config: RunConfig) -> bool:
    """Whether engine k has the GPUs of the learner ranks k * tensor_parallel_size and on."""
    return (config.rollout.sleep or config.rollout.transport == "ipc") and config.learner.ranks > 0


def bundles(config: RunConfig, *, cpus: Sequence[float], gpus: float) -> list[Bundle]:
    """One bundle an actor. Without GPUs the roles share the cores, so each claims a fraction; with GPUs each has its own.

    `cpus`: the cores of each node.
    """
    roles = [("rollout", i) for i in range(config.rollout.workers)]
    roles += [("learner", i) for i in range(config.learner.ranks)] + [("reward", i) for i in range(config.reward.workers)]
    reward = config.reward.model.gpus_per_worker if config.reward.model else 0.0
    size, engines, shared = config.rollout.tensor_parallel_size, config.rollout.workers, gpus > 0 and shares_gpus(config)
    if gpus == 0 and reward:
        raise PlacementError(f"reward.model.gpus_per_worker: {reward:g}, and the cluster has no GPU")
    share = 1.0 if gpus else share_of_core(len(roles), cpus)
    wanted = {"rollout": 0.0 if shared else float(size), "learner": 1.0, "reward": reward} if gpus else {}
    out = []
    for i, (role, slot) in enumerate(roles):
        place = {"rollout": slot, "learner": slot // size, "reward": engines + slot}[role] if shared else i
        given = getattr(config.cluster.placement, role)
        extra = {"resources": given.resources, "labels": given.labels}
        out.append(Bundle(role=role, slot=slot, cpus=share, gpus=wanted.get(role, 0.0), place=place, **extra))
    return out


def share_of_core(count: int, cpus: Sequence[float]) -> float:
    """The largest part of a core, one at most, that so many actors can have each where no node gives more than CPU_SHARE."""
    shares = [min(1.0, CPU_SHARE * cores / n) for cores in cpus for n in range(1, count + 1) if cores]
    enough = [share for share in shares if sum(int(CPU_SHARE * cores / share + 1e-6) for cores in cpus) >= count]
    return int(max(enough, default=0.0) * 1e4) / 1e4  # Ray counts in ten-thousandths


def resources(wanted: Sequence[Bundle]) -> list[dict[str, float]]:
    """What each bundle of the placement group holds, for the actors in it together."""
    out: list[dict[str, float]] = [{} for _ in range(1 + max(b.place for b in wanted))]
    for b in wanted:
        for name, amount in (("CPU", b.cpus), ("GPU", b.gpus), ("memory", int(b.memory)), *b.resources.items()):
            if amount:
                out[b.place][name] = out[b.place].get(name, 0.0) + amount
    return out


def selectors(wanted: Sequence[Bundle]) -> list[dict[str, str]]:
    """The label selectors of each bundle of the placement group."""
    out: list[dict[str, str]] = [{} for _ in range(1 + max(b.place for b in wanted))]
    for b in wanted:
        out[b.place] |= b.labels
    return out


def fit(wanted: Sequence[Bundle], nodes: Mapping[str, Node]) -> list[str]:
    """Node of each bundle: the learner's ranks on as few nodes as can be, then engines on as many, then the others into the
    fullest; where that leaves no room for one, all of them, largest first, into the fullest node that holds them. Raises
    PlacementError with both tables."""
    roles, chosen = role_of_place(wanted), _Choice(wanted, nodes)
    largest = sorted(range(len(chosen.needs)), key=lambda i: [-x for x in chosen.needs[i]])
    if chosen.by_role(sorted(largest, key=lambda i: ORDER.index(roles[i])), roles) is not None:
        chosen = _Choice(wanted, nodes)
        if (without := chosen.by_size(largest)) is not None:
            raise PlacementError(chosen.explain(without))
    return [chosen.where[b.place] for b in wanted]


def role_of_place(wanted: Sequence[Bundle]) -> dict[int, str]:
    """Whose each bundle of the placement group is; of one that engines share with ranks, the learner's."""
    return {b.place: b.role for b in sorted(wanted, key=lambda b: -ORDER.index(b.role))}


def by_role(wanted: Sequence[Bundle]) -> dict[str, list[Bundle]]:
    """The bundles in a placement group for each role, numbered in each."""
    roles, numbers, out = role_of_place(wanted), {}, {}
    for b in wanted:
        role = roles[b.place]
        numbers.setdefault(b.place, sum(roles[place] == role for place in numbers))
        out.setdefault(role, []).append(replace(b, place=numbers[b.place]))
    return {role: out[role] for role in ORDER if role in out}


class _Choice:
    """Nodes for the bundles of a placement group, chosen one after another."""

    def __init__(self, wanted: Sequence[Bundle], nodes: Mapping[str, Node]):
        self.wanted, self.nodes = wanted, nodes
        self.needed, self.selectors = resources(wanted), selectors(wanted)
        self.kinds = (*KINDS, *sorted({name for need in self.needed for name in need} - set(KINDS)))
        unlimited = dict.fromkeys(self.kinds, 0.0) | {"memory": math.inf}
        self.free = {name: [(unlimited | dict(n.resources))[kind] for kind in self.kinds] for name, n in nodes.items()}
        self.needs = [[need.get(kind, 0.0) for kind in self.kinds] for need in self.needed]
        self.where: dict[int, str] = {}

    def by_role(self, order: Sequence[int], roles: Mapping[int, str]) -> int | None:
        """The first for which there is no room; None where all have one."""
        engines, mine = dict.fromkeys(self.nodes, 0), set()
        for at, i in enumerate(order):
            rooms = self._rooms(i)
            if not rooms:
                return i
            if roles[i] == "rollout":
                node = min(rooms, key=lambda n: (engines[n], [-x for x in self.free[n]]))
                engines[node] += 1
            else:
                left = sum(roles[j] == roles[i] for j in order[at:])
                node = min(rooms, key=lambda n: ((roles[i], n) not in mine, -min(left, self._holds(i, n)), self.free[n]))
                mine.add((roles[i], node))
            self._take(i, node)
        return None

    def by_size(self, order: Sequence[int]) -> int | None:
        """The same, in this order, each into the fullest node."""
        for i in order:
            rooms = self._rooms(i)
            if not rooms:
                return i
            self._take(i, min(rooms, key=lambda n: self.free[n]))
        return None

    def lacks(self, i: int, node: str) -> list[str]:
        """Why a node does not hold a bundle now; nothing where it does."""
        have, out = self.nodes[node].labels, []
        for kind, need, room in zip(self.kinds, self.needs[i], self.free[node], strict=True):
            if need > room + 1e-6:
                unit, scale = (" GB", 1e9) if kind == "memory" else ("", 1.0)
                out.append(f"{kind} {need / scale:.3g}{unit} wanted, {max(0.0, room) / scale:.3g}{unit} left")
        for key, selector in self.selectors[i].items():
            if not matches(selector, have.get(key)):
                out.append(f"label {key} is {have.get(key, 'not set')}, wanted {selector}")
        return out

    def explain(self, i: int) -> str:
        """Why a bundle fits on no node."""
        together = " with ".join(f"{b.role}-{b.slot}" for b in self.wanted if b.place == i)
        table = "\n".join(f"  {b.role}-{b.slot}: {_shown(self._asked(b))}" for b in self.wanted)
        unlimited = dict.fromkeys(self.kinds, 0.0) | {"memory": math.inf}
        have = "\n".join(
            f"  {name[:12]}: {_shown(unlimited | dict(node.resources))} free; for {together}: {', '.join(self.lacks(i, name))}"
            for name, node in self.nodes.items()
        )
        return f"{together} fits on no node. Wanted:\n{table}\nNodes:\n{have}"

    def _asked(self, b: Bundle) -> dict[str, float]:
        return {"GPU": b.gpus, "CPU": b.cpus, "memory": b.memory, **b.resources}

    def _rooms(self, i: int) -> list[str]:
        return [node for node in self.nodes if not self.lacks(i, node)]

    def _holds(self, i: int, node: str) -> int:
        """How many like this one the node would hold."""
        return int(min(room / need + 1e-6 for need, room in zip(self.needs[i], self.free[node], strict=True) if need))

    def _take(self, i: int, node: str) -> None:
        self.where[i] = node
        self.free[node] = [room - need for room, need in zip(self.free[node], self.needs[i], strict=True)]


def matches(selector: str, label: str | None) -> bool:
    """Whether a node's label (None: it has none) is as Ray's selector says: `a`, `!a`, `in(a, b)`, `!in(a, b)`."""
    plain = selector.removeprefix("!")
    listed = plain.removeprefix("in(").removesuffix(")").split(",") if plain.startswith("in(") else [plain]
    return (label in [value.strip() for value in listed]) != selector.startswith("!")


def _shown(amounts: Mapping[str, float]) -> str:
    text = f"{amounts['CPU']:g} CPU, {amounts['GPU']:g} GPU"
    text += f", {amounts['memory'] / 1e9:.3g} GB" if 0 < amounts["memory"] < math.inf else ""
    own = {name: amount for name, amount in amounts.items() if amount and name not in KINDS and ":" not in name}
    own.pop("object_store_memory", None)
    return text + "".join(f", {amount:g} {name}" for name, amount in own.items())
