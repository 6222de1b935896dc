"""The balance of a run's ledger: what became of every sample, by stage. The file is read a line at a time."""

from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from rich.console import Console
from rich.table import Table

from cluster.records.ledger import LedgerError, Lives, every_line, ordinal_of, scalings

COUNTS = ("leased", "re-issued", "generated", "scored", "trained", "dropped", "under way", "abandoned")
"""Samples: asked for; asked for again, their worker being gone; and what came of them. Those that a dead driver had asked for
after its checkpoint, and the next one asked for anew, are abandoned, and counted nowhere else."""
REASONS = 50
"""So many of a stage's reasons are told apart."""
NAMED = 5
"""So many offenders are named."""


class StageBalance:
    """The samples of one stage."""

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()
        self.reasons: Counter[str] = Counter()
        self.asked, self.trained = Ranges(), Ranges()
        """Ordinals that were asked for, and those of which a sample was trained."""

    def take(self, line: dict, ordinal: int, members: int) -> None:
        """A legal line about members of a group."""
        event = "re-issued" if line["event"] == "leased" and line["attempt"] else line["event"]
        self.counts[event] += members
        if event == "dropped":
            why = " ".join(line.get("reason", "").split())[:80]
            self.reasons[why if why in self.reasons or len(self.reasons) < REASONS else "other reasons"] += members
        if event in ("leased", "trained"):
            getattr(self, "asked" if event == "leased" else "trained").add(ordinal)

    def take_back(self, state: str, attempt: int, *, kept: bool) -> None:
        """A sample that a dead driver left under way, `kept` as generated."""
        passed = ("leased", "generated", "scored")
        self.counts.subtract(passed[2 if kept else 0 : passed.index(state) + 1])
        if not kept:
            self.counts.update({"re-issued": -attempt, "abandoned": 1})

    def lines(self) -> Iterator[tuple[str, str]]:
        """(what, value)."""
        yield "ordinals asked", str(self.asked)
        yield "ordinals trained", str(self.trained)
        yield from ((what, str(self.counts[what])) for what in COUNTS)
        yield "dropped because", "; ".join(f"{n} {why}" for why, n in self.reasons.most_common()) or "of nothing"


class Ranges:
    """Numbers that come nearly in order, in memory that grows with their gaps only."""

    def __init__(self) -> None:
        self.bounds: list[list[int]] = []
        """[first, last] of each stretch, in order."""

    def add(self, number: int) -> None:
        at = len(self.bounds)
        while at and self.bounds[at - 1][0] > number:
            at -= 1
        if at and number <= self.bounds[at - 1][1] + 1:
            self.bounds[at - 1][1] = max(self.bounds[at - 1][1], number)
        else:
            self.bounds.insert(at, [number, number])
            at += 1
        if at < len(self.bounds) and self.bounds[at][0] == self.bounds[at - 1][1] + 1:
            self.bounds[at - 1][1] = self.bounds.pop(at)[1]

    def gaps(self) -> Iterator[tuple[int, int]]:
        """First and last of what is missing from 0 to the last number."""
        for (_, end), (start, _) in zip([[0, -1], *self.bounds], self.bounds, strict=False):
            if start > end + 1:
                yield end + 1, start - 1

    def __str__(self) -> str:
        shown = [_range(*stretch) for stretch in self.bounds[:NAMED]]
        return ", ".join(shown + [f"... in {len(self.bounds)} stretches"] * (len(self.bounds) > NAMED)) or "none"


class Balance:
    """A whole ledger: by stage, and what in it must not be."""

    def __init__(self, path: Path, *, finished: bool):
        """`finished`: nothing may be under way any more."""
        self.stages: dict[str, StageBalance] = {}
        self.scaled = [line for _, line in scalings(path) if line["from"] != line["to"]]
        """How numbers of workers changed while the run lived."""
        self.offences: list[str] = []
        """The first ones, in words."""
        self.offenders = self.under_way = 0
        lives = Lives()
        for line, abandoned in every_line(path):
            if line["event"] == "resumed" and not abandoned:
                self._resume(lives, line)
                continue
            for group, indices in line["groups"].items():
                self._take(lives, {**line, "groups": {group: indices}}, group, len(indices), abandoned)
        for (group, index), (state, _) in lives.under_way().items():
            self.under_way += 1
            self._of(group).counts["under way"] += 1
            if finished:
                self._offend(f"{group}[{index}]: {state}, and neither trained nor dropped")
        for name, stage in self.stages.items():
            for gap in stage.asked.gaps():
                self._offend(f"{name}/{_range(*gap)}: never asked for, and later ones were")

    def __str__(self) -> str:
        if self.offenders:
            more = f"; and {self.offenders - NAMED} more" if self.offenders > NAMED else ""
            return f"ledger: FAIL, {self.offenders} times: {'; '.join(self.offences)}{more}"
        if self.under_way:
            return f"ledger: holds so far: nothing twice, nothing lost, {self.under_way} samples under way"
        return "ledger: PASS: every ordinal asked for is trained or dropped, none twice"

    def facts(self) -> dict:
        """For programs."""
        scaled = [{name: line[name] for name in ("role", "from", "to", "step")} for line in self.scaled]
        return {"holds": not self.offenders, "offences": self.offences, "scaled": scaled} | {
            "stages": {
                name: {
                    "ordinals_asked": stage.asked.bounds,
                    "ordinals_trained": stage.trained.bounds,
                    "samples": {what: stage.counts[what] for what in COUNTS},
                    "dropped_because": dict(stage.reasons),
                }
                for name, stage in self.stages.items()
            }
        }

    def table(self) -> Table:
        """A column a stage."""
        table = Table("samples", *self.stages, box=None)
        for parts in zip(*(stage.lines() for stage in self.stages.values()), strict=True):
            table.add_row(parts[0][0], *(value for _, value in parts))
        return table

    def lines(self) -> list[str]:
        """A line a stage."""
        parts = {name: [f"{what} {value}" for what, value in stage.lines()] for name, stage in self.stages.items()}
        return [f"ledger: {name}: {', '.join(said)}" for name, said in parts.items()]

    def workers(self) -> list[str]:
        """The same in words, a line a role."""
        said: dict[str, str] = {}
        for line in self.scaled:
            before = said.get(line["role"], f"{line['role']} workers: {line['from']}")
            said[line["role"]] = f"{before}, {line['to']} after step {line['step']}"
        return list(said.values())

    def _take(self, lives: Lives, line: dict, group: str, members: int, abandoned: bool) -> None:
        try:
            stage = self._of(group)
            if not abandoned:
                lives.apply(line["event"], line["groups"], line["attempt"], ends="step" in line)
                stage.take(line, ordinal_of(group)[1], members)
            elif line["event"] == "leased" and not line["attempt"]:
                stage.counts["abandoned"] += members
        except LedgerError as error:
            self._offend(str(error))

    def _resume(self, lives: Lives, line: dict) -> None:
        """Another driver goes on: what it did not find in the checkpoint is asked for anew, and the rest scored again."""
        before = lives.under_way()
        lives.apply("resumed", line["groups"])
        kept = lives.under_way()
        for (group, index), (state, attempt) in before.items():
            self._of(group).take_back(state, attempt, kept=(group, index) in kept)

    def _of(self, group: str) -> StageBalance:
        return self.stages.setdefault(ordinal_of(group)[0], StageBalance())

    def _offend(self, what: str) -> None:
        self.offenders += 1
        self.offences += [what] * (len(self.offences) < NAMED)


def read_balance(run_dir: Path) -> Balance | None:
    """Of a run; None where it has no ledger."""
    path = run_dir / "ledger.jsonl"
    return Balance(path, finished=(run_dir / "summary.json").is_file()) if path.is_file() else None


def show(balance: Balance) -> None:
    """On a terminal as a table, in a log as lines; then whether it holds."""
    console = Console()
    if console.is_terminal:
        console.print(balance.table())
    else:
        print(*balance.lines(), sep="\n")
    print(*balance.workers(), balance, sep="\n")


def _range(first: int, last: int) -> str:
    return str(first) if first == last else f"{first}-{last}"
