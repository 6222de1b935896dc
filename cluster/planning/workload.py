"""What a stage's step asks of the roles: lengths, models, dtypes, limits; read from a recipe, and lengths from a run."""

import random
from dataclasses import dataclass
from functools import cached_property
from math import exp, log
from pathlib import Path
from statistics import NormalDist, fmean

from cluster.config.contradictions import supervision
from cluster.config.run_config import RunConfig
from cluster.config.stages import StageConfig
from cluster.fleet.demand import trained_models
from cluster.planning.shapes import Shape, read_shape
from cluster.records.metrics import read_jsonl
from learner.algorithms.cells import Need
from learner.algorithms.table import Algorithm
from learner.config import LearnerConfig
from reward.config import RewardModelConfig
from rollout.config import GPU_MEMORY_UTILIZATION, KV_CACHE_GB, SHARED_GPU_MEMORY_UTILIZATION

SPREAD = 0.6
"""Standard deviation of the logarithm of outputs' lengths where they are not known: the longest of 256 is about five times the
median."""
SHARES = ("utilization", "shared_utilization")
READ = frozenset({Need.REFERENCE, Need.OLD_LOGPROBS, Need.CRITIC})
"""What is read from a model once a batch, in a forward pass of its own."""


@dataclass(frozen=True, kw_only=True)
class Lengths:
    """Tokens of prompts and outputs."""

    prompt: float
    """Mean."""
    output: float
    """Mean, of those that are cut off at the limit too."""
    limit: int
    seen: tuple[int, ...] = ()
    """Lengths of a run's outputs, which are drawn from then."""
    source: str = ""
    """Where they are from, in words."""

    def draw(self, count: int, seed: int) -> list[int]:
        """So many outputs' lengths: those of a run, or of a log-normal cut off at the limit."""
        rng = random.Random(seed)
        if self.seen:
            return rng.choices(self.seen, k=count)
        return [self._cut(self._centre, rng.gauss(0.0, SPREAD)) for _ in range(count)]

    def _cut(self, centre: float, spread: float) -> int:
        return max(1, min(self.limit, round(exp(centre + spread))))

    @cached_property
    def _centre(self) -> float:
        """Of the logarithm, so that the mean is `output`, found by halving an interval."""
        quantiles = [NormalDist(0.0, SPREAD).inv_cdf((i + 0.5) / 400) for i in range(400)]
        low, high = 0.0, log(self.limit) + 3 * SPREAD
        for _ in range(40):
            middle = (low + high) / 2
            below = fmean(self._cut(middle, q) for q in quantiles) < self.output
            low, high = (middle, high) if below else (low, middle)
        return low


def lengths_of_recipe(config: RunConfig, prompt: float | None, output: float | None) -> Lengths:
    """As given, or half of the recipe's limits."""
    limit, longest = config.rollout.max_new_tokens, config.data.max_prompt_tokens
    said = ["half of data.max_prompt_tokens" * (prompt is None), "half of rollout.max_new_tokens" * (output is None)]
    source = ", ".join(filter(None, said)) or "as given"
    if output is not None and not 1 <= output <= limit:
        raise ValueError(f"--output-tokens: found {output:g}, expected 1 to rollout.max_new_tokens, which is {limit}")
    return Lengths(prompt=prompt or longest / 2, output=output or limit / 2, limit=limit, source=source)


def lengths_of_run(run: Path, stage: str, limit: int) -> Lengths:
    """Of the newest samples of the stage in a run's directory. Raises ValueError where there are none."""
    files = sorted((run / "samples").glob("step_*.jsonl"), key=lambda f: -int(f.stem.removeprefix("step_")))
    for file in files:
        rows = [row for row in read_jsonl(file) if row["group"].startswith(f"{stage}/")]
        if rows:
            seen = tuple(min(limit, max(1, len(row["output_ids"]))) for row in rows)
            prompt = fmean(len(row["prompt_ids"]) for row in rows)
            return Lengths(
                prompt=prompt, output=fmean(seen), limit=limit, seen=seen, source=f"{len(seen)} outputs of {file.stem}"
            )
    raise ValueError(f"--run: {run}: found no samples of stage {stage}; expected the directory of a run of this recipe")


@dataclass(frozen=True, kw_only=True)
class Workload:
    """One step of a stage."""

    lengths: Lengths
    questions: int
    group: int
    updates: int = 1
    steps: int = 1
    staleness: int = 0
    in_flight: bool = False
    keep_kv: bool = False
    compiled: bool = False
    """Whether engines launch a step's kernels at once."""
    engine_dtype: str = "bfloat16"
    learner: LearnerConfig = LearnerConfig(compute_dtype="bfloat16")
    trained: int = 1
    """Models of the policy's size that are trained: the policy, a critic, members of a reward model."""
    reference: bool = False
    reads: int = 0
    """Forward passes of such models over the batch before its updates."""
    teacher: Shape | None = None
    """Of the model that reads the batch once more and is held beside them."""
    draft: Shape | None = None
    """Of the model that guesses tokens ahead; how many it guesses right no plan knows."""
    concurrent: int = 256
    """Requests that an engine runs at once."""
    utilization: float = GPU_MEMORY_UTILIZATION
    shared_utilization: float = SHARED_GPU_MEMORY_UTILIZATION
    cache: float = 2**30
    """Bytes of keys and values of an engine on CPUs."""
    judges: int = 1
    judged_by: int = 0
    """Reward models of the policy's size; 0: the rule."""
    reward_gpus: float = 0.0

    @property
    def longest(self) -> float:
        """Tokens of an output at the limit, with its prompt."""
        return self.lengths.prompt + self.lengths.limit

    @property
    def samples(self) -> int:
        return self.questions * self.group

    def batch(self, seed: int) -> list[list[int]]:
        """Lengths of a step's outputs, a list a question."""
        flat = self.lengths.draw(self.samples, seed)
        return [flat[i : i + self.group] for i in range(0, self.samples, self.group)]


def stage_of(config: RunConfig) -> StageConfig:
    """The one that is planned: the first that samples from the policy that it trains. Raises ValueError where there is none."""
    for stage in config.stages:
        if stage.follows_policy:
            return stage
    names = ", ".join(stage.name for stage in config.stages)
    raise ValueError(f"stages: {names}: none samples from the policy that it trains; expected one, as a grpo stage does")


def workload_of(config: RunConfig, stage: StageConfig, lengths: Lengths) -> Workload:
    """What a stage of the recipe asks for."""
    rollout, reward, row = config.rollout, config.reward, stage.resolved()
    trained, reference = trained_models(config)
    model = reward.model if stage.reward_source != "rule" else None
    shares = {} if rollout.gpu_memory_utilization is None else dict.fromkeys(SHARES, rollout.gpu_memory_utilization)
    return Workload(
        lengths=lengths,
        questions=stage.questions_per_step,
        group=stage.samples_per_question,
        updates=stage.updates_per_batch,
        steps=stage.steps,
        staleness=stage.max_staleness,
        in_flight=stage.in_flight,
        keep_kv=rollout.keep_kv,
        compiled=rollout.compile,
        engine_dtype=rollout.dtype,
        learner=config.learner,
        trained=trained,
        reference=reference,
        reads=len(READ & row.needs) + (isinstance(row, Algorithm) and row.weighting.tokens > 0),
        teacher=_largest(config),
        draft=read_shape(config.draft, "rollout.speculative.model") if config.draft else None,
        concurrent=rollout.max_concurrent_samples,
        cache=(rollout.kv_cache_gb or KV_CACHE_GB) * 2**30,
        judges=reward.workers * reward.judges,
        judged_by=(model or RewardModelConfig()).count if stage.reward_source != "rule" and supervision(config) else 0,
        reward_gpus=reward.workers * model.gpus_per_worker if model else 0.0,
        **shares,
    )


def _largest(config: RunConfig) -> Shape | None:
    """Of the stages' teachers, one of which is held at a time."""
    shapes = [read_shape(path, key) for path, key in config.teachers.items()]
    return max(shapes, key=lambda shape: shape.parameters, default=None)
