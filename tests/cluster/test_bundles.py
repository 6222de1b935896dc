"""What the roles ask of nodes, and on which it fits: decided without Ray."""

import re

import pytest

from cluster.config.contradictions import unread_here
from cluster.config.recipe import ConfigError
from cluster.config.run_config import load
from cluster.fleet.bundles import Node, PlacementError, bundles, by_role, fit, matches, share_of_core
from tests.cluster.test_preflight import QUICKSTART


@pytest.mark.parametrize(
    ("count", "cpus", "share"),
    [(3, [2], 0.6), (4, [2, 2], 0.9), (5, [2, 2], 0.6), (2, [16], 1.0), (3, [64, 1], 1.0), (4, [1, 0, 1], 0.45), (1, [], 0.0)],
)
def test_a_share_of_a_core_is_one_of_which_enough_fit_on_the_nodes(count, cpus, share):
    """Five shares of 4 x 0.9 / 5 would not: two on each node of two cores."""
    assert share_of_core(count, cpus) == share


def gpus(*counts, **labels):
    """Nodes with so many GPUs each, and 64 cores; `labels`: of the node of that name."""
    names = "abcdef"[: len(counts)]
    return {
        name: Node(resources={"CPU": 64.0, "GPU": float(n)}, labels=labels.get(name, {}))
        for name, n in zip(names, counts, strict=True)
    }


def wanted(*overrides):
    return bundles(load(QUICKSTART, list(overrides)), cpus=[64], gpus=64)


def nodes_of(found, asked):
    """Role -> the nodes of its slots."""
    out = {}
    for bundle, node in zip(asked, found, strict=True):
        out[bundle.role] = out.get(bundle.role, "") + node
    return out


@pytest.mark.parametrize(
    ("overrides", "nodes", "where"),
    [
        # Ranks on one node, engines on as many as there are, the reward actor in the fullest.
        (["learner.ranks=4", "rollout.workers=4"], gpus(8, 8), {"learner": "aaaa", "rollout": "baba", "reward": "a"}),
        # The ranks leave the larger node to the engine that needs all of it.
        (["learner.ranks=4", "rollout.tensor_parallel_size=8"], gpus(8, 4), {"learner": "bbbb", "rollout": "a", "reward": "b"}),
        # Whole nodes first, where one does not hold all ranks.
        (["learner.ranks=10", "rollout.workers=2", "rollout.tensor_parallel_size=4"], gpus(2, 8, 8),
         {"learner": "bbbbbbbbaa", "rollout": "cc", "reward": "b"}),
        # Apart there would be no room: largest first.
        (["learner.ranks=2", "rollout.workers=2", "rollout.tensor_parallel_size=2"], gpus(3, 3),
         {"learner": "ab", "rollout": "ab", "reward": "a"}),
        # Engines on the learner's GPUs.
        (["learner.ranks=4", "rollout.workers=2", "rollout.tensor_parallel_size=2", "rollout.sleep=true"], gpus(2, 4),
         {"learner": "bbbb", "rollout": "bb", "reward": "b"}),
    ],
)  # fmt: skip
def test_ranks_are_packed_engines_spread_and_an_engine_is_inside_a_node(overrides, nodes, where):
    asked = wanted(*overrides)
    assert nodes_of(fit(asked, nodes), asked) == where


def test_labels_and_resources_decide_and_what_lacks_is_said_of_every_node():
    nodes = gpus(8, 8, 8, a={"kind": "spot"}, b={"kind": "kept"})
    placed = "cluster.placement={learner: {labels: {kind: '!spot'}}, rollout: {labels: {kind: 'in(spot, other)'}}, "
    placed += "reward: {resources: {judges: 1}}}"
    asked = wanted(placed, "learner.ranks=2")
    nodes |= {"d": Node(resources={"CPU": 2.0, "judges": 1.0})}
    assert nodes_of(fit(asked, nodes), asked) == {"learner": "bb", "rollout": "a", "reward": "d"}
    with pytest.raises(PlacementError) as without:
        fit(asked, {name: nodes[name] for name in "bcd"})
    said = str(without.value).split("\n")
    assert said[0] == "rollout-0 fits on no node. Wanted:" and "  reward-0: 1 CPU, 0 GPU, 1 judges" in said
    assert said[-3:] == [
        "  b: 64 CPU, 8 GPU free; for rollout-0: label kind is kept, wanted in(spot, other)",
        "  c: 64 CPU, 8 GPU free; for rollout-0: label kind is not set, wanted in(spot, other)",
        "  d: 2 CPU, 0 GPU, 1 judges free; for rollout-0: GPU 1 wanted, 0 left, label kind is not set, wanted in(spot, other)",
    ]
    with pytest.raises(PlacementError, match="for reward-0: judges 1 wanted, 0 left"):
        fit(asked, {name: nodes[name] for name in "abc"})


@pytest.mark.parametrize(
    ("selector", "label", "is_so"),
    [("a", "a", True), ("a", "b", False), ("a", None, False), ("!a", "b", True), ("!a", None, True), ("!a", "a", False),
     ("in(a, b)", "b", True), ("in(a,b)", "c", False), ("!in(a, b)", "c", True), ("!in(a, b)", "a", False)],
)  # fmt: skip
def test_selectors_are_rays(selector, label, is_so):
    assert matches(selector, label) is is_so


def test_each_role_has_a_group_and_engines_on_the_ranks_gpus_are_in_theirs():
    apart = by_role(wanted("learner.ranks=2", "rollout.workers=2"))
    assert {role: [(b.slot, b.place) for b in group] for role, group in apart.items()} == {
        "learner": [(0, 0), (1, 1)], "rollout": [(0, 0), (1, 1)], "reward": [(0, 0)],
    }  # fmt: skip
    shared = by_role(wanted("learner.ranks=4", "rollout.workers=2", "rollout.tensor_parallel_size=2", "rollout.sleep=true"))
    assert {role: [(b.role, b.place) for b in group] for role, group in shared.items()} == {
        "learner": [("rollout", 0), ("rollout", 1), ("learner", 0), ("learner", 0), ("learner", 1), ("learner", 1)],
        "reward": [("reward", 0)],
    }


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("cluster.placement.rollout.labels={zone: 'in()'}", "cluster.placement.rollout.labels.zone"),
        ("cluster.placement.learner.resources={GPU: 2}", "found GPU, which follows from the role's other settings"),
        ("cluster.placement.learner.resources={racks: 0}", "cluster.placement.learner.resources.racks"),
        ("cluster.placement.rollouts={}", "did you mean 'rollout'?"),
    ],
)
def test_placements_that_mean_nothing_are_refused(override, said):
    with pytest.raises(ConfigError, match=re.escape(said)):
        load(QUICKSTART, [override])


def test_engines_on_the_ranks_gpus_and_a_machine_without_a_cluster_read_no_placement():
    labels = "cluster.placement.rollout.labels={kind: spot}"
    with pytest.raises(ConfigError, match="cluster.placement.rollout: given, but engines share the GPUs of"):
        load(QUICKSTART, [labels, "rollout.sleep=true"])
    config = load(QUICKSTART, [labels, "cluster.grows=gpu"])
    assert unread_here(config, gpus=True) == unread_here(config, address="10.0.0.1:6379") == []
    named = [line.partition(":")[0] for line in unread_here(config, address="")]
    assert named == ["cluster.placement.rollout", "cluster.grows"]
