"""Trackers: the real packages, off line, and what becomes of one that fails or hangs."""

import json
import logging
import os
import struct
import threading
import time
from functools import partial

import pytest

from cluster.config.run_config import load
from cluster.records import trackers
from cluster.records.metrics import JsonlSink, Sink, Sinks, read_jsonl
from cluster.records.records import SHOWN, Records
from cluster.records.samples import sample_rows
from cluster.records.trackers import COLUMNS, Behind, missing, name_of, openers
from cluster.stopping import Stop
from tests.cluster.test_config import SMALL
from tests.learner.builders import scored
from tests.reward.builders import scored_groups

LIVES = {"0": 1}
METRICS = {"stage": "grpo", "reward": 0.5, "reward_a b@2": 0.25, "kl": float("nan")}
LINES = {1: METRICS, 2: METRICS | {"reward": 0.75}}


@pytest.fixture
def config(tmp_path, monkeypatch):
    """Of a run with these trackers, none of which knows an account or an address."""
    (tmp_path / "recipe.yaml").write_text(SMALL)
    for name in list(os.environ):
        if name.startswith(("WANDB_", "MLFLOW_", "TRACKIO_")):
            monkeypatch.delenv(name)
    monkeypatch.setenv("WANDB_ERROR_REPORTING", "false")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    (tmp_path / "run").mkdir()
    return lambda *names: load(
        tmp_path / "recipe.yaml", [f"output={tmp_path / 'run'}", f"trackers=[{','.join(names)}]", "project=of-tests"]
    )


def groups(count):
    return scored_groups([scored(f"grpo/{n}", i, [3], [4], reward=1.0) for n in range(count) for i in range(2)])


def live(config, lines, broken_off=False):
    """One life of a run as its trackers see it."""
    sinks = Sinks(openers(config, Stop()))
    for step, metrics in lines.items():
        sinks.write(step, metrics)
        rows = sample_rows(groups(2), LIVES, [0.5, -0.5, None, None])
        Records(dir=config.output, ledger=None, sinks=sinks).sampled(step, rows)
    sinks.evaluated(max(lines), {"step": max(lines), "accuracy": 0.625})
    sinks.close(broken_off=broken_off)


def records_of(path):
    """The records of a .wandb file: protobufs in a LevelDB log, whose blocks of 32 KiB hold chunks with headers of 7 bytes."""
    from wandb.proto import wandb_internal_pb2

    data, at, whole = path.read_bytes(), 7, b""
    while at + 7 <= len(data):
        if (left := 32768 - at % 32768) < 7:
            at += left
            continue
        _, length, kind = struct.unpack("<IHB", data[at : at + 7])
        whole += data[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):  # a whole one, or the last part of one
            record = wandb_internal_pb2.Record()
            record.ParseFromString(whole)
            yield record
            whole = b""


@pytest.mark.slow
def test_wandb_without_a_key_writes_into_the_run_directory_and_a_resumed_run_has_the_same_id(config, caplog):
    pytest.importorskip("wandb", reason="wandb is not installed")
    caplog.set_level(logging.INFO, "cohort")
    found = config("wandb")
    live(found, {1: LINES[1]})
    live(found, {2: LINES[2]})
    files = sorted(found.output.glob("wandb/offline-run-*/*.wandb"))
    records = [record for path in files for record in records_of(path)]
    assert len(files) == 2 and {r.run.run_id for r in records if r.HasField("run")} == {name_of(found)}
    rows = [
        {item.key or ".".join(item.nested_key): json.loads(item.value_json) for item in r.history.item}
        for r in records
        if r.HasField("history")
    ]
    assert [(row["step"], row["reward"]) for row in rows if "reward" in row] == [(1, 0.5), (2, 0.75)]
    assert [row["reward_a b@2"] for row in rows if "reward" in row] == [0.25, 0.25] and not any("kl" in row for row in rows)
    assert [row["evaluation/accuracy"] for row in rows if "evaluation/accuracy" in row] == [0.625, 0.625]
    assert [row["samples.nrows"] for row in rows if "samples.nrows" in row] == [4, 4]
    (table, _) = sorted(found.output.glob("wandb/offline-run-*/files/media/table/samples_*.json"))
    shown = json.loads(table.read_text())
    assert shown["columns"] == list(COLUMNS)
    assert [row[COLUMNS.index("advantage")] for row in shown["data"]] == [0.5, -0.5, None, None]
    assert "wandb: offline, as WANDB_API_KEY is not set: " in caplog.text and "left out" not in caplog.text


@pytest.mark.slow
def test_mlflow_without_an_address_writes_into_the_run_directory_and_a_resumed_run_goes_on_as_itself(config, caplog):
    mlflow = pytest.importorskip("mlflow", reason="mlflow is not installed")
    found = config("mlflow")
    live(found, {1: LINES[1]}, broken_off=True)
    client = mlflow.MlflowClient(tracking_uri=(found.output / "mlflow").as_uri())
    experiment = client.get_experiment_by_name("of-tests").experiment_id
    (run,) = client.search_runs([experiment])
    assert (run.info.run_name, run.info.status) == (name_of(found), "KILLED")
    live(found, {2: LINES[2]})
    (run,) = client.search_runs([experiment])
    assert run.info.status == "FINISHED" and run.data.params["seed"] == "0"

    def history(name):
        return [(m.step, m.value) for m in client.get_metric_history(run.info.run_id, name)]

    assert history("reward") == [(1, 0.5), (2, 0.75)] and history("reward_a b_2") == [(1, 0.25), (2, 0.25)]
    assert history("evaluation/accuracy") == [(1, 0.625), (2, 0.625)] and history("kl") == []
    table = json.loads(next(found.output.glob("mlflow/**/samples/step_2.json")).read_text())
    assert table["columns"] == list(COLUMNS) and [row[COLUMNS.index("reward")] for row in table["data"]] == [1.0] * 4
    assert "left out" not in caplog.text


@pytest.mark.slow
def test_trackio_without_an_address_writes_into_its_local_data_base(config, caplog, tmp_path, monkeypatch):
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "trackio"))
    trackio = pytest.importorskip("trackio", reason="trackio is not installed")
    from trackio.sqlite_storage import SQLiteStorage

    assert tmp_path / "trackio" == trackio.utils.TRACKIO_DIR, "read once, when it is first imported: here"
    found = config("trackio")
    live(found, {1: LINES[1]})
    live(found, {2: LINES[2]})
    assert SQLiteStorage.get_runs("of-tests") == [name_of(found)]
    rows = SQLiteStorage.get_logs("of-tests", name_of(found))
    assert [(row["step"], row["reward"]) for row in rows if "reward" in row] == [(1, 0.5), (2, 0.75)]
    assert [row["evaluation/accuracy"] for row in rows if "evaluation/accuracy" in row] == [0.625, 0.625]
    tables = [row["samples"]["_value"] for row in rows if "samples" in row]
    assert [[row["reward"] for row in table] for table in tables] == [[1.0] * 4] * 2
    assert "left out" not in caplog.text


class Failing(Sink):
    def write(self, step, metrics):
        raise ConnectionError("no route to host")

    def close(self):
        raise AssertionError("it was left out")


class Hanging(Sink):
    def __init__(self):
        self.calls, self.go = 0, threading.Event()

    def write(self, step, metrics):
        self.calls += 1
        self.go.wait(60)

    def close(self):
        pass


def test_a_tracker_that_fails_or_hangs_is_left_out_with_one_warning_and_the_others_go_on(tmp_path, caplog, monkeypatch):
    monkeypatch.setattr(trackers, "CALL_S", 0.05)
    hanging, path = Hanging(), tmp_path / "metrics.jsonl"
    kinds = {"failing": Failing, "unopened": lambda: 1 / 0, "leaving": lambda: exit(3), "hanging": lambda: hanging}
    behind = {name: partial(Behind, name, opener, lambda: 5.0) for name, opener in kinds.items()}
    sinks = Sinks(behind | {"file": lambda: JsonlSink(path)})
    sinks.write(1, {})
    time.sleep(0.3)
    for step in (2, 3):
        sinks.write(step, {})
    sinks.close()
    hanging.go.set()
    assert [row["step"] for row in read_jsonl(path)] == [1, 2, 3] and hanging.calls == 1
    assert sorted((line.split(" ")[0], line.rpartition("): ")[2]) for line in caplog.messages) == [
        ("failing", "ConnectionError: no route to host"),
        ("hanging", "a call has taken more than 0.05 s"),
        ("leaving", "SystemExit: 3"),
        ("unopened", "ZeroDivisionError: division by zero"),
    ]
    assert all("the run goes on without it (metrics.jsonl has all)" in line for line in caplog.messages)


def test_the_end_of_a_run_waits_for_a_tracker_so_long_and_no_longer(caplog):
    whole, hanging = Hanging(), Hanging()
    whole.go.set()
    for name, sink in (("whole", whole), ("hanging", hanging)):
        behind = Behind(name, lambda sink=sink: sink, lambda: 0.2)
        for step in (1, 2):
            behind.write(step, {})
        behind.close()
    hanging.go.set()
    assert whole.calls == 2
    (line,) = caplog.messages
    assert line.startswith("hanging ") and line.endswith("it has not ended in time, and what it had not sent is lost")


def test_a_tracker_that_cannot_keep_up_is_left_out(caplog, monkeypatch):
    monkeypatch.setattr(trackers, "BEHIND", 3)
    slow = Hanging()
    behind = Behind("slow", lambda: slow, lambda: 5.0)
    for step in range(9):
        behind.write(step, {})
    behind.close()
    slow.go.set()
    assert [line.rpartition("): ")[2] for line in caplog.messages] == ["it is 3 calls behind"]


def test_sinks_are_shown_the_outputs_of_a_few_groups_and_the_file_has_all(tmp_path):
    shown = {}

    class Table(Hanging):
        def sampled(self, step, rows):
            shown[step] = [(row["group"], row["advantage"]) for row in rows]

    records = Records(dir=tmp_path, ledger=None, sinks=Sinks({"table": Table}))
    records.sampled(7, sample_rows(groups(SHOWN + 2), LIVES, [float(n) for n in range(2 * SHOWN + 4)]))
    records.sampled(8, sample_rows(groups(1), LIVES))
    assert shown[7] == [(f"grpo/{n // 2}", float(n)) for n in range(2 * SHOWN)] and len(shown[8]) == 2
    assert len(read_jsonl(tmp_path / "samples/step_7.jsonl")) == 2 * SHOWN + 4


def test_a_run_keeps_its_name_and_another_run_of_its_recipe_has_another(config, tmp_path):
    first = name_of(config("wandb"))
    assert first == name_of(config("mlflow")) and first.startswith("small-")
    (tmp_path / "run/trackers.json").unlink()
    assert name_of(config("wandb")) != first


def test_a_tracker_that_is_not_installed_is_told_in_a_line(monkeypatch):
    monkeypatch.setattr(trackers, "find_spec", lambda name: None if name == "wandb" else name)
    assert missing(["wandb", "mlflow"]) == [
        "trackers: wandb is not installed here; expected `pip install 'cohort-rl[trackers]'`, or another tracker"
    ]
