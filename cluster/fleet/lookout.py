"""The processes of one node as its kernel knows them: who is stopped or stuck cannot say so."""

import os
import resource
import signal
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from rollout.leftovers import running, sweep

DYING_S = 3.0
"""For a process to write its stacks and end."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Process:
    name: str
    state: str
    """The kernel's letter: T and t for stopped, Z for dead, D for one that waits for a disk."""
    seconds: float
    """Of a core, used until now."""


class Lookout:
    """Looks at processes of its node, and ends them. An actor on other nodes than the driver's."""

    def __init__(self):
        self._ended: list[int] = []

    def look(self, pids: Sequence[int]) -> dict[int, Process]:
        """Those that exist."""
        found = {}
        for pid in pids:
            with suppress(FileNotFoundError, ProcessLookupError):
                name, _, rest = Path(f"/proc/{pid}/stat").read_text().partition("(")[2].rpartition(")")
                state, *fields = rest.split()
                seconds = (int(fields[10]) + int(fields[11])) / os.sysconf("SC_CLK_TCK")
                found[pid] = Process(name=name, state=state, seconds=seconds)
        return found

    def end(self, pids: Sequence[int]) -> None:
        """Kill them, stopped ones too."""
        self._ended += pids
        for pid in pids:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)

    def sweep(self) -> None:
        """Remove what dead processes left on its node, once those that it ended are gone."""
        until = time.monotonic() + DYING_S
        while any(map(running, self._ended)) and time.monotonic() < until:
            time.sleep(0.02)
        sweep()

    def stacks(self, actors: Mapping[str, Sequence[int]]) -> str:
        """End the processes of actors, with what each was doing: Python writes the stacks of all threads of a process that gets
        SIGABRT to its standard error, where PYTHONFAULTHANDLER is set."""
        # An actor's own process, the first, is the last to end: Ray kills what a dead one started.
        found = {pid: (name, process) for name, pids in actors.items() for pid, process in self.look(pids[::-1]).items()}
        for pid in found:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGSTOP)  # none of them reacts to the end of another
        text = ""
        for pid, (name, process) in found.items():
            words = "is stopped\n" if process.state in "Tt" else _last_words(pid)
            text += f"-- {name}, process {pid} ({process.name}): {words}"
        self.end(list(found))
        return text


def _last_words(pid: int) -> str:
    try:
        errors = Path(os.readlink(f"/proc/{pid}/fd/2"))
        before = errors.stat().st_size if errors.is_file() else 0
        resource.prlimit(pid, resource.RLIMIT_CORE, (1, 1))  # no core dump, neither to a file nor to a program
        os.kill(pid, signal.SIGABRT)
        os.kill(pid, signal.SIGCONT)
        until = time.monotonic() + DYING_S
        while running(pid) and time.monotonic() < until:
            time.sleep(0.02)
        if not errors.is_file():
            return f"its stacks went to {errors}\n"
        with errors.open("rb") as file:
            file.seek(before)
            return "\n" + file.read().decode(errors="replace")
    except OSError as error:
        return f"{error}\n"
