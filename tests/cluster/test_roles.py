"""How long the driver waits: as the work can take, which no hostile output can lengthen."""

import tempfile
import time
from types import SimpleNamespace

import pytest

from cluster import fibers
from cluster.fibers import HUB
from cluster.fleet import actors, calls, roles
from cluster.fleet.actors import LearnerActor
from cluster.fleet.learner_group import LearnerFailed, LearnerGroup, Ranks
from cluster.fleet.roles import Roles
from reward.config import RewardConfig
from rollout.config import RolloutConfig
from rollout.types import Lease, Sampling
from tests.cluster import local_ray
from tests.cluster.local_ray import FakeRay, Unwatched
from tests.cluster.test_pipeline import GRPO, SFT, configuration
from tests.reward.builders import question, sample, sampled_groups


class Handle:
    """An actor's method: what it is asked is kept."""

    def __init__(self):
        self.asked = []
        self.generate = self.score = self

    def options(self, name, num_returns=1):
        return self

    def remote(self, *arguments):
        self.asked.append(arguments)
        return arguments


@pytest.fixture
def driver(monkeypatch):
    """A driver's hold on two actors of each kind; every deadline that it waits with is in `waited`."""
    made = Roles.__new__(Roles)
    made.rollout, made.reward = {0: Handle(), 1: Handle()}, {0: Handle(), 1: Handle()}
    made.waited, made.watch = [], Unwatched()

    def gather(role, calls, deadline_s, name):
        made.waited.append(deadline_s)
        return {slot: call[0] for slot, call in calls.items()}, {}

    def follow(calls, deadline_s, each, failed, what):
        made.waited.append(deadline_s)
        return {}

    made.watch.gather = gather
    monkeypatch.setattr(roles, "follow", follow)

    def configured(**changes):
        cluster = SimpleNamespace(generate_deadline_s=100.0)
        made.config = SimpleNamespace(cluster=cluster, rollout=RolloutConfig(), reward=RewardConfig())
        vars(made.config).update(changes)
        return made

    return configured


def leases(*sizes):
    return [Lease(question=question(i), group_id=f"grpo/{i}", indices=tuple(range(n)), attempt=0) for i, n in enumerate(sizes)]


def test_a_wave_is_awaited_as_long_as_its_programs_may_take(driver):
    sampling = Sampling(temperature=1.0, max_new_tokens=8)
    made = driver()
    made.generate({0: leases(8, 8), 1: leases(4)}, sampling, "generate", print, print)
    with_tools = driver(rollout=RolloutConfig(tools={"seconds": 5, "at_once": 2, "max_programs": 3}))
    with_tools.generate({0: leases(8, 8), 1: leases(4)}, sampling, "generate", print, print)
    assert made.waited == [110, 110 + 16 * 3 / 2 * (5 + 2)]
    assert [call[2] for call in made.rollout[0].asked] == [100, 100], "the engine's own deadline"


def test_a_wait_for_other_work_of_the_driver_lasts_as_long_as_that_may():
    changes = {"cluster": {"worker_restarts": 1}, "reward": {"judge_seconds": 10, "judges": 2}}
    config = configuration("unused", stages=[SFT, GRPO | {"max_staleness": 2}], **changes)
    once = (600 + 10) + 2 * 3 / 2 * (10 + 2) + 600 + 300 + 4 * 120
    assert roles.patience(config) == (once, once * 2 * 3)


@pytest.mark.parametrize(("function", "kinds"), [(None, 1), (f"{__file__}:score", 2)])
def test_judgements_are_awaited_as_long_as_they_may_take(driver, function, kinds):
    made = driver(reward=RewardConfig(judge_seconds=10, judges=2, function=function))
    outputs = [sample("#### 7", n, i) for n in range(4) for i in range(30)]
    groups = sampled_groups(outputs, [question(n) for n in range(4)])
    assert made.score({0: groups[::2], 1: groups[1::2]}, "rule", "score")[0] == {0: groups[::2], 1: groups[1::2]}
    assert made.waited == [100 + kinds * 60 / 2 * (10 + 2)]


def test_an_evaluation_has_no_learner():
    config = SimpleNamespace(learner=SimpleNamespace(ranks=0), cluster=SimpleNamespace(start_deadline_s=1.0), stages=())
    ranks = Ranks(config, None, None, 1.0)
    ranks.spawn(), ranks.locate()
    assert ranks.start(RolloutConfig(), "none") == {}


@pytest.mark.parametrize("where", ["ab", "aa"])
def test_ranks_of_one_node_meet_in_a_private_file_that_goes_with_them_and_others_at_an_address(monkeypatch, tmp_path, where):
    class At(LearnerActor):
        def locate(self):
            return {"node_id": where[self.rank]}, ""

    for module in (fibers, calls, actors):
        monkeypatch.setattr(module, "ray", FakeRay)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    config = SimpleNamespace(learner=SimpleNamespace(ranks=2), cluster=SimpleNamespace(start_deadline_s=10.0), stages=())
    spawner = SimpleNamespace(spawn=lambda role, rank, cls: lambda *arguments: local_ray.Handle(At(*arguments)))
    ranks = Ranks(config, tmp_path, spawner, 1.0)
    for _ in range(2):  # the second time in the place of those that failed
        ranks.spawn()
        ranks.locate()
        folders = list(tmp_path.iterdir())
        if where == "aa":
            assert ranks._rendezvous == f"file://{folders[0]}/store" and folders[0].stat().st_mode & 0o777 == 0o700
        else:
            assert ranks._rendezvous.startswith("tcp://127.0.0.1:")
        assert len(folders) == (where == "aa")
    ranks.left()
    assert not list(tmp_path.iterdir())


class Learner:
    """A step takes 0.6 s, a publish as long as it is told."""

    def step(self):
        time.sleep(0.6)
        return "stepped"

    def publish(self, seconds):
        time.sleep(seconds)
        return "published"


def test_the_deadline_of_an_update_begins_when_the_learner_has_ended_its_step(monkeypatch):
    for module in (fibers, calls):
        monkeypatch.setattr(module, "ray", FakeRay)
    learner = LearnerGroup({0: local_ray.Handle(Learner())}, 10.0, lambda name: "")
    step = HUB.spawn(learner.step, "step")
    HUB.until(lambda: step.wait is not None, "the step")
    assert learner.named("publish", 0.3).publish(0.0) == "published" and step.result() == "stepped"
    with pytest.raises(LearnerFailed, match="learner-0: no answer within 0.3 s"):
        learner.named("publish", 0.3).publish(0.6)
