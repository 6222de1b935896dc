"""A run's records, as they are handed to whoever writes them."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from cluster.records.ledger import Ledger
from cluster.records.metrics import Sinks
from cluster.records.samples import write_rows

SHOWN = 4
"""Groups of a step whose outputs sinks are shown."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Records:
    """Where a run is recorded."""

    dir: Path
    """The run directory, absolute: actors have working directories of their own."""
    ledger: Ledger
    sinks: Sinks

    def leave(self, name: str, rows: Iterable[dict | list]) -> None:
        """Write a whole jsonl file of the run directory; a run that cannot goes on without it."""
        with self.sinks.dispensable(self.dir / name):
            write_rows(self.dir / name, rows)

    def sampled(self, step: int, rows: Iterable[dict]) -> None:
        """A step's outputs, as `sample_rows` makes them: all to samples/step_N.jsonl, the first groups' to the sinks."""
        shown: list[dict] = []
        groups: set[str] = set()

        def passing() -> Iterator[dict]:
            for row in rows:
                groups.add(row["group"])
                if len(groups) <= SHOWN:
                    shown.append(row)
                yield row

        self.leave(f"samples/step_{step}.jsonl", passing())
        self.sinks.sampled(step, shown)
