"""Judges in processes that can be killed: no answer, however hostile, hangs or ends the run.

A process that gives no answer within the time limit, dies, or floods its pipe is killed with all it started and replaced;
the row that it was at is unscorable, and the others are judged on. An exception is an error with its traceback. Linux only.
"""

import contextlib
import json
import os
import selectors
import signal
import subprocess
import sys
import time
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

ROWS_AT_ONCE = 64
START_SECONDS = 120
LONGEST_ANSWER = 4_000_000
KILLED = "killed: "
"""How the reason of an unscorable row begins whose judge had to be killed or died."""

Row = Mapping[str, Any]
"""What JSON can carry."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What came of judging one row."""

    status: Literal["score", "unscorable", "error"]
    value: Any
    """What the judge returned; None without a score."""
    reason: str
    seconds: float
    """Wall-clock of judging; of a row of a batch, its share."""


class Judge(Protocol):
    """Rows in, an outcome for each, in order."""

    def __call__(self, rows: Sequence[Row]) -> list[Outcome]: ...


class Pool:
    """Processes that run one judge. Use as a context manager, or close it.

    `target` is `package.module:function` or `file.py:function`. Raises ValueError with the traceback when it cannot be loaded.
    """

    def __init__(self, target: str, *, workers: int, seconds: float, memory_gb: float, batched: bool = False):
        self._setup = {"target": target, "memory_bytes": int(memory_gb * 2**30), "batched": batched}
        self._setup["preload"] = ["math_verify"] if target.startswith("reward.") else []
        self._seconds, self._batched = seconds, batched
        self.kills = 0
        """Processes killed or found dead so far."""
        self._processes: list[_Process] = []
        try:
            for _ in range(workers):
                self._processes.append(_Process(self._setup))
            for process in self._processes:
                process.await_ready()
        except BaseException:
            self.close()
            raise

    def __call__(self, rows: Sequence[Row]) -> list[Outcome]:
        """An outcome for each row, in order."""
        out: list[Outcome | None] = [None] * len(rows)
        size = max(1, min(ROWS_AT_ONCE, -(-len(rows) // len(self._processes))))
        todo = deque(list(range(i, min(i + size, len(rows)))) for i in range(0, len(rows), size))
        busy: dict[_Process, deque[int]] = {}
        with selectors.DefaultSelector() as selector:
            while todo or busy:
                for process in self._processes:
                    if todo and process not in busy:
                        busy[process] = deque(todo.popleft())
                        process.send([rows[i] for i in busy[process]])
                        selector.register(process.answers, selectors.EVENT_READ, process)
                until = min(process.since for process in busy) + self._seconds
                ready = {key.data for key, _ in selector.select(max(0.0, until - time.monotonic()))}
                late_ones = {p for p in busy.keys() - ready if time.monotonic() - p.since >= self._seconds}
                for process in ready | late_ones:
                    self._take(process, busy[process], out)
                    late = process in late_ones
                    if late or process.ended:
                        selector.unregister(process.answers)
                        todo.extendleft(reversed(self._replace(process, busy.pop(process), late, out)))
                    elif not busy[process]:
                        selector.unregister(process.answers)
                        del busy[process]
        return out

    def _take(self, process: "_Process", pending: deque[int], out: list[Outcome | None]) -> None:
        for message in process.read():
            if not self._batched:
                out[pending.popleft()] = _outcome(message)
                continue
            many = _outcomes(message, len(pending))
            if many is None:
                process.ended = f"answered {str(message)[:200]}"
                return
            for outcome in many:
                out[pending.popleft()] = outcome

    def _replace(self, process: "_Process", pending: deque[int], late: bool, out: list[Outcome | None]) -> list[list[int]]:
        """A fresh process; the rows that are left to judge. Of a batch that failed as one, each is judged alone."""
        why = f"no answer within {self._seconds:g} s" if late else process.ended
        self.kills += 1
        place = self._processes.index(process)
        process.kill()
        if pending and not (self._batched and len(pending) > 1):
            seconds = time.monotonic() - process.since
            out[pending.popleft()] = Outcome(status="unscorable", value=None, reason=KILLED + why, seconds=seconds)
        self._processes[place] = _Process(self._setup)
        self._processes[place].await_ready()
        return [[i] for i in pending] if self._batched else [list(pending)] if pending else []

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


class _Process:
    """One judge's process and its pipes."""

    def __init__(self, setup: Mapping[str, Any]):
        self._setup = setup
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-m", "reward.pool_worker"], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
            start_new_session=True, env=_environment(),
        )  # fmt: skip
        self.answers = self._process.stdout
        os.set_blocking(self.answers.fileno(), False)
        self._buffer = b""
        self.since = time.monotonic()
        """When it last answered, or was given rows after a pause."""
        self.ended = ""
        """Why it is of no more use; empty while it is."""

    @property
    def alive(self) -> bool:
        return self._process.poll() is None

    def await_ready(self) -> None:
        """Raises ValueError with the traceback when the judge cannot be loaded, RuntimeError when its process says nothing."""
        self.send(self._setup)
        until = time.monotonic() + START_SECONDS
        with selectors.DefaultSelector() as selector:
            selector.register(self.answers, selectors.EVENT_READ)
            while time.monotonic() < until and not self.ended:
                selector.select(until - time.monotonic())
                for message in self.read():
                    if "error" in message:
                        self.kill()
                        raise ValueError(f"the judge {self._setup['target']} cannot be loaded:\n{message['error']}")
                    return
        self.kill()
        raise RuntimeError(f"the judge {self._setup['target']} did not start: {self.ended or f'silent for {START_SECONDS} s'}")

    def send(self, message: Any) -> None:
        self.since = time.monotonic()
        try:
            self._process.stdin.write(json.dumps(message).encode() + b"\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            self.ended = "its process ended"

    def read(self) -> list[dict]:
        """The answers that have come."""
        while True:
            try:
                part = os.read(self.answers.fileno(), 1 << 16)
            except BlockingIOError:
                break
            if not part:
                with contextlib.suppress(subprocess.TimeoutExpired):
                    self._process.wait(timeout=5)
                self.ended = self.ended or f"its process ended with {_exit(self._process.returncode)}"
                break
            self._buffer += part
        *lines, self._buffer = self._buffer.split(b"\n")
        if max(map(len, [*lines, self._buffer])) > LONGEST_ANSWER:
            self.ended = f"an answer of more than {LONGEST_ANSWER} bytes"
            return []
        if lines:
            self.since = time.monotonic()
        return [json.loads(line) for line in lines]

    def kill(self) -> None:
        """The process and all that it started in its session."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait(timeout=30)
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.close()
        self._process.stdout.close()


def _outcome(message: dict, rows: int = 1) -> Outcome:
    status = "score" if "value" in message else "error" if "error" in message else "unscorable"
    seconds = message.get("seconds", 0.0) / rows
    return Outcome(status=status, value=message.get("value"), reason=message.get(status, ""), seconds=seconds)


def _outcomes(message: dict, rows: int) -> list[Outcome] | None:
    """A batch's outcomes; None where its rows must be judged again one by one."""
    if "unscorable" in message and rows > 1:
        return None
    if "value" not in message:
        return [_outcome(message)] * rows
    values = message["value"]
    if not isinstance(values, list) or len(values) != rows:
        found = f"{len(values)} values" if isinstance(values, list) else type(values).__name__
        wrong = f"the batched judge returned {found} for {rows} rows, expected a list with one value for each"
        return [_outcome({"error": wrong})] * rows
    return [_outcome(message | {"value": value}, rows) for value in values]


def _exit(code: int | None) -> str:
    if code is None:
        return "no exit status"
    return f"signal {signal.Signals(-code).name}" if code < 0 else f"exit status {code}"


def _environment() -> dict[str, str]:
    """One thread for a judge: there are as many judges as the cores are meant to be shared among."""
    return os.environ | {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"}
