"""Workers that die together, and one that fails before it serves."""

import pytest

from cluster.fibers import HUB, Turn
from cluster.fleet.calls import RoleFailed
from cluster.fleet.sampler import Bound, Sampler
from cluster.records.ledger import Ledger, history, scalings
from cluster.run.request import NAME
from reward.config import RewardConfig
from reward.judging.judges import gold_check
from rollout.data.datasets import load_data
from tests.cluster.elastic import Elastic
from tests.cluster.simulated import Clockwork
from tests.cluster.test_iterations import ITERATIVE, Dies, configuration
from tests.cluster.test_pipeline import drive
from tests.cluster.test_sampling import SAMPLING, Slots, lease, over


class Timed(Slots):
    """Slot 1 answers after 3 and 60 s. Slot 0 dies after 1 s; a fresh engine takes 10 s to start, and 5 for its wave."""

    def __init__(self):
        super().__init__()
        self.seen = []

    def generate(self, waves, sampling, name, each, failed):
        began = HUB.world.now()
        self.seen.append((began, {slot: [x.attempt for x in wave] for slot, wave in waves.items()}))
        if len(self.seen) == 1:
            self._until(began + 1)
            failed(0, "killed")
        after = (3, 60) if 1 in waves else (5, 5)
        wave = waves[1] if 1 in waves else waves[0]
        for asked, group, seconds in zip(wave, self._wave(wave), after, strict=True):
            self._until(began + seconds)
            each(asked, group)
        return {0: "killed"} if 1 in waves else {}

    def replace(self, slot, why):
        self.lives["rollout", slot] += 1
        self._until(HUB.world.now() + 10)

    def _until(self, at):
        HUB.wait((), until=at)


def test_an_engine_that_dies_is_replaced_and_asked_again_while_the_others_go_on(monkeypatch, tmp_path):
    monkeypatch.setattr(HUB, "world", Clockwork())
    slots, came, ledger = Timed(), [], Ledger(tmp_path / "ledger.jsonl")
    groups = over(slots).sample(
        [lease(n) for n in range(4)],
        SAMPLING,
        "generate",
        ledger,
        lambda group: came.append((HUB.world.now(), group.question.ordinal)),
    )
    assert [group.question.ordinal for group in groups] == [0, 1, 2, 3]
    assert slots.seen == [(0, {0: [0, 0], 1: [0, 0]}), (11, {0: [1, 1]})]
    assert came == [(3, 1), (16, 0), (16, 2), (60, 3)], "nobody waits for the restart, nor the restart for them"
    made = [x["groups"] for x in history(tmp_path / "ledger.jsonl") if x["event"] == "generated"]
    assert sorted(group for groups in made for group in groups) == [f"grpo/{n}" for n in range(4)]


class Both(Timed):
    """Both slots die after 1 s; a fresh engine takes 10 s in slot 0 and 20 in slot 1, and 5 for its wave."""

    def generate(self, waves, sampling, name, each, failed):
        began = HUB.world.now()
        self.seen.append((began, sorted(waves)))
        if len(self.seen) == 1:
            self._until(began + 1)
            return dict.fromkeys(waves, "killed")
        self._until(began + 5)
        return super(Timed, self).generate(waves, sampling, name, each, failed)

    def replace(self, slot, why):
        self.lives["rollout", slot] += 1
        self._until(HUB.world.now() + 10 + 10 * slot)


def test_engines_that_die_together_start_together_and_each_is_asked_as_soon_as_it_serves(monkeypatch):
    monkeypatch.setattr(HUB, "world", Clockwork())
    slots = Both()
    groups = over(slots).sample([lease(n) for n in range(4)], SAMPLING, "generate")
    assert [group.question.ordinal for group in groups] == [0, 1, 2, 3]
    assert slots.seen == [(0, [0, 1]), (11, [0]), (21, [1])] and HUB.world.now() == 26


class Mute(Slots):
    """Neither judge answers at first; a fresh one takes 10 s to start."""

    def score(self, parts, by, name):
        return super().score(parts, by, name) if len(self.lives) == 2 else ({}, dict.fromkeys(parts, "killed"))

    def replace_reward_actor(self, slot, why):
        HUB.wait((), until=HUB.world.now() + 10)
        self.lives["reward", slot] += 1


def test_judges_that_die_together_start_together(monkeypatch):
    monkeypatch.setattr(HUB, "world", Clockwork())
    one = over(Mute())
    assert len(one.score(one.sample([lease(n) for n in range(4)], SAMPLING, "generate"), "score", "rule")) == 4
    assert HUB.world.now() == 10


class Deaf(Elastic, Dies):
    """The third reward actor, asked for in a step of the second stage, does not take the reward model."""

    def __init__(self, tokenizer, run_dir):
        super().__init__(tokenizer)
        self.begin(2, 1)
        self.run_dir = run_dir

    def learn(self, method, *args):
        done = super().learn(method, *args)
        if method == "step" and self.steps == 4:
            (self.run_dir / NAME).write_text('{"reward": 2}')
        return done

    def starts(self, role, slot):
        self.stale.add(slot)

    def score(self, parts, by, name):
        return {slot: self.judged(part, by) for slot, part in parts.items()}, {}

    def send_reward_model(self, version, slots):
        return ("", {1: "no memory"}) if 1 in slots else super().send_reward_model(version, slots)


def test_a_reward_actor_that_is_added_and_fails_on_its_first_model_costs_nothing_of_the_crash_budget(tmp_path, tokenizer):
    roles, config = Deaf(tokenizer, tmp_path / "run"), configuration(tmp_path / "run", ITERATIVE)
    loop = drive(config, load_data(config.data, tokenizer, 0, gold_check(RewardConfig())), roles)
    told = [line for _, line in scalings(loop.dir / "ledger.jsonl")]
    assert [(x["step"], x["to"], x.get("why")) for x in told] == [(4, 1, None), (5, 1, "reward-1: no memory")]
    assert roles.deaths == 0 and roles.reward_slots() == [0]


class Bare(Timed):
    """Slot 0 dies at once; its fresh engine is brought up in the second try only, as the learner fails in the first."""

    version, changing, updating, served = 1, Turn("it"), Turn("it"), {"version": 1, "life": 0}

    def __init__(self):
        super().__init__()
        self.tries, self.up = 0, {0, 1}

    def generate(self, waves, sampling, name, each, failed):
        assert waves.keys() <= self.up, "asked without the weights that serve"
        self.seen.append(sorted(waves))
        dead = {0} if len(self.seen) == 1 else set()
        Slots.generate(self, {s: w for s, w in waves.items() if s not in dead}, sampling, name, each, failed)
        return dict.fromkeys(dead, "killed")

    def replace(self, slot, why):
        self.lives["rollout", slot] += 1
        self.up.discard(slot)

    def bring_up(self, slot):
        self.tries += 1
        if self.tries == 1:
            raise RoleFailed("learner-0: killed")
        self.up.add(slot)


def test_a_fresh_engine_that_could_not_be_brought_up_is_before_anyone_asks_it():
    slots = Bare()
    one = Sampler(slots, Bound(0.1), slots)
    with pytest.raises(RoleFailed, match="learner-0"):
        one.sample([lease(0), lease(1)], SAMPLING, "one wave")
    assert [group.question.ordinal for group in one.sample([lease(2), lease(3)], SAMPLING, "another")] == [2, 3]
    assert slots.seen == [[0, 1], [0, 1]] and slots.tries == 2
