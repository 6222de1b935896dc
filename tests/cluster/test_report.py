import io
import json

import pytest
from PIL import Image
from rich.console import Console

from cluster.records.report import draw, plot, read_summary, roles_table, summary_table
from cluster.run.launch import installed

FULL = {"reward": 0.5, "accuracy": 0.5, "kl": 0.01, "clip_fraction": 0.0, "response_length": 30.0, "mismatch_p50": 1e-5}
SECONDS = {f"seconds_{phase}": 1.0 for phase in ("generate", "score", "train", "sync", "other")}


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def test_a_run_of_two_stages_is_drawn_as_one_picture(tmp_path):
    warm = [{"step": n, "stage": "sft", "response_length": 30.0, **SECONDS} for n in range(1, 6)]
    rest = [{"step": n, "stage": "grpo", **FULL, **SECONDS} for n in range(6, 11)]
    write(tmp_path / "metrics.jsonl", warm + rest)
    row = {"accuracy": 0.5, "accuracy_standard_error": 0.02, "greedy_accuracy": None}
    write(tmp_path / "evaluations.jsonl", [{"step": 5, **row}, {"step": 10, **row, "greedy_accuracy": 0.9}])
    path = plot(tmp_path)
    assert path == tmp_path / "run.png"
    with Image.open(path) as picture:
        assert min(picture.size) > 800
        assert len(picture.convert("RGB").getcolors(10**6)) > 50, "something is drawn"


def test_each_stage_has_panels_of_its_own_with_its_own_steps():
    """A long warm start takes no room from the stage after it, and shows no panel of what it does not measure."""
    warm = [{"step": n, "stage": "sft", "response_length": 30.0, "reward": None, **SECONDS} for n in range(1, 401)]
    rest = [{"step": n, "stage": "grpo", **FULL, **SECONDS} for n in range(401, 411)]
    held_out = [{"step": 400, "accuracy": 0.5}, {"step": 410, "accuracy": 0.6, "greedy_accuracy": 0.9}]
    sft, grpo = draw(warm + rest, held_out, "run").subfigs
    assert (sft.get_suptitle(), grpo.get_suptitle()) == ("sft", "grpo")
    assert [axes.get_title() for axes in sft.axes] == ["Response length (tokens)", "Seconds per step"]
    titles = ["Accuracy", "Reward", "KL and clipping", "Response length (tokens)", "Engine/learner mismatch (nats)"]
    assert [axes.get_title() for axes in grpo.axes] == [*titles, "Seconds per step"]
    assert all(axes.get_xlim()[1] > 390 and axes.get_xlim()[0] < 5 for axes in sft.axes)
    assert all(axes.get_xlim()[0] > 399 for axes in grpo.axes)
    line, *_ = grpo.axes[0].containers[0]
    assert list(line.get_xdata()) == [400, 410], "held out: from the policy that the stage began with"


@pytest.mark.parametrize("rows", [[], [{"step": 1}], [{"step": 1, "stage": "sft", "reward": None}]])
def test_missing_metrics_leave_empty_panels(tmp_path, rows):
    write(tmp_path / "metrics.jsonl", rows)
    assert plot(tmp_path).stat().st_size > 0


def test_a_directory_that_is_no_run_is_refused_with_the_file_that_is_missing(tmp_path):
    with pytest.raises(ValueError, match=r"metrics\.jsonl: no such file; expected a run directory"):
        plot(tmp_path)
    with pytest.raises(ValueError, match=r"summary\.json: no such file"):
        read_summary(tmp_path)


def test_the_summary_stands_before_beside_after():
    summary = {
        **{"accuracy_before": 0.25, "accuracy_after": 0.75, "greedy_accuracy_before": None, "greedy_accuracy_after": 0.5},
        **{"seconds": {"generate": 12.34}, "tokens_per_second": 456.7},
    }
    out = io.StringIO()
    Console(width=100, file=out).print(summary_table(summary))
    rows = [line.split() for line in out.getvalue().splitlines()]
    assert ["accuracy", "0.250", "0.750", "+0.500"] in rows
    assert ["greedy", "accuracy", "-", "0.500", "-"] in rows
    assert ["seconds", "generate", "12.3"] in rows
    assert ["tokens", "per", "second", "457"] in rows


def test_versions_of_what_is_not_installed_are_left_out():
    """A checkout on PYTHONPATH has no version of its own; a finished run is no failed one for that."""
    assert installed("pytest", "no-such-package") == {"pytest": pytest.__version__}


def test_who_worked_and_how_old_the_outputs_were_is_told_for_each_stage():
    warm = [{"step": 1, "stage": "sft", "seconds_train": 3.0, "seconds_step": 4.0, "waves_waiting": 0}]
    times = (
        "seconds_generate",
        "seconds_train",
        "seconds_waiting",
        "seconds_step",
        "waves_waiting",
        "staleness_0",
        "staleness_1",
    )
    rest = [
        {"step": n, "stage": "grpo", "staleness_max": 1, **dict(zip(times, row, strict=True))}
        for n, row in ((2, (2.0, 1.0, 1.0, 2.0, 0, 1.0, 0.0)), (3, (4.0, 1.0, 5.0, 6.0, 1, 0.5, 0.5)))
    ]
    table = roles_table(warm + rest)
    cells = [list(column.cells) for column in table.columns]
    assert dict(zip(cells[0], zip(*cells[1:], strict=True), strict=True)) == {
        "engines busy": ("-", "0.750"), "learner busy": ("0.750", "0.250"), "learner waits": ("-", "0.750"),
        "waves waiting": ("0.000", "0.500"), "outputs 0 versions old": ("-", "0.750"), "outputs 1 versions old": ("-", "0.250"),
    }  # fmt: skip
