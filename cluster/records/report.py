"""The picture and the table of a run, from what the run directory holds. Works on a run that is not finished."""

import json
import math
import re
from collections.abc import Callable
from functools import partial
from itertools import groupby
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING

from rich.table import Table

from cluster.records.metrics import read_jsonl

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

PHASES = ("generate", "score", "train", "sync", "other")
LINES = {
    "Reward": {"reward": "reward, as optimised", "accuracy": "correct, by the rule"},
    "Reward model, before the update": {"ranking_accuracy": "pairs ranked right", "label_accuracy": "labels right"},
    "KL and clipping": {"kl": "KL (nats per token)", "teacher_kl": "KL to the teacher", "clip_fraction": "clip fraction"},
    "Gradient norm": {"grad_norm": "before clipping"},
    "Response length (tokens)": {"response_length": "mean over outputs"},
    "Engine/learner mismatch (nats)": {"mismatch_p50": "p50", "mismatch_p99": "p99", "canary_mean": "canary"},
}
"""Panel -> metric -> label."""
OVERLAP = {
    "Busy share": {"rollout_busy": "engines", "reward_busy": "reward actors", "learner_busy": "learner"},
    "Staleness and waiting steps": {
        "staleness_mean": "staleness, mean",
        "staleness_max": "at most",
        "waves_waiting": "waiting",
    },
}
"""The same, for stages whose outputs are sampled ahead."""
COLUMNS = 4


def plot(run_dir: Path) -> Path:
    """Draw `run_dir`/run.png from metrics.jsonl and evaluations.jsonl. Raises ValueError when there is no metrics.jsonl."""
    path = run_dir / "metrics.jsonl"
    if not path.is_file():
        raise ValueError(f"{path}: no such file; expected a run directory, with metrics.jsonl in it")
    evaluations = read_jsonl(file) if (file := run_dir / "evaluations.jsonl").is_file() else []
    out = run_dir / "run.png"
    draw(read_jsonl(path), evaluations, run_dir.name).savefig(out, dpi=110)
    return out


def draw(rows: list[dict], evaluations: list[dict], title: str) -> "Figure":
    """Each stage with panels of its own, of what was measured in it, and its own range of steps."""
    from matplotlib.figure import Figure

    stages = [(name or "", list(group)) for name, group in groupby(rows, lambda row: row.get("stage"))]
    panels = [_panels(stage, evaluations) for _, stage in stages]
    heights = [math.ceil(len(drawn) / COLUMNS) or 1 for drawn in panels] or [1]
    figure = Figure(figsize=(16, max(7.5, 3 * sum(heights))), layout="constrained")
    figure.suptitle(title)
    parts = figure.subfigures(len(heights), squeeze=False, height_ratios=heights)[:, 0]
    for part, height, (name, _), drawn in zip(parts, heights, stages, panels, strict=False):
        part.suptitle(name, fontweight="bold", color="dimgrey")
        for index, (heading, fill) in enumerate(drawn, 1):
            axes = part.add_subplot(height, COLUMNS, index)
            fill(axes)
            axes.set(title=heading, xlabel="step")
            axes.grid(alpha=0.3)
            axes.legend(fontsize=8)
    if not any(panels):
        figure.text(0.5, 0.5, "nothing measured", ha="center", color="grey")
    return figure


def plot_at_k(found: dict, title: str, path: Path) -> None:
    """Maj@K and Pass@K against K."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 4), layout="constrained")
    axes = figure.subplots()
    for name, label in (("pass_at_k", "Pass@K"), ("maj_at_k", "Maj@K")):
        axes.plot(list(found[name]), list(found[name].values()), marker="o", label=label)
    axes.set_xscale("log", base=2)
    axes.set(title=title, xlabel="K", ylabel="share of questions")
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(path, dpi=110)


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


def roles_table(rows: list[dict]) -> Table:
    """A column a stage: for which share of its time each role worked, how many waves waited, and how old the outputs were."""
    stages = {name or "": list(group) for name, group in groupby(rows, lambda row: row.get("stage"))}
    table = Table("", *stages, box=None)

    def add(label: str, value: Callable[[list[dict]], float], *metrics: str) -> None:
        if _measured(rows, *metrics):
            table.add_row(label, *(_show(value(stage) if _measured(stage, *metrics) else None) for stage in stages.values()))

    def of_time(metric: str, stage: list[dict]) -> float:
        return sum(row.get(metric, 0.0) for row in stage) / sum(row["seconds_step"] for row in stage)

    what = {"engines busy": "generate", "reward actors busy": "score", "learner busy": "train", "learner waits": "waiting"}
    for label, phase in what.items():
        add(label, partial(of_time, f"seconds_{phase}"), f"seconds_{phase}")
    add("waves waiting", lambda stage: fmean(row.get("waves_waiting", 0) for row in stage), "waves_waiting")
    ages = {name for row in rows for name in row if re.fullmatch(r"staleness_\d+", name)}
    for age in sorted(int(name.removeprefix("staleness_")) for name in ages):
        mean = partial(lambda name, stage: fmean(row.get(name, 0.0) for row in stage), f"staleness_{age}")
        add(f"outputs {age} versions old", mean, "staleness_max")
    return table


def read_summary(run_dir: Path) -> dict:
    """summary.json. Raises ValueError when the run has none yet."""
    path = run_dir / "summary.json"
    if not path.is_file():
        raise ValueError(f"{path}: no such file; expected the directory of a finished run")
    return json.loads(path.read_text(encoding="utf-8"))


def _panels(rows: list[dict], evaluations: list[dict]) -> list[tuple[str, Callable[["Axes"], None]]]:
    """Title and content of every panel for which one stage has numbers."""
    first, last = rows[0]["step"], rows[-1]["step"]
    held_out = [row for row in evaluations if first - 1 <= row["step"] <= last]  # from the policy that the stage began with
    panels: list[tuple[str, Callable[[Axes], None]]] = []
    if _measured(rows, "accuracy") or len(held_out) > 1:
        panels.append(("Accuracy", lambda axes: _accuracy(axes, rows, held_out)))
    for title, lines in LINES.items():
        if _measured(rows, *lines):
            panels.append((title, lambda axes, lines=lines: _lines(axes, rows, lines)))
    if _measured(rows, *(f"seconds_{phase}" for phase in PHASES)):
        panels.append(("Seconds per step", lambda axes: _seconds(axes, rows)))
    if any(row.get("staleness_max") for row in rows):
        panels += [(title, lambda axes, lines=lines: _lines(axes, rows, lines)) for title, lines in OVERLAP.items()]
    return panels


def _measured(rows: list[dict], *metrics: str) -> bool:
    return any(row.get(metric) is not None for row in rows for metric in metrics)


def _accuracy(axes: "Axes", rows: list[dict], evaluations: list[dict]) -> None:
    _line(axes, rows, "accuracy", "training outputs", alpha=0.5)
    for key, how, mark, colour in (
        ("accuracy", "sampled", "o-", "tab:orange"),
        ("greedy_accuracy", "greedy", "s--", "tab:green"),
    ):
        if points := [row for row in evaluations if row.get(key) is not None]:
            error = [1.96 * (row.get("accuracy_standard_error") or 0.0) for row in points] if how == "sampled" else None
            curve = [row["step"] for row in points], [row[key] for row in points]
            axes.errorbar(*curve, yerr=error, fmt=mark, color=colour, capsize=3, label=f"held out, {how}")
    axes.set_ylim(0, 1.02)


def _lines(axes: "Axes", rows: list[dict], lines: dict[str, str]) -> None:
    for metric, label in lines.items():
        _line(axes, rows, metric, label)
    if "mismatch_p99" in lines and any((row.get(metric) or 0.0) > 0 for row in rows for metric in lines):
        axes.set_yscale("log")  # p50 and p99 are orders of magnitude apart


def _seconds(axes: "Axes", rows: list[dict]) -> None:
    """Stacked, unless phases overlap."""
    if any(row.get("staleness_max") for row in rows):
        return _lines(axes, rows, {f"seconds_{phase}": phase for phase in (*PHASES, "waiting", "step")})
    stacks = [[row.get(f"seconds_{phase}") or 0.0 for row in rows] for phase in PHASES]
    axes.stackplot([row["step"] for row in rows], stacks, labels=PHASES, alpha=0.8)


def _line(axes: "Axes", rows: list[dict], metric: str, label: str, alpha: float = 1.0) -> None:
    if _measured(rows, metric):
        values = [math.nan if row.get(metric) is None else row[metric] for row in rows]
        axes.plot([row["step"] for row in rows], values, label=label, alpha=alpha, linewidth=1.2)


def _show(value: float | None) -> str:
    return "-" if value is None else f"{value:{_form(value)}}"


def _form(value: float) -> str:
    return "d" if isinstance(value, int) else ".3f"
