"""What a run's directory says of it, whoever asks."""

import json
import os

import pytest

from cluster.config.recipe import ConfigError
from cluster.config.run_config import load, resolved_yaml
from cluster.run.directory import RunDirectory, stage_facts
from cluster.run.listing import runs
from cluster.stopping import RunFailed, Stopped
from tests.cluster.test_cli import invoke
from tests.cluster.test_preflight import QUICKSTART


def begun(folder, name, written=0.0):
    """A run that took three steps."""
    run = folder / name
    run.mkdir(parents=True)
    config = load(QUICKSTART, [f"name={name}", f"output={run}"])
    (run / "config.yaml").write_text(resolved_yaml(config))
    (run / "metrics.jsonl").write_text("".join(json.dumps({"step": s, "x": "y" * 30000}) + "\n" for s in (1, 2, 3)) + '{"st')
    (run / "evaluations.jsonl").write_text('{"step": 0, "accuracy": 0.25}\n{"step": 2, "accuracy": 0.5}\n{"step": 3}\n')
    for path in run.iterdir():
        os.utime(path, (written, written))
    return run, config


def left(run, error):
    with pytest.raises(type(error)), RunDirectory(run) as held:
        held.begun()
        raise error


def test_how_runs_are_told_apart_by_their_directories(tmp_path):
    stopped, _ = begun(tmp_path, "stopped")
    left(stopped, Stopped("stopped by a signal after step 3; more"))
    failed, _ = begun(tmp_path, "failed")
    left(failed, RunFailed("score step 3: 4 of 4\nand so on"))
    broken, _ = begun(tmp_path, "broken")
    left(broken, ZeroDivisionError())
    crashed, _ = begun(tmp_path, "crashed", 2e9)
    done, config = begun(tmp_path, "done", 3e9)
    (done / "summary.json").write_text(json.dumps({"stages": stage_facts(config)}))
    bad, _ = begun(tmp_path, "bad")
    (bad / "config.yaml").write_text("name: [")
    (tmp_path / "no run").mkdir()
    running, _ = begun(tmp_path, "running")
    with RunDirectory(running):
        found = {run.name: run for run in runs(tmp_path)}
    assert list(found)[:2] == ["done", "crashed"], "the newest first"
    assert {name: run.state for name, run in found.items()} == {
        "stopped": "stopped", "failed": "failed", "broken": "failed", "crashed": "crashed", "done": "finished",
        "bad": "unreadable", "running": "running",
    }  # fmt: skip
    assert found["stopped"].why == "stopped by a signal after step 3; more" and found["failed"].why == "score step 3: 4 of 4"
    assert found["broken"].why == "ZeroDivisionError" and f"`cohort resume {crashed}` goes on" in found["crashed"].why
    one = found["crashed"]
    assert (one.step, one.steps, one.accuracy, one.written) == (3, 490, 0.5, 2e9)
    assert [run.state for run in runs(done)] == ["finished"], "a run's own directory"


def test_a_run_that_goes_on_is_no_longer_stopped_and_a_refused_one_still_is(tmp_path):
    run, _ = begun(tmp_path, "mine")
    left(run, Stopped("stopped"))
    with pytest.raises(ConfigError), RunDirectory(run):
        raise ConfigError(["other data"])
    assert [one.state for one in runs(tmp_path)] == ["stopped"]
    with RunDirectory(run) as held:
        held.begun()
    assert [one.state for one in runs(tmp_path)] == ["crashed"], "no word of how it ended"


def test_the_command_lists_them_and_refuses_what_is_no_directory(tmp_path):
    begun(tmp_path, "mine", 1.0)
    (tmp_path / "empty").mkdir()
    head, line = invoke("runs", tmp_path).stdout.splitlines()
    assert head.split() == ["run", "state", "step", "accuracy", "last", "written"]
    assert line.startswith("mine  crashed  3/490  0.500     1970-01-01 00:00:01 UTC  its driver was killed")
    assert json.loads(invoke("runs", tmp_path, "--json").stdout)[0]["step"] == 3
    assert len(invoke("runs", tmp_path / "empty").stdout.splitlines()) == 1
    gone = invoke("runs", tmp_path / "gone")
    assert gone.exit_code == 2 and "no such directory; expected one that holds runs" in gone.stderr
