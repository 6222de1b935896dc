"""How a command ends before its time.

SIGTERM and SIGINT are felt at once where nothing can be lost, and within the grace period everywhere. KeyboardInterrupt is what
breaks off a wait: the one exception that passes through Ray's.
"""

import logging
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Self

log = logging.getLogger("cohort")

GRACE_S = 30.0
"""Between SIGTERM and SIGKILL, as Kubernetes and Slurm give it."""
JOB_GRACE_S = 3.0
"""The same of `ray job stop`, where RAY_JOB_STOP_WAIT_TIME_S is not set for the cluster's head."""


LAST_S = 5.0
"""Behind the grace period. A wait for a cluster that the same signal ended feels no signals, and has no end of its own."""
STOPPED = 4
"""The exit code."""
EXIT_CODE = "exit code"
"""Begins the last line of a job's log: Ray keeps no exit code of a job that it stops."""


class RunFailed(RuntimeError):
    """The run cannot go on; its newest checkpoint stands."""


class Stopped(RuntimeError):
    """A signal ended the command; what it had finished is kept."""


def grace_s(configured: float | None) -> float:
    """How long after a signal this process lives: as configured, or as whoever stops it is known to do."""
    wait_s = job_wait_s()
    if configured is None:
        return GRACE_S if wait_s is None else wait_s
    if wait_s is not None and wait_s < configured:
        found = f"found {configured:g} s, and this job's RAY_JOB_STOP_WAIT_TIME_S is {wait_s:g}"
        log.warning("cluster.stop_grace_s: %s: a stop would kill the run before it has saved", found)
    return configured


def job_wait_s() -> float | None:
    """Between SIGTERM and SIGKILL when this process is a submitted job's command; None where it is not."""
    if "RAY_JOB_CONFIG_JSON_ENV_VAR" not in os.environ:  # in the environment of such a command only
        return None
    return float(os.environ.get("RAY_JOB_STOP_WAIT_TIME_S", JOB_GRACE_S))


def leaving(code: object) -> None:
    """Say the exit code in a job's log."""
    if job_wait_s() is not None:
        print(EXIT_CODE, code, file=sys.stderr, flush=True)


class Stop:
    """The signals of one command. The first asks to stop, and breaks off at once what is breakable; at the end of the grace
    period, less the time to end everything in order, anything is broken off. The second breaks off anything.
    """

    def __init__(self) -> None:
        self.grace_s = GRACE_S
        self.over = False
        """Whether everything is broken off: the time is up, or a second signal came."""
        self._asked_at: float | None = None
        self._breakable = True
        self._before: dict[int, Callable[..., object] | int | None] = {}
        self._last: threading.Timer | None = None
        self._warned = False

    @property
    def asked(self) -> bool:
        return self._asked_at is not None

    def left_s(self) -> float:
        """Seconds of the grace period that are left; all of it until a stop is asked for."""
        return self.grace_s if self._asked_at is None else max(0.0, self._asked_at + self.grace_s - time.monotonic())

    def expect(self, save_s: float) -> None:
        """A checkpoint takes so long: warns, once, where that is more than half of the grace period."""
        if save_s > self.grace_s / 2 and not self._warned:
            self._warned = True
            end = "raise cluster.stop_grace_s, and what whoever stops the run waits (RAY_JOB_STOP_WAIT_TIME_S of a Ray job)"
            log.warning("a checkpoint took %.1f s, and a stop leaves %g s for everything: %s", save_s, self.grace_s, end)

    def __enter__(self) -> Self:
        self._before = {n: signal.getsignal(n) for n in (signal.SIGTERM, signal.SIGINT, signal.SIGALRM)}
        self.arm()
        return self

    def __exit__(self, *_) -> None:
        self.disarm()
        if self._last:
            self._last.cancel()
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def arm(self) -> None:
        """Handle the signals from here on: `ray.init` puts a handler of its own in the place of SIGTERM's."""
        signal.signal(signal.SIGTERM, self._handle)
        signal.signal(signal.SIGINT, self._handle)
        signal.signal(signal.SIGALRM, self._late)

    def disarm(self) -> None:
        """Ending in order, which takes what is left of the grace period, is not broken off by its end."""
        signal.setitimer(signal.ITIMER_REAL, 0)

    def hold(self) -> None:
        """From here on a first signal breaks off only what is said to be breakable."""
        self._breakable = False

    @contextmanager
    def breakable(self) -> Iterator[None]:
        """A wait that a stop may break off. Raises KeyboardInterrupt when one is asked for, also before."""
        if self.asked:
            raise KeyboardInterrupt
        before, self._breakable = self._breakable, True
        try:
            yield
        finally:
            self._breakable = before

    def ask(self, number: int) -> None:
        """A signal came."""
        self._asked_at = time.monotonic()
        log.warning("%s: stopping, within %g s; a second one stops at once", signal.Signals(number).name, self.grace_s)
        self._last = threading.Timer(self.grace_s + LAST_S, _leave)
        self._last.daemon = True
        self._last.start()
        signal.setitimer(signal.ITIMER_REAL, max(0.01, self.grace_s - min(10.0, self.grace_s / 3)))

    def _handle(self, number: int, frame) -> None:
        second = self.asked
        if not second:
            self.ask(number)
        self.over |= second
        if second or self._breakable:
            raise KeyboardInterrupt

    def _late(self, number: int, frame) -> None:
        self.over = True
        raise KeyboardInterrupt


def _leave() -> None:
    log.error("stopped by a signal; what was under way does not end, and the newest checkpoint stands")
    leaving(STOPPED)
    os._exit(STOPPED)
