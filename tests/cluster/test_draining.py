"""Workers that come and go while others work, under a clock that is a number."""

import pytest

from cluster import fibers
from cluster.fibers import HUB
from cluster.records.metrics import read_jsonl
from tests.cluster.simulated import Clockwork
from tests.cluster.test_pipeline import drive, trained
from tests.cluster.test_scaling import Growing, counts, settings, told


class Slow(Growing):
    """Calls take time: a step of the learner 10 s, a wave 1 s, on slot 1 `slow` s; a start as long as `late` says."""

    def __init__(self, tokenizer, asks, slow=1.0, late=None, **more):
        super().__init__(tokenizer, asks, **more)
        self.slow, self.late = slow, late or {}

    def starts(self, role, slot):
        super().starts(role, slot)
        self._pass(self.late.get(slot, 1.0))

    def learn(self, method, *args):
        if method == "step":
            self._pass(10)
        return super().learn(method, *args)

    def generate(self, waves, sampling, name, each, failed):
        with self.asked("rollout", waves):
            self._pass(1)
            errors = super().generate({slot: wave for slot, wave in waves.items() if slot != 1}, sampling, name, each, failed)
            self._pass(self.slow - 1)
            if 1 in waves:
                errors |= super().generate({1: waves[1]}, sampling, name, each, failed)
        return errors

    def remove(self, role, slot):
        super().remove(role, slot)
        self.seen.append(("at", HUB.world.now()))

    def _pass(self, seconds):
        HUB.wait([HUB.world.answer(object(), seconds)])


@pytest.fixture
def clock(monkeypatch):
    monkeypatch.setattr(fibers.HUB, "world", Clockwork())


@pytest.mark.parametrize("dies", [False, True])
def test_a_worker_ends_what_it_samples_before_it_is_ended(tmp_path, data, tokenizer, clock, dies):
    """In flight, slot 1 samples for 35 s while steps are trained without it; it may die on the way."""
    roles = Slow(tokenizer, {4: {"rollout": 1}}, slow=35.0)
    if dies:
        roles.dies = (8, 1)
    loop = drive(settings(tmp_path / "run", 2, in_flight=True), data, roles)
    (at,) = [i for i, (kind, what) in enumerate(roles.seen) if (kind, what) == ("ended", "rollout-1")]
    assert ("asked", [1]) in roles.seen[:at] and ("replaced", 1) in roles.seen[:at] or not dies
    assert all(1 not in what for kind, what in roles.seen[at:] if kind == "asked")
    assert told(loop) == [(4, 2, 2, 1), (4, 2, 1, 1)] and counts(loop)[4:] == [1] * 6
    taken_up = sum(1 for kind, what in roles.seen[:at] if kind == "asked" and what == [0])
    assert taken_up > 0, "slot 0 goes on meanwhile"
    ordinals = [int(group.split("/")[1]) for group, _ in trained(loop.dir) if group.startswith("grpo")]
    assert sorted(ordinals) == [n for n in range(32) for _ in range(3)]


def test_a_later_request_takes_the_place_of_one_that_is_carried_out(tmp_path, data, tokenizer, clock):
    """Workers 2 and 3 wait for a node; then one fewer is asked for, then none of them."""
    asks = {3: {"rollout": 4}, 5: {"rollout": 3}, 7: {"rollout": 2}}
    roles = Slow(tokenizer, asks, late={2: 1000.0, 3: 1000.0})
    loop = drive(settings(tmp_path / "run"), data, roles)
    assert told(loop) == [(3, 2, 2, 4), (5, 2, 2, 3), (7, 2, 2, 2)]
    assert [what for kind, what in roles.seen if kind == "ended"] == ["rollout-3", "rollout-2"]
    assert HUB.world.now() < 500, "nobody waits for them" and counts(loop) == [2] * 10


def test_training_goes_on_while_a_worker_starts(tmp_path, data, tokenizer, clock):
    roles = Slow(tokenizer, {3: {"rollout": 3}}, late={2: 25.0})
    loop = drive(settings(tmp_path / "run"), data, roles)
    assert counts(loop) == [2] * 6 + [3] * 4
    rows = read_jsonl(loop.dir / "metrics.jsonl")
    assert max(row["seconds_step"] for row in rows) < 13, "a step is not longer than without"
