"""A weight update from the learner to an engine, by its parts: what is sent, hashed, loaded, read back and asked.

    python benchmarks/sync.py [--publishes 8] [--shape smollm2-135m] [--out sync.json]

One engine and one learner rank as a run starts them publish several times, in bfloat16, a randomly initialised model of
SmolLM2-135M's shape; the medians are of all but the first. Beside it: how fast this machine copies as many bytes in memory.
PASS: an update and its canary within 0.3 s, and the learner's copy into shared memory, digests included, at half of the
memory's rate.
"""

import json
import logging
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Annotated

import torch
import typer
from gpu_shapes import SHAPES, build, write

from cluster.config.run_config import RunConfig
from cluster.fleet.versions import Serving
from cluster.records.clock import Clock
from cluster.records.ledger import Ledger
from cluster.run.launch import load_data, started
from cluster.stopping import Stop

MOST_S, LEAST = 0.3, 0.5
PARTS = ("gather", "copy", "stage", "load", "verify", "canary", "canary_learner")


def configuration(folder: Path) -> RunConfig:
    stage = {"algorithm": "grpo", "reward": "rule", "steps": 1, "questions_per_step": 8, "samples_per_question": 8}
    return RunConfig.model_validate(
        {
            "name": "sync", "output": str(folder / "run"), "model": {"path": str(folder / "model")},
            "data": {"questions": {"task": "chained-arithmetic", "rows": 64}, "prompt": {"template": "plain"}, "hold_out": 8},
            "rollout": {"dtype": "bfloat16", "max_new_tokens": 64, "kv_cache_gb": 0.5},
            "learner": {"compute_dtype": "bfloat16"}, "cluster": {"dashboard": False},
            "stages": [stage | {"optimizer": {"learning_rate": 1e-6}}],
        }
    )  # fmt: skip


def published(folder: Path, publishes: int) -> list[dict[str, float]]:
    """Seconds of each update, by part; `total` is the whole's."""
    config, rows = configuration(folder), []
    with Stop() as stop, started(config, 0, stop) as roles:
        serving = Serving(roles, load_data(config)[0].evaluation, Clock(stop), Ledger(folder / "ledger.jsonl"))
        for _ in range(publishes + 1):
            serving.trained()
            began = time.perf_counter()
            serving.publish()
            rows.append({"total": time.perf_counter() - began, **roles.split})
            print(", ".join(f"{part} {seconds:.3f}" for part, seconds in rows[-1].items()), flush=True)
    return rows[1:]


def copying(nbytes: int) -> float:
    """Bytes a second of a copy in memory, on all cores."""
    source, target = torch.ones(nbytes, dtype=torch.uint8), torch.zeros(nbytes, dtype=torch.uint8)
    seconds = []
    for _ in range(5):
        began = time.perf_counter()
        target.copy_(source)
        seconds.append(time.perf_counter() - began)
    return nbytes / median(seconds)


def main(
    publishes: Annotated[int, typer.Option(help="After the first.")] = 8,
    shape: Annotated[str, typer.Option(help=f"One of {', '.join(SHAPES)}.")] = "smollm2-135m",
    out: Annotated[Path | None, typer.Option(help="A JSON file for the figures.")] = None,
) -> None:
    logging.getLogger("cohort").setLevel(logging.WARNING)
    nbytes = 2 * sum(p.numel() for p in build(shape, torch.bfloat16, torch.device("meta")).parameters())
    memory = copying(nbytes)
    with tempfile.TemporaryDirectory() as folder:
        write(Path(folder) / "model", shape, torch.device("cpu"))
        rows = published(Path(folder), publishes)
    seconds = {part: median(row.get(part, 0.0) for row in rows) for part in ("total", *PARTS)}
    seconds["rest"] = median(row["total"] - sum(row.get(part, 0.0) for part in PARTS) for row in rows)
    rate = nbytes / seconds["copy"]
    print(f"\n{shape}, {nbytes / 1e6:.0f} MB, medians of {publishes} updates\n" + f"{'':<16}{'s':>8}")
    for part, taken in seconds.items():
        print(f"{part:<16}{taken:>8.3f}")
    print(f"copies in memory {memory / 1e9:.1f} GB/s, the learner's into shared memory {rate / 1e9:.1f}: {rate / memory:.0%}")
    good = {f"total at most {MOST_S} s": seconds["total"] <= MOST_S, f"copy at least {LEAST:.0%}": rate >= LEAST * memory}
    for what, passed in good.items():
        print(f"{what}: {'PASS' if passed else 'FAIL'}")
    if out:
        figures = {"seconds": seconds, "bytes": nbytes, "memory": memory, "copy": rate, "updates": rows}
        out.write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")
    raise typer.Exit(not all(good.values()))


if __name__ == "__main__":
    typer.run(main)
