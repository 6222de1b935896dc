"""What the rules find of a run, as it goes on: a warning, and a line of alarms.jsonl."""

import logging
from collections import deque
from collections.abc import Iterator, Mapping
from pathlib import Path

from cluster.monitoring.conditions import KEPT
from cluster.monitoring.rules import RULES
from cluster.records.metrics import JsonlSink, Sink, read_jsonl

log = logging.getLogger("cohort")
QUIET = 20
"""Steps after which an alarm that was over may be raised again."""


class Alarms(Sink):
    """Looks at every step's metrics. An alarm is told when it is raised, and not again while it lasts."""

    def __init__(self, run_dir: Path, *, resume_step: int = 0):
        """Goes on from what the run's files say of the steps up to `resume_step`."""
        self._rows: deque[Mapping[str, object]] = deque(maxlen=KEPT)
        self._last: dict[str, int] = {}
        """Of each alarm, the newest step at which it lasted."""
        self._file = JsonlSink(run_dir / "alarms.jsonl", resume_step=resume_step)
        before = read_jsonl(path) if (path := run_dir / "metrics.jsonl").exists() else []
        for row in before:
            if row["step"] <= resume_step:
                for _ in self._raised(row["step"], row):
                    pass

    def write(self, step: int, metrics: Mapping[str, float | str]) -> None:
        for name, what in self._raised(step, metrics):
            advice = RULES[name].advice
            log.warning("alarm %s, step %d: %s. %s", name, step, what, advice)
            self._file.write(step, {"alarm": name, "what": what, "advice": advice})

    def close(self) -> None:
        self._file.close()

    def _raised(self, step: int, row: Mapping[str, object]) -> Iterator[tuple[str, str]]:
        """Alarms that begin at this step, and what they say."""
        if self._rows and self._rows[-1].get("stage") != row.get("stage"):
            self._rows.clear()
            self._last.clear()
        self._rows.append(row)
        rows = list(self._rows)
        for name, rule in RULES.items():
            if found := rule.when.found(rows):
                last, self._last[name] = self._last.get(name), step
                if last is None or step - last > QUIET:
                    yield name, rule.what(*found)
