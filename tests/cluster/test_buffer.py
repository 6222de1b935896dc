import pytest

from cluster.run.buffer import Buffer
from cluster.run.progress import Progress
from reward.types import ScoredGroup
from tests.reward.builders import question


def group(ordinal):
    return ScoredGroup(question=question(ordinal), scored=())


def test_a_steps_groups_are_admitted_when_the_step_begins():
    progress = Progress([])
    buffer = Buffer(3, progress)
    assert list(buffer.admit()) == [0, 1, 2]
    assert list(buffer.admit()) == []
    for n in (2, 0, 1):
        assert buffer.take() is None
        buffer.put(group(n))
    assert buffer.take() == [group(n) for n in range(3)]
    assert list(buffer.admit()) == []
    progress.finish_step()
    assert list(buffer.admit()) == [3, 4, 5]


def test_a_group_that_is_not_awaited_is_refused():
    progress = Progress([])
    progress.finish_step(), progress.finish_step()
    buffer = Buffer(2, progress)
    assert list(buffer.admit()) == [4, 5]
    buffer.put(group(4))
    for ordinal in (3, 4, 6):
        with pytest.raises(ValueError, match=f"group {ordinal} is not awaited"):
            buffer.put(group(ordinal))
