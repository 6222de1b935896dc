"""Metrics of a run: values that merge the way they mean, what each name stands for, and where they are written.

A sink that fails (a full disk, a gone backend) warns once and training goes on: `Sinks` is the one place that catches.
Left out: hosted trackers; they read metrics.jsonl or the TensorBoard folder.
"""

import json
import logging
import math
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, Self

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Mean:
    """A mean that merges by its counts, so that unequal batches weigh what they hold. Mean(3.0, 4) + Mean(1.0, 1)."""

    total: float = 0.0
    count: float = 0.0

    @classmethod
    def of(cls, values: Iterable[float]) -> Self:
        values = list(values)
        return cls(math.fsum(values), len(values))

    def __add__(self, other: "Mean") -> "Mean":
        return Mean(self.total + other.total, self.count + other.count)

    @property
    def value(self) -> float:
        """NaN when nothing was counted."""
        return self.total / self.count if self.count else math.nan


@dataclass(frozen=True, slots=True)
class Metric:
    """What a name in metrics.jsonl stands for."""

    formula: str
    unit: str
    where: str
    """The package that measures it."""


METRICS: dict[str, Metric] = {
    "step": Metric("steps of the run so far, over all stages", "steps", "cluster"),
    "version": Metric("committed weight updates when the step's outputs were sampled", "updates", "cluster"),
    "reward": Metric("mean over scored outputs of the weighted sum of components", "reward", "reward"),
    "accuracy": Metric("correct outputs / scored outputs", "share", "reward"),
    "format": Metric("well-formed outputs / scored outputs", "share", "reward"),
    "response_length": Metric("mean of |o| over outputs", "tokens", "rollout"),
    "programs": Metric("mean over outputs of the programs that ran, where tools are used", "programs", "rollout"),
    "truncated_share": Metric("outputs that ran out of tokens / outputs", "share", "rollout"),
    "zero_variance_share": Metric("groups whose rewards are equal but for rounding / groups", "share", "learner"),
    "unscorable_share": Metric("outputs without a score / outputs", "share", "reward"),
    "judge_p50": Metric("median wall-clock of judging an output by the rule", "s", "reward"),
    "judge_p99": Metric("its 99th percentile", "s", "reward"),
    "judge_killed_share": Metric("outputs whose judge was killed or died / outputs", "share", "reward"),
    "kl": Metric("mean of pi_ref/pi - log(pi_ref/pi) - 1 over trained tokens (eq. 4)", "nats per token", "learner"),
    "clip_fraction": Metric("tokens where the min takes the constant branch / trained tokens", "share", "learner"),
    "entropy": Metric("mean entropy of pi over trained positions", "nats", "learner"),
    "ratio_mean": Metric("mean of pi/pi_old over trained tokens", "ratio", "learner"),
    "objective": Metric("the textbook objective of the stage's row, as its paper writes it", "objective", "learner"),
    "grad_norm": Metric("global norm of the gradient before clipping", "norm", "learner"),
    "learning_rate": Metric("rate of the step's last update", "rate", "learner"),
    "margin": Metric("mean over pairs of beta (m(o+) - m(o-)) (eq. 12)", "nats", "learner"),
    "ranked": Metric("pairs whose margin is positive / pairs", "share", "learner"),
    "reward_kl": Metric("mean of log(pi_old/pi_ref) over trained tokens (eq. 2)", "nats per token", "learner"),
    "model_reward": Metric("mean over scored outputs of the reward model's reward", "reward", "reward"),
    "reward_spread": Metric("mean standard deviation of an ensemble's scores", "reward", "reward"),
    "ranking_loss": Metric("mean over pairs of -log sigmoid(r(better) - r(worse))", "nats", "learner"),
    "ranking_accuracy": Metric("pairs that the reward model ranks right / pairs, before the update", "share", "learner"),
    "label_loss": Metric("mean binary cross-entropy over labels", "nats", "learner"),
    "label_accuracy": Metric("labels on whose side the reward model is / labels, before the update", "share", "learner"),
    "critic_value_loss": Metric("PPO's clipped value loss", "return squared", "learner"),
    "critic_value_clip_fraction": Metric("tokens whose value loss is the clipped one / trained tokens", "share", "learner"),
    "critic_explained_variance": Metric("1 - var(return - value) / var(return), before the update", "share", "learner"),
    "critic_grad_norm": Metric("global norm of the critic's gradient before clipping", "norm", "learner"),
    "critic_learning_rate": Metric("the critic's rate at the step's last update", "rate", "learner"),
    "critic_skipped": Metric("the critic's updates left out because something was not finite", "updates", "learner"),
    "critic_no_signal": Metric("the critic's updates left out because the gradient was 0", "updates", "learner"),
    "mismatch_mean": Metric("mean of |log pi_engine - log pi_learner| over sampled tokens at equal weights", "nats", "learner"),
    "mismatch_p50": Metric("its median", "nats", "learner"),
    "mismatch_p90": Metric("its 90th percentile", "nats", "learner"),
    "mismatch_p99": Metric("its 99th percentile", "nats", "learner"),
    "mismatch_max": Metric("its largest value", "nats", "learner"),
    "canary_mean": Metric("mean of |log pi_engine - log pi_learner| on the fixed sequences after a commit", "nats", "cluster"),
    "tokens_per_second": Metric("sampled tokens / seconds_generate", "tokens/s", "cluster"),
    "seconds_generate": Metric("wall-clock of sampling", "s", "cluster"),
    "seconds_score": Metric("wall-clock of scoring", "s", "cluster"),
    "seconds_train": Metric("wall-clock of the updates", "s", "cluster"),
    "seconds_sync": Metric("wall-clock of the weight update and its canary", "s", "cluster"),
    "seconds_other": Metric("seconds_step less the four phases", "s", "cluster"),
    "seconds_step": Metric("wall-clock of the step", "s", "cluster"),
    "trained_tokens": Metric("tokens with credit in the step's batch", "tokens", "learner"),
    "padding_share": Metric("padding / positions of the micro-batches", "share", "learner"),
    "skipped": Metric("updates left out because loss or gradient was not finite", "updates", "learner"),
    "no_signal": Metric("updates left out because every coefficient was 0", "updates", "learner"),
}
"""Every number of a line of metrics.jsonl (`stage` is the one text field)."""


class Sink(Protocol):
    """Where a step's metrics go."""

    def write(self, step: int, metrics: Mapping[str, float | str]) -> None: ...

    def close(self) -> None: ...


class Sinks:
    """All sinks of a run as one; a failing one is warned of once and tried again at the next step."""

    def __init__(self, sinks: Sequence[Sink]):
        self._sinks = list(sinks)
        self._failed: set[int] = set()

    def write(self, step: int, metrics: Mapping[str, float | str]) -> None:
        for i, sink in enumerate(self._sinks):
            try:
                sink.write(step, metrics)
            except Exception as error:
                self._warn(i, f"at step {step}", error)

    def close(self) -> None:
        for i, sink in enumerate(self._sinks):
            try:
                sink.close()
            except Exception as error:
                self._warn(i, "when closed", error)

    def _warn(self, i: int, when: str, error: Exception) -> None:
        if i not in self._failed:
            self._failed.add(i)
            log.warning("%s failed %s, training goes on without it: %r", type(self._sinks[i]).__name__, when, error)


class JsonlSink:
    """One JSON object a line, `step` first. A number that is not finite is written as null."""

    def __init__(self, path: Path, *, resume_step: int = 0):
        """Keep the lines up to `resume_step` and drop later ones, so that no step stands twice in the file."""
        path.parent.mkdir(parents=True, exist_ok=True)
        kept = [row for row in read_jsonl(path) if row["step"] <= resume_step] if path.exists() else []
        beside = path.with_name(path.name + ".new")
        beside.write_text("".join(_line(row) for row in kept), encoding="utf-8")
        os.replace(beside, path)
        self._file = path.open("r+b", buffering=0)
        self._end = self._file.seek(0, os.SEEK_END)

    def write(self, step: int, metrics: Mapping[str, float | str]) -> None:
        line = _line({"step": step, **metrics}).encode()
        self._file.seek(self._end)
        self._file.truncate()  # what a failed write left
        if (written := self._file.write(line)) != len(line):
            raise OSError(f"wrote {written} of {len(line)} bytes")
        self._end += len(line)

    def close(self) -> None:
        self._file.close()


class TensorBoardSink:
    """Scalars for TensorBoard."""

    def __init__(self, folder: Path, *, resume_step: int = 0):
        from torch.utils.tensorboard import SummaryWriter

        self._writer = SummaryWriter(str(folder), purge_step=resume_step + 1 if resume_step else None)

    def write(self, step: int, metrics: Mapping[str, float | str]) -> None:
        for name, value in _finite(metrics).items():
            self._writer.add_scalar(name, value, step)
        self._writer.flush()

    def close(self) -> None:
        self._writer.close()


class RayMetricsSink:
    """Gauges `cohort_<name>` with the tag `run`, on Ray's Prometheus port as `ray_cohort_<name>`. Needs a connected driver."""

    def __init__(self, run: str):
        from ray.util.metrics import Gauge

        self._new = lambda name: Gauge(f"cohort_{name}", METRICS[name].formula if name in METRICS else name, tag_keys=("run",))
        self._tags = {"run": run}
        self._gauges = {}

    def write(self, step: int, metrics: Mapping[str, float | str]) -> None:
        for name, value in {"step": step, **_finite(metrics)}.items():
            if name not in self._gauges:
                self._gauges[name] = self._new(name)
            self._gauges[name].set(value, tags=self._tags)

    def close(self) -> None:
        self._gauges.clear()


def read_jsonl(path: Path) -> list[dict]:
    """Rows of a jsonl file. A last line without its end is one that a kill cut off, and is left out."""
    rows = []
    *lines, _cut_off = path.read_text(encoding="utf-8").split("\n")
    for number, line in enumerate(lines, 1):
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError as error:
            raise ValueError(f"{path}:{number}:{error.colno}: found {line[:40]!r}; expected a JSON object") from error
    return rows


def _line(row: Mapping[str, object]) -> str:
    clean = {name: None if isinstance(value, float) and not math.isfinite(value) else value for name, value in row.items()}
    return json.dumps(clean, ensure_ascii=False, allow_nan=False) + "\n"


def _finite(metrics: Mapping[str, float | str]) -> dict[str, float]:
    return {name: value for name, value in metrics.items() if not isinstance(value, str) and math.isfinite(value)}
