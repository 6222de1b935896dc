from collections import Counter
from contextlib import nullcontext
from dataclasses import replace

import pytest

from cluster.fleet.calls import RoleFailed
from cluster.fleet.sampler import Bound, Sampler, Unscored
from cluster.fleet.versions import OnDisk
from cluster.records.ledger import Ledger, history
from reward.types import FAILURES, ScoredGroup, without_score
from rollout.types import FinishReason, Group, Lease, Question, Sample, Sampling

SAMPLING = Sampling(temperature=1.0, max_new_tokens=4)


def lease(ordinal, size=2):
    question = Question(ordinal=ordinal, id="q", text="?", gold="1", prompt_ids=(1,))
    return Lease(question=question, group_id=f"grpo/{ordinal}", indices=tuple(range(size)), attempt=0)


class Slots:
    """Two slots that answer in the wrong order and a judge of its own; `bad` members come back as rejected ones."""

    def __init__(self, bad=(), verdict="score"):
        self.bad, self.verdict, self.judged, self.lives = bad, verdict, [], Counter()

    def slots(self):
        return [0, 1]

    def allowed_s(self, waves):
        return 600.0 + sum(map(len, waves.values()))

    def generate(self, waves, sampling, name, each, failed):
        for slot in sorted(waves, reverse=True):
            for lease, group in zip(waves[slot], self._wave(waves[slot]), strict=True):
                each(lease, group)
        return {}

    def reward_slots(self):
        return [0, 1]

    def score(self, parts, by, name):
        return {slot: [self._judged(group) for group in parts[slot]] for slot in sorted(parts, reverse=True)}, {}

    def _judged(self, group):
        self.judged.append(group)
        verdicts = [("rejected", s.rejected) if s.rejected else (self.verdict, "no answer within 10 s") for s in group.samples]
        scored = (without_score(s, *verdict) for s, verdict in zip(group.samples, verdicts, strict=True))
        return ScoredGroup(question=group.question, scored=tuple(scored))

    def _wave(self, leases):
        return [Group(question=x.question, samples=tuple(self._sample(x, i) for i in x.indices)) for x in leases]

    def _sample(self, lease, index):
        return Sample(
            ordinal=lease.question.ordinal, group_id=lease.group_id, index=index, attempt=lease.attempt, prompt_ids=(1,),
            output_ids=(2,), sampled_mask=(True,), logprobs=(-1.0,), text="", versions=((0, 0),),
            finish_reason=FinishReason.STOP, rejected="NaN" if (lease.group_id, index) in self.bad else "",
        )  # fmt: skip


@pytest.fixture
def sampler(tmp_path):
    return lambda **slots: over(Slots(**slots))


def over(slots):
    return Sampler(slots, Bound(0.1), OnDisk())


def order(sampler, size, ordinal=0):
    """Outputs of one question, judged."""
    (group,) = sampler.score(sampler.sample([lease(ordinal, size)], SAMPLING, "x"), f"score {ordinal}", "rule")
    return group.scored


def test_groups_come_in_the_order_of_the_leases_whoever_answers_first(sampler):
    one, asked = sampler(), [lease(3), lease(0), lease(1)]
    groups = one.sample(asked, SAMPLING, "generate")
    assert [group.question for group in groups] == [x.question for x in asked]
    assert [(s.ordinal, s.index) for g in groups for s in g.samples] == [(3, 0), (3, 1), (0, 0), (0, 1), (1, 0), (1, 1)]
    assert [group.question.ordinal for group in one.score(groups, "score", "rule")] == [3, 0, 1]


def test_a_rejected_output_stays_in_its_group_and_is_booked(sampler, tmp_path):
    one = sampler(bad={("grpo/0", 1)})
    groups = one.score(
        one.sample([lease(0), lease(1)], SAMPLING, "generate", Ledger(tmp_path / "ledger.jsonl")), "score", "rule"
    )
    scored = [s for group in groups for s in group.scored]
    assert [(s.sample.group_id, s.sample.index, s.verdict.status, s.verdict.reason) for s in scored] == [
        ("grpo/0", 0, "score", "no answer within 10 s"), ("grpo/0", 1, "rejected", "NaN"),
        ("grpo/1", 0, "score", "no answer within 10 s"), ("grpo/1", 1, "score", "no answer within 10 s"),
    ]  # fmt: skip
    made = [x["groups"] for x in history(tmp_path / "ledger.jsonl") if x["event"] == "generated"]
    assert sum(len(indices) for groups in made for indices in groups.values()) == 4


@pytest.mark.parametrize("status", FAILURES)
def test_an_order_of_which_nothing_has_a_score_ends_the_run_with_the_first_cause(sampler, status):
    lost = sampler(verdict=status) if status != "rejected" else sampler(bad={("grpo/0", i) for i in range(2)})
    with pytest.raises(Unscored, match=rf"score 0: 2 of 2 outputs have no score \(2 {status}\)") as failed:
        order(lost, 2)
    why = "NaN" if status == "rejected" else "no answer within 10 s"
    assert str(failed.value).endswith(f"The first, grpo/0[0]: {why}") and len(failed.value.groups[0].scored) == 2


def test_a_small_part_of_a_step_may_be_lost_as_a_whole(sampler):
    one = sampler(bad={("grpo/9", 0), ("grpo/9", 1)})
    order(one, 64)
    (group,) = one.sample([lease(9)], SAMPLING, "refill")
    with pytest.raises(Unscored, match="2 of 2"):
        one.score([group], "step", "rule")
    (scored,) = sampler().score([group], "refill", "rule", whole=False)
    assert [s.verdict.status for s in scored.scored] == ["rejected"] * 2


def test_failures_are_borne_up_to_the_bound_of_the_newest_outputs_whatever_their_kind(sampler):
    one = sampler(bad={(f"grpo/{n}", 0) for n in range(10)})
    for n in range(6):
        assert order(one, 2, n)[0].verdict.status == "rejected", "1 of 2 says little: 6 of 64 are allowed"
    with pytest.raises(Unscored, match="7 of the last 14"):
        order(one, 2, 6)
    large = sampler(bad={("grpo/0", i) for i in range(13)})
    with pytest.raises(Unscored, match="13 of 128 .* 13 of the last 128"):
        order(large, 128)
    assert len(order(sampler(bad={("grpo/0", i) for i in range(12)}), 128)) == 128
    older = sampler(bad={("grpo/0", i) for i in range(6)})
    order(older, 64, 0), order(older, 64, 1)
    older._roles.bad = {("grpo/2", i) for i in range(6)}
    assert len(order(older, 64, 2)) == 64, "what is older than the newest 64 is forgotten"


class Failing(Slots):
    """Slot 0 fails at first, with this error."""

    def __init__(self, why):
        super().__init__()
        self.why, self.asked, self.replaced = why, [], []

    def generate(self, waves, sampling, name, each, failed):
        self.asked.append(waves)
        failing = {0} if len(self.asked) == 1 else set()
        super().generate({slot: wave for slot, wave in waves.items() if slot not in failing}, sampling, name, each, failed)
        return dict.fromkeys(failing, self.why)

    def replace(self, slot, why):
        self.replaced.append(slot)


@pytest.mark.parametrize(
    ("why", "draw"),
    [
        ("no answer within 610 s", 1),
        ("RayTaskError(EngineError): a wave of 64 requests: no answer within 600 s", 1),
        ("ActorDiedError: the actor died", 0),
    ],
)
def test_a_wave_that_outlasted_its_deadline_is_drawn_anew_and_one_whose_worker_died_is_repeated(why, draw):
    slots = Failing(why)
    groups = over(slots).sample([lease(0), lease(1)], SAMPLING, "generate")
    assert [len(group.samples) for group in groups] == [2, 2] and slots.replaced == [0]
    assert [(x.attempt, x.draw) for x in slots.asked[1][0]] == [(1, draw)]


def test_a_lease_is_booked_with_what_decides_its_outputs_and_until_when_they_count(tmp_path):
    ledger = Ledger(tmp_path / "ledger.jsonl")
    over(Failing("no answer within 602 s")).sample([lease(0), lease(1)], SAMPLING, "generate", ledger)
    booked, served = [x for x in history(tmp_path / "ledger.jsonl") if x["event"] == "leased"], {"version": 0, "life": 0}
    assert [{k: v for k, v in x.items() if k not in ("incarnation", "event")} for x in booked] == [
        {"groups": {"grpo/0": [0, 1], "grpo/1": [0, 1]}, "attempt": 0, **served, "draw": 0, "deadline_s": 602.0},
        {"groups": {"grpo/0": [0, 1]}, "attempt": 1, **served, "draw": 1, "deadline_s": 601.0, "why": booked[1]["why"]},
    ]  # fmt: skip
    assert booked[1]["why"] == "no answer within 602 s"


class Late(Slots):
    """The judge of slot 1 is late at first; what each is asked is kept."""

    def __init__(self, verdict="score", version=None):
        super().__init__(verdict=verdict)
        self.asked, self.replaced, self.version = [], [], version

    def score(self, parts, by, name):
        self.asked.append({slot: [group.question.ordinal for group in part] for slot, part in parts.items()})
        answers, errors = super().score(parts, by, name)
        if len(self.asked) == 1:
            del answers[1]
            errors = {1: "no answer within 10 s"}
        return answers, errors

    def replace_reward_actor(self, slot, why):
        self.replaced.append(slot)

    def _judged(self, group):
        made = super()._judged(group)
        versioned = (replace(s, verdict=replace(s.verdict, reward_version=self.version)) for s in made.scored)
        return replace(made, scored=tuple(versioned))


def test_groups_whose_judge_is_late_go_to_another_one():
    slots = Late()
    one = over(slots)
    scored = one.score(one.sample([lease(n, 1) for n in range(4)], SAMPLING, "generate"), "score", "rule")
    assert [group.question.ordinal for group in scored] == [0, 1, 2, 3] and slots.replaced == [1]
    assert slots.asked == [{0: [0, 2], 1: [1, 3]}, {0: [1, 3]}]


def test_judgements_by_another_reward_model_than_serves_end_the_run():
    for version in (0, 1):
        one = over(Late(version=version))
        groups = one.sample([lease(n) for n in range(2)], SAMPLING, "generate")
        refused = pytest.raises(RoleFailed, match=r"score: judged by reward model \[1\], and 0 serves")
        with refused if version else nullcontext():
            assert len(one.score(groups, "score", "outcome_model")) == 2
