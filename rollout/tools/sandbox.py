"""Programs that a model wrote, each in a process of its own that can do little.

Covered: no network (new sockets are refused), no file but Python's own to read and but its folder to write, no change of any
file's mode, owner or times, no new processes, signals or tracing, no memory that outlives it, no environment but a few fixed
variables (and /proc is out of reach), limits of wall-clock, CPU time, memory, file size and output; the folder and the process
are gone afterwards. By seccomp and Landlock, so without root.
Not covered: faults of the kernel, timing, the use of one core until the limit, how much it writes to its folder by then (each
file is limited), the names and sizes of files outside it, and what Python's own directories tell.
"""

import asyncio
import contextlib
import json
import os
import select
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Literal

from rollout.config import SandboxConfig
from rollout.leftovers import remove_folder, temporary_folder
from rollout.patience import Patience

FILE_BYTES = 16 * 2**20
START_SECONDS = 60
READABLE = ("/usr", "/lib", "/lib64", "/etc/ld.so.cache", "/dev/urandom", "/dev/zero")


class SandboxError(RuntimeError):
    """The sandbox itself failed: no fault of the program, so nothing follows for the answer."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Ran:
    """What came of a program."""

    output: str
    """What it printed, errors included, and why it was ended where it was."""
    ended: Literal["by itself", "time", "output", "signal"]


class Sandbox:
    """Runs programs. `check` first: it refuses to go on without a protection that was asked for."""

    def __init__(self, config: SandboxConfig):
        self._config = config
        self._room = asyncio.Semaphore(config.at_once)

    async def check(self) -> None:
        """Raises SandboxError unless a program runs here with every protection that may not be missing."""
        ran = await self.run("print(6 * 7)")
        if ran.output != "42\n":
            raise SandboxError(f"the sandbox does not work here: print(6 * 7) gave {ran.output!r:.200}")

    async def run(self, program: str, patience: Patience | None = None) -> Ran:
        """Run it and wait. Raises SandboxError when the sandbox fails; whatever the program does is a result.

        `patience` is the wave's: where too many of its programs had to be ended, this one has less time or none, and it is
        the sandbox that fails, not the program, when that does not do.
        """
        patience = patience or Patience(self._config.seconds, 1)
        async with self._room:
            if patience.gone:
                raise SandboxError(f"the program was not run: {patience.why('programs')}")
            seconds, hung = patience.limit, True
            try:
                # A thread for each program: its process is killed should the thread end before it.
                ran = await asyncio.to_thread(self._run, program, seconds)
                hung = ran.ended == "time"
            finally:
                patience.count(hung)
        if hung and seconds < self._config.seconds:
            raise SandboxError(f"the program was given up after {seconds:g} s: {patience.why('programs')}")
        return ran

    def _run(self, program: str, seconds: float) -> Ran:
        folder = temporary_folder("sandbox")
        told, tells = os.pipe()
        child = Path(__file__).with_name("sandbox_child.py")
        try:
            process = subprocess.Popen(
                [sys.executable, "-I", str(child), json.dumps(self._asked(folder, tells))],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                cwd=folder,
                env=_environment(folder),
                start_new_session=True,
                pass_fds=(tells,),
            )
        except OSError as error:
            raise SandboxError(f"the sandbox did not start: {error}") from error
        else:
            with process:
                try:
                    os.close(tells)
                    return self._watched(process, told, program, seconds)
                finally:
                    with contextlib.suppress(ProcessLookupError):
                        os.killpg(process.pid, signal.SIGKILL)
        finally:
            os.close(told)
            remove_folder(folder)

    def _watched(self, process: subprocess.Popen, told: int, program: str, seconds: float) -> Ran:
        with contextlib.suppress(BrokenPipeError), _pipe(process.stdin) as stdin:
            stdin.write(program.encode(errors="replace"))
        said, _ = _read(told, 1 << 16, START_SECONDS)
        if not said:
            raise SandboxError(f"the sandboxed process said nothing within {START_SECONDS} s")
        missing = sorted(set(json.loads(said)) - set(self._config.without))
        if missing:
            raise SandboxError(f"this kernel lacks a protection: {', '.join(missing)}; to do without, name it in `without`")
        return self._followed(process, seconds)

    def _asked(self, folder: Path, status: int) -> dict:
        readable = [*READABLE, *dict.fromkeys((sys.prefix, sys.base_prefix, os.path.realpath(sys.executable)))]
        return {
            "folder": str(folder),
            "readable": readable,
            "memory_bytes": int(self._config.memory_gb * 2**30),
            "cpu_seconds": int(self._config.seconds) + 2,
            "file_bytes": FILE_BYTES,
            "status": status,
        }

    def _followed(self, process: subprocess.Popen, seconds: float) -> Ran:
        """The output until the program ends, or is ended."""
        limit, until = self._config.output_characters, time.monotonic() + seconds
        output, ended = _read(_pipe(process.stdout).fileno(), 4 * limit, seconds)
        why = ""
        if ended == "by itself":
            try:
                code = process.wait(timeout=max(0.0, until - time.monotonic()))
            except subprocess.TimeoutExpired:
                ended = "time"
            else:
                if code < 0:
                    ended, why = "signal", f"the program was ended by {signal.Signals(-code).name}\n"
        if ended == "time":
            why = f"TimeoutError: the program ran longer than {seconds:g} s\n"
        text = output.decode(errors="replace")
        return Ran(output=(text if len(text) <= limit else f"{text[:limit]}...\n") + why, ended=ended)


def _read(descriptor: int, limit: int, seconds: float) -> tuple[bytes, Literal["by itself", "time", "output"]]:
    """What comes until the writer ends, or more than `limit` bytes have come, or the time is over; and which it was."""
    until, found, ready = time.monotonic() + seconds, b"", select.poll()  # `select` itself takes the first 1024 files only
    ready.register(descriptor, select.POLLIN)
    while ready.poll(1000 * max(0.0, until - time.monotonic())):
        part = os.read(descriptor, 1 << 16)
        found += part
        if not part:
            return found, "by itself"
        if len(found) > limit:
            return found, "output"
    return found, "time"


def _pipe(stream: IO[bytes] | None) -> IO[bytes]:
    assert stream is not None, "the process was started without a pipe"
    return stream


def _environment(folder: Path) -> dict[str, str]:
    return {"PATH": "/usr/bin:/bin", "HOME": str(folder), "TMPDIR": str(folder), "LANG": "C.UTF-8", "OMP_NUM_THREADS": "1"}
