import io
import json
import math

import pytest
from rich.console import Console

from cluster.console import COLUMNS, ConsoleSink
from cluster.metrics import METRICS, JsonlSink, Mean, RayMetricsSink, Sinks, TensorBoardSink, read_jsonl
from cluster.records import batch_metrics
from tests.learner.builders import scored

STEP = {"stage": "grpo", "reward": 0.5, "accuracy": 0.25, "mismatch_p50": 1e-5, "seconds_generate": 2.0}


class Broken:
    calls = 0

    def write(self, step, metrics):
        self.calls += 1
        raise OSError(28, "No space left on device")

    def close(self):
        raise OSError(28, "No space left on device")


def lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_a_merged_mean_weighs_unequal_parts_by_their_counts():
    assert (Mean.of([1.0, 1.0, 1.0]) + Mean.of([0.0])).value == 0.75
    assert (Mean() + Mean(3.0, 4.0)).value == 0.75
    assert math.isnan(Mean().value)


def test_programs_are_counted_where_some_ran():
    def item(mask):
        return scored("g", 0, [3], [4] * len(mask), mask=mask, reward=1.0)

    none, one, two = item([1, 1]), item([1, 0, 0, 1]), item([1, 0, 1, 1, 0, 0])
    assert "programs" not in batch_metrics([none])
    assert batch_metrics([none, one, two])["programs"] == 1.0


def test_jsonl_has_one_line_a_step_and_null_for_what_is_not_finite(tmp_path):
    sink = JsonlSink(tmp_path / "run" / "metrics.jsonl")
    sink.write(1, STEP)
    sink.write(2, {"stage": "grpo", "grad_norm": math.nan})
    sink.close()
    assert lines(tmp_path / "run" / "metrics.jsonl") == [{"step": 1, **STEP}, {"step": 2, "stage": "grpo", "grad_norm": None}]


def test_resuming_drops_later_steps_and_a_line_that_a_kill_cut_off(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1}\n{"step": 2}\n{"step": 3}\n{"step": 4, "rew')
    sink = JsonlSink(path, resume_step=2)
    sink.write(3, {"reward": 1.0})
    sink.close()
    assert lines(path) == [{"step": 1}, {"step": 2}, {"step": 3, "reward": 1.0}]
    assert [p.name for p in tmp_path.iterdir()] == ["metrics.jsonl"]


def test_what_a_failed_write_left_is_gone_from_the_next_line_on(tmp_path):
    path = tmp_path / "metrics.jsonl"
    sink = JsonlSink(path)
    sink.write(1, {})
    with path.open("ab") as file:
        file.write(b'{"step": 2, "rew')
    sink.write(3, {})
    sink.close()
    assert lines(path) == [{"step": 1}, {"step": 3}]


def test_a_bad_line_within_a_jsonl_file_is_named(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1}\nnonsense\n{"step": 2}\n')
    with pytest.raises(ValueError, match=r"metrics\.jsonl:2:1: found 'nonsense'"):
        read_jsonl(path)


def test_text_with_unusual_line_ends_stays_one_line(tmp_path):
    sink = JsonlSink(tmp_path / "a.jsonl")
    sink.write(1, {"stage": "a\u2028b\x85c"})
    sink.close()
    assert read_jsonl(tmp_path / "a.jsonl") == [{"step": 1, "stage": "a\u2028b\x85c"}]


def test_a_failing_sink_warns_once_and_the_others_go_on(tmp_path, caplog):
    broken = Broken()
    sinks = Sinks([broken, JsonlSink(tmp_path / "metrics.jsonl")])
    for step in (1, 2, 3):
        sinks.write(step, STEP)
    sinks.close()
    assert [row["step"] for row in lines(tmp_path / "metrics.jsonl")] == [1, 2, 3]
    assert broken.calls == 3
    (warning,) = caplog.records
    assert "Broken failed at step 1" in warning.getMessage() and "No space left" in warning.getMessage()


def test_a_plain_line_shows_stage_step_and_values_and_no_terminal_codes():
    out = io.StringIO()
    sink = ConsoleSink(80, Console(file=out, width=40))
    sink.write(7, STEP)
    sink.close()
    assert out.getvalue() == "grpo 7/80 reward 0.5 acc 0.25 mism50 1e-05 gen 2\n"


def test_a_terminal_shows_a_table_of_the_last_steps_and_a_bar():
    out = io.StringIO()
    sink = ConsoleSink(80, Console(file=out, force_terminal=True, width=160), rows=2)
    for step in (1, 2, 3):
        sink.write(step, STEP)
    sink.note("evaluation: [0.5]")
    sink.close()
    last = out.getvalue().rpartition("mism50")[2]
    assert "grpo 3" in last and "grpo 2" in last and "grpo 1" not in last and "3/80" in last
    assert "evaluation: [0.5]" in out.getvalue()


def test_every_column_of_the_console_is_a_metric_with_a_formula_and_a_unit():
    assert set(COLUMNS.values()) <= set(METRICS)
    assert all(metric.formula and metric.unit and metric.where for metric in METRICS.values())


def test_gauges_are_named_and_tagged_and_made_once(monkeypatch):
    made = {}

    class Gauge:
        def __init__(self, name, description, tag_keys):
            assert name not in made and description and tag_keys == ("run",)
            made[name] = self.values = []

        def set(self, value, tags):
            self.values.append((value, tags["run"]))

    monkeypatch.setattr("ray.util.metrics.Gauge", Gauge)
    sink = RayMetricsSink("quick")
    for step in (1, 2):
        sink.write(step, {**STEP, "kl": math.nan})
    sink.close()
    assert made["cohort_step"] == [(1, "quick"), (2, "quick")]
    assert made["cohort_reward"] == [(0.5, "quick")] * 2
    assert "cohort_kl" not in made and "cohort_stage" not in made


def test_tensorboard_holds_the_scalars(tmp_path):
    event_accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    sink = TensorBoardSink(tmp_path)
    sink.write(1, STEP)
    sink.write(2, {"reward": 0.75, "kl": math.nan})
    sink.close()
    events = event_accumulator.EventAccumulator(str(tmp_path)).Reload()
    assert [(e.step, e.value) for e in events.Scalars("reward")] == [(1, 0.5), (2, 0.75)]
    assert "kl" not in events.Tags()["scalars"] and "stage" not in events.Tags()["scalars"]
