import io
import json
import math
import re
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import pytest
from rich.console import Console

from cluster.records import console
from cluster.records.catalogue import METRICS
from cluster.records.console import COLUMNS, SPARED, ConsoleSink
from cluster.records.metrics import JsonlSink, RayMetricsSink, Sink, Sinks, TensorBoardSink, read_jsonl
from cluster.records.samples import batch_metrics
from reward.types import FAILURES
from tests.learner.builders import scored
from tests.reward.builders import scored_groups

STEP = {"stage": "grpo", "reward": 0.5, "accuracy": 0.25, "mismatch_p50": 1e-5, "seconds_generate": 2.0}


class Broken(Sink):
    calls = 0

    def write(self, step, metrics):
        self.calls += 1
        raise OSError(28, "No space left on device")

    def close(self):
        raise OSError(28, "No space left on device")


def lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_programs_are_counted_where_some_ran():
    def item(mask):
        return scored("g", 0, [3], [4] * len(mask), mask=mask, reward=1.0)

    none, one, two = item([1, 1]), item([1, 0, 0, 1]), item([1, 0, 1, 1, 0, 0])
    assert "programs" not in batch_metrics(scored_groups([none]))
    assert batch_metrics(scored_groups([none, one, two]))["programs"] == 1.0


def test_the_share_of_guesses_is_over_all_tokens_that_were_guessed():
    one, two = (scored("g", 0, [3], [4] * 9, reward=1.0) for _ in range(2))
    guessed = [replace(item, sample=replace(item.sample, guesses=n)) for item, n in ((one, (8, 6)), (two, (2, 0)))]
    assert batch_metrics(scored_groups(guessed))["accepted_share"] == 0.6
    assert "accepted_share" not in batch_metrics(scored_groups([one, two]))


def judgement(group, index, reward=None, status="score", **components):
    item = scored(group, index, [3], [4], reward=reward)
    return replace(item, verdict=replace(item.verdict, status=status, components=components))


def test_what_became_of_judging_is_in_every_steps_metrics_also_when_nothing_has_a_score():
    def lost(group, *statuses):
        return [judgement(group, i, status=status) for i, status in enumerate(statuses)]

    none = batch_metrics(scored_groups(lost("a", "killed", "killed", "rejected", "error")))
    shares = {"unscored": 1.0, "killed": 0.5, "rejected": 0.25, "error": 0.25, "unscorable": 0.0, "thin_group": 1.0}
    assert {name: none[f"{name}_share"] for name in shares} == shares and "reward" not in none
    some = [judgement("a", 0, 1.0), *lost("a", "", "unscorable")[1:], judgement("b", 0, 2.0), judgement("b", 1, 2.0)]
    mixed = batch_metrics(scored_groups(some))
    assert (mixed["unscored_share"], mixed["unscorable_share"], mixed["reward"]) == (0.25, 0.25, pytest.approx(5 / 3))
    assert (mixed["thin_group_share"], mixed["zero_variance_share"]) == (0.5, 1.0)
    assert {f"{status}_share" for status in FAILURES} | {"unscored_share", "thin_group_share"} <= set(METRICS)
    given = batch_metrics(scored_groups(lost("a", "given", "given")))
    assert given == {"response_length": 1.0}, "nobody was asked"


def test_groups_without_spread_are_told_apart_by_whether_they_are_right():
    right = [judgement("a", i, 1.0, correct=1.0) for i in range(2)]
    wrong = [judgement(group, i, 0.0, correct=0.0) for group in "bc" for i in range(2)]
    mixed = [judgement("d", 0, 1.0, correct=1.0), judgement("d", 1, 0.0, correct=0.0)]
    found = batch_metrics(scored_groups([*right, *wrong, *mixed, judgement("e", 0, 1.0, correct=1.0)]))
    shares = {name: found[name] for name in ("zero_variance_share", "all_right_share", "all_wrong_share")}
    assert shares == {"zero_variance_share": 0.75, "all_right_share": 0.25, "all_wrong_share": 0.5}
    even = batch_metrics(scored_groups([judgement("a", i, 0.5, correct=float(i)) for i in range(2)]))
    assert (even["zero_variance_share"], even["all_right_share"], even["all_wrong_share"]) == (1.0, 0.0, 0.0)
    assert "all_right_share" not in batch_metrics(scored_groups([judgement("a", i, 0.5) for i in range(2)]))


def test_every_component_of_a_reward_is_a_metric():
    batch = [judgement("a", 0, 1.0, correct=1.0, format=1.0, brevity=0.5), judgement("a", 1, 0.0, correct=0.0, brevity=0.25)]
    found = batch_metrics(scored_groups([*batch, judgement("a", 2, status="killed")]))
    assert (found["accuracy"], found["format"], found["reward_brevity"]) == (0.5, 1.0, 0.375)


def test_jsonl_has_one_line_a_step_with_the_clock_and_null_for_what_is_not_finite(tmp_path):
    sink = JsonlSink(tmp_path / "run" / "metrics.jsonl")
    before = datetime.now(UTC).replace(microsecond=0)
    sink.write(1, STEP)
    sink.write(2, {"stage": "grpo", "grad_norm": math.nan})
    sink.close()
    rows = lines(tmp_path / "run" / "metrics.jsonl")
    assert all(before <= datetime.fromisoformat(row.pop("time")) <= datetime.now(UTC) for row in rows)
    assert rows == [{"step": 1, **STEP}, {"step": 2, "stage": "grpo", "grad_norm": None}]


def test_resuming_drops_later_steps_and_a_line_that_a_kill_cut_off(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1}\n{"step": 2}\n{"step": 3}\n{"step": 4, "rew')
    sink = JsonlSink(path, resume_step=2)
    sink.write(3, {"reward": 1.0})
    sink.close()
    *kept, new = lines(path)
    assert kept == [{"step": 1}, {"step": 2}] and (new["step"], new["reward"]) == (3, 1.0)
    assert [p.name for p in tmp_path.iterdir()] == ["metrics.jsonl"]


def test_what_a_failed_write_left_is_gone_from_the_next_line_on(tmp_path):
    path = tmp_path / "metrics.jsonl"
    sink = JsonlSink(path)
    sink.write(1, {})
    with path.open("ab") as file:
        file.write(b'{"step": 2, "rew')
    sink.write(3, {})
    sink.close()
    assert [row["step"] for row in lines(path)] == [1, 3]


def test_a_bad_line_within_a_jsonl_file_is_named(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1}\nnonsense\n{"step": 2}\n')
    with pytest.raises(ValueError, match=r"metrics\.jsonl:2:1: found 'nonsense'"):
        read_jsonl(path)


def test_text_with_unusual_line_ends_stays_one_line(tmp_path):
    sink = JsonlSink(tmp_path / "a.jsonl")
    sink.write(1, {"stage": "a\u2028b\x85c"})
    sink.close()
    assert [row["stage"] for row in read_jsonl(tmp_path / "a.jsonl")] == ["a\u2028b\x85c"]


def test_a_sink_that_cannot_be_opened_written_or_closed_warns_once_and_the_others_go_on(tmp_path, caplog):
    broken, late = Broken(), tmp_path / "late"
    late.write_text("a file where a directory is to be")
    openers = {
        "broken": lambda: broken,
        str(late): lambda: JsonlSink(late / "metrics.jsonl"),
        "whole": lambda: JsonlSink(tmp_path / "metrics.jsonl"),
    }
    sinks = Sinks(openers)
    sinks.write(1, STEP)
    late.unlink()
    for step in (2, 3):
        sinks.write(step, STEP)
    sinks.close()
    assert [row["step"] for row in lines(tmp_path / "metrics.jsonl")] == [1, 2, 3] and broken.calls == 3
    assert [row["step"] for row in lines(late / "metrics.jsonl")] == [2, 3], "what could not be opened is tried again"
    warnings = [record.getMessage() for record in caplog.records]
    assert len(warnings) == 2 and str(late) in warnings[0] and "FileExistsError" in warnings[0]
    assert warnings[1].startswith("broken cannot be written") and "No space left" in warnings[1]


def test_a_plain_line_shows_time_stage_step_what_is_left_and_values_and_no_terminal_codes(monkeypatch):
    out = io.StringIO()
    sink = ConsoleSink(80, Console(file=out, width=40))
    for step, now in ((7, 100.0), (8, 103.0), (9, 105.0)):
        monkeypatch.setattr(console.time, "monotonic", lambda now=now: now)
        sink.write(step, STEP)
    sink.close()
    first, _, last = out.getvalue().splitlines()
    assert re.fullmatch(r"\d\d:\d\d:\d\d grpo 7/80 reward 0.5 acc 0.25 mism50 1e-05 gen 2", first)
    # 71 steps of 2.5 s
    assert last.split(" ", 1)[1] == "grpo 9/80 (about 0:02:58 left) reward 0.5 acc 0.25 mism50 1e-05 gen 2"


def test_at_80_columns_the_table_shows_what_matters_most_and_whole():
    out = io.StringIO()
    sink = ConsoleSink(490, Console(file=out, force_terminal=True, width=80))
    sink.write(401, {"stage": "grpo", **dict.fromkeys(COLUMNS.values(), 0.000123456)})
    sink.close()
    text = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", out.getvalue())
    assert "…" not in text and max(map(len, text.replace("\r", "\n").splitlines())) <= 80
    assert {"reward", "acc", "len", "train"} <= set(text.split()) and "other" not in text.split()
    assert "401/490" in text


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
    assert set(COLUMNS.values()) <= set(METRICS) and sorted(COLUMNS) == sorted(SPARED)
    assert all(metric.formula and metric.unit and metric.where for metric in METRICS.values())


@pytest.fixture
def gauges(monkeypatch):
    """Gauges made, by name: the values set, with their tags."""
    made = {}

    class Gauge:
        def __init__(self, name, description, tag_keys):
            assert name not in made and description and re.fullmatch("[a-z0-9_]+", name)
            made[name], self.keys = [], tag_keys
            self.values = made[name]

        def set(self, value, tags):
            assert tuple(tags) == self.keys
            self.values.append((value, *tags.values()))

    monkeypatch.setattr("ray.util.metrics.Gauge", Gauge)
    return made


def test_gauges_are_made_once_and_tell_runs_of_one_name_apart(gauges):
    sink = RayMetricsSink("quick", Path("/runs/a"))
    for step in (1, 2):
        sink.write(step, {**STEP, "kl": math.nan, "reward_a b": 1.0})
    sink.evaluated(2, {"evaluation/accuracy": 0.5})
    sink.close()
    assert gauges["cohort_step"] == [(1, "quick", "/runs/a"), (2, "quick", "/runs/a")]
    assert gauges["cohort_reward"] == [(0.5, "quick", "/runs/a")] * 2 and len(gauges["cohort_reward_a_b"]) == 2
    assert gauges["cohort_evaluation_accuracy"] == [(0.5, "quick", "/runs/a")]
    assert "cohort_kl" not in gauges and "cohort_stage" not in gauges


def test_tensorboard_holds_the_scalars(tmp_path):
    event_accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    sink = TensorBoardSink(tmp_path)
    sink.write(1, STEP)
    sink.write(2, {"reward": 0.75, "kl": math.nan})
    sinks = Sinks({"TensorBoard": lambda: sink, "the console": lambda: ConsoleSink(2, Console(file=io.StringIO()))})
    sinks.evaluated(2, {"step": 2, "accuracy": 0.25, "label": "held-out", "accuracy_interval": None})
    sinks.close()
    events = event_accumulator.EventAccumulator(str(tmp_path)).Reload()
    assert [(e.step, e.value) for e in events.Scalars("reward")] == [(1, 0.5), (2, 0.75)]
    assert [(e.step, e.value) for e in events.Scalars("evaluation/accuracy")] == [(2, 0.25)]
    assert "kl" not in events.Tags()["scalars"] and "stage" not in events.Tags()["scalars"]
