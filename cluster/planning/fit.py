"""Which splits of a cluster's GPUs there are, which of them fit, and what the others lack.

Where roles have GPUs of their own, many numbers of learner ranks are tried, each with as many engines as the rest is enough
for; where they take turns on the same GPUs (rollout.sleep), all are ranks. Each with every tensor-parallel size.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from math import ceil

from cluster.fleet.demand import WIDTH
from cluster.planning import memory
from cluster.planning.hardware import GB, Device
from cluster.planning.shapes import Shape
from cluster.planning.workload import Workload

MOST = 24
"""Numbers of learner ranks that are tried, evenly spread, besides powers of two."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Cluster:
    """Nodes of one kind."""

    device: Device
    per_node: int
    nodes: int = 1

    @property
    def devices(self) -> int:
        return self.per_node * self.nodes


@dataclass(frozen=True, slots=True, kw_only=True)
class Layout:
    """How many of each."""

    engines: int
    tensor_parallel: int
    ranks: int
    shared: bool = False
    """Engines on the learner's GPUs, in turns."""

    @property
    def devices(self) -> int:
        return max(self.ranks, self.engines * self.tensor_parallel) if self.shared else self._apart

    @property
    def _apart(self) -> int:
        return self.ranks + self.engines * self.tensor_parallel


class NothingFits(ValueError):
    """No layout fits; says what is missing of the nearest ones, and what helps."""


def sizes(shape: Shape, cluster: Cluster) -> list[int]:
    """Tensor-parallel sizes that vLLM accepts on a node."""

    def divides(size: int) -> bool:
        return shape.heads % size == 0 and (shape.key_heads % size == 0 or size % shape.key_heads == 0)

    return [size for size in (1, 2, 4, 8) if size <= cluster.per_node and divides(size)]


def layouts(shape: Shape, work: Workload, cluster: Cluster) -> Iterator[Layout]:
    """All that are tried, whether they fit or not; reward models have GPUs of their own."""
    free = cluster.devices - ceil(work.reward_gpus)
    counts = {*range(1, free, max(1, free // MOST)), *(2**i for i in range(max(free, 1).bit_length()))} & {*range(1, free)}
    for size in sizes(shape, cluster):
        if free > 0 and free % size == 0 and free // size <= work.questions:
            yield Layout(engines=free // size, tensor_parallel=size, ranks=free, shared=True)
        for ranks in sorted(counts):
            # An engine without a question of a step would idle.
            if engines := min((free - ranks) // size, work.questions):
                yield Layout(engines=engines, tensor_parallel=size, ranks=ranks)


def share(work: Workload, layout: Layout) -> float:
    """Of a GPU's memory that an engine may use."""
    return work.shared_utilization if layout.shared else work.utilization


def shortage(shape: Shape, work: Workload, layout: Layout, device: Device) -> dict[str, float]:
    """By role, bytes that a GPU would need beside those that it has; empty where the layout fits."""
    parts, lacks = memory.learner(shape, work, layout.ranks), {}
    over = sum(parts.values()) - device.memory
    if layout.shared:
        over = max(over, memory.states(parts) + share(work, layout) * device.memory - device.memory)
    if over > 0:
        lacks["learner"] = over
    held = memory.engine(shape, work, layout.tensor_parallel, device.memory, share(work, layout))
    if not memory.room(shape, work, held["cache"], layout.tensor_parallel):
        longest = work.longest * shape.cached(WIDTH[work.engine_dtype])
        lacks["engine"] = longest / min(layout.tensor_parallel, shape.key_heads) - held["cache"]
    return lacks


def fitting(shape: Shape, work: Workload, cluster: Cluster) -> list[Layout]:
    """Raises NothingFits."""
    lacks = {layout: shortage(shape, work, layout, cluster.device) for layout in layouts(shape, work, cluster)}
    if found := [layout for layout, lack in lacks.items() if not lack]:
        return found
    have = f"{cluster.devices} x {cluster.device.name}"
    lines = [f"a policy of {shape.parameters / 1e9:.3g} B parameters fits on no split of {have}"]
    if not lacks:
        lines.append(f"engines, learner and reward models need a GPU each, and there are {cluster.devices}; add GPUs or nodes")
    for role, helps in _advice(work).items():
        short = {layout: lack[role] for layout, lack in lacks.items() if role in lack}
        if len(short) == len(lacks) > 0 or role == "learner" and short:
            lines.append(_lack(role, *min(short.items(), key=lambda item: item[1]), cluster.device, helps))
    raise NothingFits("\n".join(lines))


def _lack(role: str, nearest: Layout, lack: float, device: Device, helps: list[str]) -> str:
    split = f"learner.ranks={nearest.ranks}" if role == "learner" else f"tensor_parallel_size={nearest.tensor_parallel}"
    whole = f"{lack / GB:.3g} GB beside its {device.memory / GB:.3g}"
    return f"{role}: with {split}, the nearest, a GPU would need {whole}; what helps: {', '.join(helps)}"


def _advice(work: Workload) -> dict[str, list[str]]:
    learner = [
        "more GPUs or nodes",
        "GPUs with more memory",
        f"learner.max_tokens_per_microbatch below {work.learner.max_tokens_per_microbatch}",
    ]
    engine = ["GPUs with more memory", "more of them in a node", f"rollout.max_new_tokens below {work.lengths.limit}"]
    if work.learner.activation_checkpointing == "none":
        learner.append("learner.activation_checkpointing=selective")
    if not work.learner.offload:
        learner.append("learner.offload=true")
    if work.learner.compute_dtype == "float32":
        learner.append("learner.compute_dtype=bfloat16")
    if work.engine_dtype == "float32":
        engine.append("rollout.dtype=bfloat16")
    return {"learner": learner, "engine": engine}
