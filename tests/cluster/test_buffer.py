import pytest

from cluster.run.buffer import Buffer


def scored(ordinal):
    return [(ordinal, index) for index in range(2)]


def test_a_steps_groups_are_admitted_when_the_step_begins():
    buffer = Buffer(questions_per_step=3)
    assert list(buffer.admit()) == [0, 1, 2]
    assert list(buffer.admit()) == []
    for n in (2, 0, 1):
        assert buffer.take() is None
        buffer.put(n, scored(n))
    assert buffer.take() == [(n, i) for n in range(3) for i in range(2)]
    assert list(buffer.admit()) == []
    buffer.finish_step()
    assert list(buffer.admit()) == [3, 4, 5]


def test_a_group_that_is_not_awaited_is_refused():
    buffer = Buffer(questions_per_step=2, done=2)
    assert list(buffer.admit()) == [4, 5]
    buffer.put(4, [4])
    for ordinal in (3, 4, 6):
        with pytest.raises(ValueError, match=f"group {ordinal} is not awaited"):
            buffer.put(ordinal, [ordinal])
