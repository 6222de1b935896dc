"""Environments in processes of their own, which can be ended without harm to others.

One process has the user's file loaded and does nothing but fork: each output's environment is a child of it, with a socket of
its own for lines of JSON. A call that takes too long ends that child. Linux only.
"""

import asyncio
import contextlib
import json
import os
import socket
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rollout.patience import Patience
from rollout.types import Question

START_SECONDS = 120
LONGEST = 4_000_000
"""Characters of a line."""


class EnvironmentFailed(RuntimeError):
    """An environment raised, hung or died: nothing follows for the output."""


@dataclass(slots=True)
class Live:
    """The environment of one output."""

    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter
    pool: "Environments"
    pid: int

    async def step(self, output: str, patience: Patience) -> str | None:
        """What it says to the policy's turn; None: the episode is over."""
        return await self.ask({"step": output}, patience)

    async def rewards(self, patience: Patience) -> dict[str, float]:
        """What the episode is worth, by part."""
        return await self.ask({"rewards": True}, patience)

    async def ask(self, message: Mapping[str, Any], patience: Patience) -> Any:
        """Raises EnvironmentFailed; then it is ended."""
        what = next(iter(message))
        if patience.gone:
            self.end()
            raise EnvironmentFailed(f"{what} was not called: {patience.why('calls')}")
        seconds, hung = patience.limit, True
        try:
            self.writer.write(json.dumps(message).encode() + b"\n")
            answer = json.loads(await asyncio.wait_for(self.reader.readline(), seconds) or b"null")
            hung = False
        except TimeoutError:
            self.end()
            raise EnvironmentFailed(f"{what} took longer than {seconds:g} s") from None
        except (OSError, ValueError) as error:
            answer, hung = {"error": f"{type(error).__name__}: {error}"}, False
        finally:
            patience.count(hung)
        if answer is None or "error" in answer:
            self.end()
            raise EnvironmentFailed(f"{what}: {answer['error'] if answer else 'its process ended'}")
        return answer["value"]

    def end(self) -> None:
        self.pool.kill(self.pid)
        self.close()

    def close(self) -> None:
        """Its process ends by itself when nobody is at the other end."""
        self.writer.close()


class Environments:
    """Makes environments by the function `file.py:name`."""

    def __init__(self, function: str):
        self._function = function
        self._process: subprocess.Popen | None = None
        self._control: socket.socket | None = None
        self._starting = asyncio.Lock()

    async def start(self) -> None:
        """Raises EnvironmentFailed where the function cannot be loaded."""
        async with self._starting:
            if self._process is not None and self._process.poll() is None:
                return
            self.close()
            await asyncio.to_thread(self._start)

    def _start(self) -> None:
        ours, theirs = socket.socketpair()
        child = Path(__file__).with_name("child.py")
        command = [sys.executable, "-P", str(child), self._function, str(theirs.fileno())]
        self._process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=sys.__stderr__, pass_fds=(theirs.fileno(),), start_new_session=True
        )
        theirs.close()
        ours.settimeout(START_SECONDS)
        self._control = ours
        try:
            with ours.makefile("r", encoding="utf-8") as said:
                answer = json.loads(said.readline() or '{"error": "its process ended"}')
        except TimeoutError:
            answer = {"error": f"silent for {START_SECONDS} s"}
        if "error" in answer:
            self.close()
            raise EnvironmentFailed(f"{self._function} cannot be loaded: {answer['error']}")

    async def begin(self, question: Question, seed: int, patience: Patience) -> Live:
        """The environment of an output of this question. Raises EnvironmentFailed."""
        await self.start()
        ours, theirs = socket.socketpair()
        with theirs:
            assert self._control is not None, "it was started"
            try:
                socket.send_fds(self._control, [b"0\n"], [theirs.fileno()])
            except OSError as error:
                ours.close()
                raise EnvironmentFailed(f"the process of {self._function} ended: {error}") from error
        reader, writer = await asyncio.open_unix_connection(sock=ours, limit=LONGEST)
        pid = int(await reader.readline() or 0)
        live = Live(reader=reader, writer=writer, pool=self, pid=pid)
        row = {"question": question.text, "gold": question.gold, "columns": dict(question.columns), "seed": seed}
        await live.ask({"make": row}, patience)
        return live

    def kill(self, pid: int) -> None:
        """End an output's process with all that it started."""
        if pid and self._control is not None:
            with contextlib.suppress(OSError):
                self._control.send(f"{pid}\n".encode())

    def close(self) -> None:
        if self._control is not None:
            self._control.close()  # the process ends all that it made, and itself
            self._control = None
        if self._process is not None:
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(timeout=5)
            if self._process.poll() is None:
                os.killpg(self._process.pid, 9)
                self._process.wait(timeout=30)
            self._process = None
