"""Programs that a model wrote, each in a process of its own that can do little.

Covered: no network (new sockets are refused), no file but Python's own to read and but its folder to write, no new processes,
signals or tracing, no environment but a few fixed variables (and /proc is out of reach), limits of wall-clock, CPU time,
memory, file size and output; the folder and the process are gone afterwards. By seccomp and Landlock, so without root.
Not covered: faults of the kernel, timing, the use of one core until the limit, and what Python's own directories tell.
"""

import asyncio
import contextlib
import json
import os
import shutil
import signal
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pydantic import Field

from rollout.config import Strict

Protection = Literal["files", "network", "processes"]
FILE_BYTES = 16 * 2**20
START_SECONDS = 60
READABLE = ("/usr", "/lib", "/lib64", "/etc/ld.so.cache", "/dev/urandom", "/dev/zero")


class SandboxError(RuntimeError):
    """The sandbox itself failed: no fault of the program, so nothing follows for the answer."""


class SandboxConfig(Strict):
    """Limits of one program."""

    seconds: float = Field(5.0, gt=0.0)
    memory_gb: float = Field(1.0, gt=0.0)
    """Address space."""
    output_characters: int = Field(2000, gt=0)
    """A longer output is cut, and a program that goes on printing is ended."""
    at_once: int = Field(2, gt=0)
    """Programs that run at the same time."""
    without: tuple[Protection, ...] = ()
    """Protections that may be missing where the kernel has none: files, network, processes."""


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

    async def run(self, program: str) -> Ran:
        """Run it and wait. Raises SandboxError when the sandbox fails; whatever the program does is a result."""
        async with self._room:
            folder = Path(tempfile.mkdtemp(prefix="cohort-sandbox-"))
            try:
                return await self._run(program, folder)
            except OSError as error:
                raise SandboxError(f"the sandbox did not start: {error}") from error
            finally:
                shutil.rmtree(folder, ignore_errors=True)

    async def _run(self, program: str, folder: Path) -> Ran:
        told, tells = os.pipe()
        try:
            process = await asyncio.create_subprocess_exec(
                sys.executable, "-I", str(Path(__file__).with_name("sandbox_child.py")), json.dumps(self._asked(folder, tells)),
                stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT,
                cwd=folder, env=_environment(folder), start_new_session=True,
                pass_fds=(tells,),
            )  # fmt: skip
        finally:
            os.close(tells)
        try:
            with contextlib.suppress(BrokenPipeError, ConnectionResetError):
                process.stdin.write(program.encode(errors="replace"))
                process.stdin.close()
            await self._started(told)
            return await self._followed(process)
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            await process.wait()

    def _asked(self, folder: Path, status: int) -> dict:
        readable = [*READABLE, *dict.fromkeys((sys.prefix, sys.base_prefix, os.path.realpath(sys.executable)))]
        return {
            "folder": str(folder), "readable": readable, "memory_bytes": int(self._config.memory_gb * 2**30),
            "cpu_seconds": int(self._config.seconds) + 2, "file_bytes": FILE_BYTES, "status": status,
        }  # fmt: skip

    async def _started(self, told: int) -> None:
        """Waits for the child's word on its protections."""
        said = await asyncio.to_thread(_read_all, told)
        if not said:
            raise SandboxError(f"the sandboxed process said nothing within {START_SECONDS} s")
        missing = sorted(set(json.loads(said)) - set(self._config.without))
        if missing:
            raise SandboxError(f"this kernel lacks a protection: {', '.join(missing)}; to do without, name it in `without`")

    async def _followed(self, process: asyncio.subprocess.Process) -> Ran:
        """The output until the program ends, or is ended."""
        limit, output, ended = 4 * self._config.output_characters, b"", "by itself"
        try:
            async with asyncio.timeout(self._config.seconds):
                while len(output) <= limit and (part := await process.stdout.read(1 << 16)):
                    output += part
                if len(output) > limit:
                    ended = "output"
                else:
                    await process.wait()
        except TimeoutError:
            ended = "time"
        why = {"time": f"TimeoutError: the program ran longer than {self._config.seconds:g} s\n"}
        if ended == "by itself" and process.returncode < 0:
            ended = "signal"
            why["signal"] = f"the program was ended by {signal.Signals(-process.returncode).name}\n"
        text = output.decode(errors="replace")
        if len(text) > self._config.output_characters:
            text = f"{text[: self._config.output_characters]}...\n"
        return Ran(output=text + why.get(ended, ""), ended=ended)


def _read_all(descriptor: int) -> bytes:
    import select

    with os.fdopen(descriptor, "rb") as file:
        return file.read() if select.select([file], [], [], START_SECONDS)[0] else b""


def _environment(folder: Path) -> dict[str, str]:
    return {"PATH": "/usr/bin:/bin", "HOME": str(folder), "TMPDIR": str(folder), "LANG": "C.UTF-8", "OMP_NUM_THREADS": "1"}
