"""Trackers of experiments as sinks of a run: wandb, trackio and mlflow. docs/trackers.md says where each writes.

A tracker is on a thread of its own and may fail, hang or lag: the run leaves it out with one warning and goes on, and
metrics.jsonl has everything. None asks for a login. A run has one name at all trackers, kept in its directory, so that a
resumed run goes on where it was.
"""

import json
import logging
import os
import queue
import re
import secrets
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from importlib.util import find_spec
from typing import TYPE_CHECKING

from cluster.records.metrics import Sink, finite
from cluster.records.samples import write_text
from cluster.stopping import Stop

if TYPE_CHECKING:
    from cluster.config.run_config import RunConfig

log = logging.getLogger("cohort")

FILE = "trackers.json"
CALL_S = 60.0
"""A call that takes longer has failed."""
CLOSE_S = 20.0
"""For what is not yet sent when the run ends."""
BEHIND = 1000
"""As many calls may wait."""
COLUMNS: tuple[str, ...] = (
    *("id", "index", "question", "gold", "response"),
    *("verdict", "reward", "components", "advantage", "finish_reason"),
)
"""Of a table of outputs, as in samples/step_N.jsonl."""
_NAMING = threading.Lock()


def missing(names: Sequence[str]) -> list[str]:
    """A line for each of these trackers that is not installed."""
    expected = "expected `pip install 'cohort-rl[trackers]'`, or another tracker"
    return [f"trackers: {name} is not installed here; {expected}" for name in names if find_spec(name) is None]


def openers(config: "RunConfig", stop: Stop) -> dict[str, Callable[[], Sink]]:
    """The run's trackers, for `Sinks`."""

    def close_s() -> float:
        return min(CLOSE_S, stop.left_s() / 4)

    kinds = {"wandb": Wandb, "trackio": Trackio, "mlflow": Mlflow}
    return {name: partial(Behind, name, partial(kinds[name], config), close_s) for name in config.trackers}


def name_of(config: "RunConfig") -> str:
    """The run's name at its trackers: `<name>-<eight random digits>`, drawn once and kept in the run's directory."""
    path = config.output / FILE
    with _NAMING:
        if not path.exists():
            write_text(path, json.dumps({"run": f"{config.name}-{secrets.token_hex(4)}"}))
    return json.loads(path.read_text(encoding="utf-8"))["run"]


class Behind(Sink):
    """A sink on a thread of its own, left out for good when a call of it fails, takes `CALL_S`, or `BEHIND` of them wait."""

    def __init__(self, name: str, opener: Callable[[], Sink], close_s: Callable[[], float]):
        self._name, self._close_s = name, close_s
        self._work: queue.Queue[Callable[[Sink], None] | None] = queue.Queue(BEHIND)
        self._left_out = threading.Event()
        self._since: float | None = time.monotonic()
        """When the call under way began."""
        self._thread = threading.Thread(target=self._run, args=(opener,), daemon=True)
        self._thread.start()

    def write(self, step: int, metrics: Mapping[str, float | str]) -> None:
        self._put(lambda sink: sink.write(step, metrics))

    def evaluated(self, step: int, figures: Mapping[str, float | str]) -> None:
        self._put(lambda sink: sink.evaluated(step, figures))

    def sampled(self, step: int, rows: Sequence[dict]) -> None:
        self._put(lambda sink: sink.sampled(step, rows))

    def broken_off(self) -> None:
        self._put(lambda sink: sink.broken_off())

    def close(self) -> None:
        self._put(None)
        self._thread.join(0 if self._left_out.is_set() else self._close_s())
        if self._thread.is_alive():
            self._leave_out("it has not ended in time, and what it had not sent is lost")

    def _put(self, call: Callable[[Sink], None] | None) -> None:
        if (since := self._since) is not None and time.monotonic() - since > CALL_S:
            self._leave_out(f"a call has taken more than {CALL_S:g} s")
        if not self._left_out.is_set():
            try:
                self._work.put_nowait(call)
            except queue.Full:
                self._leave_out(f"it is {BEHIND} calls behind")

    def _run(self, opener: Callable[[], Sink]) -> None:
        try:
            sink = opener()
            self._since = None
            while (call := self._work.get()) is not None and not self._left_out.is_set():
                self._since = time.monotonic()
                call(sink)
                self._since = None
            sink.close()
        except BaseException as error:  # also an exit that a tracker asks for: it is this thread's alone
            self._leave_out(f"{type(error).__name__}: {error}")

    def _leave_out(self, why: str) -> None:
        if not self._left_out.is_set():
            self._left_out.set()
            log.warning("%s is left out from here on, the run goes on without it (metrics.jsonl has all): %s", self._name, why)


class Wandb(Sink):
    """Weights & Biases: on line with WANDB_API_KEY, else off line in RUN/wandb, for `wandb sync`."""

    def __init__(self, config: "RunConfig"):
        import wandb

        asked, keyed, name = os.environ.get("WANDB_MODE"), "WANDB_API_KEY" in os.environ, name_of(config)
        mode = "disabled" if asked == "disabled" else "offline" if asked == "offline" or not keyed else "online"
        self._table = wandb.Table
        self._run = wandb.init(
            project=config.project,
            id=name,
            name=name,
            dir=config.output,
            config=config.model_dump(mode="json"),
            mode=mode,
            resume="allow" if mode == "online" else None,
            settings=wandb.Settings(console="off", silent=True),
        )
        # Its own axis: wandb's counts up only, and a resumed run goes back to its checkpoint.
        self._run.define_metric("step")
        self._run.define_metric("*", step_metric="step")
        without = "" if keyed else ", as WANDB_API_KEY is not set"
        log.info("wandb: %s", self._run.url if mode == "online" else f"{mode}{without}: {self._run.dir}")

    def write(self, step: int, metrics: Mapping[str, float | str]) -> None:
        self._run.log({"step": step, **finite(metrics)})

    def evaluated(self, step: int, figures: Mapping[str, float | str]) -> None:
        self.write(step, figures)

    def sampled(self, step: int, rows: Sequence[dict]) -> None:
        table = self._table(columns=list(COLUMNS), data=list(map(_cells, rows)))
        self._run.log({"step": step, "samples": table})

    def broken_off(self) -> None:
        self._run.finish(exit_code=1)

    def close(self) -> None:
        self._run.finish()


class Trackio(Sink):
    """Trackio: in its local data base (TRACKIO_DIR), or where TRACKIO_SPACE_ID or TRACKIO_SERVER_URL says."""

    def __init__(self, config: "RunConfig"):
        import trackio

        self._table = trackio.Table
        self._run = trackio.init(
            config.project,
            name=name_of(config),
            resume="allow",
            config=config.model_dump(mode="json"),
            embed=False,
            auto_log_gpu=False,
            auto_log_cpu=False,
        )

    def write(self, step: int, metrics: Mapping[str, float | str]) -> None:
        self._run.log(finite(metrics), step=step)

    def evaluated(self, step: int, figures: Mapping[str, float | str]) -> None:
        self.write(step, figures)

    def sampled(self, step: int, rows: Sequence[dict]) -> None:
        self._run.log({"samples": self._table(columns=list(COLUMNS), data=list(map(_cells, rows)))}, step=step)

    def close(self) -> None:
        self._run.finish()


class Mlflow(Sink):
    """MLflow: the server of MLFLOW_TRACKING_URI, else files in RUN/mlflow."""

    def __init__(self, config: "RunConfig"):
        from mlflow import MlflowClient
        from mlflow.entities import Metric, Param

        self._metric, uri = Metric, os.environ.get("MLFLOW_TRACKING_URI")
        if not uri:
            os.environ.setdefault("MLFLOW_ALLOW_FILE_STORE", "true")
            uri = (config.output / "mlflow").as_uri()
        self._client, name = MlflowClient(tracking_uri=uri), name_of(config)
        found = self._client.get_experiment_by_name(config.project)
        experiment = found.experiment_id if found else self._client.create_experiment(config.project)
        runs = self._client.search_runs([experiment], f"tags.cohort = '{name}'")
        if runs:
            self._id = runs[0].info.run_id
            self._client.update_run(self._id, status="RUNNING")
        else:
            self._id = self._client.create_run(experiment, tags={"cohort": name}, run_name=name).info.run_id
            params = [Param(key, str(value)) for key, value in config.model_dump(mode="json").items()]
            self._client.log_batch(self._id, params=params)
        log.info("mlflow: run %s at %s", name, uri)

    def write(self, step: int, metrics: Mapping[str, float | str]) -> None:
        now = int(1000 * time.time())
        taken = {re.sub(r"[^\w\-./: ]", "_", name, flags=re.ASCII): value for name, value in finite(metrics).items()}
        self._client.log_batch(self._id, metrics=[self._metric(name, value, now, step) for name, value in taken.items()])

    def evaluated(self, step: int, figures: Mapping[str, float | str]) -> None:
        self.write(step, figures)

    def sampled(self, step: int, rows: Sequence[dict]) -> None:
        table = dict(zip(COLUMNS, zip(*map(_cells, rows), strict=True), strict=True))
        self._client.log_table(self._id, table, f"samples/step_{step}.json")

    def broken_off(self) -> None:
        self._client.set_terminated(self._id, "KILLED")

    def close(self) -> None:
        if self._client.get_run(self._id).info.status == "RUNNING":
            self._client.set_terminated(self._id)


def _cells(row: Mapping[str, object]) -> list[str | int | float | None]:
    """A row of a table: what is neither text nor a number is JSON."""
    cells = (row[name] for name in COLUMNS)
    return [cell if isinstance(cell, str | int | float | None) else json.dumps(cell) for cell in cells]
