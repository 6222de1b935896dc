"""The loop with waves sampled ahead, with fakes at the seams: killed anywhere it ends as the run that was never killed."""

import pytest

from cluster.fibers import HUB
from cluster.records.balance import Balance
from cluster.records.ledger import history, ordinal_of
from cluster.records.metrics import read_jsonl
from cluster.records.samples import evaluation_rows
from cluster.run.checkpoints import Checkpoints
from tests.cluster.simulated import Clockwork
from tests.cluster.test_pipeline import GRPO, SFT, FakeRoles, configuration, drive, sample_files, trained


def ahead(config, staleness):
    stages = [SFT, GRPO | {"max_staleness": staleness}]
    return configuration(config, stages=stages)


@pytest.fixture(scope="module")
def whole(tmp_path_factory, data, tokenizer):
    """The unbroken run of each staleness."""
    runs = tmp_path_factory.mktemp("whole")
    return {n: drive(ahead(runs / str(n), n), data, FakeRoles(tokenizer)) for n in (0, 1, 2)}


@pytest.mark.parametrize("staleness", [0, 1, 2])
@pytest.mark.parametrize("fail_step", range(1, 7))
def test_a_run_killed_in_any_step_and_resumed_equals_the_unbroken_run(tmp_path, data, tokenizer, whole, fail_step, staleness):
    config, unbroken = ahead(tmp_path / "run", staleness), whole[staleness]
    with pytest.raises(RuntimeError, match="killed"):
        drive(config, data, FakeRoles(tokenizer, fail_step=fail_step))
    loop = drive(config, data, FakeRoles(tokenizer))
    assert trained(loop.dir) == trained(unbroken.dir)
    assert sample_files(loop.dir) == sample_files(unbroken.dir)
    assert loop.serving.digests == unbroken.serving.digests
    assert [r["step"] for r in read_jsonl(loop.dir / "metrics.jsonl")] == list(range(1, 7))
    assert evaluation_rows(loop.dir) == evaluation_rows(unbroken.dir)


@pytest.mark.parametrize("staleness", [1, 2])
def test_a_run_killed_at_every_step_equals_the_unbroken_run(tmp_path, data, tokenizer, whole, staleness):
    config = ahead(tmp_path / "run", staleness)
    for _ in range(6):
        with pytest.raises(RuntimeError, match="killed"):
            drive(config, data, FakeRoles(tokenizer, fail_step=2))
        if Checkpoints(config.output, keep=2).newest()[1]["step"] == 5:
            break
    loop = drive(config, data, FakeRoles(tokenizer))
    assert trained(loop.dir) == trained(whole[staleness].dir)
    assert sample_files(loop.dir) == sample_files(whole[staleness].dir)
    assert loop.serving.digests == whole[staleness].serving.digests


@pytest.mark.parametrize("staleness", [0, 1, 2])
def test_an_output_is_as_old_as_the_bound_lets_it_be_and_the_metrics_say_so(whole, staleness):
    rows = {r["step"]: r for r in read_jsonl(whole[staleness].dir / "metrics.jsonl")}
    for step in range(3, 7):
        behind = min(step - 3, staleness)
        made = {tuple(v) for r in sample_files(whole[staleness].dir)[f"step_{step}.jsonl"] for v in r["versions"]}
        assert made == {(rows[step]["version"] - behind, 0)}
        assert rows[step]["staleness_mean"] == rows[step]["staleness_max"] == behind


def test_an_engine_that_dies_in_a_wave_changes_nothing_but_the_attempt(tmp_path, data, tokenizer, whole):
    for staleness, die_at in ((0, 1), (0, 3), (0, 4), (1, 4), (2, 5)):
        roles = FakeRoles(tokenizer, die_at=die_at)
        loop = drive(ahead(tmp_path / f"run{staleness}{die_at}", staleness), data, roles)
        assert loop.roles.deaths == 1
        assert sample_files(loop.dir) == sample_files(whole[staleness].dir)
        assert trained(loop.dir) == trained(whole[staleness].dir)
        assert loop.serving.digests == whole[staleness].serving.digests


@pytest.mark.parametrize("fail_step", [4, 5, 6])
def test_groups_that_were_replaced_ahead_are_trained_after_a_resume_too(tmp_path, data, tokenizer, fail_step):
    dapo = GRPO | {"algorithm": "dapo", "max_refills": 2, "max_staleness": 2}
    unbroken = drive(configuration(tmp_path / "unbroken", stages=[SFT, dapo]), data, FakeRoles(tokenizer))
    assert any(".1" in group for group, _ in trained(unbroken.dir)), "some were replaced"
    config = configuration(tmp_path / "run", stages=[SFT, dapo])
    with pytest.raises(RuntimeError, match="killed"):
        drive(config, data, FakeRoles(tokenizer, fail_step=fail_step))
    loop = drive(config, data, FakeRoles(tokenizer))
    assert sample_files(loop.dir) == sample_files(unbroken.dir)
    assert trained(loop.dir) == trained(unbroken.dir) and loop.serving.digests == unbroken.serving.digests


class Patient(FakeRoles):
    """A step takes a second, as an answer does, and that of a refill five."""

    def learn(self, method, *args):
        if method == "step":
            HUB.wait([HUB.world.answer(object(), 1)])
        return super().learn(method, *args)

    def generate(self, waves, sampling, name, each, failed):
        refilled = any("." in lease.group_id for leases in waves.values() for lease in leases)
        HUB.wait([HUB.world.answer(object(), 5 if refilled else 1)])
        return super().generate(waves, sampling, name, each, failed)


def test_in_flight_a_run_killed_while_groups_are_replaced_goes_on_and_trains_each_ordinal_once(
    tmp_path, data, tokenizer, monkeypatch
):
    monkeypatch.setattr(HUB, "world", Clockwork())
    dapo = GRPO | {"algorithm": "dapo", "max_refills": 2, "max_staleness": 2, "in_flight": True, "steps": 6}
    cut = set()
    for fail_step in range(4, 9):
        config = configuration(tmp_path / f"run{fail_step}", stages=[SFT, dapo])
        with pytest.raises(RuntimeError, match="killed"):
            drive(config, data, Patient(tokenizer, fail_step=fail_step))
        kept = Checkpoints(config.output, keep=2).newest()[1]["ledger_offset"]
        stands = {g: x["event"] for x in history(config.output / "ledger.jsonl", kept) for g in x["groups"]}
        cut |= {g for g, event in stands.items() if "." in g and event == "leased"}
        loop = drive(config, data, Patient(tokenizer))
        done = [(ordinal_of(g), i) for g, i in trained(loop.dir) if g.startswith("dapo")]
        assert done == [(("dapo", n), i) for n in range(12) for i in range(3)]
        balance = Balance(loop.dir / "ledger.jsonl", finished=True)
        counts = balance.facts()["stages"]["dapo"]["samples"]
        assert str(balance).startswith("ledger: PASS") and counts["leased"] == counts["trained"] + counts["dropped"] > 36
    assert cut, "checkpoints were taken while groups were being replaced"
