"""The transaction's logic with fake engines; tests/cluster/test_run.py does it with real ones."""

import pytest

from cluster.sync import FLOOR, Canary, CanaryFailed, CommitFailed, FanOut, PrepareFailed, publish

SEQUENCES = [[1, 2, 3], [4, 5]]
TRUTH = [[-1.0, -2.0], [-3.0]]


class FakeEngines:
    """Engines by slot that log what they are asked, and fail where told: {slot: method}."""

    def __init__(self, fail=None, digest="d"):
        self.fail, self.digest, self.calls = fail or {}, digest, []

    def invoke(self, slot, method, arguments):
        self.calls.append((slot, method, *arguments))
        return slot, method

    def gather(self, pending):
        errors = {s: "boom" for s, (slot, method) in pending.items() if self.fail.get(slot) == method}
        return {s: self.digest for s in pending if s not in errors}, errors


def fan_out(engines, slots=(0, 1), streaming=False, tp=1):
    return FanOut(slots, engines.invoke, engines.gather, tensor_parallel_size=tp, streaming=streaming)


PAYLOAD = {"manifest": {"digest": "d"}}


def test_a_failure_in_prepare_commits_nobody():
    engines = FakeEngines(fail={1: "update_weights"})
    client = fan_out(engines)
    client.start_weight_update()
    with pytest.raises(PrepareFailed, match="the old version still serves") as error:
        client.update_weights(PAYLOAD)
    assert set(error.value.failed) == {1}
    assert not any(method == "finish_weight_update" for _, method, *_ in engines.calls)


def test_an_engine_that_received_other_bytes_is_refused_in_prepare():
    with pytest.raises(PrepareFailed, match="received digest other, sent d"):
        fan_out(FakeEngines(digest="other")).update_weights(PAYLOAD)


def test_a_failure_in_load_is_a_commit_failure_of_that_engine_alone():
    with pytest.raises(CommitFailed) as error:
        fan_out(FakeEngines(fail={0: "finish_weight_update"})).finish_weight_update("3")
    assert set(error.value.failed) == {0}


@pytest.mark.parametrize("method", ["start_weight_update", "update_weights"])
def test_any_failure_of_a_streaming_transport_takes_the_engine_out_of_service(method):
    client = fan_out(FakeEngines(fail={0: method}), streaming=True)
    with pytest.raises(CommitFailed):
        client.start_weight_update()
        client.update_weights({})


@pytest.mark.parametrize("engines", [1, 2, 3])
@pytest.mark.parametrize("tp", [1, 2])
def test_every_nccl_rank_is_claimed_once(engines, tp):
    fake = FakeEngines()
    info = {"master_address": "127.0.0.1", "master_port": 1, "rank_offset": 1, "world_size": 1 + engines * tp}
    fan_out(fake, slots=range(engines), tp=tp).init_weight_transfer_engine(info)
    ranks = [call[2]["rank_offset"] + r for call in fake.calls for r in range(tp)]
    assert sorted([0, *ranks]) == list(range(1 + engines * tp))


class FakeFleet:
    """A fleet whose engines hold what was committed; `fail` lists, per publish call, (failures, mixed)."""

    def __init__(self, fail=(), held=None, budget=3):
        self.fail, self.held, self.budget, self.log = list(fail), held or {0: TRUTH, 1: TRUTH}, budget, []

    def slots(self):
        return [0, 1]

    def publish(self, version, slots):
        self.log.append(("publish", version, tuple(slots)))
        failed, mixed = self.fail.pop(0) if self.fail else ({}, False)
        return "digest", failed, mixed

    def score(self, slots, sequences):
        return {s: self.held[s] for s in slots}, {}

    def learner_logprobs(self, sequences):
        return TRUTH

    def replace(self, slot, why):
        self.log.append(("replace", slot))
        self.held[slot] = TRUTH
        self.budget -= 1
        if self.budget < 0:
            raise RuntimeError("crash budget")


CANARY = Canary(sequences=((1, 2, 3), (4, 5)), tolerance=0.01)


def test_after_a_failed_prepare_the_whole_update_is_done_again_with_a_new_engine():
    fleet = FakeFleet(fail=[({1: "x"}, False)])
    assert publish(fleet, 5, CANARY) == ("digest", 0.0)
    assert fleet.log == [("publish", 5, (0, 1)), ("replace", 1), ("publish", 5, (0, 1))]


def test_after_a_failed_commit_only_the_failed_engine_is_replaced_and_served():
    fleet = FakeFleet(fail=[({1: "x"}, True)])
    publish(fleet, 5, CANARY)
    assert fleet.log == [("publish", 5, (0, 1)), ("replace", 1), ("publish", 5, (1,))]


def test_an_engine_that_fails_the_canary_is_replaced():
    fleet = FakeFleet(held={0: TRUTH, 1: [[-1.5, -2.5], [-3.5]]})
    publish(fleet, 5, CANARY)
    assert fleet.log == [("publish", 5, (0, 1)), ("replace", 1), ("publish", 5, (1,))]


def test_a_persistent_failure_ends_when_the_crash_budget_is_spent():
    fleet = FakeFleet(fail=[({0: "x", 1: "x"}, True)] * 9, budget=3)
    with pytest.raises(RuntimeError, match="crash budget"):
        publish(fleet, 5, CANARY)


def test_the_tolerance_is_set_by_the_noise_at_version_0():
    noisy = [[-1.02, -2.0], [-3.0]]
    canary = Canary.calibrate(SEQUENCES, {0: TRUTH, 1: noisy}, TRUTH, "float32")
    assert canary.tolerance == pytest.approx(4 * 0.02 / 3)
    assert Canary.calibrate(SEQUENCES, {0: TRUTH}, TRUTH, "float32").tolerance == FLOOR["float32"]


@pytest.mark.parametrize("wrong", [[[-1.5, -2.5], [-3.5]], [[float("nan"), -2.0], [-3.0]], [[-1.0, -2.0], [-3.025]]])
def test_the_canary_fails_on_a_shift_a_nan_and_one_token_far_off(wrong):
    tight = Canary(sequences=CANARY.sequences, tolerance=0.001)
    with pytest.raises(CanaryFailed, match="rollout-1 does not hold the published weights"):
        tight.check(1, wrong, TRUTH)


def test_engines_that_disagree_with_the_learner_from_the_start_are_refused():
    with pytest.raises(CanaryFailed, match="on the same weights"):
        Canary.calibrate(SEQUENCES, {0: [[-1.0, -2.0], [-4.0]]}, TRUTH, "float32")
