"""What a run's page shows of a run but its samples: curves, evaluations, time, ledger, alarms, configuration."""

import hashlib
import json
import math
import re
from collections.abc import Callable, Mapping, Sequence
from itertools import groupby
from pathlib import Path

import yaml

from cluster.records.balance import read_balance
from cluster.records.catalogue import METRICS
from cluster.records.metrics import read_jsonl
from cluster.records.report import LINES, OVERLAP, PHASES
from cluster.records.samples import evaluation_rows

DIGITS = 6
"""Significant ones of a number on the page; the files have all of them."""
OWN = ("name", "seed", "output", "mirror")
"""Keys of a configuration in which runs of one experiment differ."""
Ledger = Callable[[Path], dict | None]


def page_head(run_dirs: Sequence[Path], ledger: Ledger | None = None) -> dict:
    """Everything of these runs but their samples, as JSON. `ledger`: reads a run's balance, anew by default.

    Raises ValueError where a directory has no metrics.jsonl, or a file of it cannot be read.
    """
    runs = [run_facts(path, ledger or balance_facts) for path in run_dirs]
    used = {name for run in runs for stage in run["stages"] for name in stage["columns"]}
    metrics = {name: [METRICS[name].formula, METRICS[name].unit] for name in sorted(used) if name in METRICS}
    panels = [{"title": title, "lines": lines} for title, lines in {**LINES, **OVERLAP}.items()]
    return {
        "runs": runs, "metrics": metrics, "panels": panels, "phases": PHASES,
        "table": comparison(runs), "differences": differences([run["config"] for run in runs]),
    }  # fmt: skip


def run_facts(run_dir: Path, ledger: Ledger) -> dict:
    """Of one run."""
    path, config, summary = run_dir / "metrics.jsonl", run_dir / "config.yaml", run_dir / "summary.json"
    if not path.is_file():
        raise ValueError(f"{path}: no such file; expected a run directory, with metrics.jsonl in it")
    text = config.read_text(encoding="utf-8") if config.is_file() else ""
    settings = yaml.safe_load(text) or {}
    alarms = run_dir / "alarms.jsonl"
    return {
        "name": run_dir.resolve().name, "dir": str(run_dir), "seed": settings.get("seed"), "experiment": experiment(settings),
        "config": text, "finished": summary.is_file(),
        "summary": json.loads(summary.read_text(encoding="utf-8")) if summary.is_file() else None,
        "stages": stages(read_jsonl(path)), "evaluations": _short(evaluation_rows(run_dir)),
        "reward_models": _short(evaluation_rows(run_dir, "reward_model.jsonl")),
        "alarms": read_jsonl(alarms) if alarms.is_file() else [], "ledger": ledger(run_dir),
    }  # fmt: skip


def balance_facts(run_dir: Path) -> dict | None:
    """The ledger's balance with its verdict in words."""
    balance = read_balance(run_dir)
    return balance and balance.facts() | {"verdict": str(balance)}


def stages(rows: list[dict]) -> list[dict]:
    """metrics.jsonl by stage, in columns of a value or None a step."""
    out = []
    for name, group in groupby(rows, lambda row: row.get("stage")):
        part = list(group)
        names = {key: None for row in part for key, value in row.items() if isinstance(value, int | float)}
        columns = {key: [_round(row.get(key)) for row in part] for key in names if key != "step"}
        times = [row.get("time") for row in part]
        out.append({"name": name or "", "steps": [row["step"] for row in part], "times": times, "columns": columns})
    return out


def experiment(settings: Mapping[str, object]) -> str:
    """Equal for runs that differ in nothing but their seed: in a path, too, the seed's number may stand for it."""
    rest = json.dumps({key: value for key, value in settings.items() if key not in OWN}, sort_keys=True, default=str)
    seedless = re.sub(rf"(?<=[-_]){re.escape(str(settings.get('seed', 0)))}(?=[-_/\"])", "*", rest)
    return hashlib.sha256(seedless.encode()).hexdigest()[:12]


def differences(configs: Sequence[str]) -> list[list[str]]:
    """[key, its value in each run] where the configurations differ."""
    flat = [_flat(yaml.safe_load(text) or {}) for text in configs]
    keys = {key: None for values in flat for key in values}
    rows = [[key, *(values.get(key, "-") for values in flat)] for key in keys]
    return [row for row in rows if len(set(row[1:])) > 1]


def comparison(runs: Sequence[dict]) -> list[list[str]]:
    """[what, its value in each run] of what tells runs apart."""
    lines = {"seed": [_text(run["seed"]) for run in runs], "finished": ["yes" if run["finished"] else "no" for run in runs]}
    lines["steps"] = [str(sum(len(stage["steps"]) for stage in run["stages"])) for run in runs]
    for name in ("accuracy", "greedy_accuracy", "maj_at_8", "pass_at_8"):
        ends = [[row[name] for row in run["evaluations"] if row.get(name) is not None] for run in runs]
        lines[f"{name.replace('_', ' ')}, first -> last"] = [f"{e[0]:.3f} -> {e[-1]:.3f}" if e else "-" for e in ends]
    for name in ("reward", "kl", "entropy", "truncated_share", "mismatch_p99", "staleness_mean", "response_length"):
        lines[f"{name}, last step"] = [_text(last(run, name)) for run in runs]
    for phase in (*PHASES, "waiting", "step"):
        lines[f"seconds {phase}"] = [_text(total(run, f"seconds_{phase}")) for run in runs]
    lines["ledger"] = [("holds" if run["ledger"]["holds"] else "FAIL") if run["ledger"] else "-" for run in runs]
    lines["alarms"] = [str(len(run["alarms"])) for run in runs]
    return [[what, *values] for what, values in lines.items() if set(values) != {"-"}]


def last(run: dict, metric: str) -> float | None:
    """A metric's last value."""
    values = [x for stage in run["stages"] for x in stage["columns"].get(metric, ()) if x is not None]
    return values[-1] if values else None


def total(run: dict, metric: str) -> float | None:
    """A metric's sum over the run."""
    values = [x for stage in run["stages"] for x in stage["columns"].get(metric, ()) if x is not None]
    return math.fsum(values) if values else None


def _text(value: float | None) -> str:
    return "-" if value is None else f"{value:.4g}"


def _round(value: object) -> object:
    return float(f"{value:.{DIGITS}g}") if isinstance(value, float) else value


def _short(rows: list[dict]) -> list[dict]:
    return [{key: _round(value) for key, value in row.items()} for row in rows]


def _flat(value: object, name: str = "") -> dict[str, str]:
    if isinstance(value, dict) and value:
        return {k: v for key, inner in value.items() for k, v in _flat(inner, f"{name}.{key}" if name else str(key)).items()}
    if isinstance(value, list) and value and all(isinstance(inner, dict) for inner in value):
        return {k: v for i, inner in enumerate(value) for k, v in _flat(inner, f"{name}.{i}").items()}
    return {name: json.dumps(value, ensure_ascii=False, default=str)}
