import pytest

from cluster.buffer import Buffer


def scored(ordinal):
    return [(ordinal, index) for index in range(2)]


def test_with_staleness_0_a_steps_groups_are_admitted_when_the_step_begins():
    buffer = Buffer(questions_per_step=3, max_staleness=0, steps=2)
    assert list(buffer.admit()) == [0, 1, 2]
    assert list(buffer.admit()) == []
    for n in (2, 0, 1):
        assert buffer.take() is None
        buffer.put(n, scored(n))
    assert buffer.take() == [(n, i) for n in range(3) for i in range(2)]
    assert list(buffer.admit()) == []
    buffer.finish_step()
    assert list(buffer.admit()) == [3, 4, 5]


@pytest.mark.parametrize("staleness", [0, 1, 3])
def test_no_group_is_trained_more_than_max_staleness_steps_after_its_admission(staleness):
    buffer = Buffer(questions_per_step=2, max_staleness=staleness, steps=10)
    admitted_at, worst = {}, 0
    for step in range(10):
        admitted_at |= dict.fromkeys(buffer.admit(), step)
        for n in range(2 * step, 2 * step + 2):
            buffer.put(n, [n])
        worst = max(worst, *(step - admitted_at[n] for n in buffer.take()))
        buffer.finish_step()
    assert worst == staleness
    assert sorted(admitted_at) == list(range(20))


def test_a_group_that_is_not_awaited_is_refused():
    buffer = Buffer(questions_per_step=2, max_staleness=0, steps=5, done=2)
    assert list(buffer.admit()) == [4, 5]
    buffer.put(4, [4])
    for ordinal in (3, 4, 6):
        with pytest.raises(ValueError, match=f"group {ordinal} is not awaited"):
            buffer.put(ordinal, [ordinal])
