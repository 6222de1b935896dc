"""How long the driver waits: as the work can take, which no hostile output can lengthen."""

import tempfile
import time
from types import SimpleNamespace

import pytest

from cluster import fibers
from cluster.fibers import HUB
from cluster.fleet import actors, calls, pace, roles
from cluster.fleet.actors import LearnerActor
from cluster.fleet.learner_group import LearnerFailed, LearnerGroup, Ranks
from cluster.fleet.pace import Pace
from cluster.fleet.roles import Roles
from reward.config import RewardConfig
from reward.types import ScoredGroup, as_given
from rollout.config import RolloutConfig
from rollout.types import Lease, Sampling
from tests.cluster import local_ray
from tests.cluster.local_ray import FakeRay, Unwatched
from tests.cluster.simulated import Clockwork
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
    made.waited, made.watch, made.paces = [], Unwatched(), {"rule": Pace(), "model": Pace()}

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


def test_judgements_are_not_awaited_much_longer_than_those_before_took_but_as_long_as_any_judge_may(driver, monkeypatch):
    monkeypatch.setattr(HUB, "world", world := Clockwork())
    made = driver(reward=RewardConfig(judge_seconds=10, judges=2))
    groups = sampled_groups([sample("#### 7", 0, i) for i in range(4)], [question(0)])
    gather = made.watch.gather
    made.watch.gather = lambda *args: (world.wait((), 0.5), gather(*args))[1]
    for _ in range(2):
        made.score({0: groups}, "rule", "score")
        made.score({0: groups}, "model", "score")
    made.paces["model"].took(40.0, 4)
    made.score({0: groups}, "model", "score")
    longest = 4 / 2 * (10 + 2)
    assert made.waited == [100 + longest] * 2 + [60 + 20 * 0.5] * 2 + [100 + longest]
    made.config.reward = RewardConfig(judge_seconds=100, judges=2)
    made.score({0: groups}, "rule", "score")
    assert made.waited[-1] == 4 / 2 * (100 + 2), "a judge's own deadline comes first"


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

    def step(self, batch):
        time.sleep(0.6)
        return "stepped"

    def publish(self, seconds):
        time.sleep(seconds)
        return "published"


def test_the_deadline_of_an_update_begins_when_the_learner_has_ended_its_step(monkeypatch):
    for module in (fibers, calls):
        monkeypatch.setattr(module, "ray", FakeRay)
    learner = LearnerGroup({0: local_ray.Handle(Learner())}, 10.0, lambda name: "")
    step = HUB.spawn(lambda: learner.step([]), "step")
    HUB.until(lambda: step.wait is not None, "the step")
    assert learner.named("publish", 0.3).publish(0.0) == "published" and step.result() == "stepped"
    with pytest.raises(LearnerFailed, match="learner-0: no answer within 0.3 s"):
        learner.named("publish", 0.3).publish(0.6)


class Hangs:
    """Steps take 0.05 s, but for one."""

    def __init__(self, at):
        self.at, self.steps = at, 0

    def begin_stage(self):
        pass

    def step(self, batch):
        self.steps += 1
        time.sleep(2.0 if self.steps == self.at else 0.05)


@pytest.mark.parametrize(("at", "begins"), [(3, False), (3, True), (1, False)])
def test_a_rank_that_hangs_in_a_step_is_found_by_what_the_steps_before_took(monkeypatch, at, begins):
    for module in (fibers, calls):
        monkeypatch.setattr(module, "ray", FakeRay)
    monkeypatch.setattr(pace, "LEAST_S", 0.1)
    learner = LearnerGroup({0: local_ray.Handle(Hangs(at))}, 10.0, lambda name: "")
    batch = [ScoredGroup(question=question(0), scored=(as_given(sample("#### 7", 0, 0)),))]
    for _ in range(2):
        learner.named("a step").step(batch)
    if begins:
        learner.begin_stage()
    if at == 3 and not begins:
        began = time.monotonic()
        with pytest.raises(LearnerFailed, match="learner-0: no answer within 1"):
            learner.named("a step").step(batch)
        assert 1.0 < time.monotonic() - began < 2.0
    else:  # nothing is known of steps that are the first of a process or a stage
        learner.named("a step").step(batch)
