"""The picture and the table of a run, from what the run directory holds. Works on a run that is not finished."""

import json
import math
from pathlib import Path
from typing import TYPE_CHECKING

from rich.table import Table

from cluster.records.metrics import read_jsonl

if TYPE_CHECKING:
    from matplotlib.axes import Axes

PHASES = ("generate", "score", "train", "sync", "other")
LINES = {
    "Reward": {"reward": "reward, as optimised", "accuracy": "correct, by the rule"},
    "KL and clipping": {"kl": "KL (nats per token)", "clip_fraction": "clip fraction"},
    "Response length (tokens)": {"response_length": "mean over outputs"},
    "Engine/learner mismatch (nats)": {"mismatch_p50": "p50", "mismatch_p99": "p99", "canary_mean": "canary"},
}
"""Panel -> metric -> label."""


def plot(run_dir: Path) -> Path:
    """Draw `run_dir`/run.png from metrics.jsonl and evaluations.jsonl. Raises ValueError when there is no metrics.jsonl."""
    path = run_dir / "metrics.jsonl"
    if not path.is_file():
        raise ValueError(f"{path}: no such file; expected a run directory, with metrics.jsonl in it")
    rows = read_jsonl(path)
    evaluations = read_jsonl(file) if (file := run_dir / "evaluations.jsonl").is_file() else []

    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, panels = pyplot.subplots(3, 2, figsize=(12, 10), sharex=True, layout="constrained")
    panels = list(panels.flat)
    _accuracy(panels[0], rows, evaluations)
    for axes, (title, lines) in zip(panels[1:5], LINES.items(), strict=True):
        axes.set_title(title)
        for metric, label in lines.items():
            _line(axes, rows, metric, label)
    if any((row.get(name) or 0.0) > 0 for row in rows for name in ("mismatch_p99", "canary_mean")):
        panels[4].set_yscale("log")  # p50 and p99 are orders of magnitude apart
    _seconds(panels[5], rows)
    for axes in panels:
        _shade(axes, rows)
        axes.grid(alpha=0.3)
        if axes.get_legend_handles_labels()[0]:
            axes.legend(fontsize=8)
        else:
            axes.text(0.5, 0.5, "nothing measured", ha="center", va="center", transform=axes.transAxes, color="grey")
    for axes in panels[4:]:
        axes.set_xlabel("step")
    figure.suptitle(run_dir.name)
    out = run_dir / "run.png"
    figure.savefig(out, dpi=110)
    pyplot.close(figure)
    return out


def plot_at_k(found: dict, title: str, path: Path) -> None:
    """Maj@K and Pass@K against K."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(6, 4), layout="constrained")
    for name, label in (("pass_at_k", "Pass@K"), ("maj_at_k", "Maj@K")):
        axes.plot(list(found[name]), list(found[name].values()), marker="o", label=label)
    axes.set_xscale("log", base=2)
    axes.set(title=title, xlabel="K", ylabel="share of questions")
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(path, dpi=110)
    pyplot.close(figure)


def summary_table(summary: dict) -> Table:
    """summary.json as a table: every `x_before` beside its `x_after`, then the seconds by phase."""
    table = Table("", "before", "after", "change", box=None)
    for name in [key.removesuffix("_before") for key in summary if key.endswith("_before")]:
        before, after = summary[f"{name}_before"], summary.get(f"{name}_after")
        change = f"{after - before:+{_form(after)}}" if before is not None and after is not None else "-"
        table.add_row(name.replace("_", " "), _show(before), _show(after), change)
    for phase, seconds in summary.get("seconds", {}).items():
        table.add_row(f"seconds {phase}", "", f"{seconds:.1f}", "")
    if summary.get("tokens_per_second") is not None:
        table.add_row("tokens per second", "", f"{summary['tokens_per_second']:.0f}", "")
    return table


def read_summary(run_dir: Path) -> dict:
    """summary.json. Raises ValueError when the run has none yet."""
    path = run_dir / "summary.json"
    if not path.is_file():
        raise ValueError(f"{path}: no such file; expected the directory of a finished run")
    return json.loads(path.read_text(encoding="utf-8"))


def _accuracy(axes: "Axes", rows: list[dict], evaluations: list[dict]) -> None:
    axes.set_title("Accuracy")
    _line(axes, rows, "accuracy", "training outputs", alpha=0.5)
    for key, label, mark in (("accuracy", "held out, sampled", "o-"), ("greedy_accuracy", "held out, greedy", "s--")):
        points = [row for row in evaluations if row.get(key) is not None]
        if not points:
            continue
        steps, values = [row["step"] for row in points], [row[key] for row in points]
        spread = [1.96 * (row.get("accuracy_standard_error") or 0.0) for row in points] if key == "accuracy" else None
        axes.errorbar(steps, values, yerr=spread, fmt=mark, capsize=3, label=label)
    axes.set_ylim(0, 1.02)


def _seconds(axes: "Axes", rows: list[dict]) -> None:
    axes.set_title("Seconds per step")
    timed = [row for row in rows if any(row.get(f"seconds_{phase}") is not None for phase in PHASES)]
    if timed:
        stacks = [[row.get(f"seconds_{phase}") or 0.0 for row in timed] for phase in PHASES]
        axes.stackplot([row["step"] for row in timed], stacks, labels=PHASES, alpha=0.8)


def _line(axes: "Axes", rows: list[dict], metric: str, label: str, alpha: float = 1.0) -> None:
    if any(row.get(metric) is not None for row in rows):
        values = [math.nan if row.get(metric) is None else row[metric] for row in rows]
        axes.plot([row["step"] for row in rows], values, label=label, alpha=alpha, linewidth=1.2)


def _shade(axes: "Axes", rows: list[dict]) -> None:
    """A band per stage, every other one grey, with the stage's name at its foot."""
    starts = [i for i, row in enumerate(rows) if i == 0 or row.get("stage") != rows[i - 1].get("stage")]
    for n, (first, end) in enumerate(zip(starts, [*starts, len(rows)][1:], strict=True)):
        left, right = rows[first]["step"] - 0.5, rows[end - 1]["step"] + 0.5
        axes.axvspan(left, right, color="grey", alpha=0.10 if n % 2 == 0 else 0.0, linewidth=0)
        place = axes.get_xaxis_transform()
        axes.text(
            (left + right) / 2, 0.02, rows[first].get("stage", ""), transform=place, ha="center", fontsize=8, color="dimgrey"
        )


def _show(value: float | None) -> str:
    return "-" if value is None else f"{value:{_form(value)}}"


def _form(value: float) -> str:
    return "d" if isinstance(value, int) else ".3f"
