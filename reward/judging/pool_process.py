"""One judge's process, from the outside: started, asked, read, and killed with all that it started."""

import contextlib
import json
import logging
import os
import selectors
import signal
import subprocess
import sys
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import IO, Any, cast

log = logging.getLogger(__name__)

START_SECONDS = 120
LONGEST_ANSWER = 4_000_000
LARGEST_LOG = 10 * 2**20
LONGEST_LINE = 1 << 16
CUT = b"\n[what is printed beyond 10 MiB is not kept]\n"
KEPT = (
    "PATH", "HOME", "TMPDIR", "TZ", "LANG", "LANGUAGE", "LC_ALL", "LC_CTYPE", "LD_LIBRARY_PATH", "CUDA_VISIBLE_DEVICES",
    "PYTHONPATH", "PYTHONHOME", "PYTHONUTF8", "PYTHONHASHSEED", "PYTHONDONTWRITEBYTECODE",
)  # fmt: skip
"""Variables that every judge is given: how Python and its libraries find their files, the locale, and which GPUs it may see.
Credentials stand in others, and what a judge need not know it cannot tell."""


class PrintLog:
    """What judges print, appended to `path`, which is made for the first of it, as long as it has room. Whatever becomes of the
    file, the judging goes on."""

    def __init__(self, path: Path):
        self._path, self._lost = path, False

    def write(self, text: bytes) -> None:
        if self._lost or not text:
            return
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            with self._path.open("ab") as file:
                room = LARGEST_LOG - file.tell()
                if room > 0:
                    file.write(text if len(text) <= room else text[:room] + CUT)
        except OSError as error:
            self._lost = True
            log.warning("%s: what reward.function prints is lost: %s", self._path, error)


class Process:
    """One judge's process and its pipes."""

    leaves = "it leaves after it ran out of memory"
    """Why a process ended that told so after its last answer: no row is to blame."""

    def __init__(self, setup: Mapping[str, Any], printed: PrintLog | None = None):
        self._setup, self._log = setup, printed
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-m", "reward.judging.pool_worker"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE if printed else None,
            start_new_session=True,
            env=_environment(setup["environment"]),
        )
        self._rows, self.answers = cast(IO[bytes], self._process.stdin), cast(IO[bytes], self._process.stdout)
        for pipe in filter(None, (self.answers, self._process.stderr)):
            os.set_blocking(pipe.fileno(), False)
        self._buffer = self._line = b""
        self.since = time.monotonic()
        """When it last answered, or was given rows after a pause."""
        self.ended = ""
        """Why it is of no more use; empty while it is."""

    @property
    def alive(self) -> bool:
        return self._process.poll() is None

    def await_ready(self) -> dict:
        """What it says when it is ready.

        Raises ValueError with the traceback when the judge cannot be loaded, RuntimeError when its process says nothing.
        """
        self.send(self._setup)
        until = time.monotonic() + START_SECONDS
        with selectors.DefaultSelector() as selector:
            self.watch(selector)
            while time.monotonic() < until and not self.ended:
                heard = [key for key, _ in selector.select(until - time.monotonic()) if self.heard(key, selector)]
                for message in self.read() if heard else ():
                    if "error" in message:
                        self.kill()
                        raise ValueError(f"the judge {self._setup['target']} cannot be loaded:\n{message['error']}")
                    return message
        self.kill()
        raise RuntimeError(f"the judge {self._setup['target']} did not start: {self.ended or f'silent for {START_SECONDS} s'}")

    def watch(self, selector: selectors.BaseSelector) -> None:
        for pipe in filter(None, (self.answers, self._process.stderr)):
            selector.register(pipe, selectors.EVENT_READ, self)

    def unwatch(self, selector: selectors.BaseSelector) -> None:
        for pipe in filter(None, (self.answers, self._process.stderr)):
            if pipe in selector.get_map():
                selector.unregister(pipe)

    def heard(self, key: selectors.SelectorKey, selector: selectors.BaseSelector) -> bool:
        """Whether what came is an answer; what was printed is taken."""
        if key.fileobj is not self.answers and self._take_printed():
            selector.unregister(key.fileobj)
        return key.fileobj is self.answers

    def _take_printed(self) -> bool:
        """Whole lines of what it printed go to the log, which several processes share. Whether there will be no more."""
        if self._log is None or self._process.stderr is None:
            return True
        with contextlib.suppress(BlockingIOError):
            while part := os.read(self._process.stderr.fileno(), LONGEST_LINE):
                lines, end, self._line = (self._line + part).rpartition(b"\n")
                if len(self._line) > LONGEST_LINE:
                    lines, end, self._line = lines + end + self._line, b"\n", b""
                self._log.write(lines + end)
            return True
        return False

    def send(self, message: Any) -> None:
        self.since = time.monotonic()
        try:
            self._rows.write(json.dumps(message).encode() + b"\n")
            self._rows.flush()
        except BrokenPipeError:
            self.ended = "its process ended"

    def read(self) -> list[dict]:
        """The answers that have come; what was printed before them is taken."""
        self._take_printed()
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
        if self._log is not None and self._process.stderr is not None and not self._process.stderr.closed:
            self._take_printed()
            self._log.write(self._line)
            self._process.stderr.close()
        with contextlib.suppress(BrokenPipeError):
            self._rows.close()
        self.answers.close()


def _exit(code: int | None) -> str:
    if code is None:
        return "no exit status"
    return f"signal {signal.Signals(-code).name}" if code < 0 else f"exit status {code}"


def _environment(asked: Iterable[str]) -> dict[str, str]:
    """What is kept, what is asked for, and one thread for a judge: the cores are shared among as many judges as there are."""
    kept = {name: os.environ[name] for name in (*KEPT, *asked) if name in os.environ}
    return kept | {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"}
