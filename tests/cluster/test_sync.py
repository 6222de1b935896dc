"""The transaction's logic with fake engines; tests/cluster/test_run.py does it with real ones."""

import pytest

from cluster.fibers import HUB
from cluster.fleet.weight_update import CEILING, FLOOR, Canary, CanaryFailed, FanOut, Moved, UpdateFailed, publish, transact
from tests.cluster.simulated import Clockwork

SEQUENCES = [[1, 2, 3], [4, 5]]
TRUTH = [[-1.0, -2.0], [-3.0]]


class FakeEngines:
    """Engines by slot that log what they are asked, and fail where told: {slot: method}."""

    def __init__(self, fail=None, digest="d"):
        self.fail, self.digest, self.calls = fail or {}, digest, []

    def init(self, infos):
        return self._asked("init_weight_transfer_engine", {slot: (info,) for slot, info in infos.items()})

    def begin(self, slots):
        return self._asked("start_weight_update", dict.fromkeys(slots, ()))

    def update(self, slots, info):
        return self._asked("update_weights", dict.fromkeys(slots, (info,)))

    def finish(self, slots, version, sums):
        return self._asked("finish_weight_update", dict.fromkeys(slots, (version, sums)))

    def _asked(self, method, arguments):
        self.calls += [(slot, method, *given) for slot, given in arguments.items()]
        errors = {slot: f"{method}: boom" for slot in arguments if self.fail.get(slot) == method}
        return {slot: self.digest for slot in arguments if slot not in errors}, errors


def fan_out(engines, slots=(0, 1), tp=1):
    return FanOut(slots, engines, tensor_parallel_size=tp)


PAYLOAD = {"manifest": {"digest": "d"}}


def test_whoever_fails_is_left_out_of_what_follows():
    engines = FakeEngines(fail={1: "init_weight_transfer_engine"})
    client = fan_out(engines)
    client.init_weight_transfer_engine({})
    client.update_weights(PAYLOAD)
    assert client.failed == {1: "init_weight_transfer_engine: boom"}
    assert [call[:2] for call in engines.calls[2:]] == [(0, "update_weights")]


def test_an_engine_that_received_other_bytes_has_failed():
    client = fan_out(FakeEngines(digest="other"))
    client.update_weights(PAYLOAD)
    assert client.failed == dict.fromkeys((0, 1), "received digest other, sent d")


def transacted(engines, *, streaming, refused=None):
    """A transaction whose ranks find that `refused` fail; and the slots that were asked to finish."""

    def move(slots):
        engines.calls.append(("move", slots))
        return Moved(digest="d", sums={"w": 1}, failed=refused or {})

    done = transact(engines, move, [0, 1], 5, streaming=streaming)
    return done, [slot for slot, method, *_ in engines.calls if method == "finish_weight_update"]


@pytest.mark.parametrize("streaming", [False, True])
def test_a_version_is_committed_with_the_sums_of_what_was_sent(streaming):
    engines = FakeEngines()
    assert transacted(engines, streaming=streaming) == (("d", {}, False), [0, 1])
    assert engines.calls[-1] == (1, "finish_weight_update", 5, {"w": 1})


def test_with_shm_a_failure_before_the_commit_commits_nobody():
    assert transacted(FakeEngines(), streaming=False, refused={1: "x"}) == (("d", {1: "x"}, False), [])


def test_with_shm_the_ranks_do_not_gather_for_a_receiver_that_is_dead():
    engines = FakeEngines(fail={1: "start_weight_update"})
    assert transacted(engines, streaming=False) == (("", {1: "start_weight_update: boom"}, False), [])
    assert not any(call[0] == "move" for call in engines.calls)


def test_a_streaming_transport_goes_on_without_a_receiver_that_is_dead():
    engines = FakeEngines(fail={1: "start_weight_update"})
    assert transacted(engines, streaming=True) == (("d", {1: "start_weight_update: boom"}, True), [0])
    assert ("move", [0]) in engines.calls


def test_a_failure_in_the_commit_is_that_engines_alone():
    done, _ = transacted(FakeEngines(fail={0: "finish_weight_update"}), streaming=False)
    assert done == ("d", {0: "finish_weight_update: boom"}, True)


@pytest.mark.parametrize("engines", [1, 2, 3])
@pytest.mark.parametrize("tp", [1, 2])
def test_every_nccl_rank_is_claimed_once(engines, tp):
    fake = FakeEngines()
    info = {"master_address": "127.0.0.1", "master_port": 1, "rank_offset": 1, "world_size": 1 + engines * tp}
    fan_out(fake, slots=range(engines), tp=tp).init_weight_transfer_engine(info)
    ranks = [call[2]["rank_offset"] + r for call in fake.calls for r in range(tp)]
    assert sorted([0, *ranks]) == list(range(1 + engines * tp))


OLD = [[-1.1, -2.1], [-3.1]]


class FakeFleet:
    """A fleet whose engines hold what was last committed to them, a fresh one the weights on disk.

    `fail` lists, per publish call, (failures, mixed); `commit(slot)` is what a slot's engine holds after a commit.
    """

    def __init__(self, fail=(), commit=lambda slot: TRUTH, budget=3):
        self.fail, self.commit, self.budget, self.log = list(fail), commit, budget, []
        self.held = {0: OLD, 1: OLD}

    def slots(self):
        return [0, 1]

    def publish(self, version, slots):
        self.log.append(("publish", version, tuple(slots)))
        failed, mixed = self.fail.pop(0) if self.fail else ({}, False)
        if not failed or mixed:
            self.held |= {slot: self.commit(slot) for slot in slots if slot not in failed}
        return "digest", failed, mixed

    def engine_logprobs(self, slots, sequences):
        return {s: self.held[s] for s in slots}, {}

    def replace(self, slot, why):
        self.log.append(("replace", slot))
        self.held[slot] = OLD
        self.budget -= 1
        if self.budget < 0:
            raise RuntimeError("crash budget")


CANARY = Canary(sequences=((1, 2, 3), (4, 5)), tolerance=0.01)


class Slow(FakeFleet):
    def replace(self, slot, why):
        HUB.wait([HUB.world.answer(object(), 10)])
        super().replace(slot, why)


def test_engines_that_fail_together_in_an_update_start_together(monkeypatch):
    monkeypatch.setattr(HUB, "world", Clockwork())
    fleet = Slow(fail=[({0: "x", 1: "y"}, False)])
    publish(fleet, 3, CANARY, TRUTH)
    assert HUB.world.now() == 10 and [entry[0] for entry in fleet.log] == ["publish", "replace", "replace", "publish"]


def test_after_a_failed_prepare_the_whole_update_is_done_again_with_a_new_engine():
    fleet = FakeFleet(fail=[({1: "x"}, False)])
    assert publish(fleet, 5, CANARY, TRUTH) == ("digest", 0.0)
    assert fleet.log == [("publish", 5, (0, 1)), ("replace", 1), ("publish", 5, (0, 1))]


def test_after_a_failed_commit_only_the_failed_engine_is_replaced_and_served():
    fleet = FakeFleet(fail=[({1: "x"}, True)])
    publish(fleet, 5, CANARY, TRUTH)
    assert fleet.log == [("publish", 5, (0, 1)), ("replace", 1), ("publish", 5, (1,))]


def first_time(good, bad):
    """A commit that goes wrong on an engine's first update of slot 1."""
    wrong = iter([bad])
    return lambda slot: next(wrong, good) if slot == 1 else good


def test_an_engine_that_fails_the_canary_is_replaced_and_served():
    fleet = FakeFleet(commit=first_time(TRUTH, [[-1.5, -2.5], [-3.5]]))
    publish(fleet, 5, CANARY, TRUTH)
    assert fleet.log == [("publish", 5, (0, 1)), ("replace", 1), ("publish", 5, (1,))]
    assert fleet.held == {0: TRUTH, 1: TRUTH}


def test_an_engine_that_kept_the_old_version_is_refused():
    fleet = FakeFleet(commit=first_time(TRUTH, OLD))
    publish(fleet, 5, CANARY, TRUTH)
    assert ("replace", 1) in fleet.log


def test_a_canary_that_refuses_a_fresh_engine_too_ends_the_run_at_once():
    fleet = FakeFleet(commit=lambda slot: OLD, budget=9)
    with pytest.raises(CanaryFailed, match="a fresh engine is refused too: rollout-0 does not hold the published weights"):
        publish(fleet, 1, CANARY, TRUTH)
    assert [entry[0] for entry in fleet.log] == ["publish", "replace", "replace", "publish"]


def test_a_failure_that_repeats_exactly_ends_the_run_at_once_and_names_itself():
    fleet = FakeFleet(fail=[({0: "no such layer"}, True)] * 9, budget=9)
    with pytest.raises(UpdateFailed, match="rollout-0: a fresh engine fails as the one before it did: no such layer"):
        publish(fleet, 5, CANARY, TRUTH)
    assert fleet.log.count(("replace", 0)) == 1


def test_failures_that_differ_end_when_the_crash_budget_is_spent():
    fleet = FakeFleet(fail=[({0: f"pid {i}"}, True) for i in range(9)], budget=3)
    with pytest.raises(RuntimeError, match="crash budget"):
        publish(fleet, 5, CANARY, TRUTH)


def test_the_tolerance_is_set_by_the_noise_at_version_0():
    noisy = [[-1.003, -2.0], [-3.0]]
    canary = Canary.calibrate(SEQUENCES, {0: TRUTH, 1: noisy}, TRUTH, "float32")
    assert canary.tolerance == pytest.approx(4 * 0.003 / 3)
    assert Canary.calibrate(SEQUENCES, {0: TRUTH}, TRUTH, "float32").tolerance == FLOOR["float32"]


@pytest.mark.parametrize("wrong", [[[-1.5, -2.5], [-3.5]], [[float("nan"), -2.0], [-3.0]], [[-1.0, -2.0], [-3.025]]])
def test_the_canary_fails_on_a_shift_a_nan_and_one_token_far_off(wrong):
    tight = Canary(sequences=CANARY.sequences, tolerance=0.001)
    with pytest.raises(CanaryFailed, match="rollout-1 does not hold the published weights"):
        tight.check(1, wrong, TRUTH)


@pytest.mark.parametrize(("dtype", "near", "far"), [("float32", 0.012, 0.03), ("bfloat16", 0.25, 0.5)])
def test_noise_that_no_arithmetic_makes_is_refused_and_does_not_widen_the_tolerance(dtype, near, far):
    """A model directory that lacks a tensor: learner and engine fill it with different numbers."""
    noisy = Canary.calibrate(SEQUENCES, {0: [[-1.0 - near, -2.0], [-3.0]]}, TRUTH, dtype)
    assert noisy.tolerance == CEILING[dtype] < 4 * near / 3
    with pytest.raises(CanaryFailed, match=f"on the same weights .* in {dtype}"):
        Canary.calibrate(SEQUENCES, {0: [[-1.0 - far, -2.0], [-3.0]]}, TRUTH, dtype)
