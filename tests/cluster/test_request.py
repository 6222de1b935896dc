"""`cohort scale`: what is refused, what the driver is told, and what the command makes of its answers."""

import json

import pytest
from typer.testing import CliRunner

from cluster.cli.main import app
from cluster.config.run_config import RunConfig, resolved_yaml
from cluster.records.ledger import Ledger
from cluster.run import request
from cluster.run.directory import RunDirectory
from cluster.run.launch import stage_facts
from cluster.run.request import NAME, scaled, taken
from tests.cluster.test_pipeline import configuration

QUESTIONS = {"questions": {"task": "chained-arithmetic"}}
EVALUATION = {"stages": [], "learner": {"ranks": 0}, "data": QUESTIONS, "checkpoint_every": 20}
SHARED = {"rollout": {"workers": 1, "transport": "ipc"}, "learner": {"ranks": 1}}


class Driver:
    """Holds a run, and answers each request by the lines of `script`: (role, from, to, wanted, why), or None for its end."""

    def __init__(self, run_dir, monkeypatch):
        self.dir, self.script, self.requests = run_dir, [], []
        self.held = RunDirectory(run_dir)
        self.held.__enter__()
        self.held.begun()
        self.ledger, self.slept = Ledger(run_dir / "ledger.jsonl"), 0
        monkeypatch.setattr(request.time, "sleep", self.turn)

    def turn(self, seconds):
        """What it does while the command waits."""
        self.slept += 1
        self.requests += [wanted] if (wanted := taken(self.dir)) else []
        for answer in self.script.pop(0) if self.script else ():
            if answer is None:
                self.held.__exit__()
            elif callable(answer):
                answer()
            else:
                role, before, to, wanted, why = answer
                fields = {"from": before, "to": to, "wanted": wanted, "step": 3} | ({"why": why} if why else {})
                self.ledger.note("scaled", role=role, **fields)
                write(self.dir, scaled(request.run_config(self.dir), {role: to}))


def write(run_dir, config):
    (run_dir / "config.yaml").write_text(resolved_yaml(config))


@pytest.fixture
def run_dir(tmp_path):
    place = tmp_path / "run"
    place.mkdir()
    write(place, configuration(place))
    return place


@pytest.fixture
def driver(run_dir, monkeypatch):
    """It has left something in the ledger already, of an earlier request too."""
    made = Driver(run_dir, monkeypatch)
    made.ledger.record("leased", {"grpo/0": [0]})
    made.ledger.note("scaled", role="rollout", **{"from": 4}, to=3, wanted=3, step=1)
    return made


def scale(*args):
    done = CliRunner().invoke(app, ["scale", *map(str, args)])
    return done.exit_code, done.output.replace("\n", " ")


def test_a_run_is_asked_and_its_answers_are_shown(driver, run_dir):
    driver.script = [
        [("rollout", 2, 2, 3, ""), ("reward", 1, 1, 2, "")], [], [("reward", 1, 2, 2, "")], [("rollout", 2, 3, 3, "")],
    ]  # fmt: skip
    code, said = scale(run_dir, 3, "--reward", 2)
    assert code == 0 and driver.requests == [{"rollout": 3, "reward": 2}] and driver.slept == 4
    assert said.startswith("asked for 3 rollout workers, 2 reward workers; the run takes it up when its step ends ")
    assert "after step 3: 2 rollout workers, 3 asked for after step 3: 1 reward worker, 2 asked for after step 3: 2" in said
    assert said.strip().endswith(f"{run_dir}: 3 rollout workers, 2 reward workers")


def test_without_waiting_it_only_asks_and_what_was_not_taken_up_is_kept(driver, run_dir):
    assert scale(run_dir, 3, "--wait", 0)[0] == scale(run_dir, "--reward", 2, "--wait", 0)[0] == 0
    assert scale(run_dir, 1, "--wait", 0)[0] == 0 and driver.slept == 0
    assert taken(run_dir) == {"rollout": 1, "reward": 2} and taken(run_dir) == {}
    assert not list(run_dir.glob(f"{NAME}*"))


@pytest.mark.parametrize(
    ("script", "code", "message"),
    [
        ([[("rollout", 2, 2, 3, "the cluster has 2 cores")]], 2, "rollout workers: 2, not 3: the cluster has 2 cores"),
        (
            [[("rollout", 2, 2, 3, "")], [("rollout", 2, 2, 3, "no node has room")]],
            3, "the run failed: rollout workers: 2, not 3: no node has room",
        ),
        ([[("rollout", 2, 2, 3, "")], [("rollout", 2, 2, 1, "")]], 3, "rollout workers: a later request asks for 1"),
        ([[("rollout", 2, 2, 3, "")], [None]], 3, "the run ended before it had 3 rollout workers"),
    ],
)  # fmt: skip
def test_what_does_not_come_about_has_its_exit_code_and_its_reason(driver, run_dir, script, code, message):
    driver.script = script
    found, said = scale(run_dir, 3)
    assert found == code and message in said


def test_a_request_before_it_that_is_still_carried_out_is_not_taken_for_its_own(driver, run_dir):
    driver.script = [[("rollout", 1, 2, 4, ""), ("rollout", 2, 2, 4, "no room")], [("rollout", 2, 2, 3, "")]]
    driver.script += [[("rollout", 2, 3, 3, "")]]
    assert scale(run_dir, 3)[0] == 0


def test_a_run_that_ends_before_it_takes_the_request_up_is_left_without_one(driver, run_dir, monkeypatch):
    monkeypatch.setattr(request.time, "sleep", lambda seconds: driver.held.__exit__())
    code, said = scale(run_dir, 3)
    assert code == 3 and "the run ended before it had 3 rollout workers" in said and not (run_dir / NAME).exists()


def test_a_request_stands_when_nobody_waits_for_it_any_more(driver, run_dir, monkeypatch):
    code, said = scale(run_dir, 3, "--wait", 1e-9)
    assert code == 3 and "is not taken up yet: the step under way is not over; it stands" in said
    driver.script = [[("rollout", 2, 2, 3, "")]]
    monkeypatch.setattr(request, "POLL_S", 0)
    code, said = scale(run_dir, 3, "--wait", 0.2)
    assert code == 3 and "not within 0.2 s: the request for 3 rollout workers is carried out; it stands" in said

    def stop(seconds):
        raise KeyboardInterrupt

    monkeypatch.setattr(request.time, "sleep", stop)
    with pytest.raises(request.Stopped, match="the request stands, and the run goes on with it"):
        request.request(run_dir, {"rollout": 4}, 60, print)
    assert json.loads((run_dir / NAME).read_text()) == {"rollout": 4}


def test_a_run_that_nobody_runs_is_told_apart(run_dir, tmp_path):
    again = f"`cohort resume {run_dir} rollout.workers=3` goes on with as many"
    assert scale(run_dir, 3) == (2, f"error: {run_dir}: nobody runs it now; {again} ")
    (run_dir / "lock").touch()
    assert "nobody runs it now" in scale(run_dir, 3)[1] and not (run_dir / NAME).exists()
    write(run_dir, config := configuration(run_dir))
    (run_dir / "summary.json").write_text(json.dumps({"stages": stage_facts(config)}))
    assert scale(run_dir, 3) == (2, f"error: {run_dir} is finished; expected a run that goes on ")
    assert scale(tmp_path, 3) == (2, f"error: {tmp_path} is not a run directory: config.yaml is missing ")


@pytest.mark.parametrize(
    ("changes", "args", "message"),
    [
        ({}, [0], "error: rollout.workers: found 0; expected at least 1"),
        ({}, ["--reward", -1], "error: reward.workers: found -1; expected at least 1"),
        (SHARED, [2], "error: rollout.workers: engines that share GPUs with the learner's ranks"),
        (EVALUATION, [2], "is an evaluation; expected a run"),
        ({}, [], "expected a number of rollout workers, or --reward"),
    ],
)  # fmt: skip
def test_what_a_run_cannot_have_is_refused_before_it_is_asked(driver, run_dir, changes, args, message):
    base = configuration(run_dir).model_dump(mode="json")
    write(run_dir, RunConfig.model_validate({**base, **changes}) if changes else configuration(run_dir))
    code, said = scale(run_dir, *args)
    assert code == 2 and message in said and not (run_dir / NAME).exists()


def test_reward_workers_are_scaled_where_engines_share_gpus(driver, run_dir):
    write(run_dir, configuration(run_dir, **SHARED))
    driver.script = [[("reward", 1, 1, 2, "")], [("reward", 1, 2, 2, "")]]
    assert scale(run_dir, "--reward", 2)[0] == 0
