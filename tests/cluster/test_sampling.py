import pytest

from cluster.fleet.sampler import Bound, Sampler, Unscored
from cluster.records.ledger import Ledger, history
from reward.types import FAILURES, without_score
from rollout.types import FinishReason, Lease, Question, Sample, Sampling

SAMPLING = Sampling(temperature=1.0, max_new_tokens=4)


def lease(ordinal, size=2):
    question = Question(ordinal=ordinal, id="q", text="?", gold="1", prompt_ids=(1,))
    return Lease(question=question, group_id=f"grpo/{ordinal}", indices=tuple(range(size)), attempt=0)


class Slots:
    """Two slots that answer in the wrong order and a judge of its own; `bad` members come back as rejected ones."""

    def __init__(self, bad=(), verdict="score"):
        self.bad, self.verdict, self.judged = bad, verdict, []

    def slots(self):
        return [0, 1]

    def generate(self, waves, sampling, name):
        return {slot: self._wave(waves[slot]) for slot in sorted(waves, reverse=True)}, {}

    def judge(self, questions, samples, name, reward):
        self.judged += samples
        return [without_score(s, self.verdict, "no answer within 10 s") for s in samples]

    def _wave(self, leases):
        return [
            Sample(
                ordinal=x.question.ordinal, group_id=x.group_id, index=i, attempt=0, prompt_ids=(1,), output_ids=(2,),
                sampled_mask=(True,), logprobs=(-1.0,), text="", versions=((0, 0),), finish_reason=FinishReason.STOP,
                rejected="NaN" if (x.group_id, i) in self.bad else "",
            )
            for x in reversed(leases) for i in reversed(x.indices)
        ]  # fmt: skip


@pytest.fixture
def sampler(tmp_path):
    return lambda **slots: Sampler(Slots(**slots), Ledger(tmp_path / "ledger.jsonl"), lambda slot: None, Bound(0.1))


def order(sampler, size, ordinal=0):
    """Outputs of one question, judged."""
    asked = lease(ordinal, size)
    return sampler.judge([asked.question], sampler.sample([asked], SAMPLING, "x", version=0), f"score {ordinal}", "rule")


def test_outputs_come_in_the_order_of_the_leases_whoever_answers_first(sampler):
    samples = sampler().sample([lease(3), lease(0), lease(1)], SAMPLING, "generate", version=0)
    assert [(s.ordinal, s.index) for s in samples] == [(3, 0), (3, 1), (0, 0), (0, 1), (1, 0), (1, 1)]


def test_a_rejected_output_stays_in_its_group_is_booked_and_is_not_judged(sampler, tmp_path):
    one = sampler(bad={("grpo/0", 1)})
    samples = one.sample([lease(0), lease(1)], SAMPLING, "generate", version=0, booked=True)
    scored = one.judge([lease(0).question, lease(1).question], samples, "score", "rule")
    assert [(s.sample.group_id, s.sample.index, s.verdict.status, s.verdict.reason) for s in scored] == [
        ("grpo/0", 0, "score", "no answer within 10 s"), ("grpo/0", 1, "rejected", "NaN"),
        ("grpo/1", 0, "score", "no answer within 10 s"), ("grpo/1", 1, "score", "no answer within 10 s"),
    ]  # fmt: skip
    assert len(one.roles.judged) == 3 and not any(s.rejected for s in one.roles.judged)
    made = [x["groups"] for x in history(tmp_path / "ledger.jsonl") if x["event"] == "generated"]
    assert sum(len(indices) for groups in made for indices in groups.values()) == 4


@pytest.mark.parametrize("status", FAILURES)
def test_an_order_of_which_nothing_has_a_score_ends_the_run_with_the_first_cause(sampler, status):
    lost = sampler(verdict=status) if status != "rejected" else sampler(bad={("grpo/0", i) for i in range(2)})
    with pytest.raises(Unscored, match=rf"score 0: 2 of 2 outputs have no score \(2 {status}\)") as failed:
        order(lost, 2)
    why = "NaN" if status == "rejected" else "no answer within 10 s"
    assert str(failed.value).endswith(f"The first, grpo/0[0]: {why}") and len(failed.value.scored) == 2


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
    older.roles.bad = {("grpo/2", i) for i in range(6)}
    assert len(order(older, 64, 2)) == 64, "what is older than the newest 64 is forgotten"


class Failing(Slots):
    """Slot 0 fails at first, with this error."""

    def __init__(self, why):
        super().__init__()
        self.why, self.asked, self.replaced = why, [], []

    def generate(self, waves, sampling, name):
        self.asked.append(waves)
        answers, errors = super().generate(waves, sampling, name)
        if len(self.asked) == 1:
            del answers[0]
            errors = {0: self.why}
        return answers, errors

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
def test_a_wave_that_outlasted_its_deadline_is_drawn_anew_and_one_whose_worker_died_is_repeated(tmp_path, why, draw):
    slots = Failing(why)
    sampler = Sampler(slots, Ledger(tmp_path / "ledger.jsonl"), lambda slot: None, Bound(0.1))
    samples = sampler.sample([lease(0), lease(1)], SAMPLING, "generate", version=0)
    assert len(samples) == 4 and slots.replaced == [0]
    assert [(x.attempt, x.draw) for x in slots.asked[1][0]] == [(1, draw)]
