"""No setting is accepted that nothing reads: not by the code, not by this run, not on this machine."""

import ast
from datetime import timedelta
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from cluster.config.explain import _sections
from cluster.config.recipe import ConfigError
from cluster.config.run_config import RunConfig, load
from cluster.fleet import actors, connection, placement, roles, spawner
from cluster.fleet.bundles import PlacementError
from cluster.run.preflight import check
from cluster.stopping import Stop
from learner.algorithms.table import Algorithm, RewardModelRow
from rollout.config import RolloutConfig
from tests.cluster.test_config import SMALL, problems

ROOT = Path(__file__).parents[2]
SOURCES = [path for package in ("rollout", "reward", "learner", "cluster") for path in (ROOT / package).rglob("*.py")]
GIVEN = {
    "rollout.kv_cache_gb": "rollout.kv_cache_gb=2",
    "rollout.cores_per_worker": "rollout.cores_per_worker=1",
    "rollout.gpu_memory_utilization": "rollout.gpu_memory_utilization=0.5",
    "learner.offload": "learner.offload=true",
    "cluster.metrics_port": "cluster.metrics_port=9000",
    "cluster.dashboard": "cluster.dashboard=true",
}
ON_CPUS = ("rollout.kv_cache_gb", "rollout.cores_per_worker")
ON_GPUS = ("rollout.gpu_memory_utilization", "learner.offload")
UNTRAINED = ("stages=[]", "learner.ranks=0", "data.demonstrations=null")
LOCAL = ("cluster.metrics_port", "cluster.dashboard")


@pytest.fixture
def recipe(tmp_path):
    path = tmp_path / "small.yaml"
    path.write_text(SMALL)
    return path


def named(lines):
    return [line.partition(":")[0] for line in lines]


def unread_by_check(recipe, *overrides):
    """Without a model the check ends before it reads data."""
    *unread, absent = check(load(recipe, ["model={path: absent}", *overrides])).problems
    assert absent.startswith("model.path: ")
    return unread


def reads(node):
    """Names of attributes that code takes, outside of validators and of what only describes."""
    decorators = node.decorator_list if isinstance(node, ast.FunctionDef) else []
    if getattr(node, "name", "") == "formula" or any("validator" in ast.unparse(decorator) for decorator in decorators):
        return
    if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Load):
        yield node.attr
    if isinstance(node, ast.Call) and ast.unparse(node.func) == "getattr" and isinstance(node.args[1], ast.Constant):
        yield node.args[1].value
    for child in ast.iter_child_nodes(node):
        yield from reads(child)


def keys(model, prefix=""):
    for name, field in model.model_fields.items():
        yield prefix + name
        for section in _sections(field.annotation):
            yield from keys(section, f"{prefix}{name}.")


def test_every_key_of_a_recipe_is_read_by_some_code():
    checks = {ROOT / "cluster/config/contradictions.py", ROOT / "cluster/run/preflight.py"}
    read = {name for path in SOURCES if path not in checks for name in reads(ast.parse(path.read_text(encoding="utf-8")))}
    every = [*keys(RunConfig), *keys(Algorithm), *keys(RewardModelRow)]
    assert len(every) > 150 and {"rollout.tools.max_programs", "credit.whiten"} <= set(every)
    assert [key for key in every if key.rpartition(".")[2] not in read] == []
    assert "no_code_reads_this" not in read


@pytest.mark.parametrize(("gpus", "unread"), [(False, ON_GPUS), (True, ON_CPUS)])
def test_what_this_machine_does_not_read_is_refused_by_the_check(recipe, monkeypatch, gpus, unread):
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 8 * gpus)
    found = unread_by_check(recipe, *GIVEN.values())
    assert sorted(named(found)) == sorted(unread)
    assert all("GPUs" in line and line.endswith("expected to be left out") for line in found)


def test_what_a_running_cluster_does_not_read_is_refused_by_the_check(recipe, monkeypatch):
    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.1:6379")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    found = unread_by_check(recipe, *GIVEN.values())
    assert named(found) == list(LOCAL) and all("RAY_ADDRESS 10.0.0.1:6379 runs already" in line for line in found)
    assert unread_by_check(recipe) == []


def test_a_resumed_run_is_told_before_it_connects(recipe, monkeypatch):
    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.1:6379")
    monkeypatch.setattr(connection.ray, "init", lambda **options: pytest.fail("it connected"))
    with (
        pytest.raises(ConfigError, match="cluster.metrics_port: given"),
        connection.connected(load(recipe, [GIVEN[LOCAL[0]]]), 0, Stop()),
    ):
        pass


def test_runs_of_one_name_have_actors_of_their_own(recipe, monkeypatch):
    """Ray's names of actors are unique in a namespace."""
    namespaces = []
    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.1:6379")
    monkeypatch.setattr(connection, "await_cluster", lambda *_: None)
    monkeypatch.setattr(connection.ray, "init", lambda **options: namespaces.append(options["namespace"]))
    for output in ("first", "second", "first"):
        with connection.connected(load(recipe, [f"output={output}"]), 0, Stop()):
            pass
    assert namespaces[0] == namespaces[2] != namespaces[1]


@pytest.mark.parametrize(("resources", "unread"), [({"CPU": 8.0, "GPU": 2.0}, ON_CPUS), ({"CPU": 8.0}, ON_GPUS)])
def test_what_the_clusters_machines_do_not_read_is_refused_when_they_are_known(recipe, monkeypatch, resources, unread):
    monkeypatch.setattr(placement.ray, "nodes", lambda: [])
    monkeypatch.setattr(placement.ray, "cluster_resources", lambda: resources)
    with pytest.raises(PlacementError) as caught:
        placement.place(load(recipe, list(GIVEN.values())), Path("unread"))
    assert sorted(named(str(caught.value).split("\n"))) == sorted(unread)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["stages.sft.optimizer.final_fraction=0.5"], "stages.0.optimizer.final_fraction: given, but schedule is constant"),
        (["stages.1.samples_per_question=1", "stages.1.algorithm=online_rft", "stages.1.max_refills=1"], "max_refills: given"),
        ([*UNTRAINED, "rollout.temperature=0.7"], "rollout.temperature: given, but no"),
        ([*UNTRAINED, "data.hold_out=7"], "data.hold_out: given, but nothing is tr"),
        ([*UNTRAINED, "learner.compute_dtype=bfloat16"], "learner.compute_dtype: given"),
        ([*UNTRAINED, "keep_checkpoints=3"], "keep_checkpoints: given, but nothing"),
        (
            ["stages.grpo.credit={cell: decoupled_group_relative, weights: {corect: 1}}"],
            "'corect'; expected components of the rule: correct, format; did",
        ),
    ],
)
def test_what_this_run_does_not_read_is_refused(recipe, overrides, message):
    assert any(message in line for line in problems(recipe, *overrides))


def test_the_learners_collectives_wait_as_long_as_the_driver_does(recipe, tmp_path, tiny_model_dir, monkeypatch):
    config = load(recipe, ["cluster.train_deadline_s=1234"])
    spawned = []

    def spawn(self, role, slot, cls, **options):
        if role != "learner":
            raise InterruptedError
        return lambda *args: spawned.append((cls, args))

    monkeypatch.setattr(spawner, "place", lambda *_: [])
    monkeypatch.setattr(spawner.Spawner, "spawn", spawn)
    with pytest.raises(InterruptedError):
        roles.Roles(config, tiny_model_dir, max_model_len=64, incarnation=0).start()
    monkeypatch.setattr(actors, "take_threads", lambda *share: None)
    monkeypatch.setattr(actors, "whereabouts", dict)
    cls, args = spawned[0]
    actor = cls(*args)
    actor.start(f"file://{tmp_path}/rendezvous", 0, 1, RolloutConfig(), "shm", False)
    try:
        assert dist.group.WORLD._get_backend(torch.device("cpu")).options._timeout == timedelta(seconds=1234)
    finally:
        actor.worker.close()
