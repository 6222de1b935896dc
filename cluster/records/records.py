"""A run's records, as they are handed to whoever writes them."""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from cluster.records.ledger import Ledger
from cluster.records.metrics import Sinks
from cluster.records.samples import write_rows


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
