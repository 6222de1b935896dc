"""Seconds of each phase of a step, from a model's operations and bytes and what a device reaches of its peaks.

generate: an engine's step is the larger of its products and of reading the weights, then the keys and values of all requests,
    and what launching, scheduling and tensor-parallel sums take
train: products, or where these take longer the launches, or gathering the sharded weights; then AdamW's pass over its states
sync: bytes of the weights over the slower link, and what is not bytes
score: judging by the rule, or forward passes of reward models
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import inf

from cluster.fleet.demand import WIDTH
from cluster.planning.hardware import COMPILED, Device
from cluster.planning.shapes import Shape
from cluster.planning.workload import Workload
from learner.config import DENSE_MASK

JUDGE_S = 2e-4
"""Seconds of a judge for an output, by the rule."""
STATE_BYTES = 28
"""Of a parameter that AdamW reads and writes: weight, gradient and two moments, all but the gradient written again."""
SLEEP_BYTES_S = 25e9
"""Between host and GPU, for the weights of an engine that sleeps and those that a learner offloads; a rank's AdamW in host
memory goes through its states as fast."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    """What the busiest learner rank computes for one pass over a step's outputs."""

    positions: float
    """Padding included."""
    pairs: float
    """Keys that attention computes with, over all positions."""
    trained: float
    """Tokens at which the output head is computed."""
    micro_batches: int


def load(work: Workload, batch: Sequence[Sequence[int]], ranks: int, device: Device) -> Load:
    """As outputs of these lengths are packed over so many ranks.

    Rows that share nothing have causal attention, half of all pairs; a dense mask skips none, and one in blocks what is unseen.
    """
    from learner.batch.packing import Row, layout

    prompt, dense = max(1, round(work.lengths.prompt)), inf if device.is_cpu else DENSE_MASK

    def pairs(rows: list[Row]) -> float:
        every = len(rows) * rows[0].width ** 2
        if all(len(row.samples) == 1 for row in rows):
            return every / 2
        return every if rows[0].width <= dense else sum(row.seen for row in rows)

    plan = layout([(prompt, lengths) for lengths in batch], work.learner.max_tokens_per_microbatch, ranks)
    return Load(
        positions=max(sum(len(rows) * rows[0].width for rows in mine) for mine in plan),
        pairs=max(sum(map(pairs, mine)) for mine in plan),
        trained=sum(map(sum, batch)) / ranks,
        micro_batches=max(map(len, plan)),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Learning:
    """How a load is trained."""

    reads: int
    updates: int
    models: int = 1
    """That are stepped."""
    dtype: str = "bfloat16"
    recompute: bool = False
    """Layers' forward pass a second time in backward."""
    offload: bool = False
    """Weights, gradients and moments in host memory."""
    adapter: int = 0
    """Parameters of the adapter that is trained instead of the weights; of these there is no gradient then."""
    teacher: Shape | None = None
    """Of a model that reads the load once."""


def learning_of(shape: Shape, work: Workload) -> Learning:
    again = work.learner.activation_checkpointing == "full"
    how = {"models": work.trained, "dtype": work.learner.compute_dtype, "recompute": again, "adapter": adapter(shape, work)}
    how |= {"offload": work.learner.offload, "teacher": work.teacher}
    return Learning(reads=work.reads, updates=work.updates, **how)


def train(shape: Shape, load: Load, how: Learning, device: Device, group: tuple[int, int]) -> float:
    """Seconds of a step on a learner group: (ranks, how many of them are on a node)."""
    ranks, own = group[0], device.part(group[0])
    body, head, launches, gather = _forward(shape, load, how.dtype, device, group)
    reduced = 4 / WIDTH[how.dtype] * gather
    again = 1 + how.recompute
    from_host = how.offload * 4 * load.micro_batches / ranks / SLEEP_BYTES_S
    gather, reduced = gather + from_host * shape.parameters, reduced + from_host * shape.parameters
    reads = how.reads * max(body + head, launches, gather)
    if how.teacher is not None:
        its_body, its_head, starts, gathers = _forward(how.teacher, load, how.dtype, device, group)
        reads += max(its_body + its_head, starts, gathers + from_host * how.teacher.parameters)
    # The head's logits are computed again in backward; weights are gathered for either direction.
    whole = not how.adapter
    update = max((1 + whole + again) * body + (3 + whole) * head, (2 + again) * launches, 2 * gather + whole * reduced)
    adam = STATE_BYTES * (how.adapter or shape.parameters) / ranks / (SLEEP_BYTES_S if how.offload else own.stream())
    return reads + how.updates * how.models * (update + adam)


def _forward(shape: Shape, load: Load, dtype: str, device: Device, group: tuple[int, int]) -> tuple[float, float, float, float]:
    """Seconds that a forward pass takes by itself for layers, for the head, to launch, and to gather the sharded weights."""
    (ranks, near), own = group, device.part(group[0])
    body = shape.body(load.positions, load.pairs) / own.products(dtype)
    head = 2 * shape.head * load.trained / own.head(dtype)
    others = shape.parameters * (ranks - 1) / ranks * load.micro_batches
    gather = 0.0 if device.is_cpu else others * WIDTH[dtype] / device.send(within_node=ranks <= near)
    return body, head, load.micro_batches * shape.layers * device.reached.layer_s, gather


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineCost:
    """Seconds of one engine."""

    weights: float
    """Reading the weights once."""
    product: float
    """Products of a token."""
    key: float
    """Reading the keys and values of a token."""
    fixed: float
    """Of a step, whatever is in it."""
    request: float

    def step(self, requests: float, tokens: float) -> float:
        """Of a step that gives each request a token; `tokens` are in the cache."""
        products = max(self.weights, requests * self.product) if requests else 0.0
        return self.fixed + requests * self.request + products + tokens * self.key

    def prefill(self, tokens: float) -> float:
        """Of reading prompts."""
        return tokens * self.product


def engine(shape: Shape, work: Workload, device: Device, tensor_parallel: int, engines: int = 1) -> EngineCost:
    """Of one of so many engines."""
    width, own, reached = WIDTH[work.engine_dtype], device.part(engines), device.reached
    launch = reached.layer_s * (COMPILED if work.compiled else 1.0)
    reduce = reached.reduce_s * (tensor_parallel > 1)
    split = min(tensor_parallel, shape.key_heads)
    # The embedding is looked up, so that only one of it and the output head is multiplied with.
    multiplied = shape.in_layers + shape.head
    return EngineCost(
        weights=width * multiplied / tensor_parallel / own.stream(),
        product=2 * multiplied / tensor_parallel / own.products(work.engine_dtype),
        key=shape.cached(width) / split / own.stream(),
        fixed=reached.engine_s + shape.layers * (launch + reduce),
        request=reached.request_s,
    )


def adapter(shape: Shape, work: Workload) -> int:
    """Parameters of the adapter that is trained; 0 where the weights are."""
    lora = work.learner.lora
    return shape.adapter(lora.rank) if lora else 0


def sent(shape: Shape, work: Workload) -> float:
    """Bytes of a weight update."""
    lora = work.learner.lora
    return WIDTH[work.engine_dtype] * (adapter(shape, work) if lora and lora.send == "adapter" else shape.parameters)


def sync(size: float, device: Device, *, within_node: bool, asleep: float | None = None) -> float:
    """Of a weight update of so many bytes; `asleep`: bytes of an engine that sleeps on the learner's GPUs, to host memory and
    back."""
    if asleep is not None:
        return device.reached.update_s + size / device.stream() + 2 * asleep / SLEEP_BYTES_S
    return device.reached.update_s + size / device.send(within_node=within_node)


def score(shape: Shape, work: Workload, device: Device) -> float:
    """Of all outputs of a step, on what the reward actors have."""
    if not work.judged_by:
        return work.samples * JUDGE_S / work.judges
    gpus = 1.0 if device.is_cpu else work.reward_gpus
    if not gpus:
        return 0.0
    tokens = work.samples * (work.lengths.prompt + work.lengths.output)
    return work.judged_by * shape.body(tokens, 0.0) / (gpus * device.products("float32"))
