"""What a person sees while a run goes on: a live table on a terminal, plain lines otherwise."""

import logging
import sys
import time
from collections import deque
from collections.abc import Mapping
from datetime import timedelta

from rich.console import Console, Group
from rich.live import Live
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

from cluster.records.metrics import Sink

COLUMNS = {
    "reward": "reward", "acc": "accuracy", "len": "response_length", "prog": "programs", "kl": "kl", "clip": "clip_fraction",
    "teach": "teacher_kl", "grad": "grad_norm", "rank": "ranking_accuracy", "label": "label_accuracy",
    "explained": "critic_explained_variance", "mism50": "mismatch_p50", "mism99": "mismatch_p99",
    "tok/s": "tokens_per_second", "gen": "seconds_generate", "score": "seconds_score", "train": "seconds_train",
    "sync": "seconds_sync", "other": "seconds_other",
}  # fmt: skip
"""Column of the console -> metric."""
SPARED = (
    *("other", "sync", "mism50", "score", "prog", "clip", "explained", "label", "rank", "mism99", "tok/s", "grad", "kl"),
    *("teach", "gen", "train", "len", "acc", "reward"),
)
"""The columns, least wanted first, as a narrow terminal leaves them out."""
RECENT = 20
"""Steps that the time left is reckoned from."""


class ConsoleSink(Sink):
    """A live table with a progress bar on a terminal; one plain line a step otherwise."""

    def __init__(self, total_steps: int, console: Console | None = None, rows: int = 12):
        self._total, self._console = total_steps, console or Console()
        self._recent: deque[tuple[str, list[str]]] = deque(maxlen=rows)
        self._ends: deque[float] = deque(maxlen=RECENT + 1)
        """When the last steps ended."""
        self._live = None
        if self._console.is_terminal:
            columns = BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn()
            self._progress = Progress(TextColumn("{task.description}"), *columns)
            self._task = self._progress.add_task("", total=total_steps)
            self._live = Live(self._progress, console=self._console, refresh_per_second=4)
            self._live.start()

    def write(self, step: int, metrics: Mapping[str, float | str]) -> None:
        stage = str(metrics.get("stage", ""))
        cells = [_cell(metrics.get(name)) for name in COLUMNS.values()]
        self._ends.append(time.monotonic())
        if self._live is None:
            shown = " ".join(f"{name} {cell}" for name, cell in zip(COLUMNS, cells, strict=True) if cell != "-")
            self.note(f"{clock()} {stage} {step}/{self._total}{self._left(step)} {shown}")
            return
        self._recent.append((f"{stage} {step}", cells))
        self._progress.update(self._task, completed=step, description=stage)
        self._live.update(Group(self._table(), self._progress))

    def _left(self, step: int) -> str:
        if len(self._ends) < 2:
            return ""
        seconds = round((self._ends[-1] - self._ends[0]) / (len(self._ends) - 1) * (self._total - step))
        return f" (about {timedelta(seconds=seconds)} left)"

    def _table(self) -> Table:
        """The last steps, in as many columns as fit."""
        known = {name: i for i, name in enumerate(COLUMNS) if any(row[i] != "-" for _, row in self._recent)}
        for spared in ("", *SPARED):
            known.pop(spared, None)
            table = Table("step", *known, box=None, pad_edge=False)
            for name, row in self._recent:
                table.add_row(name, *(row[i] for i in known.values()))
            if self._console.measure(table, options=self._console.options.update(width=1000)).maximum <= self._console.width:
                break
        return table

    def note(self, text: str) -> None:
        """A line of its own, such as an evaluation's result."""
        self._console.print(text, markup=False, highlight=False, soft_wrap=True)

    def close(self) -> None:
        if self._live is not None:
            self._live.stop()


def log_to_stderr() -> None:
    """Show what the project logs."""
    log = logging.getLogger("cohort")
    log.setLevel(logging.INFO)
    log.addHandler(_ToStderr())


class _ToStderr(logging.Handler):
    """Lines with their time. Looks sys.stderr up at every line: a live display replaces it while it is shown."""

    def emit(self, record: logging.LogRecord) -> None:
        print(clock(), self.format(record), file=sys.stderr)


def clock() -> str:
    return time.strftime("%H:%M:%S")


def _cell(value: float | str | None) -> str:
    return "-" if value is None else value if isinstance(value, str) else f"{value:.3g}"
