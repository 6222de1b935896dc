"""Every sample's life, append-only: leased -> generated -> scored -> trained | dropped(reason). Exactly once.

A line moves members of groups together. Legal moves are enforced in memory, so a late answer of an expired attempt is refused
and no sample is trained twice. A line carries the incarnation of the driver that wrote it; a checkpoint holds the byte
offset up to which the file belongs to the history that led to its weights; a resumed run marks what lies beyond as abandoned.
"""

import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

from rollout.types import Sample

NEXT = {"leased": {"leased", "generated", "dropped"}, "generated": {"scored", "dropped"}, "scored": {"trained", "dropped"}}
"""What may follow what. A second lease is a re-issue under the next attempt; `trained` and `dropped` are final."""

Members = Mapping[str, Sequence[int]]
"""group id -> indices of its members."""


class LedgerError(RuntimeError):
    """An event that may not follow the sample's last one."""


class Ledger:
    """The ledger of one run. Lines are flushed to the system at once and to the disk at every checkpoint."""

    def __init__(self, path: Path, *, incarnation: int = 0, offset: int = 0):
        """Take up the history that ends at byte `offset`; lines past it, of a run that died, are marked abandoned."""
        self.path, self.incarnation = path, incarnation
        self._state: dict[tuple[str, int], tuple[str, int]] = {}
        self._finished: set[tuple[str, int]] = set()
        path.touch()
        for line in history(path, offset):
            self._apply(line["event"], line["groups"], line["attempt"])
        self._file = path.open("ab")
        if (end := self._file.tell()) > offset:
            with path.open("rb") as file:
                file.seek(end - 1)
                cut_off = file.read() != b"\n"
            self._file.write(b"\n" * cut_off)
            self._write({"event": "abandoned", "from": offset, "to": end + cut_off})

    def record(self, event: str, groups: Members, *, attempt: int = 0, **fields) -> None:
        """Move members of groups. Raises LedgerError (and writes nothing) when a move is not legal."""
        self._apply(event, groups, attempt)
        self._write({"event": event, "groups": {g: list(i) for g, i in groups.items()}, "attempt": attempt, **fields})

    def take_up(self, samples: Iterable[Sample]) -> None:
        """Begin where a checkpoint was taken: these samples are generated, and whatever else was under way is leased anew."""
        kept: dict[str, list[int]] = {}
        for sample in samples:
            kept.setdefault(sample.group_id, []).append(sample.index)
        self.record("resumed", kept)

    def offset(self) -> int:
        """Bytes written so far, safely on disk when this returns."""
        os.fsync(self._file.fileno())
        return self._file.tell()

    def close(self) -> None:
        self._file.close()

    def _apply(self, event: str, groups: Members, attempt: int) -> None:
        members = [(group, index) for group, indices in groups.items() for index in indices]
        if event == "resumed":
            self._state = {key: ("generated", self._state[key][1]) for key in members}
            return
        for key in members:
            state, held = self._state.get(key, ("", -1))
            first = not state and event == "leased" and key not in self._finished
            again = (state, event) == ("leased", "leased")
            if not first and (event not in NEXT.get(state, ()) or attempt != held + again):
                before = f"{state} (attempt {held})" if state else "the end" if key in self._finished else "nothing"
                raise LedgerError(f"{key[0]}[{key[1]}]: {event} (attempt {attempt}) after {before}")
        for key in members:
            if event in ("trained", "dropped"):
                del self._state[key]
                self._finished.add(key)
            else:
                self._state[key] = (event, attempt)

    def _write(self, line: dict) -> None:
        self._file.write(json.dumps({"incarnation": self.incarnation, **line}).encode() + b"\n")
        self._file.flush()


def history(path: Path, end: int | None = None) -> list[dict]:
    """The lines of the history that leads to the run's state at byte `end`: abandoned stretches left out."""
    lines = list(_lines(path, end))
    gone = [(line["from"], line["to"]) for line in lines if line["event"] == "abandoned"]
    return [x for x in lines if x["event"] != "abandoned" and not any(a <= x["at"] < b for a, b in gone)]


def incarnations(path: Path) -> int:
    """How many drivers have written to the ledger."""
    return 1 + max((line["incarnation"] for line in _lines(path, None)), default=-1) if path.exists() else 0


def _lines(path: Path, end: int | None) -> Iterator[dict]:
    """Lines with their byte offset as `at`. A line that a crash cut off is not one."""
    at = 0
    for raw in path.read_bytes()[:end].splitlines(keepends=True):
        if raw.startswith(b"{") and raw.rstrip().endswith(b"}"):
            yield {**json.loads(raw), "at": at}
        at += len(raw)
