"""Grafana's boards, from one table of panels over the catalogue."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from cluster.records.catalogue import METRICS, OF_SYNC, exported

RUN = '{run=~"$run"}'
"""Which runs a board shows."""


@dataclass(frozen=True, slots=True)
class Panel:
    """Curves over time, of one unit."""

    title: str
    metrics: tuple[str, ...]
    """Names in the catalogue, or whole queries."""
    unit: str = ""
    """Of queries; a metric has its own."""


def _phases(*names: str) -> tuple[str, ...]:
    return tuple(f"seconds_{name}" for name in names)


def _shares(*names: str) -> tuple[str, ...]:
    return tuple(f"{name}_share" for name in names)


BOARDS: Mapping[str, Sequence[Panel]] = {
    "learning": (
        Panel("Reward", ("reward", "model_reward")),
        Panel("Right and well-formed", ("accuracy", "format")),
        Panel("Held-out accuracy", tuple(f"ray_cohort_evaluation_{x}{RUN}" for x in ("accuracy", "greedy_accuracy")), "share"),
        Panel("Groups", ("zero_variance_share", "all_right_share", "all_wrong_share", "thin_group_share")),
        Panel("Length of outputs", ("response_length",)),
        Panel("Entropy", ("entropy",)),
        Panel("KL", ("kl", "reward_kl", "teacher_kl")),
        Panel("Clipped and cut tokens", ("clip_fraction", "cut_share", "effective_share")),
        Panel("Ratios", ("ratio_mean", "behaviour_mean")),
        Panel("Gradient norm", ("grad_norm", "critic_grad_norm")),
        Panel("Learning rate", ("learning_rate", "critic_learning_rate")),
        Panel("Objective", ("objective",)),
        Panel("Margin of pairs", ("margin",)),
        Panel("Pairs ranked right by the policy", ("ranked",)),
        Panel("Critic: value loss", ("critic_value_loss",)),
        Panel("Critic: explained variance and clipping", ("critic_explained_variance", "critic_value_clip_fraction")),
        Panel("Reward model: loss", ("ranking_loss", "label_loss")),
        Panel("Reward model: right before the update", ("ranking_accuracy", "label_accuracy")),
        Panel("Reward model: spread of an ensemble", ("reward_spread",)),
    ),
    "health": (
        Panel("Engine/learner mismatch", tuple(f"mismatch_{x}" for x in ("mean", "p50", "p90", "p99", "max"))),
        Panel("Canary after a weight update", ("canary_mean",)),
        Panel("Truncated outputs", ("truncated_share",)),
        Panel("Staleness", ("staleness_mean", "staleness_max", "staleness_bound")),
        Panel("Steps that are scored and wait", ("waves_waiting",)),
        Panel("Programs of an output", ("programs",)),
        Panel("Guessed tokens that are taken", ("accepted_share",)),
        Panel("Trained tokens of a step", ("trained_tokens",)),
        Panel("Padding", ("padding_share",)),
    ),
    "throughput": (
        Panel("Sampled tokens per second", ("tokens_per_second",)),
        Panel("Seconds of a step", _phases("step", "generate", "score", "train", "sync", "other", "waiting")),
        Panel("Seconds of a weight update", _phases(*(f"sync_{part}" for part in OF_SYNC))),
        Panel("Busy", ("rollout_busy", "reward_busy", "learner_busy")),
        Panel("Workers", ("rollout_workers", "reward_workers")),
        Panel("Nodes: CPU", ("ray_node_cpu_utilization",), "percent"),
        Panel("Nodes: memory in use", ("ray_node_mem_used / ray_node_mem_total",), "share"),
    ),
    "faults": (
        Panel("Outputs without a score", _shares("unscored", "rejected", "unscorable", "killed", "error")),
        Panel("Time of judging", ("judge_p50", "judge_p99")),
        Panel("Updates left out", ("skipped", "no_signal", "critic_skipped", "critic_no_signal")),
        Panel("Workers replaced", ("deaths",)),
        Panel("Outputs that were asked for again", ("retried_share",)),
        Panel("Outputs under way", ("samples_leased", "samples_generated", "samples_scored")),
        Panel("Steps", ("step",)),
        Panel("Version", ("version",)),
        Panel("Life of the run", ("life",)),
        Panel("Stage", ("stage_number",)),
        Panel("Alarms", ('sum by (alertname, run) (ALERTS{alertname=~"Cohort.*"}) or on () vector(0)',), "alarms"),
    ),
}
"""By the board's name."""
UNITS = {"share": "percentunit", "s": "s", "percent": "percent"}
"""Those that Grafana has a name for."""


def queries(panel: Panel) -> Iterator[tuple[str, str]]:
    """(PromQL, what a curve is called) of a panel."""
    for name in panel.metrics:
        if name in METRICS:
            yield f"ray_{exported(name)}{RUN}", f"{name}, {{{{run}}}}"
        else:
            yield name, ""


def board(name: str) -> dict:
    """A board as Grafana imports it."""
    run = {
        "name": "run", "type": "query", "label": "run", "query": "label_values(ray_cohort_step, run)", "multi": True,
        "includeAll": True, "allValue": ".*", "current": {"text": "All", "value": "$__all"}, "refresh": 2,
        "datasource": {"type": "prometheus", "uid": "${datasource}"},
    }  # fmt: skip
    source = {"name": "datasource", "type": "datasource", "label": "data source", "query": "prometheus"}
    panels = [_panel(i, panel) for i, panel in enumerate(BOARDS[name])]
    return {
        "uid": f"cohort-{name}", "title": f"Cohort: {name}", "tags": ["cohort"], "schemaVersion": 39, "version": 1,
        "editable": True, "refresh": "30s", "time": {"from": "now-3h", "to": "now"}, "timezone": "browser",
        "templating": {"list": [source, run]}, "annotations": {"list": []}, "panels": panels,
        "links": [{"type": "dashboards", "tags": ["cohort"], "title": "Cohort", "asDropdown": True, "keepTime": True}],
    }  # fmt: skip


def _panel(index: int, panel: Panel) -> dict:
    known = [METRICS[name] for name in panel.metrics if name in METRICS]
    unit = known[0].unit if known else panel.unit
    normal = next((metric.normal for metric in known if metric.normal), None)
    colours = (("orange", None), ("green", normal[0]), ("orange", normal[1])) if normal else (("green", None),)
    about = [f"{name}: {METRICS[name].about}" for name in panel.metrics if name in METRICS]
    source = {"type": "prometheus", "uid": "${datasource}"}
    targets = [
        {"refId": chr(ord("A") + i), "expr": query, "legendFormat": legend or "__auto", "datasource": source}
        for i, (query, legend) in enumerate(queries(panel))
    ]
    style = {"drawStyle": "line", "lineWidth": 1, "thresholdsStyle": {"mode": "dashed" if normal else "off"}}
    steps = [{"color": colour, "value": value} for colour, value in colours]
    defaults = {"unit": UNITS.get(unit, "short"), "custom": style, "thresholds": {"mode": "absolute", "steps": steps}}
    return {
        "id": index + 1, "type": "timeseries", "title": panel.title, "description": "\n\n".join(about), "datasource": source,
        "gridPos": {"h": 8, "w": 8, "x": 8 * (index % 3), "y": 8 * (index // 3)}, "targets": targets,
        "fieldConfig": {"defaults": defaults, "overrides": []},
        "options": {"legend": {"displayMode": "list", "placement": "bottom"}, "tooltip": {"mode": "multi"}},
    }  # fmt: skip
