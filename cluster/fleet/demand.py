"""What the roles of a run on CPUs need of the machines, in cores and memory, counted before anything is started.

Measured with vLLM 0.32 and torch 2.13 on two cores, as proportional set sizes, with models of 2 M and 100 M parameters: an
engine held 1.0 GB (actor 0.45, EngineCore 0.55; with several ranks EngineCore 0.45 and each rank 0.6) and three copies of the
weights beside its key-value cache, a learner rank 0.5 GB and 22 bytes a parameter alone in its group (and 12 more while a
checkpoint is written), a reward actor 0.1 GB, driver and Ray 1 GB. Activations are the caller's to count.
"""

import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from cluster.config.contradictions import supervision
from cluster.config.run_config import RunConfig
from learner.algorithms.cells import Need
from learner.config import LoraConfig
from reward.config import RewardModelConfig
from rollout.config import KV_CACHE_GB

GB = 1e9
WIDTH = {"float32": 4, "bfloat16": 2}
ENGINE, CORE, RANK, LEARNER, REWARD, TORCH, DRIVER = 0.45 * GB, 0.45 * GB, 0.6 * GB, 0.45 * GB, 0.1 * GB, 0.4 * GB, 1.0 * GB
"""Bytes of the processes without a model; CORE is apart from its RANKs where there are several; TORCH is what a reward
actor loads for one."""
SETTING = {"rollout": "rollout.workers", "learner": "learner.ranks", "reward": "reward.workers"}
"""That says how many there are of a role."""
ENGINE_COPIES = 3
"""As loaded, as packed for the kernels, and staged while an update arrives."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Demand:
    """Of one role."""

    role: Literal["rollout", "learner", "reward"]
    count: int
    ranks: int
    """Processes of each that compute at the same time, with all of its cores."""
    bytes: float
    """Memory of each."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Size:
    """Of the policy."""

    parameters: int
    """Reward models are taken to have as many."""
    adapter: int = 0
    """Parameters of the adapter, where one is trained."""
    teacher: int = 0
    """Parameters of the largest teacher."""
    draft: int = 0
    """Parameters of the model that guesses tokens."""


def trained_models(config: RunConfig) -> tuple[int, bool]:
    """How many models of the policy's size the learner trains, the policy included; and whether it holds a reference."""
    needs = frozenset().union(*(stage.resolved().needs for stage in config.stages if stage.trains_policy))
    return 1 + (Need.CRITIC in needs) + _members(config), Need.REFERENCE in needs


def held_parameters(config: RunConfig, size: Size) -> tuple[int, int]:
    """How many parameters the learner trains, of all models, and how many a reference is a copy of."""
    models, reference = trained_models(config)
    policy = size.adapter or size.parameters
    return policy + (models - 1) * size.parameters, policy * reference


def demands(config: RunConfig, size: Size, activations: float = 0.0) -> list[Demand]:
    """Of every role on CPUs; `activations` are the bytes of a learner rank's largest micro-batch."""
    parameters, (trained, reference) = size.parameters, held_parameters(config, size)
    rollout, learner, ranks = config.rollout, config.learner, config.rollout.tensor_parallel_size
    cache = (rollout.kv_cache_gb or KV_CACHE_GB) * 2**30
    # Of a model that guesses there is no update.
    copies = ENGINE_COPIES * parameters + (ENGINE_COPIES - 1) * size.draft
    engine = ENGINE + CORE * (ranks > 1) + ranks * (RANK + cache) + WIDTH[rollout.dtype] * copies
    # Weights, gradients and Adam's moments are sharded, and so is the copy of all but the gradients from which a checkpoint is
    # written. The version that serves while the learner goes on.
    sent = size.adapter if learner.lora and learner.lora.send == "adapter" else parameters
    kept = WIDTH[rollout.dtype] * sent * any(stage.max_staleness for stage in config.stages)
    frozen = WIDTH["float32"] * parameters * bool(size.adapter)
    width = WIDTH[learner.compute_dtype]
    states = (16 + 12) * trained + 2 * width * reference + width * size.teacher
    sharded = (states + frozen + kept) / max(1, learner.ranks)
    members = _members(config)
    reward = REWARD + (TORCH + 4 * members * parameters if members else 0)
    # Reward models are read whole where they are given, and written whole when they were trained: never while one trains.
    rank = LEARNER + sharded + max(WIDTH["float32"] * members * parameters, activations)
    return [
        Demand(role="rollout", count=rollout.workers, ranks=ranks, bytes=engine),
        Demand(role="learner", count=learner.ranks, ranks=1, bytes=rank),
        Demand(role="reward", count=config.reward.workers, ranks=int(members > 0), bytes=reward),
    ]


def too_many(wanted: list[Demand], cores: float, where: str) -> list[str]:
    """Roles with more processes than cores: they take turns with other roles, and would wait for each other within one."""
    out = []
    for demand in wanted:
        if demand.count * demand.ranks > max(1.0, cores):
            processes = f"{demand.count} x {demand.ranks}" if demand.ranks > 1 else str(demand.count)
            found = f"{processes} processes that compute at the same time, and {where} has {cores:g} cores"
            out.append(f"{SETTING[demand.role]}: {found}; expected at most one a core")
    return out


def memory(wanted: list[Demand]) -> tuple[float, str]:
    """Bytes of all roles together, with the driver, and the sum in words."""
    needed = DRIVER + sum(demand.count * demand.bytes for demand in wanted)
    parts = " + ".join(f"{SETTING[d.role]} {d.count} x {d.bytes / GB:.2g} GB" for d in wanted if d.count)
    return needed, f"memory: {parts} + driver {DRIVER / GB:g} GB = {needed / GB:.3g} GB"


def size_of(model_dir: Path, lora: LoraConfig | None, teachers: Iterable[Path] = (), draft: Path | None = None) -> Size:
    """Raises ValueError for a directory that is no complete model, or one that such an adapter does not fit."""
    from learner.models.lora import adapter_size
    from learner.models.policy import load_causal_lm

    model = load_causal_lm(model_dir, device_map="meta")
    return Size(
        parameters=sum(p.numel() for p in model.parameters()),
        adapter=adapter_size(model, lora) if lora else 0,
        teacher=max((size_of(path, None).parameters for path in teachers), default=0),
        draft=size_of(draft, None).parameters if draft else 0,
    )


def memory_here() -> float:
    """Bytes of this machine, or what its container may use."""
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    limit = Path("/sys/fs/cgroup/memory.max")
    allowed = limit.read_text().strip() if limit.exists() else "max"
    return total if allowed == "max" else min(total, int(allowed))


def _members(config: RunConfig) -> int:
    return (config.reward.model or RewardModelConfig()).count if supervision(config) else 0
