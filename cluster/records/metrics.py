"""Metrics of a run: what each name stands for, and where they are written.

Only checkpoints and the ledger may stop a run. Whatever else cannot be written (a full disk, a gone backend) warns once, and
training goes on: `Sinks` is the one place that catches. Left out: hosted trackers; they read metrics.jsonl.
"""

import json
import logging
import math
import os
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from cluster.records.clock import OF_SYNC

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Metric:
    """What a name in metrics.jsonl stands for."""

    formula: str
    unit: str
    where: str  # the package that measures it


METRICS: dict[str, Metric] = {
    "step": Metric("steps of the run so far, over all stages", "steps", "cluster"),
    "version": Metric("committed weight updates when the step began", "updates", "cluster"),
    "reward": Metric("mean over scored outputs of the weighted sum of components", "reward", "reward"),
    "accuracy": Metric("correct outputs / scored outputs", "share", "reward"),
    "format": Metric("well-formed outputs / scored outputs", "share", "reward"),
    "response_length": Metric("mean of |o| over outputs", "tokens", "rollout"),
    "programs": Metric("mean over outputs of the programs that ran, where tools are used", "programs", "rollout"),
    "accepted_share": Metric("guessed tokens that the policy took / guessed tokens (rollout.speculative)", "share", "rollout"),
    "truncated_share": Metric("outputs that ran out of tokens / outputs", "share", "rollout"),
    "zero_variance_share": Metric("groups of two scored outputs or more of equal reward / such groups", "share", "learner"),
    "thin_group_share": Metric("groups with fewer than two scored outputs / groups, where they are larger", "share", "learner"),
    "unscored_share": Metric("outputs without a score, for any of the next four reasons / outputs", "share", "cluster"),
    "rejected_share": Metric("outputs that may not be trained on and were not judged / outputs", "share", "rollout"),
    "unscorable_share": Metric("outputs whose reference answer cannot be judged / outputs", "share", "reward"),
    "killed_share": Metric("outputs whose judge was killed or died / outputs", "share", "reward"),
    "error_share": Metric("outputs whose judge raised / outputs", "share", "reward"),
    "judge_p50": Metric("median wall-clock of judging an output by the rule", "s", "reward"),
    "judge_p99": Metric("its 99th percentile", "s", "reward"),
    "kl": Metric("mean of pi_ref/pi - log(pi_ref/pi) - 1 over trained tokens (eq. 4)", "nats per token", "learner"),
    "clip_fraction": Metric("tokens where the min takes the constant branch / trained tokens", "share", "learner"),
    "entropy": Metric("mean entropy of pi over trained positions", "nats", "learner"),
    "ratio_mean": Metric("mean of pi/pi_old over trained tokens", "ratio", "learner"),
    "behaviour_mean": Metric("mean over trained tokens of w, the weight made of pi_old/mu", "ratio", "learner"),
    "effective_share": Metric("effective sample size (sum w)^2 / sum w^2 / trained tokens", "share", "learner"),
    "cut_share": Metric("tokens whose w is truncated or masked / trained tokens", "share", "learner"),
    "objective": Metric("the textbook objective of the stage's row, as its paper writes it", "objective", "learner"),
    "grad_norm": Metric("global norm of the gradient before clipping", "norm", "learner"),
    "learning_rate": Metric("rate of the step's last update", "rate", "learner"),
    "margin": Metric("mean over pairs of beta (m(o+) - m(o-)) (eq. 12)", "nats", "learner"),
    "ranked": Metric("pairs whose margin is positive / pairs", "share", "learner"),
    "reward_kl": Metric("mean of log(pi_old/pi_ref) over trained tokens (eq. 2)", "nats per token", "learner"),
    "teacher_kl": Metric("mean over trained tokens of log(pi_old/p_T), or of KL(pi || p_T)", "nats per token", "learner"),
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
    "mismatch_mean": Metric("mean |log pi_engine - log pi_learner|, at equal weights unless sampled ahead", "nats", "learner"),
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
    **{f"seconds_sync_{part}": Metric(f"of it, {what}", "s", "cluster") for part, what in OF_SYNC.items()},
    "seconds_other": Metric("wall-clock in which none of the four is under way", "s", "cluster"),
    "seconds_waiting": Metric("wall-clock in which the learner waits for groups, or to publish", "s", "cluster"),
    "rollout_busy": Metric("seconds_generate / seconds_step", "share", "cluster"),
    "reward_busy": Metric("seconds_score / seconds_step", "share", "cluster"),
    "learner_busy": Metric("seconds_train / seconds_step", "share", "cluster"),
    "staleness_mean": Metric("mean over outputs of version - the version that began the output", "updates", "cluster"),
    "staleness_max": Metric("its largest value", "updates", "cluster"),
    "waves_waiting": Metric("later steps' groups that are scored when the step begins, in steps", "steps", "cluster"),
    "rollout_workers": Metric("rollout workers that serve when the step begins", "workers", "cluster"),
    "reward_workers": Metric("reward workers that serve when the step begins", "workers", "cluster"),
    "seconds_step": Metric("wall-clock of the step", "s", "cluster"),
    "trained_tokens": Metric("tokens with credit in the step's batch", "tokens", "learner"),
    "padding_share": Metric("padding / positions of the micro-batches", "share", "learner"),
    "skipped": Metric("updates left out because loss or gradient was not finite", "updates", "learner"),
    "no_signal": Metric("updates left out because every coefficient was 0", "updates", "learner"),
}
"""Every number of a line of metrics.jsonl, but for `reward_<name>`: the mean of another component over scored outputs."""


class Sink:
    """Where a step's metrics go."""

    def write(self, step: int, metrics: Mapping[str, float | str]) -> None:
        raise NotImplementedError

    def evaluated(self, step: int, figures: Mapping[str, float | str]) -> None:
        """An evaluation of the policy after a step; evaluations.jsonl holds it already."""

    def close(self) -> None:
        raise NotImplementedError


class Sinks:
    """All sinks of a run as one, and leave to fail for whatever a run can do without."""

    def __init__(self, openers: Mapping[str, Callable[[], Sink]]):
        """`openers` by what a warning calls the sink; one that cannot be opened is tried again at every write."""
        self._openers = openers
        self._open: dict[str, Sink] = {}
        self._warned: set[str] = set()
        self._each(lambda sink: None)

    def write(self, step: int, metrics: Mapping[str, float | str]) -> None:
        self._each(lambda sink: sink.write(step, metrics))

    def evaluated(self, step: int, row: Mapping[str, object]) -> None:
        """An evaluation's figures, as `evaluation/<name>`."""
        figures = {f"evaluation/{k}": v for k, v in row.items() if isinstance(v, int | float) and k not in ("step", "version")}
        self._each(lambda sink: sink.evaluated(step, figures))

    def close(self) -> None:
        for name, sink in self._open.items():
            with self.dispensable(name):
                sink.close()

    @contextmanager
    def dispensable(self, what: str | Path) -> Iterator[None]:
        """What the block writes, to a path or elsewhere, is done without when it fails; each kind of it warns once."""
        try:
            yield
        except Exception as error:
            if (kind := re.sub(r"\d+", "", str(what))) not in self._warned:
                self._warned.add(kind)
                log.warning("%s cannot be written, the run goes on without it: %s: %s", what, type(error).__name__, error)

    def _each(self, act: Callable[[Sink], None]) -> None:
        for name, opener in self._openers.items():
            with self.dispensable(name):
                if name not in self._open:
                    self._open[name] = opener()
                act(self._open[name])


class JsonlSink(Sink):
    """One JSON object a line, `step` and `time` (UTC) first. A number that is not finite is written as null."""

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
        line = _line({"step": step, "time": datetime.now(UTC).isoformat(timespec="seconds"), **metrics}).encode()
        self._file.truncate(self._file.seek(self._end))  # what a failed write left
        if (written := self._file.write(line)) != len(line):
            raise OSError(f"wrote {written} of {len(line)} bytes")
        self._end += len(line)

    def close(self) -> None:
        self._file.close()


class TensorBoardSink(Sink):
    """Scalars for TensorBoard, evaluations among them."""

    def __init__(self, folder: Path, *, resume_step: int = 0):
        from torch.utils.tensorboard import SummaryWriter

        self._writer = SummaryWriter(str(folder), purge_step=resume_step + 1 if resume_step else None)

    def write(self, step: int, metrics: Mapping[str, float | str]) -> None:
        for name, value in _finite(metrics).items():
            self._writer.add_scalar(name, value, step)
        self._writer.flush()

    def evaluated(self, step: int, figures: Mapping[str, float | str]) -> None:
        self.write(step, figures)

    def close(self) -> None:
        self._writer.close()


class RayMetricsSink(Sink):
    """Gauges `cohort_<name>` with the tags `run` and `output`, which tells runs of one name apart; on Ray's Prometheus port as
    `ray_cohort_<name>`. Needs a connected driver."""

    def __init__(self, run: str, output: Path):
        from ray.util.metrics import Gauge

        self._tags = {"run": run, "output": str(output)}
        self._new = lambda name, what: Gauge(f"cohort_{name}", what, tag_keys=tuple(self._tags))
        self._gauges = {}

    def write(self, step: int, metrics: Mapping[str, float | str]) -> None:
        self.evaluated(step, {"step": step, **metrics})

    def evaluated(self, step: int, figures: Mapping[str, float | str]) -> None:
        for name, value in _finite(figures).items():
            if name not in self._gauges:
                what = METRICS[name].formula if name in METRICS else name
                self._gauges[name] = self._new(re.sub(r"\W", "_", name, flags=re.ASCII), what)
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
