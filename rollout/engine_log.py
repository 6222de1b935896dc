"""What the processes of an engine wrote: vLLM logs the cause of a failure there and tells its caller only to look for it."""

import os
import re
from pathlib import Path

COLOUR = re.compile(r"\x1b\[[0-9;]*m")
_RAISED = re.compile(r"\((?P<process>\w+)[^)]*\) ERROR [^\]]*\] (?P<error>[\w.]+(?:Error|Exception|Interrupt|Exit)\b.*)")
"""The last line of a traceback, as vLLM logs it: (Worker pid=7) ERROR 01-31 12:00:00 [core.py:1] ValueError: why."""


class EngineLog:
    """This process's output from now on, where that is a file, as it is under Ray; engines inherit it."""

    def __init__(self) -> None:
        target = Path(os.readlink("/proc/self/fd/1"))
        self.path = target if target.is_file() else None
        self._start = target.stat().st_size if self.path else 0

    def explain(self, error: Exception) -> str:
        """The cause in one line and the path of the whole log; what the error says itself where there is none."""
        if self.path is None:
            return str(error)
        with self.path.open("rb") as file:
            file.seek(self._start)
            lines = COLOUR.sub("", file.read().decode(errors="replace")).splitlines()
        raised = [found for line in lines if (found := _RAISED.search(line))]
        # What fails in a worker fails again in the core, in other words, and then here.
        for process in ("Worker", "EngineCore"):
            if causes := [found["error"] for found in raised if found["process"].startswith(process)]:
                return f"{causes[-1]} (log: {self.path})"
        return f"{error} (log: {self.path})"
