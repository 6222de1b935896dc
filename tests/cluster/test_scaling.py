"""Workers of a live run that come and go: it ends as one whose numbers never changed, and the ledger says what was done."""

import json

import pytest

from cluster.fleet.calls import RoleFailed
from cluster.records.ledger import scalings
from cluster.records.metrics import read_jsonl
from cluster.run.directory import run_config
from cluster.run.request import NAME
from tests.cluster.elastic import MOST, Elastic
from tests.cluster.test_pipeline import GRPO, SFT, FakeRoles, configuration, drive, sample_files, trained
from tests.cluster.test_restart import Failing, live


class Growing(Elastic, FakeRoles):
    """Two engines and one reward actor; at steps of the learner other numbers are asked for. `dies`: (call, slot)."""

    def __init__(self, tokenizer, asks=(), workers=(2, 1), dies=None, **more):
        super().__init__(tokenizer, **more)
        self.begin(*workers)
        self.held, self.version = dict.fromkeys(range(workers[0]), 0), dict.fromkeys(range(workers[0]), 0)
        self.asks, self.dies, self.seen = dict(asks), dies, []

    def starts(self, role, slot):
        if role == "rollout":
            self.held[slot] = self.version[slot] = 0

    def learn(self, method, *args):
        done = super().learn(method, *args)
        if method == "step" and (wanted := self.asks.pop(self.steps, None)):
            (self.config.output / NAME).write_text(json.dumps(wanted))
        return done

    def generate(self, waves, sampling, name, each, failed):
        self.seen.append(("asked", sorted(waves)))
        with self.asked("rollout", waves):
            dead = {self.dies[1]} & waves.keys() if self.dies and self.calls + 1 >= self.dies[0] else set()
            self.dies = None if dead else self.dies
            super().generate({slot: wave for slot, wave in waves.items() if slot not in dead}, sampling, name, each, failed)
        return dict.fromkeys(dead, "killed")

    def score(self, parts, by, name):
        with self.asked("reward", parts):
            return {slot: self.judged(part, by) for slot, part in parts.items()}, {}

    def replace(self, slot, why):
        self.seen.append(("replaced", slot))
        self.lives["rollout", slot] += 1
        super().replace(slot, why)

    def remove(self, role, slot):
        self.seen.append(("ended", f"{role}-{slot}"))
        super().remove(role, slot)


def settings(output, staleness=0, **changes):
    grpo = GRPO | {"steps": 8, "questions_per_step": 4, "max_staleness": staleness, **changes}
    return configuration(output, stages=[SFT, grpo])


@pytest.fixture(scope="module")
def steady(tmp_path_factory, data, tokenizer):
    """The run whose numbers of workers never change, by its staleness."""
    runs = tmp_path_factory.mktemp("steady")
    return {n: drive(settings(runs / str(n), n), data, Growing(tokenizer)) for n in (0, 1)}


def same(loop, steady):
    assert sorted(trained(loop.dir)) == sorted(trained(steady.dir)) and sample_files(loop.dir) == sample_files(steady.dir)
    assert loop.serving.digests == steady.serving.digests


def counts(loop, role="rollout"):
    return [row[f"{role}_workers"] for row in read_jsonl(loop.dir / "metrics.jsonl")]


def told(loop, role="rollout"):
    """(step, from, to, wanted) of every line, and its reason where there is one."""
    lines = [line for _, line in scalings(loop.dir / "ledger.jsonl") if line["role"] == role]
    return [(x["step"], x["from"], x["to"], x["wanted"]) + ((x["why"],) if "why" in x else ()) for x in lines]


def test_without_a_request_nothing_is_asked_of_the_fleet_and_nothing_written(steady):
    assert counts(steady[0]) == [2] * 10 and counts(steady[0], "reward") == [1] * 10
    assert told(steady[0]) == [] and not (steady[0].dir / "config.yaml").exists()
    assert not any(kind == "ended" for kind, _ in steady[0].roles.seen)


@pytest.mark.parametrize("staleness", [0, 1])
def test_a_run_that_is_scaled_up_and_down_ends_as_one_that_is_not(tmp_path, data, tokenizer, steady, staleness):
    asks = {1: {"rollout": 3}, 3: {"rollout": 4, "reward": 2}, 6: {"rollout": 1}, 8: {"rollout": 2, "reward": 1}}
    roles = Growing(tokenizer, asks)
    loop = drive(settings(tmp_path / "run", staleness), data, roles)
    assert counts(loop) == [2, 2, 3, 3, 4, 4, 1, 1, 1, 2] and counts(loop, "reward") == [1, 1, 1, 1, 2, 2, 2, 2, 1, 1]
    assert told(loop) == [
        (1, 2, 2, 3), (2, 2, 3, 3), (3, 3, 3, 4), (4, 3, 4, 4),
        (6, 4, 4, 1), (6, 4, 3, 1), (6, 3, 2, 1), (6, 2, 1, 1), (8, 1, 1, 2), (9, 1, 2, 2),
    ]  # fmt: skip
    assert told(loop, "reward") == [(3, 1, 1, 2), (4, 1, 2, 2), (8, 2, 2, 1), (8, 2, 1, 1)]
    assert [what for kind, what in roles.seen if kind == "ended"] == ["rollout-3", "rollout-2", "rollout-1", "reward-1"]
    assert ("asked", [0, 1, 2, 3]) in roles.seen and ("asked", [0]) in roles.seen
    same(loop, steady[staleness])
    kept = run_config(loop.dir)
    assert (kept.rollout.workers, kept.reward.workers) == (2, 1), "what a resumed run begins with"


def test_a_resumed_run_has_the_numbers_that_were_last_asked_for(tmp_path, data, tokenizer, steady):
    config = settings(tmp_path / "run")
    with pytest.raises(RuntimeError, match="killed"):
        drive(config, data, Growing(tokenizer, {3: {"rollout": 4}, 5: {"rollout": 3}}, fail_step=8))
    config = run_config(config.output)
    assert config.rollout.workers == 3 and config.stages == settings(tmp_path / "run").stages
    loop = drive(config, data, Growing(tokenizer, workers=(3, 1)))
    assert counts(loop) == [2, 2, 2, 2, 4, 3, 3, 3, 3, 3]
    same(loop, steady[0])


@pytest.mark.parametrize("fail", [("step", 4), ("publish", 3)], ids=str)
def test_a_learner_that_fails_while_a_worker_starts_loses_neither(tmp_path, data, tokenizer, steady, fail):
    class Restarted(Failing, Growing):
        pass

    roles = Restarted(tokenizer, fail)
    roles.asks = {3: {"rollout": 3}}
    loop = live(settings(tmp_path / "run"), data, roles)
    assert (roles.fails, roles.deaths, counts(loop)[-1]) == ([], 1, 3)
    same(loop, steady[0])


@pytest.mark.parametrize("slot", [0, 2])
def test_a_worker_that_dies_is_replaced_whether_the_run_began_with_it_or_not(tmp_path, data, tokenizer, steady, slot):
    roles = Growing(tokenizer, {3: {"rollout": 3}}, dies=(6, slot))
    loop = drive(settings(tmp_path / "run", 1), data, roles)
    assert ("replaced", slot) in roles.seen and roles.deaths == 1
    same(loop, steady[1])


class Stillborn(Growing):
    """New engines do not start, or fail in their first update."""

    starting = True

    def starts(self, role, slot):
        super().starts(role, slot)
        if self.starting:
            raise RoleFailed(f"no node has room for {role}-{slot}")

    def publish(self, version, slots):
        return ("", {2: "no memory"}, False) if slots == [2] else super().publish(version, slots)


@pytest.mark.parametrize("starting", [True, False])
def test_workers_that_do_not_come_are_given_up_and_the_run_goes_on(tmp_path, data, tokenizer, steady, starting):
    roles = Stillborn(tokenizer, {3: {"rollout": 3 + starting}})
    roles.starting = starting
    loop = drive(settings(tmp_path / "run"), data, roles)
    if starting:
        why = [(3, 2, 2, 4, "no node has room for rollout-2"), (3, 2, 2, 3, "no node has room for rollout-3")]
        assert told(loop) == [(3, 2, 2, 4), *why]
    else:
        assert told(loop) == [(3, 2, 2, 3), (4, 2, 2, 3, "rollout-2: no memory")]
    assert counts(loop) == [2] * 10 and run_config(loop.dir).rollout.workers == 2 and not roles.aside
    assert roles.deaths == 0, "the crash budget is for those that serve"
    same(loop, steady[0])


@pytest.mark.parametrize(
    ("wanted", "why"),
    [({"rollout": MOST + 1}, f"room for {MOST} engines"), ({"rollout": 0}, "rollout.workers: found 0; expected at least 1")],
)
def test_a_request_that_cannot_be_met_is_refused_and_changes_nothing(tmp_path, data, tokenizer, steady, wanted, why):
    loop = drive(settings(tmp_path / "run"), data, Growing(tokenizer, {3: wanted}))
    assert told(loop) == [(3, 2, 2, wanted["rollout"], why)]
    assert counts(loop) == [2] * 10 and not (loop.dir / "config.yaml").exists()
    same(loop, steady[0])


def test_a_worker_that_cannot_be_ended_is_reported_and_asked_for_nothing(tmp_path, data, tokenizer, steady):
    class Stubborn(Growing):
        def dismiss(self, role, slot):
            raise OSError("no route to its node")

    roles = Stubborn(tokenizer, {3: {"rollout": 1}, 6: {"rollout": 2}})
    loop = drive(settings(tmp_path / "run"), data, roles)
    why = "rollout-1 does not end: OSError('no route to its node')"
    assert told(loop) == [(3, 2, 2, 1), (3, 2, 1, 1), (3, 1, 1, 1, why), (6, 1, 1, 2), (7, 1, 2, 2)]
    assert ("asked", [0, 2]) in roles.seen and not roles.aside
    same(loop, steady[0])


def test_what_is_no_request_is_left_aside(tmp_path, data, tokenizer, steady, caplog):
    loop = drive(settings(tmp_path / "run"), data, Growing(tokenizer, {3: {"rolout": "many"}}))
    assert told(loop) == [] and "is left aside" in caplog.text
    same(loop, steady[0])


def test_the_parts_of_an_update_are_those_of_the_last_one_of_all_engines(tmp_path, data, tokenizer):
    class Parts(Growing):
        def publish(self, version, slots):
            self.split |= {"stage": 9.0} if slots == [1] else {"load": 1.0}
            return super().publish(version, slots)

    roles = Parts(tokenizer, dies=(6, 1))
    loop = drive(settings(tmp_path / "run"), data, roles)
    rows = [row for row in read_jsonl(loop.dir / "metrics.jsonl") if row["stage"] == "grpo"]
    assert ("replaced", 1) in roles.seen and roles.split == {"load": 1.0}
    assert [{k for k in row if k.startswith("seconds_sync_")} for row in rows] == [{"seconds_sync_load"}] * 8
