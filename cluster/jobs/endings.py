"""How a job ended, from its state and its log."""

import re
from itertools import takewhile

from cluster.stopping import EXIT_CODE, STOPPED

ENDED = ("SUCCEEDED", "FAILED", "STOPPED")
FAILED = 3
LINES = 20
"""Of what a job says at its end."""
_SAID = re.compile(r"^(?:error|the run failed): .*$", re.MULTILINE)
"""How the command begins what it says last; nothing else that it prints begins a line so."""
_LEFT = re.compile(rf"^{EXIT_CODE} (\d+)$", re.MULTILINE)


def exit_code(status: str, driver: int | None, log: str) -> int | None:
    """That of a job's command: 0, 2, 3 or 4; None where it has not ended. Ray keeps none of a job that it stopped, whose log
    has it unless the command was killed: then it is that of a failure."""
    if status not in ENDED:
        return None
    if status == "STOPPED":
        found = _LEFT.findall(log)
        return int(found[-1]) if found else FAILED
    return 0 if status == "SUCCEEDED" else driver if driver in (2, FAILED, STOPPED) else FAILED


def first_error(log: str, message: str = "") -> str:
    """What went wrong first: what the command says at its end; else the first exception in its log, of which later ones are
    consequences; else the log's last line, or what Ray says (`message`) of a job without a log."""
    if said := _SAID.search(log):
        end = _LEFT.search(log, said.end())
        return "\n".join(log[said.start() : end.start() if end else None].splitlines()[:LINES])
    if raised := _first_exception(log.splitlines()):
        return raised
    said, why = ([line for line in text.splitlines() if line.strip()] for text in (log, message))
    return said[-1] if said else why[0] if why else "it said nothing"


def _first_exception(lines: list[str]) -> str:
    """The exception, and where it was raised; empty where there is none."""
    begins = next((i for i, line in enumerate(lines) if line.startswith("Traceback (most recent call last)")), len(lines))
    block = list(takewhile(lambda line: line.startswith(" ") or not line, lines[begins + 1 :]))
    error = lines[begins + 1 + len(block) :][:1]
    return "\n".join(error + [line for line in block if line.startswith("  File ")][-1:]) if error else ""
