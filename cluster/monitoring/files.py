"""Files that are written from the catalogue, the rules and the boards: docs pages, Prometheus' and Grafana's."""

import json
from collections.abc import Mapping
from pathlib import Path

import yaml

from cluster.monitoring.boards import BOARDS, board
from cluster.monitoring.conditions import BACK, SPAN
from cluster.monitoring.rules import RULES
from cluster.records.catalogue import METRICS

COMMAND = "python -m cluster.monitoring"
WRITTEN = f"Written by `{COMMAND}`; a test compares."
DISCOVERY = "/tmp/ray/prom_metrics_service_discovery.json"
"""Where Ray's head node lists the metrics ports of all nodes, unless its session is elsewhere (ray start --temp-dir)."""
FOLDERS = {"rules": "/etc/prometheus/alerts.yml", "boards": "/var/lib/grafana/dashboards"}
"""Where Prometheus and Grafana are expected to find what is generated."""

METRICS_HEAD = f"""# Metrics

{WRITTEN}

A line of RUN/metrics.jsonl is a step. A metric stands in it where the stage measures it: `critic_grad_norm` only with a critic.
Ray's Prometheus port has each as a gauge `ray_cohort_<name>` with the labels `run` and `output`, and evaluations as
`ray_cohort_evaluation_<name>`. `reward_<name>` is the mean of a component of the reward that has no name of its own,
`staleness_<n>` the share of outputs that are n versions old.

| name | what it is | unit | share of | normal | measured by |
|---|---|---|---|---|---|"""
ALARMS_HEAD = f"""# Alarms

{WRITTEN}

After every step the driver looks at means over {SPAN} steps of the stage, and where a trend counts at those {BACK} steps
before or at the stage's beginning. An alarm is told once while it lasts: in the log, and as a line of RUN/alarms.jsonl with
`step`, `alarm`, `what` and `advice`. The same rules are in deploy/prometheus/alerts.yml, where minutes stand for steps.
"""


def metrics_page() -> str:
    """docs/metrics.md."""
    rows = []
    for name, metric in METRICS.items():
        texts = metric.formula, metric.unit, metric.denominator, metric.range, metric.where
        cells = (text.replace("|", "\\|") for text in texts)
        rows.append(f"| `{name}` | {' | '.join(cells)} |")
    return "\n".join([METRICS_HEAD, *rows, ""])


def alarms_page() -> str:
    """docs/alarms.md."""
    out = [ALARMS_HEAD]
    for name, rule in RULES.items():
        out += [f"## {name}", "", f"{rule.title.capitalize()}: {rule.when.words()}.", ""]
        out += [f"Likely cause: {rule.cause}.", "", f"What helps: {rule.knob}.", ""]
    return "\n".join(out)


def alerts() -> dict:
    """Prometheus' rules of alarms."""
    rules = [
        {
            "alert": alert_name(name),
            "expr": rule.when.promql(),
            "labels": {"severity": "warning"},
            "annotations": {"summary": f"{rule.title}: run {{{{ $labels.run }}}}", "description": rule.advice},
        }
        for name, rule in RULES.items()
    ]
    return {"groups": [{"name": "cohort", "rules": rules}]}


def alert_name(rule: str) -> str:
    """Of a rule among Prometheus' alerts."""
    return "Cohort" + rule.title().replace("_", "")


def prometheus(discovery: str = DISCOVERY, rules: str = FOLDERS["rules"]) -> dict:
    """Configuration of Prometheus."""
    scrape = {"job_name": "ray", "file_sd_configs": [{"files": [discovery]}]}
    times = {"scrape_interval": "10s", "evaluation_interval": "10s"}
    return {"global": times, "rule_files": [rules], "scrape_configs": [scrape]}


def files() -> Mapping[str, str]:
    """Path in the repository -> text."""
    out = {"docs/metrics.md": metrics_page(), "docs/alarms.md": alarms_page()}
    out["deploy/prometheus/prometheus.yml"] = _yaml(prometheus())
    out["deploy/prometheus/alerts.yml"] = _yaml(alerts())
    for name in BOARDS:
        out[f"deploy/grafana/dashboards/{name}.json"] = json.dumps(board(name), indent=1) + "\n"
    source = {"name": "Prometheus", "type": "prometheus", "url": "http://localhost:9090", "access": "proxy", "isDefault": True}
    out["deploy/grafana/provisioning/datasources/cohort.yml"] = _yaml({"apiVersion": 1, "datasources": [source]})
    provider = {"name": "Cohort", "folder": "Cohort", "type": "file", "options": {"path": FOLDERS["boards"]}}
    out["deploy/grafana/provisioning/dashboards/cohort.yml"] = _yaml({"apiVersion": 1, "providers": [provider]})
    return out


def write(root: Path) -> None:
    """All of them below a folder."""
    for name, text in files().items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text, encoding="utf-8")


def _yaml(content: dict) -> str:
    return f"# {WRITTEN}\n" + yaml.safe_dump(content, sort_keys=False, width=1000)
