"""Outputs a second and the driver's cores by the number of rollout workers.

    python benchmarks/scaling.py [--seconds 10] [--out scaling.json]

The real loop, sampler, buffer, ledger and records over simulated workers, each of which samples its 64 outputs of a step in
some seconds. PASS: up to 1,024 workers at least 90% of what as many times one worker makes, on less than one core.
"""

import logging
from pathlib import Path
from typing import Annotated

import typer
from simulated import GROUP, WARM, Simulated, apart, run, show

WORKERS = (1, 4, 16, 64, 256, 1_024)
LEAST_LINEAR, MOST_CORES = 0.9, 1.0


def scaled(workers: int, seconds: float) -> dict[str, float]:
    """Of a run with so many workers: outputs a second, and the cores that the driver uses."""
    logging.disable(logging.CRITICAL)
    _, marks, _ = run(lambda tokenizer: Simulated(tokenizer, workers, seconds), 8 * workers, WARM + 4)
    wall, cpu = marks[-1].wall - marks[0].wall, marks[-1].cpu - marks[0].cpu
    return {"workers": workers, "rate": 8 * workers * GROUP * (len(marks) - 1) / wall, "cores": cpu / wall}


def main(
    seconds: Annotated[float, typer.Option(help="For which a worker samples its share of a step.")] = 10.0,
    out: Annotated[Path | None, typer.Option(help="A JSON file for the figures.")] = None,
) -> None:
    rows = [apart("scaling", "scaled", count, seconds) for count in WORKERS]
    for row in rows:
        row["of linear"] = row["rate"] / rows[0]["rate"] / row["workers"]
    show(rows, all(row["of linear"] >= LEAST_LINEAR and row["cores"] < MOST_CORES for row in rows), out)


if __name__ == "__main__":
    typer.run(main)
