"""Where metrics of a run are written; `cluster.records.catalogue` says what each name stands for.

Only checkpoints and the ledger may stop a run. Whatever else cannot be written (a full disk, a gone backend) warns once, and
training goes on: `Sinks` is the one place that catches, but for trackers' threads (`cluster.records.trackers`).
"""

import json
import logging
import math
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

from cluster.records.catalogue import METRICS, exported

log = logging.getLogger(__name__)


class Sink:
    """Where a step's metrics go."""

    def write(self, step: int, metrics: Mapping[str, float | str]) -> None:
        raise NotImplementedError

    def evaluated(self, step: int, figures: Mapping[str, float | str]) -> None:
        """An evaluation of the policy after a step; evaluations.jsonl holds it already."""

    def sampled(self, step: int, rows: Sequence[dict]) -> None:
        """The outputs of a few groups of a step; samples/step_N.jsonl holds all."""

    def broken_off(self) -> None:
        """The run ends here, before its last step."""

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

    def sampled(self, step: int, rows: Sequence[dict]) -> None:
        self._each(lambda sink: sink.sampled(step, rows))

    def close(self, *, broken_off: bool = False) -> None:
        for name, sink in self._open.items():
            with self.dispensable(name):
                if broken_off:
                    sink.broken_off()
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
        for name, value in finite(metrics).items():
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
        self._new = lambda name, what: Gauge(exported(name), what, tag_keys=tuple(self._tags))
        self._gauges = {}

    def write(self, step: int, metrics: Mapping[str, float | str]) -> None:
        self.evaluated(step, {"step": step, **metrics})

    def evaluated(self, step: int, figures: Mapping[str, float | str]) -> None:
        for name, value in finite(figures).items():
            if name not in self._gauges:
                what = METRICS[name].formula if name in METRICS else name
                self._gauges[name] = self._new(name, what)
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


def finite(metrics: Mapping[str, float | str]) -> dict[str, float]:
    """Those that are finite numbers."""
    return {name: value for name, value in metrics.items() if not isinstance(value, str) and math.isfinite(value)}
