"""Judges in processes that can be killed: no answer, however hostile, hangs or ends the run.

A process that gives no answer within the time limit, dies, or floods its pipe is killed with all it started and replaced;
the row that it was at has no score, and the others are judged on. An exception is an error with its traceback. Linux only.
"""

import logging
import selectors
import time
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

from reward.judging.pool_process import PrintLog, Process
from rollout.patience import Patience

log = logging.getLogger(__name__)

ROWS_AT_ONCE = 64
KILLED = "killed: "
"""How the reason begins where the judge had to be killed or died."""

Row = Mapping[str, Any]
"""What JSON can carry."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What came of judging one row."""

    status: Literal["score", "killed", "error"]
    value: Any
    """What the judge returned; None without a score."""
    reason: str
    seconds: float
    """Wall-clock of judging; of a row of a batch, its share."""


class Judge(Protocol):
    """Rows in, an outcome for each, in order."""

    def __call__(self, rows: Sequence[Row]) -> list[Outcome]: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Reach:
    """What a judge may reach besides its own files, and who hears of it: nothing and nobody, by default."""

    environment: tuple[str, ...] = ()
    """Variables that it is given beside those that Python needs (`reward.judging.pool_process.KEPT`)."""
    network: bool = False
    log: Path | None = None
    """The file that takes what it prints."""


class Pool:
    """Processes that run one judge. Use as a context manager, or close it.

    `target` is `package.module:function` or `file.py:function`; `adapter` is a function that makes the judge from it, says
    whether that takes many rows at once, and what else is to be known of it (`wants`). Raises ValueError with the exception
    and its traceback when it cannot be loaded.
    """

    def __init__(
        self, target: str, *, workers: int, seconds: float, memory_gb: float, adapter: str = "", reach: Reach = Reach()
    ):
        self._setup = {
            "target": target,
            "adapter": adapter,
            "memory_bytes": int(memory_gb * 2**30),
            "environment": reach.environment,
            "network": reach.network,
            "printing": reach.log is not None,
        }
        self._seconds = seconds
        self._log = PrintLog(reach.log) if reach.log else None
        self.kills = 0
        """Processes killed or found dead so far."""
        self._processes: list[Process] = []
        try:
            for _ in range(workers):
                self._processes.append(Process(self._setup, self._log))
            for process in self._processes:
                ready = process.await_ready()
            self._batched, self.wants = ready["batched"], ready["wants"]
            if not ready["confined"]:
                log.warning("this kernel does not keep judges from starting processes and from the network")
        except BaseException:
            self.close()
            raise

    def __call__(self, rows: Sequence[Row]) -> list[Outcome]:
        """An outcome for each row, in order. Where too many rows end a process, further ones have less time, or none."""
        out: list[Outcome | None] = [None] * len(rows)
        patience = Patience(self._seconds, len(rows))
        size = max(1, min(ROWS_AT_ONCE, -(-len(rows) // len(self._processes))))
        todo = deque(list(range(i, min(i + size, len(rows)))) for i in range(0, len(rows), size))
        busy: dict[Process, deque[int]] = {}
        with selectors.DefaultSelector() as selector:
            while (todo or busy) and not patience.gone:
                for index, process in enumerate(self._processes):
                    if todo and process not in busy:
                        if not process.alive:  # it died while nobody asked it: no row's fault
                            process = self._fresh(index)
                        busy[process] = deque(todo.popleft())
                        process.send([rows[i] for i in busy[process]])
                        process.watch(selector)
                until = min(process.since for process in busy) + patience.limit
                ready = {
                    key.data for key, _ in selector.select(max(0.0, until - time.monotonic())) if key.data.heard(key, selector)
                }
                late_ones = {p for p in busy.keys() - ready if time.monotonic() - p.since >= patience.limit}
                for process in ready | late_ones:
                    waiting = len(busy[process])
                    self._take(process, busy[process], out)
                    patience.done += waiting - len(busy[process])
                    late = self._late(patience) if process in late_ones else ""
                    if late or process.ended:
                        process.unwatch(selector)
                        patience.count(hung=True)
                        todo.extendleft(reversed(self._replace(process, busy.pop(process), late, out)))
                    elif not busy[process]:
                        process.unwatch(selector)
                        del busy[process]
        for process in busy:  # they are at rows that are given up
            self._fresh(self._processes.index(process))
        why = f"{KILLED}not tried: {patience.why('judgements')}"
        given_up = Outcome(status="killed", value=None, reason=why, seconds=0.0)
        return [given_up if outcome is None else outcome for outcome in out]

    def _late(self, patience: Patience) -> str:
        hurry = f": {patience.why('judgements')}" if patience.hurried else ""
        return f"no answer within {patience.limit:g} s{hurry}"

    def _take(self, process: Process, pending: deque[int], out: list[Outcome | None]) -> None:
        for message in process.read():
            if message.get("leaving"):
                process.ended = process.leaves
            if not self._batched:
                out[pending.popleft()] = _outcome(message)
                continue
            many = _outcomes(message, len(pending))
            if many is None:
                return
            for outcome in many:
                out[pending.popleft()] = outcome

    def _replace(self, process: Process, pending: deque[int], late: str, out: list[Outcome | None]) -> list[list[int]]:
        """A fresh process; the rows that are left to judge. Of a batch that failed as one, each is judged alone."""
        why = late or process.ended
        blamed = pending and why != process.leaves and not (self._batched and len(pending) > 1)
        if blamed:
            seconds = time.monotonic() - process.since
            out[pending.popleft()] = Outcome(status="killed", value=None, reason=KILLED + why, seconds=seconds)
        self._fresh(self._processes.index(process))
        return [[i] for i in pending] if self._batched else [list(pending)] if pending else []

    def _fresh(self, index: int) -> Process:
        """Another process in the place of one that is of no more use."""
        self.kills += 1
        self._processes[index].kill()
        self._processes[index] = Process(self._setup, self._log)
        self._processes[index].await_ready()
        return self._processes[index]

    def __enter__(self) -> "Pool":
        return self

    def __exit__(self, *_) -> None:
        self.close()

    def close(self) -> None:
        """End all processes."""
        for process in self._processes:
            process.kill()
        self._processes = []

    @property
    def size(self) -> int:
        """Processes that are alive."""
        return sum(process.alive for process in self._processes)


def _outcome(message: dict, rows: int = 1) -> Outcome:
    status = "score" if "value" in message else "error" if "error" in message else "killed"
    seconds = message.get("seconds", 0.0) / rows
    return Outcome(status=status, value=message.get("value"), reason=message.get(status, ""), seconds=seconds)


def _outcomes(message: dict, rows: int) -> list[Outcome] | None:
    """A batch's outcomes; None where its rows must be judged again one by one."""
    if "killed" in message and rows > 1:
        return None
    if "value" not in message:
        return [_outcome(message)] * rows
    values = message["value"]
    if not isinstance(values, list) or len(values) != rows:
        found = f"{len(values)} values" if isinstance(values, list) else type(values).__name__
        wrong = f"the batched judge returned {found} for {rows} rows, expected a list with one value for each"
        return [_outcome({"error": wrong})] * rows
    return [_outcome(message | {"value": value}, rows) for value in values]
