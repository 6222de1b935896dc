"""What became of runs, as their directories tell it."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from cluster.records.metrics import read_jsonl
from cluster.run.directory import ENDED, finished, in_use, run_config

TAIL = 2**16
"""Bytes; a line of metrics.jsonl is shorter."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RunState:
    """Of one run."""

    name: str
    directory: str
    state: str
    """running, finished, stopped, failed; crashed: its driver was killed; unreadable."""
    step: int
    steps: int
    """Of all stages; 0 for an evaluation."""
    accuracy: float | None
    """Held out, the newest."""
    written: float
    """When anything of it was last written, in seconds since 1970."""
    why: str
    """Of a state that needs a reason."""


def runs(folder: Path) -> list[RunState]:
    """Of the runs in a folder, or of the folder itself where that is one, the newest first."""
    found = [folder] if (folder / "config.yaml").is_file() else sorted(path.parent for path in folder.glob("*/config.yaml"))
    return sorted(map(state_of, found), key=lambda run: -run.written)


def state_of(run_dir: Path) -> RunState:
    """Of a directory with a run's config.yaml."""
    try:
        config = run_config(run_dir)
        name, steps, done = config.name, sum(stage.steps for stage in config.stages), finished(run_dir, config) is not None
        state, why = ("running", "") if in_use(run_dir) else ("finished", "") if done else _left(run_dir)
        rows = read_jsonl(path) if (path := run_dir / "evaluations.jsonl").is_file() else []
        step = next((row["step"] for row in reversed(list(_last_rows(run_dir / "metrics.jsonl")))), 0)
    except (ValueError, KeyError, OSError) as error:
        name, steps, step, rows, state, why = run_dir.name, 0, 0, [], "unreadable", str(error).partition("\n")[0]
    accuracy = next((row["accuracy"] for row in reversed(rows) if row.get("accuracy") is not None), None)
    written = max((path.stat().st_mtime for path in run_dir.iterdir() if path.name != "lock"), default=0.0)
    return RunState(
        name=name, directory=str(run_dir), state=state, step=step, steps=steps, accuracy=accuracy, written=written, why=why
    )  # fmt: skip


def _left(run_dir: Path) -> tuple[str, str]:
    """How a run that nobody drives was left, and why."""
    if not (run_dir / ENDED).is_file():
        return "crashed", f"its driver was killed; `cohort resume {run_dir}` goes on"
    left = json.loads((run_dir / ENDED).read_text(encoding="utf-8"))
    return left["state"], left["why"].partition("\n")[0]


def _last_rows(path: Path) -> Iterator[dict]:
    """The last whole lines of a jsonl file that may be long."""
    if path.is_file():
        with path.open("rb") as file:
            file.seek(max(0, path.stat().st_size - TAIL))
            for line in file.read().split(b"\n")[1 if path.stat().st_size > TAIL else 0 : -1]:
                yield json.loads(line)
