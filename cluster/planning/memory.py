"""Bytes of a role on one GPU, part by part, as `cohort check` and `cohort plan` print them.

Saved for backward in a layer, by position: both norms their input in float32 and two results, attention its queries, keys and
values as wide as the queries and its result, the feed-forward layer four results of its inner width. Masks are dense, on a GPU
those of short rows.
"""

from math import inf

from cluster.config.run_config import RunConfig
from cluster.fleet.bundles import shares_gpus
from cluster.fleet.demand import WIDTH
from cluster.planning.hardware import GB
from cluster.planning.shapes import Shape
from cluster.planning.workload import Workload, lengths_of_recipe, workload_of
from learner.config import DENSE_MASK, LearnerConfig

PROGRAM = 1.5 * GB
"""Of CUDA, NCCL and what the allocator cannot use, for a process on a GPU."""
HELD = 2.0
"""On CPUs, the largest micro-batch's memory by what it saves for backward: what backward frees is not given back at once.
Measured with 1,024 to 16,384 tokens: 1.8 to 2.0, with full checkpointing 3."""
ENGINE_ROOM = 8192
"""Positions of an engine's largest forward pass."""
Parts = dict[str, float]


def saved(shape: Shape, learner: LearnerConfig) -> float:
    """Bytes that a position leaves for backward in all layers; with checkpointing one layer has them all, and the others their
    input, selectively the results of attention and products too."""
    width = WIDTH[learner.compute_dtype]
    layer = 2 * (4 + 2 * width) * shape.hidden + 4 * width * shape.queries + 4 * width * shape.inner
    products = 3 * shape.hidden + 2 * shape.queries + 2 * shape.keys + 2 * shape.inner
    kept = {"none": layer, "selective": width * products, "full": width * shape.hidden}
    return layer + (shape.layers - 1) * kept[learner.activation_checkpointing]


def activations(shape: Shape, learner: LearnerConfig, longest: float, dense: float = inf) -> float:
    """Bytes of a learner rank's largest micro-batch, of rows with outputs of so many tokens with their prompts: what layers
    save, the rows' masks, which are dense up to so many tokens, and a chunk's logits three times."""
    width, tokens = WIDTH[learner.compute_dtype], max(learner.max_tokens_per_microbatch, longest)
    mask = width * tokens * longest * (longest <= dense)
    return tokens * saved(shape, learner) + mask + 3 * 4 * min(learner.logprob_chunk_tokens, tokens) * shape.vocabulary


def learner(shape: Shape, work: Workload, ranks: int) -> Parts:
    """Of each rank; of an adapter gradients, moments and reference are its own only. With `offload` host memory has them, and
    the GPU what is gathered."""
    width, lora = WIDTH[work.learner.compute_dtype], work.learner.lora
    policy = shape.adapter(lora.rank) if lora else shape.parameters
    stepped = (policy + (work.trained - 1) * shape.parameters) / ranks
    frozen = shape.parameters / ranks if lora else 0.0
    held = [shape] if work.teacher is None else [shape, work.teacher]
    gathered = max(2 * width * one.in_layers / one.layers + (2 * width + 4) * one.head for one in held)
    here = not work.learner.offload
    return {
        "weights": here * 4 * (stepped + frozen),
        "gradients": here * 4 * stepped,
        "optimizer": here * 8 * stepped,
        "reference": here * (4 if lora else width) * work.reference * policy / ranks,
        "teacher": here * width * (work.teacher.parameters if work.teacher else 0) / ranks,
        "gathered": gathered if ranks > 1 or not here else 0.0,
        "activations": activations(shape, work.learner, work.longest, DENSE_MASK),
        "program": PROGRAM,
    }


def on_cpu(shape: Shape, learner: LearnerConfig, longest: float) -> float:
    """Bytes that the largest micro-batch takes of a learner rank on CPUs."""
    return HELD * activations(shape, learner, longest)


def in_words(parts: Parts) -> str:
    """The sum, in GB."""
    shown = " + ".join(f"{name} {size / GB:.2g}" for name, size in parts.items() if size)
    return f"{shown} = {sum(parts.values()) / GB:.3g}"


def states(parts: Parts) -> float:
    """Bytes that a learner rank holds while it does not train."""
    return sum(parts[name] for name in ("weights", "optimizer", "reference", "teacher", "program"))


def engine(shape: Shape, work: Workload, tensor_parallel: int, memory: float, share: float) -> Parts:
    """Of each GPU of an engine that may use this share of its memory; what is left is the cache, which may be below 0."""
    width = WIDTH[work.engine_dtype]
    fixed = {
        "weights": width * shape.parameters / tensor_parallel,
        "draft": width * (work.draft.parameters if work.draft else 0) / tensor_parallel,
        "activations": ENGINE_ROOM * width * (4 * shape.hidden + 2 * shape.inner / tensor_parallel),
        "logits": 4 * 2 * work.concurrent * shape.vocabulary,
        "program": PROGRAM,
    }
    return fixed | {"cache": share * memory - sum(fixed.values())}


def of_recipe(config: RunConfig, shape: Shape, memory: float) -> dict[str, Parts]:
    """Of a GPU with this memory, by role, as the recipe has them laid out."""
    stage = next((stage for stage in config.stages if stage.follows_policy), config.stages[0] if config.stages else None)
    if stage is None:
        return {}
    work, size = workload_of(config, stage, lengths_of_recipe(config, None, None)), config.rollout.tensor_parallel_size
    share = work.shared_utilization if shares_gpus(config) else work.utilization
    found = {"engine": engine(shape, work, size, memory, share)}
    return found | ({"learner": learner(shape, work, config.learner.ranks)} if config.learner.ranks else {})


def room(shape: Shape, work: Workload, cache: float, tensor_parallel: int) -> int:
    """Requests that an engine with a cache of these bytes on each of its GPUs runs at once; 0 where one does not fit."""
    cached = sum(one.cached(WIDTH[work.engine_dtype]) for one in (shape, work.draft) if one)
    tokens = cache * min(tensor_parallel, shape.key_heads) / cached
    usual = work.lengths.prompt / work.group + work.lengths.output / 2
    return min(work.concurrent, int(tokens / usual)) if tokens >= work.longest else 0
