import pytest

from cluster.ledger import Ledger, history
from cluster.sampling import RunFailed, Sampler
from rollout.types import FinishReason, Lease, Question, Rejection, Sample, Sampling

SAMPLING = Sampling(temperature=1.0, max_new_tokens=4)


def lease(ordinal, size=2):
    question = Question(ordinal=ordinal, id="q", text="?", gold="1", prompt_ids=(1,))
    return Lease(question=question, group_id=f"grpo/{ordinal}", indices=tuple(range(size)), attempt=0)


class Slots:
    """Two slots that answer in the wrong order; `bad` members come back as rejections."""

    def __init__(self, bad=()):
        self.bad = bad

    def slots(self):
        return [0, 1]

    def generate(self, waves, sampling, name):
        return {slot: self._wave(waves[slot]) for slot in sorted(waves, reverse=True)}, {}

    def _wave(self, leases):
        members = [(x, i) for x in reversed(leases) for i in reversed(x.indices)]
        rejected = [
            Rejection(group_id=x.group_id, index=i, attempt=0, reason="NaN") for x, i in members if (x.group_id, i) in self.bad
        ]
        samples = [
            Sample(
                ordinal=x.question.ordinal, group_id=x.group_id, index=i, attempt=0, prompt_ids=(1,), output_ids=(2,),
                sampled_mask=(True,), logprobs=(-1.0,), text="", versions=((0, 0),), finish_reason=FinishReason.STOP,
            )
            for x, i in members if (x.group_id, i) not in self.bad
        ]  # fmt: skip
        return samples, rejected


@pytest.fixture
def sampler(tmp_path):
    return lambda bad=(), share=0.3: Sampler(Slots(bad), Ledger(tmp_path / "ledger.jsonl"), lambda slot: None, share)


def test_outputs_come_in_the_order_of_the_leases_whoever_answers_first(sampler):
    samples = sampler().sample([lease(3), lease(0), lease(1)], SAMPLING, "generate", version=0)
    assert [(s.ordinal, s.index) for s in samples] == [(3, 0), (3, 1), (0, 0), (0, 1), (1, 0), (1, 1)]


def test_a_booked_output_that_may_not_be_trained_on_is_dropped_with_its_reason(sampler, tmp_path):
    samples = sampler(bad={("grpo/0", 1)}).sample([lease(0), lease(1)], SAMPLING, "generate", version=0, booked=True)
    assert len(samples) == 3
    (dropped,) = [x for x in history(tmp_path / "ledger.jsonl") if x["event"] == "dropped"]
    assert (dropped["groups"], dropped["reason"]) == ({"grpo/0": [1]}, "NaN")


def test_an_unbooked_output_may_be_missing_but_not_too_many(sampler):
    assert len(sampler(bad={("grpo/0", 1)}).sample([lease(0, 8)], SAMPLING, "evaluate v0", version=0)) == 7
    with pytest.raises(RunFailed, match="evaluate v0: 1 unusable outputs, the first: NaN"):
        sampler(bad={("grpo/0", 1)}).sample([lease(0)], SAMPLING, "evaluate v0", version=0)
