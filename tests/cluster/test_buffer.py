"""Waves begun ahead: what a step trains was begun within the bound, by one version or by several, whoever is slow."""

import random
from dataclasses import replace
from types import SimpleNamespace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cluster.fibers import HUB
from cluster.run.buffer import BoundBroken, Buffer
from cluster.run.progress import Progress
from cluster.run.sources import Source
from reward.types import ScoredGroup
from rollout.types import Group
from tests.cluster.simulated import Clockwork
from tests.reward.builders import question, sample


@pytest.fixture
def world(monkeypatch):
    world = Clockwork()
    monkeypatch.setattr(HUB, "world", world)
    yield world
    HUB.close()


class Slow(Source):
    """Samples a wave in `takes(wave)` seconds and scores it in as many; every output says which versions made it."""

    def __init__(self, world, serving, takes):
        self.world, self.serving, self.takes, self.sampling, self.most = world, serving, takes, 0, 0

    def job(self, ordinals):
        return lambda sampled: self._made(ordinals, sampled)

    def _made(self, ordinals, sampled):
        self.sampling += 1
        self.most = max(self.most, self.sampling)
        first = self.serving.version
        self._take(ordinals)
        versions = ((first, 0), (self.serving.version, 1)) if self.serving.version != first else ((first, 0),)
        self.sampling -= 1
        groups = [self._group(n, versions) for n in ordinals]
        sampled(groups)
        return self._scored(ordinals, groups)

    def again(self, groups):
        ordinals = [group.question.ordinal for group in groups]
        return lambda sampled: (sampled(groups), self._scored(ordinals, groups))[1]

    def _group(self, ordinal, versions):
        return Group(question=question(ordinal), samples=(replace(sample("#### 7", ordinal), versions=versions),))

    def _scored(self, ordinals, groups):
        self._take(ordinals)
        return [ScoredGroup(question=g.question, scored=tuple(SimpleNamespace(sample=s) for s in g.samples)) for g in groups]

    def _take(self, ordinals):
        HUB.wait([self.world.answer(object(), self.takes(ordinals[0] // len(ordinals)))])


def stage(steps, ahead, in_flight=False):
    fields = {"name": "grpo", "steps": steps, "questions_per_step": 2, "follows_policy": True}
    return SimpleNamespace(**fields, max_staleness=ahead, in_flight=in_flight)


def run(world, part, takes, trains, begin_at=0, kept=(), until=None):
    """Steps of a learner that takes `trains(step)` seconds; the versions of every step's outputs, and the buffer."""
    progress, serving = Progress([part]), SimpleNamespace(version=10 + begin_at)
    progress.done = begin_at
    source = Slow(world, serving, takes)
    buffer = Buffer(part, source, progress, serving)
    buffer.admit(kept)
    versions = {}
    while progress.done < (until or part.steps):
        buffer.admit()
        groups = buffer.take()
        versions[progress.done] = {span[0] - 10 for g in groups for s in g.scored for span in s.sample.versions}
        HUB.wait([world.answer(object(), trains(progress.done))])
        progress.finish_step()
        buffer.quiet()
        serving.version += 1
    return versions, buffer, source


@pytest.mark.parametrize("ahead", [0, 1, 2, 5])
def test_scheduled_every_step_is_sampled_by_the_version_that_the_bound_names(world, ahead):
    rng = random.Random(ahead)
    versions, _, source = run(world, stage(8, ahead), lambda wave: rng.uniform(0, 9), lambda step: rng.uniform(0, 9))
    assert versions == {t: {max(0, t - ahead)} for t in range(8)}
    assert source.most == 1, "waves never meet"


@pytest.mark.parametrize(("ahead", "seconds"), [(0, 8 * (5 + 5 + 10)), (1, 5 + 5 + 8 * 10)])
def test_staleness_one_hides_sampling_and_scoring_behind_training(world, ahead, seconds):
    run(world, stage(8, ahead), lambda wave: 5, lambda step: 10)
    assert world.now() == seconds


@pytest.mark.parametrize("in_flight", [False, True])
@pytest.mark.parametrize(("takes", "trains"), [(1, 10), (10, 1)])
def test_ten_times_slower_on_either_side_no_more_waits_than_the_bound_allows(world, takes, trains, in_flight):
    held = []

    def learn(step):
        held.append(len(HUB._fibers))
        return trains

    run(world, stage(20, 3, in_flight), lambda wave: takes, learn)
    assert max(held) <= 3


@pytest.mark.slow
@settings(deadline=None, max_examples=300)
@given(
    ahead=st.integers(0, 4),
    in_flight=st.booleans(),
    takes=st.lists(st.floats(0, 50), min_size=9, max_size=9),
    trains=st.lists(st.floats(0, 50), min_size=9, max_size=9),
)
def test_no_schedule_breaks_the_bound(ahead, in_flight, takes, trains):
    before, HUB.world = HUB.world, Clockwork()
    try:
        part = stage(9, ahead, in_flight and ahead > 0)
        versions, _, source = run(HUB.world, part, lambda wave: takes[wave], lambda step: trains[step])
        assert list(versions) == list(range(9)), "every step is trained, in order"
        assert all(min(made) >= max(0, t - ahead) and max(made) <= t for t, made in versions.items())
        assert part.in_flight or all(len(made) == 1 for made in versions.values())
        assert source.most <= (ahead + 1 if part.in_flight else 1)
    finally:
        HUB.close()
        HUB.world = before


def test_in_flight_versions_change_while_waves_are_sampled(world):
    versions, _, source = run(world, stage(6, 2, in_flight=True), lambda wave: 7, lambda step: 2)
    assert source.most > 1 and any(len(made) > 1 for made in versions.values())


def test_an_output_of_an_older_version_is_refused(world):
    part, serving = stage(3, 1), SimpleNamespace(version=4)
    progress = Progress([part])
    progress.done = 2
    buffer = Buffer(part, Slow(world, SimpleNamespace(version=1), lambda wave: 1), progress, serving)
    buffer.admit()
    with pytest.raises(
        BoundBroken, match=r"step 3 of grpo: grpo/4\[0\] was sampled by version 1; expected 3 \(max_staleness 1\)"
    ):
        buffer.take()


@pytest.mark.parametrize("ahead", [0, 1, 3])
@pytest.mark.parametrize("cut", [1, 2, 5])
def test_what_was_sampled_ahead_is_trained_after_a_resume_as_it_would_have_been(world, ahead, cut):
    part = stage(8, ahead)
    whole, *_ = run(world, part, lambda wave: 3, lambda step: 4)
    first, buffer, _ = run(world, part, lambda wave: 3, lambda step: 4, until=cut)
    kept = buffer.sampled_ahead()
    assert [group.question.ordinal for group in kept] == list(range(2 * cut, 2 * min(8, cut + ahead)))
    HUB.close()
    rest, *_ = run(world, part, lambda wave: 3, lambda step: 4, begin_at=cut, kept=kept)
    assert first | rest == whole
