"""What is generated from the catalogue is current, and is what Prometheus and Grafana take."""

import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml

from cluster.config.settings import RunSettings
from cluster.config.stages import StageConfig
from cluster.monitoring.boards import BOARDS, UNITS, board
from cluster.monitoring.files import alert_name, files
from cluster.monitoring.rules import RULES
from cluster.records.catalogue import METRICS, NORMAL, exported
from tests.cluster.test_alarms import CASES, STEPS

ROOT = Path(__file__).parents[2]
promtool = pytest.mark.skipif(shutil.which("promtool") is None, reason="promtool (of Prometheus) is not installed")
LABELS = {"run": "quick", "output": "/runs/quick"}


def test_generated_files_are_current_and_there_are_no_others():
    expected = files()
    stale = [name for name, text in expected.items() if (ROOT / name).read_text(encoding="utf-8") != text]
    assert stale == [], "python -m cluster.monitoring writes them"
    for folder in ("deploy/grafana", "deploy/prometheus"):
        found = {path.relative_to(ROOT).as_posix() for path in (ROOT / folder).rglob("*") if path.is_file()}
        assert found == {name for name in expected if name.startswith(folder)}


def test_the_docs_have_every_metric_with_its_denominator_and_range_and_every_alarm_with_its_key():
    metrics, alarms = files()["docs/metrics.md"], files()["docs/alarms.md"]
    assert re.findall(r"^\| `(\w+)` \|", metrics, re.MULTILINE) == list(METRICS)
    row = "| `truncated_share` | outputs that ran out of tokens / outputs | share | outputs | 0 to 0.1 | rollout |"
    assert row in metrics.splitlines() and r"mean \|log pi_engine - log pi_learner\|" in metrics
    assert re.findall(r"^## (\w+)$", alarms, re.MULTILINE) == list(RULES)
    assert METRICS["ranked"].denominator == "pairs" and METRICS["reward"].denominator == ""
    assert METRICS["skipped"].range == "0" and METRICS["reward"].range == "" and set(NORMAL) <= set(METRICS)


def test_names_of_gauges_are_prometheus_names_and_no_two_are_alike():
    names = [exported(name) for name in METRICS]
    assert len(set(names)) == len(names) and all(re.fullmatch(r"cohort_[a-z0-9_]+", name) for name in names)
    assert exported("reward_a b") == "cohort_reward_a_b"


def test_every_metric_has_a_panel_and_curves_of_a_panel_have_one_unit():
    panels = [panel for name in BOARDS for panel in BOARDS[name]]
    shown = [name for panel in panels for name in panel.metrics if name in METRICS]
    assert sorted(shown) == sorted(METRICS), "each once"
    for panel in panels:
        units = {METRICS[name].unit if name in METRICS else panel.unit for name in panel.metrics}
        assert len(units) == 1 and units != {""}, panel.title


@pytest.mark.parametrize("name", BOARDS)
def test_a_board_is_one_that_grafana_imports(name):
    found = json.loads((ROOT / f"deploy/grafana/dashboards/{name}.json").read_text(encoding="utf-8"))
    assert found == board(name) and "id" not in found, "an id is the data base's"
    assert found["uid"] == f"cohort-{name}" and found["title"] and found["schemaVersion"] >= 36
    source, run = found["templating"]["list"]
    assert (source["type"], source["query"], run["name"]) == ("datasource", "prometheus", "run")
    boxes = [panel["gridPos"] for panel in found["panels"]]
    cells = [
        (x, y) for box in boxes for x in range(box["x"], box["x"] + box["w"]) for y in range(box["y"], box["y"] + box["h"])
    ]
    assert len(set(cells)) == len(cells) and max(x for x, _ in cells) < 24
    assert [panel["id"] for panel in found["panels"]] == list(range(1, len(boxes) + 1))
    for panel, row in zip(found["panels"], BOARDS[name], strict=True):
        assert (panel["type"], panel["title"]) == ("timeseries", row.title)
        assert [target["refId"] for target in panel["targets"]] == [chr(65 + i) for i in range(len(row.metrics))]
        assert all(target["datasource"] == {"type": "prometheus", "uid": "${datasource}"} for target in panel["targets"])
        steps = panel["fieldConfig"]["defaults"]["thresholds"]["steps"]
        assert steps[0]["value"] is None and [s["value"] for s in steps[1:]] == sorted(s["value"] for s in steps[1:])
        assert panel["fieldConfig"]["defaults"]["unit"] in {"short", *UNITS.values()}


def test_provisioning_names_a_source_and_the_folder_of_the_boards():
    text = files()
    (source,) = yaml.safe_load(text["deploy/grafana/provisioning/datasources/cohort.yml"])["datasources"]
    (provider,) = yaml.safe_load(text["deploy/grafana/provisioning/dashboards/cohort.yml"])["providers"]
    assert (source["type"], provider["type"], provider["options"]) == (
        "prometheus",
        "file",
        {"path": "/var/lib/grafana/dashboards"},
    )


def test_rules_read_metrics_that_exist_and_name_keys_that_exist():
    sections = {name: RunSettings.model_fields[name].annotation for name in ("rollout", "learner", "reward")}
    sections["stages.*"] = StageConfig
    for name, rule in RULES.items():
        assert set(rule.when.metrics) <= set(METRICS), name
        assert set(re.findall(r"ray_cohort_(\w+)", rule.when.promql())) <= set(METRICS)
        keys = re.findall(r"\b(rollout|learner|reward|stages\.\*)\.([a-z_]+)", f"{rule.cause} {rule.knob}")
        assert all(key in sections[section].model_fields for section, key in keys), (name, keys)
        assert keys or "weighting" in rule.knob, name


@promtool
def test_prometheus_takes_its_configuration_and_rules():
    folder = ROOT / "deploy/prometheus"
    for command in (("config", "--syntax-only", folder / "prometheus.yml"), ("rules", folder / "alerts.yml")):
        done = subprocess.run(["promtool", "check", *command], capture_output=True, text=True, timeout=60)
        assert done.returncode == 0, done.stdout + done.stderr


def case(name, series, raised):
    """Of promtool: a sample a minute, and whether the alert fires at the last one."""
    labels = ",".join(f'{key}="{value}"' for key, value in LABELS.items())
    inputs = [
        {"series": f"ray_{exported(metric)}{{{labels}}}", "values": " ".join(f"{value:.6g}" for value in values)}
        for metric, values in {**series, "stage_number": [2] * STEPS}.items()
    ]
    rule = RULES[name]
    notes = {"summary": f"{rule.title}: run quick", "description": rule.advice}
    alerts = [{"exp_labels": {"severity": "warning", **LABELS}, "exp_annotations": notes}] if raised else []
    at = {"eval_time": f"{STEPS - 1}m", "alertname": alert_name(name), "exp_alerts": alerts}
    return {"interval": "1m", "input_series": inputs, "alert_rule_test": [at]}


@promtool
def test_prometheus_raises_an_alarm_for_the_numbers_that_raise_it_on_the_driver(tmp_path):
    cases = [
        case(name, series, raised) for name, both in CASES.items() for series, raised in zip(both, (True, False), strict=True)
    ]
    content = {"rule_files": [str(ROOT / "deploy/prometheus/alerts.yml")], "evaluation_interval": "1m", "tests": cases}
    (tmp_path / "tests.yml").write_text(yaml.safe_dump(content))
    done = subprocess.run(["promtool", "test", "rules", tmp_path / "tests.yml"], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stdout + done.stderr
