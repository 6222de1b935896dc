"""Cores and memory of a run on CPUs, counted before it starts and per node when it connects."""

import re
from types import SimpleNamespace

import pytest

from cluster.config.run_config import load
from cluster.fleet import placement
from cluster.fleet.bundles import PlacementError
from cluster.fleet.demand import Size, demands, held_parameters, memory, too_many
from tests.cluster.test_preflight import QUICKSTART, report  # noqa: F401

GB = 1e9


def needed(*overrides, parameters=2_400_000, **more):
    return demands(load(QUICKSTART, list(overrides)), Size(parameters=parameters, **more))


def test_what_each_role_needs_worked_by_hand():
    settings = ["rollout.workers=3", "rollout.kv_cache_gb=0.5", "rollout.tensor_parallel_size=2", "learner.ranks=2"]
    engine, learner, reward = needed(*settings, "rollout.dtype=bfloat16", parameters=10**9)
    assert (engine.count, engine.ranks, learner.count, reward.count) == (3, 2, 2, 1)
    assert engine.bytes == pytest.approx(0.9 * GB + 2 * (0.6 * GB + 0.5 * 2**30) + 3 * 2 * GB)
    # GRPO holds the policy and a reference in float32: (16 + 4) bytes a parameter over two ranks, and (12 + 4) more while a
    # checkpoint is written. Each rank reads its own part only.
    assert learner.bytes == pytest.approx(0.45 * GB + 18 * GB)
    assert reward.bytes == 0.1 * GB
    config = load(QUICKSTART, [*settings, "rollout.dtype=bfloat16"])
    assert demands(config, Size(parameters=10**9), activations=9 * GB)[1].bytes == pytest.approx(learner.bytes + 9 * GB)
    rewarding, size = load(QUICKSTART.with_name("grpo_process.yaml"), ["learner.ranks=2"]), Size(parameters=10**9)
    none, much, little = (demands(rewarding, size, activations=b)[1].bytes for b in (0, 9 * GB, 3 * GB))
    assert (much - none, little) == (pytest.approx(5 * GB), none), "a reward model is whole before or after it is trained"
    ahead = needed(*settings, "rollout.dtype=bfloat16", "stages.grpo.max_staleness=1", parameters=10**9)[1]
    assert ahead.bytes - learner.bytes == pytest.approx(2 / 2 * GB), "the version that serves, in bfloat16, over two ranks"


def test_of_an_adapter_the_learner_holds_the_base_once_and_states_of_the_adapter_alone():
    settings = ["learner.ranks=2", "rollout.dtype=bfloat16", "learner.lora={rank: 8}", "stages.grpo.max_staleness=1"]
    size = {"parameters": 10**9, "adapter": 10**7}
    _, learner, _ = needed(*settings, **size)
    # The base in float32; of the adapter (16 + 12) bytes, two copies of its reference, and the version that serves.
    assert learner.bytes == pytest.approx(0.45 * GB + (4e9 + (28 + 8 + 2) * 1e7) / 2)
    merged = needed(*settings[:2], "learner.lora={rank: 8, send: merged}", settings[3], **size)[1]
    assert merged.bytes - learner.bytes == pytest.approx((10**9 - 10**7) * 2 / 2)
    recipe = QUICKSTART.with_name("grpo_process.yaml")
    assert held_parameters(load(recipe, ["learner.lora={rank: 8}"]), Size(**size)) == (10**7 + 10**9, 10**7)
    assert held_parameters(load(recipe), Size(parameters=10**9)) == (2 * 10**9, 10**9)


def test_a_teacher_is_held_in_the_compute_dtype_sharded():
    settings = ["learner.ranks=2", "learner.compute_dtype=bfloat16"]
    alone, taught = (needed(*settings, parameters=10**9, teacher=n)[1].bytes for n in (0, 8 * 10**9))
    assert taught - alone == pytest.approx((2 * 8e9) / 2)


def test_a_model_that_guesses_is_held_as_loaded_and_as_packed():
    alone, guessed = (needed("rollout.dtype=bfloat16", draft=n)[0].bytes for n in (0, 10**8))
    assert guessed - alone == pytest.approx(2 * 2 * 1e8)


def test_two_of_each_fit_on_two_cores_and_more_processes_of_a_role_than_cores_do_not():
    assert too_many(needed("rollout.workers=2", "learner.ranks=2", "reward.workers=4"), 2, "here") == []
    found = too_many(needed("rollout.workers=40", "learner.ranks=64"), 2, "this machine")
    end = "processes that compute at the same time, and this machine has 2 cores; expected at most one a core"
    assert found == [f"rollout.workers: 40 {end}", f"learner.ranks: 64 {end}"]
    assert len(too_many(needed("rollout.tensor_parallel_size=3"), 2, "here")) == 1
    assert too_many(needed(), 0.5, "here") == [], "half a core runs one process"


def test_memory_is_the_sum_of_all_roles_and_the_driver():
    wanted = needed("rollout.workers=2", "learner.ranks=2")
    whole = 1.0 * GB + sum(d.count * d.bytes for d in wanted)
    found, words = memory(wanted)
    assert found == whole < 8 * GB
    assert words.startswith("memory: rollout.workers 2 x 2.") and f" = {whole / GB:.3g} GB" in words


@pytest.mark.slow
def test_check_refuses_what_this_machine_cannot_hold(report, monkeypatch):  # noqa: F811
    monkeypatch.setattr("cluster.run.preflight.os.sched_getaffinity", lambda pid: set(range(2)))
    monkeypatch.setattr("cluster.run.preflight.memory_here", lambda: 24 * GB)
    cores, memory = report("rollout.workers=40").problems
    assert cores.startswith("rollout.workers: 40 processes")
    assert re.match(r"memory: rollout.workers 40 x [\d.]+ GB.*, and this machine has 24 GB; expected fewer", memory)
    assert len(report("learner.ranks=64").problems) == 2
    two = report("rollout.workers=2", "learner.ranks=2")
    assert two.problems == []
    assert "placement: rollout 2, learner 2, reward 1 on this machine, in turns on 2 cores" in two.facts
    assert any(re.match(r"memory: rollout.workers 2 x .* of 24 GB$", fact) for fact in two.facts)
    monkeypatch.setenv("RAY_ADDRESS", "elsewhere:1")
    assert report("rollout.workers=40").problems == [], "the cluster is asked when the run connects"
    monkeypatch.delenv("RAY_ADDRESS")
    monkeypatch.setattr("cluster.run.preflight.gpus_here", lambda: 2)
    monkeypatch.setattr("cluster.run.preflight.gpu_memory_here", lambda: 85 * GB)
    monkeypatch.setattr("cluster.run.preflight.os.sched_getaffinity", lambda pid: set(range(4)))
    assert "placement: rollout 1 (1 GPU each), learner 1 (1 GPU each), reward 1 on this machine" in report().facts
    (problem,) = report("rollout.workers=2").problems
    assert re.match(r"(rollout|learner)-\d fits on no node\. Wanted:", problem) and "this machine: 4 CPU, 2 GPU free" in problem


class FakeRay:
    """A cluster of nodes with this memory (bytes, half of them the object store's) and cores."""

    def __init__(self, *memory, cpus=2.0):
        self.each = [{"CPU": cpus, "memory": m / 2, "object_store_memory": m / 2} for m in memory]

    def nodes(self):
        return [{"NodeID": f"node-{i}", "Alive": True, "Resources": each} for i, each in enumerate(self.each)]

    def cluster_resources(self):
        return {kind: sum(each[kind] for each in self.each) for kind in self.each[0]}


def placed(monkeypatch, model_dir, ray, *overrides):
    """What Ray is asked to reserve."""
    asked = []
    monkeypatch.setattr(placement, "ray", ray)
    monkeypatch.setattr(
        placement, "placement_group", lambda bundles, **_: asked.extend(bundles) or SimpleNamespace(wait=lambda s: True)
    )
    placement.place(load(QUICKSTART, list(overrides)), model_dir)
    return asked


@pytest.mark.parametrize(
    ("cpus", "free", "workers", "asked"),
    [(2, [0.2], 2, 0.1), (2, [0.0], 2, 1e-4), (16, [2.0, 9.0], 2, 1.0), (2, [0.2], 3, 1.0)],
)
def test_a_worker_more_takes_what_is_left_of_the_cores_and_a_whole_one_where_there_are_too_few(
    monkeypatch, tiny_model_dir, cpus, free, workers, asked
):
    """A whole one fits nowhere, so that Ray scales the cluster where it may."""
    monkeypatch.setattr(placement, "ray", FakeRay(100 * GB, cpus=cpus))
    monkeypatch.setattr(placement, "available_resources_per_node", lambda: {n: {"CPU": c} for n, c in enumerate(free)})
    bundle = placement.added(load(QUICKSTART, [f"rollout.workers={workers}"]), tiny_model_dir, "rollout", 7)
    assert (bundle.role, bundle.slot, bundle.place, bundle.cpus, bundle.gpus) == ("rollout", 7, 0, asked, 0)
    grows = load(QUICKSTART, [f"rollout.workers={workers}", "cluster.grows=cpu"])
    assert placement.added(grows, tiny_model_dir, "rollout", 7).cpus == 1.0, "where nodes come, each worker has a core"


def test_memory_is_counted_per_node_when_the_run_connects(monkeypatch, tiny_model_dir):
    small = ["rollout.workers=2", "rollout.kv_cache_gb=0.5"]
    assert placed(monkeypatch, tiny_model_dir, FakeRay(3 * GB, 3 * GB), *small) == [{"CPU": 0.9}] * 4
    wanted = r"rollout-1 fits on no node. Wanted:\n  rollout-0: 0.9 CPU, 0 GPU, 1.59 GB\n"
    with pytest.raises(PlacementError, match=wanted):
        placed(monkeypatch, tiny_model_dir, FakeRay(2.5 * GB, 1.4 * GB), *small)
    with pytest.raises(PlacementError, match="rollout.workers: 3 processes .* the cluster has 2 cores"):
        placed(monkeypatch, tiny_model_dir, FakeRay(100 * GB), "rollout.workers=3")
