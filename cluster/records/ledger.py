"""Every sample's life, append-only: leased -> generated -> scored -> trained | dropped(reason). Exactly once.

A line moves members of groups together. Legal moves are enforced in memory, so a late answer of an expired attempt is refused
and no sample is trained twice. A line carries the incarnation of the driver that wrote it; a checkpoint holds the byte
offset up to which the file belongs to the history that led to its weights; a resumed run marks what lies beyond as abandoned.
"""

import json
import os
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

from rollout.types import Sample

NEXT = {"leased": {"leased", "generated", "dropped"}, "generated": {"scored", "dropped"}, "scored": {"trained", "dropped"}}
"""What may follow what. A second lease is a re-issue under the next attempt; `trained` and `dropped` are final."""
FINAL = ("trained", "dropped")

Members = Mapping[str, Sequence[int]]
"""group id -> indices of its members."""


class LedgerError(RuntimeError):
    """An event that may not follow the sample's last one."""


class Lives:
    """Where every sample stands, in memory that does not grow with the run.

    A group's id is `<stage>/<ordinal>`, and `<stage>/<ordinal>.<refill>` of one that takes its place. An ordinal is settled
    when a step of the learner has ended it and none of its samples is open: of settled ordinals a stage keeps the number below
    which all are, and the few beyond. A group is leased whole, and refills come before the step, so nothing is forgotten.
    """

    def __init__(self) -> None:
        self._open: dict[tuple[str, int], dict[tuple[str, int], tuple[str, int]]] = {}
        """(stage, ordinal) that is not settled -> (group id, index) -> its last event and attempt."""
        self._below: dict[str, int] = {}
        self._beyond: dict[str, set[int]] = {}

    def apply(self, event: str, groups: Members, attempt: int = 0, *, ends: bool = False) -> None:
        """Move members of groups; `ends`: it is a step of the learner that ends them. Of `resumed` members, all that are under
        way, the others are as if they had never been leased. Raises LedgerError, all being as before, when a move is not legal.
        """
        if event == "resumed":
            return self._resume(groups)
        for group, indices in groups.items():
            self._check(group, indices, event, attempt)
        for group, indices in groups.items():
            samples = self._open.setdefault(ordinal_of(group), {})
            samples |= {(group, index): (event, attempt) for index in indices}
            if ends and all(state in FINAL for state, _ in samples.values()):
                self._settle(*ordinal_of(group))

    def under_way(self) -> dict[tuple[str, int], tuple[str, int]]:
        """(group id, index) -> last event and attempt, of the samples that have no end yet."""
        return {key: last for samples in self._open.values() for key, last in samples.items() if last[0] not in FINAL}

    def _resume(self, groups: Members) -> None:
        kept, before = {(group, index) for group, indices in groups.items() for index in indices}, self.under_way()
        if lost := sorted(kept - before.keys()):
            raise LedgerError(f"{lost[0][0]}[{lost[0][1]}]: resumed, and not under way")
        for (group, index), (_, attempt) in before.items():
            samples = self._open[ordinal_of(group)]
            samples[group, index] = ("generated", attempt)
            if (group, index) not in kept:
                del samples[group, index]
        self._open = {key: samples for key, samples in self._open.items() if samples}

    def _check(self, group: str, indices: Sequence[int], event: str, attempt: int) -> None:
        stage, ordinal = ordinal_of(group)
        if len(set(indices)) < len(indices):
            raise LedgerError(f"{group}: {event} of members {list(indices)}, expected each once")
        samples = self._open.get((stage, ordinal), {})
        settled = ordinal < self._below.get(stage, 0) or ordinal in self._beyond.get(stage, ())
        other = event == "trained" and any(s == "trained" and g != group for (g, _), (s, _) in samples.items())
        for index in indices:
            state, held = ("settled", -1) if settled else samples.get((group, index), ("", -1))
            first = not state and event == "leased"
            again = (state, event) == ("leased", "leased")
            if other or not first and (event not in NEXT.get(state, ()) or attempt != held + again):
                end = "the end of its ordinal by another group" if other else "the end" if state in ("settled", *FINAL) else ""
                before = end or (f"{state} (attempt {held})" if state else "nothing")
                raise LedgerError(f"{group}[{index}]: {event} (attempt {attempt}) after {before}")

    def _settle(self, stage: str, ordinal: int) -> None:
        del self._open[stage, ordinal]
        below, beyond = self._below.get(stage, 0), self._beyond.setdefault(stage, set())
        beyond.add(ordinal)
        while below in beyond:
            beyond.remove(below)
            below += 1
        self._below[stage] = below


class Ledger:
    """The ledger of one run. Lines are flushed to the system at once and to the disk at every checkpoint."""

    def __init__(self, path: Path, *, incarnation: int = 0, offset: int = 0):
        """Take up the history that ends at byte `offset`; lines past it, of a run that died, are marked abandoned."""
        self.path, self.incarnation = path, incarnation
        self._lives = Lives()
        path.touch()
        for line in history(path, offset):
            self._lives.apply(line["event"], line["groups"], line["attempt"], ends="step" in line)
        self._file = path.open("ab")
        if (end := self._file.tell()) > offset:
            with path.open("rb") as file:
                file.seek(end - 1)
                cut_off = file.read() != b"\n"
            self._file.write(b"\n" * cut_off)
            self._write({"event": "abandoned", "from": offset, "to": end + cut_off})

    def record(self, event: str, groups: Members, *, attempt: int = 0, **fields) -> None:
        """Move members of groups; `step` among the fields is the step of the learner that ended them. Raises LedgerError (and
        writes nothing) when a move is not legal."""
        self._lives.apply(event, groups, attempt, ends="step" in fields)
        self._write({"event": event, "groups": {g: list(i) for g, i in groups.items()}, "attempt": attempt, **fields})

    def take_up(self, samples: Iterable[Sample]) -> None:
        """Begin where a checkpoint was taken: these samples are generated, and whatever else was under way is leased anew."""
        kept: dict[str, list[int]] = {}
        for sample in samples:
            kept.setdefault(sample.group_id, []).append(sample.index)
        self.record("resumed", kept)

    def note(self, event: str, **fields) -> None:
        """Record what is not about samples."""
        self._write({"event": event, **fields})

    def states(self) -> dict[str, int]:
        """How many outputs are in each state that is not final (see METRICS)."""
        now = Counter(state for state, _ in self._lives.under_way().values())
        return {f"samples_{state}": now[state] for state in NEXT}

    def offset(self) -> int:
        """Bytes written so far, safely on disk when this returns."""
        os.fsync(self._file.fileno())
        return self._file.tell()

    def close(self) -> None:
        self._file.close()

    def _write(self, line: dict) -> None:
        self._file.write(json.dumps({"incarnation": self.incarnation, **line}).encode() + b"\n")
        self._file.flush()


def ordinal_of(group: str) -> tuple[str, int]:
    """(stage, ordinal) of a group's id. Raises LedgerError."""
    stage, _, name = group.rpartition("/")
    ordinal = name.partition(".")[0]
    if not stage or not ordinal.isdecimal():
        raise LedgerError(f"{group}: found no group's id, expected <stage>/<ordinal> or <stage>/<ordinal>.<refill>")
    return stage, int(ordinal)


def history(path: Path, end: int | None = None) -> Iterator[dict]:
    """The lines of the history that leads to the run's state at byte `end`: abandoned stretches left out."""
    return (line for line, abandoned in every_line(path, end) if not abandoned)


def every_line(path: Path, end: int | None = None) -> Iterator[tuple[dict, bool]]:
    """Each line about samples, and whether it was abandoned by the driver that took up the run after the one that wrote it.

    The file is read twice, a line at a time: which stretches were abandoned is written behind them.
    """
    gone = [(line["from"], line["to"]) for _, line in _lines(path, end) if line["event"] == "abandoned"]
    for at, line in _lines(path, end):
        if "groups" in line:
            yield line, any(a <= at < b for a, b in gone)


def scalings(path: Path, start: int = 0) -> Iterator[tuple[int, dict]]:
    """Lines about numbers of workers, behind byte `start`, each with the byte at which it ends."""
    if not path.exists():
        return
    with path.open("rb") as file:
        file.seek(start)
        for raw in iter(file.readline, b""):
            if raw.startswith(b"{") and b'"event": "scaled"' in raw and raw.endswith(b"}\n"):
                yield file.tell(), json.loads(raw)


def incarnations(path: Path) -> int:
    """How many drivers have written to the ledger."""
    return 1 + max((line["incarnation"] for _, line in _lines(path, None)), default=-1) if path.exists() else 0


def _lines(path: Path, end: int | None) -> Iterator[tuple[int, dict]]:
    """Lines with their byte offset. A line that a crash cut off is not one."""
    at = 0
    with path.open("rb") as file:
        for raw in file:
            if end is not None and at >= end:
                return
            if raw.startswith(b"{") and raw.rstrip().endswith(b"}"):
                yield at, json.loads(raw)
            at += len(raw)
